"""The limit of any plan: seconds between the ends of two iterations that no execution can do without.

Whatever is prefetched, cut into buckets and pieces, or put off: in the steady state each processor and each direction
of a link does an iteration's share of work within each period; and exact training starts no forward pass before the
update that it needs, so what one sample goes through, from the first parameters to their gradients, fits in a period as
well. The least T that is long enough for all of these, over all ways to share out layers and samples, is the optimum of
a mixed-integer linear programme. (Steady-state throughput as linear programmes: Serafini, Mathematical Programming 98,
2003; bounds by resources and by recurrences: Rau, International Journal of Parallel Programming 24, 1996.)

Taken for granted: raw samples come from the data holder straight, activations may be passed on, and their gradients
take the same way back; all over ``Network.find``, in the encodings of the problem's execution. Gradients of parameters
and weights travel as such, and nothing is computed twice. Left out is
what not every execution needs: the problem's root; the memory of activations, since those of a piece may be gone before
the next piece comes; bytes of a message that do not depend on its samples; and the bursts of a link, which let one
message pass early, but no more of them in the long run.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise, permutations
from typing import Literal

import numpy as np
from ortools.math_opt.python import mathopt

from hiertrain.cost.bounds import Floats, Integers
from hiertrain.problem.network import Network
from hiertrain.problem.problem import Problem
from hiertrain.problem.profile import LayerCost
from hiertrain.problem.tree import Tree
from hiertrain.program.actions import Role
from hiertrain.program.passes import template_of
from hiertrain.program.template import Message
from hiertrain.values import InputError, Name, PlanSeconds, PositiveSeconds, Ratio, Value, check

# SCIP's tolerances are absolute. What the best single worker takes has so many units of time.
RANGE = 1e3
# Greater times are cut off at so many units. Where all plans are slower than that, the limit stays below.
LARGEST = 1e6
# Up to this share of it the limit is found, and what would move it by less does not bind.
PRECISION = 1e-3
# Workers x workers x layers; larger programmes take gigabytes.
MOST_FLOWS = 200_000
# Where there are more machines and links, only those that bind are made faster.
MOST_CHANGES = 30

_Kind = Literal["processor", "link", "way"]
_Term = tuple[Integers | np.int64, Floats | float]  # variables, and their factors


class Binding(Value):
    """What keeps the limit from being lower."""

    kind: _Kind
    workers: tuple[Name, ...]  # whose processor; the link's source and target; none for the way
    share: Ratio  # by so much of a second the limit falls where this takes a second less; they add up to 1

    @property
    def text(self) -> str:
        match self.kind:
            case "processor":
                return f"the {self.workers[0]}'s processor"
            case "link":
                return f"the link from {self.workers[0]} to {self.workers[1]}"
            case "way":
                return "the way of one sample through all layers"


class Limit(Value):
    """No plan has a shorter period under any lossless execution."""

    seconds: PlanSeconds
    proven: bool  # the programme's optimum; False: below it, since the time limit came first
    binding: tuple[Binding, ...]  # the greatest share first; none where nothing takes any time


class Gain(Value):
    """The limit with a machine twice as fast, or with one Mbit/s more on a link."""

    kind: Literal["processor", "link"]
    workers: tuple[Name, ...]
    limit: Limit

    @property
    def text(self) -> str:
        if self.kind == "processor":
            return f"{self.workers[0]} twice as fast"
        return f"1 Mbit/s more from {self.workers[0]} to {self.workers[1]}"


class Explanation(Value):
    """A limit, and what would lower it: the greatest gain first."""

    limit: Limit
    gains: tuple[Gain, ...]


def find_limit(problem: Problem, time_limit_s: float = 10.0) -> Limit:
    """The limit of all plans for a problem.

    Raises InputError when the layers fit into no memory, the problem is too large or the time limit is not positive.
    """
    check("time limit in s", time_limit_s, PositiveSeconds)
    flows = len(problem.workers) ** 2 * problem.profile.chain.depth
    if flows > MOST_FLOWS:
        raise InputError(f"limit: workers x workers x layers are {flows}; must be at most {MOST_FLOWS}")
    return _Programme(problem).solve(time_limit_s)


def explain(problem: Problem, time_limit_s: float = 10.0) -> Explanation:
    """The limit, and what it would be if each machine and each link were faster, one at a time; each solved anew.

    ``time_limit_s``: of each solution. Raises InputError as ``find_limit`` does.
    """
    limit = find_limit(problem, time_limit_s)
    changes = list(_changes(problem))
    if len(changes) > MOST_CHANGES:
        bind = {(binding.kind, binding.workers) for binding in limit.binding}
        changes = [change for change in changes if change[:2] in bind]
    gains = [
        Gain(kind=kind, workers=workers, limit=find_limit(other, time_limit_s)) for kind, workers, other in changes
    ]
    return Explanation(limit=limit, gains=tuple(sorted(gains, key=lambda gain: gain.limit.seconds)))


def _changes(problem: Problem) -> Iterator[tuple[Literal["processor", "link"], tuple[str, ...], Problem]]:
    """What is made faster, and the problem then."""
    profile, network = problem.profile, problem.network
    for name in problem.workers:
        layers = tuple(times.scaled(0.5) for times in profile.worker(name).layers)
        workers = {**profile.workers, name: profile.worker(name).model_copy(update={"layers": layers})}
        yield "processor", (name,), replace(problem, profile=profile.model_copy(update={"workers": workers}))
    for changed in network.links:
        faster = changed.model_copy(update={"bandwidth_mbps": changed.bandwidth_mbps + 1})
        links = tuple(faster if link is changed else link for link in network.links)
        other = replace(problem, network=Network(links=links, through=network.through))
        yield "link", (changed.source, changed.target), other


class _Programme:
    """Variables, and rows ``low <= sum of factors * variables <= high``; k workers, N layers, times in units."""

    def __init__(self, problem: Problem) -> None:
        self.problem, self.unit_s = problem, _unit_s(problem)
        self.names, self.layers = problem.workers, problem.profile.layers
        self.each_bytes, self.fixed_bytes = _sizes(problem)
        self.highest: list[float] = []  # of each variable; the lowest is 0
        self.whole: list[bool] = []
        self.rows: list[tuple[float, float, Integers, Floats]] = []
        self.loads: dict[int, tuple[_Kind, tuple[str, ...]]] = {}  # the rows that are no longer than a period
        senders = permutations(dict.fromkeys((*self.names, problem.data_holder)), 2)
        # What each link carries: numbers, and the bytes of each.
        self.carried: dict[tuple[str, str], list[tuple[Integers, Floats]]] = {
            pair: [] for pair in senders if problem.network.find(*pair) is not None
        }
        shape = len(self.names), len(self.layers)
        self.period = self._variables(1)
        self.computes = self._variables(*shape, highest=1, whole=True)
        self.samples = self._variables(*shape, highest=problem.batch_size, whole=True)
        self.updates = self._variables(*shape, highest=1)  # the share of the layer's parameters
        self._shares()
        self._raw_samples()
        self._activations()
        self._parameters()
        self._memory()
        self._processors()
        self._links()
        self._way()

    def _variables(self, *shape: int, highest: float = np.inf, whole: bool = False) -> Integers:
        first, size = len(self.whole), int(np.prod(shape))
        self.highest += [highest] * size
        self.whole += [whole] * size
        return np.arange(first, first + size).reshape(shape)

    def _row(self, *terms: _Term, low: float = -np.inf, high: float = 0.0) -> None:
        sides = [np.broadcast_arrays(np.atleast_1d(variables), factors) for variables, factors in terms]
        variables, factors = (np.concatenate([side[place].ravel() for side in sides]) for place in (0, 1))
        self.rows.append((low, high, variables, factors))

    def _load(self, kind: _Kind, workers: tuple[str, ...], *terms: _Term) -> None:
        self.loads[len(self.rows)] = kind, workers
        self._row((self.period, -1.0), *terms)

    def _units(self, seconds: Floats | float) -> Floats:
        return np.minimum(np.asarray(seconds) / self.unit_s, LARGEST)

    def _shares(self) -> None:
        """Every layer is computed for all samples and updated once; whoever computes it has as many as it takes."""
        total = self.problem.batch_size
        for number, layer in enumerate(self.layers):
            self._row((self.samples[:, number], 1.0), low=total, high=total)
            self._row((self.updates[:, number], 1.0), low=1, high=1)
            for computes, samples in zip(self.computes[:, number], self.samples[:, number], strict=True):
                self._row((samples, 1.0), (computes, -total))
                self._row((samples, -1.0), (computes, layer.least_samples))
        if self.problem.whole_model:
            for computes in self.computes:
                for before, after in pairwise(computes):
                    self._row((before, 1.0), (after, -1.0), low=0)

    def _raw_samples(self) -> None:
        """They come from the data holder, if they may leave it."""
        for name, samples in zip(self.names, self.samples[:, 0], strict=True):
            way = self.problem.data_holder, name
            if name != self.problem.data_holder and (self.problem.samples_stay or way not in self.carried):
                self.highest[samples] = 0.0
            elif way in self.carried:
                self.carried[way].append((samples, self.each_bytes[Role.SAMPLES][0]))

    def _activations(self) -> None:
        """Whoever computes a layer for more samples than the one before gets them, and their gradients go back."""
        highest = 0.0 if self.problem.whole_model else float(self.problem.batch_size)
        pairs = [pair for pair in self.carried if set(pair) <= set(self.names)]
        moves = {pair: self._variables(len(self.layers) - 1, highest=highest) for pair in pairs}
        for (source, target), moved in moves.items():
            self.carried[source, target].append((moved, self.each_bytes[Role.ACTIVATIONS][1:-1]))
            self.carried[target, source].append((moved, self.each_bytes[Role.ACTIVATION_GRADIENTS][1:-1]))
        for name, samples in zip(self.names, self.samples, strict=True):
            for number, (before, after) in enumerate(pairwise(samples)):
                out = [(moved[number], 1.0) for (source, _), moved in moves.items() if source == name]
                into = [(moved[number], -1.0) for (_, target), moved in moves.items() if target == name]
                self._row((after, 1.0), (before, -1.0), *out, *into, low=0)

    def _parameters(self) -> None:
        """Who computes a layer that others compute, too, sends and receives all of its parameters at least once.

        And of one that it computes alone, the share that it does not update. As gradients or as weights, and all
        together twice for each of them but one: with fewer messages, not everybody's gradients have reached everybody
        (one-way gossip: Harary and Schwenk, Journal of the Franklin Institute 297, 1974).
        """
        sizes = np.minimum(self.fixed_bytes[Role.GRADIENTS], self.fixed_bytes[Role.WEIGHTS])
        total = sizes.sum()
        if not total:
            return
        shares = sizes / total
        moved = {pair: self._variables(1) for pair in self.carried}  # in shares of all parameters
        exchanged = self._variables(*self.computes.shape)
        for pair, amount in moved.items():
            self.carried[pair].append((amount, total))
        for worker, name in enumerate(self.names):
            for end in (0, 1):
                ways = [(amount, -1.0) for pair, amount in moved.items() if pair[end] == name]
                self._row((exchanged[worker], shares), *ways)
            for number in np.flatnonzero(sizes):
                own, needed = (self.computes[worker, number], 1.0), (exchanged[worker, number], -1.0)
                self._row(own, (self.updates[worker, number], -1.0), needed)
                for other in np.delete(self.computes[:, number], worker):
                    self._row(own, (other, 1.0), needed, high=1)
        ways = [(amount, -1.0) for amount in moved.values()]
        self._row((self.computes, 2 * shares), *ways, high=2)

    def _memory(self) -> None:
        """Of weights, gradients and what the optimizer keeps."""
        parameters = np.array([float(layer.parameter_bytes) for layer in self.layers])
        for worker, name in enumerate(self.names):
            limit = self.problem.memory_limit_bytes.get(name)
            if limit is not None:
                parts = np.minimum(parameters / limit, 2.0)  # more than all of it is too much
                held = (self.computes[worker], self.problem.weight_copies(updates=False) * parts)
                self._row(held, (self.updates[worker], self.problem.optimizer_copies * parts), high=1)

    def _processors(self) -> None:
        for worker, name in enumerate(self.names):
            layers = self.problem.profile.worker(name).layers
            passes = self._variables(2, len(layers))
            for number, times in enumerate(layers):
                computes, samples = self.computes[worker, number], self.samples[worker, number]
                for taken, cost in zip(passes[:, number], (times.forward, times.backward), strict=True):
                    for fixed_s, each_s in least_lines(cost, self.problem.batch_size):
                        line = (computes, self._units(fixed_s)), (samples, self._units(each_s))
                        self._row(*line, (taken, -1.0))
            update_s = np.array([times.update_s for times in layers])
            self._load("processor", (name,), (passes, 1.0), (self.updates[worker], self._units(update_s)))

    def _links(self) -> None:
        for pair, carried in self.carried.items():
            byte_s = self.problem.network.link(*pair).transmission_s(1)
            self._load("link", pair, *((numbers, self._units(sizes * byte_s)) for numbers, sizes in carried))

    def _way(self) -> None:
        least = self._units(_ways_s(self.problem, self.each_bytes))
        for place in zip(*np.nonzero(least), strict=True):
            self._load("way", (), (self.computes[place], least[place]))

    def solve(self, time_limit_s: float) -> Limit:
        """The optimum, or the best bound within the time. Raises InputError where nothing keeps the constraints."""
        model = mathopt.Model()
        variables = [model.add_variable(lb=0.0, ub=highest) for highest in self.highest]
        rows = []
        for low, high, columns, factors in self.rows:
            terms = (factor * variables[column] for factor, column in zip(factors.tolist(), columns, strict=True))
            rows.append(model.add_linear_constraint(lb=low, ub=high, expr=mathopt.fast_sum(terms)))
        period = variables[self.period[0]]
        model.minimize(period)
        relaxed = mathopt.solve(model, mathopt.SolverType.GLOP)  # a bound that is there at once
        for variable, whole in zip(variables, self.whole, strict=True):
            variable.integer = whole
        best = mathopt.solve(model, mathopt.SolverType.GSCIP, params=_parameters(time_limit_s))
        if best.termination.reason == mathopt.TerminationReason.INFEASIBLE:
            limits = ", ".join(f"{name!r} ({size} bytes)" for name, size in self.problem.memory_limit_bytes.items())
            raise InputError(f"limit: memory limits of {limits}: must leave room for the parameters of every layer")
        if best.has_primal_feasible_solution():  # what binds is told for the best way to share out the layers
            for place in self.computes.ravel():
                computes = variables[place]
                computes.lower_bound = computes.upper_bound = round(best.variable_values(computes))
        for variable in variables:
            variable.integer = False
        near = mathopt.solve(model, mathopt.SolverType.GLOP)
        told = next((found for found in (near, relaxed) if found.has_dual_feasible_solution()), None)
        return Limit(
            seconds=max(0.0, relaxed.dual_bound(), best.dual_bound()) * self.unit_s,
            proven=best.termination.reason == mathopt.TerminationReason.OPTIMAL,
            binding=self._binding(told.dual_values(rows)) if told is not None else (),
        )

    def _binding(self, duals: list[float]) -> tuple[Binding, ...]:
        shares: dict[tuple[_Kind, tuple[str, ...]], float] = {}
        for row, load in self.loads.items():
            shares[load] = shares.get(load, 0.0) - duals[row]
        found = sorted(shares.items(), key=lambda item: -item[1])
        return tuple(
            Binding(kind=kind, workers=workers, share=share) for (kind, workers), share in found if share > PRECISION
        )


def _parameters(time_limit_s: float) -> mathopt.SolveParameters:
    parameters = mathopt.SolveParameters(
        time_limit=timedelta(seconds=time_limit_s), relative_gap_tolerance=PRECISION, threads=1
    )
    parameters.gscip.bool_params["misc/catchctrlc"] = False  # it is Python's
    return parameters


def _unit_s(problem: Problem) -> float:
    """The unit of time."""
    samples, depth = problem.batch_size, problem.profile.chain.depth
    alone_s = []
    for name in problem.workers:
        times, link = problem.profile.worker(name), problem.network.find(problem.data_holder, name)
        raw_s = link.transmission_s(samples * problem.profile.sample_bytes) if link is not None else 0.0
        alone_s.append(
            times.forward_s(1, depth, samples) + times.backward_s(1, depth, samples) + times.update_s + raw_s
        )
    return min(alone_s) / RANGE or 1.0


def _sizes(problem: Problem) -> tuple[Mapping[Role, Floats], Mapping[Role, Floats]]:
    """Bytes per sample after layers 0..N, and of the parameters of layers 1..N: (N + 1,) and (N,), by role."""
    chain = problem.profile.chain
    template = template_of(Tree(("target", "source"), (-1, 0)), chain, "source", problem.execution)
    each = {role: np.zeros(chain.depth + 1) for role in Role}
    fixed = {role: np.zeros(chain.depth) for role in Role}
    for task in template.tasks:
        if isinstance(task, Message):
            each[task.role] += task.size.each
            fixed[task.role] += np.diff(task.size.fixed)
    return each, fixed


def least_lines(cost: LayerCost, batch_size: int) -> list[tuple[float, float]]:
    """Lines below a cost, (fixed, per sample) in seconds: it is at least each of them, and so is what pieces take.

    The lines of its convex hull over 1 to all samples, as far as they are not below 0 for none; then that of pieces of
    the best size.
    """
    sizes = {1, batch_size, *(bend.above for bend in cost.bends if bend.above < batch_size)}
    hull: list[tuple[int, float]] = []
    for point in ((size, cost.seconds(size)) for size in sorted(sizes)):
        while len(hull) > 1 and _slope(hull[-2], point) <= _slope(hull[-2], hull[-1]):
            hull.pop()
        hull.append(point)
    lines = []
    for (size, seconds), after in pairwise(hull):
        each_s = _slope((size, seconds), after)
        if seconds <= each_s * size:
            return [*lines, (0.0, seconds / size)]
        lines.append((seconds - each_s * size, each_s))
    return lines or [(hull[0][1], 0.0)]


def _slope(before: tuple[int, float], after: tuple[int, float]) -> float:
    return (after[1] - before[1]) / (after[0] - before[0])


def _ways_s(problem: Problem, each_bytes: Mapping[Role, Floats]) -> Floats:
    """The shortest way of a sample that a worker computes a layer for, from the first parameters to their gradients.

    Shape (k, N); infinite where there is none. Backward, a layer counts if it has no parameters or is the first of all:
    of the others, the gradients of the parameters may wait, and what then remains was not measured.
    """
    layers, names = problem.profile.layers, problem.workers
    first = next((number for number, layer in enumerate(layers) if layer.parameter_bytes), len(layers))
    steps = np.zeros((len(names), len(layers)))
    for number, layer in enumerate(layers[first:], start=first):
        for worker, name in enumerate(names):
            times = problem.profile.worker(name).layers[number]
            steps[worker, number] = times.forward.seconds(layer.least_samples)
            if number == 0 or not layer.parameter_bytes:
                steps[worker, number] += times.backward.seconds(layer.least_samples)
    before, after = np.zeros_like(steps), np.zeros_like(steps)
    if problem.samples_stay:
        before[:, 0] = [0.0 if name == problem.data_holder else np.inf for name in names]
    # What comes in front of the first parameters is done while the iteration before has still to end.
    hops = [_hops_s(problem, each_bytes, depth, waits=depth > first) for depth in range(1, len(layers))]
    for number, hop in enumerate(hops):
        before[:, number + 1] = ((before + steps)[:, number, np.newaxis] + hop).min(axis=0)
    for number, hop in reversed(list(enumerate(hops))):
        after[:, number] = (hop + (after + steps)[:, number + 1]).min(axis=1)
    return before + steps + after


def _hops_s(problem: Problem, each_bytes: Mapping[Role, Floats], depth: int, waits: bool) -> Floats:
    """From one worker to another after a layer, and back again; (k, k), infinite where no sample goes."""
    network, names = problem.network, problem.workers
    there, back = (each_bytes[role][depth] for role in (Role.ACTIVATIONS, Role.ACTIVATION_GRADIENTS))
    hops = np.full((len(names), len(names)), np.inf)
    np.fill_diagonal(hops, 0.0)
    for (place, source), (other, target) in permutations(enumerate(names), 2):
        if network.find(source, target) is not None and not problem.whole_model:
            way_s = network.message_s(source, target, there) + network.message_s(target, source, back)
            hops[place, other] = way_s * waits
    for middle in range(len(names)):
        hops = np.minimum(hops, hops[:, [middle]] + hops[middle])
    return hops
