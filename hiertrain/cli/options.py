"""What the parsed options of ``hiertrain`` mean: values, checked before any work starts. All raise InputError."""

import argparse
import json
import re
from collections.abc import Collection
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from pydantic import ValidationError

from hiertrain import files
from hiertrain.control.torchrun import Machine
from hiertrain.problem.execution import EXECUTIONS, Execution
from hiertrain.problem.network import Network
from hiertrain.problem.plan import Plan
from hiertrain.problem.problem import Problem
from hiertrain.problem.profile import Profile
from hiertrain.problem.solution import Solution
from hiertrain.program.actions import Program
from hiertrain.program.table import from_csv
from hiertrain.values import InputError, PositiveSeconds, check, one_line, shown
from hiertrain.workload.spec import ModelSettings, OptimizerSettings, Training

if TYPE_CHECKING:
    from hiertrain.workload.datasets import Dataset

BATCH_SIZE = 128  # samples per mini-batch over all workers, as in the notebooks
ITERATIONS = 200  # mini-batches after which LeNet-5 has learnt digits
UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
# Executions that have a name. All others are said by their fields: see ``execution_of``.
PRESETS: dict[str, dict[str, object]] = {
    **{name: execution.model_dump(exclude_defaults=True) for name, execution in EXECUTIONS.items()},
    "paper-float32": {"sample_encoding": "float32"},
    "jalad": {"activation_encoding": "uint8"},
}


def execution_of(options: argparse.Namespace) -> Execution:
    """The execution of ``--execution``: names of presets and fields with values, of which later ones win.

    Raises InputError that names the fields and the values that there are.
    """
    content: dict[str, object] = {}
    for part in options.execution.split(","):
        name, given, value = part.partition("=")
        content |= {name: _field_value(value)} if given else PRESETS.get(name, {name: None})
    try:
        return Execution.model_validate(content)
    except ValidationError as error:
        field = error.errors(include_url=False)[0]["loc"][0]
        fields = (f"{name}={_values_of(one.annotation)}" for name, one in Execution.model_fields.items())
        wrong = next(part for part in options.execution.split(",") if part.partition("=")[0] == field)
        raise InputError(
            f"--execution: {shown(wrong)}: must be {', '.join(PRESETS)}, or fields with commas between: "
            f"{', '.join(fields)}"
        ) from None


