"""What splitting layers, samples or both buys: plans of each kind against the best ones that split less.

The same tables serve predictions and what notebook 06 has executed.
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from hiertrain.experiments.grid import Case, Setting
from hiertrain.experiments.speedups import describe, speedup_table
from hiertrain.paths import RESULTS
from hiertrain.planning.policies import SINGLE
from hiertrain.program.simulator import iteration_s
from hiertrain.results.records import run_folder
from hiertrain.results.tables import load_table
from hiertrain.values import InputError

NON_HYBRID = ("layer-parallel", "data-parallel")  # the plans of single workers are among either's
HYBRID = ("hiertrain", "hiertrain+")
GRANULARITIES = (*SINGLE, *NON_HYBRID, *HYBRID)


def load_policies(run: str, root: Path = RESULTS) -> pd.DataFrame:
    """The table of policies that notebook 06 left in a run. Raises InputError where it is not there, or another one."""
    path = policies_path(run, root)
    if not path.is_file():
        raise InputError(f"{path}: No such file; notebook 06-speedups writes it into its run")
    table = load_table(path)
    needed = [*Setting.model_fields, "policy", "predicted_ms", "observed_ms", "low_ms", "high_ms", "kind"]
    missing = [column for column in needed if column not in table.columns]
    if missing:
        raise InputError(f"{path}: column {missing[0]!r} is missing; there are {', '.join(table.columns)}")
    return table


def policies_path(run: str, root: Path = RESULTS) -> Path:
    """Where notebook 06 leaves its table of policies. Raises InputError for a run that is no folder name."""
    return run_folder(run, root) / "tables" / "06-policies.csv"


def share_table(cases: Sequence[Case], policy: str) -> pd.DataFrame:
    """What a policy's plans look like: one row per case and worker.

    ``sample_percent``: samples that start on the worker, of the mini-batch; ``depth_percent``: layers that it computes,
    of all, 0 where it has no part in the plan.
    """
    rows = []
    for case in cases:
        plan = case.policies[policy].plan
        layers = plan.workers[plan.root].depth
        rows += [
            {
                **dict(case.setting),
                "worker": name,
                "sample_percent": 100 * part.samples / plan.batch_size,
                "depth_percent": 100 * part.depth / layers if plan.active(name) else 0.0,
            }
            for name, part in plan.workers.items()
        ]
    return pd.DataFrame(rows)


def adaptation_table(cases: Sequence[Case], middle: Sequence[Setting], policy: str) -> pd.DataFrame:
    """One row per case: the policy's plan, and what not adapting would cost.

    ``kept_percent``: by how much longer an iteration takes under the plan of the same model's setting in ``middle``,
    which must be among the cases.
    """
    kept = {case.setting.model: case.policies[policy].plan for case in cases if case.setting in middle}
    rows = []
    for case in cases:
        best = case.policies[policy]
        kept_s = iteration_s(best.problem, kept[case.setting.model])
        kept_percent = 100 * (kept_s / best.predicted_s - 1)
        rows.append({**dict(case.setting), "plan": describe(best.plan), "kept_percent": kept_percent})
    return pd.DataFrame(rows)


def gain_table(policies: pd.DataFrame, over: Sequence[str]) -> pd.DataFrame:
    """By how many percent each policy is faster than the best one of ``over``, negative where it is slower.

    ``policies``: as ``policy_table`` has it. One row per setting and policy: predicted, against the one that is
    predicted to be the best; and observed, against the one that was observed to be, with the ends low and high of an
    interval, NaN where the policy or all of ``over`` were not executed.
    """
    keys = list(Setting.model_fields)
    those, observed = policies[policies["policy"].isin(over)], ["observed_ms", "low_ms", "high_ms", "kind"]
    best = those.sort_values("predicted_ms").drop_duplicates(keys).drop(columns=observed)
    seen = those.sort_values("observed_ms").drop_duplicates(keys)[[*keys, *observed]]  # NaN is sorted to the end
    best = best.merge(seen, on=keys).assign(policy="best")
    gains = speedup_table(pd.concat([policies, best]), of="best")  # times as long as the best one
    numbers = gains[["predicted", "observed", "high", "low"]].to_numpy()
    gains[["predicted", "observed", "low", "high"]] = 100 * (1 / numbers - 1)
    return gains


def gain_summary(gains: pd.DataFrame, percent: float) -> pd.DataFrame:
    """One row per model and policy: in how many settings it is predicted to gain more than ``percent``, and how much.

    ``median_above_percent`` is over those settings only, NaN where there are none; the last columns say where the
    largest gain is.
    """
    rows = []
    for (model, policy), group in gains.groupby(["model", "policy"], sort=False):
        predicted = group["predicted"]
        above = predicted[predicted > percent]
        largest = group.iloc[predicted.argmax()]
        rows.append(
            {
                "model": model,
                "policy": policy,
                "settings": len(group),
                "above": len(above),
                "median_percent": predicted.median(),
                "median_above_percent": above.median(),
                "largest_percent": largest["predicted"],
                **{field: largest[field] for field in ("batch_size", "cloud_mbps", "edge_slowdown")},
            }
        )
    return pd.DataFrame(rows)
