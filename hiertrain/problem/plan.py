"""The plan: who computes which layers for how many samples.

A plan is a rooted tree of workers. The paper's plan is the star: root ``o`` (all layers) with children ``s`` and
``l``; the chain device -> edge -> cloud and "everything on one worker" are other cases. Worker w computes layers
1..m_w (its depth); b_w samples start at layer 1 on it; S_w, the samples it carries, are its own and its subtree's.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Mapping
from functools import cached_property
from itertools import accumulate

from pydantic import Field, model_validator

from hiertrain.problem.chain import Chain
from hiertrain.values import MOST_WORKERS, BatchSize, InputError, Layers, Name, Samples, Value


class Assignment(Value):
    """One worker's part of a plan."""

    parent: Name | None  # None for the root
    depth: Layers  # m_w: the worker computes layers 1..depth
    samples: Samples  # b_w: samples that start at layer 1 here


class Plan(Value):
    """A rooted tree of workers: the content of ``plan.json``.

    Rules: one root; a child is no deeper than its parent; a worker of depth 0 has no samples and no child that
    computes; the samples add up to the batch size.
    """

    batch_size: BatchSize
    data_holder: Name  # the worker that has the raw samples
    workers: dict[Name, Assignment] = Field(max_length=MOST_WORKERS)

    @model_validator(mode="after")
    def _is_a_tree(self) -> "Plan":
        roots = [name for name, part in self.workers.items() if part.parent is None]
        if len(roots) != 1:
            raise ValueError(f"workers without parent: {', '.join(roots) or 'none'}; exactly one worker is the root")
        if self.data_holder not in self.workers:
            raise ValueError(f"data_holder {self.data_holder!r} is not one of the workers {', '.join(self.workers)}")
        for name, part in self.workers.items():
            if part.parent is not None and part.parent not in self.workers:
                raise ValueError(f"worker {name!r} has the parent {part.parent!r}, which is not a worker")
        self._check_ancestors()
        for name, part in self.workers.items():
            if part.depth == 0 and part.samples > 0:
                raise ValueError(f"worker {name!r} has depth 0 and {part.samples} samples; depth 0 means no samples")
            if part.parent is not None and part.depth > self.workers[part.parent].depth:
                raise ValueError(
                    f"worker {name!r} has depth {part.depth}, its parent {part.parent!r} has "
                    f"{self.workers[part.parent].depth}; a worker is no deeper than its parent"
                )
        total = sum(part.samples for part in self.workers.values())
        if total != self.batch_size:
            raise ValueError(f"samples add up to {total}; they must add up to the batch size {self.batch_size}")
        return self

    def _check_ancestors(self) -> None:
        known: set[str] = set()  # to have the root above them
        for name in self.workers:
            above: dict[str, None] = {}
            worker: str | None = name
            while worker is not None and worker not in known:
                if worker in above:
                    raise ValueError(f"workers {' -> '.join([*above, worker])} form a cycle; parents must form a tree")
                above[worker] = None
                worker = self.workers[worker].parent
            known.update(above)

    @cached_property
    def root(self) -> str:
        """The worker without parent; it computes all layers and holds the optimizer."""
        return next(name for name, part in self.workers.items() if part.parent is None)

    @cached_property
    def carried(self) -> Mapping[str, int]:
        """S_w for every worker: its own samples and its subtree's."""
        totals = {name: part.samples for name, part in self.workers.items()}
        for name in reversed(self._breadth_first):
            parent = self.workers[name].parent
            if parent is not None:
                totals[parent] += totals[name]
        return totals

    @cached_property
    def _breadth_first(self) -> list[str]:
        """All workers, each after its parent."""
        below = defaultdict(list)
        for name, part in self.workers.items():
            below[part.parent].append(name)
        order = [self.root]
        for name in order:  # grows while it is read
            order += below[name]
        return order

    def active(self, name: str) -> bool:
        """Whether the worker takes part in the computation (S_w > 0)."""
        return self.carried[name] > 0

    @cached_property
    def top_down(self) -> tuple[str, ...]:
        """The active workers, each after its parent; the root is the first."""
        return tuple(name for name in self._breadth_first if self.active(name))

    @cached_property
    def _children(self) -> Mapping[str, list[str]]:
        found: dict[str, list[str]] = {name: [] for name in self.workers}
        for name in sorted(self.top_down, key=lambda name: (self.workers[name].depth, name)):
            parent = self.workers[name].parent
            if parent is not None:
                found[parent].append(name)
        return found

    def children(self, name: str) -> list[str]:
        """The active children of ``name``, shallowest first (ties by name)."""
        return list(self._children[name])

    @cached_property
    def _stages(self) -> Mapping[str, tuple[list[int], list[int]]]:
        """The depths of each worker's children, and its samples before the first of these depths, then after each."""
        return {
            name: (
                [self.workers[child].depth for child in children],
                list(accumulate((self.carried[child] for child in children), initial=self.workers[name].samples)),
            )
            for name, children in self._children.items()
        }

    def samples_at(self, name: str, layer: int) -> int:
        """n: the samples that ``name`` computes in layer number ``layer`` (1-based); 0 beyond its depth."""
        if layer > self.workers[name].depth:
            return 0
        depths, samples = self._stages[name]
        return samples[bisect_left(depths, layer)]

    @cached_property
    def _own_rows(self) -> Mapping[str, range]:
        ends = accumulate(part.samples for part in self.workers.values())
        return {
            name: range(end - part.samples, end) for (name, part), end in zip(self.workers.items(), ends, strict=True)
        }

    def own_rows(self, name: str) -> range:
        """The rows of the mini-batch that start at layer 1 on ``name``: consecutive, in the order of the workers."""
        return self._own_rows[name]

    @cached_property
    def participants(self) -> tuple[str, ...]:
        """The active workers and the data holder, which sends samples even when it computes nothing."""
        return tuple(name for name in self.workers if self.active(name) or name == self.data_holder)


def check_plan(plan: Plan, chain: Chain) -> None:
    """Raise InputError when the plan does not fit the chain: see ``misfit``."""
    reason = misfit(plan, chain)
    if reason is not None:
        raise InputError(f"plan: {reason}")


def misfit(plan: Plan, chain: Chain) -> str | None:
    """Why the plan does not fit the chain: a depth beyond N, a root that stops before it, a layer's samples too few."""
    for name, part in plan.workers.items():
        if part.depth > chain.depth:
            return f"worker {name!r} has depth {part.depth}; {chain.model} has only {chain.depth} layers"
    if plan.workers[plan.root].depth != chain.depth:
        return (
            f"the root {plan.root!r} has depth {plan.workers[plan.root].depth}; "
            f"the root computes all {chain.depth} layers of {chain.model}"
        )
    for number, layer in enumerate(chain.layers, start=1):
        for name in plan.workers if layer.least_samples > 1 else ():
            samples = plan.samples_at(name, number)
            if 0 < samples < layer.least_samples:
                return (
                    f"worker {name!r} computes {layer.name}, layer {number} of {chain.model}, for {samples} "
                    f"sample{'s' * (samples > 1)}; the layer takes at least {layer.least_samples}"
                )
    return None
