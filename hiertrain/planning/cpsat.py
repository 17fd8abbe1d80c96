"""One tree's plans as a model for OR-Tools' CP-SAT: all that is linear about the cost model, in whole units of time.

See ``cost.integers`` for the units. Nothing but the wall clock, which is the user's limit, makes two runs differ.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import numpy as np
from ortools.sat.python import cp_model

from hiertrain.cost.bounds import Boxes, Integers
from hiertrain.cost.integers import IntegerCosts, Way, integer_costs
from hiertrain.planning.heuristic import Candidate
from hiertrain.planning.trees import ranges
from hiertrain.problem.problem import Problem
from hiertrain.problem.tree import Tree

# Deterministic seconds of the first attempt at a tree; each further one has twice as many, another seed, and boxes
# halved further. Most proofs need less than a third of it; what needs more ends sooner by starting again.
FIRST_SLICE = 0.25


@dataclass(frozen=True)
class _Variables:
    """One tree's model: k workers, in the tree's order, and N layers, layer i at index i - 1."""

    reaches: list[list[cp_model.IntVar]]  # d: the worker's depth is at least i
    samples: list[list[cp_model.IntVar]]  # n: samples that the worker computes in layer i
    computes: list[list[cp_model.IntVar]]  # y: 1 where n > 0
    pieces: list[list[list[cp_model.IntVar]]]  # of n, between two bends of the layer's costs; n itself without any
    merged: list[list[list[cp_model.IntVar]]]  # at least the parent's pieces in the layers beyond the worker's depth
    forward: list[cp_model.IntVar]  # F: end of the forward pass
    start: list[cp_model.IntVar]  # start of the backward pass
    gradients: list[cp_model.IntVar]  # D: the subtree's gradients are summed
    updated: list[cp_model.IntVar]  # the worker has the new weights
    time: cp_model.IntVar  # T


def _new_variables(
    model: cp_model.CpModel, problem: Problem, tree: Tree, within: Boxes | None, costs: IntegerCosts | None
) -> _Variables:
    layers, size = problem.profile.chain.depth, len(tree.workers)
    limit, bends = (costs.limit, costs.bends) if costs else (0, [[[]] * layers] * size)
    depths, samples = ranges(problem, tree, within)
    reaches = [
        [
            model.new_constant(int(layer <= first)) if not first < layer <= last else model.new_bool_var("")
            for layer in range(1, layers + 1)
        ]
        for first, last in depths
    ]

    def counts(first: int, last: int) -> list[cp_model.IntVar]:
        return [
            model.new_int_var(first, last, ""),
            *(model.new_int_var(0, problem.batch_size, "") for _ in range(1, layers)),
        ]

    def pieces(ends: list[int]) -> list[cp_model.IntVar]:
        return [model.new_int_var(0, b - a, "") for a, b in pairwise([0, *ends, problem.batch_size])]

    def times() -> list[cp_model.IntVar]:
        return [model.new_int_var(0, limit, "") for _ in range(size)]

    own = [counts(first, last) for first, last in samples]
    return _Variables(
        reaches=reaches,
        samples=own,
        pieces=[
            [pieces(ends) if ends else [count] for count, ends in zip(row, rows, strict=True)]
            for row, rows in zip(own, bends, strict=True)
        ],
        computes=[
            [model.new_bool_var("") for _ in range(layers)] if tree.children[worker] else reaches[worker]
            for worker in range(size)
        ],
        merged=[[pieces(ends) for ends in bends[max(parent, 0)]] for parent in tree.parents],
        forward=times(),
        start=times(),
        gradients=times(),
        updated=times(),
        time=model.new_int_var(0, limit, ""),
    )


def _weighted(variables: list[cp_model.IntVar], weights: Integers) -> cp_model.LinearExpr:
    return cast(cp_model.LinearExpr, cp_model.LinearExpr.weighted_sum(variables, weights.tolist()))


def _flat(rows: list[list[cp_model.IntVar]]) -> list[cp_model.IntVar]:
    return [variable for row in rows for variable in row]


def _held(variables: _Variables, tree: Tree, worker: int, layer: int) -> cp_model.LinearExpr:
    """The samples that the worker and its subtree compute in a layer (from 0)."""
    held = [variables.samples[member][layer] for member in tree.subtrees[worker]]
    return cast(cp_model.LinearExpr, cp_model.LinearExpr.sum(held))


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
    """``cost.closed_form.memory_bytes`` within the limits; sizes beyond a limit are cut off just above it."""
    for worker, name in enumerate(tree.workers):
        limit = problem.memory_limit_bytes.get(name)
        if limit is None:
            continue
        copies = 4 if worker == 0 else 2
        layers = problem.profile.chain.layers
        activations = np.array([min(layer.activation_bytes or 0, limit + 1) for layer in layers])
        parameters = np.array([min(copies * layer.parameter_bytes, limit + 1) for layer in layers])
        model.add(
            _weighted(variables.samples[worker], activations) + _weighted(variables.reaches[worker], parameters)
            <= limit
        )


def _at_depth(variables: _Variables, worker: int, by_depth: Integers) -> cp_model.LinearExpr:
    """The entry for the worker's depth."""
    return _weighted(variables.reaches[worker], np.diff(by_depth, prepend=0))


