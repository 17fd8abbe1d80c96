"""The limit of any plan is below every plan, what binds is what moves it, and nothing faster raises it."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hiertrain.cost.limits import MOST_FLOWS, Binding, explain, find_limit, least_lines
from hiertrain.problem.chain import Layer
from hiertrain.problem.execution import Execution
from hiertrain.problem.network import Link, Network
from hiertrain.problem.plan import Plan
from hiertrain.problem.problem import Problem
from hiertrain.problem.profile import LayerCost, LayerTimes, Profile, WorkerProfile
from hiertrain.program.actions import Op, Role
from hiertrain.program.compiler import compile_plan
from hiertrain.values import InputError
from tests.oracles import admissible_plans, enumerated_optimum
from tests.strategies import constrained_problems, large_problem, layer_times, many_workers, problems, sparse_problems

OFF = 1 + 2e-3  # twice what the programme's optimum is known to


def without_bursts(problem: Problem) -> Problem:
    """They let an iteration that follows a pause be faster than those of the steady state."""
    links = tuple(link.model_copy(update={"burst_bytes": 0.0}) for link in problem.network.links)
    return replace(problem, network=Network(links=links, through=problem.network.through))


@settings(max_examples=40, deadline=None)
@given(
    st.one_of(
        problems(workers=3, max_layers=3, max_batch=3),
        sparse_problems(max_batch=3),
        constrained_problems(max_batch=3),
    )
)
def test_no_plan_is_faster(problem: Problem) -> None:
    problem = without_bursts(problem)
    optimum_s, _ = enumerated_optimum(problem)
    if optimum_s < float("inf"):
        assert find_limit(problem).seconds <= optimum_s * (1 + 1e-5) + 1e-15


def overlapped_s(problem: Problem, plan: Plan) -> float:
    """The greatest load of a plan's processors and links if all that can overlaps, or the longest way of a sample.

    A layer's parameters travel only if several workers compute it: up and down the tree below the last that they have
    in common, which updates it.
    """
    depth, layers = problem.profile.chain.depth, problem.profile.layers
    computed = {name: [plan.samples_at(name, i) for i in range(1, depth + 1)] for name in plan.workers}
    loads_s: dict[object, float] = {}

    def spend(what: object, seconds: float) -> None:
        loads_s[what] = loads_s.get(what, 0.0) + seconds

    def send(source: str, target: str, size_bytes: float) -> None:
        if size_bytes:
            spend((source, target), problem.network.link(source, target).transmission_s(size_bytes))

    for name, samples in computed.items():
        for times, n in zip(problem.profile.worker(name).layers, samples, strict=True):
            spend(name, times.forward.seconds(n) + times.backward.seconds(n))
    for name, actions in compile_plan(plan, problem.profile.chain, problem.execution).actions.items():
        for action in actions:
            if action.op == Op.SEND and action.role not in (Role.GRADIENTS, Role.WEIGHTS):
                assert action.peer is not None
                send(name, action.peer, action.size_bytes)
    for number, layer in enumerate(layers):
        sharing = [name for name in plan.workers if computed[name][number]]
        owner, used = common(plan, sharing)
        spend(owner, problem.profile.worker(owner).layers[number].update_s)
        for name in used:
            parent = plan.workers[name].parent
            assert parent is not None
            send(name, parent, layer.parameter_bytes)
            send(parent, name, layer.parameter_bytes)
    ways_s = [way_s(problem, plan, name) for name in plan.workers if plan.workers[name].samples]
    return max(*loads_s.values(), *ways_s)


def common(plan: Plan, names: list[str]) -> tuple[str, set[str]]:
    """The last worker that is above all of these, and those whose way up to it is used."""
    above = {name: [name] for name in names}
    for way in above.values():
        while (parent := plan.workers[way[-1]].parent) is not None:
            way.append(parent)
    shared = set.intersection(*map(set, above.values()))
    owner = next(name for name in above[names[0]] if name in shared)
    return owner, {step for way in above.values() for step in way[: way.index(owner)]}


def way_s(problem: Problem, plan: Plan, name: str) -> float:
    """Forward and back for one of a worker's own samples, from the first layer with parameters on."""
    layers, network, total_s = problem.profile.layers, problem.network, 0.0
    first = next((i for i, layer in enumerate(layers, start=1) if layer.parameter_bytes), len(layers) + 1)
    pixels = {"uint8": 1, "float32": 4}.get(problem.execution.activation_encoding, 2)
    for i, layer in enumerate(layers, start=1):
        while plan.workers[name].depth < i:
            parent = plan.workers[name].parent
            assert parent is not None
            if i > first:
                size_bytes = layers[i - 2].output_bytes * pixels // 4
                total_s += network.message_s(name, parent, size_bytes) + network.message_s(parent, name, size_bytes)
            name = parent
        if i >= first:
            times = problem.profile.worker(name).layers[i - 1]
            total_s += times.forward.seconds(layer.least_samples)
            if i == 1 or not layer.parameter_bytes:
                total_s += times.backward.seconds(layer.least_samples)
    return total_s


