import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hiertrain.problem.profile import LayerCost, TimingPoint
from hiertrain.profiling.estimates import LIMIT, fit_cost


def points(times: dict[int, float]) -> list[TimingPoint]:
    return [TimingPoint(layer="x", step="forward", samples=n, median_s=t, spread_s=0) for n, t in times.items()]


def loss(cost: LayerCost, times: dict[int, float]) -> float:
    return sum((cost.seconds(n) / t - 1) ** 2 for n, t in times.items())


@given(st.floats(0, 1), st.floats(1e-6, 1), st.lists(st.integers(1, 512), min_size=2, max_size=8, unique=True))
def test_fit_recovers_exact_affine_times(fixed_s: float, per_sample_s: float, counts: list[int]) -> None:
    fit = fit_cost(points({n: fixed_s + per_sample_s * n for n in counts}))
    assert not fit.bends
    for n in counts:
        assert fit.seconds(n) == pytest.approx(fixed_s + per_sample_s * n, rel=1e-6)


@given(st.dictionaries(st.integers(1, 512), st.floats(1e-6, 10), min_size=1, max_size=8))
def test_no_fit_falls_and_one_that_misses_is_no_worse_than_a_proportional_one(times: dict[int, float]) -> None:
    fit = fit_cost(points(times))
    every = np.array([fit.seconds(n) for n in range(600)])
    assert (np.diff(every) >= -1e-12 * every[1:]).all()
    slopes = np.geomspace(1e-9, 10, 50).tolist()
    if any(abs(fit.seconds(n) / time_s - 1) > LIMIT * (1 + 1e-9) for n, time_s in times.items()):
        assert loss(fit, times) <= min(loss(LayerCost(fixed_s=0, per_sample_s=slope), times) for slope in slopes) + 1e-9


# The best line misses the last time by 10.1%, and yet its sum of squares is below that of the cost that follows.
@example(
    dict(
        zip([2**k for k in range(8)], [0.9551, 1.3777, 2.2133, 3.7391, 6.3083, 13.6305, 25.6203, 56.7702], strict=True)
    )
)
@given(st.dictionaries(st.integers(1, 512), st.floats(1e-6, 10), min_size=1, max_size=8))
def test_a_cost_follows_times_that_rise(times: dict[int, float]) -> None:
    """Whatever their curve: none of them is missed by more than the limit."""
    rising = dict(zip(sorted(times), sorted(times.values()), strict=True))
    fit = fit_cost(points(rising))
    for n, time_s in rising.items():
        assert fit.seconds(n) == pytest.approx(time_s, rel=LIMIT * (1 + 1e-9))


def test_a_cost_bends_no_more_often_than_its_points_ask_for() -> None:
    """Maximum pooling as measured: from 32 samples on each takes twice as long."""
    times = {1: 22, 2: 31, 4: 50, 8: 83, 16: 157, 32: 535, 64: 1143, 128: 2269}
    fit = fit_cost(points({n: microseconds / 1e6 for n, microseconds in times.items()}))
    assert [bend.above for bend in fit.bends] == [16, 32]
    assert loss(fit, {n: microseconds / 1e6 for n, microseconds in times.items()}) < 0.02


def test_times_that_fall_are_noise() -> None:
    """The first sample took longest, since what it needs was not in the cache yet: no bend follows that."""
    times = {1: 0.153, 2: 0.072, 4: 0.079, 8: 0.088, 16: 0.111, 32: 0.148, 64: 0.207, 128: 0.331}
    fit = fit_cost(points(times))
    assert all(fit.seconds(n) == pytest.approx(time, rel=0.25) for n, time in times.items() if n > 1)
    assert fit.seconds(1) <= fit.seconds(2)


def test_a_single_sample_count_gives_the_papers_linear_cost() -> None:
    cost = fit_cost(points({8: 0.4}))
    assert (cost.fixed_s, cost.per_sample_s) == (0, pytest.approx(0.05))
