"""Which change makes which work stale: on a copy of the sources, both directions."""

import shutil
from pathlib import Path

import nbformat
import pytest

from hiertrain.paths import NOTEBOOKS
from hiertrain.sources import PACKAGE, RULE, digest, reached, reached_by
from hiertrain.values import InputError

MEASURED = ("hiertrain.experiments.work", "hiertrain.planning", "hiertrain.results.records")  # as notebook 06 has it
EXECUTION = [
    "runtime/runner.py",
    "runtime/transport.py",
    "worker.py",
    "testbeds/netns.py",
    "testbeds/local.py",
    "testbeds/ssh.py",
    "control/messages.py",
    "program/template.py",
    "program/passes.py",
    "program/simulator.py",
    "problem/profile.py",
    "workload/chain_model.py",
    "workload/datasets.py",
    "training/train.py",
    "problem/plan.py",
    "results/timelines.py",
]
AROUND = [
    "figures/plans.py",
    "figures/style.py",
    "results/tables.py",
    "results/records.py",
    "reproduction/report.py",
    "reproduction/report.html.jinja",
    "reproduction/claims.py",
    "cli/main.py",
    "experiments/granularity.py",
    "planning/cpsat.py",
]


@pytest.fixture
def package(tmp_path: Path) -> Path:
    return shutil.copytree(PACKAGE, tmp_path / "hiertrain", ignore=shutil.ignore_patterns("__pycache__"))


def of_measurements(package: Path) -> str:
    module, *apart = MEASURED
    return digest(reached(module, apart=apart, package=package), package)


def of_notebook(name: str, package: Path) -> str:
    cells = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4).cells
    code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    return digest(reached_by(code.encode(), package=package), package)


def change(path: Path) -> None:
    path.write_text(path.read_text(encoding="utf-8") + "\nCHANGED = 1\n", encoding="utf-8")


@pytest.mark.parametrize("path", EXECUTION)
def test_what_executes_makes_measurements_stale(package: Path, path: str) -> None:
    before = of_measurements(package)
    change(package / path)
    assert of_measurements(package) != before


@pytest.mark.parametrize("path", AROUND)
def test_what_only_plans_draws_or_reports_does_not(package: Path, path: str) -> None:
    before = of_measurements(package)
    change(package / path)
    assert of_measurements(package) == before


def test_docstrings_comments_and_layout_change_nothing_and_code_does(package: Path) -> None:
    source = package / "runtime" / "runner.py"
    source.write_text('"""Old."""\n\n\ndef run(a, b):\n    """Old."""\n    return a + b\n', encoding="utf-8")
    before = of_measurements(package)
    source.write_text("def run(\n    a, b\n):\n    # why\n    return (a + b)\n", encoding="utf-8")
    assert of_measurements(package) == before
    source.write_text("def run(a, b):\n    return a - b\n", encoding="utf-8")
    assert of_measurements(package) != before


def test_a_moved_module_counts_as_changed_where_it_is_used(package: Path) -> None:
    before = of_measurements(package)
    (package / "runtime" / "runner.py").rename(package / "runtime" / "other.py")
    assert of_measurements(package) != before


@pytest.mark.parametrize(
    ("path", "stale"),
    [
        ("figures/scheduler.py", {"10-scheduler"}),
        ("figures/claims.py", {"99-claims"}),
        ("reproduction/findings.py", {"99-claims"}),
        ("reproduction/report.py", set()),
        ("runtime/runner.py", {"04-training", "06-speedups", "09-benchmarks"}),
        ("planning/cpsat.py", {"03-optimization", "04-training", "06-speedups", "10-scheduler"}),
        ("workload/architectures.py", {"01-models", "04-training", "06-speedups", "09-benchmarks"}),
    ],
)
def test_a_notebook_is_stale_by_what_it_imports(package: Path, path: str, stale: set[str]) -> None:
    names = ["01-models", "03-optimization", "04-training", "06-speedups", "09-benchmarks", "10-scheduler", "99-claims"]
    before = {name: of_notebook(name, package) for name in names}
    change(package / path)
    assert {name for name in names if of_notebook(name, package) != before[name]} == stale


def test_a_report_depends_on_its_template(package: Path) -> None:
    assert "reproduction/report.html.jinja" in reached("hiertrain.reproduction.report")
    before = digest(reached("hiertrain.reproduction.report", package=package), package)
    template = package / "reproduction" / "report.html.jinja"
    template.write_bytes(template.read_bytes() + b" ")
    assert digest(reached("hiertrain.reproduction.report", package=package), package) != before


def test_digests_name_their_rule_and_unknown_modules_are_named() -> None:
    assert digest([]).startswith(f"{RULE}:")
    with pytest.raises(InputError, match=r"hiertrain\.nothing: must be modules of"):
        reached("hiertrain.nothing")
