"""Executes one worker's program: the third stage of the paper, hierarchical training.

Nothing here knows a plan's shape: ``Runner`` performs the actions that ``compile_plan`` lists. The model is cut by
detaching at every segment's end; gradients of the cut tensors travel back. The weights of the layers that a worker
computes lie in one flat tensor, so that a message is a slice and needs no copy.
"""

import math
import time
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hiertrain.control.answers import Iteration
from hiertrain.problem.execution import Execution
from hiertrain.problem.plan import Plan
from hiertrain.problem.profile import WorkerProfile
from hiertrain.program.actions import RECEIVES, SEND_OF, SENDS, Action, Kind
from hiertrain.program.compiler import compile_plan
from hiertrain.program.simulator import compute_s
from hiertrain.runtime.encoding import dequantize, quantize
from hiertrain.runtime.transport import Departure, Transport, sleep_until
from hiertrain.workload.chain_model import ChainModel, summed_loss
from hiertrain.workload.optimizers import build_optimizer
from hiertrain.workload.spec import OptimizerSettings
from hiertrain.workload.weights import flatten_weights, split_like

CPU = torch.device("cpu")
SAMPLE_DTYPES = {"uint8": torch.uint8, "float32": torch.float32}
# The messages that ``Execution.activation_encoding`` is about.
ACTIVATIONS = frozenset(
    {
        Kind.SEND_ACTIVATIONS,
        Kind.RECEIVE_ACTIVATIONS,
        Kind.SEND_ACTIVATION_GRADIENTS,
        Kind.RECEIVE_ACTIVATION_GRADIENTS,
    }
)
# Messages of different kinds carry different tags, so that a receive can only meet the send it was compiled with.
TAGS = {kind: tag for tag, pair in enumerate(SEND_OF.items()) for kind in pair}


class ActionError(RuntimeError):
    """An action failed; the message names the worker, the action and its position in the program."""


@dataclass
class _State:
    """What one iteration carries from action to action."""

    labels: Tensor  # of the rows that reach the loss on this worker
    batch: Tensor | None  # the whole mini-batch's raw samples, at the data holder
    activations: Tensor | None = None  # outputs of the last segment, followed by what children sent
    saved: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # per segment: its input, a leaf, and its output
    gradient: Tensor | None = None  # of the activations, on the way back
    loss: float = 0.0


