"""Workers that people start by hand, with torchrun on each machine: here some on this one, and no testbed."""

import io
import json
import os
import platform
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack, closing
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from hiertrain import files
from hiertrain.cli.main import main
from hiertrain.control import memory
from hiertrain.control.answers import Beat, Iteration, Report, Snapshot
from hiertrain.control.jobs import TrainJob
from hiertrain.control.memory import KEPT, worker_environment
from hiertrain.control.torchrun import Jobs
from hiertrain.problem.network import Link, Network
from hiertrain.problem.plan import Assignment, Plan
from hiertrain.problem.profile import LayerCost, LayerTimes, Measurement, Profile, WorkerProfile
from hiertrain.runtime.heartbeat import Pulse
from hiertrain.runtime.train_job import train
from hiertrain.testbeds.local import LOOPBACK
from hiertrain.torchrun_worker import _Folder, train_by_hand
from hiertrain.training.evaluation import accuracy
from hiertrain.training.run import TrainingRun
from hiertrain.training.single_process import train_on_one_process
from hiertrain.values import InputError
from hiertrain.workload.architectures import build_model
from hiertrain.workload.datasets import load_dataset
from hiertrain.workload.modelfiles import load_model
from hiertrain.workload.weights import pack_weights

WORKERS = ("device", "edge", "cloud")
STAR = {"device": ("edge", 3, 4), "edge": (None, 13, 5), "cloud": ("edge", 7, 3)}
PAIR = {"device": ("edge", 3, 4), "edge": (None, 13, 8), "cloud": ("edge", 0, 0)}
SPLIT = {"device": ("edge", 3, 12), "edge": (None, 13, 0), "cloud": ("edge", 0, 0)}
ALONE = {"device": (None, 13, 12)}
TORCHRUN = Path(sys.executable).with_name("torchrun")
LIMIT_S = 120.0
# What torchrun sets, and what the user does.
ENVIRONMENT = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
ENVIRONMENT |= {"GLOO_SOCKET_IFNAME": LOOPBACK}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Profile, network and plans as files: only their sizes and threads matter here."""
    chain = build_model("lenet5", load_dataset("synthetic").sample_shape).chain
    cost = LayerCost(fixed_s=1e-4, per_sample_s=1e-5)
    times = WorkerProfile(
        layers=(LayerTimes(forward=cost, backward=cost, update_s=1e-5),) * chain.depth,
        measurement=Measurement(host="here", threads=1, warm_up=0, repetitions=1, points=()),
    )
    profile = Profile(
        model=chain.model, sample_bytes=chain.sample_bytes, layers=chain.layers, workers=dict.fromkeys(WORKERS, times)
    )
    files.save(profile, tmp_path / "profile.json")
    links = [Link(source=a, target=b, bandwidth_mbps=1e3, latency_ms=0) for a in WORKERS for b in WORKERS if a != b]
    files.save(Network(links=tuple(links)), tmp_path / "network.json")
    for name, parts in (("star", STAR), ("pair", PAIR), ("split", SPLIT), ("alone", ALONE)):
        workers = {worker: Assignment(parent=p, depth=m, samples=b) for worker, (p, m, b) in parts.items()}
        files.save(Plan(batch_size=12, data_holder="device", workers=workers), tmp_path / f"{name}.json")
    return tmp_path


def write_jobs(folder: Path, plan: str, *options: str) -> int:
    given = [f"--{name}={folder / name}.json" for name in ("profile", "network")]
    given += [f"--plan={folder / plan}.json", f"--output={folder / 'jobs.json'}"]
    return main(["jobs", "--dataset=synthetic", "--iterations=3", *given, *options])


def worker(folder: Path, name: str) -> list[str]:
    return ["-m", "hiertrain.torchrun_worker", str(folder / "jobs.json"), "--output", str(folder / name)]


def free_port() -> int:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        return server.getsockname()[1]


@pytest.mark.parametrize(("plan", "execution"), [("pair", "sample_encoding=zlib"), ("split", "overlapped")])
def test_workers_under_torchrun_equal_single_process_sgd(
    plan: str, execution: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert write_jobs(folder, plan, f"--execution={execution}") == 0
    printed = capsys.readouterr().out
    assert printed.count(" ".join(f"{name}={value}" for name, value in KEPT.items())) == len(PAIR) - 1
    port, names = free_port(), ("device", "edge")
    environment = {**worker_environment(kept=True), "GLOO_SOCKET_IFNAME": LOOPBACK}
    started = []
    with ExitStack() as stack:
        for rank, name in enumerate(names):
            options = ["--nnodes=2", "--nproc-per-node=1", f"--node-rank={rank}", "--master-addr=127.0.0.1"]
            assert f"torchrun {' '.join(options[:3])} --master-addr=ADDRESS" in printed
            command = [str(TORCHRUN), *options, f"--master-port={port}", *worker(folder, name)]
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
            )
            started.append(stack.enter_context(process))
            stack.callback(process.terminate)  # torchrun ends its worker then
        outputs = [process.communicate(timeout=LIMIT_S)[0] for process in started]
    for name, process, output in zip(names, started, outputs, strict=True):
        assert process.returncode == 0, output
        assert re.search(
            rf"worker {name}: 3 iterations, [\d.]+ ms each \(measured, median; predicted: [\d.]+ ms\)", output
        )
        assert ("its test accuracy, where synthetic is: hiertrain evaluate" in output) == (name == "edge")

    jobs = files.load(Jobs, folder / "jobs.json")
    reports = {name: files.load(Report, folder / name / f"{name}.json") for name in names}
    assert {report.error for report in reports.values()} == {None}
    assert all(report.memory_kept == (platform.libc_ver()[0] == "glibc") for report in reports.values())
    assert all((report.memory_bytes is not None) == report.memory_kept for report in reports.values())
    reference = train_on_one_process(jobs.training, load_dataset("synthetic"))
    (path,) = folder.glob("*/model.safetensors")
    assert path.parent.name == "edge"
    model, training, saved = load_model(path)
    assert training == jobs.training
    assert (saved.iterations, saved.statistics) == (3, True)  # there are none
    difference = np.frombuffer(pack_weights(model), np.float32) - np.frombuffer(reference.snapshots[3], np.float32)
    assert np.abs(difference).max() < 1e-6  # rounding; see test_training
    done = {name: report.iterations for name, report in reports.items()}
    clocks = {name: report.clock for name, report in reports.items()}
    run = TrainingRun(jobs.program, done, clocks, {3: pack_weights(model)})
    assert run.losses == pytest.approx(reference.losses, abs=1e-6)
    assert {span.worker for span in run.timeline(2).spans} == set(names)


def test_a_failure_says_who_and_where_and_keeps_what_was_done(folder: Path) -> None:
    assert write_jobs(folder, "alone", "--learning-rate=1e30") == 0
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=LIMIT_S))
    environment = {**ENVIRONMENT, "MASTER_PORT": str(store.port)}
    done = subprocess.run(
        [sys.executable, *worker(folder, "out")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
        timeout=LIMIT_S,
    )
    assert done.returncode == 1
    what = r"ActionError: iteration \d, action 1 of \d \(forward layers 1..13 of 12 samples\): the loss is (nan|inf).*"
    assert re.search(rf"\nhiertrain: worker device failed: {what}\n$", done.stderr)
    report = files.load(Report, folder / "out" / "device.json")
    assert report.error
    assert len(report.iterations) == 1


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGQUIT], ids=lambda number: number.name)
def test_what_torchrun_passes_on_leaves_a_report(folder: Path, number: signal.Signals) -> None:
    assert write_jobs(folder, "alone", "--iterations=1000000") == 0
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=LIMIT_S))
    environment = {**os.environ, **ENVIRONMENT, "MASTER_PORT": str(store.port)}
    command = [sys.executable, *worker(folder, "out")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment) as process:
        assert process.stderr is not None
        printed = b""
        while not re.search(rb"[1-9]\d*/1000000", printed):
            printed += (read := os.read(process.stderr.fileno(), 4096))
            assert read, printed
        process.send_signal(number)
        printed += process.stderr.read()
    assert process.returncode == 1, printed
    report = files.load(Report, folder / "out" / "device.json")
    assert report.error is not None
    assert re.fullmatch(r"iteration \d+, .*: interrupted", report.error)
    assert report.iterations


def test_a_worker_that_waits_for_the_others_can_be_interrupted(folder: Path) -> None:
    assert write_jobs(folder, "star") == 0
    with socket.create_server(("127.0.0.1", 0)) as nobody:  # a store that never answers
        environment = {**os.environ, **ENVIRONMENT, "RANK": "1", "WORLD_SIZE": "3"}
        environment["MASTER_PORT"] = str(nobody.getsockname()[1])
        command = [sys.executable, *worker(folder, "out")]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment)
        with process, nobody.accept()[0]:  # now it waits
            process.send_signal(signal.SIGTERM)
            _, printed = process.communicate(timeout=LIMIT_S / 4)
    assert process.returncode == 1
    assert printed.decode().endswith("hiertrain: worker edge failed: before iteration 1: interrupted\n")


class Terminal(io.StringIO):
    """Where a worker prints, until it is closed at the other end."""

    gone = False

    def write(self, text: str) -> int:
        if self.gone:
            raise BrokenPipeError
        return super().write(text)


def test_the_root_keeps_the_newest_snapshot_and_says_how_good_it_is_where_the_data_are(folder: Path) -> None:
    assert write_jobs(folder, "alone") == 0
    jobs = files.load(Jobs, folder / "jobs.json")
    data, out = load_dataset("synthetic"), folder / "out"
    answers = _Folder("device", jobs, out)
    model = build_model(**dict(jobs.training.model))
    for iteration in (1, 2):
        with torch.no_grad():
            next(model.parameters()).add_(1)
        answers.put(Snapshot(iteration=iteration), pack_weights(model))
        kept, _, saved = load_model(out)
        assert saved.iterations == iteration
        assert pack_weights(kept) == pack_weights(model)
    said = answers.finish_model()
    assert said == f"model: {out / 'model.safetensors'}; test accuracy: {accuracy(model, data):.4f}"
    assert load_model(out)[2].iterations == jobs.training.iterations
    assert [path.name for path in sorted(out.iterdir())] == ["model.json", "model.safetensors"]


def test_a_worker_without_torchrun_reports_and_ends_though_nobody_reads_what_it_prints(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def leave(status: int) -> None:
        raise SystemExit(status)

    monkeypatch.setattr(os, "_exit", leave)
    assert write_jobs(folder, "alone") == 0
    monkeypatch.setattr(sys, "stderr", Terminal())
    answers = _Folder("device", files.load(Jobs, folder / "jobs.json"), tmp_path)
    monkeypatch.setattr(os, "getppid", lambda: 1)
    monkeypatch.setattr(Terminal, "gone", True)
    done = Iteration(loss=1, started_s=1, ended_s=2, spans=(), late_s=0)
    with pytest.raises(SystemExit, match="1"):
        answers.put(Beat(iterations=(done,)))
    report = files.load(Report, tmp_path / "device.json")
    assert report.error == "torchrun is gone"
    assert (report.worker, report.memory_kept, report.iterations) == ("device", memory.is_kept(), (done,))
    assert "a prediction misses by a factor of" in report.alarms[0]


def test_a_report_that_cannot_be_written_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise InputError("device.json: cannot be written: No space left on device")

    assert write_jobs(folder, "star") == 0
    answers = _Folder("device", files.load(Jobs, folder / "jobs.json"), folder)
    monkeypatch.setattr("hiertrain.torchrun_worker.files.save", full)
    assert answers.close(None).endswith("; no report: device.json: cannot be written: No space left on device")
    assert not answers.reported


def test_an_accelerator_is_ready_before_the_group_meets(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert write_jobs(folder, "alone") == 0
    job = files.load(Jobs, folder / "jobs.json").job("device", "127.0.0.1", 1)
    steps: list[str] = []

    class Model:
        def to(self, device: torch.device) -> "Model":
            steps.append(f"to {device}")
            return self

    class MetError(Exception):
        pass

    def meet(*_: object) -> None:
        raise MetError

    monkeypatch.setattr("hiertrain.runtime.train_job.build_model", lambda **_: Model())
    monkeypatch.setattr("hiertrain.runtime.train_job.synchronize", lambda device: steps.append(f"wait for {device}"))
    monkeypatch.setattr("hiertrain.runtime.train_job.Transport", meet)
    with pytest.raises(MetError):
        train("device", TrainJob(**{**dict(job), "accelerator": "cuda"}), lambda *_: None, Pulse(lambda _: None))
    assert steps == ["to cuda", "wait for cuda"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, r"jobs.json: has 3 workers \(device, edge, cloud\), torchrun starts 1; they .* --nnodes=3"),
        ({"RANK": "x"}, "environment: RANK 'x': must be a whole number from 0 to 0"),
        ({"RANK": "-1"}, "environment: RANK '-1': must be a whole number from 0 to 0"),
        ({"RANK": "7", "WORLD_SIZE": "3"}, "environment: RANK '7': must be a whole number from 0 to 2"),
        ({"WORLD_SIZE": "0"}, "environment: WORLD_SIZE '0': must be a whole number from 1 to "),
        ({"MASTER_PORT": "0"}, "environment: MASTER_PORT '0': must be a whole number from 1 to 65535"),
        ({"MASTER_PORT": "9" * 9}, "environment: MASTER_PORT '999999999': must be a whole number from 1 to 65535"),
        ({"RANK": ""}, "environment: RANK is not set; start the worker by torchrun"),
        ({"WORLD_SIZE": "3", "GLOO_SOCKET_IFNAME": "nope"}, f"GLOO_SOCKET_IFNAME 'nope': must be one of .*{LOOPBACK}"),
        ({"GLOO_SOCKET_IFNAME": ""}, "environment: GLOO_SOCKET_IFNAME is not set; must name the network interface"),
    ],
    ids=[
        *("wrong count", "no rank", "rank below 0", "rank too high", "no workers", "no port", "port too high"),
        *("no torchrun", "unknown interface", "no interface"),
    ],
)
def test_a_start_that_does_not_fit_is_refused_in_one_line(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, str],
    message: str,
) -> None:
    assert write_jobs(folder, "star") == 0
    capsys.readouterr()
    for variable, value in (ENVIRONMENT | changes).items():
        monkeypatch.setenv(variable, value)
    assert train_by_hand(folder / "jobs.json", folder) == 2
    assert re.fullmatch(f"hiertrain: error: .*{message}.*\n", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (
            lambda jobs: jobs["program"]["actions"]["edge"].pop(-1),
            "edge, after its last action: |leaves messages unread: |deadlocks: ",
        ),
        (lambda jobs: jobs["program"]["actions"]["edge"][0].update(size_bytes=1), "size_bytes 1; "),
        (lambda jobs: jobs["program"].update(batch_size=64), "batch_size 64: must be the training's, 12"),
        (lambda jobs: jobs["program"].update(data_holder="mars"), "data holder 'mars'"),
    ],
    ids=["an action less", "another size", "another mini-batch", "an unknown data holder"],
)
def test_an_edited_program_is_judged_before_the_workers_meet(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    edit: Callable[[dict], object],
    message: str,
) -> None:
    assert write_jobs(folder, "star") == 0
    capsys.readouterr()
    jobs = json.loads((folder / "jobs.json").read_text())
    edit(jobs)
    (folder / "jobs.json").write_text(json.dumps(jobs))
    for variable, value in (ENVIRONMENT | {"WORLD_SIZE": "3", "GLOO_SOCKET_IFNAME": LOOPBACK}).items():
        monkeypatch.setenv(variable, value)
    assert train_by_hand(folder / "jobs.json", folder) == 2
    assert re.fullmatch(f"hiertrain: error: .*({message}).*\n", capsys.readouterr().err)


def test_jobs_refuses_what_cannot_be_done_by_hand(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    profile = files.load(Profile, folder / "profile.json")
    device = profile.workers["device"]
    for change, message in (
        ({"slowdown": 4.0}, "'device' has the slowdown 4; must be 1"),
        ({"measurement": None}, "'device' has no measurement, which says how many threads"),
    ):
        workers = {**profile.workers, "device": device.model_copy(update=change)}
        files.save(profile.model_copy(update={"workers": workers}), folder / "profile.json")
        assert write_jobs(folder, "star") == 2
        assert re.fullmatch(rf"hiertrain: error: .*{message}.*\n", capsys.readouterr().err)
    files.save(profile, folder / "profile.json")
    for option, message in (("--timeout=0", "jobs: silence_s: .*got 0"), ("--model=alexnet-cifar", "are not the")):
        assert write_jobs(folder, "star", option) == 2
        assert re.fullmatch(rf"hiertrain: error: .*{message}.*\n", capsys.readouterr().err)
