"""The cost model over many plans of one tree at once, and lower bounds over ranges of plans.

A *box* is a tree with the depth of each worker and a range of own samples for each. Every equation of ``cost`` rises
with every number of samples, so the cost model at the least number of samples that each step can have within the box
is a lower bound on all its plans; for a box of a single plan it is that plan's time. Times in seconds, sizes in bytes.
Arrays have the shape (k, P), for the k workers of the tree in its order and P boxes, or (P,) for one worker.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from hiertrain.plan import Problem
from hiertrain.profile import LayerCost

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Mask = NDArray[np.bool_]

# Longer times are cut off at this, so that sums of them stay finite.
LONGEST_S = 1e200
# Boxes that one pass takes at most; more would leave the processor's cache.
PASS_LIMIT = 16_384


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


@dataclass(frozen=True)
class Boxes:
    """P boxes of one tree; each array (k, P)."""

    depths: Integers
    low: Integers  # own samples, at least
    high: Integers  # own samples, at most

    def take(self, which: Integers | Mask | slice) -> "Boxes":
        return Boxes(self.depths[:, which], self.low[:, which], self.high[:, which])


@dataclass(frozen=True)
class _Lines:
    """Costs ``fixed + each * n``, 0 for n = 0, of layers a + 1 .. b at entry (a, b); both (N + 1, N + 1)."""

    fixed: Floats
    each: Floats

    def at(self, after: Integers, last: Integers, samples: Integers) -> Floats:
        entry = after * len(self.fixed) + last
        return self.fixed.ravel()[entry] * (samples > 0) + self.each.ravel()[entry] * samples


@dataclass(frozen=True)
class _Way:
    """One direction between two workers: seconds, and seconds per byte."""

    latency_s: float
    byte_s: float

    def at(self, size_bytes: Floats) -> Floats:
        return self.latency_s * (size_bytes > 0) + self.byte_s * size_bytes


def _segments(per_layer: list[float]) -> Floats:
    """Entry (a, b): the sum over layers a + 1 .. b. Summed row by row, since differences of prefixes would cancel."""
    layers = np.minimum(np.array(per_layer, dtype=float), LONGEST_S)
    table = np.zeros((len(layers) + 1, len(layers) + 1))
    for first in range(len(layers)):
        table[first, first + 1 :] = np.cumsum(layers[first:])
    return table


def _lines(costs: list[LayerCost]) -> _Lines:
    return _Lines(_segments([cost.fixed_s for cost in costs]), _segments([cost.per_sample_s for cost in costs]))


def _way(problem: Problem, source: str, target: str) -> _Way:
    if source == target:
        return _Way(0.0, 0.0)
    link = problem.network.link(source, target)
    return _Way(min(link.latency_s, LONGEST_S), min(link.transmission_s(1), LONGEST_S))


class Evaluator:
    """The tables of one problem and tree, which do not depend on the box."""

    def __init__(self, problem: Problem, tree: Tree) -> None:
        chain = problem.profile.chain
        times = [problem.profile.worker(name).layers for name in tree.workers]
        links = [(name, tree.workers[parent]) for name, parent in zip(tree.workers, tree.parents, strict=True)]
        links[0] = (tree.workers[0], tree.workers[0])  # the root has no parent
        self.problem, self.tree, self.depth = problem, tree, chain.depth
        self.forward = [_lines([layer.forward for layer in layers]) for layers in times]
        self.backward = [_lines([layer.backward for layer in layers]) for layers in times]
        self.update_s = min(problem.profile.worker(tree.workers[0]).update_s, LONGEST_S)
        self.raw = [_way(problem, problem.data_holder, name) for name in tree.workers]
        self.up = [_way(problem, name, parent) for name, parent in links]
        self.down = [_way(problem, parent, name) for name, parent in links]
        self.output_bytes = np.array([0.0, *(layer.output_bytes for layer in chain.layers)])
        self.prefix_bytes = np.array(chain.parameter_prefix_bytes, dtype=float)
        kept = [float(layer.activation_bytes or 0) for layer in chain.layers]
        self.activations = _Lines(_segments([0.0] * chain.depth), _segments(kept))

    def bounds_s(self, boxes: Boxes) -> Floats:
        """A lower bound on the time of every plan of each box, that very time where the box is a single plan.

        Infinite where no plan of the box keeps the memory limits. Shape (P,).
        """
        size = boxes.depths.shape[1]
        passes = [slice(start, start + PASS_LIMIT) for start in range(0, size, PASS_LIMIT)]
        return np.concatenate([np.empty(0), *(_Pass(self, boxes.take(part)).bounds_s() for part in passes)])


class _Pass:
    """One evaluation: the least samples of each step, then the equations of ``cost`` in their order."""

    def __init__(self, evaluator: Evaluator, boxes: Boxes) -> None:
        self.at, self.tree, self.boxes = evaluator, evaluator.tree, boxes
        low = [boxes.low[list(members)].sum(axis=0) for members in self.tree.subtrees]
        high = [boxes.high[list(members)].sum(axis=0) for members in self.tree.subtrees]
        self.low, self.high = np.array(low), np.array(high)
        self.own = self._least(boxes.low, boxes.high)
        self.carried = self._least(self.low, self.high)
        self.merges = boxes.depths < evaluator.depth  # others compute the loss themselves
        stages = [self._stages(position) for position in range(len(self.tree.workers))]
        self.order, self.cuts, self.samples = zip(*stages, strict=True)

    def _least(self, low: Integers, high: Integers) -> Integers:
        """The least number of samples of a group of workers: what all others together can at most take is missing."""
        return np.maximum(low, self.at.problem.batch_size - (self.high[0] - high))

    def _stages(self, position: int) -> tuple[Integers, Integers, Integers]:
        """How a worker's pass over its layers is cut by its c children, shallowest first.

        Their order (c, P), as indices into the tree's children; the depths (c + 2, P) at which stages begin and end,
        from 0 to its own; and the samples (c + 1, P) of each stage.
        """
        children = list(self.tree.children[position])
        order = np.argsort(self.boxes.depths[children], axis=0, kind="stable")

        def ordered(values: Integers) -> Integers:
            return np.take_along_axis(values[children], order, axis=0)

        own = [self.boxes.depths[position]]
        cuts = np.concatenate([np.zeros_like(own), ordered(self.boxes.depths), own])
        merges = ordered(self.merges.astype(int))
        low = np.cumsum(np.concatenate([self.boxes.low[[position]], ordered(self.low) * merges]), axis=0)
        high = np.cumsum(np.concatenate([self.boxes.high[[position]], ordered(self.high) * merges]), axis=0)
        return order, cuts, self._least(low, high)

    def bounds_s(self) -> Floats:
        """Equation (5)."""
        time = self._gradients(self._backward(self._forward()))[0] + self.at.update_s + self._weights(0)
        return np.where(self._fits(), time, np.inf)

    def _forward(self) -> list[Floats]:
        """Equations (1) and (2) for each worker."""
        ends = [np.empty(0)] * len(self.tree.workers)
        for position in reversed(range(len(ends))):
            line, cuts, samples = self.at.forward[position], self.cuts[position], self.samples[position]
            arrivals = np.array(
                [
                    self._arrival(child, ends[child], self._activation_bytes(child)) * self.merges[child]
                    for child in self.tree.children[position]
                ]
            )
            now = self.at.raw[position].at(self.own[position] * float(self.at.problem.sample_bytes))
            for stage, child in enumerate(self.order[position]):
                now = now + line.at(cuts[stage], cuts[stage + 1], samples[stage])
                now = np.maximum(now, np.take_along_axis(arrivals, child[np.newaxis], axis=0)[0])
            ends[position] = now + line.at(cuts[-2], cuts[-1], samples[-1])
        return ends

    def _backward(self, forward: list[Floats]) -> list[Floats]:
        """Equation (3): the end of each worker's backward pass."""
        starts, ends = list(forward), list(forward)
        for position, children in enumerate(self.tree.children):
            line, cuts, samples = self.at.backward[position], self.cuts[position], self.samples[position]
            now, leaves = starts[position], np.zeros((len(children), len(self.own[0])))
            for stage, child in reversed(list(enumerate(self.order[position]))):
                now = now + line.at(cuts[stage + 1], cuts[stage + 2], samples[stage + 1])
                np.put_along_axis(leaves, child[np.newaxis], now[np.newaxis], axis=0)
            ends[position] = now + line.at(cuts[0], cuts[1], samples[0])
            for child, leave in zip(children, leaves, strict=True):
                arrival = leave + self.at.down[child].at(self._activation_bytes(child))
                starts[child] = np.maximum(forward[child], arrival * self.merges[child])
        return ends

    def _gradients(self, backward: list[Floats]) -> list[Floats]:
        """Equation (4): when each worker has the summed gradients of its subtree."""
        ends = list(backward)
        for child in reversed(range(1, len(ends))):
            parent, size_bytes = self.tree.parents[child], self.at.prefix_bytes[self.boxes.depths[child]]
            ends[parent] = np.maximum(ends[parent], self._arrival(child, ends[child], size_bytes))
        return ends

    def _weights(self, position: int) -> Floats:
        """Seconds until the slowest of the subtree has the new weights."""
        slowest = np.zeros(len(self.own[0]))
        for child in self.tree.children[position]:
            message_s = self.at.down[child].at(self.at.prefix_bytes[self.boxes.depths[child]])
            slowest = np.maximum(slowest, message_s + self._weights(child))
        return slowest

    def _arrival(self, child: int, ready: Floats, size_bytes: Floats) -> Floats:
        """When a message that the child has ready reaches its parent, with the one queue that matters."""
        if self.tree.workers[child] == self.at.problem.data_holder:
            raw_bytes = self.own[self.tree.parents[child]] * float(self.at.problem.sample_bytes)
            ready = np.maximum(ready, self.at.up[child].byte_s * raw_bytes * (size_bytes > 0))
        return ready + self.at.up[child].at(size_bytes)

    def _activation_bytes(self, child: int) -> Floats:
        return self.carried[child] * self.at.output_bytes[self.boxes.depths[child]]

    def _fits(self) -> Mask:
        """Whether each box may keep the memory limits."""
        fits = np.ones(len(self.own[0]), dtype=bool)
        for position, name in enumerate(self.tree.workers):
            limit = self.at.problem.memory_limit_bytes.get(name)
            if limit is not None:
                cuts, samples = self.cuts[position], self.samples[position]
                kept = (4 if position == 0 else 2) * self.at.prefix_bytes[cuts[-1]]
                kept = kept + self.at.activations.at(cuts[:-1], cuts[1:], samples).sum(axis=0)
                fits &= kept <= limit
        return fits
