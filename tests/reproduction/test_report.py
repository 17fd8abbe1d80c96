"""The report, on a small made-up run: it shows all that the run has, needs nothing else, and is valid HTML."""

import base64
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

import nbformat
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nbformat.v4 import new_markdown_cell, new_notebook
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from hiertrain import files
from hiertrain.figures import VERDICT_COLOURS, load_caption
from hiertrain.reproduction.notebooks import NotebookRecord
from hiertrain.reproduction.report import LONGEST_TABLE, MOST_COLUMNS, SUMMARY, write_report
from hiertrain.reproduction.verdicts import Claim
from hiertrain.results.alarms import lateness, misses
from hiertrain.results.environment import Environment
from hiertrain.results.records import save_record
from hiertrain.values import InputError

COMMAND = "hiertrain reproduce small --run try"
VOID = {"meta", "img", "br", "link", "input", "hr"}
CLAIMS = pd.DataFrame(
    {
        "claim": ["faster <than> the cloud", "as accurate", "less private & more", "larger"],
        "paper": ["up to 7x", "", "", ""],
        "quantity": "a <ratio>",
        "predicted": 7.125,
        "measured": [7.25, 0.5, None, 3],
        "low": 0.25,
        "high": 8.5,
        "reference": [7.375, None, None, 6.625],
        "kind": "measured",
        "lacks": ["", "", "", "6 of 7 points"],
        "verdict": ["holds", "fails", "open", "not in this grid"],
        "reason": ["so it <is>", 'it is "not"', "", ""],
        "minutes": [1.23456, None, None, None],
    }
)
LONG = pd.DataFrame({"number": range(1, LONGEST_TABLE + 3), "square": [0.1234567 * n * n for n in range(42)]})


class Element(NamedTuple):
    tag: str
    attributes: dict[str, str | None]
    texts: list[str]  # its own, without that of the elements inside


