"""The rivals train what a plan trains: their losses and weights equal plain SGD in one process."""

import numpy as np
import pytest

from hiertrain.control.jobs import Rival
from hiertrain.problem.network import Link
from hiertrain.problem.plan import Plan
from hiertrain.testbeds.session import Testbed
from hiertrain.testbeds.settings import LocalSettings, WorkerSettings
from hiertrain.training.pytorch_baselines import train_as_rival
from hiertrain.training.settings import training_settings
from hiertrain.training.single_process import train_on_one_process
from hiertrain.values import InputError
from hiertrain.workload.datasets import load_dataset
from hiertrain.workload.spec import ModelSettings, OptimizerSettings
from tests.conftest import OpenLocal
from tests.training.test_training import LENET, TOLERANCE, WORKERS, tree

ONE = tree(12, device=(None, 13, 12))
SHARES = tree(12, device=("cloud", 13, 5), edge=("cloud", 13, 4), cloud=(None, 13, 3))
EQUAL_SHARES = tree(12, device=("cloud", 13, 4), edge=("cloud", 13, 4), cloud=(None, 13, 4))
IDLE_ROOT = tree(12, device=("cloud", 13, 6), edge=("cloud", 13, 6), cloud=(None, 13, 0))
LAYER_SPLIT = tree(12, device=("edge", 3, 12), edge=("cloud", 9, 0), cloud=(None, 13, 0))
TWO_STAGES = tree(12, device=("edge", 8, 12), edge=(None, 13, 0), cloud=("edge", 0, 0))


@pytest.mark.parametrize(
    ("rival", "plan"),
    [
        ("plain", ONE),
        ("ddp", SHARES),
        ("ddp-scatter", SHARES),
        ("ddp-scatter", EQUAL_SHARES),
        ("ddp-scatter", tree(12, "cloud", device=("cloud", 13, 7), cloud=(None, 13, 5))),
        ("pipelining", LAYER_SPLIT),
        ("pipelining", TWO_STAGES),
        ("pipelining", tree(12, "edge", edge=("device", 4, 12), cloud=("edge", 0, 0), device=(None, 13, 0))),
    ],
)
def test_a_rival_equals_single_process_sgd(testbed: Testbed, rival: Rival, plan: Plan) -> None:
    dataset = load_dataset("digits")
    optimizer = OptimizerSettings(learning_rate=0.05, momentum=0.9, weight_decay=5e-4)
    training = training_settings(LENET, dataset, 12, iterations=5, optimizer=optimizer, seed=3)
    run = train_as_rival(testbed, plan, training, rival)
    reference = train_on_one_process(training, dataset)
    assert run.iterations == 5
    assert np.abs(np.subtract(run.losses, reference.losses)).max() < TOLERANCE
    weights, expected = (np.frombuffer(snapshots[5], np.float32) for snapshots in (run.snapshots, reference.snapshots))
    assert np.abs(weights - expected).max() < TOLERANCE
    assert list(run.elapsed_s) == sorted(run.elapsed_s)


def test_a_larger_model(testbed: Testbed) -> None:
    dataset = load_dataset("synthetic")
    training = training_settings(ModelSettings(name="alexnet-cifar"), dataset, 4, iterations=2)
    plan = tree(4, device=("edge", 6, 4), edge=("cloud", 13, 0), cloud=(None, 20, 0))
    run = train_as_rival(testbed, plan, training, "pipelining")
    assert np.allclose(run.losses, train_on_one_process(training, dataset).losses, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("rival", "plan", "rule"),
    [
        ("plain", SHARES, "one worker"),
        ("ddp", LAYER_SPLIT, "all layers and some samples"),
        ("ddp", IDLE_ROOT, "all layers and some samples"),
        ("pipelining", SHARES, "all samples on the data holder"),
        ("pipelining", ONE, "all samples on the data holder"),
        ("pipelining", tree(12, device=("edge", 12, 12), edge=(None, 13, 0)), "layers of its own"),
        ("pipelining", tree(12, device=("edge", 3, 8), edge=(None, 13, 4)), "all samples on the data holder"),
    ],
)
def test_plans_that_a_rival_cannot_follow(testbed: Testbed, rival: Rival, plan: Plan, rule: str) -> None:
    training = training_settings(LENET, load_dataset("digits"), 12, iterations=1)
    with pytest.raises(InputError, match=f"{rival}: the plan must have .*{rule}"):
        train_as_rival(testbed, plan, training, rival)


@pytest.mark.parametrize(
    "settings",
    [
        LocalSettings(data_holder="device", workers={"device": WorkerSettings(slowdown=2)}),
        LocalSettings(
            data_holder="device",
            workers=dict.fromkeys(WORKERS, WorkerSettings()),
            links=(Link(source="device", target="edge", bandwidth_mbps=5, latency_ms=0),),
        ),
    ],
    ids=["pace", "links"],
)
def test_rivals_know_no_emulation(open_local: OpenLocal, settings: LocalSettings) -> None:
    training = training_settings(LENET, load_dataset("digits"), 12, iterations=1)
    with open_local(settings) as opened, pytest.raises(InputError, match="'device' is paced, accelerated or emulate"):
        train_as_rival(opened, ONE, training, "plain")
