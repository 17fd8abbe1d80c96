"""The paper's way to a plan: enumerate roles and cuts, solve a linear programme for the samples of each, and round.

The roles are the paper's: the root ``o`` computes all layers; its children, ``s`` and ``l``, stand in the order of
their depths, and any of them may be absent. Costs are linear: a layer takes per sample what it takes for the whole
mini-batch, divided by its size. All programmes of one assignment of roles are made at once, from linear expressions:
arrays of shape (P, V + 1), for P combinations of depths and V variables: a factor of each variable, then a constant.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations_with_replacement, permutations
from typing import NamedTuple

import numpy as np
from scipy.optimize import linprog

from hiertrain.cost.bounds import Floats, Integers
from hiertrain.cost.closed_form import iteration_s
from hiertrain.planning.heuristic import Candidate
from hiertrain.problem.execution import Execution
from hiertrain.problem.plan import Plan, misfit
from hiertrain.problem.problem import Problem
from hiertrain.problem.tree import Tree
from hiertrain.values import InputError

# HiGHS' tolerances are absolute. The best plan of a single worker takes so many units of time.
RANGE = 1e4
# No plan as good as that one has to do with a greater number of units, beyond what bursts make up for, so greater ones
# are cut off.
LARGEST = 1e6
# HiGHS takes no greater factors: inequalities with such ones are scaled down.
SOLVABLE = 1e12
# HiGHS' numbers of samples are off by less than this, also to below 0.
OFF = 1e-6


@dataclass(frozen=True)
class Rounded:
    """What the paper's way comes to."""

    plan: Plan
    objective_s: float  # the plan's time, from the cost model of the problem as it was given
    relaxed_s: float  # the least optimum of all programmes: no star is faster
    programmes: int
    solve_s: float


@dataclass(frozen=True)
class _Relaxed:
    """The optimum of one programme: the plan with real numbers of samples."""

    tree: Tree
    depths: tuple[int, ...]
    samples: Floats  # (k,)
    time_s: float


def enumerate_and_round(problem: Problem) -> Rounded:
    """The best star of all roles and cuts, its samples rounded down and what is left shared out in the best way.

    Programmes are rounded from the best one on, until none that is left can be better than the best plan so far. The
    plan is the best one with linear costs. Raises InputError where the problem has constraints that the programmes do
    not know.
    """
    started = time.monotonic()
    _check(problem)
    linear = replace(problem, profile=problem.profile.linear_at(problem.batch_size))
    relaxed = sorted(_solutions(linear), key=lambda solution: solution.time_s)
    best_s, best = float("inf"), None
    for solution in relaxed:
        if solution.time_s >= best_s:
            break
        for plan in _roundings(linear, solution):
            if misfit(plan, problem.profile.chain) is None and (time_s := iteration_s(linear, plan)) < best_s:
                best_s, best = time_s, plan
    assert best is not None
    return Rounded(best, iteration_s(problem, best), relaxed[0].time_s, len(relaxed), time.monotonic() - started)


def _check(problem: Problem) -> None:
    constraints = {
        f"{problem.execution}": problem.execution != Execution.paper(),
        f"memory limits of {', '.join(sorted(problem.memory_limit_bytes))}": bool(problem.memory_limit_bytes),
        f"raw samples stay on {problem.data_holder!r}": problem.samples_stay,
        "every worker computes all layers": problem.whole_model,
        "some pairs of workers have no link": bool(problem.unlinked),
    }
    for constraint, holds in constraints.items():
        if holds:
            raise InputError(
                f"enumerate_and_round: {constraint}; the linear programmes know the paper's execution alone, "
                "and no constraint"
            )


def _solutions(problem: Problem) -> Iterator[_Relaxed]:
    layers = problem.profile.chain.depth
    unit_s = _unit_s(problem)
    for size in range(1, len(problem.workers) + 1):
        cuts = combinations_with_replacement(range(1, layers + 1), size - 1)
        depths = np.array([(layers, *cut) for cut in cuts]).T
        for workers in permutations(problem.workers, size):
            if problem.root not in (None, workers[0]):
                continue
            tree = Tree(workers, (-1,) + (0,) * (size - 1))
            for rows, depth in zip(_Programmes(problem, workers, depths).rows(unit_s), depths.T.tolist(), strict=True):
                units, samples = _solve(rows, problem.batch_size, size)
                yield _Relaxed(tree, tuple(depth), samples, units * unit_s)


