"""The paper's first stage as the user drives it: layers and links measured on a testbed's workers.

Times that come from here are *measured* or *emulated* as ``testbeds.settings.kind_of_times`` says: those of network
namespaces count as measured, although computing is paced.
"""

from collections.abc import Hashable
from typing import NoReturn

import numpy as np
from tqdm.auto import tqdm

from hiertrain.control.answers import Beat, Probed, Profiled, Progress, Snapshot
from hiertrain.control.jobs import ProbeJob, ProfileJob
from hiertrain.problem.network import Link, LinkMeasurement, Network
from hiertrain.problem.profile import Profile, WorkerProfile
from hiertrain.testbeds.session import OnEvent, Testbed
from hiertrain.testbeds.settings import AnySettings
from hiertrain.values import RunError
from hiertrain.workload.architectures import chain_of
from hiertrain.workload.spec import ModelSettings


def measure_layers(
    testbed: Testbed,
    model: ModelSettings,
    *,
    sample_counts: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128),
    repetitions: int = 9,
    warm_up: int = 2,
    time_limit_s: float = 60.0,
    memory_limit_bytes: int | None = None,
) -> Profile:
    """Stage 1a: the time of every layer of ``model`` on every worker.

    A paced worker gets a frozen base profile times its slowdown, which is what the runtime will pace it to. The base
    is measured while the others idle, once for all that compute with the same part of the same machine. Raises
    WorkerError, InputError.
    """
    chain = chain_of(model)
    workers: dict[str, WorkerProfile] = {}
    bases: dict[Hashable, WorkerProfile] = {}
    for name in testbed.workers:
        settings, part = testbed.settings.workers[name], _part_of_machine(testbed.settings, name)
        base = None if settings.slowdown == 1 else bases.get(part)
        if base is None:
            job = ProfileJob(
                model=model,
                threads=settings.threads,
                accelerator=settings.accelerator,
                sample_counts=sample_counts,
                repetitions=repetitions,
                warm_up=warm_up,
                time_limit_s=time_limit_s,
                memory_limit_bytes=memory_limit_bytes,
            )
            with tqdm(desc=f"profiling {model.name} on {name}", unit="count", leave=False) as bar:
                answer = testbed.run({name: job}, on_event=_shown_on(bar))[name]
            assert isinstance(answer, Profiled)
            base = answer.profile
            bases.setdefault(part, base)
        workers[name] = base.scaled(settings.slowdown).model_copy(update={"tier": settings.tier})
    return Profile(
        model=chain.model, sample_bytes=chain.sample_bytes, dtype=chain.dtype, layers=chain.layers, workers=workers
    )


def _part_of_machine(settings: AnySettings, name: str) -> Hashable:
    """Equal for workers that would be equally fast without pacing. Two machines that SSH reaches never are."""
    worker = settings.workers[name]
    machine = None if settings.one_machine else name
    return machine, worker.threads, worker.accelerator


def measure_links(testbed: Testbed, *, repetitions: int = 5, target_s: float = 0.1) -> Network:
    """Stage 1b: bandwidth and latency of every pair and direction, by real transfers, one pair at a time.

    A link's latency is taken as half of the round trip of one byte: the two directions cannot be told apart
    without synchronised clocks. Raises WorkerError, and RunError for a link whose timings say nothing.
    """
    pairs = [(a, b) for a in testbed.workers for b in testbed.workers if a != b]
    links = []
    for source, target in tqdm(pairs, desc="probing links", unit="link", leave=False):
        group = testbed.group((source, target), timeout_s=10 * target_s)
        jobs = {
            name: ProbeJob(
                group=group, links=dict(testbed.links_from(name)), repetitions=repetitions, target_s=target_s
            )
            for name in (source, target)
        }
        answer = testbed.run(jobs)[source]
        assert isinstance(answer, Probed)
        links.append(link_from_probe(source, target, answer))
    return Network(links=tuple(links))


def link_from_probe(source: str, target: str, probe: Probed) -> Link:
    """Bandwidth from a long message and its half; latency from one byte; the burst is what passed sooner than both say.

    A credit within the spread of the timings is none. Raises RunError when the long message took no longer.
    """
    long_s, half_s, short_s = (np.array(times) for times in (probe.long_s, probe.half_s, probe.short_s))
    rest_bytes = probe.message_bytes - probe.message_bytes // 2
    rest_s = np.median(long_s - half_s)
    if rest_s <= 0:
        raise RunError(
            f"link from {source!r} to {target!r}: {probe.message_bytes} bytes took no longer than half of them, "
            f"{np.median(half_s):.3g} s; they must. Does something else use the link or the machines?"
        )
    bandwidth = 8e-6 * rest_bytes / rest_s
    fast, latency, slow = np.quantile(short_s * 1e3 / 2, [0.25, 0.5, 0.75])
    transmission_s = np.median(long_s) - np.median(short_s)
    credit_s = 8e-6 * probe.message_bytes / bandwidth - transmission_s
    # A median is known better than its values spread.
    noise_s = (_spread(long_s) + _spread(half_s) + _spread(short_s)) / len(short_s) ** 0.5
    return Link(
        source=source,
        target=target,
        bandwidth_mbps=float(bandwidth),
        latency_ms=float(latency),
        burst_bytes=float(credit_s * bandwidth * 1e6 / 8) if credit_s > noise_s else 0.0,
        measurement=LinkMeasurement(
            repetitions=len(short_s),
            message_bytes=probe.message_bytes,
            bandwidth_spread_mbps=float(bandwidth * _spread(long_s - half_s) / rest_s),  # to first order
            latency_spread_ms=float(slow - fast),
        ),
    )


def _spread(values: np.ndarray) -> float:
    """The interquartile range."""
    low, high = np.quantile(values, [0.25, 0.75])
    return float(high - low)


def _shown_on(bar: "tqdm[NoReturn]") -> OnEvent:
    def show(_: str, event: Progress | Snapshot | Beat, __: bytes) -> None:
        if isinstance(event, Progress):
            bar.total = event.total
            bar.n = event.done
            bar.set_postfix_str(event.note)

    return show
