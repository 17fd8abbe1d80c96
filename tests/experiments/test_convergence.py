"""Trainings of policies: which plans, on which costs, once per piece of work, and against one process."""

from pathlib import Path

import pandas as pd
import pytest

from hiertrain import testbeds
from hiertrain.experiments import convergence
from hiertrain.experiments.convergence import accuracy_table, cut_policies, loss_table, problem_of, train_each
from hiertrain.experiments.grid import check_emulated, problem_at, setting_of
from hiertrain.experiments.work import effective_execution
from hiertrain.planning.baselines import single_worker_plan
from hiertrain.planning.policies import Policy
from hiertrain.problem.execution import Execution
from hiertrain.problem.problem import Problem
from hiertrain.results import records
from hiertrain.testbeds import find_testbed
from hiertrain.training.settings import training_settings
from hiertrain.training.single_process import ReferenceRun, train_on_one_process
from hiertrain.values import InputError
from hiertrain.workload.architectures import build_model
from hiertrain.workload.datasets import load_dataset
from hiertrain.workload.spec import ModelSettings
from tests.conftest import OpenLocal

LOCAL = check_emulated(find_testbed("local"))
SETTING = setting_of(LOCAL, "lenet5", 16)
POOL2 = 6


@pytest.fixture(scope="module")
def grey() -> Problem:
    return problem_of(LOCAL, SETTING, build_model("lenet5", sample_shape=(1, 32, 32)).chain)


def test_other_samples_have_their_own_sizes_and_the_recorded_times(grey: Problem) -> None:
    recorded = problem_at(LOCAL, SETTING)
    assert grey.profile.sample_bytes == recorded.profile.sample_bytes / 3
    assert grey.profile.layers[0].parameter_bytes == 4 * (6 * 25 * 1 + 6)
    assert grey.profile.layers[1:] == recorded.profile.layers[1:]
    assert grey.profile.workers == recorded.profile.workers
    with pytest.raises(InputError, match="recorded profile of lenet5: its layers are not those of alexnet-cifar"):
        problem_of(LOCAL, SETTING, build_model("alexnet-cifar").chain)


def test_a_cut_plan_sends_all_samples_on_at_the_cut_and_less_with_8_bits(grey: Problem) -> None:
    cut = cut_policies(grey, POOL2)
    assert list(cut) == ["jointdnn at pool2", "float16 at pool2", "bfloat16 at pool2", "jalad at pool2"]
    plain, half, other, quantised = cut.values()
    assert plain.plan == half.plan == other.plan == quantised.plan
    assert {name: (part.depth, part.samples) for name, part in plain.plan.workers.items()} == {
        "device": (POOL2, 16),
        "edge": (0, 0),
        "cloud": (13, 0),
    }
    assert effective_execution(plain).activation_encoding == "float32"
    assert effective_execution(half) == Execution(activation_encoding="float16", parameter_encoding="float16")
    assert effective_execution(quantised).activation_encoding == "uint8"
    saved_bytes = 2 * 16 * 1600 * 3 / 4 - 2 * 8  # both ways; 8 for the least and the greatest value
    saved_s = plain.predicted_s - quantised.predicted_s
    assert saved_s == pytest.approx(8 * saved_bytes / (SETTING.cloud_mbps * 1e6))
    sent_bytes = 2 * 16 * 1600 + 2 * grey.profile.chain.parameter_prefix_bytes[POOL2]
    saved_s = plain.predicted_s - half.predicted_s
    assert saved_s == pytest.approx(8 * sent_bytes / 2 / (SETTING.cloud_mbps * 1e6))
    for depth in (0, 13):
        with pytest.raises(InputError, match=rf"cut after layer {depth}: must be between 1 and 12"):
            cut_policies(grey, depth)


def test_each_work_is_trained_once_and_8_bits_make_a_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, open_local: OpenLocal
) -> None:
    monkeypatch.setattr(records.remembered, "__defaults__", (tmp_path, ()))
    monkeypatch.setattr(testbeds, "open_testbed", open_local)
    data, colour = load_dataset("synthetic"), problem_at(LOCAL, SETTING)
    training = training_settings(ModelSettings(name="lenet5"), data, 16, iterations=3, snapshot_every=2)
    cloud = single_worker_plan(colour.profile.chain, colour.workers, "cloud", 16, "device")
    cut = cut_policies(colour, POOL2)
    # JALAD's problem, but a plan that sends no activations: the same work as all-cloud
    alone = [Policy("all-cloud", cloud, colour), Policy("jalad", cloud, cut["jalad at pool2"].problem)]
    policies = {policy.name: policy for policy in alone} | cut
    results = train_each("try", LOCAL, SETTING, policies, training, data)
    assert list(results) == ["all-cloud, jalad", *cut]
    assert [result["names"][0] for result in results.values()] == ["all-cloud", *cut]
    assert [result["drawn_as"] for result in results.values()] == ["all-cloud", *["jointdnn"] * 3, "jalad"]
    assert [result["encoding"] for result in results.values()] == ["float32", "float32", "float16", "bfloat16", "uint8"]
    monkeypatch.setattr(testbeds, "open_testbed", lambda _: pytest.fail("there is nothing left to train"))
    assert train_each("try", LOCAL, SETTING, policies, training, data) == results

    single = train_on_one_process(training, data)
    losses = loss_table(results, single)
    largest = losses.groupby("policy")["difference"].max()
    exact = largest.loc[["all-cloud, jalad", "jointdnn at pool2"]]
    assert exact.max() < 1e-6 < largest.drop(exact.index).min() <= largest.max() < 0.1
    assert (losses.groupby("policy")["time_s"].diff().dropna() > 0).all()

    scores = accuracy_table(results)
    right = convergence.accuracies(training, single.snapshots, data)
    assert list(right) == [2, 3]
    exact = scores[scores["policy"] == "all-cloud, jalad"]
    assert dict(zip(exact["iteration"], exact["accuracy"], strict=True)) == right
    times = losses[losses["policy"] == "all-cloud, jalad"].set_index("iteration")["time_s"]
    assert list(exact["time_s"]) == [times[done] for done in (2, 3)]


def test_differences_are_shares_of_the_single_process_loss() -> None:
    results = {
        "all-edge": {"losses": [2.0, 3.0], "elapsed_s": [1.0, 2.0], "encoding": "float32", "drawn_as": "all-edge"},
        "jalad": {"losses": [2.2, 0.75], "elapsed_s": [3.0, 4.0], "encoding": "uint8", "drawn_as": "jalad"},
    }
    table = loss_table(results, ReferenceRun((2.0, 1.5), {}))
    expected = pd.DataFrame(
        {
            "policy": ["all-edge", "all-edge", "jalad", "jalad"],
            "iteration": [1, 2, 1, 2],
            "time_s": [1.0, 2.0, 3.0, 4.0],
            "loss": [2.0, 3.0, 2.2, 0.75],
            "difference": [0.0, 1.0, 0.1, 0.5],
            "encoding": ["float32", "float32", "uint8", "uint8"],
            "drawn_as": ["all-edge", "all-edge", "jalad", "jalad"],
        }
    )
    pd.testing.assert_frame_equal(table, expected)
