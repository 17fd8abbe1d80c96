"""Executes one worker's program: the third stage of the paper, hierarchical training.

Nothing here knows a plan or a tree: ``Runner`` performs the actions that it was sent, by operation and role. The model
is cut by detaching at every segment's end; gradients of the cut tensors travel back. The weights of the layers that a
worker computes lie in one flat tensor, so that a message is a slice and needs no copy.

Overlapped iterations have no barrier between them. Each message still meets its own receive, since those of one pair
and role are sent and received in the same order; and no tensor is written before its message has left, since of what a
worker sends in an iteration only two kinds may still be on their way at its end. Raw samples have tensors of their own.
Weights are written next when the updates of the next iteration are made, and these need gradients of all who computed
with the weights.
"""

import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.distributed import Work
from torch.nn import Parameter

from hiertrain.control.answers import Iteration
from hiertrain.problem.profile import WorkerProfile
from hiertrain.program.actions import MOST_AHEAD, Action, Op, Role, WorkerProgram
from hiertrain.program.simulator import compute_s
from hiertrain.runtime.encoding import codec_of
from hiertrain.runtime.transport import Departure, Transport, sleep_until
from hiertrain.workload.chain_model import ChainModel, summed_loss
from hiertrain.workload.compression import joined
from hiertrain.workload.optimizers import build_optimizer
from hiertrain.workload.spec import OptimizerSettings
from hiertrain.workload.weights import flatten_weights, parameters_of, split_like

CPU = torch.device("cpu")
# Messages of different roles carry different tags, so that a receive can only meet the send it was compiled with.
TAGS: dict[Role | None, int] = {role: tag for tag, role in enumerate(Role)}


class ActionError(RuntimeError):
    """An action failed; the message names the worker, the action and its position in the program."""


@dataclass(frozen=True)
class MiniBatches:
    """The mini-batches of a training, as one worker has them."""

    count: int  # I: the iterations
    indices: Callable[[int], Tensor]  # of mini-batch 0..I-1: where its rows lie in the data; int64, shape (B,)
    labels: Tensor  # of all data, int64
    samples: Tensor | None  # all raw ones at the data holder, uint8, shape (samples, C, H, W); None elsewhere
    # Where raw samples are sent compressed: each of them at the data holder, and how many bytes it has, everywhere.
    compressed: Sequence[bytes] = ()
    compressed_bytes: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))

    def rows(self, number: int, action: Action) -> Tensor:
        """Where the rows of an action on mini-batch ``number`` lie in the data; int64, shape (rows,)."""
        indices = self.indices(number)
        return torch.cat([indices[start:end] for start, end in action.rows])

    def sent(self, number: int, action: Action) -> Tensor:
        """The raw samples of an action on mini-batch ``number`` as its codec takes them."""
        assert self.samples is not None
        rows = self.rows(number, action)
        return joined(self.compressed[row] for row in rows.tolist()) if action.compressed else self.samples[rows]

    def sent_bytes(self, number: int, action: Action) -> int:
        """The size of that message."""
        return int(self.compressed_bytes[self.rows(number, action)].sum())


@dataclass
class _State:
    """What one iteration carries from action to action."""

    labels: dict[int, Tensor]  # of the rows that reach the loss, by the position of the action that computes it
    samples: dict[int, Tensor]  # raw ones, by the position of the action that sends them
    activations: Tensor | None = None  # outputs of the last segment, followed by what children sent
    saved: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # per segment: its input, a leaf, and its output
    gradient: Tensor | None = None  # of the activations, on the way back
    loss: float = 0.0
    late_s: float = 0.0


@dataclass
class _Performed:
    """An iteration whose actions are done; what it sent may still be on its way."""

    number: int
    loss: float
    late_s: float
    spans: list[tuple[float, float]]
    departures: dict[int, Departure]  # by position
    started_s: float
    ended_s: float

    def report(self) -> Iteration:
        return Iteration(
            loss=self.loss,
            started_s=self.started_s,
            ended_s=self.ended_s,
            spans=tuple(self.spans),
            late_s=self.late_s,
        )


