"""Working copies of the notebooks: which are made anew, and which are the user's."""

from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

from hiertrain.reproduction.lab import refresh_copies


def write(path: Path, *sources: str, ran: bool = False) -> None:
    outputs = [new_output("stream", text="5")] if ran else []
    cells = [new_code_cell(source, id=f"c{i}", outputs=outputs) for i, source in enumerate(sources)]
    path.parent.mkdir(exist_ok=True)
    nbformat.write(new_notebook(cells=cells), path)


def source(path: Path) -> str:
    return nbformat.read(path, as_version=4).cells[0].source


@pytest.fixture
def original(tmp_path: Path) -> Path:
    write(tmp_path / "notebooks" / "01-first.ipynb", "first = 1")
    return tmp_path / "notebooks" / "01-first.ipynb"


@pytest.fixture
def copies(original: Path, tmp_path: Path) -> Path:
    assert refresh_copies(original.parent, tmp_path / "copies") == []
    return tmp_path / "copies"


def test_a_copy_follows_its_original_until_it_is_edited(original: Path, copies: Path) -> None:
    copy = copies / original.name
    assert copy.read_text() == original.read_text()
    write(copy, "first = 1", ran=True)  # what autosave leaves is no edit
    assert refresh_copies(original.parent, copies) == []
    assert nbformat.read(copy, as_version=4).cells[0].outputs
    write(original, "first = 2")
    assert refresh_copies(original.parent, copies) == [f"{copy}: made anew, because the original has changed"]
    assert copy.read_text() == original.read_text()
    copy.unlink()
    assert refresh_copies(original.parent, copies) == []
    assert source(copy) == "first = 2"


@pytest.mark.parametrize("lost", [False, True])
def test_an_edited_copy_stays_and_the_new_original_lies_beside_it(original: Path, copies: Path, lost: bool) -> None:
    copy = copies / original.name
    write(copy, "mine = 1")
    assert refresh_copies(original.parent, copies) == []  # the original is as it was
    if lost:
        (copies / ".originals.json").unlink()  # nobody knows what the copy was made from
    else:
        write(original, "first = 2")
    (line,) = refresh_copies(original.parent, copies)
    (beside,) = copies.glob("01-first.new-*.ipynb")
    assert line == f"{copy}: kept with your changes; the original has changed, too, and is now in {beside.name}"
    assert source(copy) == "mine = 1"
    assert beside.read_text() == original.read_text()
    assert refresh_copies(original.parent, copies) == []  # it is said once
    write(copy, source(original))  # taken over
    assert refresh_copies(original.parent, copies) == []
    write(original, "first = 3")
    assert refresh_copies(original.parent, copies) == [f"{copy}: made anew, because the original has changed"]


def test_a_broken_copy_is_the_users(original: Path, copies: Path) -> None:
    copy = copies / original.name
    copy.write_text("{")
    write(original, "first = 2")
    assert len(refresh_copies(original.parent, copies)) == 1
    assert copy.read_text() == "{"
