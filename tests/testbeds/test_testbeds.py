"""What every kind of testbed has: rules of its settings, the label of its times, and errors that name a worker."""

import os
import platform
import queue
import subprocess
import sys
import time
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import pytest

from hiertrain import testbeds
from hiertrain.control.answers import BEAT_S, Beat, Snapshot, Trained
from hiertrain.control.jobs import ProfileJob
from hiertrain.control.messages import PART_BYTES, read_reply
from hiertrain.problem.network import Link
from hiertrain.runtime.heartbeat import Outbox
from hiertrain.testbeds import find_testbed, hosts_of, known_testbeds, open_testbed
from hiertrain.testbeds.host import Host
from hiertrain.testbeds.session import Testbed, WorkerError
from hiertrain.testbeds.settings import (
    AnySettings,
    LocalSettings,
    NetnsSettings,
    SshSettings,
    SshWorker,
    WorkerSettings,
    kind_of_times,
    load_testbed,
)
from hiertrain.values import InputError, Interrupted
from hiertrain.workload.spec import ModelSettings

LINK = Link(source="a", target="b", bandwidth_mbps=8, latency_ms=0)
JOB = ProfileJob(
    model=ModelSettings(name="lenet5"), threads=1, sample_counts=(1,), repetitions=1, warm_up=0, time_limit_s=1
)
READY = '{"answer": {"kind": "ready", "store_port": 1}}'
# Workers that say they are ready: one reads no job, one answers its job by a sign of life, again and again.
DEAF = f"import os, time; os.close(0); print('{READY}', flush=True); time.sleep(1)"
ALIVE = f"""
import sys
print('{READY}', flush=True)
for line in sys.stdin:
    print('{{"answer": {{"kind": "beat"}}}}', flush=True)
"""
DONE = f"""
import sys
print('{READY}', flush=True)
for line in sys.stdin:
    print('{{"answer": {{"kind": "trained"}}}}', flush=True)
"""
# One that sends a payload in three parts.
SNAPSHOT = '{"answer": {"kind": "snapshot", "iteration": 1}, "payload_bytes": 2, "more": %s}\n%s'
ANSWERS = [
    SNAPSHOT % ("true", "ab"),
    '{"answer": {"kind": "beat", "where": "here"}}\n',
    SNAPSHOT % ("true", "cd"),
    SNAPSHOT % ("false", "ef"),
    '{"answer": {"kind": "trained"}}\n',
]
PARTS = f"""
import sys
print('{READY}', flush=True)
for line in sys.stdin:
    print({"".join(ANSWERS)!r}, end="", flush=True)
"""


def test_a_testbed_is_found_by_name_and_by_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(known_testbeds()) == ["local", "netns", "wired"]  # an example is copied first
    for name, path in known_testbeds().items():
        assert find_testbed(name) == find_testbed(str(path)) == load_testbed(path)
    monkeypatch.chdir(tmp_path)
    Path("own.yml").write_text("{kind: local, data_holder: pi, workers: {pi: {threads: 4}}}")
    assert find_testbed("own.yml") == find_testbed("./own.yml") == load_testbed("own.yml")
    with pytest.raises(
        InputError, match=r"testbed 'own': must be auto, local, netns, wired, or the path of .*own\.yml"
    ):
        find_testbed("own")


def test_wired_is_the_local_testbed_with_a_wire_from_edge_to_cloud() -> None:
    local, wired = find_testbed("local"), find_testbed("wired")
    assert isinstance(local, LocalSettings)
    assert isinstance(wired, LocalSettings)
    assert wired.workers == local.workers
    faster = {frozenset((a.source, a.target)) for a, b in zip(wired.links, local.links, strict=True) if a != b}
    assert faster == {frozenset(("edge", "cloud"))}


def machine(slowdown: float = 1) -> SshWorker:
    return SshWorker(host="pi", address="10.0.0.1", interface="eth0", slowdown=slowdown)


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        (LocalSettings(data_holder="a", workers={"a": WorkerSettings()}), "measured"),
        (LocalSettings(data_holder="a", workers={"a": WorkerSettings(slowdown=2)}), "emulated"),
        (
            LocalSettings(data_holder="a", workers={"a": WorkerSettings(), "b": WorkerSettings()}, links=(LINK,)),
            "emulated",
        ),
        (
            NetnsSettings(
                data_holder="a", workers={"a": WorkerSettings(slowdown=2), "b": WorkerSettings()}, links=(LINK,)
            ),
            "measured",
        ),
        (SshSettings(data_holder="a", workers={"a": machine(), "b": machine()}), "measured"),
        (SshSettings(data_holder="a", workers={"a": machine(), "b": machine(2)}), "emulated"),
    ],
)
def test_the_label_of_times(settings: AnySettings, kind: str) -> None:
    assert kind_of_times(settings) == kind


