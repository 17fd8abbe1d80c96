"""What the commands of ``hiertrain`` take."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from hiertrain.cli import commands
from hiertrain.cli.options import BATCH_SIZE, ITERATIONS, PRESETS
from hiertrain.testbeds import AUTOMATIC
from hiertrain.values import one_line
from hiertrain.workload.spec import OptimizerSettings

AddCommand = Callable[[str, Callable, str, str], argparse.ArgumentParser]
PROGRAM = "program.csv as the command program writes it, or .json, perhaps edited"


class _Parser(argparse.ArgumentParser):
    """Says in one line what is wrong, like every other error of the input."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {one_line(message)}; see {self.prog} --help\n")


def parser() -> argparse.ArgumentParser:
    """The parser; what it returns has the function of the command as ``command``."""
    whole = _Parser(
        prog="hiertrain",
        description="Train one model on a device, an edge server and a cloud at once, each with its own share of the "
        "layers and of the samples. The three stages: profile and links measure, optimize plans, train executes.",
        epilog="A first run, all three stages on this machine: hiertrain train --testbed wired",
    )
    subparsers = whole.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, function: Callable, summary: str, description: str) -> argparse.ArgumentParser:
        sub = subparsers.add_parser(
            name, help=summary, description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
        )
        sub.set_defaults(command=function)
        return sub

    _add_measuring(command)
    _add_planning(command)
    _add_executing(command)
    _add_reproducing(command)
    return whole


def _add_measuring(command: AddCommand) -> None:
    sub = command(
        "profile",
        commands.run_profile,
        "measure the layers of a model on every worker of a testbed",
        "Stage 1a. Measures every layer on every worker, prints the time of a mini-batch, writes profile.json.",
    )
    _add_model(sub)
    _add_dataset(sub, None, "profile for samples and classes of this data set; by default the model's usual ones")
    _add_testbed(sub)
    sub.add_argument(
        "--time-limit", type=float, default=60.0, metavar="S", help="larger sample counts are skipped then"
    )
    sub.add_argument("--output", type=Path, default=Path("profile.json"), help="the profile to write")

    sub = command(
        "links",
        commands.run_links,
        "measure bandwidth and latency between all workers of a testbed",
        "Stage 1b. Measures every pair and direction by real transfers, writes network.json.",
    )
    _add_testbed(sub)
    sub.add_argument("--output", type=Path, default=Path("network.json"), help="the network to write")


def _add_planning(command: AddCommand) -> None:
    sub = command(
        "optimize",
        commands.run_optimize,
        "find the plan with the least time per iteration",
        "Stage 2. Proves the best plan over all rooted trees of the workers, depths and sample splits.",
    )
    _add_problem(sub)
    _add_search(sub)
    sub.add_argument("--output", type=Path, help="write the solution (plan, time, bound, settings) to this JSON file")

    sub = command(
        "limit",
        commands.run_limit,
        "find the time per iteration that no plan is below, and what binds it",
        "A lower bound for every plan under every lossless execution, also one that overlaps all it can, and what it "
        "would be with a machine twice as fast or one Mbit/s more on a link.",
    )
    _add_problem(sub)
    _add_constraints(sub)
    sub.add_argument("--time-limit", type=float, default=60.0, metavar="S", help="seconds for each of these at most")
    sub.add_argument("--output", type=Path, help="write what is found to this JSON file")
    sub.set_defaults(root=None)  # which worker it is changes nothing

    sub = command(
        "predict",
        commands.run_predict,
        "predict the time per iteration of a plan, or of a program",
        "Evaluates a plan or a program with the cost model and lists its predicted timeline.",
    )
    _add_problem(sub, batch_size=False)
    given = sub.add_mutually_exclusive_group(required=True)
    given.add_argument("--plan", type=Path, help="plan.json, or a solution.json")
    given.add_argument("--program", type=Path, help=PROGRAM)

    sub = command(
        "program",
        commands.run_program,
        "write what every worker does in one iteration of a plan, as a table to read and to edit",
        "Prints CSV, one row per action; predict --program and train --program take it, also after a change. Layers "
        "are 1..5, or 5 for a cut after it; rows of the mini-batch count from 0, both ends included: 0..63 100. "
        "Where iterations overlap, ahead is for which iteration: 0 is the worker's own, 2 the one after the next.",
    )
    _add_profile(sub)
    _add_execution(sub)
    sub.add_argument("--plan", type=Path, required=True, help="plan.json, or a solution.json")
    sub.add_argument("--output", type=Path, help="the file to write: .csv, or .json")


def _add_executing(command: AddCommand) -> None:
    sub = command(
        "train",
        commands.run_train,
        "train by a plan on the workers of a testbed, and compare with one process",
        "Stage 3. Whatever of profile, network and plan is not given is measured or optimized first. A program is "
        "executed as it is.",
    )
    _add_training(sub)
    _add_testbed(sub)
    _add_search(sub)
    _add_given(sub)
    _add_batch_size(sub)
    _add_execution(sub)
    sub.add_argument("--no-reference", action="store_true", help="do not train on a single process for comparison")
    sub.add_argument("--output", type=Path, help="gets record and model; a new folder of results/train when not given")
    sub.add_argument("--force", action="store_true", help="replace the record of an earlier training there")

    sub = command(
        "evaluate",
        commands.run_evaluate,
        "print the test accuracy of a trained model",
        "Loads model.safetensors, with model.json beside it, as train and workers started by hand write them.",
    )
    _add_saved_model(sub)

    sub = command(
        "jobs",
        commands.run_jobs,
        "write the file by which workers are started by hand, with torchrun on each machine",
        "Stage 3 without SSH. Writes jobs.json, the same for every machine, and prints what to start on each.",
    )
    _add_training(sub)
    _add_problem(sub, batch_size=False)
    sub.add_argument("--plan", type=Path, required=True, help="plan.json, or a solution.json")
    sub.add_argument("--seed", type=int, default=0, help="of the initial weights and the sample order")
    sub.add_argument("--timeout", type=float, default=8.0, metavar="S", help="a link silent for so long counts as lost")
    sub.add_argument("--output", type=Path, default=Path("jobs.json"), help="the jobs file to write")


