"""A heuristic for a first plan of a tree.

It evaluates all depths with coarse splits of the mini-batch, then improves the best of them by moving samples and
depths in shrinking steps. Times in seconds.
"""

from dataclasses import dataclass
from itertools import permutations, product

import numpy as np

from hiertrain.cost.bounds import Boxes, Evaluator, Floats, Integers
from hiertrain.planning.trees import depth_grid, least_depth, sample_ranges
from hiertrain.problem.plan import Assignment, Plan
from hiertrain.problem.problem import Problem
from hiertrain.problem.tree import Tree

# Trees with more combinations of depths than this are searched on a coarser grid of depths.
DEPTHS_LIMIT = 1_600
# Own samples are first tried in this many steps, shared between the tree's edges; the best KEPT plans are improved.
SPLIT_STEPS = 16
KEPT = 24
# Where there are more ways to move the depths of a tree's workers, one of them is moved at a time.
DEPTH_MOVES_LIMIT = 27


@dataclass(frozen=True)
class Candidate:
    """One plan of a tree, by the positions of the tree's workers."""

    tree: Tree
    depths: tuple[int, ...]
    samples: tuple[int, ...]

    def plan(self, problem: Problem) -> Plan:
        """The plan; workers outside of the tree hang below the root with depth 0."""
        tree = self.tree
        active = {
            name: Assignment(parent=tree.workers[parent] if parent >= 0 else None, depth=depth, samples=samples)
            for name, parent, depth, samples in zip(tree.workers, tree.parents, self.depths, self.samples, strict=True)
        }
        idle = Assignment(parent=tree.workers[0], depth=0, samples=0)
        return Plan(
            batch_size=problem.batch_size,
            data_holder=problem.data_holder,
            workers={name: active.get(name, idle) for name in problem.profile.workers},
        )


def good_plan(evaluator: Evaluator) -> Candidate | None:
    """The heuristic's best plan of the evaluator's tree; None where it finds none that keeps all constraints."""
    depths, samples = _coarse(evaluator)
    times = _times(evaluator, depths, samples)
    best = np.argsort(times, kind="stable")[:KEPT]
    depths, samples, times = depths[:, best], samples[:, best], times[best]
    step = max(1, evaluator.problem.batch_size // SPLIT_STEPS)
    while np.isfinite(times[0]):
        before = times[0]
        depths, samples, times = _improve(evaluator, depths, samples, step)
        if step == 1 and times[0] >= before:
            break
        step = max(1, step // 2)
    if not np.isfinite(times[0]):
        return None
    return Candidate(evaluator.tree, tuple(depths[:, 0].tolist()), tuple(samples[:, 0].tolist()))


def _times(evaluator: Evaluator, depths: Integers, samples: Integers) -> Floats:
    return evaluator.bounds_s(Boxes(depths, samples, samples))


def _coarse(evaluator: Evaluator) -> tuple[Integers, Integers]:
    """Every combination of depths with every coarse split; both (k, P)."""
    tree, chain_depth = evaluator.tree, evaluator.depth
    count = max(2, min(chain_depth, int(DEPTHS_LIMIT ** (1 / max(1, len(tree.parents) - 1)))))
    some = np.unique(np.linspace(least_depth(evaluator.problem), chain_depth, count).round().astype(int))
    depths, splits = depth_grid(tree, some, chain_depth), _coarse_splits(evaluator)
    return np.repeat(depths, splits.shape[1], axis=1), np.tile(splits, depths.shape[1])


def _coarse_splits(evaluator: Evaluator) -> Integers:
    """Splits of the mini-batch in equal steps; (k, P). The worker with the widest range takes what is left."""
    low, high = sample_ranges(evaluator.problem, evaluator.tree)
    widest = int(np.argmax(high - low))
    steps = max(2, SPLIT_STEPS // max(1, len(low) - 1))
    grids = [np.unique(np.linspace(a, b, steps + 1).round().astype(int)) for a, b in zip(low, high, strict=True)]
    grids[widest] = np.zeros(1, dtype=int)
    splits = np.array([axis.ravel() for axis in np.meshgrid(*grids, indexing="ij")])
    splits[widest] = evaluator.problem.batch_size - splits.sum(axis=0)
    inside = (splits[widest] >= low[widest]) & (splits[widest] <= high[widest])
    return splits[:, inside]


def _improve(evaluator: Evaluator, depths: Integers, samples: Integers, step: int) -> tuple[Integers, Integers, Floats]:
    """The best KEPT plans among the given ones and their neighbours at ``step`` samples and one layer."""
    tree = evaluator.tree
    size = len(tree.workers)
    low, high = sample_ranges(evaluator.problem, tree)
    identity = np.eye(size, dtype=int)
    if 3 ** (size - 1) <= DEPTH_MOVES_LIMIT:
        depth_moves = np.array(list(product((0,), *[(-1, 0, 1)] * (size - 1)))).T
    else:
        depth_moves = np.concatenate([0 * identity[:, :1], -identity[:, 1:], identity[:, 1:]], axis=1)
    sample_moves = np.array([identity[0] * 0, *(identity[a] - identity[b] for a, b in permutations(range(size), 2))]).T
    moved_depths = depths[:, :, None, None] + depth_moves[:, None, :, None]
    moved_samples = samples[:, :, None, None] + step * sample_moves[:, None, None, :]
    shape = np.broadcast_shapes(moved_depths.shape, moved_samples.shape)
    depths, samples = (np.broadcast_to(moved, shape).reshape(size, -1) for moved in (moved_depths, moved_samples))
    valid = (depths >= least_depth(evaluator.problem)).all(axis=0)
    valid &= (samples >= low[:, None]).all(axis=0) & (samples <= high[:, None]).all(axis=0)
    for position, parent in enumerate(tree.parents[1:], start=1):
        valid &= depths[position] <= depths[parent]
    both = _different(np.concatenate([depths[:, valid], samples[:, valid]]))
    depths, samples = both[:size], both[size:]
    times = _times(evaluator, depths, samples)
    best = np.argsort(times, kind="stable")[:KEPT]
    return depths[:, best], samples[:, best], times[best]


def _different(columns: Integers) -> Integers:
    """The different ones, in lexicographic order: what ``np.unique`` gives, in a fraction of its time."""
    columns = columns[:, np.lexsort(columns[::-1])]
    return columns[:, np.append(True, (columns[:, 1:] != columns[:, :-1]).any(axis=0))]
