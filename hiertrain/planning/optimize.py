"""The optimal plan: the paper's optimization stage, over every rooted tree of workers, with OR-Tools' CP-SAT.

Bounds on the trees come first and discard most of them; a heuristic finds a good plan in each other tree, the most
promising first; further bounds discard most depths and splits; what is left of each tree becomes one small model,
solved in sequence, cut off by the best plan so far. Times in seconds. The reported time is always the cost model's.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from itertools import count, islice

from hiertrain.cost.bounds import any_plan_bound_s
from hiertrain.cost.integers import TIE
from hiertrain.files import parse
from hiertrain.planning.cpsat import any_plan, new_solver, solve_tree
from hiertrain.planning.heuristic import Candidate
from hiertrain.planning.narrowing import Searched, bounded, chosen, least_s
from hiertrain.planning.trees import larger, rank, trees
from hiertrain.problem.problem import Problem
from hiertrain.problem.solution import Progress, Settings, Shape, Solution
from hiertrain.problem.tree import Tree
from hiertrain.values import NoPlanError, RunError

# "optimal" means that no admissible plan is faster by more than this share of the plan's time. Plans whose times
# differ by less than half of it count as equal, and the one with the fewest active workers is returned.
RESOLUTION = 2 * TIE
# So many trees are bounded before the heuristic searches those that are left of them: all that four workers have,
# unless layers have owners.
TREES_AT_ONCE = 128
# Larger trees are not grown: each worker more triples the heuristic's grid, which takes seconds, and soon gigabytes.
MOST_GROWN = 12
# Where the time limit comes before the first plan, the search for one goes on for so long.
GRACE_S = 2.0


@dataclass
class _Search:
    """The trees that may hold the best plan, in the order that settles ties, and what is known of all others."""

    problem: Problem
    shape: Shape
    started: float
    time_limit_s: float
    progress: Callable[[Progress], None] | None
    trees: list[Searched] = field(default_factory=list)
    known: int = 0  # trees so far
    settled: int = 0  # of those: the best plan is not among theirs, or known
    complete: bool = False  # there are no others
    stopped: bool = False  # in the middle of trees that have no plan

    @property
    def limit_s(self) -> float:
        """Slower plans cannot be the best, nor as good."""
        return least_s(self.trees) * (1 + TIE)

    @property
    def left_s(self) -> float:
        return self.started + self.time_limit_s - time.monotonic()

    @property
    def late(self) -> bool:
        """Whether the time is over."""
        return self.left_s <= (0.0 if any(searched.plan is not None for searched in self.trees) else -GRACE_S)

    def stop(self) -> bool:
        """Whether the time is over, and remember it."""
        self.stopped = self.late
        return self.stopped

    def settle(self, trees: int) -> None:
        """Report that nothing is left to do for so many trees."""
        for _ in range(trees):
            self.settled += 1
            if self.progress is not None:
                elapsed_s = time.monotonic() - self.started
                self.progress(Progress(self.settled, self.known, least_s(self.trees), elapsed_s))


def optimize(
    problem: Problem,
    *,
    shape: Shape = "tree",
    time_limit_s: float = 60.0,
    seed: int = 0,
    progress: Callable[[Progress], None] | None = None,
) -> Solution:
    """The plan with the least predicted time of an iteration, and the proof of it.

    ``shape="star"`` admits the paper's plans only: every active worker but the root is a child of the root. Plans
    whose times are equal are ranked by the number of active workers, then by the set of workers, the root and the
    parents, in the profile's order of the workers. The same problem, shape and seed give the same plan, unless the
    time limit ends the search. Raises InputError when the time limit is not positive,
    NoPlanError when no plan is admissible; RunError where the time limit ends the search for any plan.
    """
    started = time.monotonic()
    settings = _settings(problem, shape, seed, time_limit_s)
    search = _Search(problem, shape, started, time_limit_s, progress)
    _survey(search)
    for searched in sorted(search.trees, key=lambda searched: searched.time_s):
        if search.late:
            break
        _prove(search, searched, seed)
        search.settle(1)
    best = chosen(search.trees)
    assert best.plan is not None
    seen_s = min(searched.bound_s for searched in search.trees) if search.complete else 0.0
    bound_s = min(best.time_s, max(seen_s, any_plan_bound_s(problem)))
    return Solution(
        plan=best.plan,
        objective_s=best.time_s,
        bound_s=bound_s,
        status="optimal" if bound_s >= best.time_s * (1 - RESOLUTION) else "feasible",
        solve_s=time.monotonic() - started,
        settings=settings,
    )


def _settings(problem: Problem, shape: Shape, seed: int, time_limit_s: float) -> Settings:
    """The settings, validated. Raises InputError."""
    content = {
        "shape": shape,
        "seed": seed,
        "time_limit_s": time_limit_s,
        "execution": problem.execution,
        "excluded": tuple(sorted(problem.excluded)),
        "root": problem.root,
        "samples_stay": problem.samples_stay,
        "whole_model": problem.whole_model,
        "memory_limit_bytes": dict(problem.memory_limit_bytes),
        "ortools_version": version("ortools"),
    }
    return parse(Settings, content, "optimize")


def _survey(search: _Search) -> None:
    """Bound all trees, and search those for plans that may hold the best. Raises InputError and RunError for none.

    Past the deadline, trees stay unknown once there is a plan.
    """
    unseen = trees(search.problem, search.shape, search.stop)
    while not search.complete and not search.late:
        some = _bounded(search, list(islice(unseen, TREES_AT_ONCE)))
        search.trees += some
        for searched in sorted(some, key=lambda searched: searched.bound_s):
            if search.late:
                break
            if not searched.excluded(search.problem, search.limit_s):
                searched.find(search.problem)
        left = [searched for searched in search.trees if searched.bound_s <= search.limit_s]
        dropped, search.trees = len(search.trees) - len(left), left
        search.settle(dropped)
        if search.known == TREES_AT_ONCE and search.limit_s < float("inf"):  # there are many more
            _grow(search)
    search.trees.sort(key=lambda searched: rank(search.problem, searched.tree))
    if all(searched.plan is None for searched in search.trees):
        _add_first_plan(search)


def _grow(search: _Search) -> None:
    """Find a good plan of many workers early: add one to the best tree for as long as the heuristic gains by it."""
    bound_s = any_plan_bound_s(search.problem)
    best, before = chosen(search.trees), None
    while best is not before and len(best.tree.workers) < MOST_GROWN:
        before = best
        for tree in larger(search.problem, best.tree, search.shape):
            if search.late:
                return
            grown = Searched(tree, bound_s)
            grown.find(search.problem)
            if grown.time_s < best.time_s * (1 - TIE):
                search.trees.append(grown)
                search.known += 1
                best = grown
                break


def _bounded(search: _Search, some: list[Tree]) -> list[Searched]:
    """The trees with their bounds, as far as time allows; the last of all are fewer than TREES_AT_ONCE."""
    found, grown = [], {searched.tree for searched in search.trees}
    for tree in some:
        if search.late:
            return found
        if tree not in grown:
            found.append(bounded(search.problem, tree))
            search.known += 1
    search.complete = len(some) < TREES_AT_ONCE and not search.stopped
    return found


def _prove(search: _Search, searched: Searched, seed: int) -> None:
    """Raise a tree's bound to the best time of all, or find its best plan where that is better.

    The bounds drop only what is slower than a tie, so that ties are left to the model.
    """
    for attempt in count():
        if len(searched.tree.workers) == 1:  # a single worker has a single plan
            searched.bound_s = max(searched.bound_s, searched.time_s)
        if len(searched.tree.workers) == 1 or search.late:
            return
        best_s = least_s(search.trees)
        searched.narrow(search.problem, search.limit_s)
        wins_ties = search.trees.index(searched) < search.trees.index(chosen(search.trees))
        limit_s = best_s if wins_ties else best_s * (1 - TIE)
        if searched.closed or searched.bound_s > limit_s or (searched.bound_s == limit_s and not wins_ties):
            return
        solver = new_solver(seed, attempt, search.left_s)
        solved = solve_tree(search.problem, searched.tree, searched.boxes, best_s, limit_s, solver)
        if solved.candidate is not None:
            searched.record(search.problem, solved.candidate)
        searched.bound_s = limit_s if solved.none_within else max(searched.bound_s, solved.bound_s)
        if solved.none_within:
            return


def _add_first_plan(search: _Search) -> None:
    """Find any plan that keeps all constraints. Raises InputError when there is none, RunError where time is over."""
    until = search.started + search.time_limit_s + GRACE_S
    found, decided = _any_plan(search.problem, search.shape, until)
    if not decided:
        raise RunError(
            f"optimize: no plan found in {search.time_limit_s:g} s, nor {GRACE_S:g} s later; allow more time"
        )
    if found is None:
        raise NoPlanError(_clash(search.problem, search.shape, until))
    next(searched for searched in search.trees if searched.tree == found.tree).record(search.problem, found)


def _any_plan(problem: Problem, shape: Shape, until: float) -> tuple[Candidate | None, bool]:
    """The first plan that keeps all constraints; and whether that is decided before the time ``until``."""
    for tree in trees(problem, shape, lambda: time.monotonic() >= until):
        for attempt in count():  # each with more time: in the end the question is decided
            left_s = until - time.monotonic()
            if left_s <= 0:
                return None, False
            found, decided = any_plan(problem, tree, new_solver(0, attempt, left_s))
            if found is not None:
                return found, True
            if decided:
                break
    return None, time.monotonic() < until


def _clash(problem: Problem, shape: Shape, until: float) -> str:
    """Says which constraints clash: all that hold, and those of which giving up one admits a plan."""
    relaxed = relaxations(problem)
    answers = {name: _any_plan(other, shape, until) for name, other in relaxed.items()}
    enough = [name for name, (found, _) in answers.items() if found is not None]
    if enough:
        remedy = f"a plan exists without any one of: {'; '.join(enough)}"
    elif all(decided for _, decided in answers.values()):
        remedy = "giving up one is not enough"
    else:
        remedy = "no time was left to find out whether giving up one is enough"
    unlinked = "; some pairs of workers have no link" * bool(problem.unlinked)
    return (
        f"no plan of shape {shape!r} for {', '.join(problem.workers)} keeps: {'; '.join(relaxed)}; {remedy}{unlinked}"
    )


def relaxations(problem: Problem) -> dict[str, Problem]:
    """The problem without each one of the constraints that may clash, by a description of it."""
    limits = problem.memory_limit_bytes
    relaxed = {
        f"memory limit of {name!r} ({limit} bytes)": replace(
            problem, memory_limit_bytes={other: limits[other] for other in limits if other != name}
        )
        for name, limit in limits.items()
    }
    if problem.root is not None:
        relaxed[f"root {problem.root!r}"] = replace(problem, root=None)
    if problem.samples_stay:
        relaxed[f"raw samples stay on {problem.data_holder!r}"] = replace(problem, samples_stay=False)
    greedy = max(problem.profile.layers, key=lambda layer: layer.least_samples)
    if greedy.least_samples > 1:
        layers = tuple(layer.model_copy(update={"least_samples": 1}) for layer in problem.profile.layers)
        name = f"at least {greedy.least_samples} samples for {greedy.name!r}"
        relaxed[name] = replace(problem, profile=problem.profile.with_layers(layers))
    if problem.whole_model:
        relaxed["every worker computes all layers"] = replace(problem, whole_model=False)
    return relaxed
