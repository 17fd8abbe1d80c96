"""The cost model over many plans of one tree at once, and lower bounds over ranges of plans.

A *box* is a tree with the depth of each worker and a range of own samples for each. Every amount of the template
rises with every number of samples, so the cost model at the least number of samples that each step can have within the
box is a lower bound on all its plans; for a box of a single plan it is that plan's time. Times in seconds, sizes in
bytes. Arrays have the shape (k, P), for the k workers of the tree in its order and P boxes, or (P,) for one worker.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hiertrain.problem.problem import Problem
from hiertrain.problem.profile import LayerCost, bends_of
from hiertrain.problem.tree import Tree
from hiertrain.program.actions import Op, copies_held
from hiertrain.program.passes import template_of
from hiertrain.program.template import After, Boundary, Message, Pass, Update

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
    bends: Integers  # (K,), the first one 0
    each: Floats  # (K, (N + 1)²), each table flat

    def at(self, after: Integers, last: Integers, samples: Integers) -> Floats:
        entry = after * len(self.fixed) + last
        fixed = self.fixed.ravel()[entry] * (samples > 0)
        if len(self.bends) == 1:
            return fixed + self.each[0, entry] * samples
        beyond = np.maximum(samples - self.bends.reshape(-1, *[1] * np.ndim(samples)), 0)
        beyond[:-1] = np.minimum(beyond[:-1], np.diff(self.bends).reshape(-1, *[1] * np.ndim(samples)))
        return fixed + (self.each[:, entry] * beyond).sum(axis=0)


@dataclass(frozen=True)
class _Way:
    """One direction between two workers: seconds, seconds per byte, and the bytes that pass at once after a pause."""

    latency_s: float
    byte_s: float
    burst_bytes: float


class _Moments(NamedTuple):
    """When things happen in one iteration, in seconds; each (P,). What is not there has long since happened."""

    passed: dict[tuple[int, Boundary], Floats]  # each task, each of its boundaries
    left: dict[tuple[str, str], Floats]  # all messages of each lane


class _Stages(NamedTuple):
    """The stages of one worker's pass: children shallowest first, where each begins and ends, and its samples."""

    order: Integers  # (c, P), as indices into the tree's children
    cuts: Integers  # (c + 2, P), from 0 to the worker's own depth
    samples: Integers  # (c + 1, P)


def _segments(per_layer: list[float]) -> Floats:
    """Entry (a, b): the sum over layers a + 1 .. b. Summed row by row, since differences of prefixes would cancel."""
    size = len(per_layer)
    table = np.zeros((size + 1, size + 1))
    table[:-1, 1:] = np.cumsum(np.triu([np.minimum(per_layer, LONGEST_S)] * size), axis=1)
    return table


def _lines(costs: list[LayerCost], most: int) -> _Lines:
    """``most``: samples that there ever are."""
    bends = [0, *(bend for bend in bends_of(costs) if bend < most)]
    each = [_segments([cost.slope_s(samples) for cost in costs]).ravel() for samples in bends]
    return _Lines(_segments([cost.fixed_s for cost in costs]), np.array(bends), np.array(each))


def _least_samples(per_layer: list[int]) -> Integers:
    """Entry (a, b): how few samples layers a + 1 .. b take at least, where they are computed at all."""
    size = len(per_layer)
    table = np.zeros((size + 1, size + 1), dtype=np.int64)
    table[:-1, 1:] = np.maximum.accumulate(np.triu([per_layer] * size), axis=1)
    return table


def _way(problem: Problem, source: str, target: str) -> _Way:
    """The way between two workers. Nothing travels where there is no link: no plan that needs one is admitted."""
    link = problem.network.find(source, target)
    if link is None:
        return _Way(0.0, 0.0, 0.0)
    return _Way(min(link.latency_s, LONGEST_S), min(link.transmission_s(1), LONGEST_S), link.burst_bytes)


