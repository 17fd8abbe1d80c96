"""Tables: one row per thing, units in the names of the columns, and tables as text."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from hiertrain.control.answers import Iteration
from hiertrain.problem.execution import Execution
from hiertrain.problem.network import Link, Network
from hiertrain.program.actions import Program
from hiertrain.program.compiler import compile_plan
from hiertrain.program.simulator import simulate
from hiertrain.program.timeline import Timeline
from hiertrain.results import tables, timelines
from hiertrain.training.run import TrainingRun, counting
from tests.profiling.test_residuals import PROFILE, plan

NETWORK = Network(
    links=tuple(
        Link(source=a, target=b, bandwidth_mbps=1, latency_ms=5) for a, b in (("device", "edge"), ("edge", "device"))
    )
)
PLAN = plan(8, 4)
PROGRAM, OVERLAPPED = (compile_plan(PLAN, PROFILE.chain, Execution(prefetch=prefetch)) for prefetch in (False, True))
PREDICTED, FLOWING = (simulate(program, PROFILE, NETWORK) for program in (PROGRAM, OVERLAPPED))


def run_as_predicted(program: Program, predicted: Timeline, iterations: int) -> TrainingRun:
    """Every action lasts as long as it should, in the iterations that count; the others last twice as long."""
    done: dict[str, list[Iteration]] = {name: [] for name in program.actions}
    start_s = 100.0
    for number in range(iterations):
        times = 1 if number in counting(iterations, program.overlapped) else 2
        end_s = start_s + times * predicted.period_s
        for name, own in done.items():
            spans = sorted((span for span in predicted.spans if span.worker == name), key=lambda span: span.position)
            times_s = tuple(
                (end_s - (predicted.period_s - t.start_s), end_s - (predicted.period_s - t.end_s)) for t in spans
            )
            own.append(Iteration(loss=1, started_s=start_s, ended_s=end_s, spans=times_s, late_s=0))
        start_s = end_s
    return TrainingRun(program, done, dict.fromkeys(done, ()), {})


RUN = {"a plan": run_as_predicted(PROGRAM, PREDICTED, 3)}
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
        (lambda: timelines.predicted_spans(PROGRAM, PREDICTED), len(PREDICTED.spans), {"source": "predicted"}),
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


@pytest.mark.parametrize(
    ("program", "predicted", "iterations"),
    [(PROGRAM, PREDICTED, 3), (OVERLAPPED, FLOWING, 8)],
    ids=["apart", "overlapped"],
)
def test_what_is_as_predicted_has_no_error(program: Program, predicted: Timeline, iterations: int) -> None:
    runs = {"a plan": run_as_predicted(program, predicted, iterations)}
    for table in (timelines.prediction_table, timelines.action_table):
        assert table(runs, {"a plan": predicted})["error_percent"].abs().max() < 1e-6
    foretold = timelines.predicted_spans(program, predicted)
    observed = timelines.observed_spans(runs["a plan"], "measured")
    order = ["iteration", "worker", "position"]
    pd.testing.assert_frame_equal(
        foretold.sort_values(order, ignore_index=True).drop(columns="source"),
        observed.sort_values(order, ignore_index=True).drop(columns="source"),
        atol=1e-9,
    )


def test_overlapped_iterations_are_shown_with_what_reaches_into_them() -> None:
    table = timelines.predicted_spans(OVERLAPPED, FLOWING)
    period_ms = FLOWING.period_s * 1e3
    assert set(table["iteration"]) == {-1, 0, 1, 2}
    assert (table.loc[table["iteration"] < 0, "end_ms"] > 0).all()
    updates = table[table["kind"] == "update"]
    assert updates["end_ms"].tolist() == pytest.approx([period_ms, 2 * period_ms, 3 * period_ms])
    sent = table[table["ahead"] > 0]
    assert set(sent["kind"]) == {"send samples"}
    later = sent.assign(iteration=sent["iteration"] + sent["ahead"])
    received = later.merge(table[table["kind"] == "receive samples"], on="iteration", suffixes=("", "_there"))
    assert len(received) == 2  # what is sent in the first and in the one before it
    assert (received["end_ms"] <= received["end_ms_there"] + 1e-9).all()


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
