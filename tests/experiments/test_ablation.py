"""The steps from the paper's star to overlapped iterations: what is true of their plans, and ratios by hand."""

from dataclasses import replace

import numpy as np
import pytest

from hiertrain.experiments.ablation import STEPS, ablation_table, alone, find_steps
from hiertrain.experiments.grid import Case, check_emulated, setting_of
from hiertrain.experiments.speedups import policy_table
from hiertrain.experiments.work import works_of
from hiertrain.planning.policies import find_policies
from hiertrain.problem.execution import Execution
from hiertrain.program.simulator import iteration_s
from hiertrain.testbeds import find_testbed

LOCAL = check_emulated(find_testbed("local"))
MIDDLE = setting_of(LOCAL, "lenet5", 8)


@pytest.fixture(scope="module")
def case() -> Case:
    (found,) = find_steps(LOCAL, [MIDDLE, MIDDLE])
    return found


def test_steps_begin_with_the_papers_plan_and_end_with_every_option(case: Case) -> None:
    assert list(case.policies) == [name for step in STEPS for name in (step, alone(step))]
    usual = find_policies(case.policies["star"].problem, ["hiertrain", "hiertrain+"])
    assert case.policies["star"].plan == usual["hiertrain"].plan
    assert case.policies["affine"].plan == usual["hiertrain+"].plan
    assert case.policies["star"].problem.execution == Execution.paper()
    assert case.policies[list(STEPS)[-1]].problem.execution == Execution.overlapped()


def test_every_optimum_is_as_fast_as_every_other_plan_under_its_execution(case: Case) -> None:
    for step in list(STEPS)[2:]:
        own = case.policies[step]
        for other in case.policies.values():
            assert own.predicted_s <= iteration_s(own.problem, other.plan) * (1 + 1e-6)


def test_a_plan_is_the_same_work_under_executions_that_do_not_change_it(case: Case) -> None:
    plan = case.policies[alone("prefetch")].plan
    same = {name: replace(case.policies[name], plan=plan) for name in map(alone, STEPS)}
    records = {work.policy.name: work.record for work in works_of(LOCAL, Case(MIDDLE, same), 1.0)}
    assert records[alone("star")] == records[alone("tree")] == records[alone("affine")]
    assert records[alone("prefetch")] == records[alone("buckets")] == records[alone("owners")]


def test_ratios_of_times(case: Case) -> None:
    policies = policy_table(LOCAL, [case], {}, work_s=1.0)
    policies["observed_ms"] = policies["policy"].map({"star": 30.0, alone("owners"): 12.0, "owners": 10.0})
    policies[["low_ms", "high_ms"]] = np.outer(policies["observed_ms"], [0.5, 2.0])
    table = ablation_table([case], policies)
    assert list(table["step"]) == list(STEPS)
    star, tree, *_, owners = table.to_dict("records")
    assert owners["speedup_observed"] == 3
    assert (owners["speedup_low"], owners["speedup_high"]) == (0.75, 12)
    assert owners["over_alone_observed"] == 1.2
    assert owners["over_limit_observed"] == 10 / owners["limit_ms"]
    assert np.isnan([tree[f"{ratio}_observed"] for ratio in ("speedup", "over_alone", "over_limit")]).all()
    assert owners["speedup_predicted"] == star["predicted_ms"] / owners["predicted_ms"]
    assert table["over_limit_predicted"].min() >= 1 - 1e-6
