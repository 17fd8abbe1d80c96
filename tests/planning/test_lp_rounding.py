"""The paper's way against the simulated program, enumeration of every plan, and the optimizer."""

from dataclasses import replace
from itertools import permutations
from math import comb, perm

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from hiertrain.cost.closed_form import iteration_s
from hiertrain.experiments.grid import recorded_profile
from hiertrain.experiments.planners import synthetic_problem
from hiertrain.planning import lp_rounding
from hiertrain.planning.heuristic import Candidate
from hiertrain.planning.lp_rounding import enumerate_and_round
from hiertrain.planning.optimize import RESOLUTION, optimize
from hiertrain.problem.chain import Layer
from hiertrain.problem.execution import Execution
from hiertrain.problem.network import Link, Network
from hiertrain.problem.plan import check_plan
from hiertrain.problem.problem import Problem
from hiertrain.problem.profile import LayerCost, LayerTimes, Profile, WorkerProfile
from hiertrain.problem.tree import Tree
from hiertrain.program.compiler import compile_plan
from hiertrain.program.simulator import simulate
from hiertrain.values import InputError
from tests.oracles import enumerated_optimum
from tests.strategies import PAPER, problems, slowed, with_least_samples

NAMES = ("device", "edge", "cloud")


def linear(problem: Problem) -> Problem:
    """The problem that the paper's scheduler knows."""
    return replace(problem, profile=problem.profile.linear_at(problem.batch_size))


def often_sending(data: st.DataObject, problem: Problem) -> Problem:
    """The problem with linear costs, often such that messages take longer than computing, and bursts carry several."""
    factor, burst_bytes = data.draw(st.sampled_from([1.0, 1e-6, 1e-12])), data.draw(st.sampled_from([0, 1e5, 3e5, 1e6]))
    links = problem.network.links
    if burst_bytes:
        changed = {"burst_bytes": burst_bytes, "latency_ms": 0.0}
        links = tuple(link.model_copy(update=changed) for link in links)
    return linear(replace(slowed(problem, dict.fromkeys(problem.workers, factor)), network=Network(links=links)))


def draw_star(data: st.DataObject, problem: Problem) -> Candidate:
    """A star whose children stand in the order of their depths, each with samples; the root may have none."""
    layers, batch = problem.profile.chain.depth, problem.batch_size
    size = data.draw(st.integers(1, min(len(problem.workers), batch + 1)))
    workers = tuple(data.draw(st.permutations(problem.workers))[:size])
    depths = sorted(data.draw(st.integers(1, layers)) for _ in workers[1:])
    samples = [1] * (size - 1)
    for child in range(size - 1):
        samples[child] += data.draw(st.integers(0, batch - sum(samples)))
    return Candidate(Tree(workers, (-1,) + (0,) * (size - 1)), (layers, *depths), (batch - sum(samples), *samples))


@settings(max_examples=120)
@given(st.data())
def test_a_programme_of_given_samples_takes_as_long_as_the_plan(data: st.DataObject) -> None:
    problem = often_sending(
        data, data.draw(st.integers(1, 4).flatmap(lambda workers: problems(workers=workers, executions=PAPER)))
    )
    check_programme(problem, draw_star(data, problem))


def check_programme(problem: Problem, star: Candidate) -> None:
    """Assert that the programme of a star, with its samples, takes as long as its simulated program.

    Not longer at least, where raw samples may come late to a root without any.
    """
    program = compile_plan(star.plan(problem), problem.profile.chain, problem.execution)
    time_s = simulate(program, problem.profile, problem.network).period_s
    programmes = lp_rounding._Programmes(problem, star.tree.workers, np.array([star.depths]).T)
    unit_s = time_s / 1e4 or 1.0
    rows = programmes.rows(unit_s)[0]
    bounds = [*((samples, samples) for samples in star.samples), *[(0, None)] * (rows.shape[1] - 1 - len(star.samples))]
    goal = np.zeros(rows.shape[1] - 1)
    goal[-1] = 1
    found_s = linprog(goal, A_ub=rows[:, :-1], b_ub=-rows[:, -1], bounds=bounds).fun * unit_s
    assert found_s <= time_s * (1 + 1e-9)
    if star.samples[0] == 0 or not programmes._early_s().any():
        assert found_s == pytest.approx(time_s, rel=1e-9, abs=1e-15)


@settings(max_examples=40)
@given(st.data())
def test_layers_have_samples_enough_and_no_star_is_below_the_bound(data: st.DataObject) -> None:
    problem = linear(
        data.draw(with_least_samples(data.draw(problems(workers=3, max_layers=3, max_batch=4, executions=PAPER))))
    )
    rounded = enumerate_and_round(problem)
    check_plan(rounded.plan, problem.profile.chain)
    assert rounded.relaxed_s <= enumerated_optimum(problem, "star")[0] * (1 + 1e-9) + 1e-15


