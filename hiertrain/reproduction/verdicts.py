"""What the paper and this workbench claim, against what a run came to: one row per claim, a verdict by a stated rule.

Every value is computed from the files in the run's folder, so that all of it can be had again without hardware. The
only number of the paper is the 6.9x of its abstract.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from math import isnan, nan
from pathlib import Path

import pandas as pd

from hiertrain import files
from hiertrain.reproduction.claims import STATEMENTS, Certainty, Statement
from hiertrain.reproduction.coverage import Coverage, Need, covered, lacks, needed
from hiertrain.reproduction.findings import Finding, Verdict
from hiertrain.reproduction.notebooks import NotebookRecord
from hiertrain.results.environment import Environment
from hiertrain.results.records import Record, load_record
from hiertrain.results.tables import load_table
from hiertrain.values import InputError

NOTEBOOKS = (
    "01-models",
    "03-optimization",
    "04-training",
    "05-prediction",
    "06-speedups",
    "08-convergence",
    "09-benchmarks",
    "10-scheduler",
)
BEFORE = {"03-optimization": "02-profiling"}  # the notebook that makes what another one reads


Content = pd.DataFrame | Record
Contents = Mapping[str, Content]  # by path, in the order of the rule's arguments
Read = Callable[[Path, str], Content]


@dataclass(frozen=True)
class Claim:
    """One row of the table."""

    claim: str
    source: str
    certainty: Certainty
    paper: str  # the value that the paper states
    quantity: str  # what the numbers are of
    predicted: float
    measured: float
    low: float
    high: float
    reference: float  # what was measured in the whole grid, or else predicted; NaN where this is the whole grid
    tolerance: str  # the rule of the verdict
    needs: str  # what of the whole grid must be there, so that there is one
    lacks: str  # what of it is not
    verdict: Verdict
    reference_verdict: str  # empty where this is the whole grid
    reason: str
    where: str
    kind: str
    command: str  # executes the notebooks that the claim needs
    minutes: float  # that they took; NaN where one was not executed by that command
    hardware: str


def claims(folder: Path, command: str, whole: Path) -> list[Claim]:
    """All claims, judged by what is in results/<run>/; ``command`` fills that folder.

    ``whole``: the folder of the run with the whole grid, which may be this one. A claim whose points this one lacks is
    "not in this grid", unless those that are here decide it. A claim whose notebook was not executed here, or failed
    since, is open. Raises InputError for a folder that is missing, and for a file that is although its notebook was
    executed; the message says how to get it back.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: is missing; this makes it: {command}")
    read = cache(_content)  # a table is the input of many claims
    return [_claim(statement, folder, command, whole, read) for statement in STATEMENTS]


def claims_table(rows: list[Claim]) -> pd.DataFrame:
    """One row per claim, one column per field."""
    return pd.DataFrame([asdict(row) for row in rows])


def _claim(statement: Statement, folder: Path, command: str, whole: Path, read: Read) -> Claim:
    names = list(dict.fromkeys(map(_notebook, statement.inputs)))
    own = f"{command} --only {' '.join([*(BEFORE[name] for name in names if name in BEFORE), *names])}"
    absent = _absent(statement, folder, command)
    reference = None if whole == folder else {path: read(whole, path) for path in statement.inputs}
    if absent:
        failed = any(_failed(folder, name) for name in absent)
        what = "failed or interrupted" if failed else "not run here"
        finding, coverages = Finding("open", f"{what}: notebook {' and '.join(absent)}, `{own}`"), []
    else:
        here = {path: read(folder, path) for path in statement.inputs}
        finding, coverages = _judged(statement, here, folder, own, reference)
    there = _judge(statement, reference, whole, own) if reference else None
    environments = [environment for name in names if (environment := _environment(folder, name))]
    return Claim(
        claim=statement.claim,
        source=statement.source,
        certainty=statement.certainty,
        paper=statement.paper,
        quantity=statement.quantity,
        reference=_value(there) if there else nan,
        reference_verdict=there.verdict if there else "",
        tolerance=statement.tolerance,
        needs=needed(statement.needs, statement.decided),
        lacks=lacks(statement.needs, coverages),
        **asdict(finding),
        command=own,
        minutes=sum(_seconds(folder, name) for name in names) / 60,
        hardware="; ".join(dict.fromkeys(f"{each.cpu}, {each.cores} cores" for each in environments)),
    )


