"""How little an option of the execution takes: the exercise of CONTRIBUTING.md, done on a copy of the sources."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Activations as float64: a field's value, what the pass makes of it, and the codec that writes it.
CHANGES = {
    "hiertrain/problem/execution.py": (
        'activation_encoding: Literal["float32", "uint8", ',
        'activation_encoding: Literal["float64", "float32", "uint8", ',
    ),
    "hiertrain/program/passes.py": (
        'ACTIVATIONS = {"float32": Encoding("float32", 4)',
        'ACTIVATIONS = {"float64": Encoding("float64", 8), "float32": Encoding("float32", 4)',
    ),
    "hiertrain/runtime/encoding.py": (
        '    "float32": _plain(torch.float32),\n',
        '    "float32": _plain(torch.float32),\n    "float64": _plain(torch.float64),\n',
    ),
}


def test_an_option_is_a_field_a_pass_and_a_codec(tmp_path: Path) -> None:
    """The tests of every execution then run on it, unchanged."""
    for folder in ("hiertrain", "tests"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name, (before, after) in CHANGES.items():
        source = (tmp_path / name).read_text()
        assert source.count(before) == 1, name
        (tmp_path / name).write_text(source.replace(before, after))
    options = ["-p", "no:cacheprovider", "--strict-markers", "-W", "error", "-q", "-k", "float64"]
    tested = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(tmp_path / "tests" / "test_executions.py")],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert tested.returncode == 0, tested.stdout + tested.stderr
    assert "12 passed" in tested.stdout  # three promises, in the executions where it meets all other options
