"""``python -m hiertrain.worker``: one worker process. Serves profile, probe and train jobs until its input ends.

Whoever starts it speaks to its standard input and output (see ``control.messages``). The end of the input means that
the starter is gone, whatever it died of: the worker then exits at once, in the middle of a job if need be.
"""

import argparse
import os
import queue
import socket
import sys
import threading
import traceback
from datetime import timedelta
from typing import IO

import torch
import torch.distributed as dist

from hiertrain.control.answers import Failure, Probed, Profiled, Ready, Snapshot, Trained, in_one_line
from hiertrain.control.jobs import Job, ProbeJob, ProfileJob, RivalJob, TrainJob
from hiertrain.control.messages import Request, read_request
from hiertrain.profiling.layers import time_layers
from hiertrain.profiling.links import probe_link
from hiertrain.runtime.heartbeat import Outbox, Pulse
from hiertrain.runtime.train_job import train


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
            return Trained(memory_bytes=train(name, job, outbox.put, pulse))
        case RivalJob():
            from hiertrain.runtime.pytorch_baselines import run_rival  # noqa: PLC0415 - PyTorch's pipelining takes a second to import

            torch.set_num_threads(job.threads)
            weights = run_rival(name, job, pulse.add)
            if weights is not None:
                outbox.put(Snapshot(iteration=job.training.iterations), weights)
            return Trained()


if __name__ == "__main__":
    main()
