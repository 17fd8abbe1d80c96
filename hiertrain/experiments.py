"""The grid of the reproduction: every policy at every setting of three hosts, predicted, and executed for real.

The hosts are emulated from a recorded profile of the model, so they are the same on every computer that is fast enough
to keep their pace, and predictions need no measurement at all. What is executed is kept as one record per piece of
work: policies and settings that come to the same work are executed once, and an interrupted grid goes on.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from hiertrain import files
from hiertrain.paths import DATA
from hiertrain.planning.policies import POLICIES, Policy, find_policies
from hiertrain.problem.execution import Execution
from hiertrain.problem.plan import Plan
from hiertrain.problem.problem import Problem
from hiertrain.problem.profile import Profile
from hiertrain.program.actions import SENDS, Kind
from hiertrain.program.compiler import compile_plan
from hiertrain.program.simulator import simulate
from hiertrain.results.records import recall, remembered
from hiertrain.results.tables import timeline_table
from hiertrain.testbeds import changing_testbed
from hiertrain.testbeds.nominal import nominal_network
from hiertrain.testbeds.session import Testbed
from hiertrain.testbeds.settings import AnySettings, LocalSettings, NetnsSettings, kind_of_times
from hiertrain.training.settings import training_settings
from hiertrain.training.train import iterations_within, train
from hiertrain.values import BatchSize, InputError, Name, RateMbps, Slowdown, Value
from hiertrain.workload.datasets import load_dataset
from hiertrain.workload.spec import ModelSettings, OptimizerSettings, Training

LEAST_TIMED = 3  # iterations of one piece of work: quartiles of fewer say nothing
Emulated = LocalSettings | NetnsSettings


class Setting(Value):
    """One point of the grid: what is trained, and the three hosts. A worker's slowdown is over the recorded profile."""

    model: Name
    batch_size: BatchSize
    sample_encoding: Literal["uint8", "float32"] = "uint8"
    device_edge_mbps: RateMbps  # both ways
    cloud_mbps: RateMbps  # every link to and from the cloud
    device_slowdown: Slowdown
    edge_slowdown: Slowdown
    cloud_slowdown: Slowdown

    def slowdown(self, worker: str) -> float:
        """Of the worker named after a tier."""
        return {"device": self.device_slowdown, "edge": self.edge_slowdown, "cloud": self.cloud_slowdown}[worker]

    def mbps(self, source: str, target: str) -> float:
        """Rate between two workers named after their tiers."""
        return self.cloud_mbps if "cloud" in (source, target) else self.device_edge_mbps


@dataclass(frozen=True)
class Case:
    """A setting, and the plan of every policy there."""

    setting: Setting
    policies: Mapping[str, Policy]


def check_emulated(settings: AnySettings) -> Emulated:
    """The settings, if they are of three hosts that can be given other speeds and rates; else raise InputError."""
    if not isinstance(settings, LocalSettings | NetnsSettings) or set(settings.workers) != {"device", "edge", "cloud"}:
        raise InputError(
            f"testbed of kind {settings.kind!r} with {', '.join(settings.workers)}: a grid of settings needs the "
            "workers device, edge and cloud of a local testbed or of network namespaces"
        )
    if any(worker.slowdown == 1 for worker in settings.workers.values()) or len(settings.links) < 6:
        raise InputError("testbed: a grid of settings needs a slowdown of every worker and a rate of every link")
    middle = setting_of(settings, "any", 1)
    for link in settings.links:
        if link.bandwidth_mbps != (mbps := middle.mbps(link.source, link.target)):
            raise InputError(
                f"testbed: {link.bandwidth_mbps:g} Mbit/s from {link.source} to {link.target}, {mbps:g} on another "
                "link; a grid of settings has one rate between device and edge, and one for all links of the cloud"
            )
    return settings


