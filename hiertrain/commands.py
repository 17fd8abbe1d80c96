"""What the commands of ``hiertrain`` do: each takes the parsed options and prints its result.

All raise InputError for bad input and RunError for what failed while it ran. Each imports what it needs
itself, so that plans do not wait for PyTorch.
"""

import argparse
import math
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from hiertrain import files
from hiertrain.cost import iteration_s
from hiertrain.jobs import Jobs, Machine, ModelSettings, OptimizerSettings, Training
from hiertrain.memory import KEPT
from hiertrain.network import Network
from hiertrain.plan import Execution, Plan, Problem
from hiertrain.profile import Profile
from hiertrain.program import compile_plan, dry_run, simulate
from hiertrain.solution import Solution
from hiertrain.testbeds import open_testbed
from hiertrain.testbeds.settings import LocalSettings, WorkerSettings, kind_of_times, load_testbed
from hiertrain.values import InputError

if TYPE_CHECKING:
    from hiertrain.datasets import Dataset

# Mini-batches whose losses are compared with those of one process, before training amplifies rounding.
COMPARED = 10
EXECUTIONS = {
    "paper": Execution.paper(),
    "paper-float32": Execution(sample_encoding="float32"),
    "jalad": Execution(activation_encoding="uint8"),
}


def run_profile(options: argparse.Namespace) -> None:
    """Stage 1a: measure every layer on every worker; write profile.json."""
    from hiertrain.datasets import load_dataset
    from hiertrain.models import build_model
    from hiertrain.stages import measure_layers

    settings = load_testbed(options.testbed)
    _check_time_limit(options)
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
    print(f"{profile.model}: {depth} layers; one mini-batch of 64 on one worker ({kind}):")
    for name, worker in profile.workers.items():
        forward_s, backward_s = worker.forward_s(1, depth, 64), worker.backward_s(1, depth, 64)
        print(
            f"  {name:10} forward {forward_s * 1e3:8.2f} ms   backward {backward_s * 1e3:8.2f} ms   "
            f"update {worker.update_s * 1e3:6.2f} ms"
        )
        for reason in worker.measurement.skipped if worker.measurement else ():
            print(f"  {name:10} not measured at {reason}")
    print(f"written: {options.output}")


def run_links(options: argparse.Namespace) -> None:
    """Stage 1b: measure every link; write network.json."""
    from hiertrain.stages import measure_links

    settings = load_testbed(options.testbed)
    files.check_output(options.output)
    with open_testbed(settings) as testbed:
        network = measure_links(testbed)
        kind = kind_of_times(testbed.settings)
    files.save(network, options.output)
    print(f"links ({kind}):")
    for link in network.links:
        print(f"  {link.source:>8} -> {link.target:8} {link.bandwidth_mbps:9.2f} Mbit/s {link.latency_ms:8.2f} ms")
    print(f"written: {options.output}")


def run_optimize(options: argparse.Namespace) -> None:
    """Stage 2: find the best plan; print it, its bound and status."""
    profile, network = files.load(Profile, options.profile), files.load(Network, options.network)
    if options.output:
        files.check_output(options.output)
    solution = _search(options, profile, network, options.data_holder, EXECUTIONS[options.execution])
    if options.output:
        files.save(solution, options.output)
        print(f"written: {options.output}")


def run_predict(options: argparse.Namespace) -> None:
    """Print a plan's predicted timeline and time."""
    profile, network = files.load(Profile, options.profile), files.load(Network, options.network)
    execution = EXECUTIONS[options.execution]
    plan = _load_plan(options.plan, execution)
    problem = Problem(profile, network, plan.batch_size, plan.data_holder, execution)
    timeline = simulate(compile_plan(plan, profile.chain, execution), profile, network)
    _print_plan(plan)
    for span in sorted(timeline.spans, key=lambda span: (span.start_s, span.end_s)):
        print(f"  {span.start_s * 1e3:10.3f} .. {span.end_s * 1e3:10.3f} ms  {span.worker:10} {span.action}")
    print(f"predicted: {iteration_s(problem, plan) * 1e3:.3f} ms per iteration")


