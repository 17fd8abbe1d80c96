"""Network namespaces: shaped links, and nothing left behind whatever ends them."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
import pytest

from hiertrain.problem.execution import Execution
from hiertrain.problem.network import Link
from hiertrain.testbeds import find_testbed, netns, open_testbed
from hiertrain.testbeds.netns import (
    Namespace,
    missing,
    namespaces,
    netns_hosts,
    shape,
)
from hiertrain.testbeds.nominal import nominal_network
from hiertrain.testbeds.settings import LocalSettings, NetnsSettings, WorkerSettings
from hiertrain.values import InputError
from hiertrain.workload.spec import OptimizerSettings
from tests.processes import started
from tests.profiling.test_profiling import is_near, measured_links
from tests.training.test_training import LENET, PLANS, TOLERANCE, largest_difference

WORKERS = ("device", "edge", "cloud")
# Receives messages of so many bytes on any port of its address; prints the port, then when each was complete.
RECEIVER = """
import socket, sys, time
with socket.create_server((sys.argv[1], 0)) as server:
    print(server.getsockname()[1], flush=True)
    peer, _ = server.accept()
    with peer:
        for size in map(int, sys.argv[2:]):
            while size:
                size -= len(peer.recv(min(size, 1 << 20)))
            print(time.monotonic())
            peer.sendall(b"x")
"""
# Sends messages of so many bytes, each after the one before was answered; prints when each began.
SENDER = """
import socket, sys, time
with socket.create_connection((sys.argv[1], int(sys.argv[2]))) as peer:
    for size in map(int, sys.argv[3:]):
        message = bytes(size)
        print(time.monotonic())
        peer.sendall(message)
        peer.recv(1)
"""


def link(source: str, target: str, mbps: float) -> Link:
    return Link(source=source, target=target, bandwidth_mbps=mbps, latency_ms=0)


def run_in(host: Namespace, *command: str) -> str:
    return subprocess.run([*host.enter, *command], check=True, capture_output=True, text=True).stdout


def transfers_s(sender: Namespace, receiver: Namespace, sizes: Sequence[int]) -> list[float]:
    """One-way times of messages over one TCP connection."""
    python, messages = (sys.executable, "-SEc"), [str(size) for size in sizes]
    command = [*receiver.enter, *python, RECEIVER, receiver.address, *messages]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        begun = run_in(sender, *python, SENDER, receiver.address, port, *messages).split()
        ended = process.stdout.read().split()
    return [float(end) - float(begin) for begin, end in zip(begun, ended, strict=True)]


def network_of(host: Namespace) -> int:
    """The inode number of the namespace."""
    return Path(host.enter[1].removeprefix("--net=")).stat().st_ino


def lives(network: int) -> bool:
    """Whether a process is in the namespace: those of this module have no other thing that would keep them."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "ns/net").stat().st_ino == network:
                return True
        except (FileNotFoundError, ProcessLookupError, PermissionError):  # it ended, or it is none of ours
            continue
    return False


def traces() -> tuple[set[int], set[str]]:
    """What a testbed could leave: processes of ours, and interfaces outside the namespaces."""
    children = {process.pid for process in psutil.Process().children(recursive=True)}
    return children, set(os.listdir("/sys/class/net"))


