"""The policies: ordered by construction, exact against enumeration, and each executed as it says."""

from collections.abc import Callable
from dataclasses import replace
from itertools import permutations, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hiertrain.cost.integers import TIE
from hiertrain.cost.memory import memory_bytes
from hiertrain.experiments.grid import recorded_profile
from hiertrain.figures import POLICY_STYLES
from hiertrain.planning import policies
from hiertrain.planning.optimize import RESOLUTION, optimize
from hiertrain.planning.policies import POLICIES, Policy, find_policies
from hiertrain.problem.execution import Execution
from hiertrain.problem.network import Link, Network
from hiertrain.problem.plan import Assignment, Plan
from hiertrain.problem.problem import Problem
from hiertrain.problem.profile import LayerCost, Profile
from hiertrain.program.compiler import compile_plan
from hiertrain.program.simulator import iteration_s, simulate
from hiertrain.values import InputError, RunError
from tests.oracles import admissible_plans
from tests.strategies import PLAIN, problems

NAMES = ("device", "edge", "cloud")
SLACK = 1 + RESOLUTION + TIE  # plans that differ by less are equal

# Pairs of policies with the same costs and execution of which the first admits all plans of the second.
ORDERED = [
    *(("hiertrain+", name) for name in POLICIES if not name.startswith("jalad")),
    *(("jointdnn", f"all-{name}") for name in ("device", "cloud")),
    *(("jointdnn+", name) for name in ("all-device", "all-edge", "all-cloud", "jointdnn")),
    ("layer-parallel", "jointdnn+"),
    ("data-parallel", "all-device"),
    ("data-parallel", "all-edge"),
    ("data-parallel", "all-cloud"),
    ("jalad+", "jalad"),
]


def eight_bits(problem: Problem) -> Problem:
    return replace(problem, execution=problem.execution.model_copy(update={"activation_encoding": "uint8"}))


def check_order(found: dict[str, Policy]) -> None:
    for better, worse in ORDERED:
        assert found[better].predicted_s <= found[worse].predicted_s * SLACK, (better, worse)


def check_star(problem: Problem, found: dict[str, Policy]) -> None:
    """Assert that the exact star is no slower than what it admits."""
    star_s = optimize(problem, shape="star").objective_s
    data_parallel = optimize(replace(problem, whole_model=True), shape="star").plan
    assert star_s <= iteration_s(problem, data_parallel) * SLACK
    for name in ("all-device", "all-edge", "all-cloud", "jointdnn", "hiertrain"):
        assert star_s <= found[name].predicted_s * SLACK


def chain_of(problem: Problem, *parts: tuple[str, int]) -> Plan:
    """The plan of (worker, depth) from the root down, without those that compute no layer of their own."""
    depths = [*(depth for _, depth in parts[1:]), 0]
    active = [part for part, below in zip(parts, depths, strict=True) if part[1] > below]
    workers = {name: Assignment(parent=active[0][0], depth=0, samples=0) for name in NAMES}
    for place, (name, depth) in enumerate(active):
        last = place == len(active) - 1
        workers[name] = Assignment(
            parent=active[place - 1][0] if place else None, depth=depth, samples=problem.batch_size if last else 0
        )
    return Plan(batch_size=problem.batch_size, data_holder=problem.data_holder, workers=workers)


def all_plans(problem: Problem, name: str) -> list[Plan]:
    """What a policy chooses from."""
    layers = problem.profile.chain.depth
    cuts = range(layers + 1)
    if name.startswith("all-"):
        return [chain_of(problem, (name.removeprefix("all-"), layers))]
    if name in ("jointdnn", "jalad"):
        return [chain_of(problem, ("cloud", layers), ("device", cut)) for cut in cuts]
    if name in ("jointdnn+", "jalad+"):
        return [
            chain_of(problem, ("cloud", layers), ("edge", second), ("device", first))
            for first, second in product(cuts, cuts)
            if first <= second
        ]
    if name == "layer-parallel":
        return [
            chain_of(problem, (root, layers), (middle, second), (leaf, first))
            for root, middle, leaf in permutations(NAMES)
            for first, second in product(cuts, cuts)
            if first <= second
        ]
    plans = list(admissible_plans(problem, "star" if name == "hiertrain" else "tree"))
    if name == "data-parallel":
        return [plan for plan in plans if all(plan.workers[w].depth in (0, layers) for w in NAMES)]
    return plans


