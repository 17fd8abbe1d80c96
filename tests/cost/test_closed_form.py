from dataclasses import replace

import pytest
from hypothesis import given, settings

from hiertrain.cost.closed_form import iteration_s
from hiertrain.problem.execution import Execution
from hiertrain.problem.plan import Plan
from hiertrain.problem.problem import Problem
from hiertrain.program.compiler import compile_plan
from hiertrain.program.simulator import simulate
from tests.strategies import planned_problems


@settings(max_examples=200)
@given(planned_problems())
def test_closed_form_equals_the_simulated_program(drawn: tuple[Problem, Plan]) -> None:
    problem, plan = replace(drawn[0], execution=Execution.paper()), drawn[1]
    program = compile_plan(plan, problem.profile.chain, problem.execution)
    timeline = simulate(program, problem.profile, problem.network)
    assert iteration_s(problem, plan) == pytest.approx(timeline.makespan_s, rel=1e-9, abs=1e-15)
