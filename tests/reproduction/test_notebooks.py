"""The driver, on tiny notebooks in a temporary folder. Each execution starts a kernel, so there are few of them."""

import base64
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from hiertrain import files
from hiertrain.cli.main import main
from hiertrain.reproduction.notebooks import NotebookError, NotebookRecord, Outcome, fingerprint, reproduce
from hiertrain.reproduction.parameters import prepare
from hiertrain.values import ON_DEMAND, InputError

PARAMETERS = (
    'run: str = "none"  # folder\nfactor: int = 1  # times\nnames: list[str] = ["x"]  # names\nbare = 1  # no type'
)
WRITE_A = 'folder.mkdir(exist_ok=True)\n(folder / "a.txt").write_text(f"{factor} {sys.executable}")'
WRITE_B = '(folder / "b.txt").write_text((folder / "a.txt").read_text() + str(factor))'
MEASURE = (  # kept from an interrupted execution
    '(folder / "records").mkdir(exist_ok=True)\ncase = folder / "records" / "01-case.json"\n'
    'case.exists() and case.read_text() == "{}" or case.write_text("{}")'
)


class Bench:
    """Folders of notebooks and results, and one parameter file that can be rewritten."""

    def __init__(self, folder: Path) -> None:
        self.notebooks = folder / "notebooks"
        self.results = folder / "results"
        self.run = self.results / "try"
        (self.notebooks / "parameters").mkdir(parents=True)

    def notebook(self, name: str, *sources: str, tags: tuple[str, ...] = ("parameters",)) -> None:
        setup = f"import os, sys, time\nfrom pathlib import Path\nfolder = Path({str(self.run)!r})"
        cells = [new_markdown_cell("# A title"), new_code_cell(PARAMETERS, metadata={"tags": list(tags)})]
        cells += [new_code_cell(source) for source in (setup, *sources)]
        kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), self.notebooks / f"{name}.ipynb")

    def reword(self, name: str, title: str, comment: str) -> None:
        path = self.notebooks / f"{name}.ipynb"
        notebook = nbformat.read(path, as_version=4)
        notebook.cells[0].source = title
        notebook.cells[-1].source += f"\n{comment}"
        nbformat.write(notebook, path)

    def parameters(self, **notebooks: object) -> None:
        content = {"run": "try", "notebooks": {name.replace("_", "-"): part for name, part in notebooks.items()}}
        (self.notebooks / "parameters" / "small.yml").write_text(yaml.safe_dump(content, sort_keys=False))

    def reproduce(self, **options) -> dict[str, bool]:
        """Which notebooks ran, by name."""
        outcomes = reproduce("small", notebooks=self.notebooks, results=self.results, **options)
        assert all(isinstance(outcome, Outcome) and outcome.seconds >= 0 for outcome in outcomes)
        return {outcome.name: outcome.ran for outcome in outcomes}

    def left_behind(self) -> list[str]:
        return sorted(path.name for path in (self.run / "notebooks").iterdir())


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_what_is_unchanged_is_skipped_and_changes_ripple_down(bench, tmp_path, monkeypatch, capsys):
    foreign = tmp_path / "jupyter" / "kernels" / "python3" / "kernel.json"  # a kernel that must not be taken
    files.write_text(foreign, json.dumps({"argv": ["false"], "display_name": "foreign", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    bench.notebook("01-first", WRITE_A)
    bench.notebook("02-second", WRITE_B)
    first, second = {"outputs": ["a.txt"]}, {"outputs": ["b.txt"], "parameters": {"factor": 2}}
    bench.parameters(**{"01_first": first, "02_second": second})

    assert bench.reproduce() == {"01-first": True, "02-second": True}
    assert (bench.run / "b.txt").read_text() == f"1 {sys.executable}2"
    assert bench.left_behind() == ["01-first.ipynb", "01-first.json", "02-second.ipynb", "02-second.json"]
    record = files.load(NotebookRecord, bench.run / "notebooks" / "02-second.json")
    assert record.parameters == {"run": "try", "factor": 2}
    assert record.outputs.keys() == {"b.txt"}
    assert record.environment.versions["hiertrain"]
    assert re.search(r"^01-first +ran +[\d.]+ s$", capsys.readouterr().out, flags=re.MULTILINE)
    assert os.environ["JUPYTER_PATH"] == str(tmp_path / "jupyter")

    assert bench.reproduce() == {"01-first": False, "02-second": False}
    executed = bench.run / "notebooks" / "01-first.ipynb"
    before = nbformat.read(executed, as_version=4)
    bench.reword("01-first", "# Another title", "# a comment")  # which mean nothing to what was executed
    assert bench.reproduce() == {"01-first": False, "02-second": False}
    after = nbformat.read(executed, as_version=4)
    assert after.cells[0].source == "# Another title"
    assert after.cells[-1].source.endswith("# a comment")
    assert [cell.get("outputs") for cell in after.cells] == [cell.get("outputs") for cell in before.cells]
    assert [cell.source for cell in after.cells[1:-1]] == [cell.source for cell in before.cells[1:-1]]
    (bench.run / "a.txt").unlink()  # is made again, with the content that the second notebook has seen
    assert bench.reproduce() == {"01-first": True, "02-second": False}
    bench.parameters(**{"01_first": {**first, "parameters": {"factor": 5}}, "02_second": second})
    assert bench.reproduce() == {"01-first": True, "02-second": True}
    assert (bench.run / "b.txt").read_text().startswith("5 ")
    files.write_text(bench.notebooks / "testbeds" / "local.yml", "changed")
    assert bench.reproduce(only=["01-first"]) == {"01-first": True}
    assert bench.reproduce(only=["01-first"], force=True) == {"01-first": True}


def test_a_deleted_measurement_is_noticed_and_the_report_goes_with_the_results(bench, monkeypatch, capsys):
    bench.notebook("01-first", WRITE_A, MEASURE)
    bench.notebook("02-second", WRITE_B)
    bench.parameters(**{"01_first": {"outputs": ["a.txt"]}, "02_second": {"outputs": ["b.txt"]}})
    for function in (prepare, reproduce):  # the command's, in these folders
        defaults = (*(function.__defaults__ or ())[:-2], bench.notebooks, bench.results)
        monkeypatch.setattr(function, "__defaults__", defaults)
    report, case = bench.run / "report.html", bench.run / "records" / "01-case.json"

    assert main(["reproduce", "small"]) == 0
    minutes = sum(files.load(NotebookRecord, path).seconds for path in bench.run.glob("notebooks/*.json")) / 60
    printed = capsys.readouterr().out
    assert "01-first                 starts: it has not been executed yet" in printed
    assert printed.endswith(f"report: {report}; all notebooks took {minutes:.1f} minutes\n")
    assert "Made by <code>hiertrain reproduce small</code>" in report.read_text()
    written = report.read_text()

    report.unlink()
    assert main(["reproduce", "small", "--only", "02-second"]) == 0
    assert "no report: it shows all notebooks" in capsys.readouterr().out
    assert main(["reproduce", "small"]) == 0  # nothing runs, but the report is written
    assert "0 of 2 notebooks executed" in capsys.readouterr().out
    assert report.read_text() == written

    files.write_text(bench.run / "records" / "01-case.failed.json", "of an earlier failure")
    case.unlink()
    (bench.notebooks / "02-second.ipynb").unlink()
    bench.notebook("02-second", "factor / 0")
    assert main(["reproduce", "small"]) == 1  # in the second notebook
    assert "01-first                 starts: records/01-case.json is missing" in capsys.readouterr().out
    assert case.exists()
    assert not report.exists()
    record = files.load(NotebookRecord, bench.run / "notebooks" / "01-first.json")
    assert record.outputs.keys() == {"a.txt", "records/01-case.json"}
    case.write_text("changed")
    assert bench.reproduce(only=["01-first"]) == {"01-first": True}
    assert "starts: records/01-case.json is not as the notebook left it" in capsys.readouterr().out


def test_figures_and_the_time_of_records_are_no_input_of_later_notebooks_and_another_rule_is_said(bench, capsys):
    draw = '(folder / "figures").mkdir(exist_ok=True)\n(folder / "figures" / "a.csv").write_text(str(time.time()))'
    record = '{"results": {}, "environment": "TIME"}'
    keep = f"path = folder / 'records' / '00-first.json'\npath.write_text({record!r}.replace('TIME', str(time.time())))"
    make = '(folder / "records").mkdir(exist_ok=True)'
    bench.notebook("01-first", make, draw, keep)
    bench.notebook("02-second", WRITE_A)
    first = {"outputs": ["figures/a.csv", "records/00-first.json"]}
    bench.parameters(**{"01_first": first, "02_second": {"outputs": ["a.txt"]}})
    assert bench.reproduce() == {"01-first": True, "02-second": True}
    bench.notebook("01-first", make, draw, keep, "factor")
    assert bench.reproduce() == {"01-first": True, "02-second": False}
    path = bench.run / "notebooks" / "02-second.json"
    path.write_text(path.read_text().replace("code-1:", ""))
    capsys.readouterr()
    assert bench.reproduce() == {"01-first": False, "02-second": True}
    assert "starts: its record does not say by the rule code-1 what it was made from" in capsys.readouterr().out


def test_an_error_names_notebook_and_cell_and_leaves_no_success(bench):
    bench.notebook("01-first", "value = 3", "# what is wrong\nassert value == 4, 'three'")
    bench.notebook("02-second", WRITE_B)
    bench.parameters(**{"01_first": {"outputs": ["a.txt"]}, "02_second": {"outputs": ["b.txt"]}})
    for stale in ("01-first.json", "01-first.ipynb"):
        files.write_text(bench.run / "notebooks" / stale, "{}")
    with pytest.raises(NotebookError, match=r"01-first: cell (\d+) of .*`# what is wrong`: AssertionError: three") as e:
        bench.reproduce()
    assert "----> 2 assert value == 4" in str(e.value)
    assert bench.left_behind() == ["01-first.failed.ipynb"]
    copy = nbformat.read(bench.run / "notebooks" / "01-first.failed.ipynb", as_version=4)
    number = int(str(e.value).split("cell ")[1].split()[0])
    assert copy.cells[number - 1].source.startswith("# what is wrong")


def test_an_error_of_one_line_is_shown_as_one_line_and_the_rest_on_demand(bench):
    fail = "from hiertrain import files; files.load(int, 'none.json')"
    bench.notebook("01-first", f'_ = get_ipython().run_cell("{fail}"); get_ipython().run_line_magic("tb", "")')
    bench.parameters(**{"01_first": {"outputs": ["a.txt"]}})
    message = "InputError: none.json: No such file or directory"
    with pytest.raises(NotebookError, match=rf"{message}\nthe executed copy is \S+$"):
        bench.reproduce()
    cells = nbformat.read(bench.run / "notebooks" / "01-first.failed.ipynb", as_version=4).cells
    alone, whole = (output.traceback for output in cells[-1].outputs)
    assert alone == [message, ON_DEMAND]
    assert "raise InputError" in "".join(whole)


def test_a_dead_kernel_names_the_cell(bench):
    bench.notebook("01-first", "os.kill(os.getpid(), 9)")
    bench.parameters(**{"01_first": {"outputs": ["a.txt"]}})
    with pytest.raises(NotebookError, match=r"01-first: cell 5 of .*`os.kill\(os.getpid\(\), 9\)`: the kernel died"):
        bench.reproduce()
    assert bench.left_behind() == ["01-first.failed.ipynb"]


def test_outputs_must_be_written_by_this_execution(bench):
    bench.notebook("01-first", "factor")
    bench.parameters(**{"01_first": {"outputs": ["a.txt"]}})
    files.write_text(bench.run / "a.txt", "from an earlier time")
    with pytest.raises(NotebookError, match=r"01-first: output a\.txt was there before and was not rewritten"):
        bench.reproduce()
    (bench.run / "a.txt").unlink()
    with pytest.raises(NotebookError, match=r"01-first: output a\.txt was not produced"):
        bench.reproduce()
    assert bench.left_behind() == ["01-first.failed.ipynb"]


DRAW = """import pandas as pd
from hiertrain.figures import plot_times, save_figure
df = pd.DataFrame({"policy": ["a"], "kind": ["predicted"], "iteration_ms": [1.0], "low_ms": [1.0], "high_ms": [1.0]})"""
FIRST, SECOND = (f'save_figure(plot_times(df), "{n}", "try", df, "Predicted {n}.", folder.parent)' for n in "ab")


def test_every_figure_is_shown_once_where_it_is_saved_with_its_caption_below(bench):
    bench.notebook("01-first", DRAW, FIRST, f"fig = plot_times(df)\n{SECOND}")
    bench.parameters(**{"01_first": {"outputs": ["figures/a.png", "figures/b.png"]}})
    bench.reproduce()
    cells = nbformat.read(bench.run / "notebooks" / "01-first.ipynb", as_version=4).cells
    for name, cell in zip("ab", cells[-2:], strict=True):
        image, caption = cell.outputs
        assert base64.b64decode(image.data["image/png"]) == (bench.run / "figures" / f"{name}.png").read_bytes()
        assert image.metadata["image/png"] == {"width": 640, "alt": f"Predicted {name}."}
        assert caption.data["text/markdown"] == f"Predicted {name}."


@pytest.mark.parametrize(
    ("shown", "message"),
    [
        ("", r"figures/a\.png is shown 0 times"),
        ("show(saved); show(caption); show(saved); show(caption)", r"figures/a\.png is shown 2 times"),
        ("show(saved); show({'text/plain': '5'})", r"figures/a\.png is shown without its caption below it"),
        ("show(saved); show(caption); show({'image/png': 'b3RoZXI='})", "1 images that it shows are none of its out"),
    ],
)
def test_a_notebook_without_its_pictures_is_an_error(bench, shown, message):
    save = '(folder / "figures").mkdir(); (folder / "figures" / "a.png").write_bytes(b"picture")'
    show = "from IPython.display import display\nshow = lambda data: display(data, raw=True)"
    outputs = 'saved, caption = {"image/png": "cGljdHVyZQ=="}, {"text/markdown": "Its caption."}'
    bench.notebook("01-first", save, show, outputs, shown)
    bench.parameters(**{"01_first": {"outputs": ["figures/a.png"]}})
    with pytest.raises(NotebookError, match=message):
        bench.reproduce()


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"parameters": {"facter": 2}}, r"01-first: parameter 'facter' does not exist; did you mean 'factor'\?"),
        ({"parameters": {"zzz": 2}}, r"parameter 'zzz' does not exist; there are run, factor, names, bare"),
        ({"parameters": {"factor": "2"}}, r"parameter 'factor': must be a int, got '2'"),
        ({"parameters": {"names": ["a", 1]}}, r"parameter 'names': must be a list\[str\], got \['a', 1\]"),
        ({"parameters": {"bare": 1}}, r"parameter 'bare': the notebook gives it no type"),
        ({"parameters": {"run": "other"}}, r"parameter 'run' is set by the driver"),
        ({"outputs": ["../a.txt"]}, r"output '\.\./a\.txt': must be a path inside the run's folder"),
        ({"outputs": []}, r"small\.yml: notebook '01-first': must have outputs"),
        ({"without": ["x"]}, r"small\.yml: notebook '01-first': must have outputs, and nothing to go without"),
        ({"output": ["a.txt"]}, r"small\.yml: notebooks\.01-first\.output: unknown field"),
    ],
)
def test_a_bad_parameter_file_is_refused_before_anything_runs(bench, part, message):
    bench.notebook("01-first", WRITE_A)
    bench.parameters(**{"01_first": {"outputs": ["a.txt"], **part}})
    with pytest.raises(InputError, match=message):
        bench.reproduce()
    assert not bench.results.exists()


