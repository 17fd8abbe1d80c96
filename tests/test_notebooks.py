"""The rules of the notebooks that need no kernel, and the parameter files against the notebooks.

Each rule is a function from a notebook to what breaks it; one test holds all notebooks to all rules, another makes
each rule fail.
"""

import ast
import re
from collections.abc import Iterator

import nbformat
import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from papermill.translators import PythonTranslator

from hiertrain.paths import NOTEBOOKS
from hiertrain.reproduction.parameters import prepare

PATHS = sorted(NOTEBOOKS.glob("*.ipynb"))
PARAMETER_FILES = sorted((NOTEBOOKS / "parameters").glob("*.yml"))
LONGEST_CELL = 15  # lines
SHOWING = {"figures", "results"}  # rooms that every notebook imports from
READERS = {"Path", "PurePath", "open", "read_csv", "read_json", "load", "loadtxt", "chdir"}  # take a path first


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def parameter_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]


def is_a_valid_notebook(notebook: NotebookNode) -> Iterator[str]:
    try:
        nbformat.validate(notebook)
    except nbformat.ValidationError as error:
        yield f"not valid: {error}"
    if notebook.metadata.get("kernelspec", {}).get("name") != "python3":
        yield "the kernel must be python3"


def is_stripped(notebook: NotebookNode) -> Iterator[str]:
    for cell in code_cells(notebook):
        if cell.outputs or cell.execution_count is not None:
            yield f"has outputs: {cell.source[:60]!r}"


def opens_with_the_question(notebook: NotebookNode) -> Iterator[str]:
    first = notebook.cells[0]
    if first.cell_type != "markdown" or not first.source.startswith("# "):
        yield "the first cell must be a title"
    for word in ("Question", "Inputs", "Outputs", "Expected minutes"):
        if f"**{word}.**" not in first.source:
            yield f"the first cell must have a paragraph **{word}.**"
    if not re.search(r"\*\*Expected minutes\.\*\* [\d.]+", first.source):
        yield "the expected minutes must be a number"


def has_one_cell_of_typed_parameters(notebook: NotebookNode) -> Iterator[str]:
    cells = parameter_cells(notebook)
    if len(cells) != 1 or cells[0].cell_type != "code":
        yield f"exactly one code cell must be tagged 'parameters', there are {len(cells)}"
        return
    names = []
    lines = cells[0].source.splitlines()
    for statement in ast.parse(cells[0].source).body:
        if not (isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and statement.value):
            yield f"parameter without a type or a value: {ast.unparse(statement)}"
            continue
        names.append(statement.target.id)
        if not re.search(r"\s# \S", lines[(statement.end_lineno or 0) - 1]):
            yield f"parameter without a unit comment: {ast.unparse(statement)}"
        if not is_literal(statement.value):
            yield f"parameter that is no literal: {ast.unparse(statement)}"
    if "run" not in names:
        yield "there must be a parameter 'run'"
    seen = [parameter.name for parameter in PythonTranslator.inspect(cells[0])]
    if seen != names:
        yield f"papermill understands only {seen} of {names}"


def is_literal(value: ast.expr) -> bool:
    try:
        ast.literal_eval(value)
    except ValueError:
        return False
    return True


def has_short_cells(notebook: NotebookNode) -> Iterator[str]:
    for cell in code_cells(notebook):
        if len(cell.source.splitlines()) > LONGEST_CELL:
            yield f"code cell of more than {LONGEST_CELL} lines: {cell.source[:60]!r}"
        if not cell.source.strip():
            yield "empty code cell"


def syntax(cell: NotebookNode) -> ast.Module | None:
    """The parsed cell; None where it is no plain Python."""
    try:
        return ast.parse(cell.source)
    except SyntaxError:
        return None


def is_plain_python(notebook: NotebookNode) -> Iterator[str]:
    for cell in code_cells(notebook):
        tree = syntax(cell)
        if tree is None:
            yield f"not plain Python (a magic or a shell command?): {cell.source[:60]!r}"
            continue
        for node in ast.walk(tree):
            match node:
                case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef() | ast.Try() | ast.TryStar():
                    yield f"{type(node).__name__} belongs into the package: {ast.unparse(node)[:60]!r}"
                case ast.Import(names=[ast.alias(name=module), *_]) | ast.ImportFrom(module=str(module)):
                    if module.partition(".")[0] in {"warnings", "subprocess", "logging"}:
                        yield f"imports {module}"
                case ast.Name(id="get_ipython") | ast.Attribute(value=ast.Name(id="os"), attr="system"):
                    yield f"calls the shell: {ast.unparse(node)}"


def has_no_relative_paths(notebook: NotebookNode) -> Iterator[str]:
    for node in (node for cell in code_cells(notebook) if (tree := syntax(cell)) for node in ast.walk(tree)):
        match node:
            case ast.Constant(value=str(text)) if text.startswith(("./", "../", "~")):
                yield f"relative path {text!r}"
            case ast.Call(
                func=ast.Name(id=name) | ast.Attribute(attr=name), args=[ast.Constant(value=str(text)), *_]
            ) if name in READERS and not text.startswith("/"):
                yield f"relative path in {ast.unparse(node)!r}"