def setting_of(settings: Emulated, model: str, batch_size: int) -> Setting:
    """The testbed as its file describes it."""
    rates = {(link.source, link.target): link.bandwidth_mbps for link in settings.links}
    return Setting(
        model=model,
        batch_size=batch_size,
        device_edge_mbps=rates["device", "edge"],
        cloud_mbps=rates["device", "cloud"],
        device_slowdown=settings.workers["device"].slowdown,
        edge_slowdown=settings.workers["edge"].slowdown,
        cloud_slowdown=settings.workers["cloud"].slowdown,
    )


def varied(setting: Setting, axis: str, values: Sequence[float | str]) -> list[Setting]:
    """The setting with each of the values in the field ``axis``. Raises InputError for an unknown field or value."""
    numbers = (int(value) if isinstance(value, float) and value.is_integer() else value for value in values)
    return [files.parse(Setting, {**dict(setting), axis: value}, f"sweep of {axis}") for value in numbers]


def settings_at(settings: Emulated, setting: Setting) -> Emulated:
    """The testbed with the speeds and rates of a setting. Raises InputError where it cannot have them."""
    workers = {name: {**dict(worker), "slowdown": setting.slowdown(name)} for name, worker in settings.workers.items()}
    links = [{**dict(link), "bandwidth_mbps": setting.mbps(link.source, link.target)} for link in settings.links]
    return files.parse(type(settings), {**dict(settings), "workers": workers, "links": links}, "testbed of the grid")


def recorded_profile(model: str) -> Profile:
    """data/profiles/<model>.json. Raises InputError that says how to record one."""
    path = DATA / "profiles" / f"{model}.json"
    if not path.is_file():
        raise InputError(
            f"{path}: there is no recorded profile of {model!r}; git restores those that come with the workbench, and "
            "`hiertrain profile --model MODEL --output FILE` records one"
        )
    return files.load(Profile, path)


def problem_at(settings: Emulated, setting: Setting) -> Problem:
    """What a scheduler is asked at a setting: recorded layer times at its speeds, links as they are meant to be."""
    recorded = recorded_profile(setting.model)
    workers = {
        name: recorded.worker(name)
        .scaled(setting.slowdown(name) / recorded.worker(name).slowdown)
        .model_copy(update={"slowdown": setting.slowdown(name)})  # exactly, whatever the rounding
        for name in settings.workers
    }
    return Problem(
        recorded.model_copy(update={"workers": workers}),
        nominal_network(settings_at(settings, setting)),
        setting.batch_size,
        settings.data_holder,
        Execution(sample_encoding=setting.sample_encoding),
    )


def find_cases(settings: Emulated, points: Sequence[Setting], names: Sequence[str] = POLICIES) -> list[Case]:
    """The plans of the named policies at every different point. Raises InputError."""
    different = list(dict.fromkeys(points))
    return [
        Case(point, find_policies(problem_at(settings, point), names))
        for point in tqdm(different, desc="plans", leave=False)
    ]


@dataclass(frozen=True)
class _Work:
    """What is executed for a policy, without all that makes no difference to it."""

    policy: Policy
    parameters: Mapping[str, object]

    @property
    def record(self) -> str:
        """The record's name, the same for the same work."""
        return record_name("06", self.parameters)


def record_name(notebook: str, parameters: Mapping[str, object]) -> str:
    """Of a record of work, the same for the same work; it begins with the number of its notebook."""
    return f"{notebook}-{parameters['model']}-{_digest(parameters)}"


def _digest(content: object) -> str:
    """Of JSON content."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def effective_execution(policy: Policy) -> Execution:
    """How the policy's plan is executed, without encodings that nothing travels in."""
    execution = policy.problem.execution
    program = compile_plan(policy.plan, policy.problem.profile.chain, execution)
    kinds = {action.kind for own in program.actions.values() for action in own}
    if Kind.SEND_SAMPLES not in kinds:
        execution = execution.model_copy(update={"sample_encoding": "uint8"})
    if Kind.SEND_ACTIVATIONS not in kinds:
        execution = execution.model_copy(update={"activation_encoding": "float32"})
    return execution


