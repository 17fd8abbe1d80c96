"""What each granularity buys: tables of plans and gains, by hand and against the cost model."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from hiertrain import files
from hiertrain.experiments import granularity
from hiertrain.experiments.granularity import (
    adaptation_table,
    gain_summary,
    gain_table,
    load_policies,
    policies_path,
    share_table,
)
from hiertrain.experiments.grid import Case, Setting, check_emulated, find_cases, setting_of, varied
from hiertrain.experiments.speedups import policy_table
from hiertrain.program.simulator import iteration_s
from hiertrain.testbeds import find_testbed
from hiertrain.values import InputError

LOCAL = check_emulated(find_testbed("local"))
MIDDLE = setting_of(LOCAL, "lenet5", 16)


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    return find_cases(LOCAL, [MIDDLE, *varied(MIDDLE, "cloud_mbps", [0.5, 50.0])], granularity.GRANULARITIES)


def by(table: pd.DataFrame, column: str) -> dict[Any, dict[Any, Any]]:
    """The rows by their value in a column."""
    return {row[column]: row for row in table.to_dict("records")}


def rows(setting: Setting, **times_ms: tuple[float, float, float, float]) -> pd.DataFrame:
    """A table of policies of one setting: predicted, observed, low and high times."""
    columns = ["predicted_ms", "observed_ms", "low_ms", "high_ms"]
    return pd.DataFrame(
        {**dict(setting), "policy": name, **dict(zip(columns, values, strict=True)), "kind": "measured"}
        for name, values in times_ms.items()
    )


def test_shares_add_up_and_idle_workers_compute_no_layer(cases: list[Case]) -> None:
    table = share_table(cases, "hiertrain+")
    assert len(table) == 3 * len(cases)
    for case in cases:
        plan = case.policies["hiertrain+"].plan
        own = by(table[table["cloud_mbps"] == case.setting.cloud_mbps], "worker")
        assert sum(row["sample_percent"] for row in own.values()) == pytest.approx(100)
        assert own[plan.root]["depth_percent"] == 100
        for name, part in plan.workers.items():
            assert own[name]["sample_percent"] == pytest.approx(100 * part.samples / 16)
            assert (own[name]["depth_percent"] > 0) == plan.active(name)


def test_keeping_a_plan_costs_what_the_cost_model_says(cases: list[Case]) -> None:
    table = by(adaptation_table(cases, [MIDDLE], "hiertrain+"), "cloud_mbps")
    assert table[MIDDLE.cloud_mbps]["kept_percent"] == 0
    kept = cases[0].policies["hiertrain+"].plan
    for case in cases[1:]:
        best = case.policies["hiertrain+"]
        ratio = iteration_s(best.problem, kept) / iteration_s(best.problem, best.plan)
        assert table[case.setting.cloud_mbps]["kept_percent"] == pytest.approx(100 * (ratio - 1), abs=1e-9)
    assert max(row["kept_percent"] for row in table.values()) > 1  # one plan does not do for all these rates


def test_plans_adapt_under_any_execution() -> None:
    """Raw samples as float32 are not the paper's execution, of which alone there is a closed form."""
    settings = [MIDDLE, *varied(MIDDLE, "sample_encoding", ["float32"])]
    table = adaptation_table(find_cases(LOCAL, settings, ["hiertrain+"]), [MIDDLE], "hiertrain+")
    assert list(table["sample_encoding"]) == ["uint8", "float32"]
    assert table["kept_percent"].iloc[0] == 0 <= table["kept_percent"].iloc[1]


def test_gains_are_over_the_best_one_predicted_and_observed() -> None:
    nan = np.nan
    table = rows(
        MIDDLE,
        **{
            "layer-parallel": (20.0, 24.0, 20.0, 25.0),
            "data-parallel": (25.0, 22.0, 20.0, 23.0),  # observed to be faster, but not predicted to be
            "hiertrain": (25.0, nan, nan, nan),
            "hiertrain+": (16.0, 11.0, 10.0, 12.5),
        },
    )
    gains = by(gain_table(table, over=granularity.NON_HYBRID), "policy")
    expected = {"layer-parallel": 0.0, "data-parallel": -20.0, "hiertrain": -20.0, "hiertrain+": 25.0}
    assert {name: row["predicted"] for name, row in gains.items()} == pytest.approx(expected)
    assert gains["hiertrain+"]["observed"] == pytest.approx(100.0)
    assert gains["hiertrain+"]["low"] == pytest.approx(100 * (20 / 12.5 - 1))
    assert gains["hiertrain+"]["high"] == pytest.approx(100 * (23 / 10 - 1))
    assert all(math.isnan(gains["hiertrain"][column]) for column in ("observed", "low", "high"))


def test_summary_counts_gains_above_the_threshold_and_names_the_largest() -> None:
    settings = varied(MIDDLE, "cloud_mbps", [1.0, 2.0, 3.0])
    times_ms = [(100.0, 100.0), (100.0, 80.0), (100.0, 99.5)]
    table = pd.concat(
        [
            rows(point, **{"layer-parallel": (a, a, a, a), "hiertrain+": (h, h, h, h)})
            for point, (a, h) in zip(settings, times_ms, strict=True)
        ],
        ignore_index=True,
    )
    summary = by(gain_summary(gain_table(table, over=granularity.NON_HYBRID), percent=1.0), "policy")
    hybrid = summary["hiertrain+"]
    assert (hybrid["settings"], hybrid["above"], hybrid["cloud_mbps"]) == (3, 1, 2.0)
    assert hybrid["median_percent"] == pytest.approx(100 * (100 / 99.5 - 1))
    assert hybrid["median_above_percent"] == hybrid["largest_percent"] == pytest.approx(25.0)
    assert summary["layer-parallel"]["above"] == 0
    assert math.isnan(summary["layer-parallel"]["median_above_percent"])


def test_hybrid_plans_contain_the_others(cases: list[Case]) -> None:
    policies = policy_table(LOCAL, cases, {}, 0.0)
    of_worker = gain_table(policies, over=granularity.SINGLE)
    of_plan = gain_table(policies, over=granularity.NON_HYBRID)
    assert of_worker.loc[of_worker["policy"].isin(granularity.NON_HYBRID), "predicted"].min() >= -1e-4
    assert of_plan.loc[of_plan["policy"] == "hiertrain+", "predicted"].min() >= -1e-4
    assert of_plan.loc[of_plan["policy"].isin(granularity.SINGLE), "predicted"].max() <= 1e-4
    assert of_plan["observed"].isna().all()


def test_the_table_of_a_run_is_read_as_it_was_written_or_refused(cases: list[Case], tmp_path: Path) -> None:
    policies = policy_table(LOCAL, cases, {}, 0.0)
    path = policies_path("try", tmp_path)
    with pytest.raises(InputError, match=r"06-policies\.csv: No such file; notebook 06-speedups writes it"):
        load_policies("try", tmp_path)
    files.write_text(path, "")
    with pytest.raises(InputError, match=r"06-policies\.csv: not a table: No columns"):
        load_policies("try", tmp_path)
    path.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(InputError, match=r"06-policies\.csv: not a table: "):
        load_policies("try", tmp_path)
    files.write_text(path, policies.drop(columns="low_ms").to_csv(index=False))
    with pytest.raises(InputError, match=r"06-policies\.csv: column 'low_ms' is missing; there are model, batch_size"):
        load_policies("try", tmp_path)
    files.write_text(path, policies.to_csv(index=False))
    loaded = load_policies("try", tmp_path)
    known = [*Setting.model_fields, "policy", "predicted_ms"]
    pd.testing.assert_frame_equal(loaded[known], policies[known])