def linear(problem: Problem) -> Problem:
    """The problem as the paper's scheduler sees it, written out."""
    batch = problem.batch_size

    def proportional(cost: LayerCost) -> dict[str, float]:
        return {"fixed_s": 0.0, "per_sample_s": cost.seconds(batch) / batch}

    content = problem.profile.model_dump()
    for name, worker in problem.profile.workers.items():
        for entry, times in zip(content["workers"][name]["layers"], worker.layers, strict=True):
            entry |= {"forward": proportional(times.forward), "backward": proportional(times.backward)}
    return replace(problem, profile=Profile.model_validate(content))


def simulated_s(problem: Problem, plan: Plan) -> float:
    program = compile_plan(plan, problem.profile.chain, problem.execution)
    return simulate(program, problem.profile, problem.network).period_s


@settings(max_examples=15)
@given(problems(workers=3, max_layers=3, max_batch=3, executions=PLAIN))
def test_every_policy_is_the_best_of_its_plans(problem: Problem) -> None:
    found = find_policies(problem)
    assert tuple(found) == POLICIES
    check_order(found)
    check_star(problem, found)
    for name, policy in found.items():
        encoding = "uint8" if name.startswith("jalad") else "float32"
        executed = replace(problem, execution=problem.execution.model_copy(update={"activation_encoding": encoding}))
        assert (policy.name, policy.problem) == (name, executed)
        assert policy.predicted_s == pytest.approx(simulated_s(executed, policy.plan), rel=1e-9)
        known = linear(executed) if name == "hiertrain" else executed
        plans = all_plans(problem, name)
        assert policy.plan.workers in [plan.workers for plan in plans]
        assert simulated_s(known, policy.plan) <= min(simulated_s(known, plan) for plan in plans) * SLACK


def recorded_problem(model: str, batch_size: int) -> Problem:
    profile = recorded_profile(model, {"device": 8, "edge": 4, "cloud": 2})
    links = [
        Link(source=a, target=b, bandwidth_mbps=5 if "cloud" in (a, b) else 20, latency_ms=5, burst_bytes=1200)
        for a, b in permutations(NAMES, 2)
    ]
    return Problem(profile, Network(links=tuple(links)), batch_size, "device")


@pytest.mark.parametrize("model", ["lenet5", "alexnet-cifar", "alexnet", "vgg16", "resnet50"])
def test_policies_of_recorded_profiles_keep_their_restrictions(model: str) -> None:
    problem = recorded_problem(model, batch_size=32)
    found = find_policies(problem)
    check_order(found)
    for name, (first, *_) in policies.CHAINS.items():
        workers = found[name].plan.workers
        used = [worker for worker in NAMES if found[name].plan.active(worker)]
        assert set(used) <= set(policies.CHAINS[name])
        assert first not in used or workers[first].samples == 32
        assert [workers[worker].parent for worker in used] == [*used[1:], None]
    assert 32 in [part.samples for part in found["layer-parallel"].plan.workers.values()]
    assert {part.depth for part in found["data-parallel"].plan.workers.values()} <= {0, len(problem.profile.layers)}
    star = found["hiertrain"].plan
    assert all(star.workers[name].parent in (None, star.root) for name in NAMES if star.active(name))


@settings(max_examples=50)
@given(problems(workers=3, executions=PLAIN), st.integers(1, 8))
def test_linear_costs_are_right_at_one_number_of_samples(problem: Problem, samples: int) -> None:
    profile = problem.profile
    fitted = profile.linear_at(samples)
    assert fitted.chain == profile.chain
    for name, worker in profile.workers.items():
        for before, after in zip(worker.layers, fitted.workers[name].layers, strict=True):
            assert after.update_s == before.update_s
            for known, exact in ((after.forward, before.forward), (after.backward, before.backward)):
                assert known.fixed_s == 0
                assert known.seconds(samples) == pytest.approx(exact.seconds(samples))
                assert known.seconds(3 * samples) == pytest.approx(3 * exact.seconds(samples))


def test_every_policy_has_a_style() -> None:
    assert tuple(POLICY_STYLES) == POLICIES


REFUSED: list[tuple[Callable[[Problem], Problem], list[str], str]] = [
    (lambda problem: problem, ["jointdnn", "jointdnn++"], r"policy 'jointdnn\+\+' is unknown; there are all-device"),
    (lambda problem: replace(problem, excluded=frozenset({"edge"})), ["jalad+"], "no worker of the tier edge"),
    (lambda problem: replace(problem, whole_model=True), ["all-cloud"], "it must leave root and depths open"),
    (lambda problem: replace(problem, root="edge"), ["all-cloud"], "it must leave root and depths open"),
    (eight_bits, ["jointdnn"], "send float32"),
    (
        lambda problem: replace(problem, execution=Execution(parameter_encoding="float16")),
        ["hiertrain"],
        "send float32",
    ),
]


