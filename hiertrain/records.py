"""Run records: what ran (parameters, commit, host, versions) stands beside what came out.

A run is a folder under results/: notebooks/ (executed copies), figures/, tables/, models/ and records/ (JSON files).
"""

import hashlib
import itertools
import os
import platform
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import JsonValue
from pydantic_core import to_jsonable_python

from hiertrain import files
from hiertrain.paths import RESULTS, ROOT
from hiertrain.values import InputError, Name, RunError, Threads, Value, check

LAST_RUNS = 50  # that a run is compared with


class Environment(Value):
    """Where and with what something ran."""

    commit: str | None  # None outside a git checkout of the workbench
    dirty: bool | None  # whether tracked files differed from the commit
    source: str | None = None  # digest of the package's source files; None in records of before it was kept
    host: str
    cpu: str
    cores: Threads
    os: str
    python: str
    versions: dict[str, str]  # of the workbench and of every package that it depends on directly
    time_utc: datetime


class Record(Value):
    """One result with the parameters and the environment that produced it."""

    run: Name
    name: Name
    parameters: dict[str, JsonValue]
    results: dict[str, JsonValue]
    environment: Environment


def run_folder(run: str, root: Path = RESULTS) -> Path:
    """The folder of a run, which need not exist yet. Raises InputError for a name that is no plain folder name."""
    check("run", run, Name)
    return root / run


