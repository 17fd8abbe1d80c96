"""From measured times to costs, a line where one fits, else a line with bends; and how far these are from the times.

Pure; times in seconds.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hiertrain.problem.plan import Plan
from hiertrain.problem.profile import Bend, LayerCost, LayerTimes, Profile, Step, TimingPoint

Floats = NDArray[np.float64]
# A cost that is further than this from its measured points misses them.
LIMIT = 0.1


def fit_layers(names: list[str], points: list[TimingPoint]) -> tuple[LayerTimes, ...]:
    """Costs per layer, in the order of ``names``, from measured points."""

    def of(name: str, step: str) -> list[TimingPoint]:
        return [point for point in points if point.layer == name and point.step == step]

    return tuple(
        LayerTimes(
            forward=fit_cost(of(name, "forward")),
            backward=fit_cost(of(name, "backward")),
            update_s=sum(point.median_s for point in of(name, "update")),
        )
        for name in names
    )


def fit_cost(points: list[TimingPoint]) -> LayerCost:
    """The line that is closest to the points; one with bends where that is further than LIMIT from one of them.

    The points have different numbers of samples.
    """
    points = sorted(points, key=lambda point: point.samples)
    counts = np.array([point.samples for point in points], dtype=float)
    times = np.array([max(point.median_s, 1e-9) for point in points])
    line = _line(counts, times)
    if np.abs(_misses(line, counts, times)).max() <= LIMIT:
        return line
    bent = _bent(counts, times)
    if np.abs(_misses(bent, counts, times)).max() <= LIMIT:
        return bent
    return min(line, bent, key=lambda cost: _loss(cost, counts, times))  # noise: neither follows it


def _misses(cost: LayerCost, counts: Floats, times: Floats) -> Floats:
    return np.array([cost.seconds(int(samples)) for samples in counts]) / times - 1


def _loss(cost: LayerCost, counts: Floats, times: Floats) -> float:
    return float((_misses(cost, counts, times) ** 2).sum())


def _line(counts: Floats, times: Floats) -> LayerCost:
    """The non-negative ``fixed_s + per_sample_s * n`` with the least relative squared error.

    One sample count alone cannot tell the two apart: all is then put down to the samples, as in the paper.
    """
    ratios = counts / times
    candidates = [LayerCost(fixed_s=0.0, per_sample_s=float(ratios.sum() / (ratios**2).sum()))]
    if len(counts) > 1:
        fixed, slope = np.linalg.lstsq(np.column_stack([1 / times, ratios]), np.ones(len(times)), rcond=None)[0]
        if fixed >= 0 and slope >= 0:  # the unconstrained optimum, else the better of the two edges
            return LayerCost(fixed_s=float(fixed), per_sample_s=float(slope))
        candidates.append(LayerCost(fixed_s=float((1 / times).sum() / (1 / times**2).sum()), per_sample_s=0.0))
    return min(candidates, key=lambda cost: _loss(cost, counts, times))


def _bent(counts: Floats, times: Floats) -> LayerCost:
    """The cost that rises through as few of the points as leave none of the others further than LIMIT off.

    Where times fall with the number of samples, which is noise, the closest ones that do not stand in for them.
    """
    times = _rising(times)
    through = {0, len(counts) - 1}
    while True:
        cost = _through(counts[sorted(through)], times[sorted(through)])
        misses = np.abs(_misses(cost, counts, times))
        if misses.max() <= LIMIT or len(through) == len(counts):
            return cost
        through.add(int(np.argmax(misses)))


def _rising(times: Floats) -> Floats:
    """The closest times of which none is below the one before: neighbours that fall share one value."""
    groups: list[list[float]] = []
    for time in times.tolist():
        groups.append([time])
        while len(groups) > 1 and _shared(groups[-2]) >= _shared(groups[-1]):
            groups[-2:] = [groups[-2] + groups[-1]]
    return np.array([_shared(group) for group in groups for _ in group])


def _shared(times: list[float]) -> float:
    """The value with the least relative squared error."""
    inverse = 1 / np.array(times)
    return float(inverse.sum() / (inverse**2).sum())


def _through(counts: Floats, times: Floats) -> LayerCost:
    """The cost through rising times, with a bend at each but the last, beyond which it goes on as before.

    Below the first count it goes on as well, without a bend there, unless it would be below 0 at no samples.
    """
    slopes = np.diff(times) / np.diff(counts)
    first = min(float(slopes[0]), float(times[0] / counts[0]))
    inner = [(int(samples), float(slope)) for samples, slope in zip(counts[:-1], slopes, strict=True)]
    if first == slopes[0]:
        del inner[0]
    return LayerCost(
        fixed_s=max(0.0, float(times[0] - first * counts[0])),
        per_sample_s=first,
        bends=tuple(Bend(above=samples, per_sample_s=slope) for samples, slope in inner),
    )


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
