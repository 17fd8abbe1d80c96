"""A rooted tree of active workers: the shape that the plans of one search have in common."""

from dataclasses import dataclass
from functools import cached_property

from hiertrain.problem.execution import Execution
from hiertrain.problem.plan import Plan


@dataclass(frozen=True)
class Tree:
    """A rooted tree of active workers. Each worker stands after its parent; the root stands first."""

    workers: tuple[str, ...]
    parents: tuple[int, ...]  # the position of each worker's parent; -1 for the root
    # So many workers, from the root on, have no samples of their own and one child: from where it stops they compute
    # alone. Their layers have owners (``Execution.owners``): each its own, the next worker all others.
    alone: int = 0

    @cached_property
    def children(self) -> tuple[tuple[int, ...], ...]:
        below: list[list[int]] = [[] for _ in self.workers]
        for position, parent in enumerate(self.parents[1:], start=1):
            below[parent].append(position)
        return tuple(map(tuple, below))

    @cached_property
    def children_of(self) -> dict[str, tuple[str, ...]]:
        """The children by name."""
        return {
            name: tuple(self.workers[child] for child in children)
            for name, children in zip(self.workers, self.children, strict=True)
        }

    @cached_property
    def parent_of(self) -> dict[str, str]:
        """The parents by name, of all but the root."""
        return {name: self.workers[parent] for name, parent in zip(self.workers[1:], self.parents[1:], strict=True)}

    @cached_property
    def subtrees(self) -> tuple[tuple[int, ...], ...]:
        """The positions at and below each position."""
        below: list[tuple[int, ...]] = [(position,) for position in range(len(self.workers))]
        for position in reversed(range(1, len(self.workers))):
            below[self.parents[position]] += below[position]
        return tuple(below)

    @cached_property
    def upward(self) -> tuple[str, ...]:
        """The workers, each after its children, which keep their order."""
        levels = [0] * len(self.workers)
        for position, parent in enumerate(self.parents[1:], start=1):
            levels[position] = levels[parent] + 1
        order = sorted(range(len(self.workers)), key=lambda position: -levels[position])
        return tuple(self.workers[position] for position in order)


def tree_of(plan: Plan, execution: Execution) -> Tree:
    """The tree of the plan's active workers, children of one parent by depth, then by name."""
    order, parents = [plan.root], [-1]
    for position, name in enumerate(order):  # grows while it is read
        children = plan.children(name)
        order += children
        parents += [position] * len(children)
    # Whoever is below carries all samples.
    alone = sum(plan.carried[name] == plan.batch_size for name in order[1:]) if execution.owners else 0
    return Tree(tuple(order), tuple(parents), alone)
