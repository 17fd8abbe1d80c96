"""Measures a link on its two workers' side: the paper's first stage, profiling."""

import time

import torch

from hiertrain.control.answers import Probed
from hiertrain.control.jobs import ProbeJob
from hiertrain.profiling.layers import Report
from hiertrain.runtime.transport import Transport

PAUSE_S = 0.02  # fills the bucket of a link that lets 1.5 Mbit/s and bursts of two packets through
MAXIMUM_MESSAGE_BYTES = 64 * 2**20


def probe_link(name: str, job: ProbeJob, report: Report) -> Probed:
    """Time messages from the group's first member to its second, each answered by a single byte.

    The long message is lengthened until it takes ``target_s`` longer than one byte. Its time, that of its half and that
    of one byte give bandwidth, latency and the credit of a token bucket, which is full again after each pause.
    """
    sender, receiver = job.group.members
    with Transport(name, job.group, job.links) as transport:
        if name == receiver:
            _answer(transport, sender)
            return Probed()

        def exchange(size_bytes: int) -> float:
            """Seconds from sending ``size_bytes`` to the receiver's answer; the size is announced before."""
            transport.send(receiver, torch.tensor([size_bytes])).wait()
            back = torch.empty(1, dtype=torch.uint8)
            work = transport.receive(receiver, back)
            work.wait()  # the receiver is ready
            message = torch.empty(size_bytes, dtype=torch.uint8)
            work = transport.receive(receiver, back)
            time.sleep(PAUSE_S)
            begun_s = time.perf_counter()
            departure = transport.send(receiver, message)
            work.wait()
            exchange_s = time.perf_counter() - begun_s
            departure.wait()
            return exchange_s

        exchange(1)
        enough_s = exchange(1) + job.target_s
        size_bytes = 4096
        # Twice, so that one message which was late for another reason does not end it.
        while any(exchange(size_bytes) < enough_s for _ in range(2)) and size_bytes < MAXIMUM_MESSAGE_BYTES:
            size_bytes *= 2
        rounds = []
        for repetition in range(job.repetitions):
            report(repetition, job.repetitions, f"{sender} to {receiver}")
            rounds.append((exchange(size_bytes), exchange(size_bytes // 2), exchange(1)))
        transport.send(receiver, torch.tensor([0])).wait()
    long_s, half_s, short_s = zip(*rounds, strict=True)
    return Probed(message_bytes=size_bytes, long_s=long_s, half_s=half_s, short_s=short_s)


def _answer(transport: Transport, sender: str) -> None:
    """The receiver's side of ``probe_link``: answer until a size of 0 is announced."""
    token = torch.zeros(1, dtype=torch.uint8)
    size = torch.empty(1, dtype=torch.int64)
    while True:
        transport.receive(sender, size).wait()
        if not size.item():
            return
        message = torch.empty(int(size.item()), dtype=torch.uint8)
        work = transport.receive(sender, message)
        ready = transport.send(sender, token)
        work.wait()
        ready.wait()
        transport.send(sender, token).wait()