def run_train(options: argparse.Namespace) -> None:
    """Stage 3: train by a plan, and on one process for comparison; write a record."""
    import numpy as np

    from hiertrain.datasets import load_dataset
    from hiertrain.models import build_model
    from hiertrain.quantization import quantized_layers
    from hiertrain.records import recorded, save_record
    from hiertrain.reference import train_on_one_process
    from hiertrain.stages import (
        accuracy,
        check_profile,
        check_training,
        measure_layers,
        measure_links,
        train,
        trained_model,
    )

    # All that is given is checked before anything is measured.
    settings = load_testbed(options.testbed)
    plan, execution = _given_plan(options, settings.data_holder)
    _check_search(options, settings.workers)
    dataset = load_dataset(options.dataset, options.data)
    training = _training(options, dataset, plan.batch_size if plan else options.batch_size)
    chain = build_model(**dict(training.model)).chain
    profile = files.load(Profile, options.profile) if options.profile else None
    network = files.load(Network, options.network) if options.network else None
    if profile:
        check_profile(profile, chain, settings)
    if plan:
        check_training(plan, training, chain, settings)

    run_name, root = options.output.name, options.output.parent
    parameters = {"training": training.model_dump(exclude={"data_folder"}), "testbed": settings, "execution": execution}
    with recorded(run_name, "train", parameters, root), open_testbed(settings) as testbed:
        profile = profile or measure_layers(testbed, training.model)
        network = network or measure_links(testbed)
        plan = plan or _search(options, profile, network, settings.data_holder, execution).plan
        problem = Problem(profile, network, plan.batch_size, plan.data_holder, execution)
        run = train(testbed, problem, plan, training)
    predicted_s, kind = iteration_s(problem, plan), kind_of_times(settings)
    low, median, high = np.quantile(run.iteration_s, [0.25, 0.5, 0.75]) * 1e3
    print(
        f"{kind}: {median:.2f} ms per iteration (quartiles {low:.2f} and {high:.2f} over {training.iterations}); "
        f"predicted: {predicted_s * 1e3:.2f} ms"
    )
    results = {
        "kind": kind,
        "accuracy": accuracy(trained_model(training, run.snapshots[training.iterations], dataset), dataset),
        "predicted_iteration_s": predicted_s,
        "iteration_s": run.iteration_s,
        "late_share": run.late_share,
        "clock_error_s": run.clock_error_s,
        "losses": run.losses,
        "last_timeline": run.timeline(training.iterations - 1),
    }
    print(f"test accuracy, trained on {', '.join(plan.participants)}: {results['accuracy']:.4f}")
    if not options.no_reference:
        reference = train_on_one_process(training, dataset)
        single = trained_model(training, reference.snapshots[training.iterations], dataset)
        results["single_process_accuracy"] = accuracy(single, dataset)
        results["largest_loss_difference"] = np.abs(np.subtract(run.losses, reference.losses))[:COMPARED].max()
        print(f"test accuracy, trained in one process: {results['single_process_accuracy']:.4f}")
        difference = results["largest_loss_difference"]
        print(f"losses of the first {COMPARED} mini-batches differ by at most {difference:.1e}; later, rounding grows")
    inexact_layers = chain.inexact_layers + quantized_layers(plan, chain, execution)
    if inexact_layers:
        print(f"not exact by nature, because of {'; '.join(inexact_layers)}")
    parameters |= {"plan": plan, "network": network, "inexact_layers": inexact_layers}
    print(f"record: {save_record(run_name, 'train', parameters, results, root)}")


