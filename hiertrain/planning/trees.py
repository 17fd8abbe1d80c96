"""Which trees of workers there are, and the depths and samples that their plans may have."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np

from hiertrain.cost.bounds import Boxes, Integers
from hiertrain.problem.problem import Problem
from hiertrain.problem.solution import Shape
from hiertrain.problem.tree import Tree

# Of so many trees without a plan, the last one is followed by a look at the clock.
STOP_EVERY = 1_000


def trees(problem: Problem, shape: Shape, stop: Callable[[], bool] = lambda: False) -> Iterator[Tree]:
    """All trees of active workers that may have a plan, whatever the layers ask for, in the order that settles ties.

    Fewest workers first; then by the set of workers, the root and the parents, each in the profile's order. Three
    workers have 18 trees, five 1,060 and eight 3.4 million. ``stop`` is asked now and then between trees that have no
    plan, of which there may be very many; where it says so, there are no more.
    """
    without_plan = 0
    for tree in _all_trees(problem, shape):
        if _admits(problem, tree):
            yield tree
            continue
        without_plan += 1
        if without_plan % STOP_EVERY == 0 and stop():
            return


def _all_trees(problem: Problem, shape: Shape) -> Iterator[Tree]:
    for size in range(1, len(problem.workers) + 1):
        for subset in combinations(problem.workers, size):
            for root in subset:
                if problem.root in (None, root):
                    for tree in _rooted_trees(subset, root, shape):
                        yield from _variants(problem, tree)


def _variants(problem: Problem, tree: Tree) -> Iterator[Tree]:
    """The tree with each number of workers that may compute alone; with none where layers have no owners."""
    yield tree
    alone = 0
    while problem.execution.owners and len(tree.children[alone]) == 1:
        alone += 1
        yield replace(tree, alone=alone)


def rank(problem: Problem, tree: Tree) -> tuple[int, ...]:
    """What the order of ``trees`` sorts by."""
    place = {name: number for number, name in enumerate(problem.workers)}
    parents = dict(zip(tree.workers, tree.parents, strict=True))
    subset = sorted(tree.workers, key=place.__getitem__)
    above = [place[tree.workers[parents[name]]] for name in subset if name != tree.workers[0]]
    return len(subset), *(place[name] for name in subset), place[tree.workers[0]], *above, tree.alone


def _rooted_trees(subset: tuple[str, ...], root: str, shape: Shape) -> Iterator[Tree]:
    others = [name for name in subset if name != root]
    for parent_of in _without_cycle(others, [root] if shape == "star" else subset, {}):
        yield _tree(root, parent_of)


def _without_cycle(
    others: Sequence[str], candidates: Sequence[str], parent_of: Mapping[str, str]
) -> Iterator[Mapping[str, str]]:
    """Every choice of parents for the others after those that have one, in the order of the candidates.

    No choice leads to a dead end: who has no parent yet can always be the root's child.
    """
    if len(parent_of) == len(others):
        yield parent_of
        return
    name = others[len(parent_of)]
    for parent in candidates:
        above = parent
        while above in parent_of:
            above = parent_of[above]
        if above != name:
            yield from _without_cycle(others, candidates, {**parent_of, name: parent})


def _tree(root: str, parent_of: Mapping[str, str]) -> Tree:
    """The root and all below it, breadth first."""
    below = defaultdict(list)
    for name, parent in parent_of.items():
        below[parent].append(name)
    order, place = [root], {root: 0}
    for name in order:  # grows while it is read
        place |= {child: len(order) + number for number, child in enumerate(below[name])}
        order += below[name]
    return Tree(tuple(order), (-1, *(place[parent_of[name]] for name in order[1:])))


def larger(problem: Problem, tree: Tree, shape: Shape) -> Iterator[Tree]:
    """The trees that the problem admits and that have one leaf more; those whose leaf is the root's come first."""
    for parent in tree.workers[: 1 if shape == "star" else None]:
        for leaf in problem.workers:
            if leaf not in tree.workers:
                added = {**tree.parent_of, leaf: parent}
                grown = _tree(tree.workers[0], {name: added[name] for name in problem.workers if name in added})
                yield from (variant for variant in _variants(problem, grown) if _admits(problem, variant))


def _admits(problem: Problem, tree: Tree) -> bool:
    if any(problem.network.find(name, parent) is None for name, parent in tree.parent_of.items()):
        return False
    low, high = sample_ranges(problem, tree)
    return bool((low <= high).all() and low.sum() <= problem.batch_size <= high.sum())


def sample_ranges(problem: Problem, tree: Tree) -> tuple[Integers, Integers]:
    """The least and the greatest number of own samples per worker, both (k,).

    A leaf has what the first layer takes. So has the last owner of layers if it has one child: else that were the last.
    """
    starting = [not children for children in tree.children]
    if problem.execution.owners:
        starting[tree.alone] |= len(tree.children[tree.alone]) == 1
    low = np.array(starting) * problem.profile.layers[0].least_samples
    high = problem.batch_size - low.sum() + low
    high[: tree.alone] = 0
    high[[name != problem.data_holder and not _gets_samples(problem, name) for name in tree.workers]] = 0
    return low, high


def _gets_samples(problem: Problem, name: str) -> bool:
    """Whether the data holder may and can send raw samples to another worker."""
    return not problem.samples_stay and problem.network.find(problem.data_holder, name) is not None


def least_depth(problem: Problem) -> int:
    """Of a worker that computes."""
    return problem.profile.chain.depth if problem.whole_model else 1


def ranges(problem: Problem, tree: Tree, within: Boxes | None) -> tuple[list[list[int]], list[list[int]]]:
    """Each worker's least and greatest depth and number of own samples in the boxes; without boxes, in all plans."""
    if within is None:
        layers = problem.profile.chain.depth
        low, high = sample_ranges(problem, tree)
        least = least_depth(problem)
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
