"""The model of a tree against the cost model, plan by plan."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ortools.sat.python import cp_model

from hiertrain.cost.bounds import Boxes, Evaluator
from hiertrain.cost.integers import TIE, integer_costs
from hiertrain.planning import cpsat
from hiertrain.planning.heuristic import Candidate
from hiertrain.planning.trees import trees
from hiertrain.problem.execution import Execution
from hiertrain.problem.network import Network
from hiertrain.problem.plan import Plan
from hiertrain.problem.problem import Problem
from hiertrain.problem.profile import WorkerProfile
from hiertrain.problem.tree import Tree
from hiertrain.program.simulator import iteration_s
from tests.strategies import large_problem, plans_of, problems, slowed


def draw_box(data: st.DataObject) -> tuple[Problem, Tree, Boxes, Plan]:
    """A problem, a tree of it, a box of a single plan, and that plan. Often messages take longer than computing."""
    problem = data.draw(st.integers(1, 4).flatmap(lambda workers: problems(workers=workers)))
    factor, burst_bytes = data.draw(st.sampled_from([1.0, 1e-6, 1e-20])), data.draw(st.sampled_from([0, 1e5, 3e5, 1e6]))
    problem = slowed(problem, dict.fromkeys(problem.workers, factor))
    if burst_bytes:
        changed = {"burst_bytes": burst_bytes, "latency_ms": 0.0}
        links = tuple(link.model_copy(update=changed) for link in problem.network.links)
        problem = replace(problem, network=Network(links=links))
    tree = data.draw(
        st.sampled_from(list(trees(problem, "tree"))[len(problem.workers) - 1 :])  # one single worker is enough
    )
    return problem, tree, *data.draw(plans_of(problem, tree))


@settings(max_examples=150)
@given(st.data())
def test_model_and_bounds_equal_the_cost_of_a_plan_and_bounds_hold_for_ranges(data: st.DataObject) -> None:
    problem, tree, only, plan = draw_box(data)
    evaluator = Evaluator(problem, tree)
    time_s, bound_s = iteration_s(problem, plan), evaluator.bounds_s(only)[0]
    assert bound_s <= time_s * (1 + 1e-12)
    if not problem.execution.prefetch:
        assert bound_s == pytest.approx(time_s, rel=1e-9, abs=1e-15)
    margin = np.array([[data.draw(st.integers(0, 3))] for _ in tree.workers])
    wider = Boxes(only.depths, np.maximum(only.low - margin, 0), only.high + margin)
    assert evaluator.bounds_s(wider)[0] <= time_s * (1 + 1e-12)
    check_model(problem, tree, only, plan)


def check_model(problem: Problem, tree: Tree, only: Boxes, plan: Plan) -> None:
    """Assert that the solver's model of a single plan has the cost model's time."""
    time_s = iteration_s(problem, plan)
    near_s = time_s or 1.0
    costs = integer_costs(problem, tree, near_s, 1.5 * near_s)
    model, _ = cpsat.tree_model(problem, tree, costs, only)
    solver = cp_model.CpSolver()
    solver.parameters.presolve_inclusion_work_limit = 0
    assert solver.solve(model) == cp_model.OPTIMAL
    # Rounding only takes away, and at most half of a tie.
    found_s = max(0.0, solver.objective_value - costs.template.overlapped) * costs.unit_s
    assert time_s * (1 - TIE / 2) <= found_s <= time_s * (1 + 1e-12)


@pytest.mark.parametrize("data_holder", ["device", "edge"])
def test_model_knows_activations_behind_raw_samples(data_holder: str) -> None:
    """Raw samples of 120 KB use up the credit of 100 KB, then 90 KB of activations or their gradients leave."""
    problem = large_problem(3, 8, 20.0, 1, burst_bytes=1e5)
    links = tuple(link.model_copy(update={"latency_ms": 0.0}) for link in problem.network.links)
    profile = problem.profile.model_copy(update={"sample_bytes": 30_000})
    problem = replace(problem, profile=profile, network=Network(links=links), data_holder=data_holder)
    tree, samples = Tree(("edge", "device"), (-1, 0)), np.array([[4], [4]])
    only = Boxes(np.array([[3], [1]]), samples, samples)
    check_model(problem, tree, only, Candidate(tree, (3, 1), (4, 4)).plan(problem))


def test_model_knows_that_a_child_may_be_ahead_of_a_worker_that_updates_alone() -> None:
    """It takes a second; the child has begun the next iteration by then, and its activations have to wait."""
    problem = replace(large_problem(3, 8, 20.0, 1), execution=Execution(prefetch=True, owners=True))
    edge = problem.profile.worker("edge")
    slow = WorkerProfile(layers=tuple(layer.model_copy(update={"update_s": 1.0}) for layer in edge.layers))
    workers = {**problem.profile.workers, "edge": slow}
    problem = replace(problem, profile=problem.profile.model_copy(update={"workers": workers}))
    tree, samples = Tree(("edge", "device"), (-1, 0), alone=1), np.array([[0], [8]])
    plan = Candidate(tree, (3, 1), (0, 8)).plan(problem)
    only = Boxes(np.array([[3], [1]]), samples, samples)
    check_model(problem, tree, only, plan)
    assert Evaluator(problem, tree).bounds_s(only)[0] == pytest.approx(iteration_s(problem, plan), rel=1e-9)


def test_presolve_stays_as_far_off_as_it_must() -> None:
    """CP-SAT 9.15 returns wrong answers otherwise: google/or-tools issue 5293."""
    parameters = cpsat.new_solver(seed=1, attempt=0, seconds=1.0).parameters
    assert (parameters.presolve_inclusion_work_limit, parameters.num_workers) == (0, 1)
