"""``hiertrain``: what people do without a notebook. Every command reads and writes the JSON files of the workbench.

Exit status: 0 success, 1 a worker or notebook failed, 2 bad input (one line says what), 130 interrupted. Each command
imports what it needs, so that help and plans do not wait for PyTorch.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from hiertrain import files
from hiertrain.cost import iteration_s
from hiertrain.jobs import ModelSettings, OptimizerSettings
from hiertrain.network import Network
from hiertrain.paths import DATA, NOTEBOOKS, RESULTS
from hiertrain.plan import Execution, Plan, Problem
from hiertrain.profile import Profile
from hiertrain.program import compile_plan, simulate
from hiertrain.solution import Solution
from hiertrain.testbeds.base import Testbed, TestbedSettings
from hiertrain.testbeds.local import open_local
from hiertrain.values import InputError, RunError

EXECUTIONS = {"paper": Execution.paper(), "paper-float32": Execution(sample_encoding="float32")}
LOCAL = NOTEBOOKS / "testbeds" / "local.yml"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; see ``hiertrain --help``."""
    options = _parser().parse_args(arguments)
    try:
        options.command(options)
    except InputError as error:
        print(f"hiertrain: error: {error}", file=sys.stderr)
        return 2
    except RunError as error:
        print(f"hiertrain: failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("hiertrain: interrupted", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hiertrain",
        description="Train one model on a device, an edge server and a cloud at once, each with its own share of the "
        "layers and of the samples. The three stages: profile and links measure, optimize plans, train executes.",
        epilog="A first run, all three stages on this machine: hiertrain train --model lenet5 --dataset digits",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, function: Callable, summary: str, description: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name, help=summary, description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        sub.set_defaults(command=function)
        return sub

    sub = command(
        "profile",
        _profile,
        "measure the layers of a model on every worker of a testbed",
        "Stage 1a. Measures every layer on every worker, prints the time of a mini-batch, writes profile.json.",
    )
    _add_model(sub)
    _add_testbed(sub)
    sub.add_argument("--output", type=Path, default=Path("profile.json"), help="the profile to write")

    sub = command(
        "links",
        _links,
        "measure bandwidth and latency between all workers of a testbed",
        "Stage 1b. Measures every pair and direction by real transfers, writes network.json.",
    )
    _add_testbed(sub)
    sub.add_argument("--output", type=Path, default=Path("network.json"), help="the network to write")

    sub = command(
        "optimize",
        _optimize,
        "find the plan with the least time per iteration",
        "Stage 2. Proves the best plan over all rooted trees of the workers, depths and sample splits.",
    )
    _add_problem(sub)
    _add_search(sub)
    sub.add_argument("--output", type=Path, help="write the solution (plan, time, bound, settings) to this JSON file")

    sub = command(
        "predict",
        _predict,
        "predict the time per iteration of a plan",
        "Evaluates a plan with the cost model and lists its predicted timeline.",
    )
    _add_problem(sub, batch_size=False)
    sub.add_argument("--plan", type=Path, required=True, help="plan.json, or a solution.json")

    sub = command(
        "train",
        _train,
        "train by a plan on the workers of a testbed, and compare with one process",
        "Stage 3. Whatever of profile, network and plan is not given is measured or optimized first.",
    )
    _add_model(sub)
    _add_testbed(sub)
    _add_search(sub)
    sub.add_argument("--dataset", default="digits", help="digits, fashion-mnist, cifar10 or synthetic")
    sub.add_argument("--data", type=Path, default=DATA, help="the folder of downloaded data sets")
    sub.add_argument("--profile", type=Path, help="profile.json; measured when not given")
    sub.add_argument("--network", type=Path, help="network.json; measured when not given")
    sub.add_argument("--plan", type=Path, help="plan.json or solution.json; optimized when not given")
    sub.add_argument("--batch-size", type=int, default=64, help="samples per mini-batch over all workers")
    sub.add_argument("--execution", choices=EXECUTIONS, default="paper", help="how an iteration is executed")
    sub.add_argument("--iterations", type=int, help="mini-batches to train; one epoch when not given")
    sub.add_argument("--optimizer", choices=("sgd", "adam"), default="sgd", help="the optimizer at the root")
    sub.add_argument("--learning-rate", type=float, default=0.05, help="its learning rate")
    sub.add_argument("--momentum", type=float, default=0.9, help="of SGD; Adam ignores it")
    sub.add_argument("--weight-decay", type=float, default=0.0, help="L2 penalty")
    sub.add_argument("--no-reference", action="store_true", help="do not train on a single process for comparison")
    sub.add_argument("--output", type=Path, default=RESULTS / "train", help="the folder that gets the record")

    sub = command(
        "reproduce",
        _reproduce,
        "execute the notebooks and collect every figure, table and record",
        "Runs the notebooks through papermill; what is there and unchanged is skipped.",
    )
    sub.add_argument("parameters", nargs="?", default="paper", help="a file in notebooks/parameters, or a path")
    sub.add_argument("--run", help="the folder under results/; by default the one that the parameter file names")
    sub.add_argument("--only", nargs="+", metavar="NOTEBOOK", help="execute only these notebooks")
    sub.add_argument("--force", action="store_true", help="execute also what is there and unchanged")
    return parser


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="lenet5", help="lenet5, alexnet-cifar or any torchvision classifier")