@pytest.mark.parametrize(("field", "value"), [("latency_ms", 5), ("burst_bytes", 20_000)])
def test_namespaces_refuse_what_they_do_not_shape(field: str, value: float) -> None:
    workers = {"a": WorkerSettings(), "b": WorkerSettings()}
    link = Link.model_validate({**dict(LINK), field: value})
    with pytest.raises(ValueError, match=rf"link from 'a' to 'b': {field} {value}; must be 0"):
        NetnsSettings(data_holder="a", workers=workers, links=(link,))
    LocalSettings(data_holder="a", workers=dict.fromkeys("ab", WorkerSettings()), links=(link,))


def test_silence_is_longer_than_a_few_beats() -> None:
    workers = {"a": WorkerSettings()}
    with pytest.raises(ValueError, match=r"timeout_s\n.*greater than or equal to"):
        LocalSettings(data_holder="a", workers=workers, timeout_s=3 * BEAT_S)
    LocalSettings(data_holder="a", workers=workers, timeout_s=4 * BEAT_S)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can keep memory")
@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("kind", ["local", pytest.param("netns", marks=pytest.mark.netns)])
def test_every_worker_keeps_its_memory_unless_the_settings_say_otherwise(
    monkeypatch: pytest.MonkeyPatch, kind: str, kept: bool
) -> None:
    monkeypatch.setenv("MALLOC_TOP_PAD_", "1")  # the user's own
    settings = find_testbed(kind).model_copy(update={"memory_kept": kept})
    with hosts_of(settings) as hosts:
        for host in hosts.values():
            *python, _, _ = host.command  # instead of -m hiertrain.worker
            command = [*python, "-c", "from hiertrain.control import memory; print(memory.is_kept())"]
            printed = subprocess.run(command, env=host.environment, capture_output=True, text=True, check=True).stdout
            assert printed == f"{kept}\n"
            assert host.environment is not None
            assert ("MALLOC_TOP_PAD_" in host.environment) == kept


def fake_testbed(**programs: str) -> Testbed:
    settings = LocalSettings(data_holder="a", workers=dict.fromkeys(programs, WorkerSettings()))
    hosts = {name: Host((sys.executable, "-SEc", program), "127.0.0.1") for name, program in programs.items()}
    return Testbed(settings, hosts)


def test_a_worker_that_takes_no_job_is_the_one_that_is_named() -> None:
    with fake_testbed(a=ALIVE, b=DEAF, c=ALIVE) as testbed:
        with pytest.raises(WorkerError, match=r"^worker b is gone, the session is over"):
            testbed.run(dict.fromkeys("abc", JOB))
        assert all(process.poll() is not None for process in testbed.processes.values())


def test_an_open_testbed_changes_speeds_and_rates_and_nothing_else() -> None:
    workers = {"a": WorkerSettings(slowdown=2), "b": WorkerSettings(slowdown=4)}
    settings = LocalSettings(data_holder="a", workers=workers, links=(LINK,))
    hosts = {name: Host((sys.executable, "-SEc", ALIVE), "127.0.0.1") for name in workers}
    slower = LINK.model_copy(update={"bandwidth_mbps": 1.0})
    other = {**workers, "b": WorkerSettings(slowdown=8)}
    with Testbed(settings, hosts) as testbed:
        assert testbed.links_from("a") == {"b": LINK}
        changed = settings.model_copy(update={"workers": other, "links": (slower,)})
        testbed.change(changed)
        assert testbed.settings == changed
        assert testbed.links_from("a") == {"b": slower}
        assert testbed.links_from("b") == {}
        for difference in (
            {"links": ()},
            {"data_holder": "b"},
            {"timeout_s": 20.0},
            {"workers": {"a": workers["a"]}},
            {"workers": {**workers, "b": WorkerSettings(slowdown=4, threads=2)}},
        ):
            with pytest.raises(InputError, match="can change its slowdowns and the values of its links"):
                testbed.change(settings.model_copy(update=difference))
        assert testbed.settings == changed