def _field_value(text: str) -> object:
    """A number, true or false as in JSON; anything else is text."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _values_of(annotation: object) -> str:
    """The values of a field for people, by its type."""
    known = get_args(annotation) or (("true", "false") if annotation is bool else ())
    return "|".join(map(str, known)) or getattr(annotation, "__name__", str(annotation)).upper()


def execution_text(execution: Execution) -> str:
    """What ``execution_of`` takes for it."""
    changed = {name: value for name, value in execution.model_dump().items() if value != getattr(Execution(), name)}
    named = next((name for name, fields in PRESETS.items() if fields == changed), None)
    return named or ",".join(f"{name}={json.dumps(value).strip(chr(34))}" for name, value in changed.items())


def asked_for(options: argparse.Namespace, data_holder: str) -> Plan | Program | None:
    """What ``--plan`` or ``--program`` gives, if any. Raises InputError where other options have no effect then."""
    path = options.plan or options.program
    if path is None:
        return None
    if useless := constraints(options):
        given = "--plan" if options.plan else "--program"
        raise InputError(f"{useless[0]}: has no effect with {given}, which is not searched for")
    asked = load_plan(options.plan, execution_of(options)) if options.plan else load_program(options)
    if asked.data_holder != data_holder:
        raise InputError(f"{path}: data holder {asked.data_holder!r}; the testbed's is {data_holder!r}")
    return asked


def batch_size(options: argparse.Namespace, asked: Plan | Program | None) -> int:
    """That of what is asked for, or of the options. Raises InputError where they are two."""
    if asked is None:
        return BATCH_SIZE if options.batch_size is None else options.batch_size
    if options.batch_size not in (None, asked.batch_size):
        what = "plan" if isinstance(asked, Plan) else "program"
        raise InputError(f"--batch-size {options.batch_size}: the {what}'s is {asked.batch_size}")
    return asked.batch_size


def constraints(options: argparse.Namespace) -> list[str]:
    """The options that leave out plans, of those that are set."""
    search = {"--root": options.root, "--exclude": options.exclude, "--memory-limit": options.memory_limit}
    search |= {"--samples-stay": options.samples_stay, "--shape": options.shape != "tree"}
    return [name for name, value in search.items() if value]


def check_time_limit(options: argparse.Namespace) -> None:
    """Raise InputError for a time limit that is none."""
    check("time limit in s", options.time_limit, PositiveSeconds)


def check_search(options: argparse.Namespace, workers: Collection[str]) -> None:
    """Raise InputError for options of the search that name no worker of the testbed, or limit nothing."""
    check_time_limit(options)
    limited = [memory_limit(text)[0] for text in options.memory_limit]
    for name in (*options.exclude, *limited, *([options.root] if options.root else [])):
        if name not in workers:
            raise InputError(f"worker {name!r} is not in the testbed; it has {', '.join(workers)}")


def load_plan(path: Path, execution: Execution) -> Plan:
    """A plan, from a plan file or from the solution file of the same execution."""
    found = files.load_one_of((Plan, Solution), path)
    if isinstance(found, Plan):
        return found
    if found.settings.execution != execution:
        known = execution_text(found.settings.execution)
        raise InputError(f"{path}: was optimized for another execution; must be used with --execution {known}")
    return found.plan


def load_program(options: argparse.Namespace) -> Program:
    """The program of ``--program``: a table, or JSON where the name ends in .json."""
    if execution_of(options) != Execution.paper():
        raise InputError(f"--execution {options.execution}: has no effect with --program, whose messages say it")
    if options.program.suffix == ".json":
        return files.load(Program, options.program)
    text = files.read_text(options.program)
    try:
        return from_csv(text)
    except InputError as error:
        raise InputError(f"{one_line(str(options.program))}: {error}") from None


def search_problem(
    options: argparse.Namespace,
    profile: Profile,
    network: Network,
    data_holder: str,
    execution: Execution,
    asked: Plan | Program | None = None,
    optimizer_copies: int = Problem.optimizer_copies,
) -> Problem:
    """The problem under the constraints of the command line; that of a plan or a program where one is given."""
    return Problem(
        profile,
        network,
        batch_size(options, asked),
        data_holder,
        execution,
        excluded=frozenset(options.exclude),
        root=options.root,
        samples_stay=options.samples_stay,
        memory_limit_bytes=dict(memory_limit(text) for text in options.memory_limit),
        optimizer_copies=optimizer_copies,
    )


def memory_limit(text: str) -> tuple[str, int]:
    """The worker and the bytes of ``WORKER=SIZE``; a size without a unit is in bytes."""
    found = re.fullmatch(r"([^=]+)=(\d{1,15}(?:\.\d{1,3})?) ?([A-Za-z]*)", text, flags=re.ASCII)
    if not found or (found[3] or "B") not in UNITS:
        raise InputError(
            f"memory limit {text!r}: must be WORKER=SIZE, such as device=200MB; units are {', '.join(UNITS)}"
        )
    worker, size, unit = found.groups()
    return worker, int(Decimal(size) * UNITS[unit or "B"])


def training_of(options: argparse.Namespace, dataset: "Dataset", batch_size: int) -> Training:
    """What to train, by the options. Raises InputError when they do not fit."""
    from hiertrain.training.settings import training_settings

    return training_settings(
        files.parse(ModelSettings, {"name": options.model, "seed": options.seed}, "model"),
        dataset,
        batch_size,
        iterations=options.iterations,
        optimizer=_optimizer(options),
        seed=options.seed,
        data_folder=options.data,
    )


def _optimizer(options: argparse.Namespace) -> OptimizerSettings:
    content = {
        "name": options.optimizer,
        "learning_rate": options.learning_rate,
        "momentum": options.momentum,
        "weight_decay": options.weight_decay,
    }
    return files.parse(OptimizerSettings, content, "optimizer")


def machine_of(profile: Profile, name: str) -> Machine:
    """What the worker was profiled with. Raises InputError unless that says how it will compute."""
    worker = profile.worker(name)
    if worker.slowdown != 1:
        raise InputError(
            f"profile: worker {name!r} has the slowdown {worker.slowdown:g}; must be 1, since nothing is paced by hand"
        )
    if worker.measurement is None:
        raise InputError(f"profile: worker {name!r} has no measurement, which says how many threads it computes with")
    return Machine(threads=worker.measurement.threads, accelerator=worker.measurement.accelerator)
