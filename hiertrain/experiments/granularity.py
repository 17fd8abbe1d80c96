"""When splitting layers, samples or both pays, and how the best plan changes with the network: all of it predicted."""

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

import pandas as pd
from tqdm.auto import tqdm

from hiertrain.experiments.grid import Case, Emulated, Setting, problem_at
from hiertrain.experiments.speedups import describe
from hiertrain.planning.policies import SINGLE, find_policies
from hiertrain.program.simulator import iteration_s

BEST = "hiertrain+"
# The kinds of plans, the simplest first, by the policy that is the best of the kind.
KINDS = {
    "all-device": "device",
    "all-edge": "edge",
    "all-cloud": "cloud",
    "layer-parallel": "layers",
    "data-parallel": "samples",
    BEST: "both",
}


def find_contenders(settings: Emulated, points: Sequence[Setting], percent: float) -> list[Case]:
    """The best plan at every different point, and the best ones of simpler kinds, as far as ``map_table`` needs them.

    All processors share the points. Raises InputError, and RunError where the proof of an optimum takes too long.
    """
    different = list(dict.fromkeys(points))
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:  # a fork would copy the threads of torch
        found = pool.map(partial(_contenders, settings, percent), different)
        return list(tqdm(found, total=len(different), desc="plans", leave=False))


def _contenders(settings: Emulated, percent: float, point: Setting) -> Case:
    problem = problem_at(settings, point)
    found = find_policies(problem, [*SINGLE, "layer-parallel", BEST])
    case = Case(point, found)
    if _simplest(case, percent) == BEST:  # most of the time goes into the proof of this one
        found |= find_policies(problem, ["data-parallel"])
    return case


def map_table(cases: Sequence[Case], percent: float) -> pd.DataFrame:
    """One row per case: which kind of plan wins, ``winner`` of ``KINDS``, and by how much.

    The winner is the simplest kind of which a plan is at most ``percent`` slower than the fastest of all, so that
    nobody splits anything for less. ``gain_percent``: by how much the fastest plan is faster than the best single
    worker, ``single``, under the same execution and constraints; ``plan``: it, in words.
    """
    rows = []
    for case in cases:
        best, single = case.policies[BEST], _best_single(case)
        gain_percent = 100 * (case.policies[single].predicted_s / best.predicted_s - 1)
        winner = KINDS[_simplest(case, percent)]
        row = {"winner": winner, "gain_percent": gain_percent, "single": KINDS[single], "plan": describe(best.plan)}
        rows.append({**dict(case.setting), **row})
    return pd.DataFrame(rows)


def _best_single(case: Case) -> str:
    return min((name for name in SINGLE if name in case.policies), key=lambda name: case.policies[name].predicted_s)


def _simplest(case: Case, percent: float) -> str:
    """The policy whose plan is at most so much slower than the fastest one, of the simplest kind."""
    limit_s = case.policies[BEST].predicted_s * (1 + percent / 100)
    candidates = [_best_single(case), *(name for name in KINDS if name in case.policies and name not in SINGLE)]
    return next(name for name in candidates if case.policies[name].predicted_s <= limit_s)


def map_summary(table: pd.DataFrame) -> pd.DataFrame:
    """One row per model, privacy and kind that wins somewhere: in how many of the settings, and its gains there."""
    keys = ["model", "samples_stay", "winner"]
    gains = table.groupby(keys, sort=False)["gain_percent"]
    return gains.agg(settings="size", median_percent="median", largest_percent="max").reset_index()


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
