"""The optimizer against enumeration and against the monotone branch and bound, and what it promises besides."""

from dataclasses import replace
from itertools import count, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hiertrain import files
from hiertrain.cost.memory import memory_bytes
from hiertrain.experiments.grid import recorded_profile
from hiertrain.experiments.planners import try_every_plan
from hiertrain.planning import narrowing
from hiertrain.planning.optimize import RESOLUTION, optimize
from hiertrain.problem.execution import Execution
from hiertrain.problem.network import Link, Network
from hiertrain.problem.plan import Plan, check_plan
from hiertrain.problem.problem import Problem
from hiertrain.problem.profile import Bend, LayerCost, LayerTimes, WorkerProfile
from hiertrain.problem.solution import Progress, Shape, Solution
from hiertrain.program.simulator import iteration_s
from hiertrain.values import InputError, RunError
from tests.oracles import admissible_plans, branch_and_bound_optimum, enumerated_optima, enumerated_optimum
from tests.strategies import (
    EXECUTIONS,
    PAPER,
    constrained_problems,
    large_problem,
    many_workers,
    plans,
    problems,
    slowed,
    sparse_problems,
)

NAMES: tuple[str, ...] = ("device", "edge", "cloud")


def check_solution(problem: Problem, solution: Solution, optimum_s: float) -> None:
    """Assert that the solution is valid, and optimal with the stated resolution."""
    check_plan(solution.plan, problem.profile.chain)
    assert solution.status == "optimal"
    assert solution.objective_s == iteration_s(problem, solution.plan)
    assert solution.bound_s <= solution.objective_s
    assert solution.bound_s <= optimum_s * (1 + 1e-12)
    assert optimum_s * (1 - 1e-12) <= solution.objective_s <= optimum_s * (1 + RESOLUTION)
    for name in solution.plan.workers:
        assert not (name in problem.excluded and solution.plan.active(name))
        assert not (problem.whole_model and 0 < solution.plan.workers[name].depth < len(problem.profile.layers))
        assert not (problem.samples_stay and name != problem.data_holder and solution.plan.workers[name].samples)
        if name in problem.memory_limit_bytes and solution.plan.active(name):
            assert memory_bytes(problem, solution.plan, name) <= problem.memory_limit_bytes[name]
    assert problem.root in (None, solution.plan.root)


def active(plan: Plan) -> list[str]:
    return [name for name in plan.workers if plan.active(name)]


@settings(max_examples=25)
@given(st.sampled_from([PAPER, EXECUTIONS]).flatmap(lambda few: problems(max_layers=3, max_batch=4, executions=few)))
def test_three_workers_match_enumeration_and_a_star_is_no_better_than_a_tree(problem: Problem) -> None:
    optima = enumerated_optima(problem)
    if problem.execution == Execution.paper():
        assert branch_and_bound_optimum(problem) == pytest.approx(optima["tree"][0], rel=1e-9, abs=1e-15)
    tree, star = optimize(problem), optimize(problem, shape="star")
    check_solution(problem, tree, optima["tree"][0])
    check_solution(problem, star, optima["star"][0])
    assert len(active(tree.plan)) <= optima["tree"][1]
    assert {star.plan.workers[name].parent for name in active(star.plan)} <= {None, star.plan.root}
    assert star.objective_s >= tree.objective_s * (1 - RESOLUTION)


@settings(max_examples=80)
@given(st.integers(1, 2).flatmap(lambda workers: problems(workers=workers, max_layers=6, max_batch=8)))
def test_one_and_two_workers_match_enumeration(problem: Problem) -> None:
    optimum_s, fewest = enumerated_optimum(problem)
    solution = optimize(problem)
    check_solution(problem, solution, optimum_s)
    assert len(active(solution.plan)) <= fewest


@settings(max_examples=3)
@given(problems(workers=4, max_layers=2, max_batch=3))
def test_four_workers_match_enumeration(problem: Problem) -> None:
    check_solution(problem, optimize(problem), enumerated_optimum(problem)[0])


