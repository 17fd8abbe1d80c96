"""How iterations went beside how they were predicted, as DataFrames: what records of executed work keep.

Other tables are made of records, and may change without making these worthless: nothing here imports them.
"""

from collections import defaultdict
from collections.abc import Mapping

import numpy as np
import pandas as pd

from hiertrain.program.actions import Op
from hiertrain.program.simulator import receipts
from hiertrain.program.timeline import Span, Timeline
from hiertrain.training.run import TrainingRun, was_awaited


def timeline_table(timeline: Timeline, source: str) -> pd.DataFrame:
    """One row per span; ``source`` is predicted, emulated or measured."""
    return pd.DataFrame(
        {
            "worker": span.worker,
            "position": span.position,
            "kind": span.action.label,
            "peer": span.action.peer,
            "start_ms": span.start_s * 1e3,
            "end_ms": span.end_s * 1e3,
            "lane": "network" if span.action.role else "compute",
            "source": source,
        }
        for span in timeline.spans
    )


def prediction_table(runs: Mapping[str, TrainingRun], predicted: Mapping[str, Timeline]) -> pd.DataFrame:
    """One row per plan: predicted time per iteration, and what it was (median, quartiles), without the first one.

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
                "iterations": run.iterations - 1,
                "late_share": run.late_share,
            }
        )
    return pd.DataFrame(rows)


def action_table(runs: Mapping[str, TrainingRun], predicted: Mapping[str, Timeline]) -> pd.DataFrame:
    """One row per plan and kind of action that takes time of its own: computing, and messages under way.

    Durations summed over the workers' actions of the kind, predicted and the median over the iterations but the
    first; ``error_percent`` is their difference as a share of the plan's iteration. Waiting is left out, and so are
    messages that were there when they were asked for.
    """
    rows = []
    for name, run in runs.items():
        iteration_s = float(np.median(run.steady_s))
        observed_s: dict[Span, list[float]] = {span: [] for span in predicted[name].spans}
        for iteration in run.with_spans[1:]:
            timeline = {(span.worker, span.position): span for span in run.timeline(iteration).spans}
            for span, durations_s in observed_s.items():
                receipt = receipts(run.program).get((span.worker, span.position))
                if receipt is None or was_awaited(timeline[receipt]):
                    real = timeline[span.worker, span.position]
                    durations_s.append(real.end_s - real.start_s)
        totals_s: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        for span, durations_s in observed_s.items():
            if span.action.op != Op.RECEIVE and durations_s:
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
