"""Notebooks and the report as people see them: JupyterLab in headless Chromium, on a copy of the checkout.

``pytest tests/test_browser.py --all-notebooks`` runs every notebook, with the parameters of quick.yml.
"""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pytest
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook
from playwright.sync_api import Page, sync_playwright

from hiertrain import files
from hiertrain.figures import load_caption
from hiertrain.paths import ROOT
from hiertrain.reproduction.parameters import Job, prepare
from hiertrain.reproduction.report import write_report
from tests.reproduction.test_report import ORDER, make_run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SHORT = ("01-models", "03-optimization")
# Parameters by which a notebook reads its own run; by default the reference.
OF_A_RUN = {"inputs", "results", "made_by"}
LONGEST_S = 1200  # one notebook of quick.yml on a busy machine

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium; on Debian: apt-get install chromium")


@dataclass(frozen=True)
class Lab:
    """JupyterLab as ``hiertrain lab`` serves it."""

    checkout: Path
    url: str
    page: Page

    def open(self, path: str) -> None:
        """A file below results/."""
        self.page.goto(self.url.replace("/lab/tree/interactive/notebooks?", f"/lab/tree/{path}?reset&"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "job" in metafunc.fixturenames:
        everything = metafunc.config.getoption("--all-notebooks")
        jobs = prepare("quick" if everything else "smoke")
        metafunc.parametrize("job", [job for job in jobs if everything or job.name in SHORT], ids=lambda job: job.name)


def digests(checkout: Path) -> dict[str, str]:
    """Of all that is tracked."""
    return {
        str(path.relative_to(checkout)): hashlib.sha256(path.read_bytes()).hexdigest()
        for part in ("hiertrain", "notebooks", "data", "results/reference")
        for path in sorted((checkout / part).rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkout")
    for part in ("hiertrain", "notebooks", "data/profiles", "results/reference"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    return folder


@pytest.fixture(scope="module")
def environment(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The package of the checkout, and nobody's own settings of Jupyter: all cells are in the page, in sight or not."""
    own = tmp_path_factory.mktemp("jupyter")
    settings = own / "settings" / "@jupyterlab" / "notebook-extension" / "tracker.jupyterlab-settings"
    files.write_text(settings, '{"windowingMode": "none"}')
    folders = (
        "JUPYTER_CONFIG_DIR",
        "JUPYTER_DATA_DIR",
        "JUPYTER_RUNTIME_DIR",
        "IPYTHONDIR",
        "JUPYTERLAB_WORKSPACES_DIR",
    )
    jupyter = {name: str(own / name) for name in folders} | {"JUPYTERLAB_SETTINGS_DIR": str(own / "settings")}
    return {**os.environ, **jupyter, "PYTHONPATH": str(checkout)}


@pytest.fixture(scope="module")
def lab(checkout: Path, environment: dict[str, str]) -> Iterator[Lab]:
    command = [sys.executable, "-m", "hiertrain.cli.main", "lab", "--", "--no-browser", "--ServerApp.port=0"]
    server = subprocess.Popen(
        command, cwd=checkout, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert server.stderr is not None
    log = []
    rest = threading.Thread(target=server.stderr.read)  # or a full pipe would stop the server
    try:
        for line in server.stderr:
            log.append(line)
            if "http://127.0.0.1" in line:
                break
        else:
            pytest.fail("".join(log))
        rest.start()
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1400, "height": 1000})
            yield Lab(checkout, "http://127.0.0.1" + log[-1].split("http://127.0.0.1")[1].strip(), page)
            browser.close()
    finally:
        server.terminate()  # its kernels end with it
        with suppress(subprocess.TimeoutExpired):
            server.wait(30)
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        if rest.ident is not None:
            rest.join()
        server.stderr.close()


def run_all(page: Page) -> None:
    """Run a notebook top to bottom, as people do."""
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=60e3)  # before, JupyterLab would forget the cells
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    page.wait_for_function(
        """() => {
            const prompts = [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].map(each => each.innerText)
            const failed = document.querySelector('[data-mime-type="application/vnd.jupyter.error"]')
            return failed || (prompts.length && prompts.every(text => /[0-9]/.test(text)))
        }""",
        timeout=1e3 * LONGEST_S,
    )


@pytest.mark.timeout(LONGEST_S + 100)
def test_a_notebook_shows_its_figures_with_captions_says_nothing_else_and_changes_no_file(lab: Lab, job: Job) -> None:
    before = digests(lab.checkout)
    parameters = {name: value for name, value in job.parameters.items() if name not in OF_A_RUN}
    copy = lab.checkout / "results" / "interactive" / "notebooks" / f"{job.name}.ipynb"
    nbformat.write(parameterize_notebook(load_notebook_node(str(copy)), parameters | {"run": "interactive"}), copy)
    lab.open(f"interactive/notebooks/{job.name}.ipynb")
    run_all(lab.page)
    assert lab.page.locator('[data-mime-type="application/vnd.jupyter.error"]').count() == 0
    said = lab.page.locator('[data-mime-type="application/vnd.jupyter.stderr"]').all_inner_texts()
    lines = [line for text in said for line in text.splitlines() if line.strip()]
    assert [line for line in lines if not line.startswith("warning: ")] == []  # alarms say what to do; a busy machine
    assert lab.page.get_by_text("Error displaying widget").count() == 0
    figures = [lab.checkout / "results" / "interactive" / output for output in job.outputs if output.endswith(".png")]
    shown = lab.page.locator(".jp-OutputArea-child:has(img) + .jp-OutputArea-child .jp-RenderedMarkdown")
    assert sorted(shown.all_inner_texts()) == sorted(load_caption(figure) for figure in figures)
    widths = lab.page.locator(".jp-OutputArea img").evaluate_all(
        "each => each.map(img => img.complete && img.naturalWidth)"
    )
    assert len(widths) == len(figures)
    assert all(widths)
    lab.page.keyboard.press("Control+s")
    lab.page.wait_for_function("() => !document.querySelector('.jp-mod-dirty')")
    assert digests(lab.checkout) == before


def test_the_report_opens_beside_the_notebooks(lab: Lab) -> None:
    folder = make_run(lab.checkout / "results")
    write_report(folder, ORDER, "hiertrain reproduce try")
    lab.page.goto(lab.url.replace("/lab/tree/interactive/notebooks?", f"/files/{folder.name}/report.html?"))
    images = lab.page.locator("img")
    assert images.evaluate_all("all => all.map(img => img.naturalWidth > 0)") == [True, True]
    assert "hiertrain reproduce try" in lab.page.locator("body").inner_text()
