"""Executes one worker's program: the third stage of the paper, hierarchical training.

Nothing here knows a plan's shape: ``Runner`` performs the actions that ``compile_plan`` lists. The model is cut by
detaching at every segment's end; gradients of the cut tensors travel back. The weights of the layers that a worker
computes lie in one flat tensor, and so do their gradients, so that a message is a slice and needs no copy.
"""

import math
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.distributed import Work

from hiertrain.jobs import OptimizerSettings
from hiertrain.models import ChainModel, summed_loss
from hiertrain.plan import Execution, Plan
from hiertrain.profile import WorkerProfile
from hiertrain.program import SEND_OF, SENDS, Action, Kind, compile_plan, compute_s
from hiertrain.transport import Transport, sleep_until

SAMPLE_DTYPES = {"uint8": torch.uint8, "float32": torch.float32}
# Messages of different kinds carry different tags, so that a receive can only meet the send it was compiled with.
TAGS = {kind: tag for tag, pair in enumerate(SEND_OF.items()) for kind in pair}


class ActionError(RuntimeError):
    """An action failed; the message names the worker, the action and its position in the program."""


@dataclass(frozen=True)
class IterationRecord:
    """One iteration on one worker; times on the monotonic clock.

    It starts when all workers are ready: posting the receives and meeting the others before it do not count.
    """

    loss: float  # this worker's share of the mean loss; 0 where it does not compute the loss
    started_s: float
    ended_s: float
    spans: tuple[tuple[float, float], ...]  # start and end per action
    late_s: float = 0.0  # by how much the machine was too slow for the pace, over all actions


