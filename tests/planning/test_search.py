"""What is known of trees before any of them is solved."""

import pytest
from hypothesis import given

from hiertrain.cost.bounds import any_plan_bound_s
from hiertrain.planning.optimize import optimize
from hiertrain.planning.trees import larger, rank, trees
from hiertrain.problem.plan import Plan
from hiertrain.problem.problem import Problem
from hiertrain.problem.solution import Shape
from hiertrain.program.simulator import iteration_s
from tests.strategies import many_workers, planned_problems


@pytest.mark.parametrize(
    ("workers", "shape", "number"), [(3, "tree", 18), (4, "tree", 116), (5, "tree", 1060), (5, "star", 80)]
)
def test_trees_come_once_each_in_the_order_of_their_ranks(workers: int, shape: Shape, number: int) -> None:
    problem = many_workers(workers)
    ranks = [rank(problem, tree) for tree in trees(problem, shape)]
    assert len(set(ranks)) == number
    assert ranks == sorted(ranks)


@pytest.mark.parametrize("shape", ["tree", "star"])
def test_larger_trees_have_one_leaf_more(shape: Shape) -> None:
    problem = many_workers(4)
    every = set(trees(problem, shape))
    for tree in every:
        more = list(larger(problem, tree, shape))
        assert set(more) <= every
        assert len(set(more)) == len(more) == (4 - len(tree.workers)) * (1 if shape == "star" else len(tree.workers))


@given(planned_problems())
def test_no_plan_is_below_the_bound_on_every_plan(case: tuple[Problem, Plan]) -> None:
    problem, plan = case
    assert iteration_s(problem, plan) >= any_plan_bound_s(problem) * (1 - 1e-12)


def test_the_bound_on_every_plan_knows_that_workers_share_the_work() -> None:
    """Speeds as 1 : 1 / 1.7 : .. and links that cost next to nothing: what one worker takes, shared by speed."""
    alone_s = optimize(many_workers(1)).objective_s
    speeds = sum(1 / (1 + 0.7 * number) for number in range(5))
    assert any_plan_bound_s(many_workers(5)) == pytest.approx(alone_s / speeds, rel=0.01)
