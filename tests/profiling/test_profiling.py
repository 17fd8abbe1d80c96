import platform
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hiertrain.control.answers import Answer, Probed, Profiled
from hiertrain.control.jobs import ProfileJob
from hiertrain.problem.network import Link
from hiertrain.problem.profile import LayerCost, LayerTimes, WorkerProfile
from hiertrain.profiling.layers import time_layers
from hiertrain.profiling.measure import link_from_probe, measure_layers, measure_links
from hiertrain.testbeds.session import Testbed
from hiertrain.testbeds.settings import (
    AnySettings,
    LocalSettings,
    SshSettings,
    SshWorker,
    WorkerSettings,
)
from hiertrain.values import InputError, RunError
from hiertrain.workload.architectures import build_model
from hiertrain.workload.chain_model import chain_from_module
from hiertrain.workload.spec import ModelSettings
from tests.conftest import OpenLocal


@given(st.floats(1.0, 1000), st.floats(0, 50), st.floats(0, 20_000))
def test_a_probe_recovers_bandwidth_latency_and_burst(mbps: float, latency_ms: float, burst_bytes: float) -> None:
    size = max(65536, round(mbps * 1e5 / 8))

    def exchange_s(size_bytes: int) -> float:
        return 2e-3 * latency_ms + max(0.0, 8 * (size_bytes - burst_bytes)) / (mbps * 1e6)

    long_s, half_s, short_s = ((max(1e-9, exchange_s(count)),) * 3 for count in (size, size // 2, 0))
    probe = Probed(message_bytes=size, long_s=long_s, half_s=half_s, short_s=short_s)
    link = link_from_probe("a", "b", probe)
    assert link.bandwidth_mbps == pytest.approx(mbps, rel=1e-6)
    assert link.latency_ms == pytest.approx(latency_ms, abs=1e-5)
    assert link.burst_bytes == pytest.approx(burst_bytes, abs=1)


def test_a_credit_within_the_noise_is_none() -> None:
    probe = Probed(message_bytes=250_000, long_s=(0.099, 0.1, 0.101), half_s=(0.05, 0.05, 0.05), short_s=(1e-4,) * 3)
    assert link_from_probe("a", "b", probe).burst_bytes == 0


def test_a_long_message_that_is_no_slower_than_its_half_says_nothing_about_a_link() -> None:
    timings = {"half_s": (0.3, 0.3, 0.3), "short_s": (0.29,) * 3}
    with pytest.raises(RunError, match=r"link from 'a' to 'b': 4096 bytes took no longer than half of them, 0\.3 s"):
        link_from_probe("a", "b", Probed(message_bytes=4096, long_s=(0.29, 0.3, 0.4), **timings))
    # One such round among others changes the spread, not the order of magnitude.
    link = link_from_probe("a", "b", Probed(message_bytes=4096, long_s=(0.29, 0.301, 0.302), **timings))
    assert link.bandwidth_mbps == pytest.approx(8e-6 * 2048 / 0.001)
    assert link.measurement is not None
    assert link.measurement.bandwidth_spread_mbps > link.bandwidth_mbps


def measured_links(testbed: Testbed, right: Callable[[Link], bool], **options: Any) -> tuple[Link, ...]:
    """Each link as first measured right, in up to 20 rounds: other work here delays some messages, and never all."""
    links: dict[tuple[str, str], Link] = {}
    for _ in range(20):
        for link in measure_links(testbed, **options).links:
            ends = link.source, link.target
            if ends not in links or not right(links[ends]):
                links[ends] = link
        if all(map(right, links.values())):
            break
    return tuple(links.values())


def is_near(measured: Link, wanted: Collection[Link], rel: float) -> bool:
    (link,) = (link for link in wanted if (link.source, link.target) == (measured.source, measured.target))
    return measured.bandwidth_mbps == pytest.approx(link.bandwidth_mbps, rel=rel)


def test_a_message_long_enough_is_longer_than_the_round_trip(open_local: OpenLocal) -> None:
    links = tuple(
        Link(source=a, target=b, bandwidth_mbps=20, latency_ms=15) for a, b in (("device", "edge"), ("edge", "device"))
    )  # a round trip of 30 ms, for messages of at least 20 ms
    workers = {"device": WorkerSettings(), "edge": WorkerSettings()}

    def as_meant(link: Link) -> bool:
        assert link.measurement is not None
        return link.measurement.message_bytes >= 0.02 * 20e6 / 8 and is_near(link, links, 0.2)

    with open_local(LocalSettings(data_holder="device", workers=workers, links=links)) as testbed:
        measured = measured_links(testbed, as_meant, repetitions=3, target_s=0.02)
    assert len(measured) == 2
    assert all(map(as_meant, measured))


class Measured:
    """A testbed whose workers, in turn, find that a layer takes 1, 2, ... s."""

    def __init__(self, settings: AnySettings) -> None:
        self.settings = settings
        self.workers = tuple(settings.workers)
        self.asked: list[str] = []

    def run(self, jobs: Mapping[str, ProfileJob], **_: object) -> dict[str, Answer]:
        ((name, asked),) = jobs.items()
        self.asked.append(name)
        cost = LayerCost(fixed_s=len(self.asked), per_sample_s=0)
        times = LayerTimes(forward=cost, backward=cost, update_s=0)
        return {name: Profiled(profile=WorkerProfile(layers=(times,) * build_model(asked.model.name).chain.depth))}


def profiled_s(settings: AnySettings) -> dict[str, float]:
    profile = measure_layers(cast(Testbed, Measured(settings)), ModelSettings(name="lenet5"))
    for name, worker in settings.workers.items():
        assert profile.workers[name].slowdown == worker.slowdown
    return {name: worker.layers[0].forward.fixed_s for name, worker in profile.workers.items()}


def test_paced_workers_share_a_base_if_they_compute_with_the_same_part_of_the_same_machine() -> None:
    paced, free = WorkerSettings(slowdown=4), WorkerSettings()
    workers = {"a": paced, "b": free, "c": WorkerSettings(slowdown=2)}
    assert profiled_s(LocalSettings(data_holder="a", workers=workers)) == {"a": 4, "b": 2, "c": 2}
    workers = {"a": free, "b": WorkerSettings(slowdown=4, accelerator="cuda"), "c": WorkerSettings(slowdown=4)}
    assert profiled_s(LocalSettings(data_holder="a", workers=workers)) == {"a": 1, "b": 8, "c": 4}
    workers = {"a": free, "b": WorkerSettings(slowdown=4, threads=2), "c": paced}
    assert profiled_s(LocalSettings(data_holder="a", workers=workers)) == {"a": 1, "b": 8, "c": 4}


def test_a_worker_on_another_machine_is_no_base_for_a_paced_one() -> None:
    machines = {
        name: SshWorker(host=name, address=f"10.0.0.{number}", interface="eth0", slowdown=slowdown)
        for number, (name, slowdown) in enumerate({"a": 1, "b": 4, "c": 4}.items(), start=1)
    }
    assert profiled_s(SshSettings(data_holder="a", workers=machines)) == {"a": 1, "b": 8, "c": 12}


@pytest.fixture
def normalized(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs get a model that normalizes over the samples alone, as resnet18's last layers do at 32x32 pixels."""
    parts = {"flatten": nn.Flatten(), "first": nn.Linear(16, 4), "norm": nn.BatchNorm1d(4), "last": nn.Linear(4, 10)}
    model = chain_from_module(nn.Sequential(OrderedDict(parts)), "normalized", (1, 4, 4), 10)
    monkeypatch.setattr("hiertrain.profiling.layers.build_model", lambda **_: model)


def job(*sample_counts: int) -> ProfileJob:
    model = ModelSettings(name="normalized")
    return ProfileJob(model=model, threads=1, sample_counts=sample_counts, repetitions=1, warm_up=0, time_limit_s=60)


@pytest.mark.usefixtures("normalized")
def test_a_sample_count_that_batch_norm_refuses_is_skipped() -> None:
    profile = time_layers(job(1, 2, 3), lambda *_: None)
    assert profile.measurement is not None
    assert {point.samples for point in profile.measurement.points} == {0, 2, 3}
    (reason,) = profile.measurement.skipped
    assert reason.startswith("1 samples: layer norm refuses them: Expected more than 1 value per channel")


@pytest.mark.usefixtures("normalized")
@pytest.mark.parametrize("counts", [(1,), (1, 2)])
def test_a_layer_that_leaves_too_few_sample_counts_to_fit_is_named(counts: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"1 samples: layer norm refuses them: .*; there must be two sample counts"):
        time_layers(job(*counts), lambda *_: None)


def test_profile_and_links_of_an_emulated_testbed(open_local: OpenLocal) -> None:
    links = (
        Link(source="device", target="edge", bandwidth_mbps=8, latency_ms=5, burst_bytes=20_000),
        Link(source="edge", target="device", bandwidth_mbps=40, latency_ms=5),
    )
    workers = {"device": WorkerSettings(slowdown=4), "edge": WorkerSettings(slowdown=2)}
    settings = LocalSettings(data_holder="device", workers=workers, links=links)

    # The emulated rates are exact; what is added is this machine's own delay.
    def as_emulated(link: Link) -> bool:
        burst = link.source == "edge" or link.burst_bytes == pytest.approx(20_000, rel=0.5)
        return burst and is_near(link, links, 0.2)

    with open_local(settings) as testbed:
        profile = measure_layers(testbed, ModelSettings(name="lenet5"), sample_counts=(1, 4), repetitions=3, warm_up=1)
        limited = measure_layers(
            testbed,
            ModelSettings(name="lenet5"),
            sample_counts=(1, 4, 10**6),
            repetitions=1,
            memory_limit_bytes=10**6,
            time_limit_s=1e6,
        )
        measured = measured_links(testbed, as_emulated, repetitions=3)
    assert profile.chain.layers == build_model("lenet5").chain.layers
    device, edge = profile.workers["device"], profile.workers["edge"]
    assert (device.slowdown, edge.slowdown) == (4, 2)
    assert device.layers[0].forward.per_sample_s == pytest.approx(2 * edge.layers[0].forward.per_sample_s)
    assert device.measurement is not None
    assert device.measurement.memory_kept == (platform.libc_ver()[0] == "glibc")
    assert {(point.step, point.samples) for point in device.measurement.points} == {
        ("forward", 1), ("forward", 4), ("backward", 1), ("backward", 4), ("update", 0)
    }  # fmt: skip
    assert sum(times.forward.seconds(4) for times in edge.layers) > 0
    assert limited.workers["edge"].measurement is not None
    assert "1000000 samples: would need" in limited.workers["edge"].measurement.skipped[0]

    assert len(measured) == 2
    assert all(as_emulated(link) and link.latency_ms >= 5 for link in measured)
