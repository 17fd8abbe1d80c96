"""``torchrun ... -m hiertrain.torchrun_worker jobs.json``: one worker of a training, started by hand on its machine.

For machines without SSH between them. It is the same worker but for where answers go: nobody speaks to it. Its rank and
the address where the group meets come from torchrun's environment, all else from the file of ``hiertrain jobs``.
"""

import argparse
import os
import re
import signal
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

import numpy as np
import torch
from tqdm.auto import tqdm

from hiertrain import files
from hiertrain.control import memory
from hiertrain.control.answers import Answer, Beat, ClockReading, Iteration, Report, Snapshot, in_one_line
from hiertrain.control.jobs import TrainJob
from hiertrain.control.torchrun import Jobs
from hiertrain.program.dry_run import dry_run
from hiertrain.results import alarms
from hiertrain.runtime.heartbeat import Pulse
from hiertrain.runtime.train_job import train
from hiertrain.training.evaluation import accuracy, estimate_statistics
from hiertrain.training.run import begun_s, keep_iteration, steady
from hiertrain.values import MOST_WORKERS, InputError, shown
from hiertrain.workload.architectures import build_model, chain_of
from hiertrain.workload.datasets import load_dataset
from hiertrain.workload.modelfiles import WEIGHTS, save_model
from hiertrain.workload.weights import unpack_weights

BY_TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # of the environment


class _Folder:
    """Where the answers of a worker that was started by hand go: a progress bar, and files."""

    def __init__(self, name: str, jobs: Jobs, folder: Path) -> None:
        """Raises InputError when nothing can be written to ``folder``."""
        self._name, self._jobs, self._folder = name, jobs, folder
        self._report = folder / f"{name}.json"
        files.check_output(self._report)
        self._done: list[Iteration] = []
        self._clock: list[ClockReading] = []
        self.reported = False
        self._starter = os.getppid()
        # Where snapshots come, for the names of the weights; built now, since nobody waits for this worker yet.
        keeps = name == jobs.program.root
        self._model = build_model(**dict(jobs.training.model)) if keeps else None
        self._bar = tqdm(desc=f"worker {name}", total=jobs.training.iterations, unit="iteration")

    def put(self, answer: Answer, payload: bytes = b"") -> None:
        match answer:
            case Beat():
                for iteration in answer.iterations:
                    keep_iteration(self._done, iteration)
                self._clock += answer.clock
                if os.getppid() != self._starter:  # killed; whatever it died of, nobody else would end this worker
                    try:
                        self.fail("torchrun is gone")
                    finally:  # also where nobody reads what is printed any more
                        os._exit(1)
                self._bar.update(len(answer.iterations))
            case Snapshot():
                assert self._model is not None
                unpack_weights(self._model, payload)  # replaces the file of the snapshot before, which nobody needs
                save_model(self._model, self._jobs.training, self._folder / WEIGHTS, answer.iteration, statistics=False)

    def close(self, error: str | None, memory_bytes: int | None = None) -> str:
        """Write the report; return what there is to say about it."""
        overlapped = self._jobs.program.overlapped
        started_s = np.array([iteration.started_s for iteration in self._done])
        ended_s = np.array([iteration.ended_s for iteration in self._done])
        times_s = (ended_s - begun_s(started_s, ended_s, overlapped)).tolist()
        steady_s = steady(times_s, overlapped) or times_s
        alarming = alarms.misses({"this plan": (self._jobs.predicted_s, median(steady_s))} if steady_s else {})
        report = Report(
            worker=self._name,
            memory_kept=memory.is_kept(),
            memory_bytes=memory_bytes,
            error=error,
            iterations=tuple(self._done),
            clock=tuple(self._clock),
            alarms=tuple(map(str, alarming)),
        )
        try:
            files.save(report, self._report)
            self.reported, where = True, f"written: {self._report}"
        except InputError as failure:
            where = f"no report: {failure}"
        self._bar.close()
        alarms.show(alarming)
        predicted = f"predicted: {self._jobs.predicted_s * 1e3:.2f} ms"
        typical = f", {median(steady_s) * 1e3:.2f} ms each (measured, median; {predicted})" if times_s else ""
        return f"worker {self._name}: {len(times_s)} iterations{typical}; {where}"

    def finish_model(self) -> str | None:
        """What there is to say about the trained model, where it is; with its test accuracy where the data are here."""
        if self._model is None:
            return None
        training, path = self._jobs.training, self._folder / WEIGHTS
        if self._name != self._jobs.program.data_holder:
            return f"model: {path}; its test accuracy, where {training.dataset} is: hiertrain evaluate {path}"
        dataset = load_dataset(training.dataset, training.data_folder)
        estimate_statistics(self._model, dataset)
        save_model(self._model, training, path)
        return f"model: {path}; test accuracy: {accuracy(self._model, dataset):.4f}"

    def fail(self, what: str) -> None:
        sys.stderr.write(f"{self.close(what)}\nhiertrain: worker {self._name} failed: {what}\n")


