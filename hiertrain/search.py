"""Search without a solver: which trees there are, what their plans take at least, a heuristic for a first plan of each.

The heuristic evaluates all depths with coarse splits of the mini-batch, then improves the best of them by moving
samples and depths in shrinking steps. Boxes that hold only plans slower than the best known one are left out, by
halving them a few times, which leaves a small part of each tree to the solver. Times in seconds.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import combinations, permutations, product

import numpy as np

from hiertrain.cost.bounds import Boxes, Evaluator, Floats, Integers, any_plan_bound_s
from hiertrain.cost.closed_form import iteration_s
from hiertrain.cost.integers import TIE
from hiertrain.problem.plan import Assignment, Plan
from hiertrain.problem.problem import Problem
from hiertrain.problem.solution import Shape
from hiertrain.problem.tree import Tree

# Trees with more combinations of depths than this are not bounded.
NARROWING_LIMIT = 100_000
# How often the boxes of a tree are halved before each attempt to solve it, and how many boxes at most.
HALVINGS = 10
BOXES_LIMIT = 8_192
# How often they are halved so, at most, before the heuristic: it takes longer.
NARROWINGS = 2
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


def trees(problem: Problem, shape: Shape) -> Iterator[Tree]:
    """All trees of active workers that may have a plan, whatever the layers ask for, in the order that settles ties.

    Fewest workers first; then by the set of workers, the root and the parents, each in the profile's order. Three
    workers have 18 trees, five 1,060 and eight 3.4 million.
    """
    for size in range(1, len(problem.workers) + 1):
        for subset in combinations(problem.workers, size):
            for root in subset:
                if problem.root in (None, root):
                    yield from (tree for tree in _rooted_trees(subset, root, shape) if _admits(problem, tree))


def rank(problem: Problem, tree: Tree) -> tuple[int, ...]:
    """What the order of ``trees`` sorts by."""
    place = {name: number for number, name in enumerate(problem.workers)}
    parents = dict(zip(tree.workers, tree.parents, strict=True))
    subset = sorted(tree.workers, key=place.__getitem__)
    above = [place[tree.workers[parents[name]]] for name in subset if name != tree.workers[0]]
    return len(subset), *(place[name] for name in subset), place[tree.workers[0]], *above


def _rooted_trees(subset: tuple[str, ...], root: str, shape: Shape) -> Iterator[Tree]:
    others = [name for name in subset if name != root]
    for parents in product([root] if shape == "star" else subset, repeat=len(others)):
        tree = _tree(root, dict(zip(others, parents, strict=True)))
        if len(tree.workers) == len(subset):  # otherwise the parents form a cycle
            yield tree


def _tree(root: str, parent_of: Mapping[str, str]) -> Tree:
    """The root and all below it, breadth first."""
    order = [root]
    for name in order:  # grows while it is read
        order += [child for child, parent in parent_of.items() if parent == name]
    return Tree(tuple(order), (-1, *(order.index(parent_of[name]) for name in order[1:])))


def larger(problem: Problem, tree: Tree, shape: Shape) -> Iterator[Tree]:
    """The trees that the problem admits and that have one leaf more; those whose leaf is the root's come first."""
    parent_of = {name: tree.workers[parent] for name, parent in zip(tree.workers[1:], tree.parents[1:], strict=True)}
    for parent in tree.workers[: 1 if shape == "star" else None]:
        for leaf in problem.workers:
            if leaf not in tree.workers:
                added = {**parent_of, leaf: parent}
                grown = _tree(tree.workers[0], {name: added[name] for name in problem.workers if name in added})
                if _admits(problem, grown):
                    yield grown


def _admits(problem: Problem, tree: Tree) -> bool:
    low, high = sample_ranges(problem, tree)
    return bool((low <= high).all() and low.sum() <= problem.batch_size <= high.sum())


def sample_ranges(problem: Problem, tree: Tree) -> tuple[Integers, Integers]:
    """The least and the greatest number of own samples per worker, both (k,): a leaf has what the first layer takes."""
    low = np.array([0 if children else problem.profile.layers[0].least_samples for children in tree.children])
    high = problem.batch_size - low.sum() + low
    if problem.samples_stay:
        high[[name != problem.data_holder for name in tree.workers]] = 0
    return low, high


def _least_depth(problem: Problem) -> int:
    """Of a worker that computes."""
    return problem.profile.chain.depth if problem.whole_model else 1


def ranges(problem: Problem, tree: Tree, within: Boxes | None) -> tuple[list[list[int]], list[list[int]]]:
    """Each worker's least and greatest depth and number of own samples in the boxes; without boxes, in all plans."""
    if within is None:
        layers = problem.profile.chain.depth
        low, high = sample_ranges(problem, tree)
        least = _least_depth(problem)
        return [[layers if parent < 0 else least, layers] for parent in tree.parents], np.array([low, high]).T.tolist()
    depths = np.array([within.depths.min(axis=1), within.depths.max(axis=1)]).T
    samples = np.array([within.low.min(axis=1), within.high.max(axis=1)]).T
    return depths.tolist(), samples.tolist()


def depth_grid(tree: Tree, depths: Integers, chain_depth: int) -> Integers:
    """All combinations of the given depths with no worker deeper than its parent; (k, P). The root's depth is N."""
    grid = np.full((1, 1), chain_depth)
    for parent in tree.parents[1:]:
        combined = np.concatenate([np.repeat(grid, len(depths), axis=1), [np.tile(depths, grid.shape[1])]])
        grid = combined[:, combined[-1] <= combined[parent]]
    return grid


