"""Benchmarks: the plans that race, the times that are compared, and the ratios, by hand."""

import numpy as np
import pandas as pd
import pytest

from hiertrain.control.answers import Iteration
from hiertrain.control.jobs import PIPELINES
from hiertrain.experiments.overhead import (
    AS_USERS_RUN_IT,
    OURS,
    Race,
    between_ends_ms,
    median_interval,
    races,
    ratio_table,
    run_block,
    unpaced_table,
)
from hiertrain.problem.execution import Execution
from hiertrain.problem.plan import Assignment
from hiertrain.program.actions import Program
from hiertrain.testbeds.session import Testbed
from hiertrain.training.run import TrainingRun
from hiertrain.training.settings import training_settings
from hiertrain.values import InputError
from hiertrain.workload.architectures import build_model
from hiertrain.workload.datasets import load_dataset
from tests.training.test_training import LENET, instant_problem


def lenet_races(batch_size: int, cuts: tuple[int, ...], iterations: int = 6) -> list[Race]:
    dataset = load_dataset("digits")
    problem = instant_problem(build_model("lenet5", dataset.sample_shape).chain, batch_size, Execution.overlapped())
    return races(problem, training_settings(LENET, dataset, batch_size, iterations=iterations), cuts, micro_batches=4)


def test_the_three_plans() -> None:
    single, equal, split = lenet_races(11, (3, 6))
    assert single.plan.participants == ("device",)
    assert [part.samples for part in equal.plan.workers.values()] == [4, 4, 3]
    assert equal.plan.root == "device"
    assert dict(split.plan.workers) == {
        "device": Assignment(parent="edge", depth=3, samples=11),
        "edge": Assignment(parent="cloud", depth=6, samples=0),
        "cloud": Assignment(parent=None, depth=13, samples=0),
    }
    with pytest.raises(InputError, match="1 cuts for the workers device, edge, cloud: must be one less"):
        lenet_races(12, (3,))


def test_a_block_trains_the_same_by_every_program(testbed: Testbed) -> None:
    blocks = [run_block(testbed, race, 2) for race in lenet_races(12, (3, 6))]
    with pytest.raises(InputError, match="4 iterations to warm up: must be from 1 to below 4"):
        run_block(testbed, lenet_races(12, (3, 6))[0], 4)
    block = pd.concat(blocks)
    rivals = ["plain", "ddp", "ddp-scatter", "gpipe, 1 micro-batch", *(f"{way}, 4 micro-batches" for way in PIPELINES)]
    assert list(block["program"]) == [OURS, rivals[0], OURS, *rivals[1:3], OURS, *rivals[3:]]
    assert block["loss_difference"].max() < 1e-6
    assert (block[["iteration_ms", "median_ms"]] > 0).all(axis=None)
    assert list(ratio_table(block.assign(block=0))["rival"]) == rivals
    unpaced = unpaced_table(block)
    assert list(unpaced["comparison"]) == ["one worker", "data-parallel", "layer split"]
    assert (unpaced["times_predicted"] * unpaced["predicted_ms"]).tolist() == pytest.approx(
        block.loc[block["program"] == OURS, "iteration_ms"].tolist()
    )


def test_the_plain_loop_is_run_as_users_do_too(testbed: Testbed) -> None:
    (single, *_) = lenet_races(12, (3, 6))
    block = run_block(testbed, single, 2, unkept=testbed)
    assert list(block["program"]) == [OURS, "plain", AS_USERS_RUN_IT]
    assert block["loss_difference"].max() < 1e-6


def test_what_is_between_iterations_counts() -> None:
    ends_s = np.cumsum([10.0, 5.0, 1.0, 2.0, 6.0])
    done = [Iteration(loss=0, started_s=end - 0.5, ended_s=end, spans=(), late_s=0) for end in ends_s]
    run = TrainingRun(Program(batch_size=12, data_holder="device", actions={}), {"device": done}, {"device": []}, {})
    assert list(between_ends_ms(run, 2)) == pytest.approx([1000, 2000, 6000])


@pytest.mark.parametrize(
    ("values", "ranks"), [(1, (0, 0)), (5, (0, 4)), (6, (0, 5)), (9, (1, 7)), (12, (2, 9)), (20, (5, 14))]
)
def test_the_median_lies_between_two_of_the_values(values: int, ranks: tuple[int, int]) -> None:
    assert median_interval(list(reversed(range(values)))) == ranks  # as tables of the sign test have them


def test_ratios_are_of_neighbours() -> None:
    case = {"model": "m", "batch_size": 1, "comparison": "c"}
    times = {OURS: [10, 20, 90], "ddp": [10, 10, 90], "ddp-scatter": [20, 20, 90]}
    blocks = pd.DataFrame(
        {**case, "program": program, "block": block, "iteration_ms": ms}
        for program, own in times.items()
        for block, ms in enumerate(own)
    )
    expected = pd.DataFrame(
        [
            {**case, "rival": "ddp", "plan_ms": 20.0, "rival_ms": 10.0, "ratio": 1.0, "low": 1.0, "high": 2.0},
            {**case, "rival": "ddp-scatter", "plan_ms": 20.0, "rival_ms": 20.0, "ratio": 1.0, "low": 0.5, "high": 1.0},
        ]
    ).assign(blocks=3)
    pd.testing.assert_frame_equal(ratio_table(blocks), expected)
