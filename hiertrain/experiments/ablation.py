"""What each step from the paper's star to overlapped iterations brings, beside the limit of any plan."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pandas as pd
from tqdm.auto import tqdm

from hiertrain.cost.limits import find_limit
from hiertrain.experiments.grid import Case, Emulated, Setting, problem_at
from hiertrain.planning.baselines import single_worker_plans
from hiertrain.planning.policies import Policy, optimum
from hiertrain.problem.problem import Problem

# Each with the options of the execution that it has. The first is the policy hiertrain, the third is hiertrain+.
STEPS: Mapping[str, tuple[str, ...]] = {
    "star": (),
    "tree": (),
    "affine": (),
    "prefetch": ("prefetch",),
    "buckets": ("prefetch", "buckets"),
    "owners": ("prefetch", "buckets", "owners"),
}
LINEAR = ("star", "tree")  # are planned with costs proportional to the number of samples, as the paper does


def find_steps(settings: Emulated, points: Sequence[Setting]) -> list[Case]:
    """The best plan of every step at every different point, and as ``alone(step)`` the best single worker's.

    Raises InputError, and RunError where the proof of an optimum takes too long.
    """
    different = list(dict.fromkeys(points))
    return [Case(point, _steps(problem_at(settings, point))) for point in tqdm(different, desc="plans", leave=False)]


def alone(step: str) -> str:
    """The name of the best single worker under the execution of a step."""
    return f"{step}, one worker"


def _steps(problem: Problem) -> dict[str, Policy]:
    found = []
    for step, options in STEPS.items():
        execution = problem.execution.model_copy(update=dict.fromkeys(options, True))
        own = replace(problem, execution=execution)
        known = replace(own, profile=own.profile.linear_at(own.batch_size)) if step in LINEAR else own
        found.append(Policy(step, optimum(known, "star" if step == "star" else "tree"), own))
        singles = [Policy(alone(step), plan, own) for plan in single_worker_plans(own).values()]
        found.append(min(singles, key=lambda policy: policy.predicted_s))
    return {policy.name: policy for policy in found}


def first_and_last(case: Case) -> Case:
    """The case with the first step, the paper's, and the last one only."""
    first, *_, last = STEPS
    return Case(case.setting, {step: case.policies[step] for step in (first, last)})


def ablation_table(cases: Sequence[Case], policies: pd.DataFrame) -> pd.DataFrame:
    """One row per case and step: its plan and times as ``policy_table`` has them, and three ratios of times.

    ``speedup``: over the first step; ``over_alone``: over the best single worker under the same execution;
    ``over_limit``: how many times as long as the limit of any plan under lossless executions, ``limit_ms``, which
    ``binding`` holds back most. Each ``_predicted`` and ``_observed`` (NaN where one of both was not executed);
    ``_low`` and ``_high`` of the speedup are ratios of opposite quartiles.
    """
    times = policies.set_index([*Setting.model_fields, "policy"])
    shown = ["plan", "predicted_ms", "observed_ms", "low_ms", "high_ms", "iterations", "kind"]
    rows = []
    for case in tqdm(cases, desc="limits", leave=False):
        point, limit = tuple(dict(case.setting).values()), find_limit(case.policies["star"].problem)
        limit_ms, star = limit.seconds * 1e3, times.loc[(*point, "star")]
        for step in STEPS:
            own, single = times.loc[(*point, step)], times.loc[(*point, alone(step))]
            row = {**dict(case.setting), "step": step, **own[shown].to_dict(), "limit_ms": limit_ms}
            row["binding"] = limit.binding[0].text if limit.binding else ""
            for kind in ("predicted", "observed"):
                row[f"speedup_{kind}"] = star[f"{kind}_ms"] / own[f"{kind}_ms"]
                row[f"over_alone_{kind}"] = single[f"{kind}_ms"] / own[f"{kind}_ms"]
                row[f"over_limit_{kind}"] = own[f"{kind}_ms"] / limit_ms
            row |= {"speedup_low": star["low_ms"] / own["high_ms"], "speedup_high": star["high_ms"] / own["low_ms"]}
            rows.append(row)
    return pd.DataFrame(rows)
