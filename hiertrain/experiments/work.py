"""What is executed of the grid, as one record per piece of work.

Policies and settings that come to the same work are executed once, and an interrupted grid goes on.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from tqdm.auto import tqdm

from hiertrain.experiments.grid import Case, Emulated, Setting, settings_at
from hiertrain.planning.policies import Policy
from hiertrain.problem.execution import Execution
from hiertrain.problem.problem import Problem
from hiertrain.program.actions import Op
from hiertrain.program.compiler import compile_plan
from hiertrain.results.records import remembered
from hiertrain.results.timelines import observed_spans
from hiertrain.testbeds import changing_testbed
from hiertrain.testbeds.session import Testbed
from hiertrain.testbeds.settings import kind_of_times
from hiertrain.training.settings import training_settings
from hiertrain.training.train import iterations_within, train
from hiertrain.workload.datasets import load_dataset
from hiertrain.workload.spec import ModelSettings, OptimizerSettings, Training

LEAST_TIMED = 3  # iterations of one piece of work: quartiles of fewer say nothing


@dataclass(frozen=True)
class Work:
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
    """How the policy's plan is executed, without the options that make no difference to its program."""
    execution, chain = policy.problem.execution, policy.problem.profile.chain
    program = compile_plan(policy.plan, chain, execution)
    for name, usual in Execution.paper():
        plainer = execution.model_copy(update={name: usual})
        if plainer != execution and compile_plan(policy.plan, chain, plainer) == program:
            execution = plainer
    return execution


def work_parameters(settings: Emulated, setting: Setting, policy: Policy) -> dict[str, object]:
    """What is executed for a policy, the same for the same work, as JSON content.

    Workers that compute nothing, links that carry nothing and options that change nothing are left out.
    """
    plan = policy.plan
    profile, here = policy.problem.profile, settings_at(settings, setting)
    program = compile_plan(plan, profile.chain, policy.problem.execution)
    actions = [(worker, action) for worker, own in program.actions.items() for action in own]
    computing = sorted({worker for worker, action in actions if action.peer is None})
    used = {(worker, action.peer) for worker, action in actions if action.op == Op.SEND}
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
            works = {work.record: work for work in works_of(settings, case, work_s) if work.record not in results}
            new = {name: work for name, work in works.items() if work.policy.predicted_s <= slowest_s}
            parameters = {name: work.parameters for name, work in new.items()}
            execute = {name: partial(_execute, work=work, work_s=work_s) for name, work in new.items()}
            results |= remember_each(run, partial(testbed_at, settings_at(settings, case.setting)), parameters, execute)
    return results


def remember_each(
    run: str,
    testbed: Callable[[], Testbed],
    parameters: Mapping[str, Mapping[str, object]],
    execute: Mapping[str, Callable[[Callable[[], Testbed]], Mapping[str, object]]],
) -> dict[str, Mapping[str, Any]]:
    """The results of work by the name of its record: those that are recorded, and the others, executed and recorded.

    ``testbed`` is called once, and only where something is to be executed. The plan stands in the parameters, so that
    planners may change. Raises InputError and WorkerError.
    """
    once = cache(testbed)
    return {
        name: remembered(run, name, own, partial(execute[name], once), given=["hiertrain.planning"])
        for name, own in tqdm(parameters.items(), desc="work", leave=False)
    }


def works_of(settings: Emulated, case: Case, work_s: float) -> list[Work]:
    return [
        Work(policy, {**work_parameters(settings, case.setting, policy), "work_s": work_s})
        for policy in case.policies.values()
    ]


def _execute(testbed_at: Callable[[], Testbed], work: Work, work_s: float) -> dict[str, object]:
    """Train, and keep the times of the iterations that count, and the timeline of the typical ones."""
    testbed = testbed_at()
    problem, plan = work.policy.problem, work.policy.plan
    iterations = iterations_within(work_s, work.policy.predicted_s, problem.execution, LEAST_TIMED)
    run = train(testbed, problem, plan, _training(problem, iterations))
    kind = kind_of_times(testbed.settings)
    return {
        "kind": kind,
        "plan": plan,
        "iteration_s": run.steady_s,
        "late_share": run.late_share,
        "clock_error_s": run.clock_error_s,
        "timeline": observed_spans(run, kind),
    }


def _training(problem: Problem, iterations: int) -> Training:
    """On random data: their values make no difference to the time, but the loss must stay finite."""
    profile = problem.profile
    data = load_dataset("synthetic" if profile.sample_bytes == 3 * 32 * 32 else "synthetic-224")
    slow = OptimizerSettings(learning_rate=1e-5)
    return training_settings(
        ModelSettings(name=profile.model), data, problem.batch_size, iterations=iterations, optimizer=slow
    )
