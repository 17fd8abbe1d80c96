"""Exact optima by other means than the solver's: enumeration of every plan, and a monotone branch and bound.

The enumeration times each plan by simulating its program. The branch and bound has its own vectorised equations for
the pair, the star and the chain, for up to three workers. Both know nothing of ``cost.bounds`` and of
``planning``. Times in seconds.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import combinations, permutations, product

import numpy as np
from numpy.typing import NDArray

from hiertrain.problem.plan import Assignment, Plan
from hiertrain.problem.problem import Problem
from hiertrain.program.compiler import compile_plan
from hiertrain.program.simulator import simulate

Numbers = NDArray[np.int64]
Seconds = NDArray[np.number]
NUMBER_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "uint8": 1}


def enumerated_optimum(problem: Problem, shape: str = "tree") -> tuple[float, int]:
    """The least time of all admissible plans, and the fewest active workers with it (up to a share of 1e-9).

    Infinite time where no plan is admissible.
    """
    return _best((plan, _simulated_s(problem, plan)) for plan in admissible_plans(problem, shape))


def enumerated_optima(problem: Problem) -> dict[str, tuple[float, int]]:
    """``enumerated_optimum`` of both shapes, from one enumeration: every star is a tree."""
    timed = [(plan, _simulated_s(problem, plan)) for plan in admissible_plans(problem, "tree")]
    return {"tree": _best(timed), "star": _best((plan, time_s) for plan, time_s in timed if _is_star_plan(plan))}


def _simulated_s(problem: Problem, plan: Plan) -> float:
    program = compile_plan(plan, problem.profile.chain, problem.execution)
    return simulate(program, problem.profile, problem.network).period_s


def _best(timed: Iterable[tuple[Plan, float]]) -> tuple[float, int]:
    best: dict[int, float] = {0: float("inf")}
    for plan, time_s in timed:
        active = sum(plan.active(name) for name in plan.workers)
        best[active] = min(time_s, best.get(active, float("inf")))
    optimum = min(best.values())
    return optimum, min(size for size, time_s in best.items() if time_s <= optimum * (1 + 1e-9))


def _is_star_plan(plan: Plan) -> bool:
    return all(part.parent in (None, plan.root) for part in plan.workers.values())


def admissible_plans(problem: Problem, shape: str) -> Iterator[Plan]:
    """Every plan, once: workers without samples to carry hang below the root with depth 0."""
    for size in range(1, len(problem.workers) + 1):
        for active in combinations(problem.workers, size):
            for parents in product((None, *active), repeat=size):
                parent_of = dict(zip(active, parents, strict=True))
                if _is_tree(parent_of) and (shape == "tree" or _is_star(parent_of)) and _is_linked(problem, parent_of):
                    yield from _plans(problem, parent_of)


def _root(parent_of: dict[str, str | None]) -> str:
    return next(name for name, parent in parent_of.items() if parent is None)


def _is_star(parent_of: dict[str, str | None]) -> bool:
    return all(parent in (None, _root(parent_of)) for parent in parent_of.values())


def _is_tree(parent_of: dict[str, str | None]) -> bool:
    def reaches_root(name: str | None) -> bool:
        for _ in parent_of:
            name = parent_of[name] if name is not None else None
        return name is None

    return list(parent_of.values()).count(None) == 1 and all(reaches_root(name) for name in parent_of)


def _is_linked(problem: Problem, parent_of: dict[str, str | None]) -> bool:
    return all(_joined(problem, name, parent) for name, parent in parent_of.items() if parent)


def _joined(problem: Problem, source: str, target: str) -> bool:
    """Whether messages can be sent, also through others."""
    return source == target or problem.network.find(source, target) is not None


def _plans(problem: Problem, parent_of: dict[str, str | None]) -> Iterator[Plan]:
    root, layers, total = _root(parent_of), problem.profile.chain.depth, problem.batch_size
    if problem.root not in (None, root):
        return
    idle = {name: Assignment(parent=root, depth=0, samples=0) for name in problem.profile.workers}
    for depths in product(*([layers] if name == root else range(1, layers + 1) for name in parent_of)):
        depth = dict(zip(parent_of, depths, strict=True))
        if problem.whole_model and set(depths) != {layers}:
            continue
        if any(parent and depth[name] > depth[parent] for name, parent in parent_of.items()):
            continue
        for samples in _splits(total, len(parent_of)):
            own = dict(zip(parent_of, samples, strict=True))
            if problem.samples_stay and own.get(problem.data_holder) != total:
                continue
            if not all(_joined(problem, problem.data_holder, name) for name in own if own[name]):
                continue
            parts = {
                name: Assignment(parent=parent, depth=depth[name], samples=own[name])
                for name, parent in parent_of.items()
            }
            plan = Plan(batch_size=total, data_holder=problem.data_holder, workers=idle | parts)
            if not _has_samples_enough(problem, plan):
                continue
            limits = problem.memory_limit_bytes
            if all(plan.active(name) for name in parent_of) and all(
                needed_bytes(problem, plan, name) <= limits[name] for name in parent_of if name in limits
            ):
                yield plan


def _has_samples_enough(problem: Problem, plan: Plan) -> bool:
    """Whether each worker that computes a layer has as many samples as the layer takes."""
    layers = enumerate(problem.profile.layers, start=1)
    return all(
        plan.samples_at(name, i) in (0, *range(layer.least_samples, plan.batch_size + 1))
        for i, layer in layers
        for name in plan.workers
    )


def _splits(total: int, size: int) -> Iterator[tuple[int, ...]]:
    if size == 1:
        yield (total,)
        return
    for first in range(total + 1):
        for rest in _splits(total - first, size - 1):
            yield (first, *rest)


class _Links:
    """The links in one iteration: token buckets, full at its start. Messages of one pair are sent in their order."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.served: dict[tuple[str, str], Seconds] = {}  # the virtual time at which all messages so far have left

    def send(self, source: str, target: str, ready: Seconds, size: Seconds) -> Seconds:
        """When a message arrives; an empty one is not sent."""
        link = self.problem.network.link(source, target)
        rate = link.bandwidth_mbps * 1e6 / 8
        before = self.served.get((source, target), np.full(len(size), -np.inf))
        after = np.maximum(before, ready - link.burst_bytes / rate) + size / rate
        self.served[source, target] = np.where(size > 0, after, before)
        return np.where(size > 0, np.maximum(after, ready) + link.latency_ms / 1e3, ready)

    def raw(self, worker: str, samples: Numbers) -> Seconds:
        if worker == self.problem.data_holder:
            return np.zeros(len(samples))
        size = samples * float(self.problem.profile.sample_bytes)
        return self.send(self.problem.data_holder, worker, np.zeros(len(samples)), size)


