"""What the commands of ``hiertrain`` do: each takes the parsed options and prints its result.

All raise InputError for bad input and RunError for what failed while it ran. Each imports what it needs
itself, so that plans do not wait for PyTorch.
"""

import argparse
import secrets
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hiertrain import files
from hiertrain.cli.options import (
    BATCH_SIZE,
    asked_for,
    batch_size,
    check_search,
    check_time_limit,
    constraints,
    execution_of,
    load_plan,
    load_program,
    machine_of,
    search_problem,
    training_of,
)
from hiertrain.cli.summary import distance_line, limit_lines, link_line, memory_line, plan_lines, times_line, verdict
from hiertrain.control.memory import KEPT
from hiertrain.control.torchrun import Jobs
from hiertrain.cost.memory import memory_of
from hiertrain.paths import RESULTS
from hiertrain.planning.baselines import single_worker_plan
from hiertrain.problem.chain import Chain
from hiertrain.problem.execution import Execution
from hiertrain.problem.network import Network
from hiertrain.problem.plan import Plan
from hiertrain.problem.problem import Problem
from hiertrain.problem.profile import Profile
from hiertrain.problem.solution import Solution
from hiertrain.program.actions import Program
from hiertrain.program.compiler import compile_plan
from hiertrain.program.dry_run import dry_run
from hiertrain.program.passes import lossy_layers
from hiertrain.program.simulator import iteration_s, simulate
from hiertrain.program.table import to_csv
from hiertrain.results.alarms import Alarm, crowding, misfits, of_run, show, spreads
from hiertrain.testbeds import find_testbed, open_testbed
from hiertrain.testbeds.settings import AnySettings, LocalSettings, WorkerSettings, kind_of_times
from hiertrain.values import InputError
from hiertrain.workload.spec import ModelSettings, Training

if TYPE_CHECKING:
    from hiertrain.experiments.comparison import Comparison
    from hiertrain.training.run import TrainingRun
    from hiertrain.workload.datasets import Dataset


def run_profile(options: argparse.Namespace) -> None:
    """Stage 1a: measure every layer on every worker; write profile.json."""
    from hiertrain.profiling.measure import measure_layers
    from hiertrain.workload.architectures import chain_of
    from hiertrain.workload.datasets import load_dataset

    settings = find_testbed(options.testbed)
    check_time_limit(options)
    model = ModelSettings(name=options.model)
    dataset = load_dataset(options.dataset, options.data) if options.dataset else None
    if dataset:
        model = ModelSettings(name=options.model, sample_shape=dataset.sample_shape, classes=dataset.classes)
    depth = chain_of(model).depth  # a model that cannot be had is found out before any process starts
    files.check_output(options.output)
    with open_testbed(settings) as testbed:
        kind = kind_of_times(settings)
        profile = measure_layers(testbed, model, time_limit_s=options.time_limit)
    if dataset:
        profile = profile.with_compressed_samples(dataset.compressed_sample_bytes())
    files.save(profile, options.output)
    print(f"{profile.model}: {depth} layers; one mini-batch of {BATCH_SIZE} on one worker ({kind}):")
    for name, worker in profile.workers.items():
        forward_s, backward_s = worker.forward_s(1, depth, BATCH_SIZE), worker.backward_s(1, depth, BATCH_SIZE)
        print(
            f"  {name:10} forward {forward_s * 1e3:8.2f} ms   backward {backward_s * 1e3:8.2f} ms   "
            f"update {worker.update_s * 1e3:6.2f} ms"
        )
        for reason in worker.measurement.skipped if worker.measurement else ():
            print(f"  {name:10} not measured at {reason}")
    names = tuple(profile.workers)
    show(misfits(profile, (single_worker_plan(profile.chain, names, name, BATCH_SIZE, name) for name in names)))
    print(f"written: {options.output}")


def run_links(options: argparse.Namespace) -> None:
    """Stage 1b: measure every link; write network.json."""
    from hiertrain.profiling.measure import measure_links

    settings = find_testbed(options.testbed)
    files.check_output(options.output)
    with open_testbed(settings) as testbed:
        network = measure_links(testbed)
        kind = kind_of_times(testbed.settings)
    files.save(network, options.output)
    print(f"links ({kind}):")
    for link in network.links:
        print(link_line(link))
    show(spreads(network))
    print(f"written: {options.output}")


