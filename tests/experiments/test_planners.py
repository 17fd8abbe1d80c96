"""Trying every plan against enumeration; the ways to a plan against each other; synthetic problems."""

import pytest
from hypothesis import given, settings

from hiertrain.experiments.planners import SPEEDS, compare_ways, synthetic_problem, try_every_plan
from hiertrain.planning.optimize import RESOLUTION
from hiertrain.problem.problem import Problem
from hiertrain.problem.solution import Shape
from hiertrain.values import InputError
from tests.oracles import admissible_plans, enumerated_optimum
from tests.strategies import constrained_problems, problems


@pytest.mark.parametrize("shape", ["tree", "star"])
@settings(max_examples=40)
@given(problem=problems(workers=3, max_layers=3, max_batch=4))
def test_every_plan_is_tried(shape: Shape, problem: Problem) -> None:
    tried = try_every_plan(problem, shape)
    assert tried.plans == sum(1 for _ in admissible_plans(problem, shape))
    assert tried.best_s == pytest.approx(enumerated_optimum(problem, shape)[0], rel=1e-9, abs=1e-15)


@settings(max_examples=40)
@given(constrained_problems(max_layers=3, max_batch=4))
def test_constraints_are_kept(problem: Problem) -> None:
    assert try_every_plan(problem, "tree").best_s == pytest.approx(enumerated_optimum(problem)[0], rel=1e-9, abs=1e-15)


def test_ways_are_ordered_and_repeated() -> None:
    rows = compare_ways(synthetic_problem(6, 64, 3, seed=1), repetitions=2).to_dict("records")
    assert [row["repetition"] for row in rows] == [0, 0, 0, 1, 1, 1]
    for tree, star, programmes in (rows[:3], rows[3:]):
        assert [tree["way"], star["way"], programmes["way"]] == ["trees", "stars", "programmes"]
        assert tree["objective_ms"] <= star["objective_ms"] * (1 + RESOLUTION)
        assert star["objective_ms"] <= programmes["objective_ms"] * (1 + RESOLUTION)
        assert programmes["bound_ms"] <= star["objective_ms"] * (1 + 1e-9)
        assert star["objective_ms"] * (1 - RESOLUTION) <= star["bound_ms"] <= star["objective_ms"]
        assert [row["programmes"] for row in (tree, star, programmes)] == [0, 0, 3 * (6**2 + 3 * 6 + 1)]


@pytest.mark.parametrize("workers", [1, 2, 3, 4])
def test_synthetic_problems_are_as_asked_and_the_same_again(workers: int) -> None:
    problem = synthetic_problem(7, 16, workers, seed=3)
    assert list(problem.workers) == list(SPEEDS)[:workers]
    assert (len(problem.profile.layers), problem.batch_size, problem.profile.layers[-1].output_bytes) == (7, 16, 0)
    assert problem == synthetic_problem(7, 16, workers, seed=3)
    assert problem != synthetic_problem(7, 16, workers, seed=4)


@pytest.mark.parametrize("workers", [0, 5])
def test_synthetic_problems_have_one_to_four_workers(workers: int) -> None:
    with pytest.raises(InputError, match=f"synthetic problem with {workers} workers: must be 1 to 4"):
        synthetic_problem(7, 16, workers, seed=3)
