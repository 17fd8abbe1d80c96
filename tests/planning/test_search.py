"""What is known of trees before any of them is solved."""

from collections.abc import Iterator
from itertools import combinations, islice, product

import pytest
from hypothesis import given

from hiertrain.cost.bounds import any_plan_bound_s
from hiertrain.planning.optimize import optimize
from hiertrain.planning.trees import _rooted_trees, larger, rank, sample_ranges, trees
from hiertrain.problem.execution import Execution
from hiertrain.problem.plan import Plan
from hiertrain.problem.problem import Problem
from hiertrain.problem.solution import Shape
from hiertrain.problem.tree import Tree, tree_of
from hiertrain.program.simulator import iteration_s
from hiertrain.values import MOST_WORKERS
from tests.oracles import admissible_plans
from tests.strategies import many_workers, planned_problems, problems


@pytest.mark.parametrize(
    ("workers", "shape", "number"), [(3, "tree", 18), (4, "tree", 116), (5, "tree", 1060), (5, "star", 80)]
)
def test_trees_come_once_each_in_the_order_of_their_ranks(workers: int, shape: Shape, number: int) -> None:
    problem = many_workers(workers)
    ranks = [rank(problem, tree) for tree in trees(problem, shape)]
    assert len(set(ranks)) == number
    assert ranks == sorted(ranks)


def all_parents(problem: Problem, shape: Shape) -> Iterator[tuple[str, dict[str, str]]]:
    """Root and parents of every tree, by going through all parents of all workers."""
    for size in range(1, len(problem.workers) + 1):
        for subset in combinations(problem.workers, size):
            for root in subset:
                others = [name for name in subset if name != root]
                for parents in product([root] if shape == "star" else subset, repeat=size - 1):
                    parent_of = dict(zip(others, parents, strict=True))
                    reached = {root}
                    for _ in subset:
                        reached |= {name for name, parent in parent_of.items() if parent in reached}
                    if len(reached) == size:
                        yield root, parent_of


@pytest.mark.parametrize("shape", ["tree", "star"])
@pytest.mark.parametrize("workers", range(1, 6))
def test_trees_are_those_of_all_parents_in_their_order(workers: int, shape: Shape) -> None:
    problem = many_workers(workers)
    found = [
        (tree.workers[0], {name: tree.workers[tree.parents[place]] for place, name in enumerate(tree.workers) if place})
        for tree in trees(problem, shape)
    ]
    assert found == list(all_parents(problem, shape))


@given(problems(max_layers=3, max_batch=3, executions=[Execution(owners=True)]))
def test_where_layers_have_owners_each_plan_is_of_one_tree(problem: Problem) -> None:
    def shown(tree: Tree) -> tuple[object, ...]:
        above = {name: tree.workers[tree.parents[place]] for place, name in enumerate(tree.workers) if place}
        return frozenset(above.items()), tree.workers[0], tree.alone

    every = {shown(tree): tree for tree in trees(problem, "tree")}
    assert list(every.values()) == sorted(every.values(), key=lambda tree: rank(problem, tree))
    for plan in admissible_plans(problem, "tree"):
        tree = every[shown(tree_of(plan, problem.execution))]
        low, high = sample_ranges(problem, tree)
        own = [plan.workers[name].samples for name in tree.workers]
        assert (low <= own).all()
        assert (own <= high).all()


@pytest.mark.parametrize("shape", ["tree", "star"])
def test_trees_of_a_hundred_workers_come_at_once(shape: Shape) -> None:
    problem = many_workers(MOST_WORKERS, layers=1)
    few = list(islice(trees(problem, shape), 2 * MOST_WORKERS))
    assert {len(tree.workers) for tree in few} == {1, 2}
    names = problem.workers
    whole = list(islice(_rooted_trees(names, names[0], shape), 2))
    assert whole[0] == Tree(names, (-1, *[0] * (MOST_WORKERS - 1)))
    assert [set(tree.workers) for tree in whole] == [set(names)] * (1 if shape == "star" else 2)


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