def run_optimize(options: argparse.Namespace) -> None:
    """Stage 2: find the best plan; print it, its bound and status."""
    profile, network = files.load(Profile, options.profile), files.load(Network, options.network)
    if options.output:
        files.check_output(options.output)
    problem = search_problem(options, profile, network, options.data_holder, execution_of(options))
    solution = _search(options, problem)
    if options.output:
        files.save(solution, options.output)
    _print_solution(solution, profile.chain)
    _print_distance(solution, problem)
    show([*misfits(profile, [solution.plan]), *spreads(network)])
    if options.output:
        print(f"written: {options.output}")


def run_limit(options: argparse.Namespace) -> None:
    """Print the limit of any plan, what binds it, and what would lower it."""
    from hiertrain.cost.limits import explain

    profile, network = files.load(Profile, options.profile), files.load(Network, options.network)
    if options.output:
        files.check_output(options.output)
    problem = search_problem(options, profile, network, options.data_holder, execution_of(options))
    found = explain(problem, options.time_limit)
    if options.output:
        files.save(found, options.output)
    print("\n".join(limit_lines(found)))
    show(spreads(network))
    if options.output:
        print(f"written: {options.output}")


def run_predict(options: argparse.Namespace) -> None:
    """Print the predicted timeline and time of a plan or a program."""
    profile, network = files.load(Profile, options.profile), files.load(Network, options.network)
    if options.plan:
        execution = execution_of(options)
        plan = load_plan(options.plan, execution)
        program = compile_plan(plan, profile.chain, execution)
        _print_plan(plan, profile.chain)
        alarms = misfits(profile, [plan])
    else:
        program, alarms = load_program(options), []
        dry_run(program, profile.chain)
    timeline = simulate(program, profile, network)
    for span in sorted(timeline.spans, key=lambda span: (span.start_s, span.end_s)):
        print(f"  {span.start_s * 1e3:10.3f} .. {span.end_s * 1e3:10.3f} ms  {span.worker:10} {span.action}")
    print(f"predicted: {timeline.period_s * 1e3:.3f} ms per iteration")
    show([*alarms, *spreads(network)])


def run_program(options: argparse.Namespace) -> None:
    """Write the program that a plan is compiled to, as a table or as JSON."""
    profile, execution = files.load(Profile, options.profile), execution_of(options)
    program = compile_plan(load_plan(options.plan, execution), profile.chain, execution)
    if not options.output:
        print(to_csv(program), end="")
    elif options.output.suffix == ".json":
        files.save(program, options.output)
    else:
        files.write_text(options.output, to_csv(program))