def run_jobs(options: argparse.Namespace) -> None:
    """Write jobs.json, by which every worker can be started by hand, and print how."""
    from hiertrain.datasets import load_dataset
    from hiertrain.models import build_model
    from hiertrain.stages import check_profile, check_training

    files.check_output(options.output)
    profile, network = files.load(Profile, options.profile), files.load(Network, options.network)
    execution = EXECUTIONS[options.execution]
    plan = _load_plan(options.plan, execution)
    problem = Problem(profile, network, plan.batch_size, plan.data_holder, execution)
    training = _training(options, load_dataset(options.dataset, options.data), plan.batch_size)
    chain = build_model(**dict(training.model)).chain
    machines = {name: _machine(profile, name) for name in plan.participants}
    unpaced = LocalSettings(data_holder=plan.data_holder, workers=dict.fromkeys(profile.workers, WorkerSettings()))
    check_profile(profile, chain, unpaced)
    check_training(plan, training, chain, unpaced)
    dry_run(compile_plan(plan, chain, execution))
    predicted_s = iteration_s(problem, plan)
    content = {"training": training, "plan": plan, "execution": execution, "workers": machines}
    limits = {"timeout_s": 3 * predicted_s + options.timeout, "silence_s": options.timeout}
    files.save(files.parse(Jobs, content | limits, "jobs"), options.output)
    _print_plan(plan)
    print(f"predicted: {predicted_s * 1e3:.3f} ms per iteration")
    print(f"written: {options.output}; copy it to every machine, and start there:")
    kept = " ".join(f"{name}={value}" for name, value in KEPT.items())
    for rank, name in enumerate(plan.participants):
        print(
            f"  {name}: GLOO_SOCKET_IFNAME=INTERFACE {kept} torchrun --nnodes={len(machines)} --nproc-per-node=1 "
            f"--node-rank={rank} --master-addr=ADDRESS --master-port=29500 "
            f"-m hiertrain.byhand {options.output.name} --output FOLDER"
        )
    print(f"INTERFACE: the machine's own that the others reach; ADDRESS: the one that {plan.participants[0]} has there")


def _machine(profile: Profile, name: str) -> Machine:
    """What the worker was profiled with. Raises InputError unless that says how it will compute."""
    worker = profile.worker(name)
    if worker.slowdown != 1:
        raise InputError(
            f"profile: worker {name!r} has the slowdown {worker.slowdown:g}; must be 1, since nothing is paced by hand"
        )
    if worker.measurement is None:
        raise InputError(f"profile: worker {name!r} has no measurement, which says how many threads it computes with")
    return Machine(threads=worker.measurement.threads, accelerator=worker.measurement.accelerator)


def _given_plan(options: argparse.Namespace, data_holder: str) -> tuple[Plan | None, Execution]:
    """The plan of ``--plan``, if any, and the execution. Raises InputError where options need it or are useless."""
    execution = EXECUTIONS[options.execution]
    if options.plan is None:
        if execution.activation_encoding != "float32":
            raise InputError(f"--execution {options.execution}: needs --plan; the solver knows no 8-bit activations")
        return None, execution
    search = {"--root": options.root, "--exclude": options.exclude, "--memory-limit": options.memory_limit}
    search |= {"--samples-stay": options.samples_stay, "--shape": options.shape != "tree"}
    useless = [name for name, value in search.items() if value]
    if useless:
        raise InputError(f"{useless[0]}: has no effect with --plan, which is not searched for")
    plan = _load_plan(options.plan, execution)
    if plan.data_holder != data_holder:
        raise InputError(f"{options.plan}: data holder {plan.data_holder!r}; the testbed's is {data_holder!r}")
    return plan, execution


def _check_time_limit(options: argparse.Namespace) -> None:
    """Raise InputError for a time limit that is none."""
    if not 0 < options.time_limit < math.inf:
        raise InputError(f"time limit {options.time_limit:g} s: must be a positive number")


