"""The cost model of one tree in whole numbers: the arrays that the solver's constraints are made of.

A time t becomes floor(t / unit), so that the model's time, times the unit, is at most the plan's time: what the solver
proves is a lower bound. The unit is fine enough that the times of plans near the best known one lose at most
``TIE / 2`` of it by the rounding. Times longer than the best known one are cut off just above it, where they exclude
what needs them and cannot overflow. Sizes of memory are in bytes.
"""

from dataclasses import dataclass

import numpy as np

from hiertrain.bounds import LONGEST_S, Floats, Integers, Tree
from hiertrain.plan import Problem

# Times that differ by a smaller share than this are the same to the solver.
TIE = 5e-7
# Coefficients stay below this, whatever the sizes: sums over samples and layers then fit 64 bits.
LARGEST_SUM = 2**61


@dataclass(frozen=True)
class IntegerCosts:
    """Whole units of time; k workers in the tree's order, N layers. Row 0 of what concerns the parent is unused.

    ``*_fixed`` is due once where there are samples, ``*_each`` for each sample.
    """

    unit_s: float
    limit: int  # of the time of an iteration: longer ones are of no use
    forward_fixed: Integers  # (k, N)
    forward_each: Integers
    backward_fixed: Integers
    backward_each: Integers
    input_fixed: Integers  # (k,): raw samples from the data holder
    input_each: Integers
    queue_each: Integers  # (k,): per own sample of the parent, where the worker is the data holder; 0 for others
    up_fixed: Integers  # (k, N): activations to the parent, if the depth is 1 .. N; nothing is sent at depth N
    up_each: Integers
    down_fixed: Integers  # (k, N): their gradients from the parent
    down_each: Integers
    gradients: Integers  # (k, N): parameter gradients to the parent, for the depths 1 .. N
    weights: Integers  # (k, N): weights from the parent
    update: int
    sends_activations: list[bool]  # (N,): by depth, whether activations have a size
    sends_gradients: list[bool]  # (N,)


def scale(problem: Problem, tree: Tree) -> int:
    """How many units the best known time has.

    A path through the plan's events loses less than one unit for each sample and layer, forward and backward, and for
    each message, so this many units keep the loss below TIE / 2.
    """
    lost = 4 * problem.batch_size * (problem.profile.chain.depth + len(tree.workers) + 1)
    return min(int(2 * lost / TIE), LARGEST_SUM // lost)


def integer_costs(problem: Problem, tree: Tree, best_s: float, limit_s: float) -> IntegerCosts:
    """The arrays for plans of the tree that take at most ``limit_s``, near the best known time ``best_s`` > 0."""
    chain = problem.profile.chain
    unit_s = max(best_s / scale(problem, tree), np.finfo(float).tiny)
    limit = int(limit_s / unit_s)

    def whole(seconds: Floats) -> Integers:
        with np.errstate(over="ignore"):  # infinite quotients are cut off as well
            return np.floor(np.minimum(seconds / unit_s, limit + 1.0)).astype(np.int64)

    def layers(step: str, part: str) -> Integers:
        workers = [problem.profile.worker(name).layers for name in tree.workers]
        return whole(np.array([[getattr(getattr(times, step), part) for times in worker] for worker in workers]))

    def messages(pairs: list[tuple[str, str]], sizes: Floats) -> tuple[Integers, Integers]:
        """Latency where there is something to send, and transmission; both (pairs, sizes)."""
        links = [None if source == target else problem.network.link(source, target) for source, target in pairs]
        latency_s = np.array([[min(link.latency_s, LONGEST_S) if link else 0.0] for link in links])
        byte_s = np.array([[min(link.transmission_s(1), LONGEST_S) if link else 0.0] for link in links])
        return whole(latency_s * (sizes > 0)), whole(byte_s * sizes)

    def total(pairs: list[tuple[str, str]], sizes: Floats) -> Integers:
        return np.minimum(sum(messages(pairs, sizes)), limit + 1)

    up = [(name, tree.workers[max(parent, 0)]) for name, parent in zip(tree.workers, tree.parents, strict=True)]
    down = [(parent, name) for name, parent in up]
    outputs = np.array([*(layer.output_bytes for layer in chain.layers[:-1]), 0.0])
    parameters = np.array(chain.parameter_prefix_bytes[1:], dtype=float)
    raw = np.array([float(problem.sample_bytes)])
    input_fixed, input_each = messages([(problem.data_holder, name) for name in tree.workers], raw)
    holds = np.array([name == problem.data_holder for name in tree.workers])
    up_fixed, up_each = messages(up, outputs)
    down_fixed, down_each = messages(down, outputs)
    return IntegerCosts(
        unit_s=unit_s,
        limit=limit,
        forward_fixed=layers("forward", "fixed_s"),
        forward_each=layers("forward", "per_sample_s"),
        backward_fixed=layers("backward", "fixed_s"),
        backward_each=layers("backward", "per_sample_s"),
        input_fixed=input_fixed[:, 0],
        input_each=input_each[:, 0],
        queue_each=messages(up, raw)[1][:, 0] * holds,
        up_fixed=up_fixed,
        up_each=up_each,
        down_fixed=down_fixed,
        down_each=down_each,
        gradients=total(up, parameters),
        weights=total(down, parameters),
        update=int(whole(np.array(problem.profile.worker(tree.workers[0]).update_s))),
        sends_activations=(outputs > 0).tolist(),
        sends_gradients=(parameters > 0).tolist(),
    )
