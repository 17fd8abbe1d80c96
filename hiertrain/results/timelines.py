"""How iterations went beside how they were predicted, as DataFrames: what records of executed work keep.

Other tables are made of records, and may change without making these worthless: nothing here imports them.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from hiertrain.program.actions import MOST_AHEAD, Op, Program
from hiertrain.program.simulator import receipts
from hiertrain.program.timeline import Span, Timeline
from hiertrain.training.run import TrainingRun, was_awaited

SHOWN = 3  # iterations in a table of spans, where they overlap


def predicted_spans(program: Program, timeline: Timeline) -> pd.DataFrame:
    """The spans of a simulated program's iteration, or of ``SHOWN`` in the steady state: see ``observed_spans``."""
    before, shown = (MOST_AHEAD, SHOWN) if program.overlapped else (0, 1)
    return _spans([timeline] * (before + shown), before, "predicted")


def observed_spans(run: TrainingRun, kind: str) -> pd.DataFrame:
    """One row per span of the typical iteration; where they overlap, of ``SHOWN`` of them in a row.

    ``iteration`` is from 0, which starts at 0 ms, and below 0 for what reaches in from earlier ones; ``period_ms``: its
    time. ``ahead``: for the iteration so many later. ``kind`` is emulated or measured.
    """
    shown = run.typical(SHOWN if run.program.overlapped else 1)
    before = range(max(0, shown.start - MOST_AHEAD), shown.start) if run.program.overlapped else ()
    return _spans([run.timeline(iteration) for iteration in (*before, *shown)], len(before), kind)


def _spans(timelines: Sequence[Timeline], before: int, source: str) -> pd.DataFrame:
    """Of consecutive iterations, the first ``before`` of which only where they reach into the others."""
    starts_s = np.cumsum([0.0, *(timeline.period_s for timeline in timelines)])
    starts_s -= starts_s[before]
    return pd.DataFrame(
        {
            "iteration": number,
            "worker": span.worker,
            "position": span.position,
            "kind": span.action.label,
            "peer": span.action.peer,
            "ahead": span.action.ahead,
            "start_ms": (start_s + span.start_s) * 1e3,
            "end_ms": (start_s + span.end_s) * 1e3,
            "period_ms": timeline.period_s * 1e3,
            "lane": "network" if span.action.role else "compute",
            "source": source,
        }
        for number, start_s, timeline in zip(range(-before, len(timelines)), starts_s, timelines, strict=False)
        for span in timeline.spans
        if number >= 0 or start_s + span.end_s > 0
    )


def prediction_table(runs: Mapping[str, TrainingRun], predicted: Mapping[str, Timeline]) -> pd.DataFrame:
    """One row per plan: predicted time per iteration, and what it was (median, quartiles) where it counts.

    ``error_percent``: of the prediction, as a share of the median.
    """
    rows = []
    for name, run in runs.items():
        low, median, high = np.quantile(run.steady_s, [0.25, 0.5, 0.75]) * 1e3
        predicted_ms = predicted[name].period_s * 1e3
        rows.append(
            {
                "plan": name,
                "predicted_ms": predicted_ms,
                "observed_ms": median,
                "low_ms": low,
                "high_ms": high,
                "error_percent": 100 * (predicted_ms / median - 1),
                "iterations": len(run.counted),
                "late_share": run.late_share,
            }
        )
    return pd.DataFrame(rows)


def action_table(runs: Mapping[str, TrainingRun], predicted: Mapping[str, Timeline]) -> pd.DataFrame:
    """One row per plan and kind of action that takes time of its own: computing, and messages under way.

    Durations summed over the workers' actions of the kind, predicted and the median over the iterations that count;
    ``error_percent`` is their difference as a share of the plan's iteration. Waiting is left out, and so are
    messages that were there when they were asked for, and those sent ahead, which queue: only the simulation knows when
    they begin to leave.
    """
    rows = []
    for name, run in runs.items():
        iteration_s = float(np.median(run.steady_s))
        observed_s: dict[Span, list[float]] = {span: [] for span in predicted[name].spans}
        receipt_of = receipts(run.program)
        real = {
            iteration: {(span.worker, span.position): span for span in run.timeline(iteration).spans}
            for iteration in run.with_spans
        }
        for iteration in run.counted:
            for span, durations_s in observed_s.items():
                place = span.worker, span.position
                receipt = real.get(iteration + span.action.ahead, {}).get(receipt_of.get(place, place))
                if iteration in real and receipt is not None and (place not in receipt_of or was_awaited(receipt)):
                    durations_s.append(real[iteration][place].end_s - real[iteration][place].start_s)
        totals_s: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        for span, durations_s in observed_s.items():
            if span.action.op != Op.RECEIVE and not span.action.ahead and durations_s:
                totals_s[span.action.label][0] += span.end_s - span.start_s
                totals_s[span.action.label][1] += float(np.median(durations_s))
        rows += [
            {
                "plan": name,
                "kind": kind,
                "predicted_ms": predicted_s * 1e3,
                "observed_ms": real_s * 1e3,
                "error_percent": 100 * (predicted_s - real_s) / iteration_s,
            }
            for kind, (predicted_s, real_s) in totals_s.items()
        ]
    return pd.DataFrame(rows)