def imports_from_few_rooms(notebook: NotebookNode) -> Iterator[str]:
    nodes = [node for cell in code_cells(notebook) if (tree := syntax(cell)) for node in ast.walk(tree)]
    modules = [node.module.split(".") for node in nodes if isinstance(node, ast.ImportFrom) and node.module]
    rooms = {parts[1] for parts in modules if parts[0] == "hiertrain" and len(parts) > 1} - SHOWING
    if len(rooms) > 2:
        yield f"imports from {', '.join(sorted(rooms))}; beside hiertrain itself and what shows results, two will do"


def ends_with_record_and_assertion(notebook: NotebookNode) -> Iterator[str]:
    last = notebook.cells[-1]
    if last.cell_type != "code" or "save_record(" not in last.source or "assert " not in last.source:
        yield "the last cell must save the record and assert the headline"


RULES = [
    is_a_valid_notebook,
    is_stripped,
    opens_with_the_question,
    has_one_cell_of_typed_parameters,
    has_short_cells,
    is_plain_python,
    has_no_relative_paths,
    imports_from_few_rooms,
    ends_with_record_and_assertion,
]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_notebooks_keep_the_rules(path, rule):
    assert list(rule(nbformat.read(path, as_version=4))) == []


def small_notebook() -> NotebookNode:
    """Keeps all rules."""
    title = "# 00 T\n\n**Question.** Why?\n\n**Inputs.** None.\n\n**Outputs.** None.\n\n**Expected minutes.** 1"
    parameters = 'run: str = "x"  # folder under results/\nrates: dict[str, float] = {"a": 1.5}  # Mbit/s'
    cells = [
        new_markdown_cell(title),
        new_code_cell(parameters, metadata={"tags": ["parameters"]}),
        new_code_cell("from hiertrain.results.records import save_record"),
        new_code_cell('save_record(run, "00", {}, {})\nassert rates'),
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return new_notebook(cells=cells, metadata={"kernelspec": kernel})


def test_the_small_notebook_keeps_all_rules():
    assert [problem for rule in RULES for problem in rule(small_notebook())] == []


@pytest.mark.parametrize(
    ("rule", "index", "source"),
    [
        (opens_with_the_question, 0, "No title.\n\n**Question.** Why?"),
        (opens_with_the_question, 0, small_notebook().cells[0].source.replace("minutes.** 1", "minutes.** few")),
        (has_one_cell_of_typed_parameters, 1, 'run = "x"  # folder'),
        (has_one_cell_of_typed_parameters, 1, 'run: str = "x"'),
        (has_one_cell_of_typed_parameters, 1, 'run: str = str("x")  # folder'),
        (has_one_cell_of_typed_parameters, 1, "seed: int = 0  # of the weights"),
        (
            has_one_cell_of_typed_parameters,
            1,
            'run: str = "x"  # folder\nn: int | None = None  # unions confuse papermill',
        ),
        (has_short_cells, 2, "x = 1\n" * (LONGEST_CELL + 1)),
        (has_short_cells, 2, ""),
        (is_plain_python, 2, "def f(): pass"),
        (is_plain_python, 2, "class A: pass"),
        (is_plain_python, 2, "try:\n    x = 1\nfinally:\n    y = 1"),
        (is_plain_python, 2, "%matplotlib inline"),
        (is_plain_python, 2, "!ls"),
        (is_plain_python, 2, "get_ipython().run_line_magic('time', '1')"),
        (is_plain_python, 2, "import warnings"),
        (is_plain_python, 2, "from subprocess import run"),
        (has_no_relative_paths, 2, 'text = "../results/a.csv"'),
        (has_no_relative_paths, 2, 'open("a.csv")'),
        (has_no_relative_paths, 2, 'pd.read_csv("tables/a.csv")'),
        (
            imports_from_few_rooms,
            2,
            "\n".join(f"from hiertrain.{room} import x" for room in ("a", "b", "c.d", "figures")),
        ),
        (ends_with_record_and_assertion, 3, 'save_record(run, "00", {}, {})'),
        (ends_with_record_and_assertion, 3, "assert run"),
    ],
)
def test_each_rule_can_be_broken(rule, index, source):
    notebook = small_notebook()
    notebook.cells[index].source = source
    assert list(rule(notebook))


def test_outputs_tags_and_formats_are_looked_at():
    notebook = small_notebook()
    notebook.cells[2].outputs = [new_output("stream", text="x")]
    assert list(is_stripped(notebook))
    notebook = small_notebook()
    notebook.cells[2].execution_count = 1
    assert list(is_stripped(notebook))
    notebook = small_notebook()
    notebook.cells[2].metadata = NotebookNode({"tags": ["parameters"]})
    assert list(has_one_cell_of_typed_parameters(notebook))
    notebook = small_notebook()
    notebook.metadata.kernelspec.name = "another"
    assert list(is_a_valid_notebook(notebook))
    notebook.cells[2].cell_type = "unknown"
    assert len(list(is_a_valid_notebook(notebook))) == 2


@pytest.mark.parametrize("path", PARAMETER_FILES, ids=lambda path: path.stem)
def test_parameter_files_know_every_notebook_and_only_their_parameters(path):
    jobs = prepare(path)
    assert jobs[0].folder.name == path.stem
    names = [job.name for job in jobs]
    if path.stem == "predicted":  # without those that execute
        assert names == [notebook.stem for notebook in PATHS if notebook.stem in names]
    else:
        assert names == [notebook.stem for notebook in PATHS]
