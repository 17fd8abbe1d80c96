"""What the profiling stage finds: layer sizes, and the time of each layer on each worker.

Times are affine in the number of samples, ``fixed_s + per_sample_s * n`` and 0 for n = 0; the paper's model is the
case ``fixed_s = 0``. Where a layer's measured times are not on such a line, its cost bends: it is piecewise affine.
No cost falls with the number of samples.
"""

from collections.abc import Iterable
from functools import cached_property
from itertools import pairwise
from typing import Literal

from pydantic import Field, model_validator

from hiertrain.problem.chain import Chain, Layer, check_layer_names
from hiertrain.problem.hierarchy import Tier
from hiertrain.values import (
    MOST_LAYERS,
    MOST_WORKERS,
    BatchSize,
    Count,
    InputError,
    LayerName,
    Name,
    PositiveBytes,
    PositiveCount,
    Samples,
    Seconds,
    Slowdown,
    Threads,
    Value,
)


class Bend(Value):
    """Where a cost changes its slope: each sample above ``above`` takes ``per_sample_s``."""

    above: BatchSize
    per_sample_s: Seconds


class LayerCost(Value):
    """Seconds for n samples: ``fixed_s``, and ``per_sample_s`` for each sample up to the first bend; 0 for n = 0."""

    fixed_s: Seconds
    per_sample_s: Seconds
    bends: tuple[Bend, ...] = ()

    @model_validator(mode="after")
    def _bends_are_in_order(self) -> "LayerCost":
        for before, after in pairwise(self.bends):
            if before.above >= after.above:
                raise ValueError(f"a bend above {after.above} samples follows one above {before.above}; must be higher")
        return self

    def seconds(self, samples: int) -> float:
        if not samples:
            return 0.0
        ends = [bend.above for bend in self.bends if bend.above < samples]
        lengths = (last - first for first, last in pairwise([0, *ends, samples]))
        slopes = (self.per_sample_s, *(bend.per_sample_s for bend in self.bends))
        return self.fixed_s + sum(slope * length for slope, length in zip(slopes, lengths, strict=False))

    def slope_s(self, samples: int) -> float:
        """Seconds that one more sample takes, beyond so many."""
        return next((bend.per_sample_s for bend in reversed(self.bends) if bend.above <= samples), self.per_sample_s)

    def scaled(self, factor: float) -> "LayerCost":
        return LayerCost(
            fixed_s=self.fixed_s * factor,
            per_sample_s=self.per_sample_s * factor,
            bends=tuple(Bend(above=bend.above, per_sample_s=bend.per_sample_s * factor) for bend in self.bends),
        )

    def linear_at(self, samples: int) -> "LayerCost":
        """The paper's cost, proportional to n, with the same seconds for n = ``samples`` (at least 1)."""
        return LayerCost(fixed_s=0.0, per_sample_s=self.seconds(samples) / samples)


class LayerTimes(Value):
    """One layer on one worker."""

    forward: LayerCost
    backward: LayerCost
    update_s: Seconds  # one optimizer step over the layer's parameters

    def scaled(self, factor: float) -> "LayerTimes":
        return LayerTimes(
            forward=self.forward.scaled(factor),
            backward=self.backward.scaled(factor),
            update_s=self.update_s * factor,
        )

    def linear_at(self, samples: int) -> "LayerTimes":
        """With costs proportional to the number of samples that are right at ``samples``."""
        return LayerTimes(
            forward=self.forward.linear_at(samples), backward=self.backward.linear_at(samples), update_s=self.update_s
        )


Step = Literal["forward", "backward", "update"]
Accelerator = Literal["cpu", "cuda"]


class TimingPoint(Value):
    """Repeated timings of one step of one layer: the median, and the interquartile range as spread."""

    layer: LayerName
    step: Step
    samples: Samples  # 0 for the update, which does not depend on it
    median_s: Seconds
    spread_s: Seconds


class Measurement(Value):
    """How a worker's times were obtained."""

    host: str
    threads: Threads
    accelerator: Accelerator = "cpu"
    memory_kept: bool = False  # see ``control.memory``; False in profiles of before it was
    warm_up: Count
    repetitions: PositiveCount
    points: tuple[TimingPoint, ...]
    skipped: tuple[str, ...] = ()  # sample counts left out, each with its reason


