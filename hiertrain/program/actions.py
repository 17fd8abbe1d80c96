"""What a worker's program is made of: actions that compute, send, receive and update."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What an action does."""

    SEND_SAMPLES = "send samples"
    RECEIVE_SAMPLES = "receive samples"
    FORWARD = "forward"
    SEND_ACTIVATIONS = "send activations"
    RECEIVE_ACTIVATIONS = "receive activations"
    BACKWARD = "backward"
    SEND_ACTIVATION_GRADIENTS = "send activation gradients"
    RECEIVE_ACTIVATION_GRADIENTS = "receive activation gradients"
    SEND_GRADIENTS = "send gradients"
    RECEIVE_GRADIENTS = "receive gradients"
    UPDATE = "update"
    SEND_WEIGHTS = "send weights"
    RECEIVE_WEIGHTS = "receive weights"


# The send that each receive waits for.
SEND_OF = {
    Kind.RECEIVE_SAMPLES: Kind.SEND_SAMPLES,
    Kind.RECEIVE_ACTIVATIONS: Kind.SEND_ACTIVATIONS,
    Kind.RECEIVE_ACTIVATION_GRADIENTS: Kind.SEND_ACTIVATION_GRADIENTS,
    Kind.RECEIVE_GRADIENTS: Kind.SEND_GRADIENTS,
    Kind.RECEIVE_WEIGHTS: Kind.SEND_WEIGHTS,
}
# The backward pass is the forward pass, reversed, with each step turned round.
BACKWARD_OF = {
    Kind.FORWARD: Kind.BACKWARD,
    Kind.RECEIVE_ACTIVATIONS: Kind.SEND_ACTIVATION_GRADIENTS,
    Kind.SEND_ACTIVATIONS: Kind.RECEIVE_ACTIVATION_GRADIENTS,
}
RECEIVES = frozenset(SEND_OF)
SENDS = frozenset(SEND_OF.values())


@dataclass(frozen=True, slots=True)
class Action:
    """One step of a worker's program."""

    kind: Kind
    peer: str | None = None  # the other side of a message
    first: int = 0  # layers first..last (1-based, inclusive) that are computed, or whose parameters travel;
    last: int = 0  # for activations and their gradients, last is the depth of the cut
    samples: int = 0
    size_bytes: int = 0  # of the message

    def __str__(self) -> str:
        layers = f" layers {self.first}..{self.last}" if self.first else (f" at depth {self.last}" if self.last else "")
        peer = f" {'from' if self.kind in RECEIVES else 'to'} {self.peer}" if self.peer else ""
        samples = f" of {self.samples} samples" if self.samples else ""
        return f"{self.kind}{layers}{samples}{peer}"


@dataclass(frozen=True)
class Program:
    """One iteration: the actions of every participant, in the order in which it performs them."""

    actions: Mapping[str, tuple[Action, ...]]
