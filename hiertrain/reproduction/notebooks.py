"""Executes the notebooks with the parameters of one file, and skips what is already there and unchanged.

``hiertrain reproduce paper`` runs the notebooks that notebooks/parameters/paper.yml lists, in its order, into
results/<run>/. Executed copies go to results/<run>/notebooks/, each with a record of what it was made from beside it.

A notebook is executed again when its own code or parameters have changed, code of the package that it depends on
(``sources``), the versions below, testbeds and profiles, or what notebooks before it have put out, but for figures.
Its prose, and reports, change nothing. What is executed again measures only what is no longer ``remembered``, so that a
figure is drawn anew from the measurements that are there.
"""

import base64
import hashlib
import json
import logging
import os
import platform
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path, PurePosixPath

import nbformat
import papermill
from ipykernel.kernelspec import get_kernel_dict
from papermill.exceptions import PapermillExecutionError, strip_color
from pydantic import JsonValue
from tqdm import tqdm

from hiertrain import files, sources
from hiertrain.paths import DATA, NOTEBOOKS, RESULTS
from hiertrain.reproduction.parameters import Job, check_known, prepare
from hiertrain.results.environment import Environment, environment_record, package_versions
from hiertrain.values import ON_DEMAND, InputError, RunError, Seconds, Value

MISSING = "missing"  # stands for the digest of a file that is not there


class NotebookError(RunError):
    """A notebook failed: an error in a cell, a dead kernel, or an output that did not appear."""


class NotebookRecord(Value):
    """Stands beside an executed notebook; only success is recorded."""

    fingerprint: str
    parameters: dict[str, JsonValue]
    outputs: dict[str, str]  # sha256 by path; what is declared, and the notebook's records
    seconds: Seconds
    environment: Environment


@dataclass(frozen=True)
class Outcome:
    """What became of one notebook."""

    name: str
    ran: bool  # False when it was skipped because nothing had changed
    seconds: float


def reproduce(
    parameter_file: str | Path,
    run: str | None = None,
    only: Sequence[str] | None = None,
    force: bool = False,
    notebooks: Path = NOTEBOOKS,
    results: Path = RESULTS,
) -> list[Outcome]:
    """Execute the notebooks of a parameter file (a path, or a name in notebooks/parameters) that need it.

    ``run`` overrides the file's run; ``only`` restricts to some notebooks; ``force`` executes what is unchanged too.
    Raises InputError before anything is executed, NotebookError when a notebook fails (later ones are not tried).
    """
    jobs = prepare(parameter_file, run, notebooks, results)
    if jobs[0].folder.name == "reference":
        raise InputError("run 'reference': is committed; choose another one, which `hiertrain publish` makes it")
    for name in only or ():
        check_known(f"{parameter_file}: notebook", name, [job.name for job in jobs])
    files.check_output(jobs[0].path(".ipynb"))
    base = digest_of_base(notebooks)
    outcomes: list[Outcome] = []
    begin = time.perf_counter()
    chosen = [job for job in jobs if only is None or job.name in only]
    with tqdm(total=sum(job.cells for job in chosen), unit="cell", disable=None, leave=False) as bar, own_kernel():
        for job in chosen:
            outcome = _bring_up_to_date(job, fingerprint(job, base, jobs[: jobs.index(job)]), force, bar)
            tqdm.write(f"{job.name:<24} {'ran' if outcome.ran else 'unchanged':<10} {outcome.seconds:8.1f} s")
            outcomes.append(outcome)
    ran = sum(outcome.ran for outcome in outcomes)
    total_s = time.perf_counter() - begin
    tqdm.write(f"{ran} of {len(outcomes)} notebooks executed in {total_s:.1f} s; results are in {jobs[0].folder}")
    return outcomes


def digest_of_base(notebooks: Path = NOTEBOOKS) -> str:
    """One digest of what every notebook builds on besides code: the versions below it, testbeds and profiles."""
    folders = [(notebooks / "testbeds").glob("*.yml"), (DATA / "profiles").glob("*.json")]
    given = {path.name: _digest_of_file(path) for folder in folders for path in sorted(folder)}
    return _digest(platform.python_version(), package_versions(), given)


def fingerprint(job: Job, base: str, before: Sequence[Job] = ()) -> str:
    """Digest of all that an execution depends on, by the rule above. ``before``: the notebooks before it in this run.

    Code that is no Python counts by its text, and is taken to use nothing. Raises InputError for no notebook.
    """
    cells = nbformat.read(job.source, as_version=4).cells
    code = "\n\n".join(cell.source for cell in cells if cell.cell_type == "code").encode()
    try:
        own, used = sources.read(code).meaning, sources.reached_by(code)
    except SyntaxError:
        own, used = code.decode(), []
    earlier = [job.folder / output for early in before for output in early.outputs if not _is_figure(output)]
    inputs = [_digest_of_input(path) for path in (*earlier, *job.reads)]
    return f"{sources.RULE}:{_digest(base, own, sources.digest(used), dict(job.parameters), inputs)}"


