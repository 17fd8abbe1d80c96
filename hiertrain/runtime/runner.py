"""Executes one worker's program: the third stage of the paper, hierarchical training.

Nothing here knows a plan or a tree: ``Runner`` performs the actions that it was sent, by operation and role. The model
is cut by detaching at every segment's end; gradients of the cut tensors travel back. The weights of the layers that a
worker computes lie in one flat tensor, so that a message is a slice and needs no copy.
"""

import math
import time
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hiertrain.control.answers import Iteration
from hiertrain.problem.profile import WorkerProfile
from hiertrain.program.actions import Action, Op, Role, WorkerProgram
from hiertrain.program.simulator import compute_s
from hiertrain.runtime.encoding import codec_of
from hiertrain.runtime.transport import Departure, Transport, sleep_until
from hiertrain.workload.chain_model import ChainModel, summed_loss
from hiertrain.workload.optimizers import build_optimizer
from hiertrain.workload.spec import OptimizerSettings
from hiertrain.workload.weights import flatten_weights, split_like

CPU = torch.device("cpu")
# Messages of different roles carry different tags, so that a receive can only meet the send it was compiled with.
TAGS: dict[Role | None, int] = {role: tag for tag, role in enumerate(Role)}


class ActionError(RuntimeError):
    """An action failed; the message names the worker, the action and its position in the program."""


@dataclass
class _State:
    """What one iteration carries from action to action."""

    labels: dict[int, Tensor]  # of the rows that reach the loss, by the position of the action that computes it
    batch: Tensor | None  # the whole mini-batch's raw samples, at the data holder
    activations: Tensor | None = None  # outputs of the last segment, followed by what children sent
    saved: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # per segment: its input, a leaf, and its output
    gradient: Tensor | None = None  # of the activations, on the way back
    loss: float = 0.0


