"""The namespace testbed: every worker has a network namespace of its own on this Linux machine; needs root.

Any two hosts are joined by a veth pair, and each end that sends over a link of the settings is shaped by the kernel's
token bucket. Only rates are shaped. Nothing outlives whoever opened the testbed: a namespace has no name and is held
open by a process that ends with its input, so that the kernel removes all of it whatever its owner dies of.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import IO

from hiertrain.network import Link
from hiertrain.testbeds.base import Host
from hiertrain.testbeds.settings import NetnsSettings
from hiertrain.values import InputError

INTERFACE = "id0"  # has a host's own address; the interfaces of its links have none
SUBNET = IPv4Address("10.77.0.0")  # seen only inside the namespaces, so that several testbeds may use it at once
PACKAGES = {"ip": "iproute2", "tc": "iproute2", "nsenter": "util-linux", "unshare": "util-linux"}
FRAME_OVERHEAD = 1514 / 1448  # bytes that the token bucket counts per byte of TCP payload in full frames
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
    worker = ("env", f"GLOO_SOCKET_IFNAME={INTERFACE}", sys.executable, "-m", "hiertrain.worker")
    with namespaces(tuple(settings.workers), settings.links) as hosts:
        yield {name: Host((*host.enter, *worker), host.address) for name, host in hosts.items()}


@contextmanager
def namespaces(names: Sequence[str], links: Sequence[Link]) -> Iterator[Mapping[str, Namespace]]:
    """A namespace per name, each of which reaches every other one: at a link's rate, or unshaped where there is none.

    They exist while the ``with`` block runs, and the processes that it starts in them. Raises InputError when this
    machine lacks what namespaces need, or its kernel refuses them.
    """
    _require(missing())
    rates = {(link.source, link.target): link.bandwidth_bps for link in links}
    with ExitStack() as stack:
        holders = [stack.enter_context(_holder()) for _ in names]
        for holder in holders:
            _wait_for(holder)
        hosts = [
            Namespace(("nsenter", f"--net=/proc/{holder.pid}/ns/net"), str(SUBNET + number))
            for number, holder in enumerate(holders, start=1)
        ]
        for own, host in enumerate(hosts):
            peers = [(peer, other) for peer, other in enumerate(hosts) if peer != own]
            commands = [
                "link set lo up",
                f"link add {INTERFACE} type veth peer name stub",
                f"address add {host.address}/32 dev {INTERFACE}",
                f"link set {INTERFACE} up",
                "link set stub up",
            ]
            for peer, other in peers:
                if peer > own:  # the pairs with earlier hosts were made from their side
                    commands.append(f"link add to{peer} type veth peer name to{own} netns {holders[peer].pid}")
                commands += [
                    f"link set to{peer} addrgenmode none up",  # no IPv6: its announcements would use the link
                    f"route add {other.address}/32 dev to{peer} src {host.address}",
                ]
            _run((*host.enter, "ip", "-batch", "-"), commands)
            shaped = [
                f"qdisc add dev to{peer} root tbf {_bucket(rates[names[own], names[peer]])}"
                for peer, _ in peers
                if (names[own], names[peer]) in rates
            ]
            _run((*host.enter, "tc", "-batch", "-"), shaped)
        yield dict(zip(names, hosts, strict=True))


def missing() -> list[str]:
    """What this machine lacks for network namespaces, in words; empty if nothing."""
    if sys.platform != "linux":
        return [f"Linux (this is {sys.platform})"]
    lacking = [] if os.geteuid() == 0 else ["root"]
    return lacking + [f"{tool} (package {package})" for tool, package in PACKAGES.items() if not shutil.which(tool)]


def _require(lacking: Sequence[str]) -> None:
    if lacking:
        raise InputError(
            f"network namespaces need {', '.join(lacking)}; the testbed notebooks/testbeds/local.yml does without"
        )


@contextmanager
def _holder() -> Iterator[subprocess.Popen[bytes]]:
    """A process that keeps a new network namespace open until this process ends, whatever it dies of."""
    with subprocess.Popen(
        ("unshare", "--net", "sh", "-c", "echo && exec cat"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C reaches the parent alone, which ends the workers first
    ) as process:
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def _wait_for(holder: subprocess.Popen[bytes]) -> None:
    """Wait until the namespace exists. Raises InputError with the kernel's words if it does not."""
    stdout, stderr = holder.stdout, holder.stderr
    assert stdout is not None
    assert stderr is not None
    if not stdout.readline():
        raise InputError(f"no network namespace: {_words(stderr)}")


def _words(stream: IO[bytes]) -> str:
    return " ".join(stream.read().decode(errors="replace").split())


def _run(command: Sequence[str], lines: Sequence[str]) -> None:
    """Run a command with a batch of lines as its input. Raises InputError with the command's own words."""
    done = subprocess.run(command, input="\n".join(lines), capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(f"no network namespaces: {' '.join(command)}: {' '.join(done.stderr.split())}")


def _bucket(rate_bps: float) -> str:
    """The parameters of the token bucket that lets TCP payload through at ``rate_bps``."""
    # A small bucket lets a short message pass no earlier than a slow wire would. At high rates it must cover the
    # time until the kernel's timer fires, or the link is slower than asked for.
    burst_bytes = 1600 if rate_bps <= 20e6 else max(3200, round(rate_bps * 0.5e-3 / 8))
    return f"rate {round(rate_bps * FRAME_OVERHEAD)}bit burst {burst_bytes} limit {QUEUE}"
