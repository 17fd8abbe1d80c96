"""The parameter files, notebooks/parameters/<name>.yml, checked against the notebooks that they are for."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import nbformat
import papermill
from pydantic import Field, JsonValue, TypeAdapter, ValidationError, field_validator, model_validator

from hiertrain import files
from hiertrain.paths import INTERACTIVE, NOTEBOOKS, RESULTS
from hiertrain.results.records import run_folder
from hiertrain.values import InputError, Name, Value

FIGURE_ENDINGS = ("png", "pdf", "csv")  # of the files that ``save_figure`` writes


class NotebookSettings(Value):
    """What one notebook gets, and what must exist under results/<run>/ after it."""

    parameters: dict[str, JsonValue] = Field(default_factory=dict)  # in a variant: beside those of its base
    reads: tuple[str, ...] = ()  # files of other runs, below results/; may have the wildcard *
    outputs: tuple[str, ...] = ()  # all files but those of figures; in a variant: those of its base
    figures: tuple[Name, ...] = ()  # by name; in a variant: those of its base
    without: tuple[Name, ...] = ()  # in a variant: figures of its base that do not appear

    @field_validator("outputs")
    @classmethod
    def _inside(cls, outputs: tuple[str, ...]) -> tuple[str, ...]:
        for output in outputs:
            path = PurePosixPath(output)
            if path.is_absolute() or ".." in path.parts:
                raise InputError(f"output {output!r}: must be a path inside the run's folder")
        return outputs


class ParameterFile(Value):
    """notebooks/parameters/<name>.yml: which notebooks to execute, in which order.

    A variant names another one as its base and says only what is different; what it does not list is not executed.
    """

    base: Name | None = None
    run: Name  # folder under results/, unless another one is asked for
    notebooks: dict[Name, NotebookSettings] = Field(min_length=1)

    @model_validator(mode="after")
    def _outputs_are_declared_once(self) -> "ParameterFile":
        for name, settings in self.notebooks.items():
            if self.base is None and (settings.without or not settings.outputs):
                raise ValueError(f"notebook {name!r}: must have outputs, and nothing to go without")
            if self.base is not None and (settings.outputs or settings.figures):
                raise ValueError(f"notebook {name!r}: its outputs are those of the base {self.base!r}")
        return self


@dataclass(frozen=True)
class Job:
    """One notebook, ready to be executed."""

    name: str
    source: Path
    parameters: Mapping[str, JsonValue]
    folder: Path  # results/<run>
    reads: tuple[Path, ...]  # files of other runs
    outputs: tuple[str, ...]
    cells: int

    def path(self, ending: str) -> Path:
        """The executed copy (".ipynb"), its record (".json") or what a failure left (".failed.ipynb")."""
        return self.folder / "notebooks" / f"{self.name}{ending}"


def prepare(
    parameter_file: str | Path, run: str | None = None, notebooks: Path = NOTEBOOKS, results: Path = RESULTS
) -> list[Job]:
    """Check a parameter file against the notebooks that it names; nothing is executed. Raises InputError."""
    path = _parameter_path(parameter_file, notebooks)
    settings = _load_parameters(path, notebooks)
    folder = run_folder(settings.run if run is None else run, results)
    if folder.name == INTERACTIVE.name:
        raise InputError(f"run name {folder.name!r}: what is opened by hand has it; must be another one")
    return [_prepare(name, part, notebooks, folder, path) for name, part in settings.notebooks.items()]


def _load_parameters(path: Path, notebooks: Path) -> ParameterFile:
    """The parameter file, whole. Raises InputError, also for what a variant's base does not have."""
    variant = files.load(ParameterFile, path)
    if variant.base is None:
        return variant
    beneath = files.load(ParameterFile, _parameter_path(variant.base, notebooks))
    if beneath.base is not None:
        raise InputError(f"{path}: its base {variant.base!r} is a variant of {beneath.base!r}; must be a whole one")
    base = beneath.notebooks
    whole = {}
    for name, changes in variant.notebooks.items():
        check_known(f"{path}: notebook of {variant.base!r}", name, list(base))
        for figure in changes.without:
            check_known(f"{path}: {name}: figure of {variant.base!r}", figure, base[name].figures)
        whole[name] = NotebookSettings(
            parameters={**base[name].parameters, **changes.parameters},
            reads=changes.reads,
            outputs=base[name].outputs,
            figures=tuple(figure for figure in base[name].figures if figure not in changes.without),
        )
    return ParameterFile(run=variant.run, notebooks=whole)


def _parameter_path(parameter_file: str | Path, notebooks: Path) -> Path:
    """The file itself, or notebooks/parameters/<name>.yml. Raises InputError with the names that exist."""
    path = Path(parameter_file)
    if path.suffix in (".yml", ".yaml"):
        return path
    folder = notebooks / "parameters"
    check_known(f"{folder}: parameter file", str(parameter_file), sorted(known.stem for known in folder.glob("*.yml")))
    return folder / f"{parameter_file}.yml"


def check_known(kind: str, name: str, known: Sequence[str]) -> None:
    """Raise InputError that suggests what may have been meant."""
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known) or 'none'}"
        raise InputError(f"{kind} {name!r} does not exist; {hint}")


def _prepare(name: str, settings: NotebookSettings, notebooks: Path, folder: Path, path: Path) -> Job:
    """Check one notebook's parameters against those that it declares. Raises InputError."""
    check_known(f"{path}: notebook", name, sorted(source.stem for source in notebooks.glob("*.ipynb")))
    source = notebooks / f"{name}.ipynb"
    try:
        cells = nbformat.read(source, as_version=4).cells
        declared = papermill.inspect_notebook(source)
    except ValueError as error:  # no JSON, or no kernel named
        raise InputError(f"{source}: not a notebook that can be executed: {str(error)[:100]}") from None
    if not any("parameters" in cell.metadata.get("tags", []) for cell in cells):
        raise InputError(f"{source}: no cell is tagged 'parameters'; exactly one must be")
    if "run" in settings.parameters:
        raise InputError(f"{path}: {name}: parameter 'run' is set by the driver; name the run at the top of the file")
    parameters = {"run": folder.name, **settings.parameters}
    for parameter, value in parameters.items():
        check_known(f"{path}: {name}: parameter", parameter, list(declared))
        _check_type(f"{path}: {name}: parameter {parameter!r}", value, declared[parameter]["inferred_type_name"])
    reads = tuple(sorted(found for pattern in settings.reads for found in folder.parent.glob(pattern)))
    figures = (f"figures/{figure}.{ending}" for figure in settings.figures for ending in FIGURE_ENDINGS)
    return Job(name, source, parameters, folder, reads, (*settings.outputs, *figures), len(cells))


def _check_type(where: str, value: JsonValue, annotation: str) -> None:
    """Raise InputError unless the value has the type that the notebook annotates, such as ``list[int]``."""
    if annotation == "None":
        raise InputError(f"{where}: the notebook gives it no type; one is needed, as in 'samples: int = 1'")
    try:
        expected = eval(annotation, {})  # the notebook's own code, which is about to be executed anyway
        TypeAdapter(expected).validate_python(value, strict=True)
    except ValidationError as error:
        raise InputError(f"{where}: must be a {annotation}, got {value!r} ({error.errors()[0]['msg']})") from None
    except NameError as error:
        raise InputError(f"{where}: annotated with a type that is not built in: {error}") from None
