"""When splitting pays: tables of plans, against the cost model and by another way to find the kinds' best plans."""

from dataclasses import replace
from typing import Any

import pandas as pd
import pytest

from hiertrain.experiments.granularity import (
    KINDS,
    adaptation_table,
    find_contenders,
    map_summary,
    map_table,
    share_table,
)
from hiertrain.experiments.grid import Case, check_emulated, find_cases, problem_at, setting_of, varied
from hiertrain.planning.baselines import best_layer_parallel, single_worker_plans
from hiertrain.planning.optimize import optimize
from hiertrain.program.simulator import iteration_s
from hiertrain.testbeds import find_testbed

LOCAL = check_emulated(find_testbed("local"))
MIDDLE = setting_of(LOCAL, "lenet5", 16)


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    return find_cases(LOCAL, [MIDDLE, *varied(MIDDLE, "cloud_mbps", [0.5, 50.0])], ["hiertrain+"])


def by(table: pd.DataFrame, column: str) -> dict[Any, dict[Any, Any]]:
    """The rows by their value in a column."""
    return {row[column]: row for row in table.to_dict("records")}


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


@pytest.fixture(scope="module")
def contenders() -> list[Case]:
    """Where both are split, where one machine is best, and private samples."""
    overlapped = MIDDLE.model_copy(update={"execution": "overlapped"})
    private = overlapped.model_copy(update={"samples_stay": True, "cloud_mbps": 100.0})
    points = [*varied(overlapped, "cloud_mbps", [1.0, 20.0, 100.0]), private]
    return find_contenders(LOCAL, points, percent=1.0)


def test_the_simplest_kind_that_is_nearly_as_fast_wins(contenders: list[Case]) -> None:
    table = map_table(contenders, percent=1.0)
    for case, row in zip(contenders, table.to_dict("records"), strict=True):
        problem = problem_at(LOCAL, case.setting)
        best_s = optimize(problem).objective_s
        singles_s = {name: iteration_s(problem, plan) for name, plan in single_worker_plans(problem).items()}
        single_s = min(singles_s.values())
        assert row["single"] == min(singles_s, key=lambda name: singles_s[name])
        assert row["gain_percent"] == pytest.approx(100 * (single_s / best_s - 1), abs=1e-6)
        times_s = {
            row["single"]: single_s,
            "layers": iteration_s(problem, best_layer_parallel(problem)),
            "samples": optimize(replace(problem, whole_model=True)).objective_s,
            "both": best_s,
        }
        assert row["winner"] == next(kind for kind, time_s in times_s.items() if time_s <= 1.01 * best_s)
    assert len(set(table["winner"])) > 1


def test_a_threshold_that_nothing_reaches_leaves_single_machines(contenders: list[Case]) -> None:
    table = map_table(contenders, percent=1e6)
    assert (table["winner"] == table["single"]).all()
    assert set(table.loc[table["samples_stay"], "single"]) == {"device"}


def test_the_summary_counts_where_each_kind_wins() -> None:
    same = {"model": "lenet5", "samples_stay": False}
    rows = [("both", 5.0), ("cloud", 0.0), ("both", 20.0), ("both", 7.0)]
    summary = map_summary(pd.DataFrame([{**same, "winner": kind, "gain_percent": gain} for kind, gain in rows]))
    both = by(summary, "winner")["both"]
    assert (both["settings"], both["median_percent"], both["largest_percent"]) == (3, 7.0, 20.0)
    assert set(summary["winner"]) <= set(KINDS.values())