def work_parameters(settings: Emulated, setting: Setting, policy: Policy) -> dict[str, object]:
    """What is executed for a policy, the same for the same work, as JSON content.

    Workers that compute nothing, links that carry nothing and encodings that nothing travels in are left out.
    """
    plan = policy.plan
    profile, here = policy.problem.profile, settings_at(settings, setting)
    program = compile_plan(plan, profile.chain, policy.problem.execution)
    actions = [(worker, action) for worker, own in program.actions.items() for action in own]
    computing = sorted({worker for worker, action in actions if action.peer is None})
    used = {(worker, action.peer) for worker, action in actions if action.kind in SENDS}
    return {
        "testbed": settings.kind,
        "model": setting.model,
        "batch_size": setting.batch_size,
        "execution": effective_execution(policy).model_dump(),
        "plan": {name: plan.workers[name].model_dump() for name in plan.participants if plan.active(name)},
        "workers": {worker: here.workers[worker].model_dump(mode="json") for worker in computing},
        "layer_times": {worker: _digest(profile.worker(worker).model_dump(mode="json")) for worker in computing},
        "links": [link.model_dump(mode="json") for link in here.links if (link.source, link.target) in used],
    }


def observe(
    run: str, settings: Emulated, cases: Sequence[Case], *, work_s: float, slowest_s: float
) -> dict[str, Mapping[str, Any]]:
    """Execute the plans of all cases, each for about ``work_s``; the results by the name of the record.

    A plan that is predicted to take longer than ``slowest_s`` per iteration is left out. Raises InputError and
    WorkerError.
    """
    results: dict[str, Mapping[str, Any]] = {}
    with changing_testbed() as testbed_at:
        for case in tqdm(cases, desc="settings", unit="setting"):
            works = {work.record: work for work in _works(settings, case, work_s) if work.record not in results}
            new = {name: work for name, work in works.items() if work.policy.predicted_s <= slowest_s}
            parameters = {name: work.parameters for name, work in new.items()}
            execute = {name: partial(_execute, work=work, work_s=work_s) for name, work in new.items()}
            results |= remember_each(run, partial(testbed_at, settings_at(settings, case.setting)), parameters, execute)
    return results


def remember_each(
    run: str,
    testbed: Callable[[], Testbed],
    parameters: Mapping[str, Mapping[str, object]],
    execute: Mapping[str, Callable[[Testbed], Mapping[str, object]]],
) -> dict[str, Mapping[str, Any]]:
    """The results of work by the name of its record: those that are recorded, and the others, executed and recorded.

    ``testbed`` is called only where something is to be executed. Raises InputError and WorkerError.
    """
    recalled = {name: recall(run, name, own) for name, own in parameters.items()}
    results: dict[str, Mapping[str, Any]] = {name: found for name, found in recalled.items() if found is not None}
    if missing := [name for name in parameters if name not in results]:
        opened = testbed()
        for name in tqdm(missing, desc="work", leave=False):
            results[name] = remembered(run, name, parameters[name], partial(execute[name], opened))
    return results


def _works(settings: Emulated, case: Case, work_s: float) -> list[_Work]:
    return [
        _Work(policy, {**work_parameters(settings, case.setting, policy), "work_s": work_s})
        for policy in case.policies.values()
    ]


