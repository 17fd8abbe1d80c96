"""The runtime against what one would otherwise use: the same training, on the workers of one session, in turn.

A block runs the plan and then each rival; blocks are repeated, so that whatever else the machine does meets all of
them, and a ratio is of two neighbours. Times are the machine's own: *measured*.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import comb

import numpy as np
import pandas as pd

from hiertrain.control.jobs import PIPELINES, Rival
from hiertrain.problem.plan import Assignment, Plan
from hiertrain.problem.problem import Problem
from hiertrain.program.simulator import iteration_s
from hiertrain.testbeds.session import Testbed
from hiertrain.training.pytorch_baselines import train_as_rival
from hiertrain.training.run import TrainingRun, counting
from hiertrain.training.train import train
from hiertrain.values import InputError
from hiertrain.workload.spec import Training

OURS = "plan"  # by the name of a rival, what it is compared with
AS_USERS_RUN_IT = "plain, memory not kept"  # the same loop in a process as a shell starts it: see ``control.memory``
PLAIN = Rival(way="plain")
PIECES = 1  # in which a plan's samples pass the workers: a pipeline is given as many micro-batches


@dataclass(frozen=True)
class Race:
    """One plan, and the rivals that train the same."""

    comparison: str  # for people
    problem: Problem
    plan: Plan
    training: Training
    rivals: tuple[Rival, ...]


def races(problem: Problem, training: Training, cuts: Sequence[int], micro_batches: int | None = None) -> list[Race]:
    """One worker, all workers with the same layers, and all workers with layers of their own.

    The workers are the problem's, its data holder the first of them. ``cuts``: the depths at which the layer split
    hands over, one less than there are workers. ``micro_batches``: of pipelines beside the one that has as many as a
    plan has pieces; None: there are none. Raises InputError when there are not as many cuts.
    """
    first, *others = workers = list(problem.workers)
    depth, batch_size = len(problem.profile.layers), training.batch_size
    if problem.data_holder != first or len(cuts) != len(others):
        raise InputError(f"{len(cuts)} cuts for the workers {', '.join(workers)}: must be one less, data on the first")
    shares = [len(part) for part in np.array_split(np.arange(batch_size), len(workers))]
    parents = [*others, None]
    single = {first: (None, depth, batch_size)}
    equal = {
        name: (first if name != first else None, depth, share) for name, share in zip(workers, shares, strict=True)
    }
    split = {
        name: (parent, last, batch_size if name == first else 0)
        for name, parent, last in zip(workers, parents, [*cuts, depth], strict=True)
    }

    def race(comparison: str, parts: Mapping[str, tuple[str | None, int, int]], rivals: tuple[Rival, ...]) -> Race:
        assignments = {name: Assignment(parent=p, depth=m, samples=b) for name, (p, m, b) in parts.items()}
        plan = Plan(batch_size=batch_size, data_holder=first, workers=assignments)
        return Race(comparison, problem, plan, training, rivals)

    more = [Rival(way=way, micro_batches=micro_batches) for way in PIPELINES] if micro_batches else []
    return [
        race("one worker", single, (PLAIN,)),
        race("data-parallel", equal, (Rival(way="ddp"), Rival(way="ddp-scatter"))),
        race("layer split", split, (Rival(way="gpipe", micro_batches=PIECES), *more)),
    ]


def run_block(testbed: Testbed, race: Race, warm_up: int, unkept: Testbed | None = None) -> pd.DataFrame:
    """Train by the plan, then by each rival: one row per program. Raises InputError, WorkerError.

    The plain loop is run once more on ``unkept``, a testbed without kept memory, where it is given.

    ``iteration_ms``: the time that the iterations after the first ``warm_up`` took together, with all that is between
    them, divided by their number. ``median_ms``: of the times between the ends of two iterations.
    ``loss_difference``: the largest of a mini-batch's loss to the plan's, over the first ``warm_up``, because training
    magnifies what rounding makes different.
    ``predicted_ms``: what the cost model says of the plan; none of a rival.
    """
    counted = counting(race.training.iterations, race.problem.execution.prefetch)
    if warm_up not in counted:
        raise InputError(f"{warm_up} iterations to warm up: must be from 1 to below {counted.stop}")
    runs = {OURS: train(testbed, race.problem, race.plan, race.training)}
    for rival in race.rivals:
        runs[str(rival)] = train_as_rival(testbed, race.plan, race.training, rival)
    if unkept and PLAIN in race.rivals:
        runs[AS_USERS_RUN_IT] = train_as_rival(unkept, race.plan, race.training, PLAIN)
    predicted_ms = iteration_s(race.problem, race.plan) * 1e3
    return pd.DataFrame(
        {
            "model": race.training.model.name,
            "batch_size": race.training.batch_size,
            "comparison": race.comparison,
            "program": program,
            "iteration_ms": float(np.mean(between_ends_ms(run, warm_up))),
            "median_ms": float(np.median(between_ends_ms(run, warm_up))),
            "predicted_ms": predicted_ms if program == OURS else np.nan,
            "loss_difference": float(np.abs(np.subtract(run.losses[:warm_up], runs[OURS].losses[:warm_up])).max()),
        }
        for program, run in runs.items()
    )


def between_ends_ms(run: TrainingRun, warm_up: int) -> np.ndarray:
    """The time from the end of each iteration to the end of the next, of those that count after ``warm_up``."""
    return np.diff(run.elapsed_s)[warm_up - 1 : run.counted.stop - 1] * 1e3


def unpaced_table(blocks: pd.DataFrame) -> pd.DataFrame:
    """One row per plan: predicted and measured (the median over the blocks), and how many times the prediction it took.

    Nothing is paced, so that several workers on fewer cores share them, which the cost model does not know.
    ``blocks``: rows of ``run_block``.
    """
    plans = blocks[blocks["program"] == OURS]
    keys = ["model", "batch_size", "comparison"]
    table = plans.groupby(keys, sort=False)[["predicted_ms", "iteration_ms"]].median()
    table["times_predicted"] = table["iteration_ms"] / table["predicted_ms"]
    return table.reset_index()


def ratio_table(blocks: pd.DataFrame) -> pd.DataFrame:
    """One row per comparison and rival: how many times as long as the rival the plan takes, over the blocks.

    ``blocks``: rows of ``run_block`` with a column ``block``. The median is of the ratios within a block; ``low`` and
    ``high`` are the ends of its interval (``median_interval``).
    """
    keys = ["model", "batch_size", "comparison", "block"]
    rivals, ours = (
        blocks[(blocks["program"] == OURS) == own][[*keys, "program", "iteration_ms"]] for own in (False, True)
    )
    pairs = rivals.rename(columns={"program": "rival", "iteration_ms": "rival_ms"}).merge(
        ours.rename(columns={"iteration_ms": "plan_ms"}).drop(columns="program"), on=keys
    )
    pairs["ratio"] = pairs["plan_ms"] / pairs["rival_ms"]
    groups = pairs.groupby([*keys[:-1], "rival"], sort=False)
    table = groups[["plan_ms", "rival_ms", "ratio"]].median()
    table["low"], table["high"] = (
        groups["ratio"].agg(lambda own, end=end: median_interval(own)[end]) for end in (0, 1)
    )
    table["blocks"] = groups.size()
    return table.reset_index()


def median_interval(values: Iterable[float], confidence: float = 0.95) -> tuple[float, float]:
    """Two of the values between which the median of their distribution, whichever, lies with at least this confidence.

    As many values lie below it as heads fall among as many coins: the k-th least and greatest value miss it with
    probability 2 P(heads < k). The least and the greatest where there are too few values.
    """
    ordered, outside, k = sorted(values), 0.0, 0
    while k < (len(ordered) - 1) // 2:
        outside += 2 * comb(len(ordered), k) / 2 ** len(ordered)
        following = outside + 2 * comb(len(ordered), k + 1) / 2 ** len(ordered)
        if following > 1 - confidence:
            break
        k += 1
    return ordered[k], ordered[-1 - k]
