"""The shape of a plan alone: a rooted tree of workers, whose depths and samples are still open."""

from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Tree:
    """A rooted tree of active workers. Each worker stands after its parent; the root stands first."""

    workers: tuple[str, ...]
    parents: tuple[int, ...]  # the position of each worker's parent; -1 for the root

    @cached_property
    def children(self) -> tuple[tuple[int, ...], ...]:
        return tuple(
            tuple(child for child, parent in enumerate(self.parents) if parent == position)
            for position in range(len(self.workers))
        )

    @cached_property
    def subtrees(self) -> tuple[tuple[int, ...], ...]:
        """The positions at and below each position."""
        below: list[tuple[int, ...]] = [(position,) for position in range(len(self.workers))]
        for position in reversed(range(1, len(self.workers))):
            below[self.parents[position]] += below[position]
        return tuple(below)