class Runner:
    """One worker's part in training: the model, its flat weights, optimizers of those that its program updates.

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
        self._parameters = parameters_of(model, program.layers)
        self._weights = flatten_weights(model, program.layers)
        self._before_bytes = model.chain.parameter_prefix_bytes[program.layers.start - 1]  # of the layers before
        sends_gradients = any((a.op, a.role) == (Op.SEND, Role.GRADIENTS) for a in self._program)
        self._gradients = torch.empty_like(self._weights) if sends_gradients else torch.empty(0)
        # In overlapped programs the receives of raw samples are posted as early as these may be sent.
        self._early = MOST_AHEAD if program.overlapped else 0
        self._buffers = {
            position: [self._buffer(action) for _ in range(self._early * (action.role == Role.SAMPLES) + 1)]
            for position, action in enumerate(self._program)
            if action.op == Op.RECEIVE
        }
        self._arrivals: dict[tuple[int, int], Work] = {}  # by the iteration and the position of the receive
        # Gloo announces a receive on its message's connection: behind samples sent ahead, only when these have left. So
        # who sends them posts the receives of the next iteration after the last action that needs what was received.
        needing = [position for position, a in enumerate(self._program) if not a.ahead and a.role != Role.WEIGHTS]
        self._free_after = max(needing, default=None) if any(a.ahead for a in self._program) else None
        self._durations_s = None if pace is None else [compute_s(pace, action) for action in self._program]
        # By position. All known optimizers are element-wise: each part of the parameters can have its own.
        updated = {
            position: self._of(action) for position, action in enumerate(self._program) if action.op == Op.UPDATE
        }
        self._optimizers = {position: build_optimizer(optimizer, own) for position, own in updated.items() if own}
        self._iteration = 0  # from 0; those before it only send ahead
        self._position: int | None = None

    @property
    def where(self) -> str:
        """The place in the program, for people; any thread may ask."""
        number, position = self._iteration, self._position
        iteration = f"iteration {number + 1}" if number >= 0 else "before iteration 1"
        if position is None:
            return f"{iteration}, before action 1 (waiting for the other workers)"
        return f"{iteration}, action {position + 1} of {len(self._program)} ({self._program[position]})"

    def train(self, batches: MiniBatches) -> Iterator[list[Iteration]]:
        """Perform the program for each mini-batch; after each, the reports that are complete since the last one.

        An iteration's report is complete when all that it sent has left; of overlapped ones ``MOST_AHEAD`` later.
        Raises ActionError.
        """
        try:
            yield from self._train(batches)
        except Exception as error:  # a layer may raise anything
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            reason, _, _ = reason.partition(". This is typically")  # Gloo's guess; the testbed knows better
            raise ActionError(f"{self.where}: {reason}") from error

    def _train(self, batches: MiniBatches) -> Iterator[list[Iteration]]:
        performed: deque[_Performed] = deque()
        ended_s = time.monotonic()
        for number in range(-self._early, batches.count):
            performed.append(self._perform(number, batches, ended_s))
            ended_s = performed[-1].ended_s
            if number >= 0:
                lasting = self._early if number + 1 < batches.count else 0
                done = [performed.popleft() for _ in range(len(performed) - lasting)]
                for one in done:
                    self._await(one, list(one.departures))
                yield [one.report() for one in done if one.number >= 0]

    def _perform(self, number: int, batches: MiniBatches, ended_s: float) -> _Performed:
        """One iteration, of those actions that are for a mini-batch; the one before ended at ``ended_s``."""
        self._iteration, self._position = number, None
        due = [0 <= number + action.ahead < batches.count for action in self._program]
        state = self._state(number, batches, due)
        for parameter in self._parameters:
            parameter.grad = None
        self._post(number, batches)
        if not self._early:
            self._transport.barrier()  # now every receive is posted: no message waits for its receiver
            ended_s = time.monotonic()
        departures: dict[int, Departure] = {}
        spans: list[tuple[float, float]] = []
        for position, action in enumerate(self._program):
            start_s = end_s = time.monotonic()
            self._position = position
            if not due[position]:
                pass
            elif action.op == Op.RECEIVE:
                self._arrivals.pop((number, position)).wait()
                end_s = time.monotonic()  # the arrival, whatever is then done with it
                self._take(state, action, self._place(number, position))
            elif action.op == Op.SEND:
                departures[position] = self._send(state, position)
                end_s = time.monotonic()
            else:
                self._compute(state, position)
                if self._durations_s is not None:
                    state.late_s += sleep_until(start_s + self._durations_s[position])
                end_s = time.monotonic()
            spans.append((start_s, end_s))
            if position == self._free_after:
                self._post(number + 1, batches)
        done = _Performed(number, state.loss, state.late_s, spans, departures, ended_s, 0.0)
        self._await(done, [position for position in departures if not self._outlasts(self._program[position])])
        done.ended_s = time.monotonic()
        return done

    def _state(self, number: int, batches: MiniBatches, due: list[bool]) -> _State:
        """How an iteration begins: with the labels and raw samples that its actions need."""
        state = _State({}, {})
        for position, action in enumerate(self._program):
            if not due[position]:
                continue
            if action.op == Op.FORWARD and action.last == self._model.chain.depth:
                state.labels[position] = batches.labels[batches.rows(number, action)].to(self._device)
            if batches.samples is not None and action.op == Op.FORWARD and action.first == 1:
                state.activations = batches.samples[batches.rows(number, action)].to(self._device)
            elif batches.samples is not None and (action.op, action.role) == (Op.SEND, Role.SAMPLES):
                state.samples[position] = batches.sent(number + action.ahead, action)
        return state

    def _post(self, number: int, batches: MiniBatches) -> None:
        """Post the receives of an iteration that are not yet, and those of raw samples of one to come."""
        for position, buffers in self._buffers.items():
            action, coming = self._program[position], number + len(buffers) - 1
            if 0 <= coming < batches.count and (coming, position) not in self._arrivals:
                assert action.peer is not None
                if action.compressed:
                    size = batches.sent_bytes(coming, action)
                    buffers[coming % len(buffers)] = torch.empty(size, dtype=torch.uint8)
                buffer, tag = self._place(coming, position), TAGS[action.role]
                self._arrivals[coming, position] = self._transport.receive(action.peer, buffer, tag)

    def _place(self, number: int, position: int) -> Tensor:
        """The buffer of a receive in an iteration."""
        buffers = self._buffers[position]
        return buffers[number % len(buffers)]

    def _outlasts(self, action: Action) -> bool:
        """Whether what is sent may still be on its way when its iteration has ended."""
        return self._early > 0 and (action.ahead > 0 or action.role == Role.WEIGHTS)

    def _await(self, done: _Performed, positions: Iterable[int]) -> None:
        """Wait until the messages of these actions have left."""
        for position in positions:
            self._iteration, self._position = done.number, position
            done.spans[position] = done.departures.pop(position).wait()

    def _of(self, action: Action) -> list[Parameter]:
        """The parameters of an action's layers."""
        return parameters_of(self._model, range(action.first, action.last + 1))

    def _part(self, flat: Tensor, action: Action) -> Tensor:
        """The part of a flat tensor that belongs to an action's layers."""
        prefix, before = self._model.chain.parameter_prefix_bytes, self._before_bytes
        first, last = prefix[action.first - 1] - before, prefix[action.last] - before
        return flat[first // flat.element_size() : last // flat.element_size()]

    def _in_place(self, action: Action) -> bool:
        """Whether what is received is the weights themselves, bit by bit."""
        return action.role == Role.WEIGHTS and action.encoding == "float32" and self._device == CPU

    def _buffer(self, action: Action) -> Tensor:
        """What an action receives into, of exactly the message's size: Gloo does not check it."""
        if self._in_place(action):
            # In place: whoever sends them has this worker's gradients already.
            return self._part(self._weights, action).view(torch.uint8)
        # One for compressed samples is made when it is posted.
        return torch.empty(0 if action.compressed else action.size_bytes, dtype=torch.uint8)

    def _shape(self, action: Action) -> tuple[int, ...]:
        """Of what a message carries."""
        match action.role:
            case Role.SAMPLES:
                return action.samples, *self._model.sample_shape
            case Role.ACTIVATIONS | Role.ACTIVATION_GRADIENTS:
                return action.samples, *self._model.output_shapes[action.last - 1]
            case _:
                return (self._part(self._weights, action).numel(),)

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
                parameters = self._of(action)
                for parameter, gradient in zip(parameters, split_like(received, parameters), strict=True):
                    if not parameter.requires_grad:  # frozen: without a gradient the optimizer leaves it alone
                        continue
                    if parameter.grad is None:  # none of the samples went through this layer here
                        parameter.grad = gradient
                    else:
                        parameter.grad.add_(gradient)
            case Role.WEIGHTS:
                if not self._in_place(action):
                    self._part(self._weights, action).copy_(received)

    def _send(self, state: _State, position: int) -> Departure:
        action = self._program[position]
        assert action.peer is not None
        message = codec_of(action).encode(self._values(state, position).to(CPU))
        return self._transport.send(action.peer, message, TAGS[action.role])

    def _values(self, state: _State, position: int) -> Tensor:
        """What is sent."""
        action = self._program[position]
        match action.role:
            case Role.SAMPLES:
                return state.samples[position]
            case Role.ACTIVATIONS:
                assert state.activations is not None
                return state.activations
            case Role.ACTIVATION_GRADIENTS:  # the receiver's rows are the last ones, since its activations came last
                assert state.gradient is not None
                own = len(state.gradient) - action.samples
                state.gradient, sent = state.gradient[:own], state.gradient[own:]
                return sent
            case Role.GRADIENTS:
                sent = self._part(self._gradients, action)
                if parameters := self._of(action):
                    torch.cat([_flat_gradient(parameter) for parameter in parameters], out=sent)
                return sent
            case _:
                return self._part(self._weights, action)

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
                if position in self._optimizers:  # else the layers have no parameters
                    self._optimizers[position].step()
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


def synchronize(device: torch.device) -> None:
    """Wait until an accelerator has done what it was given, so that a clock read next tells the truth."""
    if device != CPU:
        torch.accelerator.synchronize(device)


def _flat_gradient(parameter: Tensor) -> Tensor:
    """The gradient as a vector; zeros where no samples went through the layer here, or where it is frozen."""
    return (torch.zeros_like(parameter) if parameter.grad is None else parameter.grad).reshape(-1)