@pytest.mark.netns
def test_every_host_reaches_every_other_and_two_testbeds_live_at_once() -> None:
    with namespaces(WORKERS, ()) as first, namespaces(WORKERS, ()) as second:
        assert [host.address for host in first.values()] == [host.address for host in second.values()]
        assert len({network_of(host) for host in (*first.values(), *second.values())}) == 6
        for hosts in (first, second):
            for a in WORKERS:
                for b in WORKERS:
                    transfers_s(hosts[a], hosts[b], [1])
        server = [*first["edge"].enter, sys.executable, "-SEc", RECEIVER, first["edge"].address, "1"]
        with subprocess.Popen(server, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            port = process.stdout.readline().strip()
            sender = (sys.executable, "-SEc", SENDER, first["edge"].address, port, "1")
            with pytest.raises(subprocess.CalledProcessError):  # the same address, another host
                run_in(second["device"], *sender)
            run_in(first["device"], *sender)


@pytest.mark.netns
@pytest.mark.parametrize("mbps", [1.5, 20, 100, 1000])
def test_a_link_has_its_rate_in_its_direction_only(mbps: float) -> None:
    size = max(56_000, round(mbps * 1e6 / 8 * 0.1))  # far more than a bucket, and short: other work here delays few
    with namespaces(("device", "edge"), [link("device", "edge", mbps)]) as hosts:
        rates: list[float] = []
        while len(rates) < 200 and max(rates, default=0) < 0.95 * mbps:  # other work here only ever slows a transfer
            rates += [8e-6 * size / t for t in transfers_s(hosts["device"], hosts["edge"], [size] * 5)]
        back = [8e-6 * size / t for t in transfers_s(hosts["edge"], hosts["device"], [size] * 3)]
    assert 0.95 * mbps < max(rates) < 1.05 * mbps
    assert max(back) > 1.5 * mbps


@pytest.mark.netns
def test_links_are_shaped_anew() -> None:
    links = [link("device", "edge", 200), link("edge", "device", 20)]
    with namespaces(("device", "edge"), links) as hosts:
        for mbps in (5, 300):
            shape(hosts, "device", [link("device", "edge", mbps), link("edge", "device", 1)])
            size = round(mbps * 1e6 / 8 * 0.1)
            best = 0.0
            for _ in range(20):  # other work here only ever slows a transfer
                best = max(best, *(8e-6 * size / t for t in transfers_s(hosts["device"], hosts["edge"], [size] * 5)))
                if best > 0.9 * mbps:
                    break
            assert 0.9 * mbps < best < 1.1 * mbps
        back = transfers_s(hosts["edge"], hosts["device"], [250_000] * 3)
        assert 8e-6 * 250_000 / min(back) > 10  # only what one host sends was changed


@pytest.mark.netns
def test_short_messages_pass_no_more_than_a_bucket_early() -> None:
    with namespaces(("device", "edge"), [link("device", "edge", 5)]) as hosts:
        times = transfers_s(hosts["device"], hosts["edge"], [20_000] * 5)
    assert min(times) > 8 * (20_000 - 1600) / 5e6


@pytest.mark.netns
def test_what_is_not_listed_is_as_fast_as_the_machine() -> None:
    with namespaces(WORKERS, [link("device", "edge", 1)]) as hosts:
        times = transfers_s(hosts["device"], hosts["cloud"], [5_000_000] * 20)
    assert min(times) < 8 * 5e6 / 1e9


@pytest.mark.netns
def test_a_testbed_of_namespaces_trains_exactly_over_the_links_of_its_settings() -> None:
    settings = find_testbed("netns")
    assert isinstance(settings, NetnsSettings)
    changed = {(link.source, link.target): link.bandwidth_mbps for link in settings.links} | {("edge", "device"): 100}
    links = tuple(link(source, target, mbps) for (source, target), mbps in changed.items())
    workers = dict.fromkeys(settings.workers, WorkerSettings())  # unpaced
    settings = settings.model_copy(update={"links": links, "workers": workers})
    nominal = nominal_network(settings)
    assert len(nominal.links) == 6
    assert [link.bandwidth_mbps for link in links[:2]] == [20, 100]

    def as_meant(measured: Link) -> bool:
        rel = 0.15 if "cloud" in (measured.source, measured.target) else 0.1
        burst_bytes = nominal.link(measured.source, measured.target).burst_bytes
        return is_near(measured, nominal.links, rel) and measured.burst_bytes <= 2 * burst_bytes + 5000

    before = traces()
    optimizer = OptimizerSettings(learning_rate=0.05, momentum=0.9, weight_decay=5e-4)
    with open_testbed(settings) as testbed:
        for plan in (PLANS["star"], PLANS["chain"]):
            overlapped = Execution.overlapped()
            assert largest_difference(testbed, plan, LENET, "digits", optimizer, overlapped) < TOLERANCE
        measured = measured_links(testbed, as_meant, repetitions=3, target_s=0.05)
    assert traces() == before
    assert len(measured) == 6
    assert all(map(as_meant, measured))


class StopError(Exception):
    pass


@contextmanager
def a_testbed() -> Iterator[list[int]]:
    """Two namespaces and a link; yields the namespaces' inode numbers."""
    with namespaces(("device", "edge"), [link("device", "edge", 200)]) as hosts:
        yield [network_of(host) for host in hosts.values()]


@pytest.mark.netns
def test_nothing_is_left_after_success_or_an_exception() -> None:
    before = traces()
    with a_testbed() as networks:
        assert all(lives(network) for network in networks)
    assert not any(lives(network) for network in networks)
    assert traces() == before
    with pytest.raises(StopError), a_testbed() as networks:
        raise StopError
    assert not any(lives(network) for network in networks)
    assert traces() == before


@pytest.mark.netns
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # what was just opened is closed by its last reference
def test_nothing_is_left_after_an_interruption_anywhere_in_the_setup() -> None:
    before = traces()
    interrupted, position = True, 0
    while interrupted:
        try:
            with ExitStack() as stack:
                interrupt_at(position)
                stack.enter_context(a_testbed())
                sys.settrace(None)
                interrupted = False
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(None)
        assert traces() == before, f"after an interruption at step {position}"
        position += 3  # every third line, to be quick
    assert position > 100  # it got through the whole setup


def interrupt_at(position: int) -> None:
    """Raise KeyboardInterrupt before so many more lines of the module have run."""
    left = position

    def trace(frame: FrameType, event: str, _: object) -> Any:  # this function, or None
        nonlocal left
        if frame.f_code.co_filename != netns.__file__:
            return None
        if event == "line":
            if left == 0:
                sys.settrace(None)
                raise KeyboardInterrupt
            left -= 1
        return trace

    sys.settrace(trace)


# A testbed with a process in one of its namespaces; prints what can be left of it.
PARENT = """
import subprocess, sys
from hiertrain.testbeds import netns
with netns.namespaces(("device", "edge"), ()) as hosts:
    enter = [host.enter for host in hosts.values()]
    worker = subprocess.Popen([*enter[0], "cat"], stdin=subprocess.PIPE, start_new_session=True)
    with worker:
        print(worker.pid, *(command[1].split("/")[2] for command in enter), flush=True)
        sys.stdin.read()
"""


@contextmanager
def parent() -> Iterator[tuple[subprocess.Popen[str], list[psutil.Process]]]:
    """A process with a testbed of its own; yields it and its children, the worker first."""
    with started(PARENT) as process:
        assert process.stdout is not None
        yield process, [psutil.Process(int(pid)) for pid in process.stdout.readline().split()]


@pytest.mark.netns
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "kill -9"])
def test_a_dead_parent_leaves_nothing_behind(how: signal.Signals) -> None:
    with parent() as (process, children):
        networks = [os.stat(f"/proc/{child.pid}/ns/net").st_ino for child in children[1:]]
        process.send_signal(how)
        process.wait(30)
        _, left = psutil.wait_procs(children, timeout=30)
        assert all(child.status() == psutil.STATUS_ZOMBIE for child in left)
        assert not any(lives(network) for network in networks)


