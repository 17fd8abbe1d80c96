"""The set-up files agree with each other and with the code."""

import ast
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml

from hiertrain.paths import ROOT
from hiertrain.publishing import filled, readme_tables

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
PACKAGE = sorted((ROOT / "hiertrain").rglob("*.py"))
# Started by people, or needed by a library that the code calls, but imported nowhere.
APPLICATIONS = {"ipywidgets", "jupyterlab", "nbconvert"}


def declared(requirements: list[str]) -> set[str]:
    """Names of distributions, normalised."""
    return {normalise(re.split(r"[^\w.-]", requirement, maxsplit=1)[0]) for requirement in requirements}


def normalise(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def imported(sources: list[Path]) -> set[str]:
    """Distributions that the sources import, normalised; the standard library and the workbench are left out."""
    modules: set[str] = set()
    for source in sources:
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules.add(node.module.partition(".")[0])
    known = metadata.packages_distributions()
    modules -= {"hiertrain", "tests", *sys.stdlib_module_names}
    return {normalise(name) for module in modules for name in known.get(module, [module])[:1]}


def test_every_import_is_a_declared_dependency_and_every_dependency_is_used():
    dependencies = declared(PROJECT["dependencies"])
    # pydantic_core is pydantic's own engine, in the version that pydantic pins.
    assert imported(PACKAGE) - {"pydantic-core"} <= dependencies
    assert dependencies - imported(PACKAGE) == APPLICATIONS
    tests = imported(sorted((ROOT / "tests").glob("*.py")))
    assert tests - {"pydantic-core"} <= dependencies | declared(PROJECT["optional-dependencies"]["dev"])


@pytest.mark.parametrize("requirement", PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"])
def test_every_dependency_is_pinned_once(requirement):
    assert re.fullmatch(r"[\w.-]+(\[\w+\])?==[\w.]+", requirement)
    everything = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]
    assert len(declared(everything)) == len(everything)


def test_conda_takes_its_dependencies_from_pyproject():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    python, pip, rest = environment["dependencies"]
    assert pip == "pip"
    assert rest == {"pip": ["--editable .[dev]"]}
    assert PROJECT["requires-python"] == ">=" + python.removeprefix("python=")
    assert PYPROJECT["tool"]["pyright"]["pythonVersion"] == python.removeprefix("python=")


def test_every_folder_of_the_package_is_installed():
    folders = {".".join(source.parent.relative_to(ROOT).parts) for source in PACKAGE}
    assert set(PYPROJECT["tool"]["setuptools"]["packages"]) == folders


def test_every_other_file_of_the_package_is_installed():
    package = ROOT / "hiertrain"
    files = {str(path.relative_to(package)) for path in package.rglob("*") if path.is_file()}
    others = {path for path in files if not path.endswith((".py", ".pyc"))}
    assert PYPROJECT["tool"]["setuptools"]["package-data"] == {"hiertrain": sorted(others)}


def test_hooks_run_the_checks_of_make_without_downloads():
    configuration = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    assert [repository["repo"] for repository in configuration["repos"]] == ["local"]
    hooks = configuration["repos"][0]["hooks"]
    assert "make check" in [hook["entry"] for hook in hooks]
    assert all(hook["language"] == "system" for hook in hooks)
    assert "make check" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_no_module_is_longer_than_400_lines():
    assert {str(path): n for path in PACKAGE if (n := len(path.read_text(encoding="utf-8").splitlines())) > 400} == {}


def test_readme_shows_the_reference_results_and_links_to_what_exists():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?://)([^)#]+)\)", text):
        assert (ROOT / target).exists(), target
    assert filled(text, readme_tables(ROOT / "results" / "reference")) == text