def run_train(options: argparse.Namespace) -> None:
    """Stage 3: train by a plan or a program, and on one process for comparison; write a record."""
    from hiertrain.experiments.comparison import train_and_compare
    from hiertrain.profiling.measure import measure_layers, measure_links
    from hiertrain.results.records import recorded, save_record
    from hiertrain.results.timelines import observed_spans
    from hiertrain.training.train import check_training
    from hiertrain.workload.datasets import load_dataset

    # All that is given is checked before anything is measured.
    settings, execution = find_testbed(options.testbed), execution_of(options)
    asked = asked_for(options, settings.data_holder)
    check_search(options, settings.workers)
    dataset = load_dataset(options.dataset, options.data)
    training = training_of(options, dataset, batch_size(options, asked))
    profile, network = _given_measurements(options, training, settings)
    compressed_sample_bytes = _compressed_sample_bytes(dataset, execution)
    if asked:
        check_training(asked, training, settings, execution, compressed_sample_bytes)

    output = _folder_of_run(options)
    run_name, root = output.name, output.parent
    parameters: dict[str, Any] = {
        "training": training.model_dump(exclude={"data_folder"}),
        "testbed": settings,
        **({} if options.program else {"execution": execution}),  # a program's own messages say it
        **_note_on_channels(training),
    }
    with recorded(run_name, "train", parameters, root), open_testbed(settings) as testbed:
        profile = profile or measure_layers(testbed, training.model)
        profile = profile.with_compressed_samples(compressed_sample_bytes)
        network = network or measure_links(testbed)
        problem = search_problem(
            options, profile, network, settings.data_holder, execution, asked, training.optimizer.copies
        )
        proven = False
        if asked is None:
            solution = _search(options, problem)
            _print_solution(solution, profile.chain)
            asked, proven = solution.plan, solution.status == "optimal" and not constraints(options)
        foreseen = _foreseen(problem, asked, settings)
        show(foreseen)
        found = train_and_compare(testbed, problem, asked, training)
    kind, run = kind_of_times(settings), found.run
    print(times_line(kind, found.times, run.steady_s))
    predicted_bytes = memory_of(run.program, profile.chain, training.optimizer.copies)
    if run.memory_bytes:
        print(memory_line(run.memory_bytes, predicted_bytes))
    results: dict[str, Any] = {
        "kind": kind,
        "predicted_iteration_s": found.times.predicted_s,
        "predicted_memory_bytes": predicted_bytes,
        "alone": {name: worker._asdict() for name, worker in found.alone.items()},
        "timeline": observed_spans(run, kind),
        **_results(run, training, dataset, output),
    }
    if not options.no_reference:
        results |= _results_of_one_process(run, training, dataset)
    parameters |= {"network": network, **_what_ran(asked, run, training)}
    seen = _seen(root, found, parameters)
    show(seen)
    results["alarms"] = foreseen + seen
    print(f"record: {save_record(run_name, 'train', parameters, results, root)}")
    single = results.get("single_process_accuracy")
    print(verdict(run.program.computing, kind, found.times, found.alone, results["accuracy"], single, proven))


def _given_measurements(
    options: argparse.Namespace, training: Training, settings: AnySettings
) -> tuple[Profile | None, Network | None]:
    """The profile and the network that were given. Raises InputError unless they are of what is trained."""
    from hiertrain.training.train import check_profile
    from hiertrain.workload.architectures import chain_of

    chain = chain_of(training.model)  # also where no profile is given: a model that cannot be had is found out now
    profile = files.load(Profile, options.profile) if options.profile else None
    if profile:
        check_profile(profile, chain, settings)
    return profile, files.load(Network, options.network) if options.network else None


def _compressed_sample_bytes(dataset: "Dataset", execution: Execution) -> int | None:
    """Of what is trained, whatever data a profile was measured for; None where nobody needs it, since it takes time."""
    return dataset.compressed_sample_bytes() if execution.sample_encoding == "zlib" else None


def _foreseen(problem: Problem, asked: Plan | Program, settings: AnySettings) -> list[Alarm]:
    """What may make the run differ from its prediction. How well the profile fits is known for plans."""
    if isinstance(asked, Program):
        return [*crowding(settings, tuple(asked.actions)), *spreads(problem.network)]
    return [*crowding(settings, asked.participants), *misfits(problem.profile, [asked]), *spreads(problem.network)]


def _what_ran(asked: Plan | Program, run: "TrainingRun", training: Training) -> dict[str, object]:
    """What a record keeps of how it was trained, with what makes it inexact, which is printed."""
    from hiertrain.workload.architectures import chain_of

    chain = chain_of(training.model)
    inexact_layers = chain.inexact_layers + lossy_layers(run.program, chain)
    if inexact_layers:
        print(f"not exact by nature, because of {'; '.join(inexact_layers)}")
    plan = {} if isinstance(asked, Program) else {"plan": asked}
    return {**plan, "program": run.program, "inexact_layers": inexact_layers}


def _seen(root: Path, found: "Comparison", parameters: dict[str, Any]) -> list[Alarm]:
    """What made the run differ from its prediction, or from earlier runs by the same plan or program."""
    from hiertrain.results.records import same_runs
    from hiertrain.training.run import steady

    what = "plan" if "plan" in parameters else "program"
    same = {name: parameters[name] for name in (what, "testbed", "execution") if name in parameters}
    same["training"] = {"model": parameters["training"]["model"]}
    overlapped = found.run.program.overlapped
    times_s = [steady(one["iteration_s"], overlapped) for one in same_runs("train", same, root)]
    same_s = [statistics.median(steady_s) for steady_s in times_s if steady_s] if found.run.counted else []
    times = {f"the {what}": found.times, **found.alone}
    return of_run(found.run.late_share, times, [*same_s, found.times.observed_s])


