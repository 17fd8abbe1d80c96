"""One tree's plans as a model for OR-Tools' CP-SAT: all that is linear about the cost model, in whole units of time.

See ``cost.integers`` for the units. Nothing but the wall clock, which is the user's limit, makes two runs differ.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import numpy as np
from ortools.sat.python import cp_model

from hiertrain.cost.bounds import Boxes, Integers
from hiertrain.cost.integers import IntegerCosts, Sent, integer_costs
from hiertrain.planning.heuristic import Candidate
from hiertrain.planning.trees import ranges
from hiertrain.problem.problem import Problem
from hiertrain.problem.tree import Tree
from hiertrain.program.actions import copies_held
from hiertrain.program.passes import template_of
from hiertrain.program.template import After, Boundary, Message, Pass, Update

# Deterministic seconds of the first attempt at a tree; each further one has twice as many, another seed, and boxes
# halved further. Most proofs need less than a third of it; what needs more ends sooner by starting again.
FIRST_SLICE = 0.25

Expression = cp_model.LinearExpr | int


@dataclass(frozen=True)
class _Variables:
    """What a plan of one tree leaves open: k workers, in the tree's order, and N layers, layer i at index i - 1."""

    reaches: list[list[cp_model.IntVar]]  # d: the worker's depth is at least i
    samples: list[list[cp_model.IntVar]]  # n: samples that the worker computes in layer i
    computes: list[list[cp_model.IntVar]]  # y: 1 where n > 0
    pieces: list[list[list[cp_model.IntVar]]]  # of n, between two bends of the layer's costs; n itself without any
    merged: list[list[list[cp_model.IntVar]]]  # at least the parent's pieces in the layers beyond the worker's depth


def _new_variables(
    model: cp_model.CpModel, problem: Problem, tree: Tree, within: Boxes | None, bends: list[list[list[int]]]
) -> _Variables:
    layers = problem.profile.chain.depth
    depths, samples = ranges(problem, tree, within)

    def reaches(name: str, first: int, last: int) -> list[cp_model.IntVar]:
        return [
            model.new_constant(int(layer <= first))
            if not first < layer <= last
            else model.new_bool_var(f"{name} reaches {layer}")
            for layer in range(1, layers + 1)
        ]

    def counts(name: str, first: int, last: int) -> list[cp_model.IntVar]:
        return [
            model.new_int_var(first, last, f"samples of {name}"),
            *(model.new_int_var(0, problem.batch_size, f"samples of {name} in {i}") for i in range(2, layers + 1)),
        ]

    def pieces(name: str, layer: int, ends: list[int]) -> list[cp_model.IntVar]:
        return [
            model.new_int_var(0, b - a, f"samples of {name} in {layer} above {a}")
            for a, b in pairwise([0, *ends, problem.batch_size])
        ]

    depth = [reaches(name, *own) for name, own in zip(tree.workers, depths, strict=True)]
    own = [counts(name, *own) for name, own in zip(tree.workers, samples, strict=True)]
    return _Variables(
        reaches=depth,
        samples=own,
        pieces=[
            [
                pieces(name, i, ends) if ends else [count]
                for i, (count, ends) in enumerate(zip(row, rows, strict=True), 1)
            ]
            for name, row, rows in zip(tree.workers, own, bends, strict=True)
        ],
        computes=[
            [model.new_bool_var(f"{name} computes {i}") for i in range(1, layers + 1)] if children else row
            for name, children, row in zip(tree.workers, tree.children, depth, strict=True)
        ],
        merged=[
            [pieces(f"the parent of {name}", i, ends) for i, ends in enumerate(bends[parent], 1)] if parent >= 0 else []
            for name, parent in zip(tree.workers, tree.parents, strict=True)
        ],
    )


def _weighted(variables: list[cp_model.IntVar], weights: Integers) -> cp_model.LinearExpr:
    return cast(cp_model.LinearExpr, cp_model.LinearExpr.weighted_sum(variables, weights.tolist()))


def _sum(expressions: Sequence[Expression]) -> cp_model.LinearExpr:
    return cast(cp_model.LinearExpr, cp_model.LinearExpr.sum(expressions))


def _flat(rows: list[list[cp_model.IntVar]]) -> list[cp_model.IntVar]:
    return [variable for row in rows for variable in row]