@settings(max_examples=40, deadline=None)
@given(st.one_of(problems(max_layers=3, max_batch=3), constrained_problems(max_batch=3)))
def test_no_plan_is_faster_even_if_all_of_it_overlaps(problem: Problem) -> None:
    problem = without_bursts(problem)
    plans = admissible_plans(problem, "tree")
    plans_s = [overlapped_s(problem, plan) for plan in plans if owners_have_memory(problem, plan)]
    if plans_s:
        assert find_limit(problem).seconds <= min(plans_s) * (1 + 1e-5) + 1e-15


def owners_have_memory(problem: Problem, plan: Plan) -> bool:
    """Whether each layer's parameters can be updated on its ``common`` worker."""
    for name, limit in problem.memory_limit_bytes.items():
        held = 0
        for number, layer in enumerate(problem.profile.layers, start=1):
            sharing = [worker for worker in plan.workers if plan.samples_at(worker, number)]
            updates = common(plan, sharing)[0] == name
            held += (2 * (name in sharing) + problem.optimizer_copies * updates) * layer.parameter_bytes
        if held > limit:
            return False
    return True


@settings(max_examples=30, deadline=None)
@given(problems(workers=1, max_batch=8))
def test_of_one_worker_it_is_the_time_to_compute(problem: Problem) -> None:
    times = problem.profile.worker("device")
    straight = all(not cost.bends for own in times.layers for cost in (own.forward, own.backward))
    layers, samples = problem.profile.chain.depth, problem.batch_size
    computing_s = times.forward_s(1, layers, samples) + times.backward_s(1, layers, samples) + times.update_s
    limit = find_limit(problem)
    assert limit.proven
    assert limit.seconds <= computing_s * (1 + 1e-6) + 1e-15
    if straight:
        assert limit.seconds == pytest.approx(computing_s, rel=2e-3, abs=1e-12)


@settings(max_examples=15, deadline=None)
@given(problems(max_layers=3, max_batch=4), st.data())
def test_nothing_faster_raises_it(problem: Problem, data: st.DataObject) -> None:
    before, faster = find_limit(problem), explain(problem)
    assert faster.limit == before  # it is deterministic
    assert len(faster.gains) == 3 + 6
    assert all(gain.limit.seconds <= before.seconds * OFF for gain in faster.gains)
    assert [gain.limit.seconds for gain in faster.gains] == sorted(gain.limit.seconds for gain in faster.gains)
    tightened = replace(
        problem,
        excluded=frozenset({data.draw(st.sampled_from(problem.workers))}) - {problem.data_holder},
        samples_stay=data.draw(st.booleans()),
        whole_model=data.draw(st.booleans()),
    )
    assert find_limit(tightened).seconds >= before.seconds / OFF


COST = LayerCost(fixed_s=1e-3, per_sample_s=1e-4)
NAMES = ("device", "edge")


def small(
    speeds: Mapping[str, float], *, rate_mbps: float = 1e3, latency_ms: float = 0.0, layers: int = 2, **constraints
) -> Problem:
    """8 samples; each layer takes 2 ms and 0.2 ms per sample where the speed is 1, and has 1000 bytes of parameters."""
    sizes = tuple(
        Layer(name=f"layer{i}", output_bytes=1000, parameter_bytes=1000, activation_bytes=10**9) for i in range(layers)
    )
    times = WorkerProfile(layers=(LayerTimes(forward=COST, backward=COST, update_s=0.0),) * layers)
    workers = {name: times.scaled(1 / speed) for name, speed in speeds.items()}
    links = tuple(
        Link(source=a, target=b, bandwidth_mbps=rate_mbps, latency_ms=latency_ms)
        for a in speeds
        for b in speeds
        if a != b
    )
    profile = Profile(model="small", sample_bytes=10_000, compressed_sample_bytes=5_000, layers=sizes, workers=workers)
    return Problem(profile, Network(links=links), 8, "device", **constraints)


def binding_of(problem: Problem) -> list[str]:
    return [binding.text for binding in find_limit(problem).binding]


def test_a_processor_binds() -> None:
    assert binding_of(small({"device": 1, "edge": 1e-2})) == ["the device's processor"]


def test_two_processors_bind_that_share_the_samples() -> None:
    found = find_limit(small({"device": 1, "edge": 1}, rate_mbps=1e5, layers=1))
    assert {binding.text for binding in found.binding} == {"the device's processor", "the edge's processor"}
    assert sum(binding.share for binding in found.binding) == pytest.approx(1)


@pytest.mark.parametrize(("encoding", "sent_bytes"), [("uint8", 10_000), ("float32", 40_000), ("zlib", 5_000)])
def test_a_link_binds_with_its_bytes(encoding: str, sent_bytes: int) -> None:
    execution = Execution.model_validate({"sample_encoding": encoding})
    problem = small({"device": 1, "edge": 1}, rate_mbps=1, excluded=frozenset({"device"}), execution=execution)
    assert find_limit(problem).seconds == pytest.approx(8 * sent_bytes * 8 / 1e6, rel=2e-3)
    assert binding_of(problem) == ["the link from device to edge"]


