"""What the optimizer answers: the content of ``solution.json``. Times in seconds."""

from dataclasses import dataclass
from typing import Literal

from pydantic import model_validator

from hiertrain.problem.execution import Execution
from hiertrain.problem.plan import Plan
from hiertrain.values import MemoryBytes, Name, PlanSeconds, PositiveSeconds, Seconds, Seed, Value

Shape = Literal["tree", "star"]  # star: the paper's plans, in which every active worker is the root or its child


class Settings(Value):
    """What produced a solution, besides profile, network, batch size and data holder."""

    shape: Shape
    seed: Seed
    time_limit_s: PositiveSeconds
    execution: Execution
    excluded: tuple[Name, ...]
    root: Name | None
    samples_stay: bool
    whole_model: bool = False
    memory_limit_bytes: dict[Name, MemoryBytes]
    ortools_version: str


class Solution(Value):
    """A plan and how good it is: the content of ``solution.json``."""

    plan: Plan
    objective_s: PlanSeconds  # the plan's time, from the cost model
    bound_s: PlanSeconds  # no admissible plan is faster
    status: Literal["optimal", "feasible"]  # feasible: the time limit came before the proof
    solve_s: Seconds
    settings: Settings

    @model_validator(mode="after")
    def _bound_is_below(self) -> "Solution":
        if self.bound_s > self.objective_s:
            raise ValueError(f"bound_s {self.bound_s} is above objective_s {self.objective_s}; it must not be")
        return self


@dataclass(frozen=True)
class Progress:
    """How far the search is."""

    trees_done: int
    trees: int  # that are known so far
    best_s: float
    elapsed_s: float