def test_a_pipe_of_the_callers_is_no_workers_fault() -> None:
    def show(*_: object) -> None:
        raise BrokenPipeError

    with fake_testbed(a=ALIVE) as testbed:
        with pytest.raises(BrokenPipeError):
            testbed.run({"a": JOB}, on_event=show)
        assert testbed.processes["a"].poll() is not None


def test_an_interrupt_says_that_all_workers_have_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = dict.fromkeys(("a", "b"), Host([sys.executable, "-c", ALIVE], "127.0.0.1"))
    monkeypatch.setattr(testbeds, "hosts_of", lambda _: nullcontext(hosts))
    settings = LocalSettings(data_holder="a", workers=dict.fromkeys(hosts, WorkerSettings()))
    with ExitStack() as stack:
        processes = stack.enter_context(open_testbed(settings)).processes
        with pytest.raises(Interrupted, match=r"^interrupted; all workers have ended$"):
            stack.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert all(process.poll() is not None for process in processes.values())


class Asleep(queue.SimpleQueue):
    """Answers to a process that is stopped once, for much longer than silence may last, while it listens."""

    def __init__(self, clock: "Clock") -> None:
        self._clock = clock

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        if not self._clock.jumped_s:
            self._clock.jumped_s = 1000.0
            raise queue.Empty
        return super().get(block, timeout)


class Clock:
    jumped_s = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.jumped_s


def test_workers_are_not_silent_while_their_parent_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    with fake_testbed(a=DONE) as testbed:
        monkeypatch.setattr("hiertrain.testbeds.session.time", clock)
        testbed._answers = Asleep(clock)
        assert testbed.run({"a": JOB}) == {"a": Trained()}
    assert clock.jumped_s


def test_answers_pass_between_the_parts_of_a_payload_and_every_part_is_a_sign_of_life() -> None:
    payload = bytes(range(256)) * (PART_BYTES // 64)  # four parts, more than a pipe takes
    read, written = os.pipe()
    with open(read, "rb") as stream, open(written, "wb") as sink:
        outbox = Outbox(sink)
        outbox.put(Snapshot(iteration=1), payload)
        outbox.put(Beat(where="here"))
        lines = []
        while not lines or lines[-1][0].more or len(lines) < 5:
            line = read_reply(stream)
            assert line is not None
            lines.append(line)
        outbox.flush()
    answers = [reply.answer for reply, _ in lines]
    assert answers.index(Beat(where="here")) <= 2  # a part or two were on their way
    assert [reply.more for reply, _ in lines if isinstance(reply.answer, Snapshot)] == [True, True, True, False]
    assert b"".join(part for _, part in lines) == payload

    heard: list[object] = []
    with fake_testbed(a=PARTS) as testbed:
        testbed.run({"a": JOB}, lambda _, event, payload: heard.append((event, payload)))
    alive = (Beat(), b"")
    assert heard == [alive, (Beat(where="here"), b""), alive, (Snapshot(iteration=1), b"abcdef")]


def test_a_death_is_told_by_its_status_first() -> None:
    warning = "import sys; sys.stderr.write('[W] hostname cannot be retrieved'); sys.stderr.flush()"
    for end, reason in (
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", r"killed by SIGKILL \(out of memory\?\)"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "killed by SIGSEGV"),
        ("sys.exit(3)", "exit status 3"),
    ):
        program = f"{warning}; print('{READY}', flush=True); sys.stdin.readline(); {end}"
        message = rf"^worker a is gone: {reason}; it last printed: \[W\] hostname cannot be retrieved$"
        with fake_testbed(a=program) as testbed, pytest.raises(WorkerError, match=message):
            testbed.run({"a": JOB})


def test_nobody_can_guess_where_a_group_meets() -> None:
    with fake_testbed(a=ALIVE) as testbed:
        tags = {testbed.group(("a",), 1).tag for _ in range(100)}
    assert len(tags) == 100
    assert min(map(len, tags)) >= 32


def test_a_checkout_may_lie_below_a_folder_of_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / 'lr=0.1 it\'s "mine" é'
    folder.mkdir()
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -c "$PROGRAM"\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setenv("PROGRAM", DONE)
    with open_testbed(LocalSettings(data_holder="a", workers={"a": WorkerSettings()})) as testbed:
        assert testbed.run({"a": JOB}) == {"a": Trained()}
