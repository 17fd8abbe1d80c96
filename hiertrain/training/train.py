"""The paper's third stage as the user drives it: training by a plan on a testbed's workers.

Its times are *measured* or *emulated* as ``testbeds.settings.kind_of_times`` says: those of network namespaces count
as measured, although computing is paced.
"""

from collections.abc import Mapping
from types import MappingProxyType

from tqdm.auto import tqdm

from hiertrain.control.answers import Answer, Beat, ClockReading, Iteration, Progress, Snapshot, Trained
from hiertrain.control.jobs import RivalJob, TrainJob
from hiertrain.problem.chain import Chain
from hiertrain.problem.execution import Execution
from hiertrain.problem.plan import Plan
from hiertrain.problem.problem import Problem
from hiertrain.problem.profile import Profile, WorkerProfile
from hiertrain.program.actions import MOST_AHEAD, Program
from hiertrain.program.compiler import compile_plan
from hiertrain.program.dry_run import dry_run
from hiertrain.program.simulator import simulate
from hiertrain.testbeds.session import Testbed, WorkerError
from hiertrain.testbeds.settings import AnySettings
from hiertrain.training.run import Snapshots, TrainingRun, keep_iteration
from hiertrain.values import InputError
from hiertrain.workload.architectures import chain_of
from hiertrain.workload.spec import Training

MOST_TIMED = 30  # iterations of one plan that count


def iterations_within(work_s: float, predicted_s: float, execution: Execution, least: int = 1) -> int:
    """How many iterations of ``predicted_s`` to train for about ``work_s``, with those that do not count.

    Those that count (``run.counting``) are at least ``least`` and at most ``MOST_TIMED``.
    """
    wanted = round(work_s / max(predicted_s, work_s / MOST_TIMED))  # a profile written by hand may cost nothing
    return 1 + max(wanted, least) + MOST_AHEAD * execution.prefetch


def train(testbed: Testbed, problem: Problem, asked: Plan | Program, training: Training) -> TrainingRun:
    """Stage 3: train by a plan, or by a program as it is, on the testbed's workers.

    The program is dry-run before anything starts. Raises InputError when what is asked, problem and training do not
    fit, and WorkerError when a worker fails.
    """
    chain = chain_of(training.model)
    check_profile(problem.profile, chain, testbed.settings)
    compressed_sample_bytes = problem.profile.compressed_sample_bytes
    program = check_training(asked, training, testbed.settings, problem.execution, compressed_sample_bytes)
    return watch(testbed, train_jobs(testbed, problem, program, training), program, training)


def watch(
    testbed: Testbed,
    jobs: Mapping[str, TrainJob] | Mapping[str, RivalJob],
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
                snapshots.keep(event.iteration, payload, event.first)
            case Beat():
                for iteration in event.iterations:
                    keep_iteration(done[name], iteration)
                clocks[name] += event.clock
                bar.update(min(map(len, done.values())) - bar.n)  # which does not draw for every beat

    def so_far(answers: Mapping[str, Answer] = MappingProxyType({})) -> TrainingRun:
        trained = {name: answer for name, answer in answers.items() if isinstance(answer, Trained)}
        memory_bytes = {name: size for name, own in trained.items() if (size := own.memory_bytes) is not None}
        return TrainingRun(program, done, clocks, snapshots, memory_bytes)

    with tqdm(desc=f"training {training.model.name}", total=training.iterations, unit="iteration", leave=False) as bar:
        try:
            answers = testbed.run(jobs, on_event=keep)
        except WorkerError as error:
            error.completed = so_far().summary()
            raise
    return so_far(answers)


def train_jobs(testbed: Testbed, problem: Problem, program: Program, training: Training) -> dict[str, TrainJob]:
    """What each participant is asked to do. A message may take three predicted iterations before it counts as lost.

    That is enough for the first of overlapped iterations, too: samples are on their way for two at most.
    """
    predicted_s = simulate(program, problem.profile, problem.network).period_s
    group = testbed.group(tuple(program.actions), timeout_s=3 * predicted_s)
    return {
        name: TrainJob(
            group=group,
            links=dict(testbed.links_from(name)),
            pace=_pace(problem.profile, name) if testbed.settings.workers[name].slowdown != 1 else None,
            threads=testbed.settings.workers[name].threads,
            accelerator=testbed.settings.workers[name].accelerator,
            training=training,
            program=program.part(name),
        )
        for name in program.actions
    }


def _pace(profile: Profile, worker: str) -> WorkerProfile:
    """The times alone: the worker has no use for the points that they were fitted to."""
    return profile.worker(worker).model_copy(update={"measurement": None})


def check_training(
    asked: Plan | Program,
    training: Training,
    settings: AnySettings,
    execution: Execution,
    compressed_sample_bytes: int | None = None,
) -> Program:
    """The program by which a plan is executed, or the given one, dry-run.

    Raises InputError unless it fits what is trained, and the testbed that it is trained on.
    """
    what, names = ("plan", asked.workers) if isinstance(asked, Plan) else ("program", asked.actions)
    if asked.batch_size != training.batch_size:
        raise InputError(f"{what} has the batch size {asked.batch_size}, the training {training.batch_size}")
    for name in names:
        if name not in settings.workers:
            raise InputError(f"{what} has the worker {name!r}; the testbed has {', '.join(settings.workers)}")
    chain = chain_of(training.model).model_copy(update={"compressed_sample_bytes": compressed_sample_bytes})
    program = compile_plan(asked, chain, execution) if isinstance(asked, Plan) else asked
    dry_run(program, chain)
    return program


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
