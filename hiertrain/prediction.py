"""Is the prediction right? Plans of every family, predicted and then executed on a testbed. Times in seconds."""

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from hiertrain.families import family_plans
from hiertrain.jobs import Training
from hiertrain.plan import Problem
from hiertrain.program import compile_plan, simulate
from hiertrain.scheduling import optimize
from hiertrain.stages import measure_layers, measure_links, train
from hiertrain.tables import action_table, prediction_table, timeline_table
from hiertrain.testbeds import open_testbed
from hiertrain.testbeds.settings import AnySettings, kind_of_times
from hiertrain.values import InputError

MOST = 30  # iterations per plan, after one that warms up


def compare_plans(
    settings: AnySettings,
    training: Training,
    *,
    sample_counts: tuple[int, ...],
    plan_s: float,
    slowest_s: float,
) -> dict[str, object]:
    """Measure layers and links, then train by one plan of every family and by the optimum, for ``plan_s`` each.

    Plans that are predicted to take longer than ``slowest_s`` per iteration are listed, not executed. The tables:
    plans and actions (``prediction_table``, ``action_table``), and the optimum's timeline, predicted and real.
    Raises WorkerError, and InputError also where even the optimum is too slow: there is nothing to compare then.
    """
    with open_testbed(settings) as testbed:
        profile = measure_layers(testbed, training.model, sample_counts=sample_counts)
        network = measure_links(testbed)
        problem = Problem(profile, network, training.batch_size, settings.data_holder)
        plans = {**family_plans(problem), "optimum": optimize(problem).plan}
        programs = {name: compile_plan(plan, profile.chain, problem.execution) for name, plan in plans.items()}
        predicted = {name: simulate(program, profile, network) for name, program in programs.items()}
        optimum_s = predicted["optimum"].makespan_s
        if optimum_s > slowest_s:
            raise InputError(
                f"optimum: predicted to take {optimum_s:.3g} s per iteration; "
                f"must be at most slowest_s, {slowest_s:g} s, for anything to be compared"
            )
        runs = {}
        for name in tqdm(plans, desc="plans", unit="plan", leave=False):
            if predicted[name].makespan_s <= slowest_s:
                iterations = 1 + int(np.clip(round(plan_s / predicted[name].makespan_s), 1, MOST))
                update = {"iterations": iterations, "snapshot_every": iterations}
                runs[name] = train(testbed, problem, plans[name], training.model_copy(update=update))
    kind, best = kind_of_times(settings), runs["optimum"]
    spans = [
        timeline_table(predicted["optimum"], "predicted"),
        timeline_table(best.timeline(best.typical), kind),
    ]
    return {
        "kind": kind,
        "network": network,
        "plans": prediction_table(runs, predicted),
        "actions": action_table(runs, predicted),
        "timeline": pd.concat(spans),
        "too_slow": {name: predicted[name].makespan_s for name in plans if name not in runs},
        "clock_error_s": max(run.clock_error_s for run in runs.values()),
    }
