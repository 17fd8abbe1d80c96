"""Messages between workers over torch.distributed (Gloo), with links emulated where the testbed asks for it.

Gloo is a rendezvous transport: no byte moves before the peer has posted its receive. So receives are posted up front.
"""

import math
import os
import socket
import stat
import sys
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from hiertrain.control.answers import ClockReading
from hiertrain.control.jobs import Group
from hiertrain.problem.network import Link
from hiertrain.values import RunError

CLOCK_EXCHANGES = 10
MEETING_TIMEOUT_S = 120.0  # until all members have built their models and loaded their data


def sleep_until(deadline_s: float) -> float:
    """Sleep until ``deadline_s`` of the monotonic clock; return by how many seconds it had passed already."""
    remaining_s = deadline_s - time.monotonic()
    if remaining_s > 0:
        time.sleep(remaining_s)
    return max(0.0, -remaining_s)


class Transport:
    """One worker's side of a process group; a context manager that leaves the group at its end."""

    def __init__(self, name: str, group: Group, links: Mapping[str, Link]) -> None:
        """Join ``group`` as ``name``. Sends to the peers in ``links`` are delayed as those links would.

        Raises RunError when the workers cannot meet.
        """
        _join(name, group)
        _notice_cut_connections(group.silence_s)
        self._name, self._members = name, group.members
        self._ranks = {member: rank for rank, member in enumerate(group.members)}
        self._emulated = {
            peer: _EmulatedLink(self._ranks[peer], link, ThreadPoolExecutor(1, f"to-{peer}"))
            for peer, link in links.items()
            if peer in self._ranks
        }

    def __enter__(self) -> "Transport":
        return self

    def __exit__(self, *_: object) -> None:
        for link in self._emulated.values():
            link.thread.shutdown(wait=False, cancel_futures=True)
        dist.destroy_process_group()

    def barrier(self) -> None:
        """Wait until every member is here."""
        if len(self._members) > 1:
            dist.barrier()

    def broadcast(self, source: str, values: torch.Tensor | None) -> torch.Tensor:
        """Give every member the int64 vector that ``source`` has; the others pass None."""
        size = torch.tensor([0 if values is None else len(values)])
        dist.broadcast(size, self._ranks[source])
        received = torch.empty(int(size.item()), dtype=torch.int64) if values is None else values.clone()
        dist.broadcast(received, self._ranks[source])
        return received

    def read_clock(self) -> ClockReading:
        """Compare this worker's clock with the first member's; every member calls it, without emulated delays.

        Monotonic clocks of two machines start when these do. So a difference within its own error means one clock.
        """
        reference, *others = self._members
        best = ClockReading(at_s=time.monotonic(), offset_s=0.0, error_s=0.0)
        for other in others:
            if self._name == reference:
                for _ in range(CLOCK_EXCHANGES):
                    _answer_with_time(self._ranks[other])
            elif self._name == other:
                best = min((_ask_for_time(self._ranks[reference]) for _ in range(CLOCK_EXCHANGES)), key=_error_s)
        if abs(best.offset_s) <= best.error_s:
            return ClockReading(at_s=best.at_s, offset_s=0.0, error_s=0.0)
        return best

    def receive(self, peer: str, buffer: torch.Tensor, tag: int = 0) -> dist.Work:
        """Post a receive into ``buffer``, whose size must be the message's; ``wait()`` the result."""
        work = dist.irecv(buffer, self._ranks[peer], tag=tag)
        assert work is not None  # only for ranks outside the group
        return work

    def send(self, peer: str, tensor: torch.Tensor, tag: int = 0) -> "Departure":
        """Send ``tensor`` (contiguous); keep the result, leave the tensor alone until its ``wait()`` is over."""
        ready_s = time.monotonic()
        if peer in self._emulated:
            link = self._emulated[peer]
            return Departure(tensor, ready_s, link.thread.submit(link.deliver, tensor, tag, ready_s))
        work = dist.isend(tensor, self._ranks[peer], tag=tag)
        assert work is not None
        return Departure(tensor, ready_s, work)


