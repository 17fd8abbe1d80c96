"""One self-contained page per run: claims, environment, time, every figure with its caption and every table.

All of it comes from the run's folder: what ``reproduction.notebooks`` recorded, and the files that the notebooks wrote.
"""

import base64
import html
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from hiertrain import files
from hiertrain.figures import VERDICT_COLOURS, load_caption
from hiertrain.reproduction.notebooks import NotebookRecord
from hiertrain.results.alarms import Alarm, loaded
from hiertrain.results.records import Record
from hiertrain.values import InputError

CLAIMS = "tables/99-claims.csv"
# Of the claims' many columns, those of their table; the others stand below it, claim by claim.
SUMMARY = ["claim", "verdict", "paper", "quantity", "predicted", "measured", "low", "high", "reference", "kind"]
LONGEST_TABLE = 40  # rows; of a longer one only the first are shown
MOST_COLUMNS = 10  # of a table whose words are kept whole on paper


@dataclass(frozen=True)
class Image:
    """A figure as it is shown."""

    output: str  # path inside the run's folder
    caption: str
    png: str  # base64


@dataclass(frozen=True)
class Table:
    """A table as it is shown."""

    output: str
    html: str
    rows: int
    shown: int


@dataclass(frozen=True)
class Claims:
    """All claims at a glance, and then what else there is to say of each."""

    table: Table
    details: list[dict[str, str]]  # by column: the claim, its verdict, and all that is not in the table
    verdicts: dict[str, int]  # how many claims have each
    reduced: int  # how many claims lack points of the whole grid


@dataclass(frozen=True)
class Section:
    """What one notebook asked, and what came out."""

    name: str
    title: str
    question: str  # HTML; empty where the notebook asks none
    images: list[Image]
    tables: list[Table]


def write_report(folder: Path, notebooks: Sequence[str], command: str) -> Path:
    """Write results/<run>/report.html and return its path. The same files give the same bytes.

    ``notebooks``: names in the order of their sections. ``command``: what executes them; the page names it.
    Raises InputError for a file that is missing, and then says that the command brings it back.
    """
    records: dict[str, NotebookRecord] = {}
    for name in notebooks:
        _check_present(folder, [f"notebooks/{name}.json", f"notebooks/{name}.ipynb"], command)
        records[name] = files.load(NotebookRecord, folder / "notebooks" / f"{name}.json")
        _check_present(folder, list(records[name].outputs), command)
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    page = templates.get_template("report.html.jinja").render(
        run=folder.name,
        command=command,
        colours={_class(verdict): colour for verdict, colour in VERDICT_COLOURS.items()},
        claims=_claims(folder) if any(CLAIMS in record.outputs for record in records.values()) else None,
        alarms=[(name, alarm) for name, record in records.items() for alarm in _alarms(folder, name, record)],
        environment=_environment(records),
        records=records,
        total_s=sum(record.seconds for record in records.values()),
        sections=[_section(folder, name, list(record.outputs)) for name, record in records.items()],
    )
    path = folder / "report.html"
    files.write_text(path, page)
    return path


def _check_present(folder: Path, outputs: Sequence[str], command: str) -> None:
    for output in outputs:
        if not (folder / output).is_file():
            raise InputError(f"{folder / output}: is missing; this brings it back: {command}")


def _alarms(folder: Path, name: str, record: NotebookRecord) -> list[Alarm]:
    """What a notebook kept in its own record. Raises InputError for a record that is none."""
    path = f"records/{name}.json"
    content = files.load(Record, folder / path).results.get("alarms") if path in record.outputs else None
    return loaded(content) if isinstance(content, list) else []


def _section(folder: Path, name: str, outputs: Sequence[str]) -> Section:
    """Title and question stand in the notebook's first cell; the claims are shown elsewhere."""
    tables = [output for output in outputs if output.startswith("tables/") and output != CLAIMS]
    text: str = nbformat.read(folder / "notebooks" / f"{name}.ipynb", as_version=4).cells[0].source
    question = re.search(r"\*\*Question\.\*\* (.+?)(?:\n\n|$)", text, flags=re.DOTALL)
    return Section(
        name,
        title=text.partition("\n")[0].removeprefix("# "),
        question=_inline(question[1]) if question else "",
        images=[_image(folder, output) for output in outputs if output.endswith(".png")],
        tables=[_table(output, _read(folder / output)) for output in tables],
    )


def _inline(markdown: str) -> str:
    """The HTML of a paragraph in which nothing but code is marked."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(markdown))


def _image(folder: Path, output: str) -> Image:
    content = base64.b64encode((folder / output).read_bytes()).decode("ascii")
    return Image(output, load_caption(folder / output), content)


def _read(path: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(path, keep_default_na=False, na_values=[""])
    except pd.errors.EmptyDataError:  # neither rows nor columns
        return pd.DataFrame()


def _claims(folder: Path) -> Claims:
    """Raises InputError for a table that is not that of the claims."""
    df = _read(folder / CLAIMS)
    for column in [*SUMMARY, "lacks"]:
        if column not in df.columns:
            raise InputError(f"{folder / CLAIMS}: column {column!r} is missing")
    columns = ["claim", "verdict", *(column for column in df.columns if column not in SUMMARY)]
    details = [{str(key): _text(value) for key, value in row.dropna().items()} for _, row in df[columns].iterrows()]
    verdicts = {verdict: int((df["verdict"] == verdict).sum()) for verdict in VERDICT_COLOURS}
    return Claims(_table(CLAIMS, df[SUMMARY]), details, verdicts, reduced=int(df["lacks"].notna().sum()))


def _table(output: str, df: pd.DataFrame) -> Table:
    """The first rows; cells that hold a verdict get its word as their class, long ones another."""
    shown = df.head(LONGEST_TABLE)
    if shown.empty:
        return Table(output, "", rows=0, shown=0)
    width = "wide" if len(df.columns) > MOST_COLUMNS else None
    text = shown.to_html(index=False, border=0, classes=width, justify="left", na_rep="", float_format=_number)
    verdicts = "|".join(VERDICT_COLOURS)
    text = re.sub(f"<td>({verdicts})</td>", lambda cell: f'<td class="{_class(cell[1])}">{cell[1]}</td>', text)
    text = re.sub(r"<td>(?=[^<]{40})", '<td class="prose">', text)  # which a narrow column would make very tall
    return Table(output, text, rows=len(df), shown=len(shown))


def _class(verdict: str) -> str:
    return verdict.replace(" ", "-")


def _text(value: object) -> str:
    return _number(value) if isinstance(value, float) else str(value)


def _number(value: float) -> str:
    """Four digits, and no exponent for what has more before the point."""
    return f"{value:.0f}" if 1e3 <= abs(value) < 1e15 else f"{value:.4g}"


def _environment(records: Mapping[str, NotebookRecord]) -> dict[str, dict[str, list[str]]]:
    """For each property of the environments its values, each with the notebooks that had it."""
    found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for name, record in records.items():
        environment = record.environment
        commit = environment.commit or "none: no git checkout"
        for key, value in {
            "commit": f"{commit}, with uncommitted changes" if environment.dirty else commit,
            "processor": environment.cpu,
            "cores": str(environment.cores),
            "system": environment.os,
            "Python": environment.python,
            "packages": ", ".join(f"{package} {version}" for package, version in environment.versions.items()),
        }.items():
            found[key][value].append(name)
    return {key: dict(values) for key, values in found.items()}
