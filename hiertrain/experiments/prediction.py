"""Is the prediction right? Plans of every family, predicted and then executed on a testbed. Times in seconds."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from hiertrain.experiments.plan_families import family_plans
from hiertrain.planning.optimize import optimize
from hiertrain.problem.execution import EXECUTIONS
from hiertrain.problem.plan import Plan
from hiertrain.problem.problem import Problem
from hiertrain.problem.profile import Profile
from hiertrain.profiling.measure import measure_layers, measure_links
from hiertrain.program.actions import Program
from hiertrain.program.compiler import compile_plan
from hiertrain.program.simulator import simulate
from hiertrain.program.timeline import Timeline
from hiertrain.results.alarms import misfits, repetitions, spreads
from hiertrain.results.records import remembered
from hiertrain.results.timelines import action_table, observed_spans, predicted_spans, prediction_table
from hiertrain.testbeds import changing_testbed
from hiertrain.testbeds.session import Testbed
from hiertrain.testbeds.settings import AnySettings, kind_of_times
from hiertrain.training.run import TrainingRun
from hiertrain.training.train import iterations_within, train
from hiertrain.values import InputError
from hiertrain.workload.spec import ModelSettings, Training

LEAST = 2  # iterations of a plan that count, however long they take


def compare_each(
    run: str,
    settings: Mapping[float, AnySettings],
    trainings: Mapping[str, Training],
    *,
    executions: Sequence[str],
    sample_counts: tuple[int, ...],
    plan_s: float,
    slowest_s: float,
) -> dict[tuple[str, float], Mapping[str, Any]]:
    """``compare_plans`` of every model at every rate, as one record each; by the model's name and the rate (Mbit/s).

    ``settings``: the testbed by rate; nothing but values of its links may differ. ``executions``: of ``EXECUTIONS``.
    A model's layers are measured once. Raises InputError and WorkerError.
    """
    for execution in executions:
        if execution not in EXECUTIONS:
            raise InputError(f"execution {execution!r}: must be one of {', '.join(EXECUTIONS)}")
    results: dict[tuple[str, float], Mapping[str, Any]] = {}
    limits = {"executions": tuple(executions), "plan_s": plan_s, "slowest_s": slowest_s}
    with changing_testbed() as testbed_at:
        for (model, training), (mbps, here) in tqdm(list(product(trainings.items(), settings.items())), desc="cases"):
            compute = partial(_compare, run, partial(testbed_at, here), training, sample_counts, **limits)
            parameters = {"testbed": here, "training": training, "sample_counts": sample_counts, **limits}
            results[model, mbps] = remembered(run, f"05-{model}-{mbps:g}mbps", parameters, compute)
    return results


def _compare(
    run: str, testbed_at: Callable[[], Testbed], training: Training, sample_counts: tuple[int, ...], **limits: Any
) -> dict[str, object]:
    testbed = testbed_at()
    return compare_plans(testbed, _profile(run, testbed, training.model, sample_counts), training, **limits)


def _profile(run: str, testbed: Testbed, model: ModelSettings, sample_counts: tuple[int, ...]) -> Profile:
    """Measured, or recorded by the same run: links make no difference to it."""
    workers = testbed.settings.workers
    parameters = {"testbed": testbed.settings.kind, "workers": workers, "model": model, "sample_counts": sample_counts}
    compute = partial(_measured, testbed, model, sample_counts)
    return Profile.model_validate(remembered(run, f"05-{model.name}-profile", parameters, compute)["profile"])


def _measured(testbed: Testbed, model: ModelSettings, sample_counts: tuple[int, ...]) -> dict[str, object]:
    return {"profile": measure_layers(testbed, model, sample_counts=sample_counts)}


def compare_plans(
    testbed: Testbed,
    profile: Profile,
    training: Training,
    *,
    executions: Sequence[str],
    plan_s: float,
    slowest_s: float,
) -> dict[str, object]:
    """Measure links, then train by the best plan of every family and by the optimum under each execution.

    Each plan for ``plan_s``. What is predicted to take longer than ``slowest_s`` per iteration is listed, not
    executed; nor is a plan whose actions an earlier execution has as well, one without messages. The tables, with a
    column ``execution``: plans and actions (``prediction_table``, ``action_table``), the optimum's timeline, predicted
    and real, and what is too slow; the alarms: of the links, of the profile, and of a plan that was executed twice,
    since the optimum may be of a family. Raises WorkerError, and InputError also where even the optimum is too slow:
    there is nothing to compare then.
    """
    network, holder = measure_links(testbed), testbed.settings.data_holder
    compared: dict[str, _Compared] = {}
    for name in executions:
        problem = Problem(profile, network, training.batch_size, holder, EXECUTIONS[name])
        known = [one.programs[plan].actions for one in compared.values() for plan in one.runs]
        compared[name] = _execute(testbed, problem, training, known, plan_s, slowest_s)
    kind = kind_of_times(testbed.settings)
    tables = {name: _tables(one, kind) for name, one in compared.items()}
    return {
        "kind": kind,
        "network": network,
        **{
            table: pd.concat([own[table].assign(execution=name) for name, own in tables.items()])
            for table in ("plans", "actions", "timeline", "too_slow")
        },
        "alarms": [
            *spreads(network),
            *misfits(profile, [one.plans[plan] for one in compared.values() for plan in one.runs]),
            *repetitions({f"optimum, {name}": one.repeated_s for name, one in compared.items()}),
        ],
        "clock_error_s": max(run.clock_error_s for one in compared.values() for run in one.runs.values()),
    }


@dataclass(frozen=True)
class _Compared:
    """The plans of one execution, by name; ``runs``: of those that were executed."""

    plans: Mapping[str, Plan]
    programs: Mapping[str, Program]
    predicted: Mapping[str, Timeline]
    runs: Mapping[str, TrainingRun]
    slowest_s: float  # per iteration, of what is executed

    @property
    def repeated_s(self) -> list[float]:
        """The times per iteration of all runs of the optimum's program."""
        best = self.programs["optimum"]
        return [float(np.median(run.steady_s)) for run in self.runs.values() if run.program == best]


