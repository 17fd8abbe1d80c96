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
    batch_size,
    check_search,
    check_time_limit,
    constraints,
    execution_of,
    given_plan,
    load_plan,
    load_program,
    machine_of,
    search_problem,
    training_of,
)
from hiertrain.cli.summary import Times, link_line, plan_lines, times_line, verdict
from hiertrain.control.memory import KEPT
from hiertrain.control.torchrun import Jobs
from hiertrain.paths import RESULTS
from hiertrain.planning.baselines import single_worker_plan, single_worker_plans
from hiertrain.problem.chain import Chain
from hiertrain.problem.execution import Execution
from hiertrain.problem.network import Network
from hiertrain.problem.plan import Plan
from hiertrain.problem.problem import Problem
from hiertrain.problem.profile import Profile
from hiertrain.problem.solution import Solution
from hiertrain.program.compiler import compile_plan
from hiertrain.program.dry_run import dry_run
from hiertrain.program.passes import lossy_layers
from hiertrain.program.simulator import iteration_s, simulate
from hiertrain.program.table import to_csv
from hiertrain.results.alarms import crowding, misfits, of_run, show, spreads
from hiertrain.testbeds import find_testbed, open_testbed
from hiertrain.testbeds.settings import AnySettings, LocalSettings, WorkerSettings, kind_of_times
from hiertrain.values import InputError
from hiertrain.workload.spec import ModelSettings, Training

if TYPE_CHECKING:
    from hiertrain.testbeds.session import Testbed
    from hiertrain.training.run import TrainingRun
    from hiertrain.workload.datasets import Dataset

ALONE_S = 2.0  # for about so long every worker that could be the best one trains alone
ALONE_AT_MOST = 2.0  # times the predicted time of the best one alone; slower workers need not be tried
# Mini-batches whose losses are compared with those of one process, before training amplifies rounding.
COMPARED = 10


def run_profile(options: argparse.Namespace) -> None:
    """Stage 1a: measure every layer on every worker; write profile.json."""
    from hiertrain.profiling.measure import measure_layers
    from hiertrain.workload.architectures import build_model
    from hiertrain.workload.datasets import load_dataset

    settings = find_testbed(options.testbed)
    check_time_limit(options)
    model = ModelSettings(name=options.model)
    if options.dataset:
        dataset = load_dataset(options.dataset, options.data)
        model = ModelSettings(name=options.model, sample_shape=dataset.sample_shape, classes=dataset.classes)
    depth = build_model(**dict(model)).chain.depth  # a model that cannot be had is found out before any process starts
    files.check_output(options.output)
    with open_testbed(settings) as testbed:
        kind = kind_of_times(settings)
        profile = measure_layers(testbed, model, time_limit_s=options.time_limit)
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
    execution = execution_of(options)
    solution = _search(options, search_problem(options, profile, network, options.data_holder, execution))
    if options.output:
        files.save(solution, options.output)
    _print_solution(solution, profile.chain)
    show([*misfits(profile, [solution.plan]), *spreads(network)])
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
    print(f"predicted: {timeline.makespan_s * 1e3:.3f} ms per iteration")
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
    """Stage 3: train by a plan, and on one process for comparison; write a record."""
    from hiertrain.profiling.measure import measure_layers, measure_links
    from hiertrain.results.records import recorded, save_record
    from hiertrain.training.train import check_profile, check_training, train
    from hiertrain.workload.architectures import build_model
    from hiertrain.workload.datasets import load_dataset

    # All that is given is checked before anything is measured.
    settings = find_testbed(options.testbed)
    plan, execution = given_plan(options, settings.data_holder)
    check_search(options, settings.workers)
    dataset = load_dataset(options.dataset, options.data)
    training = training_of(options, dataset, batch_size(options, plan))
    chain = build_model(**dict(training.model)).chain
    profile = files.load(Profile, options.profile) if options.profile else None
    network = files.load(Network, options.network) if options.network else None
    if profile:
        check_profile(profile, chain, settings)
    if plan:
        check_training(plan, training, chain, settings)

    output = _folder_of_run(options)
    run_name, root = output.name, output.parent
    parameters = {
        "training": training.model_dump(exclude={"data_folder"}),
        "testbed": settings,
        "execution": execution,
        **_note_on_channels(training),
    }
    with recorded(run_name, "train", parameters, root), open_testbed(settings) as testbed:
        profile = profile or measure_layers(testbed, training.model)
        network = network or measure_links(testbed)
        problem = search_problem(options, profile, network, settings.data_holder, execution, plan)
        proven = False
        if plan is None:
            solution = _search(options, problem)
            _print_solution(solution, chain)
            plan, proven = solution.plan, solution.status == "optimal" and not constraints(options)
        foreseen = [*crowding(settings, plan.participants), *misfits(profile, [plan]), *spreads(network)]
        show(foreseen)
        run = train(testbed, problem, plan, training)
        alone = _train_alone(testbed, problem, plan, training)
    kind = kind_of_times(settings)
    times = Times(iteration_s(problem, plan), statistics.median(run.steady_s))
    print(times_line(kind, times, run.steady_s))
    results = {
        "kind": kind,
        "predicted_iteration_s": times.predicted_s,
        "alone": {name: worker._asdict() for name, worker in alone.items()},
        **_results(run, training, dataset, output),
    }
    if not options.no_reference:
        results |= _results_of_one_process(training, dataset, run)
    inexact_layers = chain.inexact_layers + lossy_layers(run.program, chain)
    if inexact_layers:
        print(f"not exact by nature, because of {'; '.join(inexact_layers)}")
    parameters |= {"plan": plan, "network": network, "inexact_layers": inexact_layers}
    same_s = _earlier_s(root, plan, settings, execution, training) if training.iterations > 1 else []
    seen = of_run(run.late_share, {"the plan": times, **alone}, [*same_s, times.observed_s])
    show(seen)
    results["alarms"] = foreseen + seen
    print(f"record: {save_record(run_name, 'train', parameters, results, root)}")
    print(verdict(plan, kind, times, alone, results["accuracy"], results.get("single_process_accuracy"), proven))


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