@dataclass(frozen=True)
class Departure:
    """A message on its way. Gloo cancels a transfer whose work is dropped, and reads the tensor until its end."""

    tensor: torch.Tensor
    ready_s: float
    transfer: "dist.Work | Future[tuple[float, float]]"

    def wait(self) -> tuple[float, float]:
        """When it began to leave and when it had arrived, on the monotonic clock, after that.

        On a real link only the receiver knows the arrival: both are then when it was ready.
        """
        if isinstance(self.transfer, Future):
            return self.transfer.result()
        self.transfer.wait()
        return self.ready_s, self.ready_s


@dataclass
class _EmulatedLink:
    """Delays the messages to one peer in a thread; ``free_s`` is when the link has transmitted all so far."""

    rank: int
    link: Link
    thread: ThreadPoolExecutor
    free_s: float = -math.inf

    def deliver(self, tensor: torch.Tensor, tag: int, ready_s: float) -> tuple[float, float]:
        """Send when the link would have transmitted the message; when it began to leave and had arrived."""
        start_s = max(ready_s, self.free_s)
        if tensor.numel():
            transmission_s = self.link.transmission_s(tensor.numel() * tensor.element_size())
            self.free_s = max(ready_s - self.link.credit_s, self.free_s) + transmission_s
            sleep_until(max(ready_s, self.free_s) + self.link.latency_s)
        dist.send(tensor, self.rank, tag=tag)
        return start_s, time.monotonic()


def _join(name: str, group: Group) -> None:
    """Make this process a member of its only process group."""
    meeting = timedelta(seconds=MEETING_TIMEOUT_S)
    try:
        store = dist.TCPStore(group.store_address, group.store_port, is_master=False, timeout=meeting)
        store = dist.PrefixStore(group.tag, store)
        store.set(name, "here")
        store.wait(list(group.members), meeting)
        dist.init_process_group(
            "gloo",
            store=store,
            rank=group.members.index(name),
            world_size=len(group.members),
            timeout=timedelta(seconds=group.timeout_s),
        )
    except Exception as error:  # of any kind, MemoryError too, where somebody else has written to the store
        reason = next(iter(str(error).strip().splitlines()), "")
        raise RunError(
            f"the workers cannot meet by the store at {group.store_address}:{group.store_port}, "
            f"which nothing else may write to: {type(error).__name__}: {reason}"
        ) from error


def _notice_cut_connections(silence_s: float) -> None:
    """Let the kernel end every TCP connection of this process whose other end is silent for ``silence_s``.

    Gloo itself waits until its timeout, which must allow for the longest message. The kernel can tell a slow link
    from a cut one: probes of an idle connection, and data in flight, must be acknowledged (tcp(7)).
    """
    probe_s = max(1, int(silence_s // 4))
    for number in map(int, os.listdir("/dev/fd")):
        if not _is_socket(number):
            continue
        with socket.socket(fileno=os.dup(number)) as connection:
            if connection.family == socket.AF_UNIX or connection.type != socket.SOCK_STREAM:
                continue
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, probe_s)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
            if sys.platform == "linux":
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, probe_s)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(silence_s * 1e3))


def _is_socket(number: int) -> bool:
    try:
        return stat.S_ISSOCK(os.fstat(number).st_mode)
    except OSError:  # the descriptor that the folder was listed with
        return False


def _answer_with_time(rank: int) -> None:
    dist.recv(torch.empty(1, dtype=torch.uint8), rank)
    dist.send(torch.tensor([time.monotonic()], dtype=torch.float64), rank)


def _ask_for_time(rank: int) -> ClockReading:
    """One exchange: the other clock was read at some time between asking and the answer."""
    answer = torch.empty(1, dtype=torch.float64)
    arrival = dist.irecv(answer, rank)
    assert arrival is not None
    asked_s = time.monotonic()
    dist.send(torch.zeros(1, dtype=torch.uint8), rank)
    arrival.wait()
    answered_s = time.monotonic()
    middle_s = (asked_s + answered_s) / 2
    return ClockReading(at_s=middle_s, offset_s=middle_s - answer.item(), error_s=(answered_s - asked_s) / 2)


def _error_s(reading: ClockReading) -> float:
    return reading.error_s
