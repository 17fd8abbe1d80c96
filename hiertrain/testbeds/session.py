"""A testbed session: worker processes that are started once and serve jobs until the session is closed.

The kinds of testbed differ only in how a worker's command is started, which address it has and how links are shaped;
each kind's module turns its settings into ``Host`` values and opens a ``Testbed`` with them.
"""

import math
import os
import queue
import secrets
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import IO

from hiertrain.control.answers import BEAT_S, Answer, Beat, Failure, Progress, Ready, Snapshot
from hiertrain.control.jobs import Group, Job
from hiertrain.control.messages import Request, read_reply, write_message
from hiertrain.problem.network import Link
from hiertrain.testbeds.host import Host, Piped
from hiertrain.testbeds.settings import AnySettings
from hiertrain.values import InputError, RunError

OnEvent = Callable[[str, Progress | Snapshot | Beat, bytes], None]  # worker, what it says, payload

START_TIMEOUT_S = 120.0  # importing PyTorch on a slow machine
END_TIMEOUT_S = 5.0
LAST_WORDS_BYTES = 4096
GRACE_S = 1.0  # after a failure, how long to listen for the peers' accounts of it


class WorkerError(RunError):
    """A worker failed or died; the message names it and what it was doing."""


class _Worker(Piped):
    def end(self) -> str:
        """How it ended, for people: the status first, since what it printed last may have another reason."""
        try:
            status = self.process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            return f"it no longer answers{self._last_words()}"
        if status >= 0:
            return f"exit status {status}{self._last_words()}"
        name = signal.Signals(-status).name
        return f"killed by {name}{' (out of memory?)' if name == 'SIGKILL' else ''}{self._last_words()}"

    def _last_words(self) -> str:
        end = os.fstat(self.log.fileno()).st_size
        text = os.pread(self.log.fileno(), LAST_WORDS_BYTES, max(0, end - LAST_WORDS_BYTES)).decode(errors="replace")
        lines = text.strip().splitlines()
        return f"; it last printed: {lines[-1]}" if lines else ""


def _unchangeable(settings: AnySettings) -> object:
    workers = [(name, worker.model_copy(update={"slowdown": 1.0})) for name, worker in settings.workers.items()]
    links = [(link.source, link.target) for link in settings.links]
    return settings.model_copy(update={"workers": workers, "links": links})