def _all_boxes(evaluator: Evaluator) -> Boxes:
    """All plans of the tree: one box per combination of depths that holds every split of the mini-batch."""
    layers = np.arange(_least_depth(evaluator.problem), evaluator.depth + 1)
    depths = depth_grid(evaluator.tree, layers, evaluator.depth)
    low, high = sample_ranges(evaluator.problem, evaluator.tree)
    size = depths.shape[1]
    return Boxes(depths, np.repeat(low[:, np.newaxis], size, axis=1), np.repeat(high[:, np.newaxis], size, axis=1))


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
    some = np.unique(np.linspace(_least_depth(evaluator.problem), chain_depth, count).round().astype(int))
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
    valid = (depths >= _least_depth(evaluator.problem)).all(axis=0)
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


@dataclass(eq=False)
class Searched:
    """What is known of one tree: bounds on its plans, and its best plan so far."""

    tree: Tree
    bound_s: float  # on all plans of the tree
    boxes: Boxes | None = None  # where its best plans are; None: anywhere
    bounds_s: Floats = field(default_factory=lambda: np.empty(0))  # on the plans of each box
    time_s: float = float("inf")
    plan: Plan | None = None

    def excluded(self, problem: Problem, limit_s: float) -> bool:
        """Whether bounds tell that no plan is within the limit; ``bound_s`` is infinite then."""
        trial = Searched(self.tree, self.bound_s)
        for _ in range(NARROWINGS if self.bound_s <= limit_s else 0):
            trial.narrow(problem, limit_s)
        if self.bound_s > limit_s or trial.closed:
            self.bound_s = float("inf")
        return self.bound_s == float("inf")

    def find(self, problem: Problem) -> None:
        """Keep the heuristic's plan."""
        found = good_plan(Evaluator(problem, self.tree))
        if found is not None:
            self.record(problem, found)

    def record(self, problem: Problem, found: Candidate) -> None:
        """Keep a plan if it is the tree's best. Its time is the cost model's."""
        plan = found.plan(problem)
        time_s = iteration_s(problem, plan)
        if time_s < self.time_s:
            self.plan, self.time_s = plan, time_s

    @property
    def closed(self) -> bool:
        """Whether no plan is within the limit to which the boxes were narrowed."""
        return self.boxes is not None and self.bounds_s.size == 0

    def narrow(self, problem: Problem, limit_s: float) -> None:
        """Halve the boxes several times, and drop those whose bound is above the limit."""
        evaluator = Evaluator(problem, self.tree)
        if not _can_narrow(evaluator):
            return
        if self.boxes is None:
            self.boxes = _all_boxes(evaluator)
            self.bounds_s = evaluator.bounds_s(self.boxes)
        self._keep(self.boxes, self.bounds_s, limit_s)
        for _ in range(HALVINGS):
            if 0 < self.bounds_s.size <= BOXES_LIMIT:
                halves = _halves(self.boxes, problem.batch_size)
                self._keep(halves, evaluator.bounds_s(halves), limit_s)

    def _keep(self, boxes: Boxes, bounds_s: Floats, limit_s: float) -> None:
        within = np.flatnonzero(bounds_s <= limit_s)
        self.boxes, self.bounds_s = boxes.take(within), bounds_s[within]
        self.bound_s = max(self.bound_s, float(self.bounds_s.min(initial=limit_s)))


def _halves(boxes: Boxes, batch_size: int) -> Boxes:
    """Each box cut in two at its widest range of samples, 0 apart from the rest; without what no split can reach."""
    column = np.arange(boxes.depths.shape[1])
    widest = np.argmax(boxes.high - boxes.low, axis=0)
    first, last = boxes.low[widest, column], boxes.high[widest, column]
    middle = np.where(first == 0, 0, (first + last) // 2)
    lower_high, upper_low = boxes.high.copy(), boxes.low.copy()
    lower_high[widest, column], upper_low[widest, column] = middle, middle + 1
    depths = np.concatenate([boxes.depths, boxes.depths], axis=1)
    low = np.concatenate([boxes.low, upper_low], axis=1)
    high = np.concatenate([lower_high, boxes.high], axis=1)
    low, high = (
        np.maximum(low, batch_size - (high.sum(axis=0) - high)),
        np.minimum(high, batch_size - (low.sum(axis=0) - low)),
    )
    return Boxes(depths, low, high).take(np.flatnonzero((low <= high).all(axis=0)))


def bounded(problem: Problem, tree: Tree) -> Searched:
    """A tree with a bound on its plans; infinite where none of them keeps all constraints."""
    evaluator = Evaluator(problem, tree)
    if _can_narrow(evaluator):
        return Searched(tree, float(evaluator.bounds_s(_all_boxes(evaluator)).min()))
    return Searched(tree, any_plan_bound_s(problem))


def _can_narrow(evaluator: Evaluator) -> bool:
    """Whether the tree has few enough depths to bound."""
    return evaluator.depth ** (len(evaluator.tree.workers) - 1) <= NARROWING_LIMIT


def least_s(search: list[Searched]) -> float:
    """The time of the best plan of all trees; infinite where there is none."""
    return min((searched.time_s for searched in search), default=float("inf"))


def chosen(search: list[Searched]) -> Searched:
    """The first tree, in the order that settles ties, whose plan equals the best."""
    best_s = least_s(search)
    return next(searched for searched in search if searched.time_s <= best_s * (1 + TIE))


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
