import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hiertrain.jobs import ModelSettings, Probed
from hiertrain.models import build_model
from hiertrain.network import Link
from hiertrain.profile import TimingPoint
from hiertrain.profiling import fit_cost
from hiertrain.stages import link_from_probe, measure_layers, measure_links
from hiertrain.testbeds import open_testbed
from hiertrain.testbeds.settings import LocalSettings, WorkerSettings


def points(times: dict[int, float]) -> list[TimingPoint]:
    return [TimingPoint(layer="x", step="forward", samples=n, median_s=t, spread_s=0) for n, t in times.items()]


@given(st.floats(0, 1), st.floats(1e-6, 1), st.lists(st.integers(1, 512), min_size=2, max_size=8, unique=True))
def test_fit_recovers_exact_affine_times(fixed_s: float, per_sample_s: float, counts: list[int]) -> None:
    fit = fit_cost(points({n: fixed_s + per_sample_s * n for n in counts}))
    for n in counts:
        assert fit.seconds(n) == pytest.approx(fixed_s + per_sample_s * n, rel=1e-6)


@given(st.dictionaries(st.integers(1, 512), st.floats(1e-6, 10), min_size=1, max_size=8))
def test_fit_is_non_negative_and_no_worse_than_a_proportional_one(times: dict[int, float]) -> None:
    fit = fit_cost(points(times))
    assert fit.fixed_s >= 0
    assert fit.per_sample_s >= 0
    counts, seconds = np.array(list(times)), np.array(list(times.values()))

    def loss(fixed: float, slope: float) -> float:
        return float((((fixed + slope * counts) / seconds - 1) ** 2).sum())

    slopes = np.geomspace(1e-9, 10, 50)
    assert loss(fit.fixed_s, fit.per_sample_s) <= min(loss(0, slope) for slope in slopes) + 1e-9


def test_a_single_sample_count_gives_the_papers_linear_cost() -> None:
    cost = fit_cost(points({8: 0.4}))
    assert (cost.fixed_s, cost.per_sample_s) == (0, pytest.approx(0.05))


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


def test_profile_and_links_of_an_emulated_testbed() -> None:
    links = (
        Link(source="device", target="edge", bandwidth_mbps=8, latency_ms=5, burst_bytes=20_000),
        Link(source="edge", target="device", bandwidth_mbps=40, latency_ms=5),
    )
    workers = {"device": WorkerSettings(slowdown=4), "edge": WorkerSettings(slowdown=2)}
    settings = LocalSettings(data_holder="device", workers=workers, links=links)
    with open_testbed(settings) as testbed:
        profile = measure_layers(testbed, ModelSettings(name="lenet5"), sample_counts=(1, 4), repetitions=3, warm_up=1)
        limited = measure_layers(
            testbed,
            ModelSettings(name="lenet5"),
            sample_counts=(1, 4, 10**6),
            repetitions=1,
            memory_limit_bytes=10**6,
            time_limit_s=1e6,
        )
        network = measure_links(testbed, repetitions=3)
    assert profile.chain.layers == build_model("lenet5").chain.layers
    device, edge = profile.workers["device"], profile.workers["edge"]
    assert (device.slowdown, edge.slowdown) == (4, 2)
    assert device.layers[0].forward.per_sample_s == pytest.approx(2 * edge.layers[0].forward.per_sample_s)
    assert device.measurement is not None
    assert {(point.step, point.samples) for point in device.measurement.points} == {
        ("forward", 1), ("forward", 4), ("backward", 1), ("backward", 4), ("update", 0)
    }  # fmt: skip
    assert sum(times.forward.seconds(4) for times in edge.layers) > 0
    assert limited.workers["edge"].measurement is not None
    assert "1000000 samples: would need" in limited.workers["edge"].measurement.skipped[0]

    # The emulated rates are exact; what is added is this machine's own delay, which only ever slows a message.
    for source, target, mbps in (("device", "edge", 8), ("edge", "device", 40)):
        measured = network.link(source, target)
        assert measured.bandwidth_mbps == pytest.approx(mbps, rel=0.2)
        assert measured.latency_ms >= 5
    assert network.link("device", "edge").burst_bytes == pytest.approx(20_000, rel=0.5)
