from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from hiertrain import files
from hiertrain.paths import DATA
from hiertrain.problem.profile import Bend, LayerCost, LayerTimes, Profile, bends_of
from tests.strategies import layer_times

POOL = LayerCost(fixed_s=2, per_sample_s=1, bends=(Bend(above=4, per_sample_s=0), Bend(above=10, per_sample_s=3)))


def test_a_cost_with_bends_goes_from_point_to_point() -> None:
    counts = [1, 2, 4, 7, 10, 11, 20]
    assert [POOL.seconds(n) for n in counts] == np.interp(counts, [1, 4, 10, 20], [3, 6, 6, 36]).tolist()
    assert POOL.seconds(0) == 0
    assert [POOL.slope_s(n) for n in (0, 3, 4, 9, 10, 99)] == [1, 1, 0, 0, 3, 3]
    assert bends_of([POOL, LayerCost(fixed_s=1, per_sample_s=1), POOL]) == [4, 10]


@given(layer_times(), st.integers(1, 600))
def test_scaled_and_linear_costs_are_as_long_as_they_should_be(times: LayerTimes, samples: int) -> None:
    cost = times.forward
    assert cost.scaled(3).seconds(samples) == pytest.approx(3 * cost.seconds(samples))
    assert cost.linear_at(samples).seconds(samples) == pytest.approx(cost.seconds(samples))
    assert not cost.linear_at(samples).bends


def test_bends_out_of_order_are_refused() -> None:
    bends = (Bend(above=4, per_sample_s=1), Bend(above=4, per_sample_s=2))
    with pytest.raises(ValidationError, match="a bend above 4 samples follows one above 4; must be higher"):
        LayerCost(fixed_s=0, per_sample_s=1, bends=bends)


@pytest.mark.parametrize("path", sorted((DATA / "profiles").glob("*.json")), ids=lambda path: path.stem)
def test_recorded_profiles_are_of_memory_kept_and_take_single_samples(path: Path) -> None:
    profile = files.load(Profile, path)
    assert all(worker.measurement and worker.measurement.memory_kept for worker in profile.workers.values())
    assert {layer.least_samples for layer in profile.layers} == {1}
