"""What the paper and this workbench claim, against what a run came to: one row per claim, a verdict by a stated rule.

Every value is computed from the files in the run's folder, so that all of it can be had again without hardware. The
only number of the paper is the 6.9x of its abstract.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from math import nan
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from hiertrain import files, findings
from hiertrain.figures.speedups import STATED_SPEEDUP
from hiertrain.findings import BASELINES, Finding, Verdict
from hiertrain.records import Environment, load_record
from hiertrain.reproduce import NotebookRecord
from hiertrain.values import InputError

Certainty = Literal["abstract", "summary by others", "recalled, unverified", "ours"]

NOTHING_STATED = "none stated"
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
    tolerance: str  # the rule of the verdict
    verdict: Verdict
    reason: str
    where: str
    kind: str
    command: str  # executes the notebooks that the claim needs
    minutes: float  # that they took; NaN where one was not executed by that command
    hardware: str


@dataclass(frozen=True)
class Statement:
    """A claim before anything is looked at."""

    claim: str
    source: str
    certainty: Certainty
    quantity: str
    tolerance: str
    inputs: tuple[str, ...]  # files in the run's folder, named after their notebook's number
    judge: Callable[..., Finding]  # gets their content in that order: a table, or the results of a record
    paper: str = NOTHING_STATED


def claims(folder: Path, command: str) -> list[Claim]:
    """All claims, judged by what is in results/<run>/; ``command`` fills that folder.

    A claim whose notebook was not executed there, or failed since, is open. Raises InputError for a folder that is
    missing, and for a file that is although its notebook was executed; the message says how to get it back.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: is missing; this makes it: {command}")
    return [_claim(statement, folder, command) for statement in STATEMENTS]


def claims_table(rows: list[Claim]) -> pd.DataFrame:
    """One row per claim, one column per field."""
    return pd.DataFrame([asdict(row) for row in rows])


def _claim(statement: Statement, folder: Path, command: str) -> Claim:
    names = list(dict.fromkeys(map(_notebook, statement.inputs)))
    own = f"{command} --only {' '.join([*(BEFORE[name] for name in names if name in BEFORE), *names])}"
    failed = {name for name in names if (folder / "notebooks" / f"{name}.failed.ipynb").is_file()}
    missing = [path for path in statement.inputs if _notebook(path) in failed or not (folder / path).is_file()]
    for path in missing:
        if (name := _notebook(path)) not in failed and _environment(folder, name):
            raise InputError(
                f"{folder / path}: is missing, but {name} was executed; this brings it back: {command} --only {name}"
            )
    if missing:
        absent = dict.fromkeys(map(_notebook, missing))
        what = "failed or interrupted" if failed else "not run here"
        finding = Finding("open", f"{what}: notebook {' and '.join(absent)}, `{own}`")
    else:
        finding = _judged(statement, folder, own)
    environments = [environment for name in names if (environment := _environment(folder, name))]
    return Claim(
        claim=statement.claim,
        source=statement.source,
        certainty=statement.certainty,
        paper=statement.paper,
        quantity=statement.quantity,
        tolerance=statement.tolerance,
        **asdict(finding),
        command=own,
        minutes=sum(_seconds(folder, name) for name in names) / 60,
        hardware="; ".join(dict.fromkeys(f"{each.cpu}, {each.cores} cores" for each in environments)),
    )


def _judged(statement: Statement, folder: Path, command: str) -> Finding:
    try:
        return statement.judge(*(_content(folder, path) for path in statement.inputs))
    except KeyError as error:
        where = ", ".join(str(folder / path) for path in statement.inputs)
        raise InputError(
            f"{where}: there is no {error}: of another version of the workbench; this makes it anew: {command}"
        ) from error


def _notebook(path: str) -> str:
    """The notebook that makes a file."""
    return next(name for name in NOTEBOOKS if Path(path).name.startswith(name.partition("-")[0]))


def _content(folder: Path, path: str) -> pd.DataFrame | Mapping[str, Any]:
    if path.endswith(".json"):
        return load_record(folder.name, Path(path).stem, folder.parent).results
    try:
        return pd.read_csv(folder / path)
    except ValueError as error:  # pandas' own errors are ValueErrors, and so is text that is not UTF-8
        raise InputError(f"{folder / path}: not a table: {error}") from None


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