def main() -> None:
    """Do this worker's part of one training."""
    parser = argparse.ArgumentParser(prog="torchrun ... -m hiertrain.torchrun_worker", description=__doc__)
    parser.add_argument("jobs", type=Path, help="the file that `hiertrain jobs` wrote")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(),
        metavar="FOLDER",
        help="gets the worker's report, and one of them the model",
    )
    arguments = parser.parse_args()
    torch.set_num_interop_threads(1)
    status = train_by_hand(arguments.jobs, arguments.output)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # at once: a thread may still be sending to a worker that is gone


def train_by_hand(path: Path, folder: Path) -> int:
    """This worker's part of the training in a jobs file. The result is the exit status: 1 failed, 2 bad input."""
    try:
        name, job, jobs = _own_job(path)
        answers = _Folder(name, jobs, folder)
    except InputError as error:
        sys.stderr.write(f"hiertrain: error: {error}\n")
        return 2
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):  # torchrun passes on what ends it
        signal.signal(number, signal.default_int_handler)
    pulse = Pulse(answers.put)

    def work() -> int | None:
        with pulse:
            return train(name, job, answers.put, pulse)

    try:
        # Not in this thread: waiting for other machines inside the C++ of PyTorch, it would answer no signal.
        memory_bytes = ThreadPoolExecutor(1).submit(work).result()
    except (Exception, KeyboardInterrupt) as error:
        what = "interrupted" if isinstance(error, KeyboardInterrupt) else in_one_line(error)
        where = pulse.where() or "before iteration 1"
        answers.fail(what if where in what else f"{where}: {what}")
        return 1
    sys.stdout.write(f"{answers.close(None, memory_bytes)}\n")
    try:
        about_model = answers.finish_model()
    except InputError as error:
        sys.stderr.write(f"hiertrain: error: {error}\n")
        return 1
    sys.stdout.write(f"{about_model}\n" if about_model else "")
    return 0 if answers.reported else 1


def _own_job(path: Path) -> tuple[str, TrainJob, Jobs]:
    """This worker's name, its part, and the whole. Raises InputError unless file and torchrun's environment fit."""
    for variables, rule in (
        (BY_TORCHRUN, "start the worker by torchrun, which sets it"),
        (("GLOO_SOCKET_IFNAME",), "must name the network interface that the other workers reach"),
    ):
        if lacking := [variable for variable in variables if not os.environ.get(variable)]:
            raise InputError(f"environment: {lacking[0]} is not set; {rule}")
    jobs = files.load(Jobs, path)
    size, port = _number("WORLD_SIZE", 1, MOST_WORKERS), _number("MASTER_PORT", 1, 65535)
    rank = _number("RANK", 0, size - 1)
    if size != len(jobs.workers):
        raise InputError(
            f"{path}: has {len(jobs.workers)} workers ({', '.join(jobs.workers)}), torchrun starts {size}; "
            f"they must be as many: --nnodes={len(jobs.workers)} --nproc-per-node=1"
        )
    interface = os.environ["GLOO_SOCKET_IFNAME"]
    known = [known for _, known in socket.if_nameindex()]
    if interface not in known:
        raise InputError(f"environment: GLOO_SOCKET_IFNAME {shown(interface)}: must be one of {', '.join(known)}")
    dry_run(jobs.program, chain_of(jobs.training.model))  # anybody may have edited the file
    name = list(jobs.workers)[rank]
    return name, jobs.job(name, os.environ["MASTER_ADDR"], port), jobs


def _number(variable: str, least: int, most: int) -> int:
    """What torchrun's environment says. Raises InputError unless it is a whole number in these bounds."""
    text = os.environ[variable]
    if not re.fullmatch(r"[0-9]{1,9}", text) or not least <= int(text) <= most:
        raise InputError(f"environment: {variable} {shown(text)}: must be a whole number from {least} to {most}")
    return int(text)


if __name__ == "__main__":
    main()