def needed_bytes(problem: Problem, plan: Plan, worker: str) -> int:
    """The activations of every layer and sample; weights and gradients, with the optimizer's copies at the owner.

    Who is above a layer's owner has nothing of it. And the messages of both sides, but for weights as they are.
    """
    if not plan.active(worker):
        return 0
    total, depth = _messages_bytes(problem, plan, worker), plan.workers[worker].depth
    for number, layer in enumerate(problem.profile.layers[:depth], start=1):
        total += (layer.activation_bytes or 0) * plan.samples_at(worker, number)
        owner = _owner(plan, number) if problem.execution.owners else plan.root
        if owner in _ways_up(plan)[worker]:
            total += (2 + problem.optimizer_copies * (worker == owner)) * layer.parameter_bytes
    return total


def _messages_bytes(problem: Problem, plan: Plan, worker: str) -> int:
    """Raw samples, three times where sent ahead; at each cut activations and gradients; gradients of layers."""
    how, layers, total = problem.execution, problem.profile.layers, 0
    if how.sample_encoding == "zlib":
        raw_bytes = problem.profile.compressed_sample_bytes or 0
    else:
        raw_bytes = problem.profile.sample_bytes * NUMBER_BYTES[how.sample_encoding]
    for name, part in plan.workers.items():
        if plan.data_holder != name and worker in (name, plan.data_holder):
            total += part.samples * raw_bytes * (3 if how.prefetch else 1)
        if not plan.active(name) or part.parent is None or worker not in (name, part.parent):
            continue
        numbers = plan.carried[name] * layers[part.depth - 1].output_bytes // 4 if part.depth < len(layers) else 0
        total += 2 * (numbers * NUMBER_BYTES[how.activation_encoding])
        total += 16 * (numbers > 0 and how.activation_encoding == "uint8")
        for number, layer in enumerate(layers[: part.depth], start=1):
            owner = _owner(plan, number) if how.owners else plan.root
            if owner in _ways_up(plan)[part.parent]:  # else the layer is updated below
                directions = 1 if how.parameter_encoding == "float32" else 2
                total += directions * (layer.parameter_bytes * NUMBER_BYTES[how.parameter_encoding] // 4)
    return total


def _ways_up(plan: Plan) -> dict[str, list[str]]:
    """Each worker and all above it, the root last."""
    ways = {}
    for name in plan.workers:
        ways[name], above = [name], plan.workers[name].parent
        while above is not None:
            ways[name].append(above)
            above = plan.workers[above].parent
    return ways


def _owner(plan: Plan, layer: int) -> str:
    """The lowest common ancestor of all workers that compute a layer."""
    ways = [way for name, way in _ways_up(plan).items() if plan.samples_at(name, layer)]
    return next(name for name in ways[0] if all(name in way for way in ways))


class _Equations:
    """The cost model on arrays: each argument and result has one entry per box."""

    def __init__(self, problem: Problem) -> None:
        self.problem, self.layers, self.total = problem, problem.profile.chain.depth, problem.batch_size
        self.prefix = np.array(problem.profile.chain.parameter_prefix_bytes, dtype=float)
        self.output = np.array([0.0, *(layer.output_bytes for layer in problem.profile.layers[:-1]), 0.0])
        self.tables: dict[tuple[str, str], Seconds] = {}

    def compute(self, worker: str, step: str, after: Numbers, last: Numbers, samples: Numbers) -> Seconds:
        if (worker, step) not in self.tables:
            costs = [getattr(times, step) for times in self.problem.profile.worker(worker).layers]
            every = [[0.0, *(cost.seconds(n) for cost in costs)] for n in range(self.total + 1)]
            self.tables[worker, step] = np.cumsum(every, axis=1)  # by number of samples and of layers
        table = self.tables[worker, step]
        return table[samples, last] - table[samples, after]

    def update(self, worker: str) -> float:
        return self.problem.profile.worker(worker).update_s

    def star(self, names: tuple[str, ...], depth: list[Numbers], low: list[Numbers], high: list[Numbers]) -> Seconds:
        """A lower bound over own samples in low..high: a root, and two children, the long one no shallower."""
        root, short, long = names
        cut_s, cut_l = depth
        zero, full = np.zeros_like(cut_s), np.full_like(cut_s, self.layers)
        n_s, n_l = low
        n_o = np.maximum(0, self.total - high[0] - high[1])
        n_os = np.where(cut_s < self.layers, np.maximum(n_o + n_s, self.total - high[1]), n_o)
        n_all = np.where(cut_l < self.layers, self.total, n_os)
        links = _Links(self.problem)
        ready_s = links.raw(short, n_s) + self.compute(short, "forward", zero, cut_s, n_s)
        ready_l = links.raw(long, n_l) + self.compute(long, "forward", zero, cut_l, n_l)
        size_s, size_l = n_s * self.output[cut_s], n_l * self.output[cut_l]
        now = links.raw(root, n_o) + self.compute(root, "forward", zero, cut_s, n_o)
        now = np.where(cut_s < self.layers, np.maximum(now, links.send(short, root, ready_s, size_s)), now)
        now = now + self.compute(root, "forward", cut_s, cut_l, n_os)
        now = np.where(cut_l < self.layers, np.maximum(now, links.send(long, root, ready_l, size_l)), now)
        now = (
            now + self.compute(root, "forward", cut_l, full, n_all) + self.compute(root, "backward", cut_l, full, n_all)
        )
        back_l = np.where(cut_l < self.layers, np.maximum(ready_l, links.send(root, long, now, size_l)), ready_l)
        now = now + self.compute(root, "backward", cut_s, cut_l, n_os)
        back_s = np.where(cut_s < self.layers, np.maximum(ready_s, links.send(root, short, now, size_s)), ready_s)
        end = now + self.compute(root, "backward", zero, cut_s, n_o)
        for name, cut, samples, back in ((short, cut_s, n_s, back_s), (long, cut_l, n_l, back_l)):
            summed = back + self.compute(name, "backward", zero, cut, samples)
            end = np.maximum(end, links.send(name, root, summed, self.prefix[cut]))
        updated = end + self.update(root)
        return np.maximum(
            links.send(root, short, updated, self.prefix[cut_s]), links.send(root, long, updated, self.prefix[cut_l])
        )

    def chain(self, names: tuple[str, ...], depth: list[Numbers], low: list[Numbers], high: list[Numbers]) -> Seconds:
        """A lower bound over own samples in low..high: root r <- middle m <- leaf f."""
        r, m, f = names
        cut_f, cut_m = depth
        zero, full = np.zeros_like(cut_f), np.full_like(cut_f, self.layers)
        n_f, n_m = low
        n_r = np.maximum(0, self.total - high[0] - high[1])
        carried = n_m + n_f
        n_mf = np.where(cut_f < self.layers, carried, n_m)
        n_all = np.where(cut_m < self.layers, self.total, n_r)
        links = _Links(self.problem)
        ready_f = links.raw(f, n_f) + self.compute(f, "forward", zero, cut_f, n_f)
        size_f, size_m = n_f * self.output[cut_f], carried * self.output[cut_m]
        raw_m, raw_r = links.raw(m, n_m), links.raw(r, n_r)
        now = raw_m + self.compute(m, "forward", zero, cut_f, n_m)
        now = np.where(cut_f < self.layers, np.maximum(now, links.send(f, m, ready_f, size_f)), now)
        ready_m = now + self.compute(m, "forward", cut_f, cut_m, n_mf)
        now = raw_r + self.compute(r, "forward", zero, cut_m, n_r)
        now = np.where(cut_m < self.layers, np.maximum(now, links.send(m, r, ready_m, size_m)), now)
        now = now + self.compute(r, "forward", cut_m, full, n_all) + self.compute(r, "backward", cut_m, full, n_all)
        back_m = np.where(cut_m < self.layers, np.maximum(ready_m, links.send(r, m, now, size_m)), ready_m)
        end_r = now + self.compute(r, "backward", zero, cut_m, n_r)
        now = back_m + self.compute(m, "backward", cut_f, cut_m, n_mf)
        back_f = np.where(cut_f < self.layers, np.maximum(ready_f, links.send(m, f, now, size_f)), ready_f)
        end_m = now + self.compute(m, "backward", zero, cut_f, n_m)
        summed_f = back_f + self.compute(f, "backward", zero, cut_f, n_f)
        summed_m = np.maximum(end_m, links.send(f, m, summed_f, self.prefix[cut_f]))
        end = np.maximum(end_r, links.send(m, r, summed_m, self.prefix[cut_m]))
        has_m = links.send(r, m, end + self.update(r), self.prefix[cut_m])
        return np.maximum(has_m, links.send(m, f, has_m, self.prefix[cut_f]))


def branch_and_bound_optimum(problem: Problem) -> float:
    """The least time over all trees of up to three workers, without constraints."""
    equations = _Equations(problem)
    best = min(
        _single(problem, name) if parent is None else _pair(problem, name, parent)
        for name in problem.workers
        for parent in (None, *(other for other in problem.workers if other != name))
    )
    for names in permutations(problem.workers, 3):
        best = _search(problem, best, lambda *boxes, names=names: equations.star(names, *boxes), middle=False)
        best = _search(problem, best, lambda *boxes, names=names: equations.chain(names, *boxes), middle=True)
    return best


def _single(problem: Problem, name: str) -> float:
    only = Plan(
        batch_size=problem.batch_size,
        data_holder=problem.data_holder,
        workers={
            other: Assignment(parent=None, depth=problem.profile.chain.depth, samples=problem.batch_size)
            if other == name
            else Assignment(parent=name, depth=0, samples=0)
            for other in problem.profile.workers
        },
    )
    program = compile_plan(only, problem.profile.chain, problem.execution)
    return simulate(program, problem.profile, problem.network).period_s


def _pair(problem: Problem, child: str, root: str) -> float:
    """Every depth and split of two workers: the star's equations with the one child in both places would count it
    twice, so the equations are written out."""
    eq = _Equations(problem)
    cut, n = (axis.ravel() for axis in np.meshgrid(np.arange(1, eq.layers + 1), np.arange(1, eq.total + 1)))
    zero, full, rest = np.zeros_like(cut), np.full_like(cut, eq.layers), eq.total - n
    both, sends = np.where(cut < eq.layers, eq.total, rest), cut < eq.layers
    links = _Links(problem)
    ready = links.raw(child, n) + eq.compute(child, "forward", zero, cut, n)
    size = n * eq.output[cut]
    now = links.raw(root, rest) + eq.compute(root, "forward", zero, cut, rest)
    now = np.where(sends, np.maximum(now, links.send(child, root, ready, size)), now)
    now = now + eq.compute(root, "forward", cut, full, both) + eq.compute(root, "backward", cut, full, both)
    back = np.where(sends, np.maximum(ready, links.send(root, child, now, size)), ready)
    summed = back + eq.compute(child, "backward", zero, cut, n)
    end = np.maximum(
        now + eq.compute(root, "backward", zero, cut, rest), links.send(child, root, summed, eq.prefix[cut])
    )
    return float(links.send(root, child, end + eq.update(root), eq.prefix[cut]).min())


def _search(problem: Problem, best: float, bound: Callable[..., Seconds], *, middle: bool) -> float:
    """The lesser of ``best`` and the least time over all depths and samples of the two workers below the root."""
    total, layers = problem.batch_size, problem.profile.chain.depth
    first, second = (axis.ravel() for axis in np.meshgrid(np.arange(1, layers + 1), np.arange(1, layers + 1)))
    ordered = first <= second
    least = 0 if middle else 1
    if total < 1 + least:
        return best
    shape = int(ordered.sum())
    depth = np.array([first[ordered], second[ordered]])
    low = np.array([[1], [least]]).repeat(shape, axis=1)
    high = np.array([[total - least], [total - 1]]).repeat(shape, axis=1)
    while depth.shape[1]:
        bounds = bound(list(depth), list(low), list(high))
        points = (low == high).all(axis=0)
        best = min(best, bounds[points].min(initial=best))
        middle_point = (low + high) // 2
        inside = middle_point.sum(axis=0) <= total
        points_only = [list(depth[:, inside]), list(middle_point[:, inside]), list(middle_point[:, inside])]
        if inside.any():
            best = min(best, bound(*points_only).min())
        keep = ~points & (bounds < best)
        depth, low, high = depth[:, keep], low[:, keep], high[:, keep]
        axis, column = np.argmax(high - low, axis=0), np.arange(depth.shape[1])
        half = (low[axis, column] + high[axis, column]) // 2
        lower_high, upper_low = high.copy(), low.copy()
        lower_high[axis, column], upper_low[axis, column] = half, half + 1
        depth = np.concatenate([depth, depth], axis=1)
        low, high = np.concatenate([low, upper_low], axis=1), np.concatenate([lower_high, high], axis=1)
        high = np.minimum(high, total - low[::-1])
        keep = (low <= high).all(axis=0)
        depth, low, high = depth[:, keep], low[:, keep], high[:, keep]
    return best
