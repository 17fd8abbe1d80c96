"""``python -m hiertrain.worker``: one worker process. Serves profile, probe and train jobs until its input ends.

Whoever starts it speaks to its standard input and output (see ``jobs``). The end of the input means that the starter
is gone, whatever it died of: the worker then exits at once, in the middle of a job if need be.
"""

import argparse
import os
import queue
import socket
import sys
import threading
import traceback
from datetime import timedelta
from pathlib import Path
from typing import IO

import torch
import torch.distributed as dist

from hiertrain.datasets import batch_indices, load_dataset
from hiertrain.jobs import (
    Answer,
    Failure,
    Job,
    Probed,
    ProbeJob,
    Profiled,
    ProfileJob,
    Progress,
    Ready,
    Reply,
    Request,
    Snapshot,
    Trained,
    TrainJob,
    read_request,
    write_message,
)
from hiertrain.models import build_model
from hiertrain.profiling import probe_link, time_layers
from hiertrain.runtime import IterationRecord, Runner, pack_weights
from hiertrain.transport import Transport


class _Outbox:
    """Where answers go. Standard output itself is turned over to the log, so that no stray print can break in."""

    def __init__(self) -> None:
        self._stream = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def put(self, answer: Answer, payload: bytes = b"") -> None:
        write_message(self._stream, Reply(answer=answer, payload_bytes=len(payload)), payload)

    def progress(self, done: int, total: int, note: str) -> None:
        self.put(Progress(done=done, total=total, note=note))


def main() -> None:
    """Serve jobs until the standard input ends."""
    parser = argparse.ArgumentParser(prog="python -m hiertrain.worker", description=__doc__)
    parser.add_argument("--name", required=True, help="the worker's name, such as device, edge or cloud")
    parser.add_argument("--serve-store", metavar="ADDRESS", help="serve the rendezvous store on this own address")
    arguments = parser.parse_args()
    outbox = _Outbox()
    requests: queue.SimpleQueue[Request] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(sys.stdin.buffer, requests), daemon=True).start()
    torch.set_num_interop_threads(1)
    store = _serve_store(arguments.serve_store) if arguments.serve_store else None
    outbox.put(Ready(store_port=store.port if store else None))
    while True:
        job = requests.get().job
        try:
            outbox.put(_serve(arguments.name, job, outbox))
        except Exception as error:  # reported whole to whoever asked, who decides
            message = f"{type(error).__name__}: {error}".splitlines()[0]
            outbox.put(Failure(error=message, traceback=traceback.format_exc()))


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


def _serve(name: str, job: Job, outbox: _Outbox) -> Profiled | Probed | Trained:
    match job:
        case ProfileJob():
            torch.set_num_threads(job.threads)
            return Profiled(profile=time_layers(job, outbox.progress))
        case ProbeJob():
            return probe_link(name, job, outbox.progress)
        case TrainJob():
            torch.set_num_threads(job.threads)
            return _train(name, job, outbox)


def _train(name: str, job: TrainJob, outbox: _Outbox) -> Trained:
    """Train by the job's plan. The first member of the group reports progress, the root its weights."""
    training, plan = job.training, job.plan
    model = build_model(**dict(training.model))
    dataset = load_dataset(training.dataset, Path(training.data_folder)) if name == plan.data_holder else None
    records: list[IterationRecord] = []
    torch.manual_seed(training.seed + job.group.members.index(name))  # of Dropout: another stream on each worker
    with Transport(name, job.group, job.links) as transport:
        runner = Runner(name, plan, job.execution, model, transport, training.optimizer, job.pace)
        # Labels reach the workers once, before the first iteration; they are not part of its time.
        labels = transport.broadcast(plan.data_holder, dataset.train_labels if dataset else None)
        for iteration in range(training.iterations):
            rows = batch_indices(len(labels), plan.batch_size, training.seed, iteration)
            records.append(runner.iterate(labels[rows], dataset.train_samples[rows] if dataset else None))
            done = iteration + 1
            if name == job.group.members[0]:
                outbox.progress(done, training.iterations, "")
            if name == plan.root and training.snapshot_due(done):
                outbox.put(Snapshot(iteration=done), pack_weights(model))
    return Trained(
        losses=tuple(record.loss for record in records),
        started_s=tuple(record.started_s for record in records),
        ended_s=tuple(record.ended_s for record in records),
        spans=tuple(record.spans for record in records),
        late_s=tuple(record.late_s for record in records),
    )


if __name__ == "__main__":
    main()