def variant(bench: Bench, **notebooks: object) -> None:
    content = {"base": "small", "run": "smaller", "notebooks": notebooks}
    (bench.notebooks / "parameters" / "smaller.yml").write_text(yaml.safe_dump(content))


def test_a_variant_says_only_what_is_different(bench):
    for name in ("01-first", "02-second"):
        bench.notebook(name, WRITE_A)
    first = {"outputs": ["a.txt"], "figures": ["x", "y"], "parameters": {"factor": 2, "names": ["y"]}}
    bench.parameters(**{"01_first": first, "02_second": {"outputs": ["c.txt"]}})
    variant(bench, **{"01-first": {"parameters": {"factor": 3}, "without": ["x"], "reads": ["try/*.txt"]}})
    files.write_text(bench.run / "a.txt", "there")
    (job,) = prepare("smaller", notebooks=bench.notebooks, results=bench.results)
    assert job.parameters == {"run": "smaller", "factor": 3, "names": ["y"]}
    assert job.outputs == ("a.txt", "figures/y.png", "figures/y.pdf", "figures/y.csv")
    assert job.reads == (bench.run / "a.txt",)
    before = fingerprint(job, "")
    files.write_text(bench.run / "a.txt", "changed")
    assert fingerprint(job, "") != before
    for part, message in [
        ({"01-frist": {}}, r"notebook of 'small' '01-frist' does not exist; did you mean '01-first'\?"),
        ({"01-first": {"without": ["z"]}}, r"01-first: figure of 'small' 'z' does not exist"),
        ({"01-first": {"outputs": ["a.txt"]}}, r"notebook '01-first': its outputs are those of the base 'small'"),
    ]:
        variant(bench, **part)
        with pytest.raises(InputError, match=message):
            prepare("smaller", notebooks=bench.notebooks, results=bench.results)
    nested = bench.notebooks / "parameters" / "nested.yml"
    nested.write_text(yaml.safe_dump({"base": "smaller", "run": "nested", "notebooks": {"01-first": {}}}))
    variant(bench, **{"01-first": {}})
    with pytest.raises(InputError, match=r"nested\.yml: its base 'smaller' is a variant of 'small'; must"):
        prepare(nested, notebooks=bench.notebooks, results=bench.results)


