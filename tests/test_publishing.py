"""A run becomes the reference whole, or nothing changes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from hiertrain.paths import RESULTS
from hiertrain.publishing import filled, publish, readme_tables
from hiertrain.values import InputError

MARKS = "".join(f"<!-- {name} -->\nto be replaced\n<!-- end -->\n" for name in readme_tables(RESULTS / "reference"))
README = f"# A title\n{MARKS}the end\n"
RECORDS = ("01-models", "04-training")


def record(root: Path, name: str) -> Path:
    return root / "results" / "mine" / "records" / f"{name}.json"


def change_record(path: Path, **environment: object) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    content["environment"] |= environment
    path.write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A checkout with a README, an old reference, and a run of one clean commit."""
    run = tmp_path / "results" / "mine"
    shutil.copytree(RESULTS / "reference" / "tables", run / "tables")
    for name in RECORDS:
        (run / "records").mkdir(exist_ok=True)
        shutil.copy(RESULTS / "reference" / "records" / f"{name}.json", run / "records")
        change_record(record(tmp_path, name), commit="abc", dirty=False)
    (run / "report.html").write_text("large", encoding="utf-8")
    (run / "records" / "01-models.failed.json").write_text("{}", encoding="utf-8")
    old = tmp_path / "results" / "reference"
    old.mkdir()
    (old / "claims.md").write_text("of before", encoding="utf-8")
    (tmp_path / "README.md").write_text(README, encoding="utf-8")
    return tmp_path


def test_a_run_replaces_the_reference_and_fills_the_readme(root: Path) -> None:
    reference = publish("mine", root)
    names = {str(path.relative_to(reference)) for path in reference.rglob("*") if path.is_file()}
    tables = {f"tables/{path.name}" for path in (RESULTS / "reference" / "tables").iterdir()}
    assert names == tables | {f"records/{name}.json" for name in RECORDS}
    text = (root / "README.md").read_text(encoding="utf-8")
    for table in readme_tables(reference).values():
        assert table in text
    assert "to be replaced" not in text
    assert (text[:10], text[-8:]) == (README[:10], README[-8:])
    assert {path.name for path in (root / "results").iterdir()} == {"mine", "reference"}
    publish("mine", root)
    assert (root / "README.md").read_text(encoding="utf-8") == text


def emulated(root: Path) -> None:
    table = root / "results" / "mine" / "tables" / "06-policies.csv"
    table.write_text(table.read_text(encoding="utf-8").replace("measured", "emulated"), encoding="utf-8")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: shutil.rmtree(root / "results" / "mine"), r"mine: has no records; `hiertrain reproduce` makes"),
        (lambda root: change_record(record(root, "04-training"), dirty=True), r"04-training.json: made by source that"),
        (lambda root: change_record(record(root, "04-training"), commit=None), r"04-training.json: made by source"),
        (
            lambda root: change_record(record(root, "04-training"), commit="def0123456"),
            r"mine: records of several commits \(01-models.json at abc, 04-training.json at def0123\)",
        ),
        (lambda root: (root / "results/mine/tables/99-claims.csv").unlink(), r"99-claims.csv: is missing"),
        (emulated, r"06-policies: its times are emulated; a reference's must be measured"),
        (
            lambda root: (root / "README.md").write_text("nothing", encoding="utf-8"),
            r"README.md: has places for no table; must",
        ),
    ],
)
def test_what_cannot_be_a_reference_changes_nothing(root: Path, spoil: Callable[[Path], None], message: str) -> None:
    spoil(root)
    readme = (root / "README.md").read_text(encoding="utf-8")
    with pytest.raises(InputError, match=message):
        publish("mine", root)
    assert [path.name for path in (root / "results" / "reference").iterdir()] == ["claims.md"]
    assert (root / "README.md").read_text(encoding="utf-8") == readme


def test_a_mark_stands_for_one_table() -> None:
    with pytest.raises(InputError, match="has places for a, a; must have one each for a"):
        filled("<!-- a -->\n<!-- end -->\n" * 2, {"a": ""})