def _held(variables: _Variables, tree: Tree, worker: int, layer: int) -> cp_model.LinearExpr:
    """The samples that the worker and its subtree compute in a layer (from 0)."""
    return _sum([variables.samples[member][layer] for member in tree.subtrees[worker]])


def _add_structure(model: cp_model.CpModel, problem: Problem, tree: Tree, variables: _Variables) -> None:
    """Depths fall down the tree; a subtree holds its samples up to its depth; each layer computes the mini-batch.

    Where a worker computes a layer, it has samples enough for it.
    """
    reaches, samples, computes = variables.reaches, variables.samples, variables.computes
    layers, least_samples = range(problem.profile.chain.depth), [own.least_samples for own in problem.profile.layers]
    for layer in layers:
        model.add(cp_model.LinearExpr.sum([row[layer] for row in samples]) == problem.batch_size)
    for worker, parent in enumerate(tree.parents):
        for layer in layers:
            model.add(samples[worker][layer] <= problem.batch_size * computes[worker][layer])
            if least_samples[layer] > 1:
                model.add(samples[worker][layer] >= least_samples[layer] * computes[worker][layer])
            if parent >= 0:
                model.add_implication(reaches[worker][layer], reaches[parent][layer])
                model.add(_held(variables, tree, worker, layer) == _held(variables, tree, worker, 0)).only_enforce_if(
                    reaches[worker][layer]
                )
                for merged, own in zip(variables.merged[worker][layer], variables.pieces[parent][layer], strict=True):
                    model.add(merged >= own).only_enforce_if(~reaches[worker][layer])
                if layer:
                    model.add_implication(reaches[worker][layer], reaches[worker][layer - 1])
            if tree.children[worker]:
                model.add_implication(computes[worker][layer], reaches[worker][layer])
            for child in tree.children[worker]:
                model.add(computes[worker][layer] >= reaches[worker][layer] - reaches[child][layer])


def _add_bends(model: cp_model.CpModel, variables: _Variables) -> None:
    """Where a layer's costs bend, its samples fill one piece after the other."""
    for samples, rows in zip(variables.samples, variables.pieces, strict=True):
        for count, pieces in zip(samples, rows, strict=True):
            if len(pieces) == 1:
                continue
            model.add(cp_model.LinearExpr.sum(pieces) == count)
            for before, after in pairwise(pieces):
                full = model.new_bool_var("")
                model.add(before == before.proto.domain[1]).only_enforce_if(full)
                model.add(after == 0).only_enforce_if(~full)


def _add_memory_limits(model: cp_model.CpModel, problem: Problem, tree: Tree, variables: _Variables) -> None:
    """``cost.memory.memory_bytes`` within the limits; sizes beyond a limit are cut off just above it."""
    template = template_of(tree, problem.profile.chain, problem.data_holder, problem.execution)
    messages = [task for task in template.tasks if isinstance(task, Message)]
    for worker, name in enumerate(tree.workers):
        limit = problem.memory_limit_bytes.get(name)
        if limit is None:
            continue
        copies = problem.weight_copies(worker <= tree.alone)
        layers = problem.profile.chain.layers
        activations = np.array([min(layer.activation_bytes or 0, limit + 1) for layer in layers])
        parameters = np.array([min(copies * layer.parameter_bytes, limit + 1) for layer in layers])
        kept = _weighted(variables.reaches[worker], parameters)
        if worker < tree.alone:  # the layers beyond its one child's
            kept -= _weighted(variables.reaches[worker + 1], parameters)
        for message in messages:
            if name in (message.source, message.target):
                copies = copies_held(message.role, message.encoding, template.overlapped)
                parts = message.size.fixed, message.size.each
                fixed, each = (np.minimum(copies * np.array(part), limit + 1) for part in parts)
                kept += _size(tree, variables, message, fixed, each)
        model.add(_weighted(variables.samples[worker], activations) + kept <= limit)


