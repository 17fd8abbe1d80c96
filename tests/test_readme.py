"""What a newcomer copies from the README does what the README says."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hiertrain import files
from hiertrain.cli.arguments import parser
from hiertrain.paths import ROOT
from hiertrain.problem.plan import Plan
from hiertrain.results.records import load_record

README = (ROOT / "README.md").read_text(encoding="utf-8")
DOORS = README[README.index("\n## Three doors\n") : README.index("\n## Results\n")]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^ *```{language}\n(.*?)^ *```$", text, flags=re.MULTILINE | re.DOTALL)


def without_numbers(line: str) -> str:
    """The line as every run prints it: numbers, the layers where a plan cuts, and who was seen to be best, differ."""
    line = re.sub(r"\(conv1 \.\. \w+\)", "(layers)", " ".join(line.split()))
    return re.sub(r"\d[\d.e+-]*", "#", re.sub(r"(best single machine), \w+", r"\1", line))


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the commands need of a checkout, apart from this one's results."""
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "hiertrain", folder / "hiertrain", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "notebooks").symlink_to(ROOT / "notebooks")
    activate = folder / ".venv" / "bin" / "activate"
    activate.parent.mkdir(parents=True)
    activate.write_text(f"export PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH PYTHONPATH=$PWD\n")
    return folder


def test_the_commands_of_the_doors_plan_for_three_workers_that_learn_and_end_with_a_verdict(checkout: Path) -> None:
    script = "".join(blocks(DOORS, "bash"))
    done = subprocess.run(
        ["bash", "-e", "-c", script], cwd=checkout, capture_output=True, text=True, check=False, timeout=240
    )
    assert done.returncode == 0, done.stderr
    printed = done.stdout.splitlines()
    shown = "".join(blocks(DOORS, "text")).splitlines()
    assert {without_numbers(line) for line in shown} <= {without_numbers(line) for line in printed}

    record = load_record("first", "train", checkout / "results")
    plan = files.parse(Plan, record.parameters["plan"], "record")
    assert [name for name, part in plan.workers.items() if part.samples > 0] == ["device", "edge", "cloud"]
    accuracy = record.results["accuracy"]
    assert isinstance(accuracy, float)
    assert accuracy == pytest.approx(record.results["single_process_accuracy"], abs=0.03)
    assert accuracy > 0.9
    verdict = re.search(
        r"^verdict: 3 workers are [\d.]+x .*\(emulated; predicted: ([\d.]+)x\);", done.stdout, re.MULTILINE
    )
    assert verdict
    assert float(verdict[1]) > 1.1  # what was seen depends on the load of the machine that tests
    assert f"test accuracy {accuracy:.4f}" in printed[-1]  # of the model in its file


@pytest.mark.parametrize("line", re.findall(r"^ *(hiertrain .*)$", "".join(blocks(README, "bash")), flags=re.MULTILINE))
def test_every_command_of_the_readme_has_options_that_exist(line: str) -> None:
    assert parser().parse_args(shlex.split(line, comments=True)[1:])


def test_the_first_screen_has_the_picture_and_the_two_commands_that_do_everything() -> None:
    first = README[: README.index("\n## ")]
    assert first.count("![") == 1
    assert [line.split("#")[0].strip() for line in "".join(blocks(first, "bash")).splitlines()] == [
        "make reproduce",
        "make test",
    ]
