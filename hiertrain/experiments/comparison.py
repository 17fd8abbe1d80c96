"""What a training is worth: against single machines in the same session, and against one process. Times in seconds."""

import statistics
from dataclasses import dataclass

from hiertrain.planning.baselines import single_worker_plans
from hiertrain.problem.plan import Plan
from hiertrain.problem.problem import Problem
from hiertrain.program.actions import Program
from hiertrain.program.simulator import iteration_s, simulate
from hiertrain.testbeds.session import Testbed
from hiertrain.training.evaluation import accuracy, trained_model
from hiertrain.training.run import Times, TrainingRun
from hiertrain.training.single_process import train_on_one_process
from hiertrain.training.train import iterations_within, train
from hiertrain.workload.chain_model import ChainModel
from hiertrain.workload.datasets import Dataset
from hiertrain.workload.spec import Training

ALONE_S = 2.0  # for about so long every worker that could be the best one trains alone
ALONE_AT_MOST = 2.0  # times the predicted time of the best one alone; slower workers need not be tried
# Mini-batches whose losses are compared with those of one process, before training amplifies rounding.
COMPARED = 10


@dataclass(frozen=True)
class Comparison:
    """A run, its times, and those of single workers that did everything, by name."""

    run: TrainingRun
    times: Times
    alone: dict[str, Times]


@dataclass(frozen=True)
class Learnt:
    """A trained model and its test accuracy."""

    model: ChainModel
    accuracy: float


def train_and_compare(testbed: Testbed, problem: Problem, asked: Plan | Program, training: Training) -> Comparison:
    """Train, then by the single workers that could be the best alone. Raises like ``train``.

    None are tried where one worker alone has computed anyway, or where there is no time to compare.
    """
    run = train(testbed, problem, asked, training)
    predicted_s = simulate(run.program, problem.profile, problem.network).period_s
    times, alone = Times(predicted_s, statistics.median(run.steady_s)), {}
    if len(run.program.computing) > 1 and run.counted:
        alone = _alone(testbed, problem, training)
    return Comparison(run, times, alone)


def _alone(testbed: Testbed, problem: Problem, training: Training) -> dict[str, Times]:
    """Of the worker predicted to be the best alone, and near ones."""
    plans = single_worker_plans(problem)
    predicted_s = {name: iteration_s(problem, alone) for name, alone in plans.items()}
    times = {}
    for name, alone in plans.items():
        if predicted_s[name] <= ALONE_AT_MOST * min(predicted_s.values()):
            iterations = iterations_within(ALONE_S, predicted_s[name], problem.execution, least=3)
            short = training.model_copy(update={"iterations": iterations, "snapshot_every": iterations})
            run = train(testbed, problem, alone, short)
            times[name] = Times(predicted_s[name], statistics.median(run.steady_s))
    return times


def learnt_by(run: TrainingRun, training: Training, dataset: Dataset) -> Learnt:
    """What a run has come to after its last iteration."""
    model = trained_model(training, run.snapshots[training.iterations], dataset)
    return Learnt(model, accuracy(model, dataset))


def against_one_process(run: TrainingRun, training: Training, dataset: Dataset) -> tuple[float, float]:
    """Train in one process: its test accuracy, and the largest difference of the first ``COMPARED`` losses.

    Raises RunError when its loss is no longer finite.
    """
    reference = train_on_one_process(training, dataset)
    single = trained_model(training, reference.snapshots[training.iterations], dataset)
    pairs = zip(run.losses[:COMPARED], reference.losses[:COMPARED], strict=True)
    return accuracy(single, dataset), max(abs(ours - its) for ours, its in pairs)
