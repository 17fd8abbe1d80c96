"""``python -m hiertrain.worker``: one worker process. Serves profile, probe and train jobs until its input ends.

Whoever starts it speaks to its standard input and output (see ``control.messages``). The end of the input means that the starter
is gone, whatever it died of: the worker then exits at once, in the middle of a job if need be.
"""

import argparse
import os
import queue
import socket
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable
from datetime import timedelta
from itertools import count
from typing import IO

import torch
import torch.distributed as dist

from hiertrain.control.answers import (
    BEAT_S,
    Answer,
    Beat,
    ClockReading,
    Failure,
    Iteration,
    Probed,
    Profiled,
    Progress,
    Ready,
    Snapshot,
    Trained,
    in_one_line,
)
from hiertrain.control.jobs import Job, ProbeJob, ProfileJob, RivalJob, TrainJob
from hiertrain.control.messages import PART_BYTES, Reply, Request, read_request, write_message
from hiertrain.profiling import probe_link, time_layers
from hiertrain.runtime import Runner, synchronize
from hiertrain.transport import Transport
from hiertrain.workload.architectures import build_model
from hiertrain.workload.datasets import load_dataset
from hiertrain.workload.sample_order import batch_indices
from hiertrain.workload.weights import pack_weights


class Outbox:
    """Where answers go, in a thread of its own, so that no training waits for a thin uplink or a stopped parent.

    Payloads leave in parts, and other answers between these: one may take longer than silence may last. Those that
    wait are in temporary files without a name.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._waiting: queue.PriorityQueue[tuple[bool, int, Answer, IO[bytes]]] = queue.PriorityQueue()
        self._numbers = count()
        threading.Thread(target=self._write, daemon=True).start()

    def put(self, answer: Answer, payload: bytes = b"") -> None:
        """Send an answer, before all payloads that have not left."""
        file = tempfile.SpooledTemporaryFile(PART_BYTES)  # noqa: SIM115 - closed when all of it has left
        file.write(payload)
        file.seek(0)
        self._waiting.put((bool(payload), next(self._numbers), answer, file))

    def flush(self) -> None:
        """Wait until everything has left."""
        self._waiting.join()

    def _write(self) -> None:
        while True:
            has_payload, number, answer, payload = self._waiting.get()
            part, ahead = payload.read(PART_BYTES), payload.read(1)
            payload.seek(-len(ahead), os.SEEK_CUR)
            write_message(self._stream, Reply(answer=answer, payload_bytes=len(part), more=bool(ahead)), part)
            if ahead:
                self._waiting.put((has_payload, number, answer, payload))
            else:
                payload.close()
            self._waiting.task_done()

    def progress(self, done: int, total: int, note: str) -> None:
        self.put(Progress(done=done, total=total, note=note))


class Pulse:
    """Beats while a job runs: a context manager. What is added travels with the next beat."""

    def __init__(self, put: Callable[[Beat], None]) -> None:
        self.where: Callable[[], str] = str
        self._put = put
        self._done: queue.SimpleQueue[Iteration | ClockReading] = queue.SimpleQueue()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Pulse":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._beat()

    def add(self, done: Iteration | ClockReading) -> None:
        self._done.put(done)

    def _run(self) -> None:
        while not self._over.wait(BEAT_S):
            self._beat()

    def _beat(self) -> None:
        done = [self._done.get() for _ in range(self._done.qsize())]
        self._put(
            Beat(
                where=self.where(),
                iterations=tuple(item for item in done if isinstance(item, Iteration)),
                clock=tuple(item for item in done if isinstance(item, ClockReading)),
            )
        )


def main() -> None:
    """Serve jobs until the standard input ends."""
    parser = argparse.ArgumentParser(prog="python -m hiertrain.worker", description=__doc__)
    parser.add_argument("--name", required=True, help="the worker's name, such as device, edge or cloud")
    parser.add_argument("--serve-store", metavar="ADDRESS", help="serve the rendezvous store on this own address")
    arguments = parser.parse_args()
    # The original standard output, so that nothing that a library prints can break in.
    outbox = Outbox(os.fdopen(os.dup(sys.stdout.fileno()), "wb"))
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    requests: queue.SimpleQueue[Request] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(sys.stdin.buffer, requests), daemon=True).start()
    torch.set_num_interop_threads(1)
    store = _serve_store(arguments.serve_store) if arguments.serve_store else None
    outbox.put(Ready(store_port=store.port if store else None))
    while True:
        job = requests.get().job
        try:
            with Pulse(outbox.put) as pulse:
                answer = _serve(arguments.name, job, outbox, pulse)
                outbox.flush()
        except Exception as error:  # reported whole to whoever asked, who decides
            answer = Failure(error=in_one_line(error), traceback=traceback.format_exc())
        outbox.put(answer)


def _read(stream: IO[bytes], requests: "queue.SimpleQueue[Request]") -> None:
    """Hand on requests; at the end of the stream the process ends, without waiting for its main thread."""
    try:
        while (request := read_request(stream)) is not None:
            requests.put(request)
        os._exit(0)
    except Exception as error:  # a request cut off in the middle, or none at all: nobody can be answered
        sys.stderr.write(f"no request: {' '.join(str(error).split())}\n")
        sys.stderr.flush()
        os._exit(1)


def _serve_store(address: str) -> dist.TCPStore:
    """A rendezvous store that listens on ``address`` alone: it has no authentication."""
    listener = socket.create_server((address, 0))
    return dist.TCPStore(
        address,
        listener.getsockname()[1],
        is_master=True,
        wait_for_workers=False,
        timeout=timedelta(seconds=60),
        master_listen_fd=listener.detach(),
    )


def _serve(name: str, job: Job, outbox: Outbox, pulse: Pulse) -> Profiled | Probed | Trained:
    match job:
        case ProfileJob():
            torch.set_num_threads(job.threads)
            return Profiled(profile=time_layers(job, outbox.progress))
        case ProbeJob():
            return probe_link(name, job, outbox.progress)
        case TrainJob():
            train(name, job, outbox.put, pulse)
            return Trained()
        case RivalJob():
            from hiertrain.rivals import run_rival  # noqa: PLC0415 - PyTorch's pipelining takes a second to import

            torch.set_num_threads(job.threads)
            weights = run_rival(name, job, pulse.add)
            if weights is not None:
                outbox.put(Snapshot(iteration=job.training.iterations), weights)
            return Trained()


def train(name: str, job: TrainJob, put: Callable[[Snapshot, bytes], None], pulse: Pulse) -> None:
    """Train by the job's plan. Each worker reports its iterations, the root its weights."""
    torch.set_num_threads(job.threads)
    training, plan = job.training, job.plan
    device = torch.device(job.accelerator)
    model = build_model(**dict(training.model)).to(device)
    synchronize(device)  # before the group meets: a first use of an accelerator may take longer than a message may
    dataset = load_dataset(training.dataset, training.data_folder) if name == plan.data_holder else None
    torch.manual_seed(training.seed + job.group.members.index(name))  # of Dropout: another stream on each worker
    with Transport(name, job.group, job.links) as transport:
        runner = Runner(name, plan, job.execution, model, transport, training.optimizer, job.pace, device)
        pulse.where = lambda: runner.where
        # Labels reach the workers once, before the first iteration; they are not part of its time.
        labels = transport.broadcast(plan.data_holder, dataset.train_labels if dataset else None)
        pulse.add(transport.read_clock())
        for iteration in range(training.iterations):
            rows = batch_indices(len(labels), plan.batch_size, training.seed, iteration)
            pulse.add(runner.iterate(labels[rows], dataset.train_samples[rows] if dataset else None))
            if name == plan.root and training.snapshot_due(iteration + 1):
                put(Snapshot(iteration=iteration + 1), pack_weights(model))
        pulse.add(transport.read_clock())


if __name__ == "__main__":
    main()
