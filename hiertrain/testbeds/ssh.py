"""The SSH testbed: a worker on each of some machines that the user's own OpenSSH client reaches.

Keys, jump hosts and aliases are those of ``~/.ssh/config``; nothing is asked. Before a worker is started, all machines
are checked at once (``preflight``), and everything that is wrong on any of them is named in one error.
"""

import json
import math
import shlex
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from hiertrain.control.memory import KEPT
from hiertrain.sources import PACKAGE, reached
from hiertrain.testbeds import preflight
from hiertrain.testbeds.host import Host, Piped
from hiertrain.testbeds.settings import SshSettings, SshWorker
from hiertrain.values import Count, InputError, Port, Value

OLDEST_PYTHON = (3, 11)
PACKAGES = ("numpy", "pydantic", "torch", "torchvision")  # decide how a worker computes and what it sends
DATA_PACKAGES = ("scikit-learn",)  # read a data set, which only the data holder does
CHECK_LIMIT_S = 60.0  # starting Python and, where CUDA is asked for, importing PyTorch on a slow machine
CONNECT_LIMIT_S = 3.0  # between two workers: long enough for one packet to be lost
COPY_LIMIT_S = 120.0
END_LIMIT_S = 5.0


@contextmanager
def ssh_hosts(settings: SshSettings) -> Iterator[Mapping[str, Host]]:
    """One host per worker.

    Raises InputError that names everything that a machine lacks, one per line, after the package was copied where that
    is asked for.
    """
    problems = find_problems(settings)
    if problems:
        raise InputError("\n".join(problems))
    yield {
        name: Host(command_on(settings, worker, "-m", "hiertrain.worker"), worker.address)
        for name, worker in settings.workers.items()
    }


def find_problems(settings: SshSettings) -> list[str]:
    """Copy the package where that is asked for, then check every machine. Empty if all is well."""
    if not shutil.which("ssh"):
        return ["ssh is not installed on this machine; the testbed needs it"]
    if settings.ssh_config and not _local_path(settings.ssh_config).is_file():
        return [f"ssh_config {settings.ssh_config}: no such file"]
    uncopied = _copy_package(settings)
    source = Path(preflight.__file__).read_text(encoding="utf-8")
    commands = {name: command_on(settings, worker, "-c", source) for name, worker in settings.workers.items()}
    with ThreadPoolExecutor(len(commands)) as pool, _sessions(commands) as sessions:
        problems: dict[str, list[str]] = {}
        listeners: dict[str, tuple[str, int]] = {}
        inspected: list[str] = []
        requests = {name: _inspection_request(name, settings) for name in settings.workers}
        for name, answer in _ask_all(pool, sessions, _Inspection, requests).items():
            if isinstance(answer, str):
                problems[name] = [answer]
                continue
            problems[name] = list(_compare(settings.workers[name], answer, uncopied.get(name)))
            inspected.append(name)
            if answer.port:
                listeners[name] = settings.workers[name].address, answer.port
        requests = {
            name: {"peers": {peer: listeners[peer] for peer in listeners if peer != name}, "timeout_s": CONNECT_LIMIT_S}
            for name in inspected
        }
        for name, answer in _ask_all(pool, sessions, _Connections, requests).items():
            if isinstance(answer, str):
                problems[name].append(answer)
                continue
            problems[name] += [
                f"no connection to worker {peer} at {':'.join(map(str, listeners[peer]))}: {reason}; "
                "all TCP ports must be open between workers"
                for peer, reason in answer.blocked.items()
            ]
    return [
        f"worker {name} on host {worker.host}: {problem}"
        for name, worker in settings.workers.items()
        for problem in problems[name]
    ]