class Evaluator:
    """The tables of one problem and tree, which do not depend on the box."""

    def __init__(self, problem: Problem, tree: Tree) -> None:
        chain = problem.profile.chain
        self.problem, self.tree, self.depth = problem, tree, chain.depth
        self.template = template_of(tree, chain, problem.data_holder, problem.execution)
        times = {name: problem.profile.worker(name) for name in tree.workers}
        self.costs = {
            (op, name): _lines([getattr(layer, op) for layer in own.layers], problem.batch_size)
            for name, own in times.items()
            for op in (Op.FORWARD, Op.BACKWARD)
        }
        self.update_s = {name: _segments([layer.update_s for layer in own.layers]) for name, own in times.items()}
        messages = {number: task for number, task in enumerate(self.template.tasks) if isinstance(task, Message)}
        self.ways = {number: _way(problem, task.source, task.target) for number, task in messages.items()}
        # Several messages are of one size, which is computed once.
        sizes = {number: (task.boundary, task.boundary or task.target, task.size) for number, task in messages.items()}
        first = {size: number for number, size in reversed(sizes.items())}
        self.size_as = {number: first[size] for number, size in sizes.items()}
        self.bytes_at = {
            number: [np.array(own, dtype=float) if any(own) else None for own in (task.size.fixed, task.size.each)]
            for number, task in messages.items()
        }
        # What a worker has of each message that it sends or receives.
        copies = {n: copies_held(m.role, m.encoding, self.template.overlapped) for n, m in messages.items()}
        self.held = {
            name: [(copies[number], number) for number, task in messages.items() if name in (task.source, task.target)]
            for name in tree.workers
        }
        self.place = {name: position for position, name in enumerate(tree.workers)}
        self.prefix_bytes = np.array(chain.parameter_prefix_bytes, dtype=float)
        kept = [float(layer.activation_bytes or 0) for layer in chain.layers]
        self.activations = _Lines(
            _segments([0.0] * chain.depth), np.zeros(1, dtype=int), _segments(kept).reshape(1, -1)
        )
        self.least_samples = _least_samples([layer.least_samples for layer in chain.layers])

    def bounds_s(self, boxes: Boxes) -> Floats:
        """A lower bound on the time of every plan of each box, that very time where the box is a single plan.

        Infinite where no plan of the box keeps the memory limits, and gives each layer samples enough. Shape (P,).
        """
        size = boxes.depths.shape[1]
        passes = [slice(start, start + PASS_LIMIT) for start in range(0, size, PASS_LIMIT)]
        return np.concatenate([np.empty(0), *(_Evaluation(self, boxes.take(part)).bounds_s() for part in passes)])


