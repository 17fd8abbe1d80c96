"""Is the prediction right? Plans of every family, predicted and then executed on a testbed. Times in seconds."""

from collections.abc import Callable, Mapping
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from hiertrain.experiments.plan_families import family_plans
from hiertrain.planning.optimize import optimize
from hiertrain.problem.problem import Problem
from hiertrain.problem.profile import Profile
from hiertrain.profiling.measure import measure_layers, measure_links
from hiertrain.program.compiler import compile_plan
from hiertrain.program.simulator import simulate
from hiertrain.results.alarms import misfits, repetitions, spreads
from hiertrain.results.records import remembered
from hiertrain.results.timelines import action_table, observed_spans, predicted_spans, prediction_table
from hiertrain.testbeds import changing_testbed
from hiertrain.testbeds.session import Testbed
from hiertrain.testbeds.settings import AnySettings, kind_of_times
from hiertrain.training.train import iterations_within, train
from hiertrain.values import InputError
from hiertrain.workload.spec import ModelSettings, Training


def compare_each(
    run: str,
    settings: Mapping[float, AnySettings],
    trainings: Mapping[str, Training],
    *,
    sample_counts: tuple[int, ...],
    plan_s: float,
    slowest_s: float,
) -> dict[tuple[str, float], Mapping[str, Any]]:
    """``compare_plans`` of every model at every rate, as one record each; by the model's name and the rate (Mbit/s).

    ``settings``: the testbed by rate; nothing but values of its links may differ. A model's layers are measured once.
    Raises InputError and WorkerError.
    """
    results: dict[tuple[str, float], Mapping[str, Any]] = {}
    limits = {"sample_counts": sample_counts, "plan_s": plan_s, "slowest_s": slowest_s}
    with changing_testbed() as testbed_at:
        for (model, training), (mbps, here) in tqdm(list(product(trainings.items(), settings.items())), desc="cases"):
            compute = partial(_compare, run, partial(testbed_at, here), training, **limits)
            parameters = {"testbed": here, "training": training, **limits}
            results[model, mbps] = remembered(run, f"05-{model}-{mbps:g}mbps", parameters, compute)
    return results


def _compare(
    run: str, testbed_at: Callable[[], Testbed], training: Training, *, sample_counts: tuple[int, ...], **limits: float
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
    testbed: Testbed, profile: Profile, training: Training, *, plan_s: float, slowest_s: float
) -> dict[str, object]:
    """Measure links, then train by one plan of every family and by the optimum, for ``plan_s`` each.

    Plans that are predicted to take longer than ``slowest_s`` per iteration are listed, not executed. The tables:
    plans and actions (``prediction_table``, ``action_table``), and the optimum's timeline, predicted and real; the
    alarms: of the links, of the profile, and of a plan that was executed twice, since the optimum may be of a family.
    Raises WorkerError, and InputError also where even the optimum is too slow: there is nothing to compare then.
    """
    network = measure_links(testbed)
    problem = Problem(profile, network, training.batch_size, testbed.settings.data_holder)
    plans = {**family_plans(problem), "optimum": optimize(problem).plan}
    programs = {name: compile_plan(plan, profile.chain, problem.execution) for name, plan in plans.items()}
    predicted = {name: simulate(program, profile, network) for name, program in programs.items()}
    optimum_s = predicted["optimum"].period_s
    if optimum_s > slowest_s:
        raise InputError(
            f"optimum for {training.model.name}: predicted to take {optimum_s:.3g} s per iteration; "
            f"must be at most slowest_s, {slowest_s:g} s, for anything to be compared"
        )
    runs = {}
    for name in tqdm(plans, desc="plans", unit="plan", leave=False):
        if predicted[name].period_s <= slowest_s:
            iterations = iterations_within(plan_s, predicted[name].period_s, problem.execution)
            update = {"iterations": iterations, "snapshot_every": iterations}
            runs[name] = train(testbed, problem, plans[name], training.model_copy(update=update))
    kind, best = kind_of_times(testbed.settings), runs["optimum"]
    same_s = [float(np.median(run.steady_s)) for run in runs.values() if run.program == best.program]
    spans = [predicted_spans(best.program, predicted["optimum"]), observed_spans(best, kind)]
    return {
        "kind": kind,
        "network": network,
        "plans": prediction_table(runs, predicted),
        "actions": action_table(runs, predicted),
        "timeline": pd.concat(spans),
        "alarms": [
            *spreads(network),
            *misfits(profile, [plans[name] for name in runs]),
            *repetitions({"optimum": same_s}),
        ],
        "too_slow": {name: predicted[name].period_s for name in plans if name not in runs},
        "clock_error_s": max(run.clock_error_s for run in runs.values()),
    }
