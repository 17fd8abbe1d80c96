"""Tables: one row per thing, units in the names of the columns, and tables as text."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from hiertrain.control.answers import Iteration
from hiertrain.problem.execution import Execution
from hiertrain.problem.network import Link, Network
from hiertrain.program.compiler import compile_plan
from hiertrain.program.simulator import simulate
from hiertrain.results import tables, timelines
from hiertrain.training.run import TrainingRun
from tests.profiling.test_residuals import PROFILE, plan

NETWORK = Network(
    links=tuple(
        Link(source=a, target=b, bandwidth_mbps=1, latency_ms=5) for a, b in (("device", "edge"), ("edge", "device"))
    )
)
PLAN = plan(8, 4)
PROGRAM = compile_plan(PLAN, PROFILE.chain, Execution())
PREDICTED = simulate(PROGRAM, PROFILE, NETWORK)


def run_as_predicted() -> TrainingRun:
    """Three iterations in which every action lasts as long as it should."""
    done: dict[str, list[Iteration]] = {}
    for name in PROGRAM.actions:
        spans = sorted((span for span in PREDICTED.spans if span.worker == name), key=lambda span: span.position)
        for number in range(3):
            start_s = number * PREDICTED.period_s
            times_s = tuple((start_s + span.start_s, start_s + span.end_s) for span in spans)
            done.setdefault(name, []).append(
                Iteration(loss=1, started_s=start_s, ended_s=start_s + PREDICTED.period_s, spans=times_s, late_s=0)
            )
    return TrainingRun(PROGRAM, done, dict.fromkeys(done, ()), {})


RUN = {"a plan": run_as_predicted()}
TIMES = {"hiertrain": [1.0, 3.0, 2.0], "all-cloud": [4.0]}


@pytest.mark.parametrize(
    ("make", "rows", "expected"),
    [
        (lambda: tables.chain_table(PROFILE.chain), 2, {"layer": "pool", "sample_kib": 4 / 1024}),
        (lambda: tables.model_table([PROFILE.chain]), 1, {"layers": 2, "after": "pool", "exact": True}),
        (lambda: tables.points_table(PROFILE), 2 * 2 * 3 * 4, {"worker": "device", "median_ms": 2e3, "fitted_ms": 2e3}),
        (lambda: tables.residual_table(PROFILE), 2 * 2 * 2, {"samples": 32, "measured_ms": 128e3, "cost_ms": 64e3}),
        (lambda: tables.layer_times_table(PROFILE, 8), 3 * 2 * 2, {"step": "forward", "batch_ms": 16e3, "samples": 8}),
        (lambda: tables.link_table(NETWORK), 2, {"from": "device", "to": "edge", "latency_ms": 5}),
        (lambda: tables.plan_table(PLAN), 3, {"worker": "device", "parent": "edge", "depth": 2, "carried": 8}),
        (lambda: timelines.timeline_table(PREDICTED, "predicted"), len(PREDICTED.spans), {"source": "predicted"}),
        (lambda: tables.times_table(TIMES, "measured"), 2, {"iteration_ms": 2e3, "low_ms": 1.5e3, "high_ms": 2.5e3}),
        (lambda: timelines.prediction_table(RUN, {"a plan": PREDICTED}), 1, {"plan": "a plan", "iterations": 2}),
        (lambda: timelines.action_table(RUN, {"a plan": PREDICTED}), 5, {"kind": "send samples"}),
        (lambda: tables.convergence_table("p", [2.0, 1.0], [0.5, 1.0]), 2, {"iteration": 1, "time_s": 0.5, "loss": 2}),
    ],
)
def test_every_table_has_its_rows(make: Callable[[], pd.DataFrame], rows: int, expected: dict[str, object]) -> None:
    table = make()
    assert len(table) == rows
    assert table.iloc[0][list(expected)].to_dict() == expected


def test_what_is_as_predicted_has_no_error() -> None:
    for table in (timelines.prediction_table, timelines.action_table):
        assert table(RUN, {"a plan": PREDICTED})["error_percent"].abs().max() < 1e-6


def test_residuals_are_the_worst_of_each_layer_and_step_and_the_worst_come_first() -> None:
    assert tables.residual_table(PROFILE)["residual_percent"].tolist() == [-50, -50, 0, 0, 0, 0, 0, 0]


def test_markdown_has_a_line_per_row_and_a_cell_per_value() -> None:
    df = pd.DataFrame({"reason": ["a|b", "c"], "low": [np.nan, 1.2345], "plans": [3, 17]})
    assert tables.markdown_table(df).splitlines() == [
        "| reason | low | plans |",
        "| --- | --- | --- |",
        "| a\\|b |  | 3 |",
        "| c | 1.23 | 17 |",
    ]