def _add_reproducing(command: AddCommand) -> None:
    sub = command(
        "reproduce",
        commands.run_reproduce,
        "execute the notebooks and collect every figure, table and record",
        "Runs the notebooks through papermill; what is there and unchanged is skipped. Then writes report.html.",
    )
    sub.add_argument("parameters", nargs="?", default="quick", help="a file in notebooks/parameters, or a path")
    sub.add_argument("--run", help="the folder under results/; by default the one that the parameter file names")
    sub.add_argument("--only", nargs="+", metavar="NOTEBOOK", help="execute only these notebooks; no report then")
    sub.add_argument("--force", action="store_true", help="execute also what is there and unchanged")

    sub = command(
        "lab",
        commands.run_lab,
        "open JupyterLab on working copies of the notebooks",
        "Copies notebooks/ to results/interactive/notebooks; a copy that you have edited stays as it is.",
    )
    sub.add_argument("jupyter", nargs="*", help="options for JupyterLab after --, such as: -- --no-browser --port 8889")

    sub = command(
        "publish",
        commands.run_publish,
        "make a run the reference, and fill the README's tables from it",
        "For maintainers. Copies the outputs and records of results/RUN to results/reference; paper.yml must have been "
        "executed whole, by committed source, and measured.",
    )
    sub.add_argument("run", nargs="?", default="paper", help="the folder under results/")


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="lenet5", help="lenet5, alexnet-cifar or any torchvision classifier")


def _add_dataset(parser: argparse.ArgumentParser, default: str | None, summary: str) -> None:
    parser.add_argument("--dataset", default=default, help=summary)
    _add_data(parser)


def _add_saved_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", type=Path, help="the folder of the model, or its file of weights")
    _add_data(parser)


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, help="the folder of downloaded data sets; by default data/")


def _add_training(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    _add_dataset(parser, "digits", "digits, fashion-mnist, cifar10 or synthetic")
    parser.add_argument("--iterations", type=int, default=ITERATIONS, help="mini-batches to train")
    usual = OptimizerSettings()
    parser.add_argument("--optimizer", choices=("sgd", "adam"), default=usual.name, help="the optimizer at the root")
    parser.add_argument("--learning-rate", type=float, default=usual.learning_rate, help="its learning rate")
    parser.add_argument("--momentum", type=float, default=usual.momentum, help="of SGD; Adam ignores it")
    parser.add_argument("--weight-decay", type=float, default=usual.weight_decay, help="L2 penalty")


def _add_testbed(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--testbed",
        default=AUTOMATIC,
        help="where the workers run: the path of a testbed file, or the name of one in notebooks/testbeds, such as "
        "local; auto: netns where this machine allows it, else local",
    )


def _add_problem(parser: argparse.ArgumentParser, batch_size: bool = True) -> None:
    _add_profile(parser)
    parser.add_argument("--network", type=Path, required=True, help="network.json: the links")
    _add_execution(parser)
    if batch_size:
        _add_batch_size(parser)
        parser.add_argument("--data-holder", default="device", help="the worker that has the raw samples")


def _add_profile(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--profile", type=Path, required=True, help="profile.json: times and sizes of the layers")


def _add_execution(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--execution",
        default="paper",
        metavar="NAME|FIELD=VALUE,...",
        help=f"how an iteration is executed: {', '.join(PRESETS)}, or fields such as parameter_encoding=bfloat16; "
        "overlapped is lossless, and so is sample_encoding=zlib, which compresses raw samples",
    )


def _add_batch_size(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--batch-size",
        type=int,
        help=f"samples per mini-batch over all workers; if not given {BATCH_SIZE}, or the plan's",
    )


def _add_search(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--shape", choices=("tree", "star"), default="tree", help="star: only the paper's plans")
    parser.add_argument("--root", help="the worker that must be the root (it holds the optimizer)")
    _add_constraints(parser)
    parser.add_argument("--time-limit", type=float, default=60.0, metavar="S", help="seconds until the search gives up")
    parser.add_argument("--seed", type=int, default=0, help="of the search, the initial weights and the sample order")


def _add_constraints(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--exclude", action="append", default=[], metavar="WORKER", help="a worker that must not compute"
    )
    parser.add_argument("--samples-stay", action="store_true", help="raw samples must not leave the data holder")
    parser.add_argument(
        "--memory-limit",
        action="append",
        default=[],
        metavar="WORKER=SIZE",
        help="the most that a worker's tensors may take, such as device=200MB, besides what its process takes anyway; "
        "give it once per worker",
    )


def _add_given(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--profile", type=Path, help="profile.json; measured when not given")
    parser.add_argument("--network", type=Path, help="network.json; measured when not given")
    given = parser.add_mutually_exclusive_group()
    given.add_argument("--plan", type=Path, help="plan.json or solution.json; optimized when not given")
    given.add_argument("--program", type=Path, help=PROGRAM)