class Runner:
    """One worker's part in training by a plan: the model, its flat weights, the optimizer at the root.

    On an accelerator the model and its activations live there; messages travel through the machine's memory.
    """

    def __init__(
        self,
        name: str,
        plan: Plan,
        execution: Execution,
        model: ChainModel,
        transport: Transport,
        optimizer: OptimizerSettings,
        pace: WorkerProfile | None = None,
        device: torch.device = CPU,
    ) -> None:
        """``pace``: sleep after each computing action until it has lasted as long as on a worker with these times."""
        self._name = name
        self._plan = plan
        self._model = model.to(device).train()
        self._transport = transport
        self._device = device
        self._sample_dtype = SAMPLE_DTYPES[execution.sample_encoding]
        self._quantized = ACTIVATIONS if execution.activation_encoding == "uint8" else frozenset[Kind]()
        self._program = compile_plan(plan, model.chain, execution).actions[name]
        depth = plan.workers[name].depth
        self._parameters = list(model.layers[:depth].parameters())
        self._weights = flatten_weights(model, depth)
        self._gradients = torch.empty_like(self._weights) if plan.workers[name].parent else torch.empty(0)
        self._buffers = {
            position: self._buffer(action) for position, action in enumerate(self._program) if action.kind in RECEIVES
        }
        self._durations_s = None if pace is None else [compute_s(pace, action) for action in self._program]
        self._rows = torch.tensor(plan.rows_at_own_depth(name), dtype=torch.int64)
        self._optimizer = build_optimizer(optimizer, list(model.parameters())) if name == plan.root else None
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
            return self._perform(_State(labels[self._rows].to(self._device), batch))
        except Exception as error:  # a layer may raise anything
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            reason, _, _ = reason.partition(". This is typically")  # Gloo's guess; the testbed knows better
            raise ActionError(f"{self.where}: {reason}") from error

    def _perform(self, state: _State) -> Iteration:
        if state.batch is not None:
            state.activations = self._own_samples(state.batch, self._name).to(self._device)
        for parameter in self._parameters:
            parameter.grad = None
        arrivals = {}
        for position, buffer in self._buffers.items():
            action = self._program[position]
            assert action.peer is not None
            arrivals[position] = self._transport.receive(action.peer, buffer, TAGS[action.kind])
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
            if action.kind in SENDS:
                departures[position] = self._send(state, action)
            else:
                self._compute(state, action)
                if self._durations_s is not None:
                    late_s += sleep_until(start_s + self._durations_s[position])
            spans.append((start_s, time.monotonic()))
        for self._position, departure in departures.items():
            spans[self._position] = departure.wait()
        return Iteration(
            loss=state.loss, started_s=started_s, ended_s=time.monotonic(), spans=tuple(spans), late_s=late_s
        )

    def _own_samples(self, batch: Tensor, worker: str) -> Tensor:
        rows = self._plan.own_rows(worker)
        return batch[rows.start : rows.stop].to(self._sample_dtype)

    def _prefix(self, flat: Tensor, action: Action) -> Tensor:
        """The part of a flat tensor that belongs to layers 1..last of ``action``."""
        return flat[: self._model.chain.parameter_prefix_bytes[action.last] // flat.element_size()]

    def _buffer(self, action: Action) -> Tensor:
        """What an action receives into, of exactly the message's size: Gloo does not check it."""
        match action.kind:
            case Kind.RECEIVE_SAMPLES:
                return torch.empty((action.samples, *self._model.sample_shape), dtype=self._sample_dtype)
            case Kind.RECEIVE_WEIGHTS:
                # In place: the parent sends them only after it has this worker's gradients.
                weights = self._prefix(self._weights, action)
                return weights if self._device == CPU else torch.empty_like(weights, device=CPU)
            case Kind.RECEIVE_GRADIENTS:
                return torch.empty_like(self._prefix(self._weights, action), device=CPU)
            case _ if action.kind in self._quantized:
                return torch.empty(action.size_bytes, dtype=torch.uint8)
            case _:
                return torch.empty(self._activation_shape(action))

    def _activation_shape(self, action: Action) -> tuple[int, ...]:
        return action.samples, *self._model.output_shapes[action.last - 1]

    def _take(self, state: _State, action: Action, buffer: Tensor) -> None:
        if action.kind in self._quantized:
            buffer = dequantize(buffer, self._activation_shape(action))
        received = buffer.to(self._device)
        match action.kind:
            case Kind.RECEIVE_SAMPLES:
                state.activations = received
            case Kind.RECEIVE_ACTIVATIONS:
                own = state.activations
                state.activations = received if own is None or not len(own) else torch.cat([own, received])
            case Kind.RECEIVE_ACTIVATION_GRADIENTS:
                state.gradient = received
            case Kind.RECEIVE_GRADIENTS:
                for parameter, gradient in zip(self._parameters, split_like(received, self._parameters), strict=False):
                    if not parameter.requires_grad:  # frozen: without a gradient the optimizer leaves it alone
                        continue
                    if parameter.grad is None:  # none of the samples went through this layer here
                        parameter.grad = gradient
                    else:
                        parameter.grad.add_(gradient)
            case Kind.RECEIVE_WEIGHTS:
                if self._device != CPU:
                    self._prefix(self._weights, action).copy_(received)

    def _send(self, state: _State, action: Action) -> Departure:
        assert action.peer is not None
        match action.kind:
            case Kind.SEND_SAMPLES:
                assert state.batch is not None
                tensor = self._own_samples(state.batch, action.peer)
            case Kind.SEND_ACTIVATIONS:
                assert state.activations is not None
                tensor = state.activations
            case Kind.SEND_ACTIVATION_GRADIENTS:  # the child's rows are the last ones: see RECEIVE_ACTIVATIONS
                assert state.gradient is not None
                own = len(state.gradient) - action.samples
                state.gradient, tensor = state.gradient[:own], state.gradient[own:]
            case Kind.SEND_GRADIENTS:
                if self._parameters:
                    torch.cat([_flat_gradient(parameter) for parameter in self._parameters], out=self._gradients)
                tensor = self._gradients
            case _:
                tensor = self._prefix(self._weights, action)
        message = tensor.to(CPU)
        if action.kind in self._quantized:
            message = quantize(message)
        return self._transport.send(action.peer, message.contiguous(), TAGS[action.kind])

    def _compute(self, state: _State, action: Action) -> None:
        match action.kind:
            case Kind.FORWARD:
                self._forward(state, action)
            case Kind.BACKWARD:
                leaf, output = state.saved.pop()
                if output.requires_grad:  # not so for a first segment without parameters
                    torch.autograd.backward(output, state.gradient)
                state.gradient = leaf.grad
            case _:
                assert self._optimizer is not None
                self._optimizer.step()
        synchronize(self._device)

    def _forward(self, state: _State, action: Action) -> None:
        assert state.activations is not None
        leaf = state.activations.detach()
        if action.first > 1:  # nobody needs the gradient of raw samples
            leaf.requires_grad_()
        depth = self._model.chain.depth
        output = self._model.run(leaf, action.first, min(action.last, depth - 1))
        if action.last == depth:  # shares of the mean over the whole mini-batch, so that gradients add up
            output = summed_loss(output, state.labels) / self._plan.batch_size
            state.loss = output.item()
            if not math.isfinite(state.loss):
                raise RuntimeError(f"the loss is {state.loss}; a lower learning rate may help")
        state.saved.append((leaf, output))
        state.activations = output.detach()


def synchronize(device: torch.device) -> None:
    """Wait until an accelerator has done what it was given, so that a clock read next tells the truth."""
    if device != CPU:
        torch.accelerator.synchronize(device)


def _flat_gradient(parameter: Tensor) -> Tensor:
    """The gradient as a vector; zeros where no samples went through the layer here, or where it is frozen."""
    return (torch.zeros_like(parameter) if parameter.grad is None else parameter.grad).reshape(-1)
