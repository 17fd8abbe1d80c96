"""Training by the plan of every policy on real data, and what was learnt: losses and test accuracy, per run.

Policies that come to the same work share a run, which is one record, so that interrupted trainings go on with the next.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from hiertrain.experiments.grid import Emulated, Setting, problem_at, settings_at
from hiertrain.experiments.speedups import describe
from hiertrain.experiments.work import effective_execution, record_name, remember_each, work_parameters
from hiertrain.planning.policies import Policy
from hiertrain.problem.chain import Chain
from hiertrain.problem.hierarchy import of_tier
from hiertrain.problem.plan import Assignment, Plan
from hiertrain.problem.problem import Problem
from hiertrain.problem.profile import Profile
from hiertrain.testbeds import changing_testbed
from hiertrain.testbeds.session import Testbed
from hiertrain.testbeds.settings import kind_of_times
from hiertrain.training.evaluation import accuracy, trained_model
from hiertrain.training.single_process import ReferenceRun
from hiertrain.training.train import train
from hiertrain.values import InputError
from hiertrain.workload.datasets import Dataset
from hiertrain.workload.spec import Training


def problem_of(settings: Emulated, setting: Setting, chain: Chain) -> Problem:
    """What a scheduler is asked at a setting about a model for samples of another shape than the recorded profile's.

    Sizes are the chain's own, layer times the recorded ones, to which workers are paced. Raises InputError when the
    profile is of other layers.
    """
    problem = problem_at(settings, setting)
    recorded = [layer.name for layer in problem.profile.layers]
    if recorded != [layer.name for layer in chain.layers]:
        raise InputError(f"recorded profile of {setting.model}: its layers are not those of {chain.model}")
    sizes = {"model": chain.model, "sample_bytes": chain.sample_bytes, "dtype": chain.dtype, "layers": chain.layers}
    return replace(problem, profile=Profile.model_validate({**sizes, "workers": problem.profile.workers}))


def cut_policies(problem: Problem, depth: int) -> dict[str, Policy]:
    """One cut, whether it pays or not: the device computes layers 1..depth of all samples, the cloud goes on.

    The first of each, where there are several. By name: JointDNN's with float32, with float16 and with bfloat16 for all
    but raw samples, then JALAD's with activations of 8 bits. Raises InputError unless both are there and have a layer.
    """
    layers = problem.profile.layers
    if not 1 <= depth < len(layers):
        raise InputError(f"cut after layer {depth}: must be between 1 and {len(layers) - 1}")
    device, cloud = (of_tier(problem.profile.workers, tier)[0] for tier in ("device", "cloud"))
    workers = {name: Assignment(parent=cloud, depth=0, samples=0) for name in problem.workers}
    workers[device] = Assignment(parent=cloud, depth=depth, samples=problem.batch_size)
    workers[cloud] = Assignment(parent=None, depth=len(layers), samples=0)
    plan = Plan(batch_size=problem.batch_size, data_holder=problem.data_holder, workers=workers)
    place = layers[depth - 1].name

    def policy(name: str, **encodings: str) -> Policy:
        return Policy(name, plan, replace(problem, execution=problem.execution.model_copy(update=encodings)))

    halves = {
        f"{half} at {place}": policy("jointdnn", activation_encoding=half, parameter_encoding=half)
        for half in ("float16", "bfloat16")
    }
    eight_bits = policy("jalad", activation_encoding="uint8")
    return {f"jointdnn at {place}": policy("jointdnn"), **halves, f"jalad at {place}": eight_bits}


def train_each(
    run: str, settings: Emulated, setting: Setting, policies: Mapping[str, Policy], training: Training, data: Dataset
) -> dict[str, Mapping[str, Any]]:
    """Train by every policy's plan, those that come to the same work once.

    By the names of the policies that share a run, joined with ", ": ``names``, the same apart, ``drawn_as``, the policy
    that the first of them is, ``kind``, ``plan`` in words, ``encoding`` of the activations, ``losses`` and
    ``elapsed_s`` per iteration, ``accuracies`` by iteration (of the snapshots, on the test samples), ``late_share``.
    Raises InputError and WorkerError.
    """
    content = training.model_dump(mode="json", exclude={"data_folder"})
    parameters: dict[str, Mapping[str, object]] = {}
    sharing: dict[str, list[str]] = {}
    for name, policy in policies.items():
        own = {**work_parameters(settings, setting, policy), "training": content}
        record = record_name("08", own)
        parameters[record] = own
        sharing.setdefault(record, []).append(name)
    execute = {
        record: partial(_learn, policy=policies[names[0]], training=training, data=data)
        for record, names in sharing.items()
    }
    with changing_testbed() as testbed_at:
        results = remember_each(run, partial(testbed_at, settings_at(settings, setting)), parameters, execute)
    return {
        ", ".join(names): {**results[record], "names": names, "drawn_as": policies[names[0]].name}
        for record, names in sharing.items()
    }


def _learn(testbed_at: Callable[[], Testbed], policy: Policy, training: Training, data: Dataset) -> dict[str, object]:
    testbed = testbed_at()
    done = train(testbed, policy.problem, policy.plan, training)
    return {
        "kind": kind_of_times(testbed.settings),
        "plan": describe(policy.plan),
        "encoding": effective_execution(policy).activation_encoding,
        "losses": done.losses,
        "elapsed_s": np.round(done.elapsed_s, 4),
        "typical_s": float(np.median(done.steady_s)),
        "accuracies": accuracies(training, done.snapshots, data),
        "late_share": done.late_share,
    }


def accuracies(training: Training, snapshots: Mapping[int, bytes], data: Dataset) -> dict[int, float]:
    """The fraction of the test samples that is classified rightly, by the number of iterations done."""
    return {done: accuracy(trained_model(training, packed, data), data) for done, packed in sorted(snapshots.items())}


def loss_table(results: Mapping[str, Mapping[str, Any]], single: ReferenceRun) -> pd.DataFrame:
    """One row per run and iteration: its time, its loss, and how far that is from the one process's, as a share of it.

    ``results``: as ``train_each`` gives them.
    """
    tables = [
        pd.DataFrame(
            {
                "policy": name,
                "iteration": range(1, len(single.losses) + 1),
                "time_s": result["elapsed_s"],
                "loss": result["losses"],
                "difference": np.abs(np.divide(result["losses"], single.losses) - 1),
                "encoding": result["encoding"],
                "drawn_as": result["drawn_as"],
            }
        )
        for name, result in results.items()
    ]
    return pd.concat(tables, ignore_index=True)


def accuracy_table(results: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """One row per run and snapshot: the iterations done, the time, the accuracy on the test samples."""
    rows = [
        {
            "policy": name,
            "iteration": done,
            "time_s": result["elapsed_s"][done - 1],
            "accuracy": right,
            "drawn_as": result["drawn_as"],
        }
        for name, result in results.items()
        for done, right in ((int(key), value) for key, value in result["accuracies"].items())
    ]
    return pd.DataFrame(rows)
