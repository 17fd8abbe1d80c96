"""The grid: what is the same work, what it is asked of testbeds, and that recorded work is not done again."""

from dataclasses import replace
from itertools import combinations, permutations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings

from hiertrain import testbeds
from hiertrain.cost.memory import memory_bytes
from hiertrain.experiments import grid, work
from hiertrain.experiments.grid import Case, check_emulated, find_cases, problem_at, setting_of, settings_at, varied
from hiertrain.experiments.speedups import overlap_table, policy_table, policy_timelines, speedup_table
from hiertrain.experiments.work import LEAST_TIMED, observe, work_parameters
from hiertrain.planning.baselines import single_worker_plans
from hiertrain.planning.policies import Policy
from hiertrain.problem.execution import Execution
from hiertrain.problem.hierarchy import Tier
from hiertrain.problem.network import Link
from hiertrain.problem.plan import Assignment, Plan
from hiertrain.program.simulator import iteration_s
from hiertrain.results import records
from hiertrain.testbeds import find_testbed
from hiertrain.testbeds.settings import LocalSettings, WorkerSettings
from hiertrain.training.run import counting
from hiertrain.training.train import MOST_TIMED, iterations_within
from hiertrain.values import InputError
from tests.conftest import OpenLocal
from tests.strategies import plans

LOCAL = check_emulated(find_testbed("local"))
MIDDLE = setting_of(LOCAL, "lenet5", 8)


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    (slower,) = varied(MIDDLE, "cloud_mbps", [1.0])
    return find_cases(LOCAL, [MIDDLE, slower, MIDDLE])


def records_of(case: Case) -> dict[str, str]:
    table = policy_table(LOCAL, [case], {}, work_s=1.0)
    assert table["record"].isna().all()
    works = work.works_of(LOCAL, case, 1.0)
    return {work.policy.name: work.record for work in works}


def test_a_setting_gives_the_testbed_its_speeds_and_rates() -> None:
    changed = MIDDLE.model_copy(
        update={"cloud_mbps": 2.0, "device_edge_mbps": 30.0, "edge_slowdown": 3.3, "sample_encoding": "float32"}
    )
    settings = settings_at(LOCAL, changed)
    assert {link.bandwidth_mbps for link in settings.links if "cloud" in (link.source, link.target)} == {2.0}
    assert {link.bandwidth_mbps for link in settings.links if "cloud" not in (link.source, link.target)} == {30.0}
    problem = problem_at(LOCAL, changed)
    assert {name: worker.slowdown for name, worker in problem.profile.workers.items()} == {
        name: worker.slowdown for name, worker in settings.workers.items()
    }
    device, edge = (problem.profile.worker(name).update_s for name in ("device", "edge"))
    assert edge / device == pytest.approx(3.3 / 23.4)
    assert problem.execution.sample_encoding == "float32"
    assert setting_of(settings, "lenet5", 8) == changed.model_copy(update={"sample_encoding": "uint8"})


