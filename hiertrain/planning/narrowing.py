"""What is left of each tree when a plan is known: boxes that hold only slower plans are left out.

Halving them a few times leaves a small part of each tree to the solver. Times in seconds.
"""

from dataclasses import dataclass, field

import numpy as np

from hiertrain.cost.bounds import Boxes, Evaluator, Floats, any_plan_bound_s
from hiertrain.cost.integers import TIE
from hiertrain.planning.heuristic import Candidate, good_plan
from hiertrain.planning.trees import depth_grid, least_depth, sample_ranges
from hiertrain.problem.plan import Plan
from hiertrain.problem.problem import Problem
from hiertrain.problem.tree import Tree
from hiertrain.program.simulator import iteration_s

# Trees with more combinations of depths than this are not bounded.
NARROWING_LIMIT = 100_000
# How often the boxes of a tree are halved before each attempt to solve it, and how many boxes at most.
HALVINGS = 10
BOXES_LIMIT = 8_192
# How often they are halved so, at most, before the heuristic: it takes longer.
NARROWINGS = 2


def _all_boxes(evaluator: Evaluator) -> Boxes:
    """All plans of the tree: one box per combination of depths that holds every split of the mini-batch."""
    layers = np.arange(least_depth(evaluator.problem), evaluator.depth + 1)
    depths = depth_grid(evaluator.tree, layers, evaluator.depth)
    low, high = sample_ranges(evaluator.problem, evaluator.tree)
    size = depths.shape[1]
    return Boxes(depths, np.repeat(low[:, np.newaxis], size, axis=1), np.repeat(high[:, np.newaxis], size, axis=1))


@dataclass(eq=False)
class Searched:
    """What is known of one tree: bounds on its plans, and its best plan so far."""

    tree: Tree
    bound_s: float  # on all plans of the tree
    boxes: Boxes | None = None  # where its best plans are; None: anywhere
    bounds_s: Floats = field(default_factory=lambda: np.empty(0))  # on the plans of each box
    time_s: float = float("inf")
    plan: Plan | None = None

    def excluded(self, problem: Problem, limit_s: float) -> bool:
        """Whether bounds tell that no plan is within the limit; ``bound_s`` is infinite then."""
        trial = Searched(self.tree, self.bound_s)
        for _ in range(NARROWINGS if self.bound_s <= limit_s else 0):
            trial.narrow(problem, limit_s)
        if self.bound_s > limit_s or trial.closed:
            self.bound_s = float("inf")
        return self.bound_s == float("inf")

    def find(self, problem: Problem) -> None:
        """Keep the heuristic's plan."""
        found = good_plan(Evaluator(problem, self.tree))
        if found is not None:
            self.record(problem, found)

    def record(self, problem: Problem, found: Candidate) -> None:
        """Keep a plan if it is the tree's best. Its time is the cost model's."""
        plan = found.plan(problem)
        time_s = iteration_s(problem, plan)
        if time_s < self.time_s:
            self.plan, self.time_s = plan, time_s

    @property
    def closed(self) -> bool:
        """Whether no plan is within the limit to which the boxes were narrowed."""
        return self.boxes is not None and self.bounds_s.size == 0

    def narrow(self, problem: Problem, limit_s: float) -> None:
        """Halve the boxes several times, and drop those whose bound is above the limit."""
        evaluator = Evaluator(problem, self.tree)
        if not _can_narrow(evaluator):
            return
        if self.boxes is None:
            self.boxes = _all_boxes(evaluator)
            self.bounds_s = evaluator.bounds_s(self.boxes)
        self._keep(self.boxes, self.bounds_s, limit_s)
        for _ in range(HALVINGS):
            if 0 < self.bounds_s.size <= BOXES_LIMIT:
                halves = _halves(self.boxes, problem.batch_size)
                self._keep(halves, evaluator.bounds_s(halves), limit_s)

    def _keep(self, boxes: Boxes, bounds_s: Floats, limit_s: float) -> None:
        within = np.flatnonzero(bounds_s <= limit_s)
        self.boxes, self.bounds_s = boxes.take(within), bounds_s[within]
        self.bound_s = max(self.bound_s, float(self.bounds_s.min(initial=limit_s)))


def _halves(boxes: Boxes, batch_size: int) -> Boxes:
    """Each box cut in two at its widest range of samples, 0 apart from the rest; without what no split can reach."""
    column = np.arange(boxes.depths.shape[1])
    widest = np.argmax(boxes.high - boxes.low, axis=0)
    first, last = boxes.low[widest, column], boxes.high[widest, column]
    middle = np.where(first == 0, 0, (first + last) // 2)
    lower_high, upper_low = boxes.high.copy(), boxes.low.copy()
    lower_high[widest, column], upper_low[widest, column] = middle, middle + 1
    depths = np.concatenate([boxes.depths, boxes.depths], axis=1)
    low = np.concatenate([boxes.low, upper_low], axis=1)
    high = np.concatenate([lower_high, boxes.high], axis=1)
    low, high = (
        np.maximum(low, batch_size - (high.sum(axis=0) - high)),
        np.minimum(high, batch_size - (low.sum(axis=0) - low)),
    )
    return Boxes(depths, low, high).take(np.flatnonzero((low <= high).all(axis=0)))


def bounded(problem: Problem, tree: Tree) -> Searched:
    """A tree with a bound on its plans; infinite where none of them keeps all constraints."""
    evaluator = Evaluator(problem, tree)
    if _can_narrow(evaluator):
        return Searched(tree, float(evaluator.bounds_s(_all_boxes(evaluator)).min()))
    return Searched(tree, any_plan_bound_s(problem))


def _can_narrow(evaluator: Evaluator) -> bool:
    """Whether the tree has few enough depths to bound."""
    return evaluator.depth ** (len(evaluator.tree.workers) - 1) <= NARROWING_LIMIT


def least_s(search: list[Searched]) -> float:
    """The time of the best plan of all trees; infinite where there is none."""
    return min((searched.time_s for searched in search), default=float("inf"))


def chosen(search: list[Searched]) -> Searched:
    """The first tree, in the order that settles ties, whose plan equals the best."""
    best_s = least_s(search)
    return next(searched for searched in search if searched.time_s <= best_s * (1 + TIE))
