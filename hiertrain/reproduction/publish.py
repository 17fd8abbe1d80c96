"""A run as the reference: its small files under results/reference, its numbers in the README.

Each table of the README stands between ``<!-- NAME -->`` and ``<!-- end -->``, and comes from the reference alone.
"""

import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path

import pandas as pd

from hiertrain import files
from hiertrain.experiments.grid import Setting, check_emulated, setting_of
from hiertrain.paths import ROOT
from hiertrain.reproduction.notebooks import NotebookRecord, changed_output
from hiertrain.reproduction.parameters import Job, prepare
from hiertrain.results.environment import environment_record
from hiertrain.results.records import Record
from hiertrain.results.tables import markdown_table
from hiertrain.testbeds import find_testbed
from hiertrain.testbeds.netns import missing
from hiertrain.values import InputError

PARAMETERS = "paper"  # the parameter file that makes a reference
SHOWN = ("netns", "lenet5", 128)  # the testbed, the model and the samples per mini-batch of the table of times


def publish(run: str = PARAMETERS, root: Path = ROOT) -> Path:
    """Make results/<run> the reference, fill the README's tables from it, and return the reference's folder.

    What is copied are the declared outputs of all notebooks, and all records. Raises InputError before anything is
    changed: unless ``paper.yml`` was executed whole, by one source that a commit has, on a testbed that measures.
    """
    jobs = prepare(PARAMETERS, run, results=root / "results")
    copied = {job.path(".json"): executed(job).outputs for job in jobs}
    folder, target, readme = jobs[0].folder, root / "results" / "reference", root / "README.md"
    sources = [*copied, *(folder / name for name in dict.fromkeys(chain.from_iterable(copied.values())))]
    _check_records([path for path in sources if path.parent.name == "records"])
    files.check_output(readme)
    text = filled(readme.read_text(encoding="utf-8"), readme_tables(folder))
    with tempfile.TemporaryDirectory(prefix=".reference-", dir=target.parent) as temporary:
        new, old = Path(temporary) / "new", Path(temporary) / "old"
        for path in sources:
            copy = new / path.relative_to(folder)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
        try:
            if target.exists():
                target.rename(old)
            new.rename(target)
            files.write_text(readme, text)
        except BaseException:  # interrupted, too: what was there comes back
            if old.exists():
                shutil.rmtree(target, ignore_errors=True)
                old.rename(target)
            raise
    return target


def obstacle() -> str | None:
    """Why nothing that is executed here and now could be published; None where nothing is known to prevent it."""
    environment = environment_record()
    if environment.commit is None:
        return "there is no commit of its source: git is missing, or this is no checkout"
    if environment.dirty:
        return "its source differs from the commit: tracked files are changed"
    if lacking := missing():
        return f"its times would be emulated: network namespaces need {', '.join(lacking)}"
    return None


def executed(job: Job) -> NotebookRecord:
    """The record of a notebook that was executed with the job's parameters, its outputs being as it left them.

    Raises InputError that names the file that is missing or not so.
    """
    record = files.load(NotebookRecord, job.path(".json"))
    if record.parameters != dict(job.parameters):
        raise InputError(f"{job.path('.json')}: has the parameters {record.parameters}; must be {dict(job.parameters)}")
    if changed := changed_output(job, record):
        raise InputError(f"{job.folder}: {changed}; must be as {job.name} left it")
    return record


def _check_records(paths: Sequence[Path]) -> None:
    made: dict[str | None, str] = {}  # the first record of each source
    for path in paths:
        record = files.load(Record, path)
        if record.environment.commit is None or record.environment.dirty:
            raise InputError(f"{path}: made by source that no commit has; a reference's must be of one")
        if record.results.get("kind") == "emulated":
            raise InputError(f"{path}: its times are emulated; a reference's must be measured")
        made.setdefault(record.environment.source, path.name)
    if len(made) > 1:
        raise InputError(
            f"{paths[0].parent}: {' and '.join(made.values())} were made by different source of the package; a "
            "reference must be of one. Remove the folder and reproduce it again: --force keeps records of work"
        )