class _Evaluation:
    """One evaluation: the least samples of each step, then the tasks of the template in their order."""

    def __init__(self, evaluator: Evaluator, boxes: Boxes) -> None:
        self.at, self.tree, self.boxes = evaluator, evaluator.template.tree, boxes
        workers = self.tree.workers
        self.depth: dict[Boundary, Integers] = dict(zip(workers, boxes.depths, strict=True))
        self.depth[None] = np.zeros_like(boxes.depths[0])
        low = [boxes.low[list(members)].sum(axis=0) for members in self.tree.subtrees]
        high = [boxes.high[list(members)].sum(axis=0) for members in self.tree.subtrees]
        self.low, self.high = np.array(low), np.array(high)
        self.enough = np.ones(boxes.depths.shape[1], dtype=bool)  # whether each layer may have samples enough
        self.stages = {name: self._stages(position) for position, name in enumerate(workers)}
        self.sizes: dict[int, Floats] = {}
        self.iterations = [_Moments({}, {})]

    def _least(self, low: Integers, high: Integers) -> Integers:
        """The least number of samples of a group of workers: what all others together can at most take is missing."""
        return np.maximum(low, self.at.problem.batch_size - (self.high[0] - high))

    def _stages(self, position: int) -> _Stages:
        """How a worker's pass over its layers is cut by its c children."""
        children = list(self.tree.children[position])
        order = np.argsort(self.boxes.depths[children], axis=0, kind="stable")

        def ordered(values: Integers) -> Integers:
            return np.take_along_axis(values[children], order, axis=0)

        own = [self.boxes.depths[position]]
        cuts = np.concatenate([np.zeros_like(own), ordered(self.boxes.depths), own])
        merges = cuts[1:-1] < self.at.depth  # others compute the loss themselves
        low = np.cumsum(np.concatenate([self.boxes.low[[position]], ordered(self.low) * merges]), axis=0)
        high = np.cumsum(np.concatenate([self.boxes.high[[position]], ordered(self.high) * merges]), axis=0)
        least = self._least(low, high)
        if self.at.least_samples.max() > 1:
            needed = np.where(least > 0, np.maximum(least, self.at.least_samples[cuts[:-1], cuts[1:]]), least)
            self.enough &= (needed <= high).all(axis=0)
            least = needed
        return _Stages(order, cuts, least)

    def bounds_s(self) -> Floats:
        """The latest end of all tasks, or the period of overlapped iterations."""
        self._iterate()
        if not self.at.template.overlapped:
            bound = self._ready(tuple(After(number) for number in self.at.template.last))
        else:
            bound = self._period_s()
        return np.where(self._fits(), bound, np.inf)

    def _iterate(self) -> None:
        """One more iteration: all tasks, in their order."""
        now = _Moments({}, {})
        self.iterations.append(now)
        for number, task in enumerate(self.at.template.tasks):
            match task:
                case Pass():
                    self._pass(number, task)
                case Message():
                    now.passed[number, None] = self._arrival(number, task)
                case Update():
                    first, last = (np.clip(self.depth[end], *task.stretch) for end in (task.below, task.worker))
                    now.passed[number, None] = self._ready(task.after) + self.at.update_s[task.worker][first, last]

    def _period_s(self) -> Floats:
        """What each lane transmits in an iteration, or by how much everything comes later than in the one before.

        By more than the period nothing comes later at last, and everything together never does (max-plus algebra: the
        least increment bounds the eigenvalue from below, also where it is that of faster tasks than all).
        """
        load = np.zeros(self.boxes.depths.shape[1])
        for lane in self.at.template.lanes.values():
            size = sum((self._size(number) for number in lane), np.zeros(1))
            load = np.maximum(load, self.at.ways[lane[0]].byte_s * size)
        # A worker that computes alone holds up its child an iteration later, and so on down to the last of these.
        for _ in range(self.at.template.most_ago + self.tree.alone):
            self._iterate()
        least = np.full_like(load, np.inf)
        for before, after in pairwise(self.iterations[-self.at.template.most_ago - 1 :]):
            for key, moment in after.passed.items():
                least = np.minimum(least, moment - before.passed[key])
            for lane, moment in after.left.items():
                sent = np.isfinite(moment)
                least[sent] = np.minimum(least[sent], moment[sent] - before.left[lane][sent])
        return np.maximum(load, least)

    def _at(self, ago: int) -> _Moments:
        """The iteration so many before the one that is evaluated; the first one stands for all before it."""
        return self.iterations[max(0, len(self.iterations) - 1 - ago)]

    def _ready(self, afters: Iterable[After]) -> Floats:
        """When the last of what is waited for has passed."""
        ready = np.zeros(self.boxes.depths.shape[1])
        for after in afters:
            passed = self._at(after.ago).passed.get((after.task, after.left))
            if passed is None:
                continue
            awaited = self.at.template.tasks[after.task]
            if isinstance(awaited, Message) and awaited.present != (0, self.at.depth):
                (low, high), depth = awaited.present, self.depth[awaited.boundary]
                passed = passed * ((low < depth) & (depth <= high))
            ready = np.maximum(ready, passed)
        return ready

    def _pass(self, number: int, task: Pass) -> None:
        """A pass, stage by stage between the depths of its children."""
        order, cuts, samples = self.stages[task.worker]
        children = self.tree.children_of[task.worker]
        line = self.at.costs[task.op, task.worker]
        start = now = self._ready(after for after in task.after if after.at == task.start)
        inside = [after for after in task.after if after.at != task.start]
        taken = np.array([self._ready(after for after in inside if after.at == child) for child in children])
        left: Floats = np.zeros((len(children), len(now)))
        stages = list(range(len(cuts) - 1))
        forward = task.op == Op.FORWARD
        for stage in stages if forward else reversed(stages):
            now = now + line.at(cuts[stage], cuts[stage + 1], samples[stage])
            cut = stage if forward else stage - 1
            if 0 <= cut < len(children):
                child = order[cut][np.newaxis]
                if inside:
                    now = np.maximum(now, np.take_along_axis(taken, child, axis=0)[0])
                else:
                    np.put_along_axis(left, child, now[np.newaxis], axis=0)
        passed = self.iterations[-1].passed
        passed[number, task.end] = now
        for layer in self.at.template.left_after[number]:
            passed[number, layer] = start + line.at(np.minimum(layer, cuts[1]), cuts[1], samples[0])
        if not inside:
            passed |= {(number, child): leave for child, leave in zip(children, left, strict=True)}

    def _size(self, number: int) -> Floats:
        """Bytes of a message, at the least."""
        number = self.at.size_as[number]
        if number not in self.sizes:
            message, (fixed, each) = self.at.template.tasks[number], self.at.bytes_at[number]
            assert isinstance(message, Message)
            low, high = (self.boxes.low, self.boxes.high) if message.boundary is None else (self.low, self.high)
            position = self.at.place[message.boundary or message.target]
            samples = self._least(low[position], high[position])
            boundary = self.depth[message.boundary]
            size = np.zeros(len(samples))
            if each is not None:
                size += each[boundary] * samples
            if fixed is not None:
                size += fixed[boundary] * (samples > 0)
            self.sizes[number] = size
        return self.sizes[number]

    def _arrival(self, number: int, message: Message) -> Floats:
        """When a message arrives, behind all before it on its lane: the rule of ``Network``. An empty one is ready."""
        way, size, ready = self.at.ways[number], self._size(number), self._ready(message.after)
        lane = message.source, message.target
        now, before = self.iterations[-1].left, self._at(1).left
        free = now.get(lane, before.get(lane, np.array(-np.inf)))
        left = np.maximum(free, ready - way.byte_s * way.burst_bytes) + way.byte_s * size
        now[lane] = np.where(size > 0, left, free)
        return np.where(size > 0, np.maximum(ready, left) + way.latency_s, ready)

    def _fits(self) -> Mask:
        """Whether each box may keep the memory limits, and give each layer samples enough."""
        fits = self.enough.copy()
        for position, name in enumerate(self.tree.workers):
            limit = self.at.problem.memory_limit_bytes.get(name)
            if limit is not None:
                _, cuts, samples = self.stages[name]
                # Who computes alone has the layers beyond its one child's.
                kept = self.at.prefix_bytes[cuts[-1]]
                if position < self.tree.alone:
                    kept = kept - self.at.prefix_bytes[cuts[1]]
                kept = self.at.problem.weight_copies(position <= self.tree.alone) * kept
                kept = kept + self.at.activations.at(cuts[:-1], cuts[1:], samples).sum(axis=0)
                kept = kept + sum(copies * self._size(number) for copies, number in self.at.held[name])
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
    # Everything waits for the update of the first layer, and that for everything. The others may be elsewhere.
    updated = slice(1 if problem.execution.owners else None)
    update_s = min(sum(times.update_s for times in own[updated]) for own in workers)
    return max(float(one_s.min(axis=0).sum()), work_s) + min(update_s, LONGEST_S)