def test_a_great_credit_does_not_hide_a_little_more_than_it() -> None:
    """Raw samples of 300 480 bytes follow a burst of 300 000; computing takes no time to speak of."""
    quick = LayerCost(fixed_s=0.0, per_sample_s=1e-12)
    worker = WorkerProfile(layers=(LayerTimes(forward=quick, backward=quick, update_s=0.0),))
    layers = (Layer(name="layer", output_bytes=0, parameter_bytes=0),)
    links = tuple(
        Link(source=a, target=b, bandwidth_mbps=80.0, latency_ms=0.0, burst_bytes=3e5)
        for a, b in permutations(NAMES, 2)
    )
    profile = Profile(model="credit", sample_bytes=75_120, layers=layers, workers=dict.fromkeys(NAMES, worker))
    problem = Problem(profile, Network(links=links), 4, "device", Execution(sample_encoding="uint8"))
    check_programme(problem, Candidate(Tree(("edge",), (-1,)), (1,), (4,)))


@pytest.mark.parametrize("data_holder", ["device", "edge", "cloud"])
@pytest.mark.parametrize("mbps", [{("device", "edge"): 1.0}, {("edge", "device"): 1.0}])
def test_programmes_know_what_used_up_the_credit(data_holder: str, mbps: dict[tuple[str, str], float]) -> None:
    """Of 100 KB, 60 KB of activations or their gradients take most; 60 KB of gradients or weights follow soon."""
    layers = tuple(Layer(name=f"layer{i}", output_bytes=15_000, parameter_bytes=60_000) for i in range(3))
    quick = LayerCost(fixed_s=0.0, per_sample_s=1e-6)
    worker = WorkerProfile(layers=(LayerTimes(forward=quick, backward=quick, update_s=0.0),) * 3)
    links = tuple(
        Link(source=a, target=b, bandwidth_mbps=mbps.get((a, b), 1e3), latency_ms=0.0, burst_bytes=1e5)
        for a, b in permutations(NAMES, 2)
    )
    profile = Profile(model="bursts", sample_bytes=10, layers=layers, workers=dict.fromkeys(NAMES, worker))
    problem = Problem(profile, Network(links=links), 8, data_holder)
    check_programme(problem, Candidate(Tree(("edge", "device"), (-1, 0)), (3, 1), (4, 4)))


@settings(max_examples=40)
@given(problems(workers=3, max_layers=3, max_batch=4, executions=PAPER))
def test_the_relaxed_optimum_is_below_every_star_and_the_rounded_plan_is_one(problem: Problem) -> None:
    rounded = enumerate_and_round(problem)
    optimum_s, _ = enumerated_optimum(problem, "star")
    linear_optimum_s, _ = enumerated_optimum(linear(problem), "star")
    assert rounded.relaxed_s <= linear_optimum_s * (1 + 1e-9)
    assert optimum_s <= rounded.objective_s * (1 + 1e-12)  # not so the linear one: a cost may bend upwards
    assert rounded.objective_s == iteration_s(problem, rounded.plan)
    assert {rounded.plan.workers[name].parent for name in NAMES} == {None, rounded.plan.root}
    layers = len(problem.profile.layers)
    assert rounded.programmes == sum(perm(3, size) * comb(layers + size - 2, size - 1) for size in (1, 2, 3))


def recorded(model: str, batch_size: int, cloud_mbps: float = 5.0, burst_bytes: float = 0.0) -> Problem:
    links = [
        Link(source=a, target=b, bandwidth_mbps=mbps, latency_ms=10.0, burst_bytes=burst_bytes)
        for a, b in permutations(NAMES, 2)
        for mbps in [cloud_mbps if "cloud" in (a, b) else 20.0]
    ]
    profile = recorded_profile(model, {"device": 8, "edge": 4, "cloud": 2})
    return Problem(profile, Network(links=tuple(links)), batch_size, "device")


@pytest.mark.parametrize(
    ("model", "batch_size", "cloud_mbps", "burst_bytes"),
    [("lenet5", 128, 10.0, 0.0), ("lenet5", 512, 5.0, 50_000.0)],
)
def test_rounding_loses_little(model: str, batch_size: int, cloud_mbps: float, burst_bytes: float) -> None:
    """Where the best plan shares the samples between all workers."""
    problem = linear(recorded(model, batch_size, cloud_mbps, burst_bytes))
    best = optimize(problem, shape="star")
    rounded = enumerate_and_round(problem)
    assert all(best.plan.active(name) for name in NAMES)
    assert best.objective_s * 0.99 <= rounded.relaxed_s <= best.objective_s * (1 + 1e-9)
    assert best.bound_s <= rounded.objective_s <= best.objective_s * 1.005