def _folder_of_run(options: argparse.Namespace) -> Path:
    """The folder that gets record and model. Raises InputError where it has those of an earlier run."""
    from hiertrain.results.records import check_new, new_run, record_path
    from hiertrain.workload.modelfiles import WEIGHTS

    if not options.output:
        return new_run(RESULTS / "train")
    if options.output.resolve() == (RESULTS / "reference").resolve():
        raise InputError(f"{options.output}: is committed; choose another folder")
    records = [record_path(options.output.name, name, options.output.parent) for name in ("train", "train.failed")]
    for path in (*records, options.output / WEIGHTS):
        check_new(path, options.force)
    return options.output


def _note_on_channels(training: Training) -> dict[str, int]:
    """What a record keeps, and is printed, where a model is given grey samples in place of colour."""
    from hiertrain.workload.architectures import channel_repeats

    repeats = channel_repeats(training.model.name, training.model.sample_shape or (3,))
    if repeats == 1:
        return {}
    print(f"samples of {training.dataset} are grey: {training.model.name} is given their one channel {repeats} times")
    return {"channel_repeats": repeats}


def _results(run: "TrainingRun", training: Training, dataset: "Dataset", folder: Path) -> dict[str, Any]:
    """Save the trained model, print what came of it, and return what a record keeps of it."""
    from hiertrain.experiments.comparison import learnt_by
    from hiertrain.workload.modelfiles import WEIGHTS, save_model

    learnt = learnt_by(run, training, dataset)
    path = save_model(learnt.model, training, folder / WEIGHTS)
    print(f"test accuracy, trained on {', '.join(run.program.computing)}: {learnt.accuracy:.4f}")
    print(f"model: {path}")
    return {"late_share": run.late_share, **run.summary(), "accuracy": learnt.accuracy}


def _results_of_one_process(run: "TrainingRun", training: Training, dataset: "Dataset") -> dict[str, float]:
    """Train in one process, print what came of it, and return what a record keeps of it."""
    from hiertrain.experiments.comparison import COMPARED, against_one_process

    share, difference = against_one_process(run, training, dataset)
    print(f"test accuracy, trained in one process: {share:.4f}")
    print(f"losses of the first {COMPARED} mini-batches differ by at most {difference:.1e}; later, rounding grows")
    return {"single_process_accuracy": share, "largest_loss_difference": difference}


def run_evaluate(options: argparse.Namespace) -> None:
    """Print the test accuracy of a trained model; complete one that a worker wrote who did not have the data."""
    from hiertrain.training.evaluation import accuracy, estimate_statistics
    from hiertrain.workload.datasets import load_dataset
    from hiertrain.workload.modelfiles import load_model, save_model, weights_in

    model, training, saved = load_model(options.model)
    dataset = load_dataset(training.dataset, options.data)
    if not saved.statistics:
        estimate_statistics(model, dataset)
        save_model(model, training, weights_in(options.model), saved.iterations)
        print(
            "BatchNorm's running statistics were those of before training; now, from training samples, in the file too"
        )
    print(
        f"{training.model.name} after {saved.iterations} iterations with {training.dataset}: test accuracy "
        f"{accuracy(model, dataset):.4f} ({len(dataset.test_labels)} samples)"
    )


