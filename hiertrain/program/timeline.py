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
    """The spans of one iteration, predicted or measured; the iteration starts at 0."""

    spans: tuple[Span, ...]

    @property
    def makespan_s(self) -> float:
        return max((span.end_s for span in self.spans), default=0.0)
