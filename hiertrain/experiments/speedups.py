"""The grid's tables: every policy's time, predicted and observed, and how many times as fast one is as another."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from hiertrain.experiments.grid import Case, Emulated, Setting
from hiertrain.experiments.work import works_of
from hiertrain.planning.policies import SINGLE
from hiertrain.problem.plan import Plan
from hiertrain.program.compiler import compile_plan
from hiertrain.program.simulator import simulate
from hiertrain.results.timelines import predicted_spans


def policy_table(
    settings: Emulated, cases: Sequence[Case], results: Mapping[str, Mapping[str, Any]], work_s: float
) -> pd.DataFrame:
    """One row per case and policy: the setting, the plan (``plan_columns``), its predicted time, and the one it had.

    ``observed_ms`` is the median over ``iterations``, NaN where the plan was not executed; ``low_ms`` and ``high_ms``
    are the quartiles; ``kind``: of the observed times; ``record``: where they come from.
    """
    rows = []
    for case in cases:
        for work in works_of(settings, case, work_s):
            policy, result = work.policy, results.get(work.record)
            times_ms = np.multiply(result["iteration_s"], 1e3) if result else np.array([np.nan])
            low, high = np.quantile(times_ms, [0.25, 0.75])
            rows.append(
                {
                    **dict(case.setting),
                    "policy": policy.name,
                    **plan_columns(policy.plan),
                    "predicted_ms": policy.predicted_s * 1e3,
                    "observed_ms": np.median(times_ms),
                    "low_ms": low,
                    "high_ms": high,
                    "iterations": len(times_ms) if result else 0,
                    "late_share": result["late_share"] if result else np.nan,
                    "kind": result["kind"] if result else None,
                    "record": work.record if result else None,
                }
            )
    return pd.DataFrame(rows)


def plan_columns(plan: Plan) -> dict[str, str | int]:
    """What tables say of a plan.

    ``plan``: in words; ``division``: the same without samples; ``workers``: that compute; ``root_depth``: layers that
    the root computes, and so all; ``other_depth``: the most that any other worker does, 0 where there is none.
    """
    others = [part.depth for name, part in plan.workers.items() if part.parent and plan.active(name)]
    return {
        "plan": describe(plan),
        "division": describe(plan, samples=False),
        "workers": 1 + len(others),
        "root_depth": plan.workers[plan.root].depth,
        "other_depth": max(others, default=0),
    }


def describe(plan: Plan, samples: bool = True) -> str:
    """A plan in words, for people: each worker that computes, its layers, its own samples and whom it sends to."""
    parts = []
    for name, part in plan.workers.items():
        if plan.active(name):
            own = f" x {part.samples}" if samples else ""
            parent = f" to {part.parent}" if part.parent else ""
            parts.append(f"{name} 1..{part.depth}{own}{parent}")
    return "; ".join(parts)


def speedup_table(policies: pd.DataFrame, of: str) -> pd.DataFrame:
    """One row per setting and other policy: how many times as long it takes per iteration as the policy ``of``.

    Predicted, and observed with an interval: ratios of opposite quartiles. NaN where one of both was not executed.
    Settings have one execution each, so both run under the same.
    """
    keys = list(Setting.model_fields)
    ours = policies[policies["policy"] == of]
    pairs = policies[policies["policy"] != of].merge(ours, on=keys, suffixes=("", "_of"), validate="many_to_one")
    table = pairs[[*keys, "policy"]].assign(of=of)
    table["predicted"] = pairs["predicted_ms"] / pairs["predicted_ms_of"]
    table["observed"] = pairs["observed_ms"] / pairs["observed_ms_of"]
    table["low"] = pairs["low_ms"] / pairs["high_ms_of"]
    table["high"] = pairs["high_ms"] / pairs["low_ms_of"]
    table["kind"] = pairs["kind"]
    return table


def overlap_table(policies: pd.DataFrame) -> pd.DataFrame:
    """How many times as fast plans are as hiertrain's under the paper's execution: one row per model, kind, execution.

    ``policies``: as ``policy_table`` has it. Kinds of plans: the best single machine, hiertrain, hiertrain+. Geometric
    means over the settings without constraints at which all of them were executed, and the least: predicted, and
    observed.
    """
    same = [key for key in Setting.model_fields if key != "execution"]
    free = policies[~policies["samples_stay"] & (policies["device_memory"] == 1)]
    kinds = {name: name for name in ("hiertrain", "hiertrain+")} | dict.fromkeys(SINGLE, "one machine")
    kind = free["policy"].map(kinds).rename("plans")
    times = (
        free.groupby([*same, kind, "execution"])[["predicted_ms", "observed_ms"]].min().unstack(["plans", "execution"])
    )
    tables = []
    for by in ("predicted", "observed"):
        own = times[f"{by}_ms"].dropna()
        gains = own.rdiv(own["hiertrain", "paper"], axis="index").stack(["plans", "execution"]).rename("gain")
        grouped = gains.groupby(["model", "plans", "execution"])
        means = np.exp(grouped.agg(lambda ratios: np.log(ratios).mean()))
        tables += [means.rename(by), grouped.min().rename(f"least_{by}"), grouped.size().rename(f"settings_{by}")]
    return pd.concat(tables, axis="columns").reset_index()


def policy_timelines(
    settings: Emulated, case: Case, results: Mapping[str, Mapping[str, Any]], work_s: float
) -> pd.DataFrame:
    """What each different piece of work of a case does when, as ``observed_spans`` has it, and its ``policy`` names.

    The executed one if it is among the results, else as it is predicted.
    """
    works = works_of(settings, case, work_s)
    tables = []
    for record in dict.fromkeys(work.record for work in works):
        same = [work.policy for work in works if work.record == record]
        if record in results:
            table = pd.DataFrame(results[record]["timeline"])
        else:
            problem, plan = same[0].problem, same[0].plan
            program = compile_plan(plan, problem.profile.chain, problem.execution)
            table = predicted_spans(program, simulate(program, problem.profile, problem.network))
        tables.append(table.assign(policy=", ".join(policy.name for policy in same)))
    return pd.concat(tables, ignore_index=True)
