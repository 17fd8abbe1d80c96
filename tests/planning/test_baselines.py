"""Chains of workers against plain enumeration; plans are timed by simulating their programs."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import permutations, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hiertrain.cost.integers import TIE
from hiertrain.cost.memory import memory_bytes
from hiertrain.planning.baselines import best_chain, best_layer_parallel, single_worker_plan, single_worker_plans
from hiertrain.problem.chain import Layer
from hiertrain.problem.execution import Execution
from hiertrain.problem.network import Link, Network
from hiertrain.problem.plan import Assignment, Plan, check_plan
from hiertrain.problem.problem import Problem
from hiertrain.problem.profile import LayerCost, LayerTimes, Profile, WorkerProfile
from hiertrain.program.compiler import compile_plan
from hiertrain.program.simulator import iteration_s, simulate
from hiertrain.values import InputError
from tests.strategies import problems, sparse_problems

NAMES = ("device", "edge", "cloud")


def used(plan: Plan) -> list[str]:
    return [name for name in plan.workers if plan.active(name)]


def all_chains(problem: Problem, order: tuple[str, ...]) -> Iterator[Plan]:
    """Every combination of cuts 0 <= m_1 <= .. <= m_k = N. Who computes no layer of its own is skipped."""
    layers = problem.profile.chain.depth
    for cuts in product(range(layers + 1), repeat=len(order) - 1):
        if list(cuts) != sorted(cuts):
            continue
        parts: dict[str, Assignment] = {}
        parent, cut = None, layers
        for name, before in zip(reversed(order), (*reversed(cuts), 0), strict=True):
            if before < cut:
                samples = 0 if before else problem.batch_size
                parts[name] = Assignment(parent=parent, depth=cut, samples=samples)
                parent, cut = name, before
        root = next(iter(parts))
        idle = {name: Assignment(parent=root, depth=0, samples=0) for name in problem.profile.workers}
        yield Plan(batch_size=problem.batch_size, data_holder=problem.data_holder, workers=idle | parts)


def simulated_s(problem: Problem, plan: Plan) -> float:
    program = compile_plan(plan, problem.profile.chain, problem.execution)
    return simulate(program, problem.profile, problem.network).period_s


def check_fastest(problem: Problem, plan: Plan, rivals: list[Plan]) -> None:
    """Assert that the plan is one of the rivals, as fast as the fastest, and uses the fewest workers of those."""
    check_plan(plan, problem.profile.chain)
    times_s = [simulated_s(problem, rival) for rival in rivals]
    fastest_s = min(times_s)
    assert plan.workers in [rival.workers for rival in rivals]
    assert iteration_s(problem, plan) <= fastest_s * (1 + 1.1 * TIE)
    equal = [rival for rival, time_s in zip(rivals, times_s, strict=True) if time_s <= fastest_s * (1 + 0.9 * TIE)]
    assert len(used(plan)) <= min(len(used(rival)) for rival in equal)


@st.composite
def splittable_problems(draw: st.DrawFn) -> Problem:
    """Each layer is slow on some workers, and messages are small but take as long: where to cut is a close decision."""

    def times() -> LayerTimes:
        cost = LayerCost(fixed_s=0, per_sample_s=draw(st.sampled_from([0.0, 0.0, 0.04, 0.2])))
        return LayerTimes(forward=cost, backward=cost, update_s=0)

    depth, sizes = draw(st.integers(2, 6)), st.integers(1, 8).map(lambda floats: 4 * floats)
    layers = [Layer(name=f"{number}", output_bytes=draw(sizes), parameter_bytes=0) for number in range(depth)]
    workers = {name: WorkerProfile(layers=tuple(times() for _ in layers)) for name in NAMES}
    rates = st.sampled_from([1e-3, 1.5e-3, 5e-3])
    links = [Link(source=a, target=b, bandwidth_mbps=draw(rates), latency_ms=0) for a, b in permutations(NAMES, 2)]
    profile = Profile(model="splittable", sample_bytes=draw(st.integers(1, 9)), layers=tuple(layers), workers=workers)
    return Problem(profile, Network(links=tuple(links)), draw(st.integers(1, 8)), draw(st.sampled_from(NAMES)))


encoded_problems = st.builds(
    lambda problem, encoding: replace(problem, execution=Execution(activation_encoding=encoding)),
    problems(workers=3) | splittable_problems(),
    st.sampled_from(["float32", "uint8"]),
)


@settings(max_examples=100)
@given(encoded_problems, st.integers(1, 3).flatmap(lambda size: st.sampled_from(list(permutations(NAMES, size)))))
def test_best_chain_matches_enumeration(problem: Problem, order: tuple[str, ...]) -> None:
    check_fastest(problem, best_chain(problem, order), list(all_chains(problem, order)))


@settings(max_examples=30)
@given(encoded_problems)
def test_best_layer_parallel_matches_enumeration(problem: Problem) -> None:
    rivals = [plan for order in permutations(NAMES) for plan in all_chains(problem, order)]
    check_fastest(problem, best_layer_parallel(problem), rivals)


@settings(max_examples=20)
@given(problems(workers=3), st.sampled_from(NAMES))
def test_a_chain_of_one_worker_is_that_workers_plan(problem: Problem, worker: str) -> None:
    alone = single_worker_plan(problem.profile.chain, NAMES, worker, problem.batch_size, problem.data_holder)
    assert best_chain(problem, (worker,)) == alone


def free_problem(data_holder: str) -> Problem:
    """Nothing costs any time but sending raw samples, on equal links."""
    nothing = LayerCost(fixed_s=0, per_sample_s=0)
    times = LayerTimes(forward=nothing, backward=nothing, update_s=0)
    layers = tuple(Layer(name=name, output_bytes=0, parameter_bytes=0) for name in "abc")
    workers = {name: WorkerProfile(layers=(times,) * 3) for name in NAMES}
    links = [Link(source=a, target=b, bandwidth_mbps=1, latency_ms=1) for a, b in permutations(NAMES, 2)]
    profile = Profile(model="free", sample_bytes=1000, layers=layers, workers=workers)
    return Problem(profile, Network(links=tuple(links)), 4, data_holder)


def test_equal_plans_go_to_the_fewest_workers_and_then_to_the_first() -> None:
    for name in NAMES:
        assert used(best_layer_parallel(free_problem(name))) == used(best_chain(free_problem(name), NAMES)) == [name]
    assert used(best_chain(free_problem("cloud"), ("edge", "device"))) == ["edge"]
    assert used(best_chain(free_problem("cloud"), ("device", "edge"))) == ["device"]


def test_a_worker_that_is_not_there_is_named() -> None:
    problem = replace(free_problem("device"), excluded=frozenset({"edge"}))
    with pytest.raises(InputError, match="device -> edge -> cloud: 'edge' is not one of the problem's workers"):
        best_chain(problem, NAMES)


def test_chains_have_links() -> None:
    """Nobody but the edge has a link to the others, and the samples are on the device."""
    full = free_problem("device")
    links = tuple(link for link in full.network.links if "edge" in (link.source, link.target))
    problem = replace(full, network=Network(links=links))
    assert set(single_worker_plans(problem)) == {"device", "edge"}
    assert used(best_chain(problem, ("device", "cloud"))) == ["device"]
    assert used(best_chain(replace(problem, excluded=frozenset({"device"})), ("edge", "cloud"))) == ["edge"]
    with pytest.raises(InputError, match="no links for any on which raw samples may leave 'device' or start there"):
        best_chain(problem, ("cloud",))


@settings(max_examples=30)
@given(sparse_problems())
def test_the_best_chain_with_links_matches_enumeration(problem: Problem) -> None:
    def linked(plan: Plan) -> bool:
        start = next(name for name in NAMES if plan.workers[name].samples)
        pairs = [(problem.data_holder, start), *((name, plan.workers[name].parent) for name in used(plan))]
        return all(b in (None, a) or problem.network.find(a, b) for a, b in pairs)

    rivals = [plan for order in permutations(NAMES) for plan in all_chains(problem, order) if linked(plan)]
    check_fastest(problem, best_layer_parallel(problem), rivals)


@given(problems())
def test_a_single_worker_has_the_memory_for_its_plan(problem: Problem) -> None:
    layers = tuple(layer.model_copy(update={"activation_bytes": 8}) for layer in problem.profile.layers)
    problem = replace(problem, profile=problem.profile.with_layers(layers), memory_limit_bytes={})
    plans = single_worker_plans(problem)
    limits = {name: memory_bytes(problem, plan, name) for name, plan in plans.items()}
    assert single_worker_plans(replace(problem, memory_limit_bytes=limits)) == plans
    tight = {name: max(1, limit - 1) for name, limit in limits.items()}
    assert single_worker_plans(replace(problem, memory_limit_bytes=tight)) == {}
