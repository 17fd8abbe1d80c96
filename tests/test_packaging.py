"""The set-up files agree with each other and with the code."""

import ast
import json
import re
import subprocess
import sys
import tomllib
import venv
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import pytest
import yaml

import hiertrain
from hiertrain.paths import ROOT
from hiertrain.planning.baselines import single_worker_plans
from hiertrain.problem.network import Network
from hiertrain.problem.problem import Problem
from hiertrain.profiling.measure import measure_layers
from hiertrain.reproduction.publish import filled, readme_tables
from hiertrain.sources import reached
from hiertrain.testbeds.host import Host
from hiertrain.testbeds.local import ADDRESS, LOOPBACK
from hiertrain.testbeds.session import Testbed
from hiertrain.testbeds.settings import LocalSettings, WorkerSettings
from hiertrain.training.settings import training_settings
from hiertrain.training.train import train
from hiertrain.workload.datasets import load_dataset
from hiertrain.workload.spec import ModelSettings
from tests.cli.test_main import NETWORK, PROFILE

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
PACKAGE = sorted((ROOT / "hiertrain").rglob("*.py"))
# Started by people, or needed by a library that the code calls, but imported nowhere.
APPLICATIONS = {"ipywidgets", "nbconvert"}
REQUIREMENTS: dict[str, list[str]] = {"": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}


def declared(requirements: list[str]) -> set[str]:
    """Names of distributions, normalised."""
    return {normalise(re.split(r"[^\w.-]", requirement, maxsplit=1)[0]) for requirement in requirements}


