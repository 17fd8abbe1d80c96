"""The face: every name is where it is said to be, nothing is loaded before it is asked for, and its example runs."""

import ast
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import hiertrain


def test_every_name_is_handed_on_and_typed() -> None:
    homes = {(f"hiertrain.{module}", name) for module, names in hiertrain.HOMES.items() for name in names}
    assert sorted(name for _, name in homes) == hiertrain.__all__
    nodes = ast.walk(ast.parse(Path(hiertrain.__file__).read_text(encoding="utf-8")))
    imports = [node for node in nodes if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hier")]
    assert {(node.module, alias.name) for node in imports for alias in node.names} == homes
    for name in hiertrain.__all__:
        assert getattr(hiertrain, name).__name__ == name
    assert set(hiertrain.__all__) <= set(dir(hiertrain))
    with pytest.raises(AttributeError, match="module 'hiertrain' has no attribute 'optimise'"):
        hiertrain.optimise  # noqa: B018 # pyright: ignore[reportAttributeAccessIssue]
    assert (Path(hiertrain.__file__).parent / "py.typed").is_file()


def test_importing_it_loads_nothing_heavy() -> None:
    code = "import sys, hiertrain; hiertrain.Problem; print({'torch', 'ortools', 'pandas'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    lines = (hiertrain.__doc__ or "").splitlines()
    example = [line for line in lines if line.startswith("    ")]
    exec(textwrap.dedent("\n".join(example)), {})
    assert capsys.readouterr().out.startswith("batch_size=128 data_holder='device'")
