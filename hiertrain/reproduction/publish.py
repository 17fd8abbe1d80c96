"""A run as the reference: its small files under results/reference, its numbers in the README.

Each table of the README stands between ``<!-- NAME -->`` and ``<!-- end -->``, and comes from the reference alone.
"""

import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path

import pandas as pd

from hiertrain import files
from hiertrain.experiments.grid import Setting, check_emulated, setting_of, varied
from hiertrain.paths import ROOT
from hiertrain.problem.execution import EXECUTIONS
from hiertrain.reproduction.notebooks import NotebookRecord, changed_output, digest_of_base, fingerprint, why_outdated
from hiertrain.reproduction.parameters import Job, prepare
from hiertrain.results.environment import environment_record
from hiertrain.results.records import Record
from hiertrain.results.tables import load_table, markdown_table
from hiertrain.testbeds import find_testbed
from hiertrain.testbeds.netns import missing
from hiertrain.values import InputError

PARAMETERS = "paper"  # the parameter file that makes a reference
SHOWN = ("netns", "lenet5", 128)  # the testbed, the model and the samples per mini-batch of the table of times


def publish(run: str = PARAMETERS, root: Path = ROOT) -> Path:
    """Make results/<run> the reference, fill the README's tables from it, and return the reference's folder.

    What is copied are the declared outputs of all notebooks, and all records. Raises InputError before anything is
    changed: unless ``paper.yml`` was executed whole, by source that a commit has, on a testbed that measures, and would
    be executed no more now, so that all of it is of the code as it is.
    """
    jobs = prepare(PARAMETERS, run, results=root / "results")
    copied = {job.path(".json"): executed(job).outputs for job in jobs}
    folder, target, readme = jobs[0].folder, root / "results" / "reference", root / "README.md"
    _check_current(jobs)
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
    for path in paths:
        record = files.load(Record, path)
        if record.environment.commit is None or record.environment.dirty:
            raise InputError(f"{path}: made by source that no commit has; a reference's must be of one")
        if record.results.get("kind") == "emulated":
            raise InputError(f"{path}: its times are emulated; a reference's must be measured")


def _check_current(jobs: Sequence[Job]) -> None:
    base = digest_of_base()
    for number, job in enumerate(jobs):
        if reason := why_outdated(job, fingerprint(job, base, jobs[:number])):
            raise InputError(
                f"{job.path('.json')}: {reason}; a reference must be of the code as it is. Reproduce it again"
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
    tables = folder / "tables"
    shown = {
        "times": _times(load_table(tables / "06-policies.csv")),
        "largest": _shown(
            load_table(tables / "06-largest.csv"),
            {
                "Over": "`{policy}`",
                "for": "{model}, {batch_size} samples as {sample_encoding}",
                "at Mbit/s device-edge, cloud": "{device_edge_mbps:g}, {cloud_mbps:g}",
                "predicted": "{predicted:.2f}x",
                "measured": "{observed:.2f}x",
                "interval": "{low:.2f} to {high:.2f}",
            },
        ),
        "claims": _shown(
            load_table(tables / "99-claims.csv"), {"Claim": "{claim}", "of": "{certainty}", "verdict": "**{verdict}**"}
        ),
        "errors": _shown(
            load_table(tables / "05-errors.csv"),
            {
                "Model, rate": "{case}",
                "execution": "{execution}",
                "plans": "{plans}",
                "median error": "{median_percent:.1f}%",
                "worst error": "{worst_percent:.1f}%",
                "within 10%": "{within_10_percent}",
            },
        ),
        "accuracy": _shown(
            load_table(tables / "04-accuracy.csv"),
            {"Trained by": "{trained on}", "test accuracy": "{test accuracy:.1%}"},
        ),
        "ratios": _shown(
            load_table(tables / "09-benchmarks.csv"),
            {
                "Model": "{model}, {batch_size} samples",
                "Comparison": "{comparison}",
                "Rival": "`{rival}`",
                "Ratio": "{ratio:.2f}",
                "95% interval": "{low:.2f} to {high:.2f}",
            },
        ),
    }
    return {name: markdown_table(df) for name, df in shown.items()}


def _shown(df: pd.DataFrame, columns: Mapping[str, str]) -> pd.DataFrame:
    """``columns``: by heading, how a row is written; an interval that is none is left out."""
    rows = df.to_dict("records")
    return pd.DataFrame(
        {head: [text.format_map(row).replace("nan to nan", "") for row in rows] for head, text in columns.items()}
    )


def _times(policies: pd.DataFrame) -> pd.DataFrame:
    """Every policy at the setting that the README shows, under each execution.

    The last column: how many times as fast the faster one is as hiertrain under the paper's execution.
    """
    testbed, model, batch_size = SHOWN
    setting = setting_of(check_emulated(find_testbed(testbed)), model, batch_size)
    points = pd.DataFrame([dict(point) for point in varied(setting, "execution", list(EXECUTIONS))])
    rows = policies.merge(points, on=list(Setting.model_fields))
    if rows.empty:
        raise InputError(f"tables/06-policies.csv: has no rows of {setting}, which the README shows")
    times = rows.pivot_table(["predicted_ms", "observed_ms"], "policy", "execution", sort=False)
    shown = {"Policy": [f"`{name}`" for name in times.index]}
    for execution in times["observed_ms"]:
        for by, word in (("predicted_ms", "predicted"), ("observed_ms", "measured")):
            shown[f"{execution}: {word}"] = [f"{time:.1f}" for time in times[by, execution]]
    ours = rows.loc[(rows["policy"] == "hiertrain") & (rows["execution"] == "paper"), "observed_ms"].item()
    best = rows.groupby("policy", sort=False)["observed_ms"].min()
    return pd.DataFrame({**shown, "speedup": [f"{ours / own:.2f}x" for own in best]})