def _value(finding: Finding) -> float:
    return finding.predicted if isnan(finding.measured) else finding.measured


def _absent(statement: Statement, folder: Path, command: str) -> list[str]:
    """The notebooks that were not executed, or failed. Raises InputError for a file of one that was."""
    missing = [path for path in statement.inputs if not (folder / path).is_file()]
    for path in missing:
        if not _failed(folder, name := _notebook(path)) and _environment(folder, name):
            raise InputError(
                f"{folder / path}: is missing, but {name} was executed; this brings it back: {command} --only {name}"
            )
    names = dict.fromkeys(map(_notebook, statement.inputs))
    return [name for name in names if _failed(folder, name) or name in map(_notebook, missing)]


def _failed(folder: Path, name: str) -> bool:
    return (folder / "notebooks" / f"{name}.failed.ipynb").is_file()


def _judged(
    statement: Statement, here: Contents, folder: Path, command: str, reference: Contents | None
) -> tuple[Finding, Sequence[Coverage]]:
    """By all that is here; where points are missing, by those that are not, if they can decide it."""
    finding = _judge(statement, here, folder, command)
    if reference is None:
        return finding, []
    coverages = [_covered(need, here, reference, folder, command) for need in statement.needs]
    short = [need for need, coverage in zip(statement.needs, coverages, strict=True) if not coverage.whole]
    if not short:
        return finding, coverages
    if statement.decided and all(need.divisible for need in short):
        part = dict(here)
        for need, coverage in zip(statement.needs, coverages, strict=True):
            if need.divisible:
                part[need.source] = _with_rows(part[need.source], need, coverage.here)
        found = _judge(statement, part, folder, command)
        if found.verdict == statement.decided:
            return found, coverages
    return replace(finding, verdict="not in this grid", reason=f"what is here: {finding.reason}"), coverages


def _judge(statement: Statement, contents: Contents, folder: Path, command: str) -> Finding:
    try:
        return statement.judge(
            *(content.results if isinstance(content, Record) else content for content in contents.values())
        )
    except KeyError as error:
        raise _of_another_version(list(contents), folder, command, error) from error


def _covered(need: Need, here: Contents, reference: Contents, folder: Path, command: str) -> Coverage:
    try:
        return covered(need, _rows(here[need.source], need), _rows(reference[need.source], need))
    except KeyError as error:
        raise _of_another_version([need.source], folder, command, error) from error


def _of_another_version(paths: Sequence[str], folder: Path, command: str, error: KeyError) -> InputError:
    where = ", ".join(str(folder / path) for path in paths)
    return InputError(
        f"{where}: there is no {error}: of another version of the workbench; this makes it anew: {command}"
    )


def _rows(content: Content, need: Need) -> pd.DataFrame:
    """The rows that a need is about: a table, or a list of a record's results; of a parameter the only one."""
    if isinstance(content, pd.DataFrame):
        return content
    found = content.results.get(need.table, content.parameters.get(need.table, []))
    return pd.DataFrame(found if isinstance(found, list) else [found], columns=None if found else list(need.columns))


def _with_rows(content: Content, need: Need, rows: pd.DataFrame) -> Content:
    """The content with other rows there."""
    if isinstance(content, pd.DataFrame):
        return rows
    return content.model_copy(update={"results": {**content.results, need.table: rows.to_dict("records")}})


def _notebook(path: str) -> str:
    """The notebook that makes a file."""
    return next(name for name in NOTEBOOKS if Path(path).name.startswith(name.partition("-")[0]))


def _content(folder: Path, path: str) -> Content:
    if path.endswith(".json"):
        return load_record(folder.name, Path(path).stem, folder.parent)
    return load_table(folder / path)


def _environment(folder: Path, name: str) -> Environment | None:
    """Where a notebook was executed; None if it was not. Without the driver, its own record tells."""
    if (folder / "notebooks" / f"{name}.json").is_file():
        return files.load(NotebookRecord, folder / "notebooks" / f"{name}.json").environment
    if (folder / "records" / f"{name}.json").is_file():
        return load_record(folder.name, name, folder.parent).environment
    return None


def _seconds(folder: Path, name: str) -> float:
    path = folder / "notebooks" / f"{name}.json"
    return files.load(NotebookRecord, path).seconds if path.is_file() else nan
