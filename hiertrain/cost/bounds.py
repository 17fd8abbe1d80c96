"""The cost model over many plans of one tree at once, and lower bounds over ranges of plans.

A *box* is a tree with the depth of each worker and a range of own samples for each. Every equation of ``closed_form``
rises with every number of samples, so the cost model at the least number of samples that each step can have within the
box is a lower bound on all its plans; for a box of a single plan it is that plan's time. Times in seconds, sizes in
bytes. Arrays have the shape (k, P), for the k workers of the tree in its order and P boxes, or (P,) for one worker.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hiertrain.problem.problem import Problem
from hiertrain.problem.profile import LayerCost, bends_of
from hiertrain.problem.tree import Tree

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Mask = NDArray[np.bool_]

# Longer times are cut off at this, so that sums of them stay finite.
LONGEST_S = 1e200
# Boxes that one pass takes at most; more would leave the processor's cache.
PASS_LIMIT = 16_384


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
    """Costs of layers a + 1 .. b at entry (a, b), each table (N + 1, N + 1).

    ``fixed`` once where there are samples, and for each sample between two bends what that piece takes. Never a
    difference: a sum of rounded costs must not fall with n.
    """

    fixed: Floats
    bends: tuple[int, ...]
    each: tuple[Floats, ...]  # one more than bends

    def at(self, after: Integers, last: Integers, samples: Integers) -> Floats:
        entry = after * len(self.fixed) + last
        time = self.fixed.ravel()[entry] * (samples > 0)
        if not self.bends:
            return time + self.each[0].ravel()[entry] * samples
        for first, end, each in zip((0, *self.bends), (*self.bends, None), self.each, strict=True):
            time = time + each.ravel()[entry] * (np.clip(samples, first, end) - first)
        return time


@dataclass(frozen=True)
class _Message:
    """What one worker sends to another: when it is ready, and its bytes; both (P,)."""

    ready: Floats
    size: Floats


@dataclass(frozen=True)
class _Way:
    """One direction between two workers: seconds, seconds per byte, and the bytes that pass at once after a pause."""

    latency_s: float
    byte_s: float
    burst_bytes: float

    def arrival(self, messages: list[_Message]) -> Floats:
        """Equation (6)."""
        arrival, size = messages[-1].ready, 0.0
        for message in reversed(messages):
            size = size + message.size
            excess = np.maximum(size - self.burst_bytes, 0.0) if self.burst_bytes else size
            arrival = np.maximum(arrival, message.ready + self.byte_s * excess)
        return np.where(messages[-1].size > 0, arrival + self.latency_s, messages[-1].ready)


def _segments(per_layer: list[float]) -> Floats:
    """Entry (a, b): the sum over layers a + 1 .. b. Summed row by row, since differences of prefixes would cancel."""
    layers = np.minimum(np.array(per_layer, dtype=float), LONGEST_S)
    table = np.zeros((len(layers) + 1, len(layers) + 1))
    for first in range(len(layers)):
        table[first, first + 1 :] = np.cumsum(layers[first:])
    return table


def _lines(costs: list[LayerCost]) -> _Lines:
    bends = tuple(bends_of(costs))
    each = tuple(_segments([cost.slope_s(samples) for cost in costs]) for samples in (0, *bends))
    return _Lines(_segments([cost.fixed_s for cost in costs]), bends, each)


def _least_samples(per_layer: list[int]) -> Integers:
    """Entry (a, b): how few samples layers a + 1 .. b take at least, where they are computed at all."""
    table = np.zeros((len(per_layer) + 1, len(per_layer) + 1), dtype=np.int64)
    for first in range(len(per_layer)):
        table[first, first + 1 :] = np.maximum.accumulate(per_layer[first:])
    return table


def _way(problem: Problem, source: str, target: str) -> _Way:
    link = problem.network.link(source, target)
    return _Way(min(link.latency_s, LONGEST_S), min(link.transmission_s(1), LONGEST_S), link.burst_bytes)


class Evaluator:
    """The tables of one problem and tree, which do not depend on the box."""

    def __init__(self, problem: Problem, tree: Tree) -> None:
        chain = problem.profile.chain
        times = [problem.profile.worker(name).layers for name in tree.workers]
        links = [(name, tree.workers[parent]) for name, parent in zip(tree.workers, tree.parents, strict=True)][1:]
        self.problem, self.tree, self.depth = problem, tree, chain.depth
        self.forward = [_lines([layer.forward for layer in layers]) for layers in times]
        self.backward = [_lines([layer.backward for layer in layers]) for layers in times]
        self.update_s = min(problem.profile.worker(tree.workers[0]).update_s, LONGEST_S)
        others = [(problem.data_holder, name) for name in tree.workers if name != problem.data_holder]
        pairs = {*links, *((parent, name) for name, parent in links), *others}
        self.ways = {(source, target): _way(problem, source, target) for source, target in pairs}
        # Who computes the loss sends no activations.
        self.output_bytes = np.array([0.0, *(layer.output_bytes for layer in chain.layers[:-1]), 0.0])
        self.prefix_bytes = np.array(chain.parameter_prefix_bytes, dtype=float)
        kept = [float(layer.activation_bytes or 0) for layer in chain.layers]
        self.activations = _Lines(_segments([0.0] * chain.depth), (), (_segments(kept),))
        self.least_samples = _least_samples([layer.least_samples for layer in chain.layers])

    def bounds_s(self, boxes: Boxes) -> Floats:
        """A lower bound on the time of every plan of each box, that very time where the box is a single plan.

        Infinite where no plan of the box keeps the memory limits, and gives each layer samples enough. Shape (P,).
        """
        size = boxes.depths.shape[1]
        passes = [slice(start, start + PASS_LIMIT) for start in range(0, size, PASS_LIMIT)]
        return np.concatenate([np.empty(0), *(_Pass(self, boxes.take(part)).bounds_s() for part in passes)])


class _Pass:
    """One evaluation: the least samples of each step, then the equations of ``closed_form`` in their order."""

    def __init__(self, evaluator: Evaluator, boxes: Boxes) -> None:
        self.at, self.tree, self.boxes = evaluator, evaluator.tree, boxes
        low = [boxes.low[list(members)].sum(axis=0) for members in self.tree.subtrees]
        high = [boxes.high[list(members)].sum(axis=0) for members in self.tree.subtrees]
        self.low, self.high = np.array(low), np.array(high)
        self.own = self._least(boxes.low, boxes.high)
        self.carried = self._least(self.low, self.high)
        self.raw_bytes = self.own * float(evaluator.problem.sample_bytes)
        self.activation_bytes = self.carried * evaluator.output_bytes[boxes.depths]
        self.parameter_bytes = evaluator.prefix_bytes[boxes.depths]
        self.merges = boxes.depths < evaluator.depth  # others compute the loss themselves
        self.enough = np.ones(boxes.depths.shape[1], dtype=bool)  # whether each layer may have samples enough
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
        least = self._least(low, high)
        if self.at.least_samples.max() > 1:
            needed = np.where(least > 0, np.maximum(least, self.at.least_samples[cuts[:-1], cuts[1:]]), least)
            self.enough &= (needed <= high).all(axis=0)
            least = needed
        return order, cuts, least

    def bounds_s(self) -> Floats:
        """Equation (5)."""
        forward = self._forward()
        backward, leaves = self._backward(forward)
        updated = self._gradients(forward, backward)[0] + self.at.update_s
        return np.where(self._fits(), self._weights(0, updated, leaves), np.inf)

    def _forward(self) -> list[Floats]:
        """Equations (1) and (2) for each worker."""
        ends = [np.empty(0)] * len(self.tree.workers)
        for position, name in reversed(list(enumerate(self.tree.workers))):
            line, cuts, samples = self.at.forward[position], self.cuts[position], self.samples[position]
            arrivals = np.array(
                [
                    self._arrival(child, position, _Message(ends[child], self.activation_bytes[child]))
                    * self.merges[child]
                    for child in self.tree.children[position]
                ]
            )
            now = np.zeros_like(self.raw_bytes[position])
            if name != self.at.problem.data_holder:
                now = self.at.ways[self.at.problem.data_holder, name].arrival([_Message(now, self.raw_bytes[position])])
            for stage, child in enumerate(self.order[position]):
                now = now + line.at(cuts[stage], cuts[stage + 1], samples[stage])
                now = np.maximum(now, np.take_along_axis(arrivals, child[np.newaxis], axis=0)[0])
            ends[position] = now + line.at(cuts[-2], cuts[-1], samples[-1])
        return ends

    def _backward(self, forward: list[Floats]) -> tuple[list[Floats], list[_Message]]:
        """Equation (3): the end of each worker's backward pass, and the gradient of its activations on its parent."""
        starts, ends = list(forward), list(forward)
        gradients = [_Message(np.empty(0), np.empty(0))] * len(ends)
        for position, children in enumerate(self.tree.children):
            line, cuts, samples = self.at.backward[position], self.cuts[position], self.samples[position]
            now, leaves = starts[position], np.zeros((len(children), len(self.own[0])))
            for stage, child in reversed(list(enumerate(self.order[position]))):
                now = now + line.at(cuts[stage + 1], cuts[stage + 2], samples[stage + 1])
                np.put_along_axis(leaves, child[np.newaxis], now[np.newaxis], axis=0)
            ends[position] = now + line.at(cuts[0], cuts[1], samples[0])
            for child, leave in zip(children, leaves, strict=True):
                gradients[child] = _Message(leave, self.activation_bytes[child])
                arrival = self._arrival(position, child, gradients[child])
                starts[child] = np.maximum(forward[child], arrival * self.merges[child])
        return ends, gradients

    def _gradients(self, forward: list[Floats], backward: list[Floats]) -> list[Floats]:
        """Equation (4): when each worker has the summed gradients of its subtree."""
        ends = list(backward)
        for child in reversed(range(1, len(ends))):
            activations = _Message(forward[child], self.activation_bytes[child])
            gradients = _Message(ends[child], self.parameter_bytes[child])
            parent = self.tree.parents[child]
            ends[parent] = np.maximum(ends[parent], self._arrival(child, parent, activations, gradients))
        return ends

    def _weights(self, position: int, ready: Floats, gradients: list[_Message]) -> Floats:
        """When the last of the subtree has the new weights, which its root has when ``ready``."""
        end = ready
        for child in self.tree.children[position]:
            weights = _Message(ready, self.parameter_bytes[child])
            arrival = self._arrival(position, child, gradients[child], weights)
            end = np.maximum(end, self._weights(child, arrival, gradients))
        return end

    def _arrival(self, source: int, target: int, *messages: _Message) -> Floats:
        """When the last of all messages so far between two positions arrives: first leave the raw samples, if any."""
        names = self.tree.workers[source], self.tree.workers[target]
        sent = list(messages)
        if names[0] == self.at.problem.data_holder:
            sent.insert(0, _Message(np.zeros_like(self.raw_bytes[target]), self.raw_bytes[target]))
        return self.at.ways[names].arrival(sent)

    def _fits(self) -> Mask:
        """Whether each box may keep the memory limits, and give each layer samples enough."""
        fits = self.enough.copy()
        for position, name in enumerate(self.tree.workers):
            limit = self.at.problem.memory_limit_bytes.get(name)
            if limit is not None:
                cuts, samples = self.cuts[position], self.samples[position]
                kept = (4 if position == 0 else 2) * self.at.prefix_bytes[cuts[-1]]
                kept = kept + self.at.activations.at(cuts[:-1], cuts[1:], samples).sum(axis=0)
                fits &= kept <= limit
        return fits


