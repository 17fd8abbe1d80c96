"""Run records: what ran (parameters, commit, host, versions) stands beside what came out.

A run is a folder under results/: notebooks/ (executed copies), figures/, tables/, models/ and records/ (JSON files).

What takes long is ``remembered``: its record is used again as long as it would come out the same. That is, with the
same parameters, on the same kind of processor, with the same versions of packages, by the same code of the function
that computes it and of all that its module depends on (``sources``), but for what writes records. So a change of a
figure, a report or a docstring leaves it valid, and one of the runtime, a testbed or the cost of an action does not.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import JsonValue
from pydantic_core import to_jsonable_python
from tqdm.auto import tqdm

from hiertrain import files, sources
from hiertrain.paths import RESULTS
from hiertrain.results.environment import Environment, cpu_model, environment_record, package_versions
from hiertrain.values import InputError, Name, RunError, Value, check

LAST_RUNS = 50  # that a run is compared with


class Record(Value):
    """One result with the parameters and the environment that produced it."""

    run: Name
    name: Name
    parameters: dict[str, JsonValue]
    results: dict[str, JsonValue]
    environment: Environment
    code: str | None = None  # digest of what it depends on, where it is remembered; None in records of before


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
    run: str,
    name: str,
    parameters: Mapping[str, object],
    results: Mapping[str, object],
    root: Path = RESULTS,
    code: str | None = None,
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
        "code": code,
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
    given: Sequence[str] = (),
) -> dict[str, JsonValue]:
    """The results of a record; computed and saved first, unless it is there and would come out the same (see above).

    So that a long grid goes on after an interruption where it was: one record per point. ``given``: rooms or modules
    whose part in the work is among the parameters, such as the plan for ``hiertrain.planning``. What fails is kept as
    ``recorded`` says. Raises what ``compute`` raises, and InputError unless that is a function of the package.
    """
    code = _code_of(compute, given)
    outdated = _why_outdated(run, name, parameters, code, root)
    if outdated is None:
        return load_record(run, name, root).results
    if record_path(run, name, root).exists():
        tqdm.write(f"{name}: made anew; {outdated}")
    with recorded(run, name, parameters, root):
        save_record(run, name, parameters, compute(), root, code)
    return load_record(run, name, root).results


def _code_of(compute: Callable[..., object], given: Sequence[str]) -> str:
    """Digest of what a function's results depend on. Raises InputError unless it is one of the package."""
    while isinstance(compute, partial):
        compute = compute.func
    return _code_of_module(compute.__module__, tuple(given))


@cache  # what has been imported stays, whatever becomes of the files
def _code_of_module(module: str, given: tuple[str, ...]) -> str:
    return sources.digest(sources.reached(module, apart=(*given, __name__)))


def _why_outdated(run: str, name: str, parameters: Mapping[str, object], code: str, root: Path = RESULTS) -> str | None:
    """Why a record may not be what its work would come to now, with ``code`` what it depends on; None where it is."""
    path = record_path(run, name, root)
    try:
        record = load_record(run, name, root)
    except InputError as error:
        return str(error)
    then, rule = record.environment, code.partition(":")[0]
    reasons = {
        "its parameters were others": record.parameters != _json(parameters, str(path)),
        f"it does not say by the rule {rule} which code made it": (record.code or "").partition(":")[0] != rule,
        "code that it depends on was another": record.code != code,
        "versions of packages were others": then.versions != package_versions(),
        f"it was made on another processor, {then.cpu}": then.cpu != cpu_model(),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


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
