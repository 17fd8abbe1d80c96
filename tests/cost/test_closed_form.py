from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings

from hiertrain.cost.closed_form import iteration_s
from hiertrain.problem.execution import Execution
from hiertrain.problem.network import Network
from hiertrain.problem.plan import Assignment, Plan
from hiertrain.problem.problem import Problem
from hiertrain.problem.profile import LayerCost
from hiertrain.program.compiler import compile_plan
from hiertrain.program.simulator import simulate
from hiertrain.values import MOST_WORKERS
from tests.strategies import many_workers, planned_problems


@settings(max_examples=200)
@given(planned_problems())
def test_closed_form_equals_the_simulated_program(drawn: tuple[Problem, Plan]) -> None:
    problem, plan = replace(drawn[0], execution=Execution.paper()), drawn[1]
    program = compile_plan(plan, problem.profile.chain, problem.execution)
    timeline = simulate(program, problem.profile, problem.network)
    assert iteration_s(problem, plan) == pytest.approx(timeline.period_s, rel=1e-9, abs=1e-15)


def star(place: int) -> int:
    return 0 * place


def chain(place: int) -> int:
    return place - 1


def wide_or_deep(workers: int, parent_of: Callable[[int], int]) -> tuple[Problem, Plan]:
    """Every worker but the root, which has the data, computes one layer for two samples of its own."""
    problem = replace(many_workers(workers), batch_size=2 * workers)
    names = list(problem.profile.workers)
    parts = {
        name: Assignment(parent=names[parent_of(place)] if place else None, depth=1 if place else 4, samples=2)
        for place, name in enumerate(names)
    }
    return problem, Plan(batch_size=2 * workers, data_holder=names[0], workers=parts)


@pytest.mark.parametrize("parent_of", [star, chain])
def test_work_is_linear_in_the_number_of_workers(
    parent_of: Callable[[int], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = Counter[str]()

    def count(kind: type, method: str) -> None:
        original = getattr(kind, method)

        def counted(*args: object) -> object:
            calls[method] += 1
            return original(*args)

        monkeypatch.setattr(kind, method, counted)

    count(LayerCost, "seconds")
    count(Network, "link")
    count(Plan, "children")
    numbers = []
    for workers in (10, 20, 30):
        problem, plan = wide_or_deep(workers, parent_of)
        calls.clear()
        iteration_s(problem, plan)
        numbers.append(dict(calls))
    (first, second) = ({name: after[name] - before[name] for name in after} for before, after in pairwise(numbers))
    assert first == second
    assert first["link"] == 10 * 5  # per worker more: raw samples, and four messages on the edge to its parent


@pytest.mark.parametrize("parent_of", [star, chain])
def test_the_most_workers_are_no_deeper_in_calls_than_few(parent_of: Callable[[int], int]) -> None:
    problem, plan = wide_or_deep(MOST_WORKERS, parent_of)
    timeline = simulate(compile_plan(plan, problem.profile.chain, problem.execution), problem.profile, problem.network)
    assert iteration_s(problem, plan) == pytest.approx(timeline.period_s, rel=1e-9)
