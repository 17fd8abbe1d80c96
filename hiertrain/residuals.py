"""How far the costs that predict are from the times that they were fitted to. Pure; times in seconds."""

from collections.abc import Iterator
from dataclasses import dataclass

from hiertrain.problem.plan import Plan
from hiertrain.problem.profile import Profile, Step

# A cost that is further than this from its measured points misses them.
LIMIT = 0.1


@dataclass(frozen=True)
class Residual:
    """A layer's cost beside the median that was measured; both with the worker's slowdown."""

    worker: str
    layer: str
    step: Step
    samples: int
    measured_s: float
    cost_s: float

    @property
    def relative(self) -> float:
        """The cost's difference from the measured time, as a share of that; below 0 where it is too short."""
        return self.cost_s / self.measured_s - 1 if self.measured_s else float("inf") if self.cost_s else 0.0


def residuals(profile: Profile) -> list[Residual]:
    """Of every point of every layer, forward and backward, in the profile's order. None of a worker written by hand."""
    return [residual for worker in profile.workers for residual in _of_worker(profile, worker)]


def missed(profile: Profile, plan: Plan) -> list[Residual]:
    """The residuals above ``LIMIT`` at the numbers of samples that a plan uses, those of the most seconds first.

    For each layer, step and number of samples these are the measured counts next to it, below and above.
    """
    number = {layer.name: place for place, layer in enumerate(profile.layers, start=1)}
    found = []
    for worker in plan.workers:
        own = list(_of_worker(profile, worker))
        counts = sorted({residual.samples for residual in own})
        for residual in own:
            samples = plan.samples_at(worker, number[residual.layer])
            near = {*[n for n in counts if n <= samples][-1:], *[n for n in counts if n >= samples][:1]}
            if samples and residual.samples in near and abs(residual.relative) > LIMIT:
                found.append(residual)
    return sorted(found, key=lambda residual: -abs(residual.cost_s - residual.measured_s))


def _of_worker(profile: Profile, name: str) -> Iterator[Residual]:
    worker = profile.worker(name)
    times = dict(zip((layer.name for layer in profile.layers), worker.layers, strict=True))
    for point in worker.measurement.points if worker.measurement else ():
        if point.step != "update":
            cost_s = getattr(times[point.layer], point.step).seconds(point.samples)
            measured_s = point.median_s * worker.slowdown
            yield Residual(name, point.layer, point.step, point.samples, measured_s, cost_s)