def bends_of(costs: Iterable[LayerCost]) -> list[int]:
    """The numbers of samples above which any of the costs changes its slope, in their order."""
    return sorted({bend.above for cost in costs for bend in cost.bends})


class WorkerProfile(Value):
    """The layers' times on one worker, in chain order."""

    layers: tuple[LayerTimes, ...]
    slowdown: Slowdown = 1.0  # above 1: emulated by pacing a faster machine by this factor
    measurement: Measurement | None = None  # None: written by hand
    tier: Tier | None = Field(default=None, exclude_if=lambda tier: tier is None)  # None: its name says it

    def scaled(self, factor: float) -> "WorkerProfile":
        """The same worker ``factor`` times slower, as the runtime's pacing emulates it."""
        return WorkerProfile(
            layers=tuple(times.scaled(factor) for times in self.layers),
            slowdown=self.slowdown * factor,
            measurement=self.measurement,
            tier=self.tier,
        )

    def linear_at(self, samples: int) -> "WorkerProfile":
        """With costs proportional to the number of samples that are right at ``samples``."""
        return self.model_copy(update={"layers": tuple(times.linear_at(samples) for times in self.layers)})

    @cached_property
    def update_s(self) -> float:
        """Seconds of one optimizer step over all layers."""
        return sum(times.update_s for times in self.layers)

    def updated_s(self, first: int, last: int) -> float:
        """Seconds of one optimizer step over layers ``first..last`` (1-based, inclusive)."""
        return sum(times.update_s for times in self.layers[first - 1 : last])

    def forward_s(self, first: int, last: int, samples: int) -> float:
        """Seconds for the forward pass of layers ``first..last`` (1-based, inclusive) over ``samples``."""
        return sum(times.forward.seconds(samples) for times in self.layers[first - 1 : last])

    def backward_s(self, first: int, last: int, samples: int) -> float:
        """Seconds for the backward pass of layers ``first..last`` (1-based, inclusive) over ``samples``."""
        return sum(times.backward.seconds(samples) for times in self.layers[first - 1 : last])


class Profile(Value):
    """Sizes and times of one model on a set of workers: the content of ``profile.json``."""

    model: Name
    sample_bytes: PositiveBytes
    # Of the data set that it was measured for: see ``Chain``.
    compressed_sample_bytes: PositiveBytes | None = Field(default=None, exclude_if=lambda size: size is None)
    dtype: Literal["float32"] = "float32"
    layers: tuple[Layer, ...] = Field(min_length=1, max_length=MOST_LAYERS)
    workers: dict[Name, WorkerProfile] = Field(min_length=1, max_length=MOST_WORKERS)

    @model_validator(mode="after")
    def _times_match_layers(self) -> "Profile":
        check_layer_names(self.layers)
        for name, worker in self.workers.items():
            if len(worker.layers) != len(self.layers):
                raise ValueError(
                    f"worker {name!r} has times for {len(worker.layers)} layers, the model has {len(self.layers)}; "
                    "every worker needs one entry per layer"
                )
        return self

    @cached_property
    def chain(self) -> Chain:
        """The sizes alone."""
        return Chain(
            model=self.model,
            sample_bytes=self.sample_bytes,
            compressed_sample_bytes=self.compressed_sample_bytes,
            dtype=self.dtype,
            layers=self.layers,
        )

    def with_layers(self, layers: tuple[Layer, ...]) -> "Profile":
        """The same times of other layers."""
        return self._with(layers=layers)

    def with_compressed_samples(self, size: int | None) -> "Profile":
        """The same times for a data set whose samples have so many bytes by zlib, on average."""
        return self._with(compressed_sample_bytes=size)

    def _with(self, **changes: object) -> "Profile":
        """The same with other sizes, from its fields: a copy would keep the chain of these."""
        fields = {name: getattr(self, name) for name in Profile.model_fields}
        return Profile.model_validate({**fields, **changes})

    def linear_at(self, samples: int) -> "Profile":
        """The profile that the paper's scheduler knows: costs proportional to n that are right at n = ``samples``."""
        return self.model_copy(
            update={"workers": {name: worker.linear_at(samples) for name, worker in self.workers.items()}}
        )

    def worker(self, name: str) -> WorkerProfile:
        """The times of worker ``name``. Raises InputError when it was not profiled."""
        if name not in self.workers:
            raise InputError(f"profile: no worker {name!r}; it has {', '.join(sorted(self.workers))}")
        return self.workers[name]