def _check_search(options: argparse.Namespace, workers: Collection[str]) -> None:
    """Raise InputError for options of the search that name no worker of the testbed, or limit nothing."""
    _check_time_limit(options)
    limited = [_memory_limit(text)[0] for text in options.memory_limit]
    for name in (*options.exclude, *limited, *([options.root] if options.root else [])):
        if name not in workers:
            raise InputError(f"worker {name!r} is not in the testbed; it has {', '.join(workers)}")


def run_reproduce(options: argparse.Namespace) -> None:
    """Execute the notebooks of a parameter file; when all of them are up to date, write the report."""
    from hiertrain.parameters import prepare
    from hiertrain.report import write_report
    from hiertrain.reproduce import NotebookRecord, reproduce

    jobs = prepare(options.parameters, options.run)
    outcomes = reproduce(options.parameters, run=options.run, only=options.only, force=options.force)
    if len(outcomes) < len(jobs):
        print("no report: it shows all notebooks, and these are not all; without --only it is written")
        return
    command = f"hiertrain reproduce {options.parameters}" + (f" --run {options.run}" if options.run else "")
    report = write_report(jobs[0].folder, [job.name for job in jobs], command)
    total_s = sum(files.load(NotebookRecord, job.path(".json")).seconds for job in jobs)
    print(f"report: {report}; all notebooks took {total_s / 60:.1f} minutes")


def run_publish(options: argparse.Namespace) -> None:
    """Make a run the reference."""
    from hiertrain.publishing import publish

    print(f"reference: {publish(options.run)}; README.md has its numbers")


def _load_plan(path: Path, execution: Execution) -> Plan:
    """A plan, from a plan file or from the solution file of the same execution."""
    try:
        return files.load(Plan, path)
    except InputError as error:
        try:
            solution = files.load(Solution, path)
        except InputError:
            raise error from None
    if solution.settings.execution != execution:
        found = next((name for name, known in EXECUTIONS.items() if known == solution.settings.execution), "another")
        raise InputError(f"{path}: was optimized with the execution {found!r}; give the same --execution")
    return solution.plan


def _search(
    options: argparse.Namespace, profile: Profile, network: Network, data_holder: str, execution: Execution
) -> Solution:
    """Optimize under the constraints of the command line, and print the plan."""
    from hiertrain.scheduling import optimize

    problem = Problem(
        profile,
        network,
        options.batch_size,
        data_holder,
        execution,
        excluded=frozenset(options.exclude),
        root=options.root,
        samples_stay=options.samples_stay,
        memory_limit_bytes=dict(_memory_limit(text) for text in options.memory_limit),
    )
    solution = optimize(problem, shape=options.shape, time_limit_s=options.time_limit, seed=options.seed)
    _print_plan(solution.plan)
    print(
        f"predicted: {solution.objective_s * 1e3:.3f} ms per iteration; "
        f"proven bound: {solution.bound_s * 1e3:.3f} ms; status: {solution.status}; solved in {solution.solve_s:.2f} s"
    )
    return solution


def _memory_limit(text: str) -> tuple[str, int]:
    worker, _, limit = text.partition("=")
    if not limit.isdecimal():
        raise InputError(f"memory limit {text!r}: must be WORKER=BYTES, such as device=200000000")
    return worker, int(limit)


def _print_plan(plan: Plan) -> None:
    print(f"plan for {plan.batch_size} samples, held by {plan.data_holder}:")
    for name, part in plan.workers.items():
        role = "root" if part.parent is None else f"sends to {part.parent}"
        work = f"layers 1..{part.depth}, {part.samples} samples, {role}" if plan.active(name) else "does not compute"
        print(f"  {name:10} {work}")


def _training(options: argparse.Namespace, dataset: "Dataset", batch_size: int) -> Training:
    """What to train, by the options. Raises InputError when they do not fit."""
    from hiertrain.stages import training_settings

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
        "momentum": options.momentum if options.optimizer == "sgd" else 0.0,
        "weight_decay": options.weight_decay,
    }
    return files.parse(OptimizerSettings, content, "optimizer")