def _unit_s(problem: Problem) -> float:
    """A unit of time in which no number that matters is too great or too small for the solver's tolerances."""
    whole = (problem.profile.chain.depth,), (problem.batch_size,)
    plans = [Candidate(Tree((name,), (-1,)), *whole).plan(problem) for name in problem.workers]
    return min(iteration_s(problem, plan) for plan in plans) / RANGE or 1.0


def _solve(rows: Floats, batch_size: int, size: int) -> tuple[float, Floats]:
    """The least value of the last variable, and the numbers of samples, which are the first ones; (k,)."""
    goal, total = np.zeros(rows.shape[1] - 1), np.zeros((1, rows.shape[1] - 1))
    goal[-1], total[0, :size] = 1, 1
    result = linprog(goal, A_ub=rows[:, :-1], b_ub=-rows[:, -1], A_eq=total, b_eq=[batch_size], method="highs")
    if result.status != 0:  # any split will do, with all times late enough
        raise AssertionError(f"the linear programme has a solution, but: {result.message}")
    return result.fun, result.x[:size]


def _roundings(problem: Problem, solution: _Relaxed) -> Iterator[Plan]:
    """The samples rounded down, with every way to share out what is left of the mini-batch."""
    whole = np.floor(solution.samples + OFF).astype(int)
    for takers in combinations_with_replacement(range(len(whole)), problem.batch_size - int(whole.sum())):
        samples = whole + np.bincount(np.array(takers, dtype=int), minlength=len(whole))
        yield Candidate(solution.tree, solution.depths, tuple(samples.tolist())).plan(problem)


class _Message(NamedTuple):
    """What one worker sends to another: expressions of when it is ready, and of its bytes."""

    ready: Floats
    size: Floats