def _earlier_s(root: Path, plan: Plan, settings: AnySettings, execution: Execution, training: Training) -> list[float]:
    """The median times per iteration of other runs there, of the same model by the same plan on the same testbed."""
    from hiertrain.results.records import same_runs

    same = {"plan": plan, "testbed": settings, "execution": execution, "training": {"model": training.model}}
    times_s = [one["iteration_s"][1:] for one in same_runs("train", same, root)]
    return [statistics.median(steady_s) for steady_s in times_s if steady_s]


def _results(run: "TrainingRun", training: Training, dataset: "Dataset", folder: Path) -> dict[str, Any]:
    """Save the trained model, print what came of it, and return what a record keeps of it."""
    from hiertrain.training.evaluation import accuracy, trained_model
    from hiertrain.workload.modelfiles import WEIGHTS, save_model

    model = trained_model(training, run.snapshots[training.iterations], dataset)
    path, share = save_model(model, training, folder / WEIGHTS), accuracy(model, dataset)
    print(f"test accuracy, trained on {', '.join(filter(run.plan.active, run.plan.workers))}: {share:.4f}")
    print(f"model: {path}")
    timeline = run.timeline(training.iterations - 1)
    return {"late_share": run.late_share, "last_timeline": timeline, **run.summary(), "accuracy": share}


def _results_of_one_process(training: Training, dataset: "Dataset", run: "TrainingRun") -> dict[str, float]:
    """Train in one process, print what came of it, and return what a record keeps of it."""
    from hiertrain.training.evaluation import accuracy, trained_model
    from hiertrain.training.single_process import train_on_one_process

    reference = train_on_one_process(training, dataset)
    single = trained_model(training, reference.snapshots[training.iterations], dataset)
    results = {
        "single_process_accuracy": accuracy(single, dataset),
        "largest_loss_difference": max(
            abs(a - b) for a, b in zip(run.losses[:COMPARED], reference.losses[:COMPARED], strict=True)
        ),
    }
    print(f"test accuracy, trained in one process: {results['single_process_accuracy']:.4f}")
    difference = results["largest_loss_difference"]
    print(f"losses of the first {COMPARED} mini-batches differ by at most {difference:.1e}; later, rounding grows")
    return results


def _train_alone(testbed: "Testbed", problem: Problem, plan: Plan, training: Training) -> dict[str, Times]:
    """Times of single workers that do everything: of the one predicted to be the best, and near ones.

    None are tried where the plan itself is one worker's, or has no time to compare.
    """
    from hiertrain.training.train import iterations_within, train

    if sum(map(plan.active, plan.workers)) == 1 or training.iterations == 1:  # the first one warms up
        return {}
    plans = single_worker_plans(problem)
    predicted_s = {name: iteration_s(problem, alone) for name, alone in plans.items()}
    times = {}
    for name, alone in plans.items():
        if predicted_s[name] <= ALONE_AT_MOST * min(predicted_s.values()):
            iterations = iterations_within(ALONE_S, predicted_s[name], least=3)
            short = training.model_copy(update={"iterations": iterations, "snapshot_every": iterations})
            run = train(testbed, problem, alone, short)
            times[name] = Times(predicted_s[name], statistics.median(run.steady_s))
    return times


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
    from hiertrain.workload.architectures import build_model
    from hiertrain.workload.datasets import load_dataset

    files.check_output(options.output)
    profile, network = files.load(Profile, options.profile), files.load(Network, options.network)
    execution = execution_of(options)
    plan = load_plan(options.plan, execution)
    problem = Problem(profile, network, plan.batch_size, plan.data_holder, execution)
    training = training_of(options, load_dataset(options.dataset, options.data), plan.batch_size)
    chain = build_model(**dict(training.model)).chain
    machines = {name: machine_of(profile, name) for name in plan.participants}
    unpaced = LocalSettings(data_holder=plan.data_holder, workers=dict.fromkeys(profile.workers, WorkerSettings()))
    check_profile(profile, chain, unpaced)
    check_training(plan, training, chain, unpaced)
    program = compile_plan(plan, chain, execution)
    dry_run(program, chain)
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
    for rank, name in enumerate(plan.participants):
        print(
            f"  {name}: GLOO_SOCKET_IFNAME=INTERFACE {kept} torchrun --nnodes={len(machines)} --nproc-per-node=1 "
            f"--node-rank={rank} --master-addr=ADDRESS --master-port=29500 "
            f"-m hiertrain.torchrun_worker {options.output.name} --output FOLDER"
        )
    print(f"INTERFACE: the machine's own that the others reach; ADDRESS: the one that {plan.participants[0]} has there")


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


def _print_plan(plan: Plan, chain: Chain) -> None:
    print("\n".join(plan_lines(plan, chain)))