def test_the_way_of_a_sample_binds_where_its_layers_are_apart() -> None:
    """Samples start on the device, which has no memory for the second layer."""
    apart = small({"device": 1, "edge": 1}, latency_ms=1e3, samples_stay=True, memory_limit_bytes={"device": 10**4})
    first, second = apart.profile.layers
    layers = first, second.model_copy(update={"parameter_bytes": 10**4})
    apart = replace(apart, profile=apart.profile.with_layers(layers), optimizer_copies=0)
    way_s = 2 * (1 + 8 * 1000 / 1e9) + 3 * (1e-3 + 1e-4)  # there and back; forward twice, and layer 1 backward
    assert find_limit(apart).seconds == pytest.approx(way_s, rel=2e-3)
    assert binding_of(apart) == ["the way of one sample through all layers"]


def test_raw_samples_travel_ahead() -> None:
    problem = small({"device": 1, "edge": 100}, latency_ms=1e6)
    assert find_limit(problem).seconds < 1


def test_whoever_has_no_memory_for_a_layer_leaves_it_to_others() -> None:
    problem = small({"device": 10, "edge": 1})
    none = replace(problem, memory_limit_bytes={"device": 1999})
    roomy = replace(problem, memory_limit_bytes={"device": 10**5})
    assert find_limit(roomy).seconds == pytest.approx(find_limit(problem).seconds, rel=2e-3)
    without = find_limit(replace(problem, excluded=frozenset({"device"})))
    assert find_limit(none).seconds == pytest.approx(without.seconds, rel=2e-3)
    with pytest.raises(InputError, match=r"memory limits of 'device' \(1999 bytes\), 'edge' \(10 bytes\)"):
        find_limit(replace(problem, memory_limit_bytes={"device": 1999, "edge": 10}))


def test_samples_that_stay_start_where_they_are() -> None:
    problem = small({"device": 1e-2, "edge": 1}, layers=4)
    assert binding_of(problem) != ["the device's processor"]
    staying = replace(problem, samples_stay=True)
    assert binding_of(staying) == ["the device's processor"]
    assert find_limit(staying).seconds == pytest.approx(100 * (2e-3 + 8 * 2e-4), rel=2e-3)


def test_workers_that_share_a_layer_exchange_its_parameters() -> None:
    """Both compute it for 2.8 ms, if not one alone for 3.6 ms; gradients or weights take 3 ms in each direction."""
    problem = small({"device": 1, "edge": 1}, rate_mbps=1e5, layers=1)
    heavy = tuple(layer.model_copy(update={"parameter_bytes": 37_500_000}) for layer in problem.profile.layers)
    found = find_limit(replace(problem, profile=problem.profile.with_layers(heavy)))
    assert found.seconds == pytest.approx(3e-3, rel=5e-3)
    assert found.binding[0].kind == "link"


def test_what_would_lower_it() -> None:
    alone = explain(small({"device": 1}))
    (gain,) = alone.gains
    assert (gain.text, gain.limit.seconds) == ("device twice as fast", pytest.approx(alone.limit.seconds / 2, rel=2e-3))
    found = explain(small({"device": 1, "edge": 1}, rate_mbps=1, excluded=frozenset({"device"})))
    assert found.gains[0].text == "1 Mbit/s more from device to edge"
    assert found.gains[0].limit.seconds == pytest.approx(found.limit.seconds / 2, rel=2e-3)
    assert [gain.limit.seconds for gain in found.gains[1:]] == pytest.approx([found.limit.seconds] * 2, rel=2e-3)


def test_of_a_deep_net_on_three_workers_it_is_proven() -> None:
    problem = large_problem(21, batch_size=4, cloud_mbps=5.0, seed=0)
    limit = find_limit(problem, time_limit_s=60)
    assert limit.proven
    late = find_limit(problem, time_limit_s=0.01)
    assert 0 < late.seconds <= limit.seconds * OFF
    assert late.binding


def test_what_is_too_large_or_has_no_time_is_refused() -> None:
    problem = many_workers(100, layers=30)
    with pytest.raises(InputError, match=f"workers x workers x layers are 300000; must be at most {MOST_FLOWS}"):
        find_limit(problem)
    with pytest.raises(InputError, match="time limit in s 0"):
        find_limit(problem, time_limit_s=0)


@settings(max_examples=100)
@given(layer_times(), st.lists(st.integers(1, 8), min_size=1, max_size=4))
def test_no_pieces_take_less_than_the_lines_say(times: LayerTimes, pieces: list[int]) -> None:
    taken_s = sum(times.forward.seconds(samples) for samples in pieces)
    lines = least_lines(times.forward, 8)
    assert all(fixed_s + each_s * sum(pieces) <= taken_s * OFF for fixed_s, each_s in lines)
    assert all(before[0] >= after[0] >= 0 <= before[1] <= after[1] for before, after in pairwise(lines))
    if not times.forward.bends:
        assert lines[0] == pytest.approx((times.forward.fixed_s, times.forward.per_sample_s), abs=1e-12)


def test_what_binds_is_said_in_words() -> None:
    link = Binding(kind="link", workers=("device", "cloud"), share=1.0)
    assert link.text == "the link from device to cloud"