@pytest.mark.parametrize(("output_bytes", "edge_cloud_ms"), [(1, 0.0), (0, 1e6)])
def test_a_root_without_own_samples_waits_for_none(output_bytes: int, edge_cloud_ms: float) -> None:
    """Raw samples would reach the cloud late, what the edge makes of them comes early: its messages may be empty."""
    idle, slow = (LayerCost(fixed_s=0.0, per_sample_s=seconds) for seconds in (1e-3, 1.0))
    layers = [Layer(name=name, output_bytes=size, parameter_bytes=0) for name, size in (("a", output_bytes), ("b", 0))]
    costs = {"device": (slow, slow), "edge": (idle, slow), "cloud": (slow, idle)}
    workers = {
        name: WorkerProfile(layers=tuple(LayerTimes(forward=cost, backward=cost, update_s=0.0) for cost in own))
        for name, own in costs.items()
    }
    latency_ms = {("device", "cloud"): 1e6, ("edge", "cloud"): edge_cloud_ms}
    links = tuple(
        Link(source=a, target=b, bandwidth_mbps=1e3, latency_ms=latency_ms.get((a, b), 0.0))
        for a, b in permutations(NAMES, 2)
    )
    profile = Profile(model="early", sample_bytes=1, layers=tuple(layers), workers=workers)
    problem = Problem(profile, Network(links=links), 4, "device")
    rounded = enumerate_and_round(problem)
    assert (rounded.plan.root, rounded.plan.workers["cloud"].samples) == ("cloud", 0)
    assert rounded.objective_s == pytest.approx(enumerated_optimum(problem, "star")[0], rel=1e-9)
    assert rounded.objective_s * 0.99 <= rounded.relaxed_s <= rounded.objective_s


@pytest.mark.parametrize("factors", [(1e-30, 1.0, 1e7), (1e7, 1e-30, 1.0), (1e7, 1e7, 1e7), (1e-9, 1e-9, 1e-9)])
def test_scale_of_time_does_not_matter(factors: tuple[float, ...]) -> None:
    problem = linear(slowed(synthetic_problem(4, 16, 3, seed=1), dict(zip(NAMES, factors, strict=True))))
    rounded, best = enumerate_and_round(problem), optimize(problem, shape="star")
    assert rounded.relaxed_s <= best.objective_s * (1 + 1e-9)
    assert best.bound_s <= rounded.objective_s <= best.objective_s * 1.05


@pytest.mark.parametrize(
    ("samples", "ways"),
    [((2.5, 3.2, 2.3), {(3, 3, 2), (2, 4, 2), (2, 3, 3)}), ((-1e-9, 1.0 - 1e-9, 7.0 + 2e-9), {(0, 1, 7)})],
)
def test_what_is_left_is_shared_out_in_every_way(samples: tuple[float, ...], ways: set[tuple[int, ...]]) -> None:
    problem = synthetic_problem(4, 8, 3, seed=1)
    solution = lp_rounding._Relaxed(Tree(NAMES, (-1, 0, 0)), (4, 2, 3), np.array(samples), 1.0)
    plans = list(lp_rounding._roundings(problem, solution))
    assert {tuple(plan.workers[name].samples for name in NAMES) for plan in plans} == ways
    assert len(plans) == len(ways)


def test_a_plan_is_chosen_by_linear_costs_and_timed_as_it_is() -> None:
    problem = replace(recorded("lenet5", 512), excluded=frozenset({"edge"}))
    chosen = enumerate_and_round(linear(problem))
    rounded = enumerate_and_round(problem)
    assert rounded.plan == chosen.plan
    assert rounded.relaxed_s == chosen.relaxed_s
    assert rounded.objective_s == iteration_s(problem, chosen.plan) > chosen.objective_s


def test_root_and_excluded_workers_leave_fewer_roles() -> None:
    problem = replace(recorded("lenet5", 32), excluded=frozenset({"edge"}), root="cloud")
    rounded = enumerate_and_round(problem)
    assert rounded.programmes == 1 + len(problem.profile.layers)
    assert (rounded.plan.root, rounded.plan.active("edge")) == ("cloud", False)
    assert rounded.objective_s >= optimize(problem, shape="star").objective_s * (1 - RESOLUTION)


BY_EDGE = Network(
    links=tuple(
        Link(source=a, target=b, bandwidth_mbps=10.0, latency_ms=0.0)
        for a, b in permutations(NAMES, 2)
        if "edge" in (a, b)
    )
)


@pytest.mark.parametrize(
    ("constraint", "message"),
    [
        ({"execution": Execution(activation_encoding="uint8")}, ".* activation_encoding='uint8' .*"),
        ({"memory_limit_bytes": {"edge": 10**9, "cloud": 10**9}}, "memory limits of cloud, edge"),
        ({"samples_stay": True}, "raw samples stay on 'device'"),
        ({"network": BY_EDGE}, "some pairs of workers have no link"),
        ({"whole_model": True}, "every worker computes all layers"),
    ],
)
def test_unknown_constraints_are_refused(constraint: dict[str, object], message: str) -> None:
    problem = replace(recorded("lenet5", 32), **constraint)
    with pytest.raises(
        InputError, match=f"enumerate_and_round: {message}; the linear programmes know the paper's execution"
    ):
        enumerate_and_round(problem)