class _Programmes:
    """The equations of ``cost.closed_form`` for one assignment of roles.

    Worker 0 is the root; each array of theirs (k, P, V + 1). A maximum is a variable that is at least as great as each
    of its terms.
    """

    def __init__(self, problem: Problem, workers: tuple[str, ...], depths: Integers) -> None:
        chain, size = problem.profile.chain, len(workers)
        self.problem, self.workers, self.children = problem, workers, range(1, size)
        # Own samples; when each worker has its raw ones; when the root has each child's activations; when each backward
        # pass starts; D of the root; T.
        self.samples, self.inputs, self.joined, self.starts, (self.summed, self.time, self.one) = np.split(
            np.eye(4 * size + 2), [size, 2 * size, 3 * size - 1, 4 * size - 1]
        )
        layers = [problem.profile.worker(name).layers for name in workers]
        self.forward = [np.cumsum([0.0, *(times.forward.per_sample_s for times in own)]) for own in layers]
        self.backward = [np.cumsum([0.0, *(times.backward.per_sample_s for times in own)]) for own in layers]
        self.depths, self.cuts = depths, [0 * depths[0], *depths[1:], depths[0]]  # of the root's stages
        # Whose samples the root's stages take over, after its own: who computes the loss itself sends no activations.
        self.joins = (depths < chain.depth)[:, :, np.newaxis]
        self.joins[0] = True
        joining = self.joins * self.samples[:, np.newaxis]
        self.carried = np.cumsum(joining, axis=0)
        output_bytes = np.array([layer.output_bytes for layer in chain.layers])
        self.activations = output_bytes[depths - 1][:, :, np.newaxis] * joining
        self.parameters = np.array(chain.parameter_prefix_bytes)[depths][:, :, np.newaxis] * self.one
        self.found: list[Floats] = []

    def rows(self, unit_s: float) -> Floats:
        """Inequalities, times in units: none, as a sum over the variables and 1, is above 0. Shape (P, rows, V + 1)."""
        self._input()
        self._backward(self._forward())
        rows = np.stack(self.found, axis=1)
        in_seconds = [*range(len(self.workers)), -1]
        rows[:, :, in_seconds] /= unit_s
        credit = np.maximum(-rows[:, :, -1:], 0)
        rows[:, :, in_seconds] = np.minimum(rows[:, :, in_seconds], LARGEST + credit)
        return rows / np.maximum(np.abs(rows).max(axis=2, keepdims=True) / SOLVABLE, 1)

    def _input(self) -> None:
        """Equation (1)."""
        early = [self._early_s()[:, np.newaxis] * self.one, *[0.0] * len(self.children)]
        for worker, name in enumerate(self.workers):
            if name != self.problem.data_holder:
                arrivals = self._arrivals(self.problem.data_holder, worker)
                self._at_least(self.inputs[worker], *(term - early[worker] for term in arrivals))

    def _early_s(self) -> Floats:
        """How much later than the first message of a child the root's raw samples may arrive; (P,), mostly 0.

        A root without own samples waits for none, so their latency must not hold it up further than that message does.
        """
        direct_s = self._latency_s(self.problem.data_holder, self.workers[0])
        least_s = np.full(self.depths.shape[1], direct_s)
        for child in self.children:
            name = self.workers[child]
            first = np.where(self.joins[child], self.activations[child], self.parameters[child])
            last_s = self._latency_s(name, self.workers[0]) * first.any(axis=1)
            least_s = np.minimum(least_s, self._latency_s(self.problem.data_holder, name) + last_s)
        return direct_s - least_s

    def _forward(self) -> list[Floats]:
        """Equation (2): the end of each worker's forward pass."""
        ends, now = [self.starts[0]], self.inputs[0]
        for child in self.children:
            joined = self.joined[child - 1]
            ends.append(self.inputs[child] + self._own(self.forward, child))
            arrivals = self._arrivals(self.workers[child], 0, _Message(ends[child], self.activations[child]))
            now = now + self._stage(self.forward, child - 1)
            self._at_least(joined, now, *(self.joins[child] * term for term in arrivals))
            now = joined
        self._at_least(self.starts[0], now + self._stage(self.forward, len(self.children)))
        return ends

    def _backward(self, ends: list[Floats]) -> None:
        """Equations (3) to (5)."""
        root, now = self.workers[0], self.starts[0]
        updated = self.summed + self.problem.profile.worker(root).update_s * self.one
        self._at_least(self.time, updated)
        for child in reversed(self.children):
            name, start = self.workers[child], self.starts[child]
            now = now + self._stage(self.backward, child)
            activations, gradient = (_Message(ready, self.activations[child]) for ready in (ends[child], now))
            arrivals = self._arrivals(root, child, gradient)
            self._at_least(start, ends[child], *(self.joins[child] * term for term in arrivals))
            gradients = _Message(start + self._own(self.backward, child), self.parameters[child])
            self._at_least(self.summed, *self._arrivals(name, 0, activations, gradients))
            self._at_least(self.time, *self._arrivals(root, child, gradient, _Message(updated, self.parameters[child])))
        self._at_least(self.summed, now + self._stage(self.backward, 0))

    def _stage(self, seconds: list[Floats], stage: int) -> Floats:
        """The root's computing between two cuts."""
        return (seconds[0][self.cuts[stage + 1]] - seconds[0][self.cuts[stage]])[:, np.newaxis] * self.carried[stage]

    def _own(self, seconds: list[Floats], child: int) -> Floats:
        """A child's computing."""
        return seconds[child][self.depths[child]][:, np.newaxis] * self.samples[child]

    def _latency_s(self, source: str, target: str) -> float:
        return self.problem.network.link(source, target).latency_s if source != target else 0.0

    def _arrivals(self, source: str, target: int, *messages: _Message) -> list[Floats]:
        """Equation (6): the terms of the last message's arrival; when it is ready, where it is empty."""
        if source == self.problem.data_holder:
            raw = _Message(0 * self.one, self.problem.profile.sample_bytes * self.samples[[target]])
            messages = (raw, *messages)
        link, (ready, size) = self.problem.network.link(source, self.workers[target]), messages[-1]
        sent, left = size.any(axis=1, keepdims=True), 0.0
        terms = [ready + link.latency_s * sent * self.one]
        for message in reversed(messages):
            left = left + link.transmission_s(1) * message.size
            arrival = message.ready + left + (link.latency_s - link.credit_s) * self.one
            terms.append(np.where(sent, arrival, ready))
        return terms

    def _at_least(self, variable: Floats, *terms: Floats) -> None:
        shape = self.depths.shape[1], len(variable)
        self.found += [np.broadcast_to(term - variable, shape) for term in terms]