def ssh_command(settings: SshSettings, worker: SshWorker) -> tuple[str, ...]:
    """The OpenSSH client and its options, without the host."""
    interval_s = max(1, int(settings.timeout_s // 4))
    options = {
        "BatchMode": "yes",  # asks for no password: nobody would see the question
        "ConnectTimeout": math.ceil(settings.timeout_s),
        "ServerAliveInterval": interval_s,
        "ServerAliveCountMax": max(1, int(settings.timeout_s // interval_s) - 1),  # ends when one more is unanswered
    }
    command = ["ssh", "-T", *(part for option, value in options.items() for part in ("-o", f"{option}={value}"))]
    if settings.ssh_config:
        command += ["-F", str(_local_path(settings.ssh_config))]
    if worker.port:
        command += ["-p", str(worker.port)]
    if worker.user:
        command += ["-l", worker.user]
    return tuple(command)


def command_on(settings: SshSettings, worker: SshWorker, *arguments: str) -> tuple[str, ...]:
    """What runs the worker's Python with the arguments on its machine. The remote shell sees quoted words only."""
    # The home folder, where ssh starts, may hold a checkout that would hide the installed package of the same name.
    environment = {"GLOO_SOCKET_IFNAME": worker.interface, "PYTHONSAFEPATH": "1"}
    if settings.memory_kept:
        environment |= KEPT
    if worker.folder:
        environment["PYTHONPATH"] = _remote_path(worker.folder)
    assignments = [f"{name}={value}" for name, value in environment.items()]
    # env would take an interpreter below a folder named a=b for one more of them.
    words = ["exec", "env", *assignments, "sh", "-c", 'exec "$@"', "sh", _remote_path(worker.python), *arguments]
    return (*ssh_command(settings, worker), "--", worker.host, shlex.join(words))


def copy_command(settings: SshSettings, worker: SshWorker, folder: str) -> tuple[str, ...]:
    """What copies the package's sources into a folder of the worker's machine. Nothing is deleted there."""
    only_sources = ("--exclude=__pycache__", "--include=*/", "--include=*.py", "--exclude=*")
    ssh = shlex.join(ssh_command(settings, worker))
    host = f"[{worker.host}]" if ":" in worker.host else worker.host  # of IPv6: the first colon would end it
    return (
        *("rsync", "--recursive", "--times", "--checksum", "--protect-args", "-e", ssh, *only_sources),
        *("--", str(PACKAGE), f"{host}:{_remote_path(folder)}/"),
    )


def _local_path(path: str) -> Path:
    return Path(path).expanduser()


def _remote_path(path: str) -> str:
    """The home folder is where ssh starts, so that no shell has to look it up."""
    return path.removeprefix("~/")


class _Session(Piped):
    def words(self, lines: int = 1) -> str:
        """The last lines that it printed as errors."""
        self.log.seek(0)
        text = self.log.read().decode(errors="replace")
        printed = [line.strip() for line in text.splitlines() if line.strip()]
        return " / ".join(printed[-lines:]) or "it does not say why"


@contextmanager
def _sessions(commands: Mapping[str, Sequence[str]]) -> Iterator[dict[str, _Session]]:
    """A running process for each command; whatever still runs at the end of the ``with`` block is ended."""
    with ExitStack() as stack:
        sessions: dict[str, _Session] = {}
        for name, command in commands.items():
            log = stack.enter_context(tempfile.TemporaryFile())
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # Ctrl-C reaches this process alone, which ends them
            )
            sessions[name] = _Session(process, log)
            stack.callback(_end, sessions[name])
        yield sessions


def _end(session: _Session) -> None:
    """The loss of its connection ends what runs on the other machine."""
    session.process.terminate()
    with suppress(subprocess.TimeoutExpired):
        session.process.wait(END_LIMIT_S)
    session.process.kill()
    session.process.wait()
    session.stdout.close()
    with suppress(BrokenPipeError):  # it ended with a request half read
        session.stdin.close()


def _copy_package(settings: SshSettings) -> dict[str, str]:
    """Copy the package to every machine that wants a copy; what went wrong, by worker."""
    folders = {name: worker.folder for name, worker in settings.workers.items() if worker.folder}
    if not shutil.which("rsync"):
        return dict.fromkeys(folders, "rsync is not installed on this machine")
    commands = {name: copy_command(settings, settings.workers[name], folder) for name, folder in folders.items()}
    with ThreadPoolExecutor(len(settings.workers)) as pool, _sessions(commands) as sessions:
        outcomes = pool.map(_await_copy, sessions.values())
        return {name: outcome for name, outcome in zip(sessions, outcomes, strict=True) if outcome}


def _await_copy(session: _Session) -> str | None:
    try:
        code = session.process.wait(COPY_LIMIT_S)
    except subprocess.TimeoutExpired:
        return f"rsync did not end within {COPY_LIMIT_S:g} s"
    return f"rsync failed: {session.words(3)}" if code else None


class _Inspection(Value):
    """The answer to a check's first request: see ``preflight.inspect``."""

    python: tuple[Count, Count, Count]
    interfaces: tuple[tuple[str, str], ...]
    port: Port | None
    packages: dict[str, str | None]
    folder: str | None
    sources: dict[str, str]
    cuda: bool


class _Connections(Value):
    """The answer to its second request."""

    blocked: dict[str, str]  # reasons, by worker


A = TypeVar("A", _Inspection, _Connections)


def _inspection_request(name: str, settings: SshSettings) -> dict[str, object]:
    worker = settings.workers[name]
    packages = (*PACKAGES, *DATA_PACKAGES) if name == settings.data_holder else PACKAGES
    return {
        "name": name,
        "address": worker.address,
        "packages": packages,
        "sources": reached("hiertrain.worker"),
        "cuda": worker.accelerator == "cuda",
    }


def _ask_all(
    pool: ThreadPoolExecutor, sessions: Mapping[str, _Session], kind: type[A], requests: Mapping[str, object]
) -> dict[str, A | str]:
    """All answers, or in words why there is none."""
    answers = pool.map(lambda name: _ask(sessions[name], kind, requests[name]), requests)
    return dict(zip(requests, answers, strict=True))


def _ask(session: _Session, kind: type[A], request: object) -> A | str:
    limit = threading.Timer(CHECK_LIMIT_S, session.process.kill)
    limit.start()
    try:
        with suppress(BrokenPipeError):  # it says on its standard error why it is gone
            session.stdin.write(json.dumps(request).encode() + b"\n")
            session.stdin.flush()
        line = session.stdout.readline()
        if not line:
            return _last_words(session, session.process.wait())
    finally:
        limit.cancel()
    try:
        return kind.model_validate_json(line)
    except ValidationError:
        text = line.decode(errors="replace").strip()
        return f"prints {text[:60]!r} when a command is run; its login shell must print nothing of its own"


def _last_words(session: _Session, code: int) -> str:
    """Why a check ended without an answer."""
    match code:
        case 255:  # ssh's own
            return f"cannot be reached: {session.words(2)}"
        case 126 | 127:
            return f"its Python does not run: {session.words()}"
        case -9:  # after the time limit
            return f"does not answer within {CHECK_LIMIT_S:g} s"
        case _:
            return f"the check ended with status {code}: {session.words()}"


def _compare(worker: SshWorker, there: _Inspection, uncopied: str | None) -> Iterator[str]:
    """What is wrong with a machine as such."""
    own = [address for interface, address in there.interfaces if interface == worker.interface]
    if not own:
        known = ", ".join(f"{interface} ({address})" for interface, address in there.interfaces)
        yield f"interface {worker.interface!r} does not exist or has no IPv4 address; there are {known}"
    elif own[0] != worker.address:  # Gloo listens at the first
        yield f"interface {worker.interface!r} has the address {own[0]}; must be the worker's, {worker.address}"
    if there.python < OLDEST_PYTHON:
        versions = (".".join(map(str, version)) for version in (there.python, OLDEST_PYTHON))
        yield "python {!r} is version {}; must be at least {}".format(worker.python, *versions)
        return
    for package, version in there.packages.items():
        here = metadata.version(package)
        if version is None:
            yield f"package {package} is not installed for {worker.python!r}; must be version {here}"
        elif _public(version) != _public(here):
            yield f"package {package} is version {version}; must be {here} as on this machine"
    if worker.accelerator == "cuda" and there.packages["torch"] and not there.cuda:
        yield f"accelerator 'cuda': PyTorch {there.packages['torch']} finds no GPU; there must be one"
    if uncopied:
        yield f"folder {worker.folder!r}: {uncopied}; the package must be copied there"
    elif there.folder is None:
        yield f"package hiertrain is not installed for {worker.python!r}; must be, or have a folder to be copied to"
    else:
        here = preflight.file_digests(PACKAGE, reached("hiertrain.worker"))
        differing = [path for path in here if there.sources.get(path) != here[path]]
        if differing:
            more = f" and {len(differing) - 3} more files" if len(differing) > 3 else ""
            yield (
                f"package hiertrain in {there.folder} differs in {', '.join(differing[:3])}{more}; "
                "must be the same as on this machine"
            )


def _public(version: str) -> str:
    """Without the local part, such as +cpu, which says how it was built."""
    return version.partition("+")[0]
