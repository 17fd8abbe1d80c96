"""Absolute folders of the workbench, so that nothing depends on where a notebook or command was started."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "data"
NOTEBOOKS = ROOT / "notebooks"
RESULTS = ROOT / "results"
INTERACTIVE = RESULTS / "interactive"  # what notebooks that are opened by hand write
COPIES = INTERACTIVE / "notebooks"