class Testbed:
    """An open session: a context manager. After an error it is closed, and no process is left."""

    __test__ = False

    def __init__(self, settings: AnySettings, hosts: Mapping[str, Host]) -> None:
        """Start one worker per host and wait until all are ready. Raises WorkerError."""
        self.settings = settings
        self._hosts = hosts
        self._answers: queue.SimpleQueue[tuple[str, Answer | None, bytes]] = queue.SimpleQueue()
        self._workers: dict[str, _Worker] = {}
        self._logs = ExitStack()
        try:
            store_host, *_ = hosts  # the first worker serves the rendezvous store
            for name, host in hosts.items():
                self._start(name, host, ["--serve-store", host.address] if name == store_host else [])
            ready = self._collect(set(hosts), START_TIMEOUT_S)
        except BaseException:
            self.close()
            raise
        store = ready[store_host]
        assert isinstance(store, Ready)
        assert store.store_port is not None
        self._store = hosts[store_host].address, store.store_port

    def __enter__(self) -> "Testbed":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def workers(self) -> tuple[str, ...]:
        """The names of the workers."""
        return tuple(self.settings.workers)

    @property
    def processes(self) -> Mapping[str, subprocess.Popen[bytes]]:
        """Those on this machine by worker: the worker itself, or what reaches it."""
        return {name: worker.process for name, worker in self._workers.items()}

    def links_from(self, worker: str) -> Mapping[str, Link]:
        """The emulated links from ``worker``, by receiver."""
        return {link.target: link for link in self.settings.delayed if link.source == worker}

    def change(self, settings: AnySettings) -> None:
        """Go on with other slowdowns, and other values of the same links. Raises InputError if more is different."""
        if _unchangeable(settings) != _unchangeable(self.settings):
            raise InputError("an open testbed can change its slowdowns and the values of its links, and nothing else")
        for host in self._hosts.values():
            host.shape(settings.links)
        self.settings = settings

    def group(self, members: Sequence[str], timeout_s: float) -> Group:
        """A new process group. ``timeout_s`` is the longest that one message may take, from the cost model."""
        address, port = self._store
        return Group(
            members=tuple(members),
            tag=secrets.token_hex(),  # which nobody else on the machine can guess
            store_address=address,
            store_port=port,
            timeout_s=timeout_s + self.settings.timeout_s,
            silence_s=self.settings.timeout_s,
        )

    def run(self, jobs: Mapping[str, Job], on_event: OnEvent = lambda *_: None) -> dict[str, Answer]:
        """Give each worker its job and wait for all answers; ``on_event`` gets all that comes before them.

        Raises WorkerError when a worker fails, dies or gives no sign of life; the session is then closed, as it is
        after an interruption.
        """
        for name in jobs:
            if self._workers[name].process.poll() is not None:
                self.close()
                raise WorkerError(f"worker {name} is gone, the session is over; open a new testbed")
        try:
            for name, job in jobs.items():
                try:
                    write_message(self._workers[name].stdin, Request(job=job))
                except BrokenPipeError:
                    end = self._workers[name].end()
                    raise WorkerError(f"worker {name} is gone, the session is over: {end}") from None
            return self._collect(set(jobs), self.settings.timeout_s, on_event)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End all workers: the end of their input ends them; whoever does not listen is killed."""
        for worker in self._workers.values():
            with suppress(BrokenPipeError):  # it died with a request half read
                worker.stdin.close()
        for worker in self._workers.values():
            try:
                worker.process.wait(END_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
        self._logs.close()

    def _start(self, name: str, host: Host, arguments: list[str]) -> None:
        log = self._logs.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - the stack closes it
        process = subprocess.Popen(
            [*host.command, "--name", name, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=host.environment,
            start_new_session=True,  # Ctrl-C reaches the parent alone, which closes the session
        )
        self._workers[name] = _Worker(process, log)
        threading.Thread(target=self._listen, args=(name, self._workers[name].stdout), daemon=True).start()

    def _listen(self, name: str, stream: IO[bytes]) -> None:
        whole = bytearray()  # of the payload whose parts arrive
        try:
            with stream:
                while (line := read_reply(stream)) is not None:
                    reply, part = line
                    whole += part
                    if reply.more:
                        self._answers.put((name, Beat(), b""))
                    elif reply.payload_bytes:
                        self._answers.put((name, reply.answer, bytes(whole)))
                        whole.clear()
                    else:
                        self._answers.put((name, reply.answer, b""))
        finally:
            self._answers.put((name, None, b""))

    def _hear(self, limit_s: float) -> tuple[tuple[str, Answer | None, bytes] | None, float]:
        """Listen for an answer until ``limit_s``, at most a beat: what was heard, and the time that counts as silence.

        That is at most a beat too: a worker is not silent while this process is stopped, or too busy to listen.
        """
        begun_s = time.monotonic()
        try:
            heard = self._answers.get(timeout=min(BEAT_S, max(0.0, limit_s)))
        except queue.Empty:
            heard = None
        return heard, min(BEAT_S, time.monotonic() - begun_s)

    def _collect(self, members: set[str], silence_s: float, on_event: OnEvent = lambda *_: None) -> dict[str, Answer]:
        """The answers of ``members``. A first failure ends it, after a grace for the accounts of its peers."""
        answers: dict[str, Answer] = {}
        gone: list[str] = []  # first in the message: what the others complain of follows from it
        failures: list[str] = []
        notes: list[str] = []
        waiting, where = set(members), dict.fromkeys(members, "")
        listened_s, end_s = 0.0, math.inf
        heard_s = dict.fromkeys(members, listened_s)

        def fail(name: str, what: str, failures: list[str] = failures) -> None:
            nonlocal end_s
            failures.append(f"worker {name} {what}")
            waiting.discard(name)
            end_s = min(end_s, listened_s + GRACE_S)

        while waiting:
            due_s = min(end_s, *(heard_s[name] + silence_s for name in waiting))
            heard, passed_s = self._hear(due_s - listened_s)
            listened_s += passed_s
            if heard is None:
                if listened_s >= end_s:
                    break
                for name in [name for name in waiting if listened_s >= heard_s[name] + silence_s]:
                    fail(name, f"gave no sign of life for {silence_s:g} s{where[name]}", gone)
                    self._workers[name].process.kill()  # which its peers notice
                continue
            name, answer, payload = heard
            if name not in waiting:
                continue
            heard_s[name] = listened_s
            match answer:
                case Progress() | Snapshot() | Beat():
                    if isinstance(answer, Beat) and answer.where:
                        where[name] = f" in {answer.where}"
                    on_event(name, answer, payload)
                case None:
                    fail(name, f"is gone{where[name]}: {self._workers[name].end()}", gone)
                case Failure():
                    fail(name, f"failed: {answer.error}")
                    notes.append(f"worker {name}:\n{answer.traceback}")
                case _:
                    answers[name] = answer
                    waiting.discard(name)
        if gone or failures:
            others = [f"worker {name} was{where[name]}" for name in sorted(waiting) if where[name]]
            error = WorkerError("\n".join([*gone, *failures, *others]))
            for note in notes:
                error.add_note(note)
            raise error
        return answers
