"""The paper's three stages as the user drives them: profiling and training on a testbed's workers.

Optimization, the stage between them, is ``scheduling.optimize``. Times that come from here are *measured* or *emulated*
as ``testbeds.settings.kind_of_times`` says: those of network namespaces count as measured, although computing is paced.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch.optim.swa_utils import update_bn
from tqdm.auto import tqdm

from hiertrain.control.answers import Beat, ClockReading, Iteration, Progress, Snapshot
from hiertrain.control.jobs import Rival, RivalJob, TrainJob
from hiertrain.cost.closed_form import iteration_s
from hiertrain.files import parse
from hiertrain.problem.chain import Chain
from hiertrain.problem.plan import Plan, check_plan
from hiertrain.problem.problem import Problem
from hiertrain.problem.profile import Profile, WorkerProfile
from hiertrain.program.actions import Program
from hiertrain.program.compiler import compile_plan
from hiertrain.program.simulator import dry_run
from hiertrain.testbeds.session import Testbed, WorkerError
from hiertrain.testbeds.settings import AnySettings
from hiertrain.training import Snapshots, TrainingRun, keep_iteration
from hiertrain.values import InputError
from hiertrain.workload.architectures import build_model
from hiertrain.workload.chain_model import ChainModel
from hiertrain.workload.datasets import Dataset
from hiertrain.workload.sample_order import iterations_per_epoch
from hiertrain.workload.spec import ModelSettings, OptimizerSettings, Training
from hiertrain.workload.weights import unpack_weights

EVALUATION_BATCH = 500
STATISTICS_BATCHES = 10
MOST_TIMED = 30  # iterations of one plan, after one that warms up
RIVAL_TIMEOUT_S = 60.0  # for one message: a rival's iteration has no predicted time


def training_settings(
    model: ModelSettings,
    dataset: Dataset,
    batch_size: int,
    *,
    iterations: int | None = None,
    optimizer: OptimizerSettings | None = None,
    seed: int = 0,
    snapshot_every: int | None = None,
    data_folder: Path | None = None,
) -> Training:
    """What to train. By default one epoch; with one snapshot at the end. Raises InputError when they do not fit."""
    if model.sample_shape not in (None, dataset.sample_shape):
        raise InputError(
            f"model {model.name} takes samples {model.sample_shape}, {dataset.name} has {dataset.sample_shape}"
        )
    epoch = iterations_per_epoch(len(dataset.train_labels), batch_size)
    wanted = epoch if iterations is None else iterations
    content = {
        "model": {**dict(model), "sample_shape": dataset.sample_shape, "classes": dataset.classes},
        "dataset": dataset.name,
        "data_folder": None if data_folder is None else str(data_folder),
        "batch_size": batch_size,
        "optimizer": dict(optimizer or OptimizerSettings()),
        "seed": seed,
        "iterations": wanted,
        "snapshot_every": wanted if snapshot_every is None else snapshot_every,
    }
    return parse(Training, content, "training")


def iterations_within(work_s: float, predicted_s: float, least: int = 1) -> int:
    """How many iterations of ``predicted_s`` to train for about ``work_s``: one that warms up, and those that count.

    The latter are at least ``least`` and at most ``MOST_TIMED``.
    """
    wanted = round(work_s / max(predicted_s, work_s / MOST_TIMED))  # a profile written by hand may cost nothing
    return 1 + max(wanted, least)


def train(testbed: Testbed, problem: Problem, plan: Plan, training: Training) -> TrainingRun:
    """Stage 3: train by ``plan`` on the testbed's workers.

    The program is dry-run before anything starts. Raises InputError when plan, problem and training do not fit, and
    WorkerError when a worker fails.
    """
    chain = build_model(**dict(training.model)).chain
    check_profile(problem.profile, chain, testbed.settings)
    check_training(plan, training, chain, testbed.settings)
    program = compile_plan(plan, chain, problem.execution)
    dry_run(program)
    return _watch(testbed, train_jobs(testbed, problem, plan, training), plan, program, training)


def train_as_rival(testbed: Testbed, plan: Plan, training: Training, rival: Rival) -> TrainingRun:
    """Train as one would without this package, on the same workers: see ``runtime.pytorch_baselines``.

    ``plan`` says who has which samples (``ddp``) or layers (``pipelining``). The program of the result is empty.
    Raises InputError when the plan is none that the rival could follow, or the testbed emulates, and WorkerError when
    a worker fails.
    """
    chain = build_model(**dict(training.model)).chain
    check_training(plan, training, chain, testbed.settings)
    members = sorted(plan.participants, key=lambda name: (plan.workers[name].depth, name == plan.root))
    _check_rival(testbed, plan, members, chain, rival)
    group = testbed.group(members, timeout_s=RIVAL_TIMEOUT_S)
    jobs = {
        name: RivalJob(
            group=group,
            rival=rival,
            threads=testbed.settings.workers[name].threads,
            training=training,
            plan=plan,
        )
        for name in members
    }
    return _watch(testbed, jobs, plan, Program({}), training)


def _check_rival(testbed: Testbed, plan: Plan, members: Sequence[str], chain: Chain, rival: Rival) -> None:
    """Raise InputError unless ``rival`` can follow the plan at the machine's own speed. ``members``: by depth."""
    for name in members:
        worker = testbed.settings.workers[name]
        if worker.slowdown != 1 or worker.accelerator != "cpu" or testbed.links_from(name):
            raise InputError(f"{rival}: worker {name!r} is paced, accelerated or emulates links; a rival does neither")
    parts = [plan.workers[name] for name in members]
    match rival:
        case "plain":
            fits, rule = len(members) == 1, "one worker, the data holder"
        case "pipelining":
            depths = [part.depth for part in parts]
            fits = members[0] == plan.data_holder and parts[0].samples == plan.batch_size
            fits = fits and len(members) > 1 and sorted({0, *depths}) == [0, *depths] and depths[-2] < chain.depth - 1
            rule = "all samples on the data holder, and layers of its own for every worker"
        case _:
            fits = all(part.depth == chain.depth and part.samples for part in parts)
            rule = "all layers and some samples on every worker"
    if not fits:
        raise InputError(f"{rival}: the plan must have {rule}")


