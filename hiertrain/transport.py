"""Messages between workers over torch.distributed (Gloo), with links emulated where the testbed asks for it.

Gloo is a rendezvous transport: no byte moves before the peer has posted its receive. So receives are posted up front,
and each peer has a sender thread that keeps messages in order and knows when each one has left.
"""

import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from hiertrain.jobs import Group
from hiertrain.network import Link


def sleep_until(deadline_s: float) -> float:
    """Sleep until ``deadline_s`` of the monotonic clock; return by how many seconds it had passed already."""
    remaining_s = deadline_s - time.monotonic()
    if remaining_s > 0:
        time.sleep(remaining_s)
    return max(0.0, -remaining_s)


class Transport:
    """One worker's side of a process group; a context manager that leaves the group at its end."""

    def __init__(self, name: str, group: Group, links: Mapping[str, Link]) -> None:
        """Join ``group`` as ``name``. Sends to the peers in ``links`` are delayed as those links would."""
        timeout = timedelta(seconds=group.timeout_s)
        store = dist.TCPStore(group.store_address, group.store_port, is_master=False, timeout=timeout)
        dist.init_process_group(
            "gloo",
            store=dist.PrefixStore(group.tag, store),
            rank=group.members.index(name),
            world_size=len(group.members),
            timeout=timeout,
        )
        self._ranks = {member: rank for rank, member in enumerate(group.members)}
        self._senders = {
            peer: _Sender(rank, ThreadPoolExecutor(1, f"to-{peer}"), links.get(peer))
            for peer, rank in self._ranks.items()
            if peer != name
        }

    def __enter__(self) -> "Transport":
        return self

    def __exit__(self, *_: object) -> None:
        for sender in self._senders.values():
            sender.thread.shutdown(wait=False, cancel_futures=True)
        dist.destroy_process_group()

    def barrier(self) -> None:
        """Wait until every member is here."""
        if self._senders:
            dist.barrier()

    def broadcast(self, source: str, values: torch.Tensor | None) -> torch.Tensor:
        """Give every member the int64 vector that ``source`` has; the others pass None."""
        size = torch.tensor([0 if values is None else len(values)])
        dist.broadcast(size, self._ranks[source])
        received = torch.empty(int(size.item()), dtype=torch.int64) if values is None else values.clone()
        dist.broadcast(received, self._ranks[source])
        return received

    def receive(self, peer: str, buffer: torch.Tensor, tag: int = 0) -> dist.Work:
        """Post a receive into ``buffer``, whose size must be the message's; ``wait()`` the result."""
        work = dist.irecv(buffer, self._ranks[peer], tag=tag)
        assert work is not None  # only for ranks outside the group
        return work

    def send(self, peer: str, tensor: torch.Tensor, tag: int = 0) -> "Future[tuple[float, float]]":
        """Send ``tensor`` (contiguous; leave it alone until the result is there).

        The result is when the message left and when it had arrived, on the monotonic clock.
        """
        sender = self._senders[peer]
        return sender.thread.submit(sender.deliver, tensor, tag, time.monotonic())


@dataclass
class _Sender:
    """The sender thread of one peer; ``free_s`` is when the emulated link has transmitted all so far."""

    rank: int
    thread: ThreadPoolExecutor
    link: Link | None
    free_s: float = 0.0

    def deliver(self, tensor: torch.Tensor, tag: int, ready_s: float) -> tuple[float, float]:
        start_s = max(ready_s, self.free_s)
        if self.link is not None and tensor.numel():
            self.free_s = start_s + self.link.transmission_s(tensor.numel() * tensor.element_size())
            sleep_until(self.free_s + self.link.latency_s)
        dist.send(tensor, self.rank, tag=tag)
        return start_s, time.monotonic()