def _execute(
    testbed: Testbed, problem: Problem, training: Training, known: Sequence[object], plan_s: float, slowest_s: float
) -> _Compared:
    """``known``: actions that need not be executed again, unless they are the optimum's."""
    plans = {**family_plans(problem), "optimum": optimize(problem).plan}
    programs = {name: compile_plan(plan, problem.profile.chain, problem.execution) for name, plan in plans.items()}
    predicted = {name: simulate(program, problem.profile, problem.network) for name, program in programs.items()}
    optimum_s = predicted["optimum"].period_s
    if optimum_s > slowest_s:
        raise InputError(
            f"optimum for {training.model.name}: predicted to take {optimum_s:.3g} s per iteration; "
            f"must be at most slowest_s, {slowest_s:g} s, for anything to be compared"
        )
    runs = {}
    for name in tqdm(plans, desc="plans", unit="plan", leave=False):
        if predicted[name].period_s <= slowest_s and (name == "optimum" or programs[name].actions not in known):
            iterations = iterations_within(plan_s, predicted[name].period_s, problem.execution, LEAST)
            update = {"iterations": iterations, "snapshot_every": iterations}
            runs[name] = train(testbed, problem, plans[name], training.model_copy(update=update))
    return _Compared(plans, programs, predicted, runs, slowest_s)


def _tables(compared: _Compared, kind: str) -> dict[str, pd.DataFrame]:
    predicted, runs = compared.predicted, compared.runs
    best = runs["optimum"]
    slow = {name: one.period_s for name, one in predicted.items() if one.period_s > compared.slowest_s}
    return {
        "plans": prediction_table(runs, predicted),
        "actions": action_table(runs, predicted),
        "timeline": pd.concat([predicted_spans(best.program, predicted["optimum"]), observed_spans(best, kind)]),
        "too_slow": pd.DataFrame({"plan": list(slow), "predicted_s": list(slow.values())}),
    }