def new_run(root: Path) -> Path:
    """Make the folder of a run that has the next free number as its name. Raises InputError where that cannot be."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(1):
            with suppress(FileExistsError):  # another run, perhaps of a moment ago
                folder = root / f"{number:04}"
                folder.mkdir()
                return folder
    except OSError as error:
        raise InputError(f"{root}: cannot be written: {error.strerror}") from None
    raise AssertionError  # there is always another number


def check_new(path: Path, force: bool) -> None:
    """Raise InputError where a file has what an earlier run computed, unless it is to be replaced by ``force``."""
    if path.exists() and not force:
        raise InputError(f"{path}: is of an earlier run; --force replaces it, another --output keeps it")


def save_record(
    run: str, name: str, parameters: Mapping[str, object], results: Mapping[str, object], root: Path = RESULTS
) -> Path:
    """Write results/<run>/records/<name>.json and return its path.

    Parameters and results may hold plain values, our Values, dataclasses, arrays and DataFrames (a list of rows).
    Raises InputError for names that are no plain file names and for what JSON cannot hold (NaN, infinities, objects).
    """
    path = record_path(run, name, root)
    content = {
        "run": run,
        "name": name,
        "parameters": _json(parameters, f"record {run}/{name}: parameters"),
        "results": _json(results, f"record {run}/{name}: results"),
        "environment": environment_record(),
    }
    files.save(files.parse(Record, content, f"record {run}/{name}"), path)
    return path


@contextmanager
def recorded(run: str, name: str, parameters: Mapping[str, object], root: Path = RESULTS) -> Iterator[None]:
    """Keep a record also of what fails inside the ``with`` block: the error, and what was completed before it.

    It is called <name>.failed, and removed by the next success. Raises what was raised inside, and InputError before
    any work where the record could not be written.
    """
    path = record_path(run, f"{name}.failed", root)
    files.check_output(path)
    try:
        yield
    except RunError as error:
        notes = getattr(error, "__notes__", [])  # tracebacks and logs of the workers
        results = {"error": str(error), "completed": error.completed, "notes": notes}
        save_record(run, f"{name}.failed", parameters, results, root)
        error.add_note(f"what was completed: {path}")
        raise
    path.unlink(missing_ok=True)


def remembered(
    run: str,
    name: str,
    parameters: Mapping[str, object],
    compute: Callable[[], Mapping[str, object]],
    root: Path = RESULTS,
) -> dict[str, JsonValue]:
    """The results of a record; computed and saved first, unless it is there, of the same parameters and source.

    So that a long grid goes on after an interruption where it was: one record per point. What fails is kept as
    ``recorded`` says. Raises what ``compute`` raises.
    """
    results = recall(run, name, parameters, root)
    if results is not None:
        return results
    with recorded(run, name, parameters, root):
        save_record(run, name, parameters, compute(), root)
    return load_record(run, name, root).results


def recall(run: str, name: str, parameters: Mapping[str, object], root: Path = RESULTS) -> dict[str, JsonValue] | None:
    """The results of a record of the same parameters, source, versions and processor; None where there is none."""
    path = record_path(run, name, root)
    try:
        record = load_record(run, name, root)
    except InputError:  # there is none, or one of another version of the workbench
        return None
    then = record.environment
    same = record.parameters == _json(parameters, str(path)) and then.source == _source_digest()
    return record.results if same and (then.versions, then.cpu) == (package_versions(), _cpu_model()) else None


def same_runs(name: str, parameters: Mapping[str, object], root: Path) -> list[dict[str, Any]]:
    """The results of the record ``name`` of the last runs under ``root`` with these among its parameters.

    Where one is a mapping, its own entries are what must be among those of the run's.
    """
    wanted, found = _json(parameters, f"record {name}"), []
    for path in sorted(root.glob(f"*/records/{name}.json"))[-LAST_RUNS:]:
        try:
            record = files.load(Record, path)
        except InputError:  # one of another version of the workbench
            continue
        if _among(wanted, record.parameters):
            found.append(record.results)
    return found


def _among(wanted: object, there: object) -> bool:
    if isinstance(wanted, dict) and isinstance(there, dict):
        return all(key in there and _among(value, there[key]) for key, value in wanted.items())
    return wanted == there


def load_record(run: str, name: str, root: Path = RESULTS) -> Record:
    """Read a record. Raises InputError that names the file and what is wrong with it."""
    return files.load(Record, record_path(run, name, root))


def environment_record() -> Environment:
    """This machine, this Python and this checkout, now."""
    commit = _git("rev-parse", "HEAD") if _git("rev-parse", "--show-toplevel") == str(ROOT) else None
    return Environment(
        commit=commit,
        dirty=None if commit is None else _git("status", "--porcelain", "--untracked-files=no") != "",
        source=_source_digest(),
        host=platform.node(),
        cpu=_cpu_model(),
        cores=os.cpu_count() or 1,
        os=platform.platform(),
        python=platform.python_version(),
        versions=package_versions(),
        time_utc=datetime.now(UTC).replace(microsecond=0),
    )


def package_versions() -> dict[str, str]:
    """Installed versions, by name: of the workbench and of its direct dependencies but for tools of development."""
    requirements = [line for line in metadata.requires("hiertrain") or [] if not re.search(r"extra == .dev", line)]
    versions = {"hiertrain": metadata.version("hiertrain")}
    for name in sorted(re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in requirements):
        with suppress(metadata.PackageNotFoundError):  # of an extra that this machine does without
            versions[name] = metadata.version(name)
    return versions


def record_path(run: str, name: str, root: Path = RESULTS) -> Path:
    """Where a record is. Raises InputError when a name is no plain file name."""
    check("record", name, Name)
    return run_folder(run, root) / "records" / f"{name}.json"


def _json(values: Mapping[str, object], source: str) -> object:
    """The values as JSON content. NaN and infinities stay, so that the record's validation can name their field."""

    def plain(value: object) -> object:
        match value:
            case np.generic():
                return value.item()
            case np.ndarray():
                return value.tolist()
            case pd.DataFrame():
                return value.astype(object).where(value.notna(), None).to_dict("records")  # NaN means missing there
            case _:
                raise InputError(f"{source}: {type(value).__name__} cannot be stored as JSON, got {str(value)[:60]}")

    return to_jsonable_python(dict(values), fallback=plain, inf_nan_mode="constants")


@cache
def _source_digest() -> str:
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _git(*arguments: str) -> str | None:
    """What git prints about the workbench's folder; None without git or outside a repository.

    Git refuses a folder of another user, for what its settings may execute; but this very code is from there, too.
    """
    try:
        done = subprocess.run(
            ["git", "-c", "safe.directory=*", *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _cpu_model() -> str:
    """The processor's name as its system gives it, else only its architecture."""
    if platform.system() == "Darwin":
        done = subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=False)
        return done.stdout.strip() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text(encoding="utf-8", errors="replace") if cpuinfo.exists() else ""
    found = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", text, flags=re.MULTILINE)
    return found[1] if found else platform.machine()