def _size(tree: Tree, variables: _Variables, message: Message, fixed: Integers, each: Integers) -> Expression:
    """The size of a message that has, at each boundary, so much at all and so much for each sample."""
    place = {name: position for position, name in enumerate(tree.workers)}
    if message.boundary is None:
        own = place[message.target]
        return int(fixed[0]) * variables.computes[own][0] + int(each[0]) * variables.samples[own][0]
    position = place[message.boundary]
    size = _weighted(variables.reaches[position], np.diff(fixed[1:], prepend=0))
    # The number of samples of a subtree falls only after the layer at which it is cut.
    members = tree.subtrees[position]
    held = [samples for member in members for samples in variables.samples[member]]
    return size + _weighted(held, np.tile(np.diff(each[1:], prepend=0), len(members))) if each.any() else size


@dataclass(frozen=True)
class _Bound:
    """Something is not before ``time``, unless ``unless`` is true."""

    time: Expression
    unless: cp_model.LiteralT | None = None


class _Timing:
    """The template's tasks in whole units of time: one inequality for each thing that a task waits for.

    Overlapped iterations all look alike, each T after the one before: what a task waits for in an earlier one happened
    so many T before. There are such times if and only if no path that comes back takes longer (a periodic schedule).

    What a pass takes from one boundary to another is a sum over its layers: events for every layer, linked one by one,
    say the same and take longer to prove.
    """

    def __init__(self, model: cp_model.CpModel, costs: IntegerCosts, variables: _Variables) -> None:
        self.model, self.costs, self.variables = model, costs, variables
        self.template, self.tree = costs.template, costs.template.tree
        self.place = {name: position for position, name in enumerate(self.tree.workers)}
        self.passed: dict[tuple[int, Boundary], list[_Bound]] = {}  # each task, each of its boundaries
        overlapped = self.template.overlapped
        # T, which may be rounded up where a path leads through several iterations.
        self.time = model.new_int_var(0, costs.limit + overlapped, "time")
        afters = (after for task in self.template.tasks for after in task.after if after.ago)
        self.awaited = {  # by tasks of later iterations
            (after.task, after.left): model.new_int_var(0, self.costs.horizon, f"passed {after.task}")
            for after in afters
        }
        self.ready: dict[int, Expression] = {}  # of messages
        for lane in self.template.lanes.values() if overlapped else ():
            self.ready |= {number: model.new_int_var(0, self.costs.horizon, f"ready {number}") for number in lane}

    def add(self) -> cp_model.IntVar:
        """Add all tasks; returns T, the end of the last, or the period of overlapped iterations."""
        for number, task in enumerate(self.template.tasks):
            match task:
                case Pass():
                    self._add_pass(number, task)
                case Message():
                    self._add_ready(number, task)
                    self.passed[number, None] = self._arrival(number, task)
                case Update():
                    ready = self._event(f"gradients {number}", self._bounds(task.after))
                    self.passed[number, None] = [_Bound(ready + self._updating(task))]
        for key, moment in self.awaited.items():
            self._require(moment, self.passed[key])
        if self.template.overlapped:
            for lane in self.template.lanes.values():
                self.model.add(self.time >= self.costs.sent[lane[0]].grain * _sum([self._grains(n) for n in lane]))
        else:
            self._require(self.time, [bound for last in self.template.last for bound in self.passed[last, None]])
        return self.time

    def _bounds(self, afters: Iterable[After]) -> list[_Bound]:
        found = []
        for after in afters:
            if after.ago:
                found.append(_Bound(self.awaited[after.task, after.left] - after.ago * self.time))
            else:
                found += self.passed[after.task, after.left]
        return found

    def _add_ready(self, number: int, message: Message) -> None:
        bounds = self._bounds(message.after)
        if number in self.ready:
            self._require(cast(cp_model.IntVar, self.ready[number]), bounds)
        else:
            self.ready[number] = self._event(f"ready {number}", bounds)

    def _require(self, time: cp_model.IntVar, bounds: list[_Bound], more: Expression = 0) -> None:
        for bound in bounds:
            constraint = self.model.add(time >= bound.time + more)
            if bound.unless is not None:
                constraint.only_enforce_if(~bound.unless)

    def _event(self, name: str, bounds: list[_Bound]) -> Expression:
        """The last of the bounds."""
        if not bounds:
            return 0
        if len(bounds) == 1 and bounds[0].unless is None:
            return bounds[0].time
        time = self.model.new_int_var(0, self.costs.horizon, name)
        self._require(time, bounds)
        return time

    def _add_pass(self, number: int, task: Pass) -> None:
        variables, position = self.variables, self.place[task.worker]
        fixed, each = self.costs.fixed[task.op, task.worker], self.costs.each[task.op, task.worker]
        inside = [after for after in task.after if after.at != task.start]
        start = self._event(f"start {number}", self._bounds(a for a in task.after if a.at == task.start))
        computing = _weighted(variables.computes[position], fixed) + _weighted(_flat(variables.pieces[position]), each)
        end: Expression = start + computing
        # In the layers beyond a child's depth the worker has the child's samples.
        beyond = {
            self.tree.workers[child]: _weighted(_flat(variables.merged[child]), each)
            + _weighted(variables.reaches[position], fixed)
            - _weighted(variables.reaches[child], fixed)
            for child in self.tree.children[position]
        }
        if inside:
            bounds, end = [_Bound(end)], self.model.new_int_var(0, self.costs.horizon, f"end {number}")
            self._require(end, bounds)
            for after in inside:
                assert isinstance(after.at, str)
                self._require(end, self._bounds([after]), beyond[after.at])
        else:
            self.passed |= {(number, child): [_Bound(start + rest)] for child, rest in beyond.items()}
        self.passed[number, task.end] = [_Bound(end)]
        for layer in self.template.left_after[number]:
            rest = _weighted(variables.computes[position][layer:], fixed[layer:])
            before = sum(map(len, variables.pieces[position][:layer]))
            rest += _weighted(_flat(variables.pieces[position][layer:]), each[before:])
            self.passed[number, layer] = [_Bound(start + rest)]

    def _updating(self, task: Update) -> Expression:
        """What an update takes."""
        stretch, reaches = slice(*task.stretch), self.variables.reaches
        own = self.costs.update[task.worker][stretch]
        time = _weighted(reaches[self.place[task.worker]][stretch], own)
        return time - _weighted(reaches[self.place[task.below]][stretch], own) if task.below else time

    def _arrival(self, number: int, message: Message) -> list[_Bound]:
        """Behind each message before it on its lane, unless that has long since arrived: the rule of ``Network``.

        Where it is empty, it waits for nothing but being ready.
        """
        sent = self.costs.sent[number]
        absent, (low, high) = None, message.present
        if message.boundary is not None and high < self.template.depth:
            absent = self.variables.reaches[self.place[message.boundary]][high]
        elif message.boundary is not None and low:
            absent = ~self.variables.reaches[self.place[message.boundary]][low]
        if any(message.size.each):
            first = self.ready[number] + self._at(message, sent.latency) + self._late(sent, self._grains(number))
        else:
            first = self.ready[number] + self._at(message, sent.idle)
        found, sizes = [_Bound(first, absent)], [self._grains(number)]
        empty = self._empty(message, absent)
        for earlier, ago, waits in self.template.delays(number, sent.credit > 0):
            sizes.append(self._grains(earlier))
            if waits:
                late = self._at(message, sent.latency) + self._late(sent, *sizes)
                found.append(_Bound(self.ready[earlier] + late - ago * self.time, empty))
        return found

    def _empty(self, message: Message, absent: cp_model.LiteralT | None) -> cp_model.LiteralT | None:
        """Whether its boundary is one at which nothing is sent; None: there is none."""
        if message.boundary is None:
            return None
        reaches = [*self.variables.reaches[self.place[message.boundary]], 0]
        sizes = zip(message.size.fixed[1:], message.size.each[1:], strict=True)
        depths = [depth for depth, size in enumerate(sizes, 1) if not any(size)]
        if not depths:
            return None
        if absent is not None and len(depths) == self.template.depth - message.present[1] + message.present[0]:
            return absent
        empty = self.model.new_bool_var("empty")
        self.model.add(empty == _sum([reaches[depth - 1] - reaches[depth] for depth in depths]))
        return empty

    def _late(self, sent: Sent, *grains: Expression) -> Expression:
        """From when the first of the messages was ready until all have left; at least 0."""
        total = _sum(grains)
        if not sent.credit:
            return sent.grain * total
        late = self.model.new_int_var(0, self.costs.horizon // sent.grain, "late")
        self.model.add(late >= total - sent.credit)
        return sent.grain * late

    def _grains(self, number: int) -> Expression:
        """The size of a message."""
        message, sent = self.template.tasks[number], self.costs.sent[number]
        assert isinstance(message, Message)
        return _size(self.tree, self.variables, message, sent.fixed, sent.each)

    def _at(self, message: Message, by_boundary: Integers) -> Expression:
        """The entry for the message's boundary, if it carries anything."""
        if message.boundary is None:
            return int(by_boundary[0]) * self.variables.computes[self.place[message.target]][0]
        return _weighted(self.variables.reaches[self.place[message.boundary]], np.diff(by_boundary[1:], prepend=0))


def tree_model(
    problem: Problem, tree: Tree, costs: IntegerCosts, within: Boxes | None
) -> tuple[cp_model.CpModel, _Variables]:
    """The plans of one tree within the boxes that take at most the limit; least time."""
    model = cp_model.CpModel()
    variables = _new_variables(model, problem, tree, within, costs.bends)
    _add_structure(model, problem, tree, variables)
    _add_bends(model, variables)
    _add_memory_limits(model, problem, tree, variables)
    model.minimize(_Timing(model, costs, variables).add())
    return model, variables


def new_solver(seed: int, attempt: int, seconds: float) -> cp_model.CpSolver:
    """One slice of the search. Only the wall clock, which is the user's limit, can end it at an uncertain point."""
    solver = cp_model.CpSolver()
    solver.parameters.catch_sigint_signal = False  # it would leave Ctrl-C fatal, without clean-up, for good
    solver.parameters.num_workers = 1  # deterministic, and faster than two
    solver.parameters.random_seed = (seed + attempt) % 2**31
    solver.parameters.linearization_level = 2  # at level 1 the proofs take more than ten times as long
    # CP-SAT 9.15's presolve returns wrong answers otherwise: google/or-tools issue 5293.
    solver.parameters.presolve_inclusion_work_limit = 0
    solver.parameters.max_deterministic_time = FIRST_SLICE * 2 ** min(attempt, 10)
    solver.parameters.max_time_in_seconds = max(0.0, seconds)  # bounding may have taken what was left
    return solver


@dataclass(frozen=True)
class Solved:
    """What one slice of the search comes to."""

    candidate: Candidate | None  # the best plan found within the limit
    bound_s: float  # no plan of the tree, within the boxes, is faster
    none_within: bool  # proven: no plan takes at most the limit


def solve_tree(
    problem: Problem, tree: Tree, within: Boxes | None, best_s: float, limit_s: float, solver: cp_model.CpSolver
) -> Solved:
    """Search a tree for plans that take at most ``limit_s``, near the best known time ``best_s``."""
    costs = integer_costs(problem, tree, best_s, limit_s)
    model, variables = tree_model(problem, tree, costs, within)
    status = solver.solve(model)
    if status == cp_model.MODEL_INVALID:
        raise AssertionError(f"the model of {tree} is invalid: {model.validate()}")
    if status == cp_model.INFEASIBLE:
        return Solved(None, limit_s, none_within=True)
    found = _candidate(solver, tree, variables) if status in (cp_model.OPTIMAL, cp_model.FEASIBLE) else None
    bound = max(0.0, solver.best_objective_bound - costs.template.overlapped)  # where the time may be rounded up
    return Solved(found, min(limit_s, bound * costs.unit_s), none_within=False)


def any_plan(problem: Problem, tree: Tree, solver: cp_model.CpSolver) -> tuple[Candidate | None, bool]:
    """A plan of the tree that keeps all constraints, whatever its time; and whether that is decided."""
    model = cp_model.CpModel()
    no_bends = [[[]] * problem.profile.chain.depth] * len(tree.workers)
    variables = _new_variables(model, problem, tree, None, no_bends)
    _add_structure(model, problem, tree, variables)
    _add_memory_limits(model, problem, tree, variables)
    status = solver.solve(model)
    found = _candidate(solver, tree, variables) if status in (cp_model.OPTIMAL, cp_model.FEASIBLE) else None
    return found, status != cp_model.UNKNOWN


def _candidate(solver: cp_model.CpSolver, tree: Tree, variables: _Variables) -> Candidate:
    depths = tuple(sum(solver.value(reaches) for reaches in row) for row in variables.reaches)
    return Candidate(tree, depths, tuple(solver.value(row[0]) for row in variables.samples))