def normalise(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


CORE = declared(PROJECT["dependencies"])
EXTRAS = {name: declared(lines) for name, lines in PROJECT["optional-dependencies"].items()}


def imported_modules(source: Path) -> set[str]:
    """Modules that one file imports, wherever it does; of ``from a import b`` both a and a.b."""
    modules: set[str] = set()
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            modules |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return modules


def imported(sources: Iterable[Path]) -> set[str]:
    """Distributions that the sources import, normalised; the standard library and the workbench are left out."""
    modules = {name.partition(".")[0] for source in sources for name in imported_modules(source)}
    known = metadata.packages_distributions()
    modules -= {"hiertrain", "tests", *sys.stdlib_module_names}
    found = {normalise(name) for module in modules for name in known.get(module, [module])[:1]}
    return found - {"pydantic-core"}  # pydantic's own engine, in the version that pydantic pins


def installed_with(requirements: set[str]) -> set[str]:
    """These distributions and all that they need, as far as they are installed here."""
    found, left = set(), set(requirements)
    while left:
        name = left.pop()
        try:
            needed = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # of another system
            continue
        found.add(name)
        left |= declared([line for line in needed if "extra ==" not in line]) - found
    return found


def test_every_import_is_a_declared_dependency_and_every_dependency_is_used() -> None:
    used = imported(PACKAGE)
    assert used <= CORE | EXTRAS["notebooks"]
    assert (CORE | EXTRAS["notebooks"]) - used == APPLICATIONS
    assert imported((ROOT / "tests").rglob("*.py")) <= CORE | EXTRAS["notebooks"] | EXTRAS["dev"]


def test_a_worker_s_machine_needs_no_extra() -> None:
    files = reached("hiertrain.worker", "hiertrain.torchrun_worker")
    assert imported(ROOT / "hiertrain" / file for file in files) == CORE
    assert not installed_with(CORE) & {"jupyterlab", "ortools", "seaborn", "papermill", "pandas", "matplotlib"}


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An interpreter that has the package with its dependencies, and no extra."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, symlinks=True)
    packages = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    (packages / "hiertrain").symlink_to(ROOT / "hiertrain")
    for name in installed_with(CORE):
        for top in {file.parts[0] for file in metadata.files(name) or [] if file.parts[0] != ".."}:
            if not (packages / top).exists():
                (packages / top).symlink_to(Path(str(metadata.distribution(name).locate_file(top))))
    return str(folder / "bin" / "python")


def test_a_worker_trains_with_the_dependencies_alone(bare_python: str) -> None:
    settings = LocalSettings(data_holder="pi", workers={"pi": WorkerSettings()})
    host = Host((bare_python, "-m", "hiertrain.worker"), ADDRESS, {"GLOO_SOCKET_IFNAME": LOOPBACK})
    training = training_settings(ModelSettings(name="lenet5"), load_dataset("digits"), 2, iterations=2)
    with Testbed(settings, {"pi": host}) as testbed:
        profile = measure_layers(testbed, training.model, sample_counts=(1, 2), repetitions=1, warm_up=0)
        problem = Problem(profile, Network(links=()), 2, "pi")
        run = train(testbed, problem, single_worker_plans(problem)["pi"], training)
    assert run.iterations == 2


def test_a_command_says_in_one_line_which_extra_it_lacks(bare_python: str, tmp_path: Path) -> None:
    """Where the extra is missing; what a worker's machine is good for works: ``profile`` and ``torchrun_worker``."""
    (tmp_path / "profile.json").write_text(json.dumps(PROFILE))
    (tmp_path / "network.json").write_text(json.dumps(NETWORK))

    def answer(*command: str) -> tuple[int, str, str]:
        done = subprocess.run(
            [bare_python, "-m", *command], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60
        )
        return done.returncode, done.stdout, done.stderr

    status, _, error = answer(
        "hiertrain.cli.main", "optimize", "--profile", "profile.json", "--network", "network.json"
    )
    assert (status, error) == (
        2,
        "hiertrain: error: this command needs ortools; in a checkout: pip install '.[notebooks]'\n",
    )
    assert answer("hiertrain.cli.main", "profile", "--help")[0] == 0
    assert answer("hiertrain.torchrun_worker", "--help")[0] == 0


@pytest.mark.parametrize("requirement", [line for lines in REQUIREMENTS.values() for line in lines])
def test_every_dependency_is_pinned_once(requirement: str) -> None:
    assert re.fullmatch(r"[\w.-]+(\[\w+\])?==[\w.]+", requirement)
    everything = [line for lines in REQUIREMENTS.values() for line in lines]
    assert len(declared(everything)) == len(everything)


def test_set_up_installs_all_extras_by_make_and_by_conda() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    python, pip, rest = environment["dependencies"]
    assert pip == "pip"
    assert rest == {"pip": [f"--editable .[{','.join(EXTRAS)}]"]}
    assert f"--editable '.[{','.join(EXTRAS)}]'" in (ROOT / "Makefile").read_text(encoding="utf-8")
    assert PROJECT["requires-python"] == ">=" + python.removeprefix("python=")
    assert PYPROJECT["tool"]["pyright"]["pythonVersion"] == python.removeprefix("python=")


def test_make_takes_pytorch_from_the_index_that_it_is_told_and_only_pytorch(tmp_path: Path) -> None:
    def pip_calls(*variables: str) -> list[str]:
        command = ["make", "--dry-run", f"VENV={tmp_path}", "setup", *variables]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        return [line for line in done.stdout.splitlines() if " -m pip install " in line]

    pytorch = [line for line in PROJECT["dependencies"] if line.startswith("torch")]
    index = "https://download.pytorch.org/whl/cpu"
    first, second = pip_calls(f"TORCH_INDEX={index}")
    assert f"--index-url {index} " in first
    assert f" {' '.join(pytorch)} " in first
    assert index not in second
    assert not any("index" in call for call in pip_calls())


def test_every_folder_of_the_package_is_installed() -> None:
    find = PYPROJECT["tool"]["setuptools"]["packages"]["find"]
    assert find == {"include": ["hiertrain*"], "namespaces": False}  # every folder that has an __init__.py
    assert all((source.parent / "__init__.py").is_file() for source in PACKAGE)


def test_every_other_file_of_the_package_is_installed() -> None:
    package = ROOT / "hiertrain"
    files = [path for path in package.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")]
    others: dict[str, list[str]] = {}
    for path in sorted(files):
        others.setdefault(".".join(path.parent.relative_to(ROOT).parts), []).append(path.name)
    assert PYPROJECT["tool"]["setuptools"]["package-data"] == others


def test_the_map_names_every_room_and_every_path_of_it_exists() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    paths = set(re.findall(r"`((?:hiertrain|tests|notebooks|results)/[\w/.]*)`", text))
    assert {f"hiertrain/{source.parent.name}/" for source in (ROOT / "hiertrain").glob("*/__init__.py")} <= paths
    assert {f"hiertrain/{source.name}" for source in (ROOT / "hiertrain").glob("*.py")} - {
        "hiertrain/paths.py"
    } <= paths
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []


def test_the_citation_is_of_this_version_and_of_the_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == hiertrain.__version__
    doi = citation["preferred-citation"]["doi"]
    assert f"doi {doi}" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"## {hiertrain.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_hooks_run_the_checks_of_make_without_downloads():
    configuration = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    assert [repository["repo"] for repository in configuration["repos"]] == ["local"]
    hooks = configuration["repos"][0]["hooks"]
    assert "make check" in [hook["entry"] for hook in hooks]
    assert all(hook["language"] == "system" for hook in hooks)
    assert "make check" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_no_function_is_longer_than_60_lines():
    """But for a list of options, which are declared one after the other."""
    functions = (
        (f"{path.stem}.{node.name}", (node.end_lineno or 0) - node.lineno + 1)
        for path in PACKAGE
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    )
    assert {name for name, lines in functions if lines > 60} <= {"arguments.parser", "commands.run_train"}


def test_readme_shows_the_reference_results_and_links_to_what_exists():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?://)([^)#]+)\)", text):
        assert (ROOT / target).exists(), target
    assert filled(text, readme_tables(ROOT / "results" / "reference")) == text
