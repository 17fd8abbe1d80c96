"""What a simulation or a run comes to: when each worker did which action. Times in seconds."""

from dataclasses import dataclass

from hiertrain.program.actions import Action


@dataclass(frozen=True, slots=True)
class Span:
    """One performed action. A send lasts from leaving to arrival, a receive from waiting to arrival; seconds."""

    worker: str
    position: int  # in the worker's program, from 0
    action: Action
    start_s: float
    end_s: float


@dataclass(frozen=True)
class Timeline:
    """The spans of one iteration, predicted or measured; the iteration starts at 0.

    Of overlapped iterations it starts where the one before ended on the worker that updates. Spans reach into the next
    ones then: what is sent ahead, and what others do after the update.
    """

    spans: tuple[Span, ...]
    period_s: float  # from the end of one iteration to the end of the next one