class Page(HTMLParser):
    """A parsed page: its elements in order. Refuses tags that do not match."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[Element] = []
        self.elements: list[Element] = []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, dict(attrs), [])
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.open[-1].texts.append(data)

    def texts(self, tag: str = "", of_class: str = "") -> list[str]:
        """What the elements of a tag or class hold, with the spaces of a browser."""
        chosen = (e for e in self.elements if e.tag == tag or e.attributes.get("class") == of_class)
        return [" ".join("".join(element.texts).split()) for element in chosen]

    def attributes(self, name: str) -> list[str]:
        return [value for element in self.elements if (value := element.attributes.get(name)) is not None]


def environment(commit: str = "abc", dirty: bool = False) -> Environment:
    return Environment(
        commit=commit,
        dirty=dirty,
        host="somewhere",
        cpu="A Processor 3000",
        cores=2,
        os="Linux-1",
        python="3.11.7",
        versions={"hiertrain": "0.1.0", "torch": "2.13.0"},
        time_utc=datetime(2026, 1, 2, 3, 4, tzinfo=UTC),
    )


def add_notebook(
    folder: Path, name: str, outputs: Sequence[str], question: str = "", seconds: float = 90.0, **changes
) -> None:
    """The executed copy of a notebook and its record; the outputs are added by others."""
    cells = [new_markdown_cell(f"# {name} in full{question}")]
    files.write_text(folder / "notebooks" / f"{name}.ipynb", nbformat.writes(new_notebook(cells=cells)))
    record = NotebookRecord(
        fingerprint="f",
        parameters={},
        outputs=dict.fromkeys(outputs, "digest"),
        seconds=seconds,
        environment=environment(**changes),
    )
    files.save(record, folder / "notebooks" / f"{name}.json")


def add_figure(folder: Path, name: str, caption: str) -> None:
    text = PngInfo()
    text.add_text("Description", caption)
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    Image.new("L", (2, 1)).save(folder / "figures" / f"{name}.png", pnginfo=text)
    for ending in ("pdf", "csv"):
        files.write_text(folder / "figures" / f"{name}.{ending}", "not shown")


def add_table(folder: Path, name: str, df: pd.DataFrame) -> None:
    files.write_text(folder / "tables" / f"{name}.csv", df.to_csv(index=False))


def make_run(root: Path) -> Path:
    """Three notebooks, not in the order of their names; the last one makes the claims."""
    folder = root / "try"
    question = "\n\n**Question.** Is `a < b`,\nand why?\n\n**Inputs.** None."
    figure = [f"figures/02-times.{ending}" for ending in ("png", "pdf", "csv")]
    add_notebook(folder, "02-second", [*figure, "tables/02-long.csv", "solution.json"], question)
    add_notebook(folder, "01-first", ["figures/01-sizes.png", "tables/01-empty.csv"], seconds=33)
    add_notebook(folder, "99-claims", ["tables/99-claims.csv", "tables/99-exact.csv"], seconds=57)
    files.write_text(folder / "solution.json", "{}")
    add_figure(folder, "02-times", 'Times "<per iteration>" & more, measured.')
    add_figure(folder, "01-sizes", "Sizes ≤ 5. Exact.")
    add_table(folder, "02-long", LONG)
    files.write_text(folder / "tables" / "01-empty.csv", "\n")
    add_table(folder, "99-claims", CLAIMS)
    add_table(folder, "99-exact", pd.DataFrame({"n": range(LONGEST_TABLE)}))
    return folder


ORDER = ["02-second", "01-first", "99-claims"]


def report_of(folder: Path, notebooks: Sequence[str] = ORDER) -> Page:
    path = write_report(folder, notebooks, COMMAND)
    assert path == folder / "report.html"
    return Page(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_run(tmp_path)


def test_everything_is_shown_once_in_the_order_of_the_parameter_file(folder):
    page = report_of(folder)
    assert page.texts("h1") == ["HierTrain, reproduced: try"]
    titles = [f"{name} in full" for name in ORDER]
    assert page.texts("h2") == ["Claims", "Environment and time", *titles]
    assert "<p>Is <code>a &lt; b</code>,\nand why?</p>" in page.source
    pictures = [element.attributes for element in page.elements if element.tag == "img"]
    for attributes, name, caption in zip(pictures, ["02-times", "01-sizes"], page.texts("figcaption"), strict=True):
        png = folder / "figures" / f"{name}.png"
        assert attributes["alt"] == caption == load_caption(png)
        assert base64.b64decode((attributes["src"] or "").partition(",")[2]) == png.read_bytes()
    shown = [text for text in page.texts("code") if text.startswith("tables/")]
    assert Counter(shown) == {"tables/02-long.csv": 2, "tables/01-empty.csv": 1, "tables/99-exact.csv": 1}
    assert len(page.texts("table")) == 5  # claims, environment, times, two of notebooks
    assert page.source.count(COMMAND) == 1


def test_claims_stand_first_and_their_verdicts_have_classes(folder):
    page = report_of(folder)
    first = re.search(r"<table.*?</table>", page.source, flags=re.DOTALL)
    assert first
    assert "faster &lt;than&gt; the cloud" in first[0]
    assert page.texts("th")[: len(SUMMARY)] == SUMMARY
    for verdict in CLAIMS["verdict"]:
        name = verdict.replace(" ", "-")
        assert page.texts(of_class=name) == [verdict]
        assert f".{name} {{ background: {VERDICT_COLOURS[verdict]};" in page.source
    assert "7.25" in page.texts("td")
    assert "8.5" in page.texts("td")


def test_what_else_there_is_to_say_follows_claim_by_claim(folder):
    page = report_of(folder)
    expected = [f"{claim}: {verdict}" for claim, verdict in zip(CLAIMS["claim"], CLAIMS["verdict"], strict=True)]
    assert page.texts("h3")[:4] == expected
    assert page.texts("dt") == ["reason", "minutes", "reason", "lacks"]  # none where nothing is said
    assert page.texts("dd") == ["so it <is>", "1.235", 'it is "not"', "6 of 7 points"]


def test_the_first_screen_says_that_the_grid_is_reduced(folder):
    text = " ".join(report_of(folder).source.partition("<nav>")[0].split())
    assert "Verdicts on 4 claims: holds 1, fails 1, open 1, not in this grid 1." in text
    assert "<strong>This grid is reduced.</strong> 1 claims are about" in text
    add_table(folder, "99-claims", CLAIMS.assign(lacks=""))
    assert "reduced.</strong>" not in report_of(folder).source


def test_the_columns_of_the_claims_are_those_that_are_shown(folder):
    assert set(SUMMARY) <= {field.name for field in fields(Claim)}
    add_table(folder, "99-claims", CLAIMS.drop(columns="verdict"))
    with pytest.raises(InputError, match=r"99-claims\.csv: column 'verdict' is missing"):
        write_report(folder, ORDER, COMMAND)


def test_warnings_are_counted_on_the_first_screen_and_listed_with_what_to_do(folder):
    assert "#warnings" not in report_of(folder).source
    found = [*lateness({"a <plan>": 0.25}), *misses({"another": (1.0, 4.0)})]
    save_record("try", "02-second", {}, {"alarms": found}, folder.parent)
    add_notebook(folder, "02-second", ["records/02-second.json"])
    page = report_of(folder)
    first = " ".join(page.source.partition("<nav>")[0].split())
    assert "<strong>2 warnings</strong>" in first
    assert 'href="#warnings"' in first
    cells = page.texts("td")
    for alarm in found:
        assert alarm.what in cells
        assert alarm.advice in cells
    assert page.attributes("href").count("#notebook-02-second") == 3  # twice in the table


def test_without_a_notebook_that_makes_claims_there_are_none(folder):
    page = report_of(folder, ["01-first"])
    assert page.texts("h2") == ["Environment and time", "01-first in full"]


def test_long_tables_are_cut_and_say_so(folder):
    page = report_of(folder)
    cells = page.texts("td")
    assert "40" in cells
    assert "41" not in cells
    notes = page.texts(of_class="note")
    assert "The first 40 of 42 rows; all are in ." in notes  # the name is in an element of its own
    assert "No rows." in notes
    assert sum(note.startswith("The first") for note in notes) == 1  # one of exactly 40 rows is shown whole
    assert "0.1235" in cells  # four digits


@pytest.mark.parametrize("columns", [MOST_COLUMNS, MOST_COLUMNS + 1])
def test_words_are_broken_in_wide_tables_only(folder, columns):
    add_table(folder, "99-exact", pd.DataFrame({f"column{i}": [1] for i in range(columns)}))
    classes = report_of(folder).attributes("class")
    assert ("dataframe wide" in classes) is (columns > MOST_COLUMNS)
    assert "dataframe" in classes


def test_environment_and_time(folder):
    page = report_of(folder)
    cells = page.texts("td")
    for value in ("abc", "A Processor 3000", "2", "Linux-1", "3.11.7", "hiertrain 0.1.0, torch 2.13.0"):
        assert value in cells
    assert page.source.count("2026-01-02 03:04") == 3
    assert {"1.5", "0.6", "0.9"} <= set(cells)
    assert "3.0" in page.texts("th")
    assert "in 3.0 minutes" in page.source
    assert "same environment" not in page.source
    assert "somewhere" not in page.source


def test_differing_environments_are_named(folder):
    add_notebook(folder, "01-first", [], commit="def", dirty=True)
    page = report_of(folder)
    assert "not all executed in the same environment" in page.source
    assert "abc (02-second, 99-claims)" in page.source
    assert "def, with uncommitted changes (01-first)" in page.source
    assert "A Processor 3000 (" not in page.source


def test_the_page_needs_nothing_else(folder):
    page = report_of(folder)
    assert page.source.startswith("<!DOCTYPE html>\n")
    assert {element.tag for element in page.elements} & {"script", "link", "iframe", "object", "base", "form"} == set()
    assert all(source.startswith("data:image/png;base64,") for source in page.attributes("src"))
    identifiers = page.attributes("id")
    assert len(set(identifiers)) == len(identifiers)
    assert [f"#{identifier}" for identifier in identifiers] == list(dict.fromkeys(page.attributes("href")))
    assert not any(name.startswith("on") for element in page.elements for name in element.attributes)
    assert not re.search(r"url\(|@import|https?:", page.source)


def test_the_same_files_give_the_same_bytes(tmp_path):
    one, other = make_run(tmp_path / "a"), make_run(tmp_path / "b")
    assert report_of(one).source == report_of(other).source == report_of(one).source


@pytest.mark.parametrize(
    "missing",
    [
        "figures/02-times.png",
        "tables/02-long.csv",
        "tables/99-claims.csv",
        "solution.json",
        "notebooks/01-first.json",
        "notebooks/01-first.ipynb",
    ],
)
def test_what_is_missing_is_named_with_the_command_that_brings_it_back(folder, missing):
    (folder / missing).unlink()
    with pytest.raises(InputError, match=rf"^{re.escape(str(folder / missing))}: is missing; .*: {COMMAND}$"):
        write_report(folder, ORDER, COMMAND)
    assert not (folder / "report.html").exists()


WORDS = st.text(st.characters(categories=("L", "N", "P", "S", "Zs")), min_size=1, max_size=120).map(lambda s: f"x{s}x")


@settings(max_examples=50)
@given(cells=st.lists(WORDS, min_size=1, max_size=5))
def test_whatever_stands_in_a_table_is_text_in_the_page(tmp_path_factory, cells):
    folder = tmp_path_factory.mktemp("run")
    add_notebook(folder, "01-first", ["tables/01.csv"])
    add_table(folder, "01", pd.DataFrame({"cell": cells}))
    page = report_of(folder, ["01-first"])
    shown = ["".join(element.texts) for element in page.elements if element.tag == "td"]
    assert shown[-len(cells) :] == cells
