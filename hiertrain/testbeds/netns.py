"""The namespace testbed: every worker has a network namespace of its own on this Linux machine; needs root.

Any two hosts are joined by a veth pair, and each end that sends over a link of the settings is shaped by the kernel's
token bucket. Only rates are shaped. A namespace has no name and is held open by a process that ends with its input, so
that the kernel removes all of it whatever its owner dies of.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address

from hiertrain.control.memory import worker_environment
from hiertrain.problem.network import Link
from hiertrain.testbeds.host import Host
from hiertrain.testbeds.settings import FRAME_OVERHEAD, NetnsSettings, bucket_bytes
from hiertrain.values import InputError

INTERFACE = "id0"  # has a host's own address; the interfaces of its links have none
SUBNET = IPv4Address("10.77.0.0")  # seen only inside the namespaces, so that several testbeds may use it at once
PACKAGES = {"ip": "iproute2", "tc": "iproute2", "nsenter": "util-linux", "unshare": "util-linux"}
FAST_BPS = 100e6  # up to this rate every frame passes the token bucket by itself
MOST_PACKET = 65536  # bytes, the kernel's own limit
QUEUE = "64mb"  # more than TCP leaves in a queue: nothing is ever dropped


@dataclass(frozen=True)
class Namespace:
    """A host of its own on this machine."""

    enter: tuple[str, ...]  # put before a command, runs it there
    address: str  # that the other namespaces reach


@contextmanager
def netns_hosts(settings: NetnsSettings) -> Iterator[Mapping[str, Host]]:
    """One namespace per worker, until the end of the ``with`` block.

    Raises InputError when this machine lacks what namespaces need, or its kernel refuses them.
    """
    worker = (sys.executable, "-m", "hiertrain.worker")
    environment = {**worker_environment(settings.memory_kept), "GLOO_SOCKET_IFNAME": INTERFACE}
    with namespaces(tuple(settings.workers), settings.links) as hosts:
        yield {
            name: Host((*host.enter, *worker), host.address, environment, partial(shape, hosts, name))
            for name, host in hosts.items()
        }


@contextmanager
def namespaces(names: Sequence[str], links: Sequence[Link]) -> Iterator[Mapping[str, Namespace]]:
    """A namespace per name, each of which reaches every other one: at a link's rate, or unshaped where there is none.

    They exist while the ``with`` block runs, and the processes that it starts in them. Raises InputError when this
    machine lacks what namespaces need, or its kernel refuses them.
    """
    if lacking := missing():
        raise InputError(
            f"network namespaces need {', '.join(lacking)}; the testbed notebooks/testbeds/local.yml does without"
        )
    with _holders(len(names)) as holders:
        hosts = [
            Namespace(("nsenter", f"--net=/proc/{holder.pid}/ns/net"), str(SUBNET + number))
            for number, holder in enumerate(holders, start=1)
        ]
        for own, host in enumerate(hosts):
            _run((*host.enter, "ip", "-batch", "-"), _links(own, hosts, [holder.pid for holder in holders]))
        by_name = dict(zip(names, hosts, strict=True))
        for name in names:
            shape(by_name, name, links)
        yield by_name


def shape(hosts: Mapping[str, Namespace], source: str, links: Sequence[Link]) -> None:
    """Give what ``source`` sends the rates of those links that begin there; it must not be sending.

    Raises InputError with the kernel's own words.
    """
    names = list(hosts)
    rates_bps = {names.index(link.target): link.bandwidth_bps for link in links if link.source == source}
    _run((*hosts[source].enter, "ip", "-batch", "-"), _packets(rates_bps))
    _run((*hosts[source].enter, "tc", "-batch", "-"), _buckets(rates_bps))


def missing() -> list[str]:
    """What this machine lacks for network namespaces, in words; empty if nothing."""
    if sys.platform != "linux":
        return [f"Linux (this is {sys.platform})"]
    lacking = [] if os.geteuid() == 0 else ["root"]
    lacking += [f"{tool} (package {package})" for tool, package in PACKAGES.items() if not shutil.which(tool)]
    if not lacking:  # root in a container may not be allowed to make any
        tried = subprocess.run(["unshare", "--net", "true"], capture_output=True, text=True, check=False)
        lacking += [f"unshare to work ({' '.join(tried.stderr.split())})"] if tried.returncode else []
    return lacking


@contextmanager
def _holders(number: int) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that each keep a new network namespace open. Raises InputError with the kernel's own words."""
    holders: list[subprocess.Popen[str]] = []
    try:
        while len(holders) < number:
            holders.append(_holder())
        for holder in holders:
            assert holder.stdout is not None
            assert holder.stderr is not None
            if not holder.stdout.readline():
                raise InputError(f"no network namespaces: unshare: {' '.join(holder.stderr.read().split())}")
        yield holders
    finally:
        for holder in holders:
            with holder:
                holder.kill()


def _holder() -> subprocess.Popen[str]:
    """Start a process that says when it is in a namespace of its own, and ends when this process does."""
    return subprocess.Popen(
        ("unshare", "--net", "sh", "-c", "echo && exec cat"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C reaches the parent alone, which ends the workers first
    )


def _run(command: Sequence[str], lines: Sequence[str]) -> None:
    """Run a command with a batch of lines as its input. Raises InputError with the command's own words."""
    done = subprocess.run(command, input="\n".join(lines), capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(f"no network namespaces: {' '.join(command)}: {' '.join(done.stderr.split())}")


def _links(own: int, hosts: Sequence[Namespace], pids: Sequence[int]) -> list[str]:
    """What ``ip`` has to do in the namespace ``own``: its address and a link to every other one.

    The host that comes first in a pair makes both ends of its link.
    """
    commands = [
        "link set lo up",
        f"link add {INTERFACE} type veth peer name stub",
        f"address add {hosts[own].address}/32 dev {INTERFACE}",
        f"link set {INTERFACE} up",
        "link set stub up",
    ]
    for peer, host in enumerate(hosts):
        if peer > own:
            commands.append(f"link add to{peer} type veth peer name to{own} netns {pids[peer]}")
        if peer != own:
            commands += [
                f"link set to{peer} addrgenmode none up",  # no IPv6: its announcements would use the link
                f"route add {host.address}/32 dev to{peer} src {hosts[own].address}",
            ]
    return commands


def _packets(rates_bps: Mapping[int, float]) -> list[str]:
    """What ``ip`` has to do: at high rates many frames pass as one packet.

    At half a bucket each, the next one's tokens add up while the timer is late; packets of a whole bucket would lose
    them.
    """
    return [
        f"link set to{peer} gso_max_size "
        f"{min(MOST_PACKET, bucket_bytes(rate_bps) // 2) if rate_bps > FAST_BPS else MOST_PACKET}"
        for peer, rate_bps in rates_bps.items()
    ]


def _buckets(rates_bps: Mapping[int, float]) -> list[str]:
    """What ``tc`` has to do: a token bucket per peer that lets TCP payload through at its rate."""
    return [
        f"qdisc replace dev to{peer} root tbf "
        f"rate {round(rate_bps * FRAME_OVERHEAD)}bit burst {bucket_bytes(rate_bps)} limit {QUEUE}"
        for peer, rate_bps in rates_bps.items()
    ]