def _add_testbed(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--testbed", type=Path, default=LOCAL, help="a testbed file: where the workers run")


def _add_problem(parser: argparse.ArgumentParser, batch_size: bool = True) -> None:
    parser.add_argument("--profile", type=Path, required=True, help="profile.json: times and sizes of the layers")
    parser.add_argument("--network", type=Path, required=True, help="network.json: the links")
    parser.add_argument("--execution", choices=EXECUTIONS, default="paper", help="how an iteration is executed")
    if batch_size:
        parser.add_argument("--batch-size", type=int, default=64, help="samples per mini-batch over all workers")
        parser.add_argument("--data-holder", default="device", help="the worker that has the raw samples")


def _add_search(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shape", choices=("tree", "star"), default="tree", help="star: only the paper's plans")
    parser.add_argument("--root", help="the worker that must be the root (it holds the optimizer)")
    parser.add_argument(
        "--exclude", action="append", default=[], metavar="WORKER", help="a worker that must not compute"
    )
    parser.add_argument("--samples-stay", action="store_true", help="raw samples must not leave the data holder")
    parser.add_argument(
        "--memory-limit", action="append", default=[], metavar="WORKER=BYTES", help="the most that a worker may hold"
    )
    parser.add_argument("--time-limit", type=float, default=60.0, metavar="S", help="seconds until the search gives up")
    parser.add_argument("--seed", type=int, default=0, help="of the search, the initial weights and the sample order")


def _profile(options: argparse.Namespace) -> None:
    from hiertrain.models import build_model
    from hiertrain.stages import measure_layers

    model = ModelSettings(name=options.model)
    build_model(**dict(model))  # a model that cannot be had is found out before any process starts
    with _open(options.testbed) as testbed:
        profile = measure_layers(testbed, model)
        kind = testbed.settings.kind_of_times
    files.save(profile, options.output)
    print(f"{profile.model}: {len(profile.layers)} layers; one mini-batch of 64 on one worker ({kind}):")
    for name, worker in profile.workers.items():
        depth = len(profile.layers)
        forward_s, backward_s = worker.forward_s(1, depth, 64), worker.backward_s(1, depth, 64)
        print(
            f"  {name:10} forward {forward_s * 1e3:8.2f} ms   backward {backward_s * 1e3:8.2f} ms   "
            f"update {worker.update_s * 1e3:6.2f} ms"
        )
    print(f"written: {options.output}")


def _links(options: argparse.Namespace) -> None:
    from hiertrain.stages import measure_links

    with _open(options.testbed) as testbed:
        network = measure_links(testbed)
        kind = testbed.settings.kind_of_times
    files.save(network, options.output)
    print(f"links ({kind}):")
    for link in network.links:
        print(f"  {link.source:>8} -> {link.target:8} {link.bandwidth_mbps:9.2f} Mbit/s {link.latency_ms:8.2f} ms")
    print(f"written: {options.output}")


def _optimize(options: argparse.Namespace) -> None:
    profile, network = files.load(Profile, options.profile), files.load(Network, options.network)
    solution = _search(options, profile, network, options.data_holder)
    if options.output:
        files.save(solution, options.output)
        print(f"written: {options.output}")


def _predict(options: argparse.Namespace) -> None:
    profile, network = files.load(Profile, options.profile), files.load(Network, options.network)
    plan = _load_plan(options.plan)
    problem = Problem(profile, network, plan.batch_size, plan.data_holder, EXECUTIONS[options.execution])
    timeline = simulate(compile_plan(plan, profile.chain, problem.execution), profile, network)
    _print_plan(plan)
    for span in sorted(timeline.spans, key=lambda span: (span.start_s, span.end_s)):
        print(f"  {span.start_s * 1e3:10.3f} .. {span.end_s * 1e3:10.3f} ms  {span.worker:10} {span.action}")
    print(f"predicted: {iteration_s(problem, plan) * 1e3:.3f} ms per iteration")


def _train(options: argparse.Namespace) -> None:
    import numpy as np

    from hiertrain.datasets import load_dataset
    from hiertrain.models import build_model
    from hiertrain.records import save_record
    from hiertrain.reference import train_on_one_process
    from hiertrain.stages import accuracy, measure_layers, measure_links, train, trained_model, training_settings

    dataset = load_dataset(options.dataset, options.data)
    training = training_settings(
        ModelSettings(name=options.model, seed=options.seed),
        dataset,
        options.batch_size,
        iterations=options.iterations,
        optimizer=_optimizer(options),
        seed=options.seed,
        data_folder=options.data,
    )
    inexact = build_model(**dict(training.model)).chain.inexact_layers
    profile = files.load(Profile, options.profile) if options.profile else None
    network = files.load(Network, options.network) if options.network else None
    plan = _load_plan(options.plan) if options.plan else None
    with _open(options.testbed) as testbed:
        kind = testbed.settings.kind_of_times
        profile = profile or measure_layers(testbed, training.model)
        network = network or measure_links(testbed)
        plan = plan or _search(options, profile, network, testbed.settings.data_holder).plan
        problem = Problem(profile, network, plan.batch_size, plan.data_holder, EXECUTIONS[options.execution])
        run = train(testbed, problem, plan, training)
    low, median, high = np.quantile(run.iteration_s, [0.25, 0.5, 0.75]) * 1e3
    print(
        f"{kind}: {median:.2f} ms per iteration (quartiles {low:.2f} and {high:.2f} over {training.iterations}); "
        f"predicted: {iteration_s(problem, plan) * 1e3:.2f} ms"
    )
    results = {
        "kind": kind,
        "accuracy": accuracy(trained_model(training, run.snapshots[training.iterations]), dataset),
        "losses": run.losses,
        "iteration_s": run.iteration_s,
    }
    print(f"test accuracy, trained on {', '.join(plan.participants)}: {results['accuracy']:.4f}")
    if not options.no_reference:
        reference = train_on_one_process(training, dataset)
        single = accuracy(trained_model(training, reference.snapshots[training.iterations]), dataset)
        results["single_process_accuracy"] = single
        print(f"test accuracy, trained in one process: {single:.4f}")
    if inexact:
        print(f"not exact by nature, because of {'; '.join(inexact)}")
    parameters = {"training": training, "plan": plan, "execution": problem.execution, "inexact_layers": inexact}
    print(f"record: {save_record(options.output.name, 'train', parameters, results, options.output.parent)}")


def _reproduce(options: argparse.Namespace) -> None:
    from hiertrain.reproduce import reproduce

    reproduce(options.parameters, run=options.run, only=options.only, force=options.force)


def _open(path: Path) -> Testbed:
    return open_local(files.load(TestbedSettings, path))


def _load_plan(path: Path) -> Plan:
    """A plan, from a plan file or from a solution file."""
    try:
        return files.load(Plan, path)
    except InputError as error:
        try:
            return files.load(Solution, path).plan
        except InputError:
            raise error from None


def _search(options: argparse.Namespace, profile: Profile, network: Network, data_holder: str) -> Solution:
    """Optimize under the constraints of the command line, and print the plan."""
    from hiertrain.scheduling import optimize

    problem = Problem(
        profile,
        network,
        options.batch_size,
        data_holder,
        EXECUTIONS[options.execution],
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


def _optimizer(options: argparse.Namespace) -> OptimizerSettings:
    content = {
        "name": options.optimizer,
        "learning_rate": options.learning_rate,
        "momentum": options.momentum if options.optimizer == "sgd" else 0.0,
        "weight_decay": options.weight_decay,
    }
    return files.parse(OptimizerSettings, content, "optimizer")


if __name__ == "__main__":
    sys.exit(main())