def test_the_committed_reference_and_what_cannot_be_written_are_refused_before_any_work(bench):
    bench.notebook("01-first", WRITE_A)
    bench.parameters(**{"01_first": {"outputs": ["a.txt"]}})
    with pytest.raises(InputError, match="run 'reference': is committed; choose another one"):
        bench.reproduce(run="reference")
    bench.results.touch()
    with pytest.raises(InputError, match=r"try/notebooks/01-first.ipynb: cannot be written: Not a directory"):
        bench.reproduce()


def test_missing_things_are_named(bench):
    bench.notebook("01-first", WRITE_A)
    bench.notebook("02-untagged", WRITE_A, tags=())
    (bench.notebooks / "03-broken.ipynb").write_text("no notebook")
    for name, message in [
        ("01_frist", r"notebook '01-frist' does not exist; did you mean '01-first'\?"),
        ("02_untagged", r"02-untagged\.ipynb: no cell is tagged 'parameters'"),
        ("03_broken", r"03-broken\.ipynb: not a notebook that can be executed"),
    ]:
        bench.parameters(**{"01_first": {"outputs": ["a.txt"]}, name: {"outputs": ["b.txt"]}})
        with pytest.raises(InputError, match=message):
            prepare("small", notebooks=bench.notebooks, results=bench.results)
    with pytest.raises(InputError, match=r"parameter file 'smoll' does not exist; did you mean 'small'\?"):
        prepare("smoll", notebooks=bench.notebooks)
    bench.parameters(**{"01_first": {"outputs": ["a.txt"]}})
    with pytest.raises(InputError, match=r"notebook '02' does not exist"):
        bench.reproduce(only=["02"])
    with pytest.raises(InputError, match=r"run name '\.\./x'"):
        bench.reproduce(run="../x")
    assert not bench.results.exists()


