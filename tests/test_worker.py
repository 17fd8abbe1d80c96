"""What a worker's machine needs: the package and what it depends on, without what plans, draws and runs notebooks."""

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from importlib import metadata
from pathlib import Path

import pytest

from hiertrain import files
from hiertrain.datasets import load_dataset
from hiertrain.jobs import OptimizerSettings
from hiertrain.models import build_model
from hiertrain.paths import ROOT
from hiertrain.plan import Execution
from hiertrain.profile import Profile
from hiertrain.stages import train, training_settings
from hiertrain.testbeds.base import Host, Testbed
from hiertrain.testbeds.local import LOOPBACK
from hiertrain.testbeds.settings import LocalSettings, WorkerSettings
from tests.test_training import LENET, TWO, instant_problem

# Runs a module of this package as if only some others were installed.
ALONE = """
import runpy, sys

class Finder:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, *others):
        return None if name.partition(".")[0] in {absent!r} else self.finder.find_spec(name, *others)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = map(Finder, sys.meta_path)
runpy.run_module({module!r}, run_name="__main__", alter_sys=True)
"""


def needed(requirements: list[str]) -> Iterator[str]:
    """The names of all distributions that these requirements bring, themselves included, as PyPI writes them."""
    for requirement in requirements:
        name = re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
        if "extra ==" not in requirement:
            with suppress(metadata.PackageNotFoundError):  # of another system
                yield plain(name)
                yield from needed(metadata.requires(name) or [])


def plain(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


@pytest.fixture(scope="module")
def absent() -> set[str]:
    """The modules that are installed here and not where only ``pip install hiertrain`` was run."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    present = {"hiertrain", *needed(project["dependencies"])}
    found = metadata.packages_distributions().items()
    modules = {module for module, distributions in found if not present & set(map(plain, distributions))}
    assert {"ortools", "pandas", "matplotlib", "jupyterlab", "papermill", "seaborn"} <= modules
    return modules


def alone(absent: set[str], module: str) -> tuple[str, ...]:
    return sys.executable, "-c", ALONE.format(absent=absent, module=module)


def test_a_worker_needs_the_dependencies_of_the_package_alone(absent: set[str]) -> None:
    settings = LocalSettings(data_holder="device", workers=dict.fromkeys(("device", "edge"), WorkerSettings()))
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": LOOPBACK}
    hosts = {name: Host(alone(absent, "hiertrain.worker"), "127.0.0.1", environment) for name in settings.workers}
    data = load_dataset("digits")
    training = training_settings(LENET, data, 12, iterations=2, optimizer=OptimizerSettings(momentum=0.9))
    problem = instant_problem(build_model(**dict(training.model)).chain, 12, Execution.paper())
    with Testbed(settings, hosts) as testbed:
        run = train(testbed, problem, TWO, training)
    assert len(run.losses) == 2


def test_a_machine_by_hand_needs_no_more(absent: set[str], tmp_path: Path) -> None:
    """It is profiled, and its part of a training is started: here without torchrun, which is said."""
    (tmp_path / "own.yml").write_text("{kind: local, data_holder: device, workers: {device: {}}}")
    command = [*alone(absent, "hiertrain.cli"), "profile", f"--testbed={tmp_path / 'own.yml'}", "--dataset=digits"]
    subprocess.run([*command, "--time-limit=1", f"--output={tmp_path / 'profile.json'}"], check=True)
    assert files.load(Profile, tmp_path / "profile.json").workers.keys() == {"device"}
    byhand = [*alone(absent, "hiertrain.byhand"), str(tmp_path / "jobs.json")]
    done = subprocess.run(byhand, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (
        2,
        "hiertrain: error: environment: RANK is not set; start the worker by torchrun, which sets it\n",
    )