def any_plan_bound_s(problem: Problem) -> float:
    """A lower bound on the time of every plan of every tree.

    The first sample passes all layers, each at best on the worker that is the fastest for it. And all samples do: per
    layer and sample a worker w spends at least c_w, at the best number of samples, so for any shares q_w that add up to
    1, the time T >= sum of q_w T >= sum over the layers of B min(q_w c_w). Shares as the workers' speeds are exact
    where these are proportional.
    """
    workers, batch_size = [problem.profile.worker(name).layers for name in problem.workers], problem.batch_size
    bends = bends_of(cost for own in workers for times in own for cost in (times.forward, times.backward))

    def per_sample_s(samples: int) -> Floats:
        """Of each worker and layer, at so many samples."""
        times = [[(t.forward.seconds(samples) + t.backward.seconds(samples)) / samples for t in own] for own in workers]
        return np.minimum(np.array(times), LONGEST_S)

    one_s = per_sample_s(1)
    # Between two bends a cost per sample only rises or only falls.
    ends = [one_s, per_sample_s(batch_size), *(per_sample_s(samples) for samples in bends if samples < batch_size)]
    least_s = np.min(ends, axis=0)
    totals_s, work_s = least_s.sum(axis=1, keepdims=True), 0.0
    if totals_s.all():
        speeds = totals_s.min() / totals_s
        work_s = batch_size * float((speeds / speeds.sum() * least_s).min(axis=0).sum())
    update_s = min(problem.profile.worker(name).update_s for name in problem.workers)
    return max(float(one_s.min(axis=0).sum()), work_s) + min(update_s, LONGEST_S)