@pytest.mark.parametrize(("change", "names", "message"), REFUSED)
def test_what_cannot_be_compared_is_refused(
    change: Callable[[Problem], Problem], names: list[str], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        find_policies(change(recorded_problem("lenet5", 4)), names)


@settings(max_examples=15)
@given(problems(workers=3, max_layers=3, max_batch=3, executions=PLAIN), st.booleans(), st.integers(1, 10_000))
def test_every_policy_is_the_best_of_its_plans_that_keep_the_constraints(
    problem: Problem, samples_stay: bool, memory: int
) -> None:
    constrained = replace(problem, samples_stay=samples_stay, memory_limit_bytes={"device": memory, "cloud": memory})
    found = find_policies(constrained)
    for name in POLICIES:
        executed = eight_bits(problem) if name.startswith("jalad") else problem
        known = linear(executed) if name == "hiertrain" else executed
        plans = [plan for plan in all_plans(problem, name) if keeps(plan, constrained)]
        assert (name in found) == bool(plans)
        if plans:
            assert found[name].plan.workers in [plan.workers for plan in plans]
            assert simulated_s(known, found[name].plan) <= min(simulated_s(known, plan) for plan in plans) * SLACK


def keeps(plan: Plan, problem: Problem) -> bool:
    starting = {name for name, part in plan.workers.items() if part.samples}
    if problem.samples_stay and starting != {problem.data_holder}:
        return False
    return all(memory_bytes(problem, plan, name) <= limit for name, limit in problem.memory_limit_bytes.items())


def test_two_tiers_have_policies_too() -> None:
    problem = replace(recorded_problem("lenet5", 16), excluded=frozenset({"edge"}))
    found = find_policies(problem, ["jointdnn", "data-parallel", "layer-parallel", "hiertrain+"])
    assert not any(policy.plan.active("edge") for policy in found.values())
    assert found["hiertrain+"].predicted_s <= found["layer-parallel"].predicted_s * SLACK
    assert found["layer-parallel"].predicted_s <= found["jointdnn"].predicted_s * SLACK


def renamed(problem: Problem, name_of: dict[str, str]) -> Problem:
    """The problem with other names, so that the tiers are properties."""
    workers = problem.profile.workers
    tiered = {name_of[name]: workers[name].model_copy(update={"tier": name}) for name in workers}
    links = [
        link.model_copy(update={"source": name_of[link.source], "target": name_of[link.target]})
        for link in problem.network.links
    ]
    profile = problem.profile.model_copy(update={"workers": tiered})
    return replace(
        problem, profile=profile, network=Network(links=tuple(links)), data_holder=name_of[problem.data_holder]
    )


@settings(max_examples=10)
@given(problems(workers=3, max_layers=3, max_batch=3, executions=PLAIN))
def test_a_tier_is_not_a_name(problem: Problem) -> None:
    name_of = {"device": "phone", "edge": "router", "cloud": "device-of-the-lab"}
    plans, others = find_policies(problem), find_policies(renamed(problem, name_of))
    for policy in POLICIES:
        assert others[policy].predicted_s == plans[policy].predicted_s
        for name, part in plans[policy].plan.workers.items():
            other = others[policy].plan.workers[name_of[name]]
            assert (other.depth, other.samples) == (part.depth, part.samples)


@settings(max_examples=10)
@given(problems(workers=4, max_layers=3, max_batch=3, executions=PLAIN))
def test_a_tier_of_two_has_the_best_one(problem: Problem) -> None:
    """The fourth worker is a second cloud."""
    names = [name for name in POLICIES if name in policies.CHAINS]
    both = find_policies(problem, names)
    alone = [
        find_policies(replace(problem, excluded=frozenset({one}) - {problem.data_holder}), names)
        for one in ("cloud", "cloud-2")
        if one != problem.data_holder
    ]
    for name in names:
        assert both[name].predicted_s <= min(found[name].predicted_s for found in alone) * SLACK
        clouds = {worker for worker in ("cloud", "cloud-2") if both[name].plan.active(worker)}
        assert len(clouds) <= 1


def test_an_unproven_optimum_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policies, "TIME_LIMIT_S", 1e-9)
    with pytest.raises(RunError, match="plan of shape 'tree' for alexnet: after 0 s the best one takes"):
        find_policies(recorded_problem("alexnet", 128), ["hiertrain+"])
