"""The plans that hybrid parallelism is compared with. Each is a plan like any other: same cost model, same runtime.

A *chain* of workers splits the layers only: all samples start on its first worker, each worker sends its activations to
the next one, the last one computes the loss. Every combination of cuts is tried, so the best chain is found exactly.
"""

from collections.abc import Iterable
from itertools import combinations, pairwise, permutations

import numpy as np

from hiertrain.cost.bounds import Boxes, Evaluator, Floats
from hiertrain.cost.integers import TIE
from hiertrain.cost.memory import memory_bytes
from hiertrain.planning.heuristic import Candidate
from hiertrain.problem.chain import Chain
from hiertrain.problem.plan import Assignment, Plan
from hiertrain.problem.problem import Problem
from hiertrain.problem.tree import Tree
from hiertrain.program.simulator import iteration_s
from hiertrain.values import InputError, NoPlanError


def single_worker_plan(chain: Chain, workers: tuple[str, ...], worker: str, batch_size: int, data_holder: str) -> Plan:
    """``all-device``, ``all-edge``, ``all-cloud``: one worker does everything; raw samples are sent to it."""
    idle = Assignment(parent=worker, depth=0, samples=0)
    everything = Assignment(parent=None, depth=chain.depth, samples=batch_size)
    parts = {name: everything if name == worker else idle for name in workers}
    return Plan(batch_size=batch_size, data_holder=data_holder, workers=parts)


def single_worker_plans(problem: Problem) -> dict[str, Plan]:
    """``single_worker_plan`` by the name of the worker, of all that may and can; where samples stay, the holder's."""
    chain, names, holder = problem.profile.chain, tuple(problem.profile.workers), problem.data_holder
    able = [holder] if problem.samples_stay else [name for name in problem.workers if _joined(problem, (name,))]
    plans = {name: single_worker_plan(chain, names, name, problem.batch_size, holder) for name in able}
    limits = problem.memory_limit_bytes
    return {
        name: plan
        for name, plan in plans.items()
        if name not in limits or memory_bytes(problem, plan, name) <= limits[name]
    }


def best_chain(problem: Problem, *orders: tuple[str, ...]) -> Plan:
    """``jointdnn`` and its kind: the fastest chain of some of the workers of one of the orders, in that order.

    Who would compute no layer is left out instead of passing on, so raw samples go to the first worker that computes.
    Raises InputError when one of the workers is not there to compute; NoPlanError when no chain of them has all links
    and keeps all constraints.
    """
    for order in orders:
        for name in order:
            if name not in problem.workers:
                there = ", ".join(problem.workers)
                raise InputError(f"chain {' -> '.join(order)}: {name!r} is not one of the problem's workers {there}")
    sizes = range(1, max(map(len, orders)) + 1)
    chains = [chain for size in sizes for order in orders for chain in combinations(order, size)]
    return _fastest(problem, dict.fromkeys(chains))


def best_layer_parallel(problem: Problem) -> Plan:
    """``layer-parallel``: the fastest chain of any of the workers in any order. Raises NoPlanError."""
    sizes = range(1, len(problem.workers) + 1)
    return _fastest(problem, [order for size in sizes for order in permutations(problem.workers, size)])


def _fastest(problem: Problem, orders: Iterable[tuple[str, ...]]) -> Plan:
    """The first of the fastest plans of all chains in which every worker computes. Times within ``TIE`` are equal.

    Raises NoPlanError where there is none.
    """
    linked = [order for order in orders if _joined(problem, order)]
    if not linked:
        raise NoPlanError(
            f"chains of {', '.join(problem.workers)}: the network has no links for any on which raw samples may leave "
            f"{problem.data_holder!r} or start there"
        )
    chains = [chain for order in linked if (chain := _chain_plans(problem, order))]
    candidates = [candidate for chain in chains for candidate in chain]
    bounds_s = np.concatenate([_bounds_s(problem, chain) for chain in chains])
    if not np.isfinite(bounds_s).any():
        raise NoPlanError(f"chains of {', '.join(problem.workers)}: none keeps all memory limits")
    times_s: dict[int, float] = {}
    fastest_s = float("inf")
    for place in np.argsort(bounds_s, kind="stable").tolist():
        if bounds_s[place] > fastest_s * (1 + TIE):
            break
        times_s[place] = iteration_s(problem, candidates[place].plan(problem))
        fastest_s = min(fastest_s, times_s[place])
    first = min(place for place, time_s in times_s.items() if time_s <= fastest_s * (1 + TIE))
    return candidates[first].plan(problem)


def _joined(problem: Problem, order: tuple[str, ...]) -> bool:
    """Whether raw samples can and may reach the first worker, and each worker's activations can the next one."""
    way = order if order[0] == problem.data_holder else (problem.data_holder, *order)
    if problem.samples_stay and way != order:
        return False
    return all(problem.network.find(*pair) is not None for pair in pairwise(way))


def _chain_plans(problem: Problem, order: tuple[str, ...]) -> list[Candidate]:
    """Every combination of cuts at which each worker has a layer of its own; none where there are too few layers."""
    layers, others = problem.profile.chain.depth, len(order) - 1
    tree = Tree(order[::-1], tuple(range(-1, others)), others if problem.execution.owners else 0)
    samples = (*[0] * others, problem.batch_size)
    return [Candidate(tree, (layers, *cuts[::-1]), samples) for cuts in combinations(range(1, layers), others)]


def _bounds_s(problem: Problem, chain: list[Candidate]) -> Floats:
    """Each plan's time; (P,), for plans of one tree."""
    evaluator = Evaluator(problem, chain[0].tree)
    samples = np.array([candidate.samples for candidate in chain]).T
    return evaluator.bounds_s(Boxes(np.array([candidate.depths for candidate in chain]).T, samples, samples))