def test_a_setting_says_how_it_is_executed_and_what_stays_on_the_device() -> None:
    (private,) = varied(MIDDLE, "samples_stay", [True])
    (small,) = varied(private, "device_memory", [0.5])
    (overlapped,) = varied(small, "execution", ["overlapped"])
    free, problem = problem_at(LOCAL, MIDDLE), problem_at(LOCAL, overlapped)
    assert (free.samples_stay, free.memory_limit_bytes) == (False, {})
    assert problem.samples_stay
    assert problem.execution == Execution.overlapped()
    alone = single_worker_plans(free)["device"]
    assert problem.memory_limit_bytes == {"device": memory_bytes(free, alone, "device") // 2}
    found = find_cases(LOCAL, [small])[0].policies
    assert not {"all-device", "all-edge", "all-cloud", "data-parallel"} & set(found)
    assert found["hiertrain+"].plan.workers["device"].samples == 8
    with pytest.raises(InputError, match=r"sweep of execution.*'overlap'"):
        varied(MIDDLE, "execution", ["overlap"])


def test_overlapping_is_compared_where_all_were_executed_and_nothing_stays() -> None:
    times = {"hiertrain": 100.0, "hiertrain+": 90.0, "all-edge": 110.0, "all-cloud": 120.0, "jalad": 10.0}
    rows = [
        {**dict(MIDDLE), "execution": execution, "cloud_mbps": rate, "samples_stay": stays, "policy": name}
        | {"predicted_ms": own * factor, "observed_ms": own * factor if rate > 1 else np.nan}
        for rate, overlap in ((1.0, 0.5), (4.0, 0.25), (16.0, 1.0))
        for stays in (False, True)
        for execution, factor in (("paper", 1.0), ("overlapped", overlap))
        for name, own in times.items()
    ]
    table = overlap_table(pd.DataFrame(rows)).set_index(["plans", "execution"])
    assert len(table) == 6
    best = table.xs(("hiertrain+", "overlapped")).to_dict()
    assert best["observed"] == pytest.approx((100 / 22.5 * 100 / 90) ** 0.5)
    assert best["predicted"] == pytest.approx((100 / 45 * 100 / 22.5 * 100 / 90) ** (1 / 3))
    assert best["least_observed"] == pytest.approx(100 / 90)
    assert (best["settings_observed"], best["settings_predicted"]) == (2, 3)
    assert table.loc[("one machine", "paper"), "observed"] == pytest.approx(100 / 110)


def test_what_makes_no_difference_is_the_same_work(cases: list[Case]) -> None:
    assert len(cases) == 2
    middle, slower = map(records_of, cases)
    assert middle["all-device"] == slower["all-device"]  # uses no link
    assert middle["all-edge"] == slower["all-edge"]  # does not reach the cloud
    assert middle["all-cloud"] != slower["all-cloud"]
    assert len({middle["all-device"], middle["all-edge"], middle["all-cloud"]}) == 3
    for name, policy in cases[0].policies.items():
        for other, another in cases[0].policies.items():
            if middle[name] == middle[other]:
                assert policy.predicted_s == another.predicted_s
    (faster_cloud,) = varied(MIDDLE, "cloud_slowdown", [3.0])
    single = {name: cases[0].policies[name] for name in ("all-edge", "all-cloud")}
    problem = problem_at(LOCAL, faster_cloud)
    moved = Case(faster_cloud, {name: replace(policy, problem=problem) for name, policy in single.items()})
    assert records_of(moved)["all-edge"] == middle["all-edge"]
    assert records_of(moved)["all-cloud"] != middle["all-cloud"]


def work_of(policy: Policy) -> dict[str, object]:
    return work_parameters(LOCAL, MIDDLE, policy)


@hypothesis_settings(max_examples=50)
@given(plans(names=("device", "edge", "cloud"), depth=13, batch_size=8, data_holder="device"))
def test_parents_of_idle_workers_make_no_difference(plan: Plan) -> None:
    problem = problem_at(LOCAL, MIDDLE)
    idle = Assignment(parent=plan.root, depth=0, samples=0)
    moved = {name: part if plan.active(name) else idle for name, part in plan.workers.items()}
    other = Plan(batch_size=plan.batch_size, data_holder=plan.data_holder, workers=moved)
    assert work_of(Policy("one", plan, problem)) == work_of(Policy("other", other, problem))


@pytest.mark.parametrize("encodings", [{"activation_encoding": "uint8"}, {"parameter_encoding": "float16"}])
@pytest.mark.parametrize(("depth", "same"), [(0, True), (3, False), (13, True)])
def test_an_encoding_makes_a_difference_where_something_travels_in_it(
    depth: int, same: bool, encodings: dict[str, str]
) -> None:
    problem = problem_at(LOCAL, MIDDLE)
    root, leaf = ("cloud", "device") if depth < 13 else ("device", "cloud")
    parts = {
        root: (None, 13, 0 if depth % 13 else 8),
        leaf: (root, depth % 13, 8 if depth % 13 else 0),
        "edge": (root, 0, 0),
    }
    workers = {name: Assignment(parent=p, depth=m, samples=b) for name, (p, m, b) in parts.items()}
    plan = Plan(batch_size=8, data_holder="device", workers=workers)
    rounded = replace(problem, execution=Execution.model_validate(encodings))
    assert (work_of(Policy("one", plan, problem)) == work_of(Policy("other", plan, rounded))) == same


def test_what_computing_and_links_depend_on_makes_a_difference(cases: list[Case]) -> None:
    setting, policy = cases[0].setting, cases[0].policies["all-cloud"]
    works = [work_parameters(LOCAL, setting, policy)]
    late = [link.model_copy(update={"latency_ms": 20.0}) for link in LOCAL.links]
    works.append(work_parameters(LOCAL.model_copy(update={"links": tuple(late)}), setting, policy))
    more = {name: worker.model_copy(update={"threads": 2}) for name, worker in LOCAL.workers.items()}
    works.append(work_parameters(LOCAL.model_copy(update={"workers": more}), setting, policy))
    profile = policy.problem.profile
    other = {**profile.workers, "cloud": profile.worker("cloud").scaled(1.01)}
    changed = replace(policy.problem, profile=profile.model_copy(update={"workers": other}))
    works.append(work_parameters(LOCAL, setting, replace(policy, problem=changed)))
    assert all(one != other for one, other in combinations(works, 2))


@pytest.mark.parametrize(
    ("predicted_s", "least", "iterations"),
    [(0.5, 3, 4), (5.0, 3, 3), (5.0, 1, 1), (0.001, 1, MOST_TIMED), (0.0, 1, MOST_TIMED)],
)
def test_iterations_fill_the_time_within_bounds(predicted_s: float, least: int, iterations: int) -> None:
    for execution in (Execution(), Execution(prefetch=True)):
        total = iterations_within(2.0, predicted_s, execution, least)
        assert len(counting(total, execution.prefetch)) == iterations


def test_work_is_executed_once_and_then_recalled(
    cases: list[Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, open_local: OpenLocal
) -> None:
    monkeypatch.setattr(records.remembered, "__defaults__", (tmp_path, ()))
    monkeypatch.setattr(testbeds, "open_testbed", open_local)
    first = Case(MIDDLE, {name: cases[0].policies[name] for name in ("all-edge", "jointdnn+", "hiertrain+")})
    results = observe("try", LOCAL, [first], work_s=0.2, slowest_s=10.0)
    monkeypatch.setattr(testbeds, "open_testbed", lambda _: pytest.fail("there is nothing left to execute"))
    assert observe("try", LOCAL, [first], work_s=0.2, slowest_s=10.0) == results
    with pytest.raises(pytest.fail.Exception):
        observe("try", LOCAL, [first], work_s=0.3, slowest_s=10.0)
    assert not observe("try", LOCAL, [first], work_s=0.3, slowest_s=1e-6)

    table = policy_table(LOCAL, [first], results, 0.2).set_index("policy")
    assert set(table["kind"]) == {"emulated"}
    for name, row in table.to_dict("index").items():
        iteration_ms = 1e3 * np.array(results[row["record"]]["iteration_s"])
        assert row["iterations"] == len(iteration_ms) >= LEAST_TIMED
        assert row["low_ms"] <= row["observed_ms"] == np.median(iteration_ms) <= row["high_ms"]
        policy = first.policies[str(name)]
        assert row["predicted_ms"] == 1e3 * iteration_s(policy.problem, policy.plan)
    speedups = speedup_table(table.reset_index(), of="hiertrain+").set_index("policy")
    edge, best = (table.to_dict("index")[name] for name in ("all-edge", "hiertrain+"))
    assert list(speedups.index) == ["all-edge", "jointdnn+"]
    assert speedups.loc["all-edge", "observed"] == edge["observed_ms"] / best["observed_ms"]
    assert speedups.loc["all-edge", "low"] == edge["low_ms"] / best["high_ms"]

    real = policy_timelines(LOCAL, first, results, 0.2)
    foreseen = policy_timelines(LOCAL, first, {}, 0.2)
    assert set(real["source"]) == {"emulated"}
    assert set(foreseen["source"]) == {"predicted"}
    assert list(real["policy"].unique()) == list(foreseen["policy"].unique())
    assert ", ".join(real["policy"].unique()).count("jointdnn+") == 1
    best_ms = foreseen[foreseen["policy"].str.contains("hiertrain+", regex=False)]["end_ms"].max()
    assert best_ms == pytest.approx(best["predicted_ms"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (LocalSettings(data_holder="device", workers={"device": WorkerSettings(slowdown=2)}), "needs the workers"),
        (LOCAL.model_copy(update={"links": LOCAL.links[:3]}), "a rate of every link"),
        (
            LOCAL.model_copy(
                update={"links": (*LOCAL.links[:5], LOCAL.links[5].model_copy(update={"bandwidth_mbps": 40.0}))}
            ),
            "40 Mbit/s from cloud to edge, 5 on another link",
        ),
    ],
)
def test_only_three_emulated_hosts_make_a_grid(settings: LocalSettings, message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_emulated(settings)


TIER_OF: dict[str, Tier] = {"phone": "device", "tablet": "device", "router": "edge", "server": "cloud"}


def two_devices(tablet_slowdown: float) -> LocalSettings:
    """The testbed with a second device, under names that say no tier."""
    workers = {name: LOCAL.workers[tier].model_copy(update={"tier": tier}) for name, tier in TIER_OF.items()}
    workers["tablet"] = workers["tablet"].model_copy(update={"slowdown": tablet_slowdown})
    links = [
        Link(source=a, target=b, bandwidth_mbps=MIDDLE.mbps(TIER_OF[a], TIER_OF[b]), latency_ms=0)
        for a, b in permutations(workers, 2)
    ]
    return LocalSettings(data_holder="phone", workers=workers, links=tuple(links))


def test_a_grid_has_one_speed_for_each_tier() -> None:
    slowdown = LOCAL.workers["device"].slowdown
    settings = check_emulated(two_devices(slowdown))
    assert setting_of(settings, "lenet5", 8) == MIDDLE
    (slower,) = varied(MIDDLE, "device_slowdown", [2 * slowdown])
    found, expected = problem_at(settings, slower).profile, problem_at(LOCAL, slower).profile
    for name, tier in TIER_OF.items():
        assert found.workers[name] == expected.workers[tier].model_copy(update={"tier": tier})
    with pytest.raises(InputError, match=r"slowdown 50 of tablet, .* of another device; .* one slowdown for each tier"):
        check_emulated(two_devices(50.0))


def test_sweeps_and_profiles_that_there_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"sweep of cloud_mbps: cloud_mbps: .*at least 0.001, got -1"):
        varied(MIDDLE, "cloud_mbps", [-1.0])
    with pytest.raises(InputError, match="sweep of colour: colour: unknown field"):
        varied(MIDDLE, "colour", [1.0])
    (too_fast,) = varied(MIDDLE, "edge_slowdown", [1.5])
    with pytest.raises(InputError, match=r"slowdown 1\.5: must be 1 .*at least 2"):
        settings_at(LOCAL, too_fast)
    monkeypatch.setattr(grid, "DATA", tmp_path)
    with pytest.raises(InputError, match=r"lenet5\.json: there is no recorded profile of 'lenet5'; git restores"):
        problem_at(LOCAL, MIDDLE)


def test_a_sweep_of_whole_numbers_may_be_written_as_decimals() -> None:
    assert [setting.batch_size for setting in varied(MIDDLE, "batch_size", [8.0, 32])] == [8, 32]
    with pytest.raises(InputError, match=r"batch_size: must be a valid integer, got 8\.5"):
        varied(MIDDLE, "batch_size", [8.5])