GRID = ("tables/06-speedups.csv", "tables/06-policies.csv")
STATED = f"up to {STATED_SPEEDUP}x"
REACHED = (
    f"holds if the largest observed one is at least {STATED_SPEEDUP}x; open if its interval holds that number, or if "
    "only what was too slow to be executed is predicted to reach it"
)
UNBEATEN = (
    f"holds if none is observed to be over {1 + findings.NOISE:g} times as fast; fails if one is, with quartiles "
    "apart; else open"
)
PREDICTED = (
    f"holds if {findings.ENOUGH:.0%} of the plans are within {findings.CLOSE}%, and half are within "
    f"{findings.CLOSER}%; computing is paced to the profile that predicts, so this is about messages, links and order"
)
SPEEDUPS = (
    Statement(
        f"Training is {STATED} faster than cloud-based training, read as everything on the cloud",
        "abstract",
        "abstract",
        "largest speedup over all-cloud",
        REACHED,
        GRID,
        partial(findings.reaches, "all-cloud", False),
        STATED,
    ),
    Statement(
        f"Training is {STATED} faster than cloud-based training, read as two tiers: device and cloud",
        "abstract",
        "abstract",
        "largest speedup over jointdnn",
        REACHED,
        GRID,
        partial(findings.reaches, "jointdnn", False),
        STATED,
    ),
    *(
        Statement(
            f"At the lowest rate to the cloud the speedup over {policy} is as large as the paper's for some model",
            "target of this reproduction",
            "ours",
            f"speedup over {policy} at the lowest rate",
            REACHED,
            GRID,
            partial(findings.reaches, policy, True),
            STATED,
        )
        for policy in ("all-cloud", "jointdnn")
    ),
)
PLANS = (
    Statement(
        "The scheduler's solution gives the minimum training time: nothing that trains the same is faster",
        "abstract",
        "abstract",
        "times as fast as hiertrain, the fastest other policy",
        UNBEATEN,
        GRID,
        partial(findings.unbeaten, (*BASELINES, "hiertrain+")),
    ),
    Statement(
        "The scheduler proves its solutions",
        "ours",
        "ours",
        "share of the searches that end with a proof",
        f"holds if all do: what is proven is within {findings.PROOF:g} of the plan's time",
        ("records/03-optimization.json", "records/10-scheduler.json"),
        findings.proven,
    ),
    Statement(
        "Dividing layers and samples is usually faster than the better of dividing layers only and samples only",
        "ours",
        "ours",
        f"share of the settings in which it is, by more than {findings.NOISE:.0%}",
        "holds if it is in more than half of them",
        GRID,
        findings.hybrid,
    ),
    Statement(
        "Hybrid parallelism is never slower than a baseline that trains the same",
        "a reading of the abstract",
        "ours",
        "times as fast as hiertrain, the fastest baseline",
        UNBEATEN,
        GRID,
        partial(findings.unbeaten, BASELINES),
    ),
    Statement(
        "The plan adapts to the network",
        "abstract",
        "abstract",
        "different plans over the rates to the cloud, most of all models",
        "holds if some model has more than one; where one plan is the best at all rates, nothing is to be adapted",
        ("tables/06-policies.csv",),
        findings.adapts,
    ),
    Statement(
        "Most parameters sit in the last, fully connected layers",
        "summary by others",
        "summary by others",
        "share of the parameters",
        "holds if it is more than half",
        ("tables/01-layers.csv",),
        findings.connected,
    ),
    Statement(
        "The fully connected layers stay on one worker",
        "summary by others",
        "summary by others",
        "share of the plans of several workers",
        "holds if in all of them only the root reaches these layers (where 01-models lists none: the last layer)",
        ("tables/06-policies.csv", "tables/01-layers.csv"),
        findings.kept,
    ),
)
OURS = (
    Statement(
        "Training on three machines is the same as on one",
        "ours",
        "ours",
        "largest difference of a weight early on, as a share of the largest weight",
        f"holds if at most {findings.SAME_WEIGHT:g}, and accuracies end at most {findings.SAME_ACCURACY} apart",
        ("tables/04-drift.csv", "tables/04-accuracy.csv", "records/04-training.json"),
        findings.same_training,
    ),
    Statement(
        "Every policy that sends float32 learns the same from the same mini-batches",
        "ours",
        "ours",
        "largest difference of a loss early on, as a share of it",
        f"holds if at most {findings.SAME_LOSS:g}, and accuracies end at most {findings.SAME_ACCURACY} apart",
        ("tables/08-convergence.csv", "records/08-convergence.json"),
        findings.same_losses,
    ),
    Statement(
        "JALAD's 8-bit activations cost no accuracy as far as was trained",
        "ours",
        "ours",
        "accuracy below that of one process",
        f"holds if at most {findings.SAME_ACCURACY}",
        ("tables/08-convergence.csv", "records/08-convergence.json"),
        findings.eight_bits,
    ),
    Statement(
        "The time per iteration is predicted from measured layers and links",
        "ours",
        "ours",
        f"share of the plans that are predicted within {findings.CLOSE}%",
        PREDICTED,
        ("tables/05-predictions.csv",),
        findings.predicted_plans,
    ),
    Statement(
        "The time per iteration is predicted from recorded profiles and nominal rates",
        "ours",
        "ours",
        f"share of the plans that are predicted within {findings.CLOSE}%",
        PREDICTED,
        ("tables/06-policies.csv",),
        findings.predicted_grid,
    ),
    *(
        Statement(
            f"The runtime costs no more than {rival}",
            "target of this reproduction",
            "ours",
            f"time per iteration over the rival's, {comparison}",
            f"holds if it is at most {aim:g} in every case; fails if even a lower quartile is above; else open",
            ("tables/09-benchmarks.csv",),
            partial(findings.overhead, comparison, aim),
        )
        for comparison, rival, aim in (
            ("one worker", "a plain loop", 1.03),
            ("data-parallel", "DistributedDataParallel", 1.0),
            ("layer split", "torch.distributed.pipelining", 1.0),
        )
    ),
)
STATEMENTS = (*SPEEDUPS, *PLANS, *OURS)