def _is_figure(output: str) -> bool:
    return PurePosixPath(output).match("figures/*")


def _digest_of_input(path: Path) -> str:
    """Of a file; of a record without when and where it was made, which no notebook reads for its results."""
    if path.parent.name == "records" and path.is_file():
        try:
            return _digest(json.loads(path.read_bytes()) | {"environment": None})
        except (ValueError, TypeError):  # no record: whoever reads it says so
            pass
    return _digest_of_file(path)


def _digest(*content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _digest_of_file(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else MISSING


def _digests(job: Job, outputs: Iterable[str]) -> dict[str, str]:
    return {output: _digest_of_file(job.folder / output) for output in dict.fromkeys(outputs)}


def _records_of(job: Job) -> list[str]:
    """The records that carry the notebook's number: measurements that its other outputs were made from."""
    found = (job.folder / "records").glob(f"{job.name.partition('-')[0]}-*.json")
    return sorted(f"records/{path.name}" for path in found if not path.name.endswith(".failed.json"))


def _bring_up_to_date(job: Job, now: str, force: bool, bar: tqdm) -> Outcome:
    """Execute a notebook unless it was executed in just this way and its outputs are as it left them."""
    begin = time.perf_counter()
    reason = "asked for" if force else why_outdated(job, now)
    if reason is None:
        _renew_prose(job)
        bar.update(job.cells)
        return Outcome(job.name, ran=False, seconds=time.perf_counter() - begin)
    bar.write(f"{job.name:<24} starts: {reason}")
    # Should this execution fail, nothing says that the notebook succeeded.
    for success in (job.path(".json"), job.path(".ipynb"), job.folder / "report.html"):
        success.unlink(missing_ok=True)
    bar.set_description(job.name)
    before = {output: _version(job.folder / output) for output in job.outputs}
    try:
        _execute(job, bar)
        _check_outputs(job, before)
        _check_figures(job)
    except KeyboardInterrupt:
        bar.write(f"{job.name}: interrupted; finished notebooks are kept, and the next run goes on here")
        raise
    job.path(".failed.ipynb").replace(job.path(".ipynb"))
    seconds = time.perf_counter() - begin
    record = NotebookRecord(
        fingerprint=now,
        parameters=dict(job.parameters),
        outputs=_digests(job, [*job.outputs, *_records_of(job)]),
        seconds=seconds,
        environment=environment_record(),
    )
    files.save(record, job.path(".json"))
    return Outcome(job.name, ran=True, seconds=seconds)


def why_outdated(job: Job, now: str) -> str | None:
    """Why the notebook must be executed; None when it was executed in just this way and nothing has changed since.

    ``now``: its ``fingerprint``.
    """
    if not (job.path(".json").is_file() and job.path(".ipynb").is_file()):
        return "it has not been executed yet"
    try:
        record = files.load(NotebookRecord, job.path(".json"))
    except InputError:
        return "its record is of another version of the workbench"
    if not record.fingerprint.startswith(f"{sources.RULE}:"):
        return f"its record does not say by the rule {sources.RULE} what it was made from"
    if record.fingerprint != now:
        return "the code, its parameters or what it builds on have changed"
    return changed_output(job, record)


def _renew_prose(job: Job) -> None:
    """Give an executed copy the cells as they are now, which mean what was executed, and keep what these put out."""
    copy, cells = nbformat.read(job.path(".ipynb"), as_version=4), []
    before = nbformat.writes(copy)
    injected = [cell for cell in copy.cells if "injected-parameters" in cell.metadata.get("tags", [])]
    executed = iter([cell for cell in copy.cells if cell.cell_type == "code" and cell not in injected])
    for cell in nbformat.read(job.source, as_version=4).cells:
        if cell.cell_type == "code" and (done := next(executed, None)):
            cell.outputs, cell.execution_count, cell.metadata = done.outputs, done.execution_count, done.metadata
        cells += [cell, *(injected if "parameters" in cell.metadata.get("tags", []) else ())]
    copy.cells = cells
    if (after := nbformat.writes(copy)) != before:
        files.write_text(job.path(".ipynb"), after)


def changed_output(job: Job, record: NotebookRecord) -> str | None:
    """The first output that is not as the notebook left it, and how; None when all are."""
    for output, digest in _digests(job, [*job.outputs, *record.outputs]).items():
        if digest == MISSING:
            return f"{output} is missing"
        if digest != record.outputs.get(output):
            return f"{output} is not as the notebook left it"
    return None


def _execute(job: Job, bar: tqdm) -> None:
    """Run all cells. The copy is called .failed.ipynb until it has succeeded. Raises NotebookError."""
    done = bar.n
    at = -1  # index of the current cell in the copy
    source = ""
    copy = job.path(".failed.ipynb")

    def on_cell_start(cell: nbformat.NotebookNode, cell_index: int) -> None:
        nonlocal at, source
        at, source = cell_index, cell.source
        bar.update(done + min(cell_index, job.cells) - bar.n)

    def failure(what: str) -> NotebookError:
        first_line = next(iter(source.strip().splitlines()), "")
        where = f"{job.name}: cell {at + 1} of the executed copy `{first_line}`" if at >= 0 else job.name
        return NotebookError(f"{where}: {what}\nthe executed copy is {copy}")

    try:
        papermill.execute_notebook(
            job.source,
            copy,
            dict(job.parameters),
            kernel_name="python3",
            progress_bar=False,
            cwd=job.source.parent,
            on_cell_start=on_cell_start,
        )
    except PapermillExecutionError as error:
        at += 2  # papermill has put one note at the top and one above the failing cell
        last_lines = strip_color("\n".join(error.traceback)).splitlines()[-8:]
        if last_lines[-1:] == [ON_DEMAND]:  # the message, which says all, and stands before them
            last_lines = []
        raise failure("\n    ".join([f"{error.ename}: {error.evalue}", *last_lines])) from None
    except RuntimeError as error:  # nbclient's, when the kernel is gone or never came up
        raise failure(f"the kernel died: {error}") from None
    bar.update(done + job.cells - bar.n)


def _version(path: Path) -> tuple[int, int] | None:
    """Changes whenever a file is rewritten, even with the same content; None for no file."""
    if not path.is_file():
        return None
    status = path.stat()
    return status.st_mtime_ns, status.st_ino


def _check_outputs(job: Job, before: Mapping[str, tuple[int, int] | None]) -> None:
    """Raise NotebookError unless every declared output is there and was written by this execution."""
    for output, version in before.items():
        now = _version(job.folder / output)
        if now is None:
            raise NotebookError(f"{job.name}: output {output} was not produced in {job.folder}")
        if now == version:
            raise NotebookError(f"{job.name}: output {output} was there before and was not rewritten in {job.folder}")


def _check_figures(job: Job) -> None:
    """Raise NotebookError unless the executed copy shows every figure once, as it was saved, its caption below it."""
    cells = nbformat.read(job.path(".failed.ipynb"), as_version=4).cells
    outputs = [output.get("data", {}) for cell in cells for output in cell.get("outputs", ())]
    below = {}  # what follows each image
    for shown, following in zip_longest(outputs, outputs[1:], fillvalue={}):
        if "image/png" in shown:
            below.setdefault(base64.b64decode(shown["image/png"]), []).append(following)
    for output in job.outputs:
        if PurePosixPath(output).match("figures/*.png"):
            found = below.pop((job.folder / output).read_bytes(), [])
            if len(found) != 1:
                raise NotebookError(f"{job.name}: {output} is shown {len(found)} times; save_figure shows it once")
            if not found[0].get("text/markdown"):
                raise NotebookError(f"{job.name}: {output} is shown without its caption below it, as save_figure does")
    if below:
        raise NotebookError(f"{job.name}: {len(below)} images that it shows are none of its outputs in {job.folder}")


@contextmanager
def own_kernel() -> Iterator[None]:
    """Make "python3" mean this very interpreter, whatever kernels are installed, and keep the libraries' logs quiet."""
    # A kernel that is interrupted because it has ended its work would log an error.
    specification = json.dumps(get_kernel_dict(extra_arguments=["--log-level=CRITICAL"]))
    saved = {name: os.environ.get(name) for name in ("JUPYTER_PATH", "PYDEVD_DISABLE_FILE_VALIDATION")}
    logger = logging.getLogger("papermill")
    with tempfile.TemporaryDirectory(prefix="hiertrain-kernel-") as folder:
        files.write_text(Path(folder) / "kernels" / "python3" / "kernel.json", specification)
        os.environ["JUPYTER_PATH"] = os.pathsep.join(filter(None, [folder, saved["JUPYTER_PATH"]]))
        os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"  # the debugger's warning about frozen modules
        was_disabled, logger.disabled = logger.disabled, True  # its errors reach the user as ours
        try:
            yield
        finally:
            logger.disabled = was_disabled
            for name, value in saved.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value
