"""The cost model of one tree in whole numbers: the arrays that the solver's constraints are made of.

A time t becomes floor(t / unit), so that the model's time, times the unit, is at most the plan's time: what the solver
proves is a lower bound. The unit is fine enough that the times of plans near the best known one lose at most
``TIE / 2`` of it by the rounding. Times longer than the best known one are cut off just above it, where they exclude
what needs them and cannot overflow. Sizes of memory are in bytes.
"""

import math
from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from hiertrain.cost.bounds import LONGEST_S, Floats, Integers
from hiertrain.problem.problem import Problem
from hiertrain.problem.profile import bends_of
from hiertrain.problem.tree import Tree
from hiertrain.program.actions import Op
from hiertrain.program.passes import template_of
from hiertrain.program.template import Message, Template

# Times that differ by a smaller share than this are the same to the solver.
TIE = 5e-7
# In an overlapped iteration nothing happens a period before its update or earlier, nor two after it or later: what is
# sent ahead arrives there. So many periods hold it all.
OVERLAP = 4
# Coefficients stay below this, whatever the sizes: sums over samples and layers then fit 64 bits.
LARGEST_SUM = 2**61


@dataclass(frozen=True)
class Sent:
    """A message of the template, by the boundary 0..N that it belongs to. Latencies count units, sizes grains.

    A grain is a unit, or a byte where a credit in units would be too large. A message of t grains on an idle link takes
    latency + grain * max(0, t - credit).
    """

    grain: int  # in units
    credit: int  # what passes at once after a pause
    latency: Integers  # (N + 1,): where anything is sent
    fixed: Integers  # (N + 1,): of any samples
    each: Integers  # (N + 1,): per sample
    idle: Integers  # (N + 1,): units of the fixed part on an idle link, latency included


@dataclass(frozen=True)
class IntegerCosts:
    """Whole units of time; k workers in the tree's order, N layers.

    ``fixed`` is due once where there are samples, ``each`` for each sample. A layer whose costs bend has several
    entries there, one for the samples of each piece.
    """

    unit_s: float
    limit: int  # of the time of an iteration: longer ones are of no use
    horizon: int  # of when anything happens in it
    template: Template
    bends: list[list[list[int]]]  # (k, N): the numbers of samples at which a piece of the layer's costs ends
    fixed: dict[tuple[Op, str], Integers]  # by operation and worker; (N,)
    each: dict[tuple[Op, str], Integers]  # (N and the worker's bends,)
    update: dict[str, Integers]  # by worker; (N,)
    sent: dict[int, Sent]  # by the message's place in the template


def _lost(problem: Problem, tree: Tree) -> int:
    """Units that a path through the plan's events loses at most.

    Less than one for each sample and the fixed cost of each layer, forward and backward; and of each message for each
    sample, its fixed size, its latency and its credit. Where that is so much that sums would not fit 64 bits, units are
    coarser than ``scale`` wants, and what the solver proves is a little further off.
    """
    return 4 * (problem.batch_size + 1) * (problem.profile.chain.depth + 2 * len(tree.workers))


def scale(problem: Problem, tree: Tree) -> int:
    """How many units the best known time has: so many that less than TIE / 2 of it is lost."""
    lost = _lost(problem, tree)
    return min(int(2 * lost / TIE), LARGEST_SUM // (lost * OVERLAP))


def integer_costs(problem: Problem, tree: Tree, best_s: float, limit_s: float) -> IntegerCosts:
    """The arrays for plans of the tree that take at most ``limit_s``, near the best known time ``best_s`` > 0."""
    unit_s = max(best_s / scale(problem, tree), np.finfo(float).tiny)
    limit = int(limit_s / unit_s)
    template = template_of(tree, problem.profile.chain, problem.data_holder, problem.execution)
    horizon = limit * OVERLAP if template.overlapped else limit

    workers = [problem.profile.worker(name).layers for name in tree.workers]
    bends = [
        [[n for n in bends_of((layer.forward, layer.backward)) if n < problem.batch_size] for layer in worker]
        for worker in workers
    ]

    def whole(times_s: list[float]) -> Integers:
        return _whole(np.array(times_s), unit_s, horizon + 1)

    fixed, each = {}, {}
    for name, worker, ends in zip(tree.workers, workers, bends, strict=True):
        for op in (Op.FORWARD, Op.BACKWARD):
            costs = [getattr(layer, op) for layer in worker]
            fixed[op, name] = whole([cost.fixed_s for cost in costs])
            each[op, name] = whole([cost.slope_s(n) for cost, own in zip(costs, ends, strict=True) for n in (0, *own)])
    messages = {number: task for number, task in enumerate(template.tasks) if isinstance(task, Message)}
    most_bytes: dict[tuple[str, str], int] = defaultdict(int)  # more credit than that is of no use
    for task in messages.values():
        most_bytes[task.source, task.target] += problem.batch_size * max(task.size.each) + max(task.size.fixed)
    largest = LARGEST_SUM // _lost(problem, tree)
    return IntegerCosts(
        unit_s=unit_s,
        limit=limit,
        horizon=horizon,
        template=template,
        bends=bends,
        fixed=fixed,
        each=each,
        update={
            name: whole([layer.update_s for layer in own]) for name, own in zip(tree.workers, workers, strict=True)
        },
        sent={
            number: _sent(problem, task, most_bytes[task.source, task.target], unit_s, horizon, largest)
            for number, task in messages.items()
        },
    )


def _whole(amounts: Floats, unit: float, most: int) -> Integers:
    """Whole units, rounded down, and cut off at ``most``."""
    with np.errstate(over="ignore"):  # infinite quotients are cut off as well
        return np.floor(np.minimum(amounts / unit, most)).astype(np.int64)


def _sent(problem: Problem, message: Message, most_bytes: int, unit_s: float, horizon: int, largest: int) -> Sent:
    """A message in whole numbers; ``most_bytes``: that its lane ever carries; ``largest``: of the credit in units."""
    fixed, each = np.array(message.size.fixed, dtype=float), np.array(message.size.each, dtype=float)
    link = problem.network.find(message.source, message.target)
    latency_s = byte_s = burst_bytes = 0.0
    if link is not None:  # else nothing is sent
        latency_s, byte_s = min(link.latency_s, LONGEST_S), min(link.transmission_s(1), LONGEST_S)
        burst_bytes = min(link.burst_bytes, float(most_bytes))
    in_bytes = burst_bytes * byte_s / unit_s > largest and byte_s >= unit_s
    grain = int(_whole(np.array(byte_s), unit_s, horizon + 1)) if in_bytes else 1
    # The credit is rounded up, so that the time is not.
    credit = math.ceil(burst_bytes if in_bytes else burst_bytes * byte_s / unit_s)

    def grains(sizes: Floats) -> Integers:
        amounts, unit = (sizes, 1.0) if in_bytes else (sizes * byte_s, unit_s)
        return _whole(amounts, unit, horizon // grain + credit + 1)

    idle_s = latency_s * (fixed > 0) + byte_s * np.maximum(fixed - burst_bytes, 0.0)
    return Sent(
        grain=grain,
        credit=credit,
        latency=int(_whole(np.array(latency_s), unit_s, horizon + 1)) * ((fixed > 0) | (each > 0)),
        fixed=grains(fixed),
        each=grains(each),
        idle=_whole(idle_s, unit_s, horizon + 1),
    )