class Runner:
    """One worker's part in training: the model, its flat weights, the optimizer where its program updates them.

    On an accelerator the model and its activations live there; messages travel through the machine's memory.
    """

    def __init__(
        self,
        program: WorkerProgram,
        model: ChainModel,
        transport: Transport,
        optimizer: OptimizerSettings,
        pace: WorkerProfile | None = None,
        device: torch.device = CPU,
    ) -> None:
        """``pace``: sleep after each computing action until it has lasted as long as on a worker with these times."""
        self._program = program.actions
        self._batch_size = program.batch_size
        self._model = model.to(device).train()
        self._transport = transport
        self._device = device
        depth = max((action.last for action in self._program), default=0)
        self._parameters = list(model.layers[:depth].parameters())
        self._weights = flatten_weights(model, depth)
        sends_gradients = any((a.op, a.role) == (Op.SEND, Role.GRADIENTS) for a in self._program)
        self._gradients = torch.empty_like(self._weights) if sends_gradients else torch.empty(0)
        self._buffers = {
            position: self._buffer(action) for position, action in enumerate(self._program) if action.op == Op.RECEIVE
        }
        self._durations_s = None if pace is None else [compute_s(pace, action) for action in self._program]
        self._optimizer = build_optimizer(optimizer, list(model.parameters())) if program.updates else None
        self._first = next((a for a in self._program if a.op == Op.FORWARD and a.first == 1), None)  # of own samples
        self._iteration = 0
        self._position: int | None = None

    @property
    def where(self) -> str:
        """The place in the program, for people; any thread may ask."""
        iteration, position = f"iteration {self._iteration}", self._position
        if position is None:
            return f"{iteration}, before action 1 (waiting for the other workers)"
        return f"{iteration}, action {position + 1} of {len(self._program)} ({self._program[position]})"

    def iterate(self, labels: Tensor, batch: Tensor | None) -> Iteration:
        """Perform the program once.

        ``labels``: of the whole mini-batch, int64, shape (B,). ``batch``: its raw samples, uint8, shape (B, C, H, W),
        at the data holder; None elsewhere. Raises ActionError.
        """
        self._iteration += 1
        self._position = None
        try:
            return self._perform(_State(self._own_labels(labels), batch))
        except Exception as error:  # a layer may raise anything
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            reason, _, _ = reason.partition(". This is typically")  # Gloo's guess; the testbed knows better
            raise ActionError(f"{self.where}: {reason}") from error

    def _own_labels(self, labels: Tensor) -> dict[int, Tensor]:
        """The labels of the rows that reach the loss in each action that computes it, by its position."""
        depth = self._model.chain.depth
        return {
            position: _rows(labels, action).to(self._device)
            for position, action in enumerate(self._program)
            if action.op == Op.FORWARD and action.last == depth
        }

    def _perform(self, state: _State) -> Iteration:
        if state.batch is not None and self._first is not None:
            state.activations = _rows(state.batch, self._first).to(self._device)
        for parameter in self._parameters:
            parameter.grad = None
        arrivals = {}
        for position, buffer in self._buffers.items():
            action = self._program[position]
            assert action.peer is not None
            arrivals[position] = self._transport.receive(action.peer, buffer, TAGS[action.role])
        self._transport.barrier()  # now every receive is posted: no message waits for its receiver
        departures: dict[int, Departure] = {}
        spans: list[tuple[float, float]] = []
        late_s = 0.0
        started_s = time.monotonic()
        for position, action in enumerate(self._program):
            self._position = position
            start_s = time.monotonic()
            if position in arrivals:
                arrivals[position].wait()
                spans.append((start_s, time.monotonic()))  # its end is the arrival, whatever is then done with it
                self._take(state, action, self._buffers[position])
                continue
            if action.op == Op.SEND:
                departures[position] = self._send(state, action)
            else:
                self._compute(state, position)
                if self._durations_s is not None:
                    late_s += sleep_until(start_s + self._durations_s[position])
            spans.append((start_s, time.monotonic()))
        for self._position, departure in departures.items():
            spans[self._position] = departure.wait()
        return Iteration(
            loss=state.loss, started_s=started_s, ended_s=time.monotonic(), spans=tuple(spans), late_s=late_s
        )

    def _prefix(self, flat: Tensor, action: Action) -> Tensor:
        """The part of a flat tensor that belongs to layers 1..last of ``action``."""
        return flat[: self._model.chain.parameter_prefix_bytes[action.last] // flat.element_size()]

    def _in_place(self, action: Action) -> bool:
        """Whether what is received is the weights themselves, bit by bit."""
        return action.role == Role.WEIGHTS and action.encoding == "float32" and self._device == CPU

    def _buffer(self, action: Action) -> Tensor:
        """What an action receives into, of exactly the message's size: Gloo does not check it."""
        if self._in_place(action):
            # In place: whoever sends them has this worker's gradients already.
            return self._prefix(self._weights, action).view(torch.uint8)
        return torch.empty(action.size_bytes, dtype=torch.uint8)

    def _shape(self, action: Action) -> tuple[int, ...]:
        """Of what a message carries."""
        match action.role:
            case Role.SAMPLES:
                return action.samples, *self._model.sample_shape
            case Role.ACTIVATIONS | Role.ACTIVATION_GRADIENTS:
                return action.samples, *self._model.output_shapes[action.last - 1]
            case _:
                return (self._prefix(self._weights, action).numel(),)

    def _take(self, state: _State, action: Action, buffer: Tensor) -> None:
        received = codec_of(action).decode(buffer, self._shape(action)).to(self._device)
        match action.role:
            case Role.SAMPLES:
                state.activations = received
            case Role.ACTIVATIONS:
                own = state.activations
                state.activations = received if own is None or not len(own) else torch.cat([own, received])
            case Role.ACTIVATION_GRADIENTS:
                state.gradient = received
            case Role.GRADIENTS:
                for parameter, gradient in zip(self._parameters, split_like(received, self._parameters), strict=False):
                    if not parameter.requires_grad:  # frozen: without a gradient the optimizer leaves it alone
                        continue
                    if parameter.grad is None:  # none of the samples went through this layer here
                        parameter.grad = gradient
                    else:
                        parameter.grad.add_(gradient)
            case Role.WEIGHTS:
                if not self._in_place(action):
                    self._prefix(self._weights, action).copy_(received)

    def _send(self, state: _State, action: Action) -> Departure:
        assert action.peer is not None
        message = codec_of(action).encode(self._values(state, action).to(CPU))
        return self._transport.send(action.peer, message, TAGS[action.role])

    def _values(self, state: _State, action: Action) -> Tensor:
        """What is sent."""
        match action.role:
            case Role.SAMPLES:
                assert state.batch is not None
                return _rows(state.batch, action)
            case Role.ACTIVATIONS:
                assert state.activations is not None
                return state.activations
            case Role.ACTIVATION_GRADIENTS:  # the receiver's rows are the last ones, since its activations came last
                assert state.gradient is not None
                own = len(state.gradient) - action.samples
                state.gradient, sent = state.gradient[:own], state.gradient[own:]
                return sent
            case Role.GRADIENTS:
                if self._parameters:
                    torch.cat([_flat_gradient(parameter) for parameter in self._parameters], out=self._gradients)
                return self._prefix(self._gradients, action)
            case _:
                return self._prefix(self._weights, action)

    def _compute(self, state: _State, position: int) -> None:
        action = self._program[position]
        match action.op:
            case Op.FORWARD:
                self._forward(state, action, state.labels.get(position))
            case Op.BACKWARD:
                leaf, output = state.saved.pop()
                if output.requires_grad:  # not so for a first segment without parameters
                    torch.autograd.backward(output, state.gradient)
                state.gradient = leaf.grad
            case _:
                assert self._optimizer is not None
                self._optimizer.step()
        synchronize(self._device)

    def _forward(self, state: _State, action: Action, labels: Tensor | None) -> None:
        """Layers first..last; ``labels``: where the last of them is the loss."""
        assert state.activations is not None
        leaf = state.activations.detach()
        if action.first > 1:  # nobody needs the gradient of raw samples
            leaf.requires_grad_()
        output = self._model.run(leaf, action.first, min(action.last, self._model.chain.depth - 1))
        if labels is not None:  # shares of the mean over the whole mini-batch, so that gradients add up
            output = summed_loss(output, labels) / self._batch_size
            state.loss = output.item()
            if not math.isfinite(state.loss):
                raise RuntimeError(f"the loss is {state.loss}; a lower learning rate may help")
        state.saved.append((leaf, output))
        state.activations = output.detach()


def _rows(values: Tensor, action: Action) -> Tensor:
    """The rows of an action, of those of a whole mini-batch."""
    parts = [values[start:end] for start, end in action.rows]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def synchronize(device: torch.device) -> None:
    """Wait until an accelerator has done what it was given, so that a clock read next tells the truth."""
    if device != CPU:
        torch.accelerator.synchronize(device)


def _flat_gradient(parameter: Tensor) -> Tensor:
    """The gradient as a vector; zeros where no samples went through the layer here, or where it is frozen."""
    return (torch.zeros_like(parameter) if parameter.grad is None else parameter.grad).reshape(-1)
