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

GPIPE = Rival(way="gpipe")
ONE = tree(12, device=(None, 13, 12))
SHARES = tree(12, device=("cloud", 13, 5), edge=("cloud", 13, 4), cloud=(None, 13, 3))
EQUAL_SHARES = tree(12, device=("cloud", 13, 4), edge=("cloud", 13, 4), cloud=(None, 13, 4))
IDLE_ROOT = tree(12, device=("cloud", 13, 6), edge=("cloud", 13, 6), cloud=(None, 13, 0))
LAYER_SPLIT = tree(12, device=("edge", 3, 12), edge=("cloud", 9, 0), cloud=(None, 13, 0))
TWO_STAGES = tree(12, device=("edge", 8, 12), edge=(None, 13, 0), cloud=("edge", 0, 0))


@pytest.mark.parametrize(
    ("rival", "plan"),
    [
        (Rival(way="plain"), ONE),
        (Rival(way="ddp"), SHARES),
        (Rival(way="ddp-scatter"), SHARES),
        (Rival(way="ddp-scatter"), EQUAL_SHARES),
        (Rival(way="ddp-scatter"), tree(12, "cloud", device=("cloud", 13, 7), cloud=(None, 13, 5))),
        (GPIPE, LAYER_SPLIT),
        (GPIPE, TWO_STAGES),
        (GPIPE, tree(12, "edge", edge=("device", 4, 12), cloud=("edge", 0, 0), device=(None, 13, 0))),
        (Rival(way="gpipe", micro_batches=4), LAYER_SPLIT),
        (Rival(way="1f1b", micro_batches=3), LAYER_SPLIT),
        (Rival(way="zero-bubble", micro_batches=6), LAYER_SPLIT),
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
    run = train_as_rival(testbed, plan, training, GPIPE)
    assert np.allclose(run.losses, train_on_one_process(training, dataset).losses, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("rival", "plan", "rule"),
    [
        (Rival(way="plain"), SHARES, "one worker"),
        (Rival(way="ddp"), LAYER_SPLIT, "all layers and some samples"),
        (Rival(way="ddp"), IDLE_ROOT, "all layers and some samples"),
        (GPIPE, SHARES, "all samples on the data holder"),
        (GPIPE, ONE, "all samples on the data holder"),
        (GPIPE, tree(12, device=("edge", 12, 12), edge=(None, 13, 0)), "layers of its own"),
        (GPIPE, tree(12, device=("edge", 3, 8), edge=(None, 13, 4)), "all samples on the data holder"),
    ],
)
def test_plans_that_a_rival_cannot_follow(testbed: Testbed, rival: Rival, plan: Plan, rule: str) -> None:
    training = training_settings(LENET, load_dataset("digits"), 12, iterations=1)
    with pytest.raises(InputError, match=f"{rival}: the plan must have .*{rule}"):
        train_as_rival(testbed, plan, training, rival)


@pytest.mark.parametrize(
    ("rival", "rule"),
    [
        (Rival(way="gpipe", micro_batches=5), "the mini-batch has 12 samples; must be of equal parts"),
        (Rival(way="1f1b", micro_batches=2), "must be at least one per stage, of which there are 3"),
        (Rival(way="zero-bubble", micro_batches=1), "must be at least one per stage, of which there are 3"),
    ],
)
def test_micro_batches_that_a_pipeline_cannot_have(testbed: Testbed, rival: Rival, rule: str) -> None:
    training = training_settings(LENET, load_dataset("digits"), 12, iterations=1)
    with pytest.raises(InputError, match=f"{rival}: {rule}"):
        train_as_rival(testbed, LAYER_SPLIT, training, rival)


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
        train_as_rival(opened, ONE, training, Rival(way="plain"))