def build_optimizer(settings: OptimizerSettings, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer that ``settings`` describe."""
    if settings.name == "adam":
        return torch.optim.Adam(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    return torch.optim.SGD(
        parameters, lr=settings.learning_rate, momentum=settings.momentum, weight_decay=settings.weight_decay
    )


def flatten_parameters(model: ChainModel, depth: int) -> tuple[Tensor, Tensor]:
    """Move the parameters of layers 1..depth into one flat tensor for the weights and one for their gradients.

    The parameters and their ``grad`` become views of the two returned tensors, float32, shape (parameters,), in
    chain order: the first ``parameter_prefix_bytes[m] / 4`` elements are those of layers 1..m.
    """
    parameters = [parameter for layer in model.layers[:depth] for parameter in layer.parameters()]
    weights = torch.cat([torch.empty(0), *(parameter.detach().reshape(-1) for parameter in parameters)])
    gradients = torch.zeros_like(weights)
    offset = 0
    for parameter in parameters:
        view = slice(offset, offset + parameter.numel())
        parameter.data = weights[view].view_as(parameter)
        parameter.grad = gradients[view].view_as(parameter)
        offset += parameter.numel()
    return weights, gradients


def pack_weights(model: ChainModel) -> bytes:
    """The weights, float32 in chain order, as raw bytes.

    Running statistics of BatchNorm are left out: each worker has its own, of its own samples and layers only.
    """
    return torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()]).numpy().tobytes()


def unpack_weights(model: ChainModel, packed: bytes) -> None:
    """Set the weights of ``model`` from ``pack_weights``'s bytes. Raises RuntimeError on a wrong size."""
    torch.nn.utils.vector_to_parameters(torch.frombuffer(bytearray(packed), dtype=torch.float32), model.parameters())


@dataclass
class _Iteration:
    """What one iteration carries from action to action."""

    labels: Tensor  # of the rows that reach the loss on this worker
    batch: Tensor | None  # the whole mini-batch's raw samples, at the data holder
    activations: Tensor | None = None  # outputs of the last segment, followed by what children sent
    saved: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # per segment: its input, a leaf, and its output
    gradient: Tensor | None = None  # of the activations, on the way back
    loss: float = 0.0


class Runner:
    """One worker's part in training by a plan: the model, its flat weights, the optimizer at the root."""

    def __init__(
        self,
        name: str,
        plan: Plan,
        execution: Execution,
        model: ChainModel,
        transport: Transport,
        optimizer: OptimizerSettings,
        pace: WorkerProfile | None = None,
    ) -> None:
        """``pace``: sleep after each computing action until it has lasted as long as on a worker with these times."""
        self._name = name
        self._plan = plan
        self._model = model.train()
        self._transport = transport
        self._pace = pace
        self._sample_dtype = SAMPLE_DTYPES[execution.sample_encoding]
        self._program = compile_plan(plan, model.chain, execution).actions[name]
        self._weights, self._gradients = flatten_parameters(model, plan.workers[name].depth)
        self._rows = torch.tensor(plan.rows_at_own_depth(name), dtype=torch.int64)
        self._optimizer = build_optimizer(optimizer, list(model.parameters())) if name == plan.root else None

    def iterate(self, labels: Tensor, batch: Tensor | None) -> IterationRecord:
        """Perform the program once.

        ``labels``: of the whole mini-batch, int64, shape (B,). ``batch``: its raw samples, uint8, shape (B, C, H, W),
        at the data holder; None elsewhere. Raises ActionError.
        """
        state = _Iteration(labels[self._rows], batch)
        if batch is not None:
            state.activations = self._own_samples(batch, self._name)
        self._gradients.zero_()
        receipts = {}
        for position, action in enumerate(self._program):
            if action.kind in SEND_OF:
                with self._located(position):
                    receipts[position] = self._post(action)
        departures: dict[int, Future[tuple[float, float]]] = {}
        spans: list[tuple[float, float]] = []
        with self._located(0):
            self._transport.barrier()  # now every receive is posted: no message waits for its receiver
        late_s = 0.0
        started_s = time.monotonic()
        for position, action in enumerate(self._program):
            with self._located(position):
                start_s = time.monotonic()
                if action.kind in SENDS:
                    departures[position] = self._send(state, action)
                elif position in receipts:
                    buffer, work = receipts[position]
                    work.wait()
                    self._take(state, action, buffer)
                else:
                    self._compute(state, action)
                    if self._pace is not None:
                        late_s += sleep_until(start_s + compute_s(self._pace, action))
                spans.append((start_s, time.monotonic()))
        for position, departure in departures.items():
            with self._located(position):
                spans[position] = departure.result()
        return IterationRecord(state.loss, started_s, time.monotonic(), tuple(spans), late_s)

    @contextmanager
    def _located(self, position: int) -> Iterator[None]:
        """Say where in the program an error happened."""
        try:
            yield
        except RuntimeError as error:
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            action = self._program[position]
            raise ActionError(
                f"{self._name}: action {position + 1} of {len(self._program)} ({action}): {reason}"
            ) from error

    def _own_samples(self, batch: Tensor, worker: str) -> Tensor:
        rows = self._plan.own_rows(worker)
        return batch[rows.start : rows.stop].to(self._sample_dtype)

    def _parameters(self, flat: Tensor, action: Action) -> Tensor:
        """The part of a flat tensor that belongs to layers 1..last of ``action``."""
        return flat[: self._model.chain.parameter_prefix_bytes[action.last] // flat.element_size()]

    def _post(self, action: Action) -> tuple[Tensor, Work]:
        """Post the receive of ``action`` into a buffer of exactly the message's size: Gloo does not check it."""
        assert action.peer is not None
        match action.kind:
            case Kind.RECEIVE_SAMPLES:
                buffer = torch.empty((action.samples, *self._model.sample_shape), dtype=self._sample_dtype)
            case Kind.RECEIVE_WEIGHTS:  # in place: the parent sends them only after it has this worker's gradients
                buffer = self._parameters(self._weights, action)
            case Kind.RECEIVE_GRADIENTS:
                buffer = torch.empty_like(self._parameters(self._gradients, action))
            case _:
                buffer = torch.empty((action.samples, *self._model.output_shapes[action.last - 1]))
        return buffer, self._transport.receive(action.peer, buffer, TAGS[action.kind])

    def _take(self, state: _Iteration, action: Action, received: Tensor) -> None:
        match action.kind:
            case Kind.RECEIVE_SAMPLES:
                state.activations = received
            case Kind.RECEIVE_ACTIVATIONS:
                own = state.activations
                state.activations = received if own is None or not len(own) else torch.cat([own, received])
            case Kind.RECEIVE_ACTIVATION_GRADIENTS:
                state.gradient = received
            case Kind.RECEIVE_GRADIENTS:
                self._parameters(self._gradients, action).add_(received)

    def _send(self, state: _Iteration, action: Action) -> Future[tuple[float, float]]:
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
                tensor = self._parameters(self._gradients, action)
            case _:
                tensor = self._parameters(self._weights, action)
        return self._transport.send(action.peer, tensor.contiguous(), TAGS[action.kind])

    def _compute(self, state: _Iteration, action: Action) -> None:
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

    def _forward(self, state: _Iteration, action: Action) -> None:
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
