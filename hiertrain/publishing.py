"""A run as the reference: its small files under results/reference, its numbers in the README.

Each table of the README stands between ``<!-- NAME -->`` and ``<!-- end -->``, and comes from the reference alone.
"""

import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pandas as pd

from hiertrain import files
from hiertrain.experiments import Setting, check_emulated, setting_of
from hiertrain.paths import ROOT
from hiertrain.records import Record, run_folder
from hiertrain.tables import markdown_table
from hiertrain.testbeds import find_testbed
from hiertrain.values import InputError

SHOWN = ("netns", "lenet5", 128)  # the testbed, the model and the samples per mini-batch of the table of times
LEFT_OUT = ("report.html", "*.ipynb", "*.failed.json", ".*")  # large, or not a result


def publish(run: str, root: Path = ROOT) -> Path:
    """Make results/<run> the reference, fill the README's tables from it, and return the reference's folder.

    Raises InputError before anything is changed: when the run is incomplete, when its times were not measured, and
    when its records are not all of one commit without changes.
    """
    folder, target, readme = run_folder(run, root / "results"), root / "results" / "reference", root / "README.md"
    _check_commit(folder)
    text = filled(readme.read_text(encoding="utf-8"), readme_tables(folder))
    with tempfile.TemporaryDirectory(prefix=".reference-", dir=target.parent) as temporary:
        new, old = Path(temporary) / "new", Path(temporary) / "old"
        shutil.copytree(folder, new, ignore=shutil.ignore_patterns(*LEFT_OUT))
        if target.exists():
            target.rename(old)
        new.rename(target)
    files.write_text(readme, text)
    return target


def _check_commit(folder: Path) -> None:
    records = [path for path in sorted((folder / "records").glob("*.json")) if not path.match("*.failed.json")]
    if not records:
        raise InputError(f"{folder}: has no records; `hiertrain reproduce` makes a run")
    commits: dict[str, str] = {}  # the first record of each
    for path in records:
        environment = files.load(Record, path).environment
        if environment.commit is None or environment.dirty:
            raise InputError(f"{path}: made by source that no commit has; a reference must be of one commit")
        commits.setdefault(environment.commit, path.name)
    if len(commits) > 1:
        made = ", ".join(f"{name} at {commit[:7]}" for commit, name in commits.items())
        raise InputError(f"{folder}: records of several commits ({made}); a reference must be of one commit")


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
    """The README's tables by name, in Markdown, from a run's folder. Raises InputError for what is missing there."""
    make: dict[str, tuple[str, Callable[[pd.DataFrame], pd.DataFrame]]] = {
        "times": ("06-policies", _times),
        "largest": ("06-largest", _largest),
        "claims": ("99-claims", _claims),
        "errors": ("05-errors", _errors),
        "accuracy": ("04-accuracy", _accuracy),
        "ratios": ("09-benchmarks", _ratios),
    }
    return {name: markdown_table(shown(_read(folder, table))) for name, (table, shown) in make.items()}


def _read(folder: Path, table: str) -> pd.DataFrame:
    path = folder / "tables" / f"{table}.csv"
    if not path.is_file():
        raise InputError(f"{path}: is missing; a reference must be of a whole run")
    return pd.read_csv(path)


def _times(policies: pd.DataFrame) -> pd.DataFrame:
    if (kinds := set(policies["kind"].dropna())) != {"measured"}:
        found = " and ".join(sorted(kinds)) or "only predicted"
        raise InputError(f"06-policies: its times are {found}; a reference's must be measured")
    testbed, model, batch_size = SHOWN
    setting = setting_of(check_emulated(find_testbed(testbed)), model, batch_size)
    rows = policies.merge(pd.DataFrame([dict(setting)]), on=list(Setting.model_fields))
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
    return low.map(number.format) + " to " + high.map(number.format)