def test_an_interrupt_stops_the_kernel_and_keeps_what_is_finished(bench, tmp_path):
    """Ctrl-C in the middle of the second notebook: its own clean-up code still runs."""
    bench.notebook("01-first", WRITE_A)
    wait = 'try:\n    (folder / "pid").write_text(str(os.getpid()))\n    time.sleep(100)\nfinally:\n'
    bench.notebook("02-second", wait + '    (folder / "cleaned").touch()')
    bench.parameters(**{"01_first": {"outputs": ["a.txt"]}, "02_second": {"outputs": ["b.txt"]}})
    code = f"""
from pathlib import Path
from hiertrain.reproduction.notebooks import reproduce
reproduce("small", notebooks=Path({str(bench.notebooks)!r}), results=Path({str(bench.results)!r}))
"""
    log = tmp_path / "log"
    with log.open("w") as output:
        driver = subprocess.Popen([sys.executable, "-c", code], stdout=output, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 60
    while not (bench.run / "pid").is_file() or not (bench.run / "pid").read_text():
        assert driver.poll() is None, log.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    driver.send_signal(signal.SIGINT)
    driver.wait(timeout=30)
    assert "02-second: interrupted; finished notebooks are kept" in log.read_text()
    assert (bench.run / "cleaned").exists()
    assert not psutil.pid_exists(int((bench.run / "pid").read_text()))
    assert bench.left_behind() == ["01-first.ipynb", "01-first.json", "02-second.failed.ipynb"]
    assert bench.reproduce(only=["01-first"]) == {"01-first": False}
