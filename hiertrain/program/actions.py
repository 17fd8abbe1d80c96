"""What workers do in one iteration: actions, each an operation and, of a message, what it carries.

A program is what a worker is sent and executes. It holds all that this takes: rows, layers, encodings and sizes.
"""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from hiertrain.values import MOST_WORKERS, BatchSize, Bytes, Layers, Name, Samples, Value

# So early may a message be sent: its receiver has a buffer for each iteration on the way.
MOST_AHEAD = 2
# Half-open ranges of rows of the mini-batch.
Rows = tuple[tuple[Samples, Samples], ...]


class Op(StrEnum):
    """What is done."""

    FORWARD = "forward"
    BACKWARD = "backward"
    UPDATE = "update"
    SEND = "send"
    RECEIVE = "receive"


class Role(StrEnum):
    """What a message carries."""

    SAMPLES = "samples"
    ACTIVATIONS = "activations"
    ACTIVATION_GRADIENTS = "activation gradients"
    GRADIENTS = "gradients"
    WEIGHTS = "weights"


def copies_held(role: Role, encoding: str, overlapped: bool) -> int:
    """How many tensors of a message's size each of its two sides has, the whole iteration long.

    Weights travel from the sender's own straight into the receiver's.
    """
    if role == Role.WEIGHTS and encoding == "float32":
        return 0
    return MOST_AHEAD + 1 if role == Role.SAMPLES and overlapped else 1


CUT = (Role.ACTIVATIONS, Role.ACTIVATION_GRADIENTS)  # where the model is cut; for the rows of some samples
PARAMETERS = (Role.GRADIENTS, Role.WEIGHTS)  # for layers from 1 on, whatever the samples
# The codec of raw samples that have each its own size, which workers are told. An action has the mean.
COMPRESSED = "zlib"


class Action(Value):
    """One step of a worker's program."""

    op: Op
    role: Role | None = None  # of a message
    peer: Name | None = None  # the other side of a message
    first: Layers = 0  # layers first..last (1-based, inclusive) that are computed, or whose parameters travel;
    last: Layers = 0  # for activations and their gradients, last is the depth of the cut
    # Of the mini-batch: half-open ranges, in the order in which they lie in the tensor.
    rows: Rows = ()
    encoding: Name | None = None  # of a message: the codec that writes and reads its numbers
    size_bytes: Bytes = 0  # of a message
    # Of a message that is sent: for the iteration so many after the one that the sender is in.
    ahead: Annotated[int, Field(ge=0, le=MOST_AHEAD)] = 0

    @property
    def label(self) -> str:
        """The operation, and what a message carries."""
        return f"{self.op} {self.role}" if self.role else str(self.op)

    @property
    def samples(self) -> int:
        return sum(end - start for start, end in self.rows)

    @property
    def compressed(self) -> bool:
        """Whether ``size_bytes`` of a message is what it has on average."""
        return self.encoding == COMPRESSED

    @property
    def content(self) -> tuple[object, ...]:
        """What both sides of a message must agree on."""
        return self.role, self.first, self.last, self.rows, self.encoding, self.size_bytes

    def __str__(self) -> str:
        layers = f" layers {self.first}..{self.last}" if self.first else (f" at depth {self.last}" if self.last else "")
        peer = f" {'from' if self.op == Op.RECEIVE else 'to'} {self.peer}" if self.peer else ""
        samples = f" of {self.samples} samples" if self.rows else ""
        ahead = f", {self.ahead} iterations ahead" if self.ahead else ""
        return f"{self.label}{layers}{samples}{peer}{ahead}"


class WorkerProgram(Value):
    """One worker's part of an iteration."""

    batch_size: BatchSize  # what the summed loss is divided by, so that gradients add up
    data_holder: Name  # the worker that has the raw samples
    overlapped: bool  # whether iterations follow each other without a barrier between them
    actions: tuple[Action, ...]  # in the order in which they are performed

    @property
    def layers(self) -> range:
        """The layers, from 1, whose parameters this worker has."""
        own = [action for action in self.actions if action.first]
        return range(min((action.first for action in own), default=1), max((a.last for a in own), default=0) + 1)

    @property
    def updated(self) -> range:
        """The layers, from 1, whose parameters this worker updates: their owner has what the optimizer keeps."""
        own = [action for action in self.actions if action.op == Op.UPDATE]
        return range(min((action.first for action in own), default=1), max((a.last for a in own), default=0) + 1)


class Program(Value):
    """One iteration: the actions of every participant, in the order in which it performs them."""

    batch_size: BatchSize
    data_holder: Name
    overlapped: bool = False
    actions: dict[Name, tuple[Action, ...]] = Field(max_length=MOST_WORKERS)

    @property
    def computing(self) -> tuple[str, ...]:
        """The workers that compute layers, not only send samples."""
        return tuple(name for name, own in self.actions.items() if any(action.op == Op.FORWARD for action in own))

    @property
    def owners(self) -> dict[str, range]:
        """The workers that update, each with its layers, from 1; who has the last layers is the first."""
        updated = {name: self.part(name).updated for name in self.actions}
        return {name: updated[name] for name in sorted(updated, key=lambda name: -updated[name].stop) if updated[name]}

    @property
    def root(self) -> str:
        """The worker that updates, of several the one with the last layers."""
        return next(iter(self.owners))

    def part(self, worker: str) -> WorkerProgram:
        """What ``worker`` is sent."""
        return WorkerProgram(
            batch_size=self.batch_size,
            data_holder=self.data_holder,
            overlapped=self.overlapped,
            actions=self.actions[worker],
        )


def joined(*parts: Rows) -> Rows:
    """Ranges of rows one after the other, those that touch as one."""
    rows: list[tuple[int, int]] = []
    for start, end in (part for group in parts for part in group if part[0] < part[1]):
        if rows and rows[-1][1] == start:
            rows[-1] = rows[-1][0], end
        else:
            rows.append((start, end))
    return tuple(rows)


def rows_text(rows: Rows) -> str:
    """Ranges of rows as people write them, both ends included: ``0..63 100``."""
    return " ".join(f"{start}..{end - 1}" if end - start > 1 else str(start) for start, end in rows)


def rows_shown(rows: Rows) -> str:
    """The same for an error's message: at most 80 characters."""
    text = rows_text(rows[:20]) or "none"
    return text if len(text) <= 80 and len(rows) <= 20 else f"{text[:77]}..."
