"""``hiertrain lab``: JupyterLab on working copies of the notebooks, so that the tracked ones stay as they are.

It opens on results/, where reports, figures and records can be looked at, too. A copy counts as edited when its cells
are no longer those that it was made from; outputs do not count.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import nbformat
from jupyterlab.labapp import LabApp

from hiertrain import files
from hiertrain.paths import COPIES, NOTEBOOKS, RESULTS
from hiertrain.reproduction.notebooks import own_kernel
from hiertrain.values import Value


class Originals(Value):
    """Stands among the copies: what each was made from."""

    cells: dict[str, str]  # digest by name


def refresh_copies(notebooks: Path = NOTEBOOKS, copies: Path = COPIES) -> list[str]:
    """Make copies of the notebooks, anew where only the original has changed; what was done that needs a line.

    Where both have changed the edited copy stays, and the new original comes to lie beside it. Raises InputError when
    something cannot be written.
    """
    state = copies / ".originals.json"
    known = files.load(Originals, state).cells if state.is_file() else {}
    lines = []
    for original in sorted(notebooks.glob("*.ipynb")):
        copy, text = copies / original.name, original.read_text(encoding="utf-8")
        before, now, own = known.get(original.name), _digest(original), _digest(copy) if copy.is_file() else None
        if own in (None, before) and own != now:
            files.write_text(copy, text)
            if own is not None:
                lines.append(f"{copy}: made anew, because the original has changed")
        elif before != now != own:
            beside = copy.with_suffix(f".new-{now[:8]}.ipynb")
            files.write_text(beside, text)
            lines.append(f"{copy}: kept with your changes; the original has changed, too, and is now in {beside.name}")
        known[original.name] = now
        files.save(Originals(cells=known), state)
    return lines


def _digest(notebook: Path) -> str:
    """Of the cells without their outputs; of the whole file, if it is no notebook."""
    try:
        cells = [(cell.cell_type, cell.source) for cell in nbformat.read(notebook, as_version=4).cells]
        content = json.dumps(cells).encode()
    except ValueError:
        content = notebook.read_bytes()
    return hashlib.sha256(content).hexdigest()


def open_lab(options: Sequence[str]) -> None:
    """Serve results/ with the copies in sight until it is interrupted. ``options`` are JupyterLab's own."""
    mine = [f"--ServerApp.root_dir={RESULTS}", f"--LabApp.default_url=/lab/tree/{COPIES.relative_to(RESULTS)}"]
    if os.geteuid() == 0:
        mine.append("--allow-root")
    with own_kernel():
        LabApp.launch_instance([*mine, *options])