SETTINGS = NetnsSettings(data_holder="device", workers=dict.fromkeys(("device", "edge"), WorkerSettings()))


def test_everything_missing_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr("shutil.which", lambda tool: None if tool in {"tc", "nsenter"} else tool)
    monkeypatch.setattr(sys, "platform", "linux")
    wanted = r"need root, tc \(package iproute2\), nsenter \(.*util-linux\); .*testbeds/local\.yml"
    with pytest.raises(InputError, match=wanted), netns_hosts(SETTINGS):
        pass
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(InputError, match=r"Linux \(this is darwin\)"), netns_hosts(SETTINGS):
        pass


@pytest.mark.netns
def test_root_without_the_right_to_namespaces_has_the_local_testbed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "unshare").write_text("#!/bin/sh\necho 'unshare: Operation not permitted' >&2\nexit 1\n")
    (tmp_path / "unshare").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert missing() == ["unshare to work (unshare: Operation not permitted)"]
    assert find_testbed("auto") == find_testbed("local")


@pytest.mark.netns
@pytest.mark.parametrize("tool", ["unshare", "ip", "tc"])
def test_a_kernel_that_refuses_is_quoted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tool: str) -> None:
    (tmp_path / tool).write_text("#!/bin/sh\necho 'Error: Operation not supported.' >&2\nexit 2\n")
    (tmp_path / tool).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    before = traces()
    with (
        pytest.raises(InputError, match=f"{tool}.*Error: Operation not supported"),
        namespaces(("device", "edge"), [link("device", "edge", 5)]),
    ):
        pass
    assert traces() == before


def test_the_testbed_file_has_the_speeds_and_rates_of_the_local_one() -> None:
    local, shaped = (find_testbed(kind) for kind in ("local", "netns"))
    assert isinstance(local, LocalSettings)
    assert isinstance(shaped, NetnsSettings)
    assert local.links == shaped.links
    assert find_testbed("auto") == (local if missing() else shaped)
    assert {name: worker.slowdown for name, worker in shaped.workers.items()} == {
        name: worker.slowdown for name, worker in local.workers.items()
    }
    assert shaped.data_holder == local.data_holder