def _watch(
    testbed: Testbed,
    jobs: Mapping[str, TrainJob] | Mapping[str, RivalJob],
    plan: Plan,
    program: Program,
    training: Training,
) -> TrainingRun:
    """Run the jobs and gather what the workers report. An error says what was completed."""
    done: dict[str, list[Iteration]] = {name: [] for name in jobs}
    clocks: dict[str, list[ClockReading]] = {name: [] for name in jobs}
    snapshots = Snapshots()

    def keep(name: str, event: Progress | Snapshot | Beat, payload: bytes) -> None:
        match event:
            case Snapshot():
                snapshots.keep(event.iteration, payload)
            case Beat():
                for iteration in event.iterations:
                    keep_iteration(done[name], iteration)
                clocks[name] += event.clock
                bar.n = min(map(len, done.values()))
                bar.refresh()

    def so_far() -> TrainingRun:
        return TrainingRun(plan, program, done, clocks, snapshots)

    with tqdm(desc=f"training {training.model.name}", total=training.iterations, unit="iteration", leave=False) as bar:
        try:
            testbed.run(jobs, on_event=keep)
        except WorkerError as error:
            error.completed = so_far().summary()
            raise
    return so_far()


def train_jobs(testbed: Testbed, problem: Problem, plan: Plan, training: Training) -> dict[str, TrainJob]:
    """What each participant is asked to do. A message may take three predicted iterations before it counts as lost."""
    group = testbed.group(plan.participants, timeout_s=3 * iteration_s(problem, plan))
    return {
        name: TrainJob(
            group=group,
            links=dict(testbed.links_from(name)),
            pace=_pace(problem.profile, name) if testbed.settings.workers[name].slowdown != 1 else None,
            threads=testbed.settings.workers[name].threads,
            accelerator=testbed.settings.workers[name].accelerator,
            training=training,
            plan=plan,
            execution=problem.execution,
        )
        for name in plan.participants
    }


def _pace(profile: Profile, worker: str) -> WorkerProfile:
    """The times alone: the worker has no use for the points that they were fitted to."""
    return profile.worker(worker).model_copy(update={"measurement": None})


def check_training(plan: Plan, training: Training, chain: Chain, settings: AnySettings) -> None:
    """Raise InputError unless the plan fits what is trained, and the testbed that it is trained on."""
    if plan.batch_size != training.batch_size:
        raise InputError(f"plan has the batch size {plan.batch_size}, the training {training.batch_size}")
    for name in plan.workers:
        if name not in settings.workers:
            raise InputError(f"plan has the worker {name!r}; the testbed has {', '.join(settings.workers)}")
    check_plan(plan, chain)


def check_profile(profile: Profile, chain: Chain, settings: AnySettings) -> None:
    """Raise InputError unless the profile is of this very chain, and of workers as fast as the testbed's."""
    if profile.layers != chain.layers:
        raise InputError(
            f"profile: its {len(profile.layers)} layers of {profile.model} for samples of {profile.sample_bytes} bytes "
            f"are not the {chain.depth} layers of {chain.model} for samples of {chain.sample_bytes} bytes to be trained"
        )
    for name, worker in settings.workers.items():
        if name in profile.workers and profile.workers[name].slowdown != worker.slowdown:
            raise InputError(
                f"profile: worker {name!r} has the slowdown {profile.workers[name].slowdown:g}, the testbed's has "
                f"{worker.slowdown:g}; they must be the same"
            )


def trained_model(training: Training, snapshot: bytes, dataset: Dataset) -> ChainModel:
    """The model with a snapshot's weights, and with ``estimate_statistics``."""
    model = build_model(**dict(training.model))
    unpack_weights(model, snapshot)
    estimate_statistics(model, dataset)
    return model


def estimate_statistics(model: ChainModel, dataset: Dataset) -> None:
    """Take BatchNorm's running statistics from training samples: a worker's are of its own samples and layers only."""
    update_bn(dataset.train_samples.split(EVALUATION_BATCH)[:STATISTICS_BATCHES], model)


@torch.no_grad()
def accuracy(model: ChainModel, dataset: Dataset) -> float:
    """The fraction of the test set that ``model`` classifies rightly."""
    model.eval()
    correct = 0
    for samples, labels in zip(
        dataset.test_samples.split(EVALUATION_BATCH), dataset.test_labels.split(EVALUATION_BATCH), strict=True
    ):
        correct += int((model(samples).argmax(1) == labels).sum())
    return correct / len(dataset.test_labels)