def _activations(variables: _Variables, tree: Tree, child: int, way: Way) -> cp_model.LinearExpr:
    """The message at the child's cut, the only layer after which its subtree's number of samples falls."""
    held = [samples for member in tree.subtrees[child] for samples in variables.samples[member]]
    return _weighted(held, np.tile(np.diff(way.activations, prepend=0), len(tree.subtrees[child])))


def _late(model: cp_model.CpModel, way: Way, limit: int, *sent: cp_model.LinearExpr) -> cp_model.LinearExpr:
    """Equation (6): from when the first of the messages was ready until all have left; at least 0."""
    grains = cast(cp_model.LinearExpr, cp_model.LinearExpr.sum(sent))
    if not way.credit:
        return grains
    late = model.new_int_var(0, limit // way.grain, "")
    model.add(late >= grains - way.credit)
    return way.grain * late


def _beyond(variables: _Variables, parent: int, child: int, fixed: Integers, each: Integers) -> cp_model.LinearExpr:
    """The parent's computing in the layers beyond the child's depth, where it has the child's samples."""
    return (
        _weighted(_flat(variables.merged[child]), each)
        + _weighted(variables.reaches[parent], fixed)
        - _weighted(variables.reaches[child], fixed)
    )


def _add_forward(model: cp_model.CpModel, tree: Tree, costs: IntegerCosts, variables: _Variables) -> None:
    """Equations (1) and (2)."""
    for worker, end in enumerate(variables.forward):
        own, way = variables.samples[worker][0], costs.input[worker]
        arrival = way.raw_latency * variables.computes[worker][0] + _late(model, way, costs.limit, way.raw * own)
        computing = _weighted(variables.computes[worker], costs.forward_fixed[worker])
        computing += _weighted(_flat(variables.pieces[worker]), costs.forward_each[worker])
        model.add(end >= arrival + computing)
        for child in tree.children[worker]:
            way = costs.up[child]
            sent, rest = _activations(variables, tree, child, way), _at_depth(variables, child, way.activation_latency)
            rest += _beyond(variables, worker, child, costs.forward_fixed[worker], costs.forward_each[worker])
            ready = variables.forward[child] + _late(model, way, costs.limit, sent)
            model.add(end >= ready + rest).only_enforce_if(~variables.reaches[child][-1])
            if way.raw:
                model.add(end >= _late(model, way, costs.limit, way.raw * own, sent) + rest)


def _leaves(variables: _Variables, tree: Tree, costs: IntegerCosts, child: int) -> cp_model.LinearExpr:
    """When the gradient of the child's activations is ready on its parent."""
    parent = tree.parents[child]
    before = _beyond(variables, parent, child, costs.backward_fixed[parent], costs.backward_each[parent])
    return variables.start[parent] + before


def _add_backward(model: cp_model.CpModel, tree: Tree, costs: IntegerCosts, variables: _Variables) -> None:
    """Equation (3): a worker starts when its forward pass has ended and its parent's gradients are there."""
    model.add(variables.start[0] == variables.forward[0])
    for child, start in enumerate(variables.start[1:], start=1):
        way = costs.down[child]
        sent, latency = _activations(variables, tree, child, way), _at_depth(variables, child, way.activation_latency)
        ready = _leaves(variables, tree, costs, child) + _late(model, way, costs.limit, sent)
        model.add(start >= variables.forward[child])
        model.add(start >= ready + latency).only_enforce_if(~variables.reaches[child][-1])
        if way.raw and way.credit:  # without credit the raw samples have arrived long since
            raw = way.raw * variables.samples[child][0]
            model.add(start >= _late(model, way, costs.limit, raw, sent) + latency)


def _add_gradients(model: cp_model.CpModel, tree: Tree, costs: IntegerCosts, variables: _Variables) -> None:
    """Equations (4) and (5)."""
    gradients, updated = variables.gradients, variables.updated
    for worker, end in enumerate(gradients):
        computing = _weighted(variables.computes[worker], costs.backward_fixed[worker])
        computing += _weighted(_flat(variables.pieces[worker]), costs.backward_each[worker])
        model.add(end >= variables.start[worker] + computing)
    model.add(updated[0] == gradients[0] + costs.update)
    for child, parent in enumerate(tree.parents[1:], start=1):
        leaves = _leaves(variables, tree, costs, child)
        # Each way, what it carries and when that is ready, the activations that left before, and the receiver.
        for way, before, ready, end, target in (
            (costs.up[child], variables.forward[child], gradients[child], gradients[parent], parent),
            (costs.down[child], leaves, updated[parent], updated[child], child),
        ):
            model.add(end >= ready + _at_depth(variables, child, way.idle_parameters))
            latency = _at_depth(variables, child, way.parameter_latency)
            sent = _activations(variables, tree, child, way), _at_depth(variables, child, way.parameters)
            if way.credit:  # without it, the activations have arrived long since
                model.add(end >= before + _late(model, way, costs.limit, *sent) + latency)
            if way.raw:
                raw = way.raw * variables.samples[target][0]
                model.add(end >= _late(model, way, costs.limit, raw, *sent) + latency)
    for worker in range(len(tree.workers)):
        model.add(variables.time >= updated[worker])


def tree_model(
    problem: Problem, tree: Tree, costs: IntegerCosts, within: Boxes | None
) -> tuple[cp_model.CpModel, _Variables]:
    """The plans of one tree within the boxes that take at most the limit; least time."""
    model = cp_model.CpModel()
    variables = _new_variables(model, problem, tree, within, costs)
    _add_structure(model, problem, tree, variables)
    _add_bends(model, variables)
    _add_memory_limits(model, problem, tree, variables)
    _add_forward(model, tree, costs, variables)
    _add_backward(model, tree, costs, variables)
    _add_gradients(model, tree, costs, variables)
    model.minimize(variables.time)
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
    solver.parameters.max_time_in_seconds = seconds
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
    return Solved(found, min(limit_s, solver.best_objective_bound * costs.unit_s), none_within=False)


def any_plan(problem: Problem, tree: Tree, solver: cp_model.CpSolver) -> tuple[Candidate | None, bool]:
    """A plan of the tree that keeps all constraints, whatever its time; and whether that is decided."""
    model = cp_model.CpModel()
    variables = _new_variables(model, problem, tree, None, costs=None)
    _add_structure(model, problem, tree, variables)
    _add_memory_limits(model, problem, tree, variables)
    status = solver.solve(model)
    found = _candidate(solver, tree, variables) if status in (cp_model.OPTIMAL, cp_model.FEASIBLE) else None
    return found, status != cp_model.UNKNOWN


def _candidate(solver: cp_model.CpSolver, tree: Tree, variables: _Variables) -> Candidate:
    depths = tuple(sum(solver.value(reaches) for reaches in row) for row in variables.reaches)
    return Candidate(tree, depths, tuple(solver.value(row[0]) for row in variables.samples))