def run_jobs(options: argparse.Namespace) -> None:
    """Write jobs.json, by which every worker can be started by hand, and print how."""
    from hiertrain.training.train import check_profile, check_training
    from hiertrain.workload.architectures import chain_of
    from hiertrain.workload.datasets import load_dataset

    files.check_output(options.output)
    profile, network = files.load(Profile, options.profile), files.load(Network, options.network)
    execution = execution_of(options)
    plan, dataset = load_plan(options.plan, execution), load_dataset(options.dataset, options.data)
    compressed_sample_bytes = _compressed_sample_bytes(dataset, execution)
    profile = profile.with_compressed_samples(compressed_sample_bytes)
    problem = Problem(profile, network, plan.batch_size, plan.data_holder, execution)
    training = training_of(options, dataset, plan.batch_size)
    chain = chain_of(training.model)
    profiled = {name: machine_of(profile, name) for name in plan.participants}
    unpaced = LocalSettings(data_holder=plan.data_holder, workers=dict.fromkeys(profile.workers, WorkerSettings()))
    check_profile(profile, chain, unpaced)
    program = check_training(plan, training, unpaced, execution, compressed_sample_bytes)
    machines = {name: profiled[name] for name in program.actions}
    predicted_s = iteration_s(problem, plan)
    content = {"training": training, "program": program, "workers": machines}
    content |= {"tag": secrets.token_hex(8), "predicted_s": predicted_s}
    limits = {"timeout_s": 3 * predicted_s + options.timeout, "silence_s": options.timeout}
    files.save(files.parse(Jobs, content | limits, "jobs"), options.output)
    _note_on_channels(training)
    _print_plan(plan, chain)
    print(f"predicted: {predicted_s * 1e3:.3f} ms per iteration")
    print(f"written: {options.output}; copy it to every machine, and start there:")
    kept = " ".join(f"{name}={value}" for name, value in KEPT.items())
    for rank, name in enumerate(machines):
        print(
            f"  {name}: GLOO_SOCKET_IFNAME=INTERFACE {kept} torchrun --nnodes={len(machines)} --nproc-per-node=1 "
            f"--node-rank={rank} --master-addr=ADDRESS --master-port=29500 "
            f"-m hiertrain.torchrun_worker {options.output.name} --output FOLDER"
        )
    print(f"INTERFACE: the machine's own that the others reach; ADDRESS: the one that {next(iter(machines))} has there")


def run_reproduce(options: argparse.Namespace) -> None:
    """Execute the notebooks of a parameter file; when all of them are up to date, write the report."""
    from hiertrain.reproduction.notebooks import NotebookRecord, reproduce
    from hiertrain.reproduction.parameters import prepare
    from hiertrain.reproduction.publish import PARAMETERS, obstacle
    from hiertrain.reproduction.report import write_report

    jobs = prepare(options.parameters, options.run)
    if options.parameters == PARAMETERS and (reason := obstacle()):
        print(f"note: this run cannot be published: {reason}", flush=True)
    outcomes = reproduce(options.parameters, run=options.run, only=options.only, force=options.force)
    if len(outcomes) < len(jobs):
        print("no report: it shows all notebooks, and these are not all; without --only it is written")
        return
    command = f"hiertrain reproduce {options.parameters}" + (f" --run {options.run}" if options.run else "")
    report = write_report(jobs[0].folder, [job.name for job in jobs], command)
    total_s = sum(files.load(NotebookRecord, job.path(".json")).seconds for job in jobs)
    print(f"report: {report}; all notebooks took {total_s / 60:.1f} minutes")


def run_lab(options: argparse.Namespace) -> None:
    """Open JupyterLab on working copies of the notebooks."""
    from hiertrain.reproduction.lab import open_lab, refresh_copies

    for line in refresh_copies():
        print(line)
    open_lab(options.jupyter)


def run_publish(options: argparse.Namespace) -> None:
    """Make a run the reference."""
    from hiertrain.reproduction.publish import publish

    print(f"reference: {publish(options.run)}; README.md has its numbers")


def _search(options: argparse.Namespace, problem: Problem) -> Solution:
    """Optimize under the limits of the command line."""
    from hiertrain.planning.optimize import optimize

    return optimize(problem, shape=options.shape, time_limit_s=options.time_limit, seed=options.seed)


def _print_solution(solution: Solution, chain: Chain) -> None:
    _print_plan(solution.plan, chain)
    print(
        f"predicted: {solution.objective_s * 1e3:.3f} ms per iteration; "
        f"proven bound: {solution.bound_s * 1e3:.3f} ms; status: {solution.status}; solved in {solution.solve_s:.2f} s"
    )


def _print_distance(solution: Solution, problem: Problem) -> None:
    """How far a plan is from the limit of any, where that can be found."""
    from hiertrain.cost.limits import find_limit

    try:
        print(distance_line(solution.objective_s, find_limit(problem)))
    except InputError as error:  # too many workers: the plan is as good without
        print(f"limit of any plan: not found; {error}")


def _print_plan(plan: Plan, chain: Chain) -> None:
    print("\n".join(plan_lines(plan, chain)))