def _execute(testbed: Testbed, work: _Work, work_s: float) -> dict[str, object]:
    """Train, and keep the times of the iterations after the first, and the timeline of the one with their median."""
    problem, plan = work.policy.problem, work.policy.plan
    iterations = iterations_within(work_s, work.policy.predicted_s, LEAST_TIMED)
    run = train(testbed, problem, plan, _training(problem, iterations))
    kind, iteration_s = kind_of_times(testbed.settings), run.steady_s
    typical = 1 + int(np.argsort(iteration_s)[len(iteration_s) // 2])
    return {
        "kind": kind,
        "plan": plan,
        "iteration_s": iteration_s,
        "late_share": run.late_share,
        "clock_error_s": run.clock_error_s,
        "timeline": timeline_table(run.timeline(typical), kind),
    }


def _training(problem: Problem, iterations: int) -> Training:
    """On random data: their values make no difference to the time, but the loss must stay finite."""
    profile = problem.profile
    data = load_dataset("synthetic" if profile.sample_bytes == 3 * 32 * 32 else "synthetic-224")
    slow = OptimizerSettings(learning_rate=1e-5)
    return training_settings(
        ModelSettings(name=profile.model), data, problem.batch_size, iterations=iterations, optimizer=slow
    )


def policy_table(
    settings: Emulated, cases: Sequence[Case], results: Mapping[str, Mapping[str, Any]], work_s: float
) -> pd.DataFrame:
    """One row per case and policy: the setting, the plan in words, its predicted time, and the one that it had.

    ``observed_ms`` is the median over ``iterations``, NaN where the plan was not executed; ``low_ms`` and ``high_ms``
    are the quartiles; ``kind``: of the observed times; ``record``: where they come from.
    """
    rows = []
    for case in cases:
        for work in _works(settings, case, work_s):
            policy, result = work.policy, results.get(work.record)
            times_ms = np.multiply(result["iteration_s"], 1e3) if result else np.array([np.nan])
            low, high = np.quantile(times_ms, [0.25, 0.75])
            rows.append(
                {
                    **dict(case.setting),
                    "policy": policy.name,
                    "plan": describe(policy.plan),
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


def describe(plan: Plan) -> str:
    """A plan in words: each worker that computes, its layers, its own samples and whom it sends to."""
    parts = []
    for name, part in plan.workers.items():
        if plan.active(name):
            parent = f" to {part.parent}" if part.parent else ""
            parts.append(f"{name} 1..{part.depth} x {part.samples}{parent}")
    return "; ".join(parts)


def speedup_table(policies: pd.DataFrame, of: str) -> pd.DataFrame:
    """One row per setting and other policy: how many times as long it takes per iteration as the policy ``of``.

    Predicted, and observed with an interval: ratios of opposite quartiles. NaN where one of both was not executed.
    """
    keys = list(Setting.model_fields)
    ours = policies[policies["policy"] == of]
    pairs = policies[policies["policy"] != of].merge(ours, on=keys, suffixes=("", "_of"), validate="many_to_one")
    table = pairs[[*keys, "policy"]].copy()
    table["predicted"] = pairs["predicted_ms"] / pairs["predicted_ms_of"]
    table["observed"] = pairs["observed_ms"] / pairs["observed_ms_of"]
    table["low"] = pairs["low_ms"] / pairs["high_ms_of"]
    table["high"] = pairs["high_ms"] / pairs["low_ms_of"]
    table["kind"] = pairs["kind"]
    return table


def policy_timelines(
    settings: Emulated, case: Case, results: Mapping[str, Mapping[str, Any]], work_s: float
) -> pd.DataFrame:
    """One iteration of each different piece of work of a case, as ``timeline_table`` has it, and its ``policy`` names.

    The executed one if it is among the results, else as it is predicted.
    """
    works = _works(settings, case, work_s)
    tables = []
    for record in dict.fromkeys(work.record for work in works):
        same = [work.policy for work in works if work.record == record]
        if record in results:
            table = pd.DataFrame(results[record]["timeline"])
        else:
            problem, plan = same[0].problem, same[0].plan
            program = compile_plan(plan, problem.profile.chain, problem.execution)
            table = timeline_table(simulate(program, problem.profile, problem.network), "predicted")
        tables.append(table.assign(policy=", ".join(policy.name for policy in same)))
    return pd.concat(tables, ignore_index=True)