@settings(max_examples=50, derandomize=True, deadline=None)
@given(sparse_problems())
def test_plans_need_only_links_that_there_are(problem: Problem) -> None:
    optima = enumerated_optima(problem)
    check_solution(problem, optimize(problem), optima["tree"][0])
    check_solution(problem, optimize(problem, shape="star"), optima["star"][0])


@settings(max_examples=3, derandomize=True, deadline=None)
@given(sparse_problems(workers=4, max_layers=2, max_batch=3))
def test_four_workers_with_few_links_match_enumeration(problem: Problem) -> None:
    check_solution(problem, optimize(problem), enumerated_optimum(problem)[0])


def test_five_workers_match_the_best_of_all_plans() -> None:
    problem = replace(many_workers(5, layers=2), batch_size=4)
    check_solution(problem, optimize(problem), try_every_plan(problem, "tree").best_s)


@pytest.mark.parametrize("shape", ["tree", "star"])
def test_eight_workers_end_at_the_time_limit_with_a_good_plan_and_a_bound(
    shape: Shape, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 3.4 million trees. Every look at the clock takes 10 ms, so that the limit leaves 400 steps."""
    clock = count()
    monkeypatch.setattr("hiertrain.planning.optimize.time", SimpleNamespace(monotonic=lambda: next(clock) / 100))
    problem = many_workers(8)
    solution = optimize(problem, shape=shape, time_limit_s=4.0)
    assert solution.solve_s < 4.1
    assert solution.status == "feasible"
    assert len(active(solution.plan)) > 4
    assert 0.5 * solution.objective_s < solution.bound_s < solution.objective_s


def below_an_edge(workers: int, relay: bool) -> Problem:
    """``many_workers``, all of them linked to the second one alone, which may pass on what they send each other."""
    problem = many_workers(workers)
    edge = problem.workers[1]
    links = tuple(link for link in problem.network.links if edge in (link.source, link.target))
    through = {name: edge for name in problem.workers if name != edge} if relay else {}
    return replace(problem, network=Network(links=links, through=through))


@pytest.mark.parametrize("relay", [True, False])
def test_eighty_workers_need_no_link_for_each_pair(relay: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a relay only chains over the edge have plans: the search goes on through all other trees, and stops."""
    clock = count()
    monkeypatch.setattr("hiertrain.planning.optimize.time", SimpleNamespace(monotonic=lambda: next(clock) / 100))
    monkeypatch.setattr("hiertrain.planning.optimize.MOST_GROWN", 4)
    problem = below_an_edge(80, relay)
    assert len(problem.network.links) == 158
    solution = optimize(problem, time_limit_s=3.2 if relay else 1.2)
    assert solution.status == "feasible"
    assert solution.objective_s == iteration_s(problem, solution.plan)
    assert len(active(solution.plan)) >= (3 if relay else 2)


def test_a_clash_of_constraints_and_missing_links_is_said() -> None:
    """A star's leaves need a link to the data, and to the root, which is three links away from it."""
    problem = many_workers(4)
    line = set(pairwise(problem.workers))
    links = [link for link in problem.network.links if line & {(link.source, link.target), (link.target, link.source)}]
    problem = replace(problem, network=Network(links=tuple(links)), root="worker-3")
    message = "keeps: root 'worker-3'; a plan exists without any one of: root 'worker-3'; some pairs .* have no link"
    with pytest.raises(InputError, match=message):
        optimize(problem, shape="star")
    tree = optimize(problem).plan
    assert [tree.workers[name].samples for name in ("worker-2", "worker-3")] == [0, 0]


@pytest.mark.parametrize("constraint", [{"samples_stay": True}, {"batch_size": 3}, {"root": "worker-5"}])
def test_many_workers_under_constraints_give_a_plan(
    constraint: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = count()
    monkeypatch.setattr("hiertrain.planning.optimize.time", SimpleNamespace(monotonic=lambda: next(clock) / 100))
    problem = replace(many_workers(6), **constraint)
    plan = optimize(problem, time_limit_s=2.0).plan
    assert plan.root == (problem.root or plan.root)
    assert not problem.samples_stay or plan.workers[problem.data_holder].samples == problem.batch_size
    assert len(active(plan)) <= problem.batch_size


def test_no_time_for_any_plan_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six workers, and memory for a plan of all of them at most."""
    clock = count()
    monkeypatch.setattr("hiertrain.planning.optimize.time", SimpleNamespace(monotonic=lambda: next(clock) / 100))
    problem = many_workers(6)
    layers = tuple(layer.model_copy(update={"activation_bytes": 1000}) for layer in problem.profile.layers)
    problem = replace(
        problem,
        profile=problem.profile.model_copy(update={"layers": layers}),
        memory_limit_bytes=dict.fromkeys(problem.workers, 60_000),
    )
    with pytest.raises(RunError, match=r"optimize: no plan found in 1 s, nor 2 s later; allow more time"):
        optimize(problem, time_limit_s=1.0)


@settings(max_examples=80)
@given(constrained_problems(), st.sampled_from(["tree", "star"]))
def test_constraints_match_enumeration(problem: Problem, shape: Shape) -> None:
    optimum_s, _ = enumerated_optimum(problem, shape)
    if optimum_s == float("inf"):
        with pytest.raises(InputError, match="memory limit of"):
            optimize(problem, shape=shape)
    else:
        check_solution(problem, optimize(problem, shape=shape), optimum_s)


@pytest.mark.parametrize(("limit", "value"), [("NARROWING_LIMIT", 1), ("HALVINGS", 0), ("HALVINGS", 2)])
@settings(max_examples=40)
@given(problem=constrained_problems(max_layers=3, max_batch=4))
def test_models_alone_match_enumeration(limit: str, value: int, problem: Problem) -> None:
    """Without heuristic and with little or no narrowing for more than one worker: the solver has to find and prove."""
    optimum_s, _ = enumerated_optimum(problem)
    if optimum_s == float("inf"):
        return  # the test above covers the error
    heuristic = narrowing.good_plan
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(narrowing, "good_plan", lambda e: heuristic(e) if len(e.tree.workers) == 1 else None)
        patch.setattr(narrowing, limit, value)
        solution = optimize(problem)
    check_solution(problem, solution, optimum_s)


@pytest.mark.parametrize(("layers", "batch_size"), [(10, 32), (13, 128), (8, 512), (20, 64)])
@pytest.mark.parametrize(("cloud_mbps", "burst_bytes"), [(2.0, 0.0), (20.0, 0.0), (5.0, 1200.0), (20.0, 1e6)])
def test_large_problems_match_branch_and_bound(
    layers: int, batch_size: int, cloud_mbps: float, burst_bytes: float
) -> None:
    problem = large_problem(layers, batch_size, cloud_mbps, layers, burst_bytes)
    check_solution(problem, optimize(problem), branch_and_bound_optimum(problem))


@pytest.mark.parametrize(("layers", "batch_size", "cloud_mbps"), [(10, 32, 20.0), (13, 128, 5.0), (8, 512, 20.0)])
def test_large_problems_with_bends_match_branch_and_bound(layers: int, batch_size: int, cloud_mbps: float) -> None:
    """As measured: the first samples of some layers take less or more than the others, of the rest as long."""
    problem = large_problem(layers, batch_size, cloud_mbps, layers)
    factors = [0.5, 2.0, 1.0]

    def bent(cost: LayerCost, layer: int) -> LayerCost:
        slopes = [cost.per_sample_s * factors[layer % 3] ** power for power in (1, 2)]
        bends = tuple(Bend(above=n, per_sample_s=each) for n, each in zip((8, 32), slopes, strict=True))
        return cost.model_copy(update={"bends": bends if layer % 3 < 2 else ()})

    def worker(own: WorkerProfile) -> WorkerProfile:
        times = [
            LayerTimes(forward=bent(t.forward, i), backward=bent(t.backward, i), update_s=t.update_s)
            for i, t in enumerate(own.layers)
        ]
        return WorkerProfile(layers=tuple(times))

    workers = {name: worker(own) for name, own in problem.profile.workers.items()}
    problem = replace(problem, profile=problem.profile.model_copy(update={"workers": workers}))
    check_solution(problem, optimize(problem), branch_and_bound_optimum(problem))


@pytest.mark.parametrize(("batch_size", "burst_bytes"), [(32, 0.0), (512, 1200.0)])
@pytest.mark.parametrize("model", ["lenet5", "alexnet", "vgg16", "resnet50"])
def test_recorded_profiles_match_branch_and_bound(model: str, batch_size: int, burst_bytes: float) -> None:
    rates = {("device", "edge"): 20.0, ("edge", "cloud"): 5.0, ("device", "cloud"): 5.0}
    links = [
        Link(source=source, target=target, bandwidth_mbps=rate, latency_ms=10.0, burst_bytes=burst_bytes)
        for (a, b), rate in rates.items()
        for source, target in ((a, b), (b, a))
    ]
    problem = Problem(
        profile=recorded_profile(model, {"device": 8, "edge": 4, "cloud": 2}),
        network=Network(links=tuple(links)),
        batch_size=batch_size,
        data_holder="device",
    )
    check_solution(problem, optimize(problem), branch_and_bound_optimum(problem))


@settings(max_examples=30)
@given(st.data())
def test_no_plan_is_below_the_bound(data: st.DataObject) -> None:
    problem = data.draw(problems(workers=4, max_layers=5, max_batch=16))
    bound_s = optimize(problem, time_limit_s=1e-3).bound_s
    for _ in range(5):
        plan = data.draw(
            plans(
                names=problem.workers,
                depth=len(problem.profile.layers),
                batch_size=problem.batch_size,
                data_holder=problem.data_holder,
            )
        )
        assert iteration_s(problem, plan) >= bound_s * (1 - 1e-12)


def test_same_seed_gives_the_same_plan() -> None:
    problem = large_problem(10, 64, 20.0, seed=1)
    first, second = optimize(problem, seed=3), optimize(problem, seed=3)
    assert first.model_dump(exclude={"solve_s"}) == second.model_dump(exclude={"solve_s"})


def equal_workers(problem: Problem, **scales: float) -> Problem:
    alike = problem.profile.model_copy(update={"workers": dict.fromkeys(NAMES, problem.profile.worker("edge"))})
    return slowed(replace(problem, profile=alike), {name: scales.get(name, 1.0) for name in NAMES})


def test_ties_go_to_the_fewest_workers_and_then_to_the_first() -> None:
    problem = equal_workers(large_problem(6, 8, 20.0, seed=1), device=1e-12, edge=1e-12, cloud=1e-12)
    assert active(optimize(problem).plan) == ["device"]
    nothing = LayerCost(fixed_s=0.0, per_sample_s=0.0)
    idle = WorkerProfile(layers=(LayerTimes(forward=nothing, backward=nothing, update_s=0.0),) * 6)
    costless = problem.profile.model_copy(update={"workers": dict.fromkeys(NAMES, idle)})
    solution = optimize(replace(problem, profile=costless))
    assert (solution.objective_s, solution.bound_s, solution.status) == (0.0, 0.0, "optimal")
    assert active(solution.plan) == ["device"]


def test_equal_stars_are_ranked_by_the_order_of_the_workers() -> None:
    problem = equal_workers(large_problem(6, 32, 30.0, seed=1), device=100.0)
    solution = optimize(replace(problem, excluded=frozenset({"device"})))
    assert solution.plan.root == "edge"


@pytest.mark.parametrize("burst_bytes", [0.0, 5000.0])
@pytest.mark.parametrize("factor", [1e-200, 1e-9, 1e9, 1e15])
def test_scale_of_time_does_not_matter(factor: float, burst_bytes: float) -> None:
    problem = large_problem(5, 16, 20.0, 2, burst_bytes)
    scaled = slowed(problem, dict.fromkeys(NAMES, factor))
    check_solution(scaled, optimize(scaled), branch_and_bound_optimum(scaled))


def test_huge_ratios_between_workers() -> None:
    problem = large_problem(5, 16, 20.0, seed=2)
    for factors in ((1e-30, 1.0, 1e30), (1e30, 1e-30, 1.0), (1.0, 1e150, 1e-150)):
        scales = dict(zip(NAMES, factors, strict=True))
        scaled = slowed(problem, scales)
        check_solution(scaled, optimize(scaled), branch_and_bound_optimum(scaled))


def test_time_limit_gives_a_feasible_plan_and_a_valid_bound() -> None:
    problem = large_problem(20, 256, 20.0, seed=3)
    hurried, proven = optimize(problem, time_limit_s=1e-3), optimize(problem)
    assert hurried.status == "feasible"
    assert hurried.bound_s <= proven.objective_s <= hurried.objective_s * (1 + RESOLUTION)


@pytest.mark.parametrize("limit_s", [0.0, -1.0, float("inf"), float("nan")])
def test_time_limit_must_be_positive_and_finite(limit_s: float) -> None:
    with pytest.raises(InputError, match=r"optimize: time_limit_s: .*got"):
        optimize(large_problem(3, 4, 20.0, seed=1), time_limit_s=limit_s)


def test_clash_names_the_constraints() -> None:
    profile = large_problem(3, 4, 20.0, seed=1).profile
    layers = tuple(layer.model_copy(update={"activation_bytes": 1000}) for layer in profile.layers)
    problem = replace(
        large_problem(3, 4, 20.0, seed=1),
        profile=profile.model_copy(update={"layers": layers}),
        root="edge",
        samples_stay=True,
        memory_limit_bytes={"edge": 10, "cloud": 10**9},
    )
    with pytest.raises(InputError) as error:
        optimize(problem)
    text = str(error.value)
    for part in ("memory limit of 'edge' (10 bytes)", "root 'edge'", "raw samples stay on 'device'"):
        assert part in text
    assert text.endswith("a plan exists without any one of: memory limit of 'edge' (10 bytes); root 'edge'")


def test_excluded_data_holder_still_sends() -> None:
    problem = replace(large_problem(6, 32, 20.0, seed=4), excluded=frozenset({"device"}))
    solution = optimize(problem)
    assert solution.plan.data_holder == "device"
    check_solution(problem, solution, min(iteration_s(problem, plan) for plan in admissible_plans(problem, "tree")))


def test_progress_is_reported_per_tree() -> None:
    seen: list[Progress] = []
    solution = optimize(large_problem(5, 16, 20.0, seed=2), progress=seen.append)
    assert [progress.trees_done for progress in seen] == list(range(1, 19))
    assert {progress.trees for progress in seen} == {18}
    assert seen[-1].best_s <= solution.objective_s <= seen[-1].best_s * (1 + RESOLUTION)


def test_solution_survives_its_file(tmp_path: Path) -> None:
    problem = replace(large_problem(4, 8, 20.0, seed=1), samples_stay=True)
    solution = optimize(problem, shape="star", seed=5, time_limit_s=7.0)
    files.save(solution, tmp_path / "solution.json")
    assert files.load(Solution, tmp_path / "solution.json") == solution
    assert (solution.settings.shape, solution.settings.seed, solution.settings.samples_stay) == ("star", 5, True)


def test_a_bound_above_the_objective_is_refused() -> None:
    content = optimize(large_problem(4, 8, 20.0, seed=1)).model_dump(mode="json")
    with pytest.raises(InputError, match="above objective_s"):
        files.parse(Solution, content | {"bound_s": 2 * content["objective_s"]}, "solution.json")
