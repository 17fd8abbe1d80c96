"""Comparing plans: what is recorded is not done again, and what is too slow is not done at all."""

from functools import partial
from pathlib import Path

import pytest

from hiertrain import testbeds
from hiertrain.experiments import prediction
from hiertrain.experiments.prediction import compare_each, compare_plans
from hiertrain.planning.optimize import optimize
from hiertrain.problem.execution import Execution
from hiertrain.results import records
from hiertrain.testbeds import find_testbed
from hiertrain.testbeds.session import Testbed
from hiertrain.testbeds.settings import LocalSettings, with_bandwidth
from hiertrain.training.settings import training_settings
from hiertrain.values import InputError
from hiertrain.workload.architectures import build_model
from hiertrain.workload.datasets import load_dataset
from hiertrain.workload.spec import ModelSettings, Training
from tests.conftest import OpenLocal
from tests.training.test_training import instant_problem


def lenet5_training(batch_size: int) -> Training:
    return training_settings(ModelSettings(name="lenet5"), load_dataset("digits"), batch_size, iterations=1)


def test_layers_are_measured_once_per_model_and_cases_only_where_they_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, open_local: OpenLocal
) -> None:
    monkeypatch.setattr(records.remembered, "__defaults__", (tmp_path, ()))
    measured: list[str] = []
    problem = instant_problem(build_model("lenet5", (1, 32, 32)).chain, 4, Execution())

    def measure_layers(_: Testbed, model: ModelSettings, **__: object) -> object:
        measured.append(model.name)
        return problem.profile

    def compare(testbed: Testbed, profile: object, training: Training, **_: object) -> dict[str, object]:
        assert profile == problem.profile
        (mbps,) = {link.bandwidth_mbps for link in testbed.links_from("cloud").values()}
        return {"mbps": mbps, "batch_size": training.batch_size}

    monkeypatch.setattr(prediction, "measure_layers", measure_layers)
    monkeypatch.setattr(prediction, "compare_plans", compare)
    monkeypatch.setattr(testbeds, "open_testbed", open_local)
    local = find_testbed("local")
    assert isinstance(local, LocalSettings)
    settings = {mbps: with_bandwidth(local, "cloud", mbps) for mbps in (1.5, 5.0)}
    each = partial(compare_each, trainings={"lenet5": lenet5_training(4)}, sample_counts=(1, 2), plan_s=1, slowest_s=1)
    each = partial(each, executions=["paper", "overlapped"])
    results = each("try", settings)
    assert results == {("lenet5", mbps): {"mbps": mbps, "batch_size": 4} for mbps in settings}
    assert measured == ["lenet5"]
    (tmp_path / "try" / "records" / "05-lenet5-5mbps.json").unlink()
    assert each("try", settings) == results
    assert measured == ["lenet5"]
    monkeypatch.setattr(testbeds, "open_testbed", lambda _: pytest.fail("there is nothing left to compare"))
    assert each("try", settings) == results


def test_nothing_is_executed_where_even_the_optimum_is_too_slow(
    monkeypatch: pytest.MonkeyPatch, testbed: Testbed
) -> None:
    training = lenet5_training(4)
    problem = instant_problem(build_model("lenet5", (1, 32, 32)).chain, 4, Execution())
    monkeypatch.setattr(prediction, "measure_links", lambda _: problem.network)
    monkeypatch.setattr(prediction, "train", lambda *_: pytest.fail("a plan was executed"))
    optimum_s, slowest_s = optimize(problem).objective_s, 1e-6
    message = (
        f"optimum for lenet5: predicted to take {optimum_s:.3g} s per iteration; must be at most slowest_s, 1e-06 s"
    )
    with pytest.raises(InputError, match=message):
        compare_plans(testbed, problem.profile, training, executions=["paper"], plan_s=1, slowest_s=slowest_s)
