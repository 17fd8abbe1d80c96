"""Comparing plans, without any worker."""

from contextlib import nullcontext

import pytest

from hiertrain import prediction
from hiertrain.datasets import load_dataset
from hiertrain.jobs import ModelSettings
from hiertrain.models import build_model
from hiertrain.plan import Execution
from hiertrain.scheduling import optimize
from hiertrain.stages import training_settings
from hiertrain.testbeds.settings import LocalSettings, WorkerSettings
from hiertrain.values import InputError
from tests.test_training import WORKERS, instant_problem


def test_nothing_is_executed_where_even_the_optimum_is_too_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = load_dataset("digits")
    problem = instant_problem(build_model("lenet5", dataset.sample_shape).chain, 4, Execution())
    training = training_settings(ModelSettings(name="lenet5"), dataset, 4, iterations=1)
    monkeypatch.setattr(prediction, "open_testbed", nullcontext)
    monkeypatch.setattr(prediction, "measure_layers", lambda *_, **__: problem.profile)
    monkeypatch.setattr(prediction, "measure_links", lambda _: problem.network)
    monkeypatch.setattr(prediction, "train", lambda *_: pytest.fail("a plan was executed"))
    settings = LocalSettings(data_holder="device", workers=dict.fromkeys(WORKERS, WorkerSettings()))
    optimum_s, slowest_s = optimize(problem).objective_s, 1e-6
    message = f"optimum: predicted to take {optimum_s:.3g} s per iteration; must be at most slowest_s, 1e-06 s"
    with pytest.raises(InputError, match=message):
        prediction.compare_plans(settings, training, sample_counts=(1, 2), plan_s=1, slowest_s=slowest_s)
