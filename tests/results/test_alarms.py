"""Every kind of alarm from both sides of its limit, and how it is shown."""

import numpy as np
import pandas as pd
import pytest

from hiertrain.problem.network import Link, LinkMeasurement, Network
from hiertrain.problem.plan import Assignment, Plan
from hiertrain.problem.profile import Profile
from hiertrain.results import alarms
from hiertrain.results.tables import plan_alarms
from hiertrain.testbeds.settings import LocalSettings, SshSettings, WorkerSettings


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (0.01, 0), (0.011, 1), (0.03, 1)])
def test_paced_actions_that_come_too_late(share, count):
    found = alarms.lateness({"a": 0.0, "b": share, "not paced": np.nan})
    assert len(found) == count
    if found:
        assert f"{share:.1%} of the time (b; 1 of 3 are over 0.01)" in found[0].what
        assert (found[0].value, found[0].limit) == (share, 0.01)


@pytest.mark.parametrize(("observed_s", "count"), [(0.4, 1), (0.126, 1), (0.124, 0), (0.1, 0), (0.081, 0), (0.079, 1)])
def test_a_prediction_that_misses_either_way(observed_s, count):
    found = alarms.misses({"three workers": (0.1, observed_s)})
    assert len(found) == count
    if observed_s == 0.4:
        assert "factor of 4.00: 100.0 ms predicted, 400.0 ms observed (three workers)" in found[0].what


def test_a_profile_that_costs_nothing_predicts_nothing():
    assert alarms.misses({"free": (0.0, 0.4)}) == []


@pytest.mark.parametrize(("slow_s", "count"), [(1.45, 1), (1.21, 1), (1.19, 0)])
def test_runs_of_the_same_plan_that_differ(slow_s, count):
    found = alarms.repetitions({"plan": [1.1, slow_s, 1.0], "once": [5.0]})
    assert len(found) == count
    if slow_s == 1.45:
        assert "differ by 45%: 1000.0 and 1450.0 ms per iteration (plan)" in found[0].what


def network(latency_ms: float, latency_spread_ms: float, bandwidth_spread_mbps: float = 0.1) -> Network:
    measurement = LinkMeasurement(
        repetitions=5,
        message_bytes=100,
        latency_spread_ms=latency_spread_ms,
        bandwidth_spread_mbps=bandwidth_spread_mbps,
    )
    link = Link(source="a", target="b", bandwidth_mbps=10, latency_ms=latency_ms, measurement=measurement)
    return Network(links=(link, Link(source="b", target="a", bandwidth_mbps=10, latency_ms=1)))


@pytest.mark.parametrize(
    ("links", "count"),
    [
        (network(1, 10), 1),
        (network(1, 1.1), 1),
        (network(1, 0.9), 0),
        (network(0.03, 0.4), 0),  # half a millisecond costs next to nothing
        (network(0, 0.6), 1),
        (network(1, 0.1, 2.6), 1),
        (network(1, 0.1, 2.4), 0),
        (network(1, 10, 9), 2),
    ],
)
def test_links_that_spread(links, count):
    found = alarms.spreads(links)
    assert len(found) == count
    assert all("a to b" in alarm.what for alarm in found)


def local(slowdown: float = 1, threads: int = 1) -> LocalSettings:
    worker = WorkerSettings(slowdown=slowdown, threads=threads)
    return LocalSettings(data_holder="a", workers=dict.fromkeys("abc", worker))


@pytest.mark.parametrize(
    ("settings", "workers", "cores", "count"),
    [
        (local(), "abc", 2, 1),
        (local(), "abc", 3, 0),
        (local(), "ab", 2, 0),
        (local(threads=2), "ab", 3, 1),
        (local(threads=4), "a", 2, 0),  # alone, as it was profiled
        (local(slowdown=2), "abc", 1, 1),
        (local(slowdown=2), "abc", 2, 0),
    ],
)
def test_more_computing_at_once_than_cores_is_known_beforehand(settings, workers, cores, count):
    found = alarms.crowding(settings, workers, cores)
    assert len(found) == count
    if found:
        assert f"this machine has {cores}" in found[0].what


def test_machines_that_ssh_reaches_have_their_own_cores():
    worker = {"host": "h", "address": "192.168.1.2", "interface": "eth0"}
    settings = SshSettings.model_validate({"data_holder": "a", "workers": dict.fromkeys("abc", worker)})
    assert alarms.crowding(settings, "abc", 1) == []


def profile(measured_s: float) -> Profile:
    cost = {"fixed_s": 0.0, "per_sample_s": 0.001}
    points = [
        {"layer": "fc", "step": step, "samples": 8, "median_s": seconds, "spread_s": 0.0}
        for step, seconds in (("forward", measured_s), ("backward", 0.008))
    ]
    measurement = {"host": "h", "threads": 1, "warm_up": 1, "repetitions": 1, "points": points}
    worker = {"layers": [{"forward": cost, "backward": cost, "update_s": 0.0}], "measurement": measurement}
    layer = {"name": "fc", "output_bytes": 0, "parameter_bytes": 4, "activation_bytes": 4}
    return Profile.model_validate({"model": "m", "sample_bytes": 4, "layers": [layer], "workers": {"a": worker}})


@pytest.mark.parametrize(("measured_s", "count"), [(0.008, 0), (0.0086, 0), (0.02, 1), (0.007, 1)])
def test_a_profile_that_misses_its_points(measured_s, count):
    plan = Plan(batch_size=8, data_holder="a", workers={"a": Assignment(parent=None, depth=1, samples=8)})
    found = alarms.misfits(profile(measured_s), [plan, plan])
    assert len(found) == count
    if measured_s == 0.02:
        assert "fc (forward, 8 samples, a) is 8.00 ms, measured were 20.00 ms (1 times" in found[0].what
        assert found[0].value == pytest.approx(0.6)


def test_a_table_of_plans():
    table = pd.DataFrame(
        {
            "model": "m",
            "policy": ["x", "y", "z"],
            "predicted_ms": [1.0, 2.0, 3.0],
            "observed_ms": [1.0, 4.0, np.nan],
            "late_share": [0.02, 0.0, np.nan],
        }
    )
    late, missed = plan_alarms(table, "model", "policy")
    assert "(m, x; 1 of 2" in late.what
    assert "(m, y; 1 of 2" in missed.what
    assert plan_alarms(table[2:], "model", "policy") == []


def test_each_is_shown_once_with_what_to_do(capsys):
    (late,) = alarms.lateness({"run": 0.5})
    alarms.show([late, late])
    shown = capsys.readouterr().err
    assert shown == f"warning: {late.what}; {late.advice}\n"
    alarms.show([])
    assert capsys.readouterr().err == ""


def test_a_record_gives_them_back():
    found = alarms.lateness({"run": 0.5})
    assert alarms.loaded([alarm.model_dump(mode="json") for alarm in found]) == found
