"""Training across hosts with their own network stacks and clocks: exact, on one clock, and ended by a cut link."""

import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import pytest

from hiertrain.control.answers import Answer, Beat, Progress, Snapshot
from hiertrain.control.jobs import Job
from hiertrain.control.memory import worker_environment
from hiertrain.problem.execution import Execution
from hiertrain.problem.network import Network
from hiertrain.program.actions import Op
from hiertrain.testbeds.host import Host
from hiertrain.testbeds.netns import INTERFACE, Namespace, namespaces
from hiertrain.testbeds.session import OnEvent, Testbed, WorkerError
from hiertrain.testbeds.settings import LocalSettings, WorkerSettings
from hiertrain.training.settings import training_settings
from hiertrain.training.train import train
from hiertrain.workload.architectures import build_model
from hiertrain.workload.datasets import load_dataset
from hiertrain.workload.spec import ModelSettings, OptimizerSettings
from tests.training.test_training import PLANS, TOLERANCE, WORKERS, instant_problem, largest_difference

pytestmark = pytest.mark.netns
LENET = ModelSettings(name="lenet5")
WORKER = (sys.executable, "-m", "hiertrain.worker")
ENVIRONMENT = {**worker_environment(kept=True), "GLOO_SOCKET_IFNAME": INTERFACE}
CLOCK = ("unshare", "--time", "--monotonic")
AHEAD_S = {"device": 0, "edge": 86_400, "cloud": 1_000}  # how much longer each host seems to have been up


@dataclass(frozen=True)
class Separate:
    """A session on hosts whose monotonic clocks differ, as those of three machines do."""

    testbed: Testbed
    hosts: Mapping[str, Namespace]


@pytest.fixture(scope="module")
def separate() -> Iterator[Separate]:
    settings = LocalSettings(data_holder="device", workers=dict.fromkeys(WORKERS, WorkerSettings()), timeout_s=4)
    with namespaces(WORKERS, ()) as opened:
        hosts = {
            name: Host(
                (*opened[name].enter, *CLOCK, str(ahead_s), "--fork", "--kill-child", *WORKER),
                opened[name].address,
                ENVIRONMENT,
            )
            for name, ahead_s in AHEAD_S.items()
        }
        with Testbed(settings, hosts) as testbed:
            yield Separate(testbed, opened)


def test_spans_of_hosts_with_different_clocks_are_put_on_one(separate: Separate) -> None:
    dataset, testbed = load_dataset("synthetic"), separate.testbed
    problem = instant_problem(build_model("lenet5", dataset.sample_shape).chain, 12, Execution.paper())
    run = train(testbed, problem, PLANS["star"], training_settings(LENET, dataset, 12, iterations=20))
    assert (
        largest_difference(
            testbed, PLANS["chain"], LENET, "synthetic", OptimizerSettings(learning_rate=0.05, momentum=0.9)
        )
        < TOLERANCE
    )
    for name, ahead_s in AHEAD_S.items():
        for reading in run.clocks[name]:
            assert abs(reading.offset_s - ahead_s) <= reading.error_s
    assert 0 < run.clock_error_s < 1
    assert max(run.iteration_s) < 60  # without the offsets, a day
    timeline = run.timeline(10)
    for span in timeline.spans:
        if span.action.op == Op.RECEIVE:
            send = next(
                other
                for other in timeline.spans
                if (other.worker, other.action.op, other.action.role, other.action.peer)
                == (span.action.peer, Op.SEND, span.action.role, span.worker)
            )
            assert send.start_s <= span.end_s + 2 * run.clock_error_s


def test_a_cut_link_ends_the_training_with_both_ends_and_the_position(separate: Separate) -> None:
    """And the session, so that this is the last test of it."""
    dataset, testbed = load_dataset("synthetic"), separate.testbed
    instant = instant_problem(build_model("lenet5", dataset.sample_shape).chain, 12, Execution.paper())
    links = [link.model_copy(update={"latency_ms": 1e5}) for link in instant.network.links]
    # A message may take minutes by this prediction: it is not for being late that the link counts as cut.
    problem = replace(instant, network=Network(links=tuple(links)))
    training = training_settings(LENET, dataset, 12, iterations=10**6)
    cut_s: list[float] = []
    run = testbed.run

    def cut_one(jobs: Mapping[str, Job], on_event: OnEvent = lambda *_: None) -> dict[str, Answer]:
        def listen(name: str, event: Progress | Snapshot | Beat, payload: bytes) -> None:
            on_event(name, event, payload)
            if isinstance(event, Beat) and event.iterations and not cut_s:
                # The device's interfaces are numbered by the peers; the edge server is the second host.
                subprocess.run((*separate.hosts["device"].enter, "ip", "link", "set", "to1", "down"), check=True)
                cut_s.append(time.monotonic())

        return run(jobs, listen)

    testbed.run = cut_one
    # What the kernel says first depends on which of its timers runs out first, and on whose side.
    reason = r"(timed out|No route to host|Network is unreachable)"
    with pytest.raises(WorkerError, match=rf"worker (device|edge) failed: .*iteration .*{reason}") as caught:
        train(testbed, problem, PLANS["star"], training)
    assert time.monotonic() - cut_s[0] < 10
    assert caught.value.completed["iterations"]