def filled(text: str, tables: Mapping[str, str]) -> str:
    """``text`` with each table between its marks. Raises InputError for a table without place, and the reverse."""
    places = re.findall(r"<!-- (\w+) -->\n.*?<!-- end -->", text, flags=re.DOTALL)
    if sorted(places) != sorted(tables):
        found = ", ".join(places) or "no table"
        raise InputError(f"README.md: has places for {found}; must have one each for {', '.join(tables)}")
    for name, table in tables.items():
        start, end = f"<!-- {name} -->\n", "<!-- end -->"
        before, _, rest = text.partition(start)
        text = before + start + table + rest[rest.index(end) :]
    return text


def readme_tables(folder: Path) -> dict[str, str]:
    """The README's tables by name, in Markdown, from the folder of a whole run.

    Raises InputError when it lacks the setting that the README shows.
    """
    make: dict[str, tuple[str, Callable[[pd.DataFrame], pd.DataFrame]]] = {
        "times": ("06-policies", _times),
        "largest": ("06-largest", _largest),
        "claims": ("99-claims", _claims),
        "errors": ("05-errors", _errors),
        "accuracy": ("04-accuracy", _accuracy),
        "ratios": ("09-benchmarks", _ratios),
    }
    return {
        name: markdown_table(shown(pd.read_csv(folder / "tables" / f"{table}.csv")))
        for name, (table, shown) in make.items()
    }


def _times(policies: pd.DataFrame) -> pd.DataFrame:
    testbed, model, batch_size = SHOWN
    setting = setting_of(check_emulated(find_testbed(testbed)), model, batch_size)
    rows = policies.merge(pd.DataFrame([dict(setting)]), on=list(Setting.model_fields))
    if rows.empty:
        raise InputError(f"tables/06-policies.csv: has no rows of {setting}, which the README shows")
    ours_ms = rows.loc[rows["policy"] == "hiertrain", "observed_ms"].item()
    return pd.DataFrame(
        {
            "Policy": rows["policy"].map("`{}`".format),
            "predicted": rows["predicted_ms"].map("{:.1f}".format),
            "measured": rows["observed_ms"].map("{:.1f}".format),
            "quartiles": _interval(rows["low_ms"], rows["high_ms"], "{:.1f}"),
            "over `hiertrain`": (rows["observed_ms"] / ours_ms).map("{:.2f}x".format),
        }
    )


def _largest(speedups: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "Over": speedups["policy"].map("`{}`".format),
            "for": _joined(speedups, "{model}, {batch_size} samples as {sample_encoding}"),
            "at Mbit/s device-edge, cloud": _joined(speedups, "{device_edge_mbps:g}, {cloud_mbps:g}"),
            "predicted": speedups["predicted"].map("{:.2f}x".format),
            "measured": speedups["observed"].map("{:.2f}x".format),
            "interval": _interval(speedups["low"], speedups["high"], "{:.2f}"),
        }
    )


def _claims(claims: pd.DataFrame) -> pd.DataFrame:
    verdicts = claims["verdict"].map("**{}**".format)
    return pd.DataFrame({"Claim": claims["claim"], "of": claims["certainty"], "verdict": verdicts})


def _errors(errors: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "Model, rate": errors["case"],
            "plans": errors["plans"],
            "median error": errors["median_percent"].map("{:.1f}%".format),
            "worst error": errors["worst_percent"].map("{:.1f}%".format),
            "within 10%": errors["within_10_percent"],
        }
    )


def _accuracy(accuracies: pd.DataFrame) -> pd.DataFrame:
    shares = accuracies["test accuracy"].map("{:.1%}".format)
    return pd.DataFrame({"Trained by": accuracies["trained on"], "test accuracy": shares})


def _ratios(ratios: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "Model": _joined(ratios, "{model}, {batch_size} samples"),
            "Comparison": ratios["comparison"],
            "Rival": ratios["rival"].map("`{}`".format),
            "Ratio": ratios["ratio"].map("{:.2f}".format),
            "quartiles": _interval(ratios["low"], ratios["high"], "{:.2f}"),
        }
    )


def _joined(df: pd.DataFrame, template: str) -> list[str]:
    return [template.format_map(row) for row in df.to_dict("records")]


def _interval(low: pd.Series, high: pd.Series, number: str) -> pd.Series:
    return (low.map(number.format) + " to " + high.map(number.format)).where(low.notna(), "")
