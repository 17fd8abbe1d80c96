"""The cost model of one tree in whole numbers: the arrays that the solver's constraints are made of.

A time t becomes floor(t / unit), so that the model's time, times the unit, is at most the plan's time: what the solver
proves is a lower bound. The unit is fine enough that the times of plans near the best known one lose at most
``TIE / 2`` of it by the rounding. Times longer than the best known one are cut off just above it, where they exclude
what needs them and cannot overflow. Sizes of memory are in bytes.
"""

import math
from dataclasses import dataclass

import numpy as np

from hiertrain.cost.bounds import LONGEST_S, Floats, Integers
from hiertrain.problem.problem import Problem
from hiertrain.problem.profile import bends_of
from hiertrain.problem.tree import Tree

# Times that differ by a smaller share than this are the same to the solver.
TIE = 5e-7
# Coefficients stay below this, whatever the sizes: sums over samples and layers then fit 64 bits.
LARGEST_SUM = 2**61


@dataclass(frozen=True)
class Way:
    """One direction between two workers, for N depths of the child. Latencies count units, what is sent grains.

    A grain is a unit, or a byte where a credit in units would be too large. A message of t grains on an idle link takes
    latency + grain * max(0, t - credit).
    """

    grain: int  # in units
    credit: int  # what passes at once after a pause
    raw_latency: int
    raw: int  # per raw sample, where the source holds the data; else 0
    activation_latency: Integers  # (N,): the same for their gradients; nothing is sent at depth N
    activations: Integers  # (N,): per sample
    parameter_latency: Integers  # (N,): the same for their gradients
    parameters: Integers  # (N,)
    idle_parameters: Integers  # (N,): units of the whole message on an idle link


@dataclass(frozen=True)
class IntegerCosts:
    """Whole units of time; k workers in the tree's order, N layers. The root is its own parent.

    ``*_fixed`` is due once where there are samples, ``*_each`` for each sample. A layer whose costs bend has several
    entries there, one for the samples of each piece.
    """

    unit_s: float
    limit: int  # of the time of an iteration: longer ones are of no use
    bends: list[list[list[int]]]  # (k, N): the numbers of samples at which a piece of the layer's costs ends
    forward_fixed: Integers  # (k, N)
    forward_each: list[Integers]  # (k,), each of N and the worker's bends
    backward_fixed: Integers
    backward_each: list[Integers]
    input: list[Way]  # (k,): from the data holder
    up: list[Way]  # (k,): to the parent
    down: list[Way]  # (k,): from the parent
    update: int


def _lost(problem: Problem, tree: Tree) -> int:
    """Units that a path through the plan's events loses at most.

    Less than one for each sample and layer, forward and backward, and for each sample and the credit of each message.
    """
    return 4 * problem.batch_size * (problem.profile.chain.depth + 2 * len(tree.workers))


def scale(problem: Problem, tree: Tree) -> int:
    """How many units the best known time has: so many that less than TIE / 2 of it is lost."""
    lost = _lost(problem, tree)
    return min(int(2 * lost / TIE), LARGEST_SUM // lost)


def integer_costs(problem: Problem, tree: Tree, best_s: float, limit_s: float) -> IntegerCosts:
    """The arrays for plans of the tree that take at most ``limit_s``, near the best known time ``best_s`` > 0."""
    unit_s = max(best_s / scale(problem, tree), np.finfo(float).tiny)
    limit = int(limit_s / unit_s)

    workers = [problem.profile.worker(name).layers for name in tree.workers]
    bends = [
        [[n for n in bends_of((layer.forward, layer.backward)) if n < problem.batch_size] for layer in worker]
        for worker in workers
    ]

    def fixed(step: str) -> Integers:
        times = np.array([[getattr(layer, step).fixed_s for layer in worker] for worker in workers])
        return _whole(times, unit_s, limit + 1)

    def each(step: str) -> list[Integers]:
        slopes = [
            [getattr(layer, step).slope_s(n) for layer, ends in zip(worker, own, strict=True) for n in (0, *ends)]
            for worker, own in zip(workers, bends, strict=True)
        ]
        return [_whole(np.array(own), unit_s, limit + 1) for own in slopes]

    def way(source: str, target: str) -> Way:
        return _way(problem, source, target, unit_s, limit, LARGEST_SUM // _lost(problem, tree))

    parents = [tree.workers[max(parent, 0)] for parent in tree.parents]
    pairs = list(zip(tree.workers, parents, strict=True))
    return IntegerCosts(
        unit_s=unit_s,
        limit=limit,
        bends=bends,
        forward_fixed=fixed("forward"),
        forward_each=each("forward"),
        backward_fixed=fixed("backward"),
        backward_each=each("backward"),
        input=[way(problem.data_holder, name) for name in tree.workers],
        up=[way(name, parent) for name, parent in pairs],
        down=[way(parent, name) for name, parent in pairs],
        update=int(_whole(np.array(problem.profile.worker(tree.workers[0]).update_s), unit_s, limit + 1)),
    )


def _whole(amounts: Floats, unit: float, most: int) -> Integers:
    """Whole units, rounded down, and cut off at ``most``."""
    with np.errstate(over="ignore"):  # infinite quotients are cut off as well
        return np.floor(np.minimum(amounts / unit, most)).astype(np.int64)


def _way(problem: Problem, source: str, target: str, unit_s: float, limit: int, largest: int) -> Way:
    """The way between two workers; ``largest``: of the credit in units. A worker reaches itself at no cost."""
    chain = problem.profile.chain
    outputs = np.array([*(layer.output_bytes for layer in chain.layers[:-1]), 0.0])
    parameters = np.array(chain.parameter_prefix_bytes[1:], dtype=float)
    raw = np.array(float(problem.sample_bytes))
    latency_s = byte_s = burst_bytes = 0.0
    if source != target:
        link = problem.network.link(source, target)
        latency_s, byte_s = min(link.latency_s, LONGEST_S), min(link.transmission_s(1), LONGEST_S)
        # More than all that is ever sent is of no use.
        all_bytes = problem.batch_size * (raw + outputs.max()) + parameters[-1]
        burst_bytes = min(link.burst_bytes, float(all_bytes))
    latency = int(_whole(np.array(latency_s), unit_s, limit + 1))
    in_bytes = burst_bytes * byte_s / unit_s > largest
    grain = int(_whole(np.array(byte_s), unit_s, limit + 1)) if in_bytes else 1
    # The credit is rounded up, so that the time is not.
    credit = math.ceil(burst_bytes if in_bytes else burst_bytes * byte_s / unit_s)

    def sent(sizes: Floats) -> Integers:
        amounts, unit = (sizes, 1.0) if in_bytes else (sizes * byte_s, unit_s)
        return _whole(amounts, unit, limit // grain + credit + 1)

    idle_s = latency_s * (parameters > 0) + byte_s * np.maximum(parameters - burst_bytes, 0.0)
    return Way(
        grain=grain,
        credit=credit,
        raw_latency=latency,
        raw=int(sent(raw)) * (source == problem.data_holder),
        activation_latency=latency * (outputs > 0),
        activations=sent(outputs),
        parameter_latency=latency * (parameters > 0),
        parameters=sent(parameters),
        idle_parameters=_whole(idle_s, unit_s, limit + 1),
    )
