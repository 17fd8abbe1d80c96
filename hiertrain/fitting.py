"""From measured times to costs: a line where one fits, else a line with bends. Pure; times in seconds.

Everything is relative to the measured times, because they span orders of magnitude and the smallest matter as much as
the largest.
"""

import numpy as np
from numpy.typing import NDArray

from hiertrain.problem.profile import Bend, LayerCost, LayerTimes, TimingPoint
from hiertrain.residuals import LIMIT

Floats = NDArray[np.float64]


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
