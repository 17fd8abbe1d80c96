"""Training by a plan on real worker processes equals plain SGD in one process."""

import platform
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from hiertrain.control.answers import Answer, Beat, Progress, Snapshot
from hiertrain.control.jobs import Job
from hiertrain.cost.memory import memory_of, process_bytes
from hiertrain.problem.chain import Chain
from hiertrain.problem.execution import Execution
from hiertrain.problem.network import Link, Network
from hiertrain.problem.plan import Assignment, Plan
from hiertrain.problem.problem import Problem
from hiertrain.problem.profile import LayerCost, LayerTimes, Profile, WorkerProfile
from hiertrain.program.actions import Op
from hiertrain.runtime.encoding import dequantize, quantize
from hiertrain.testbeds import open_testbed
from hiertrain.testbeds.session import OnEvent, Testbed, WorkerError
from hiertrain.testbeds.settings import LocalSettings, WorkerSettings
from hiertrain.training.evaluation import accuracy, trained_model
from hiertrain.training.settings import training_settings
from hiertrain.training.single_process import train_on_one_process
from hiertrain.training.train import check_training, train
from hiertrain.values import InputError, RunError
from hiertrain.workload.architectures import build_model, chain_of
from hiertrain.workload.chain_model import ChainModel, summed_loss
from hiertrain.workload.datasets import load_dataset
from hiertrain.workload.optimizers import build_optimizer
from hiertrain.workload.sample_order import batch_indices
from hiertrain.workload.spec import ModelSettings, OptimizerSettings
from hiertrain.workload.weights import pack_weights
from tests.oracles import needed_bytes
from tests.processes import started
from tests.strategies import plans

WORKERS = ("device", "edge", "cloud")
LENET = ModelSettings(name="lenet5")
# Sums over samples are taken in another order, each with a relative rounding error of 2^-24 = 6e-8; a few iterations
# of them stay far below 1e-6 for weights of order 1e-1. A wrong divisor or a missed row shows up as 1e-2.
TOLERANCE = 1e-6
JALAD = Execution(activation_encoding="uint8")
PREFETCH, OVERLAPPED = Execution(prefetch=True), Execution.overlapped()
LOSSLESS = (Execution.paper(), PREFETCH, Execution(buckets=True), Execution(owners=True), OVERLAPPED)


@pytest.fixture
def pair() -> Iterator[Testbed]:
    """A session for a test that ends it; two workers are enough for one to fail and one to notice."""
    free = LocalSettings(data_holder="device", workers=dict.fromkeys(("device", "edge"), WorkerSettings()), timeout_s=3)
    with open_testbed(free) as opened:
        yield opened


def instant_problem(chain: Chain, batch_size: int, execution: Execution, data_holder: str = "device") -> Problem:
    """A problem whose times do not matter: the runtime needs its chain and its timeouts only."""
    cost = LayerCost(fixed_s=1e-6, per_sample_s=1e-6)
    times = WorkerProfile(layers=(LayerTimes(forward=cost, backward=cost, update_s=1e-6),) * chain.depth)
    profile = Profile(
        model=chain.model,
        sample_bytes=chain.sample_bytes,
        compressed_sample_bytes=100,
        layers=chain.layers,
        workers=dict.fromkeys(WORKERS, times),
    )
    links = [Link(source=a, target=b, bandwidth_mbps=1e5, latency_ms=0) for a in WORKERS for b in WORKERS if a != b]
    return Problem(profile, Network(links=tuple(links)), batch_size, data_holder, execution)


def tree(batch_size: int, data_holder: str = "device", **workers: tuple[str | None, int, int]) -> Plan:
    parts = {name: Assignment(parent=p, depth=m, samples=b) for name, (p, m, b) in workers.items()}
    return Plan(batch_size=batch_size, data_holder=data_holder, workers=parts)


def largest_difference(
    testbed: Testbed,
    plan: Plan,
    model: ModelSettings,
    dataset_name: str,
    optimizer: OptimizerSettings,
    execution: Execution | None = None,
    iterations: int = 4,
) -> float:
    """The largest difference of any weight or loss between the plan's training and single-process SGD."""
    dataset = load_dataset(dataset_name)
    training = training_settings(
        model, dataset, plan.batch_size, iterations=iterations, optimizer=optimizer, seed=3, snapshot_every=2
    )
    chain = build_model(**dict(training.model)).chain
    problem = instant_problem(chain, plan.batch_size, execution or Execution.paper(), plan.data_holder)
    run = train(testbed, problem, plan, training)
    reference = train_on_one_process(training, dataset)
    assert run.snapshots.keys() == reference.snapshots.keys()
    weights = [
        np.abs(np.frombuffer(run.snapshots[i], np.float32) - np.frombuffer(reference.snapshots[i], np.float32)).max()
        for i in run.snapshots
    ]
    return float(max(*weights, *np.abs(np.subtract(run.losses, reference.losses))))


PLANS = {
    "one worker, the data holder": tree(12, device=(None, 13, 12), edge=("device", 0, 0), cloud=("device", 0, 0)),
    "one worker, without the data": tree(12, device=("cloud", 0, 0), edge=("cloud", 0, 0), cloud=(None, 13, 12)),
    "star": tree(12, device=("edge", 3, 4), edge=(None, 13, 5), cloud=("edge", 7, 3)),
    "star with equal depths": tree(12, device=("edge", 6, 4), edge=(None, 13, 5), cloud=("edge", 6, 3)),
    "chain": tree(12, device=("edge", 3, 5), edge=("cloud", 9, 4), cloud=(None, 13, 3)),
    "chain against the current": tree(12, device=(None, 13, 5), edge=("device", 9, 4), cloud=("edge", 2, 3)),
    "layer split": tree(12, device=("edge", 3, 12), edge=("cloud", 9, 0), cloud=(None, 13, 0)),
    "data-parallel": tree(12, device=("cloud", 13, 5), edge=("cloud", 13, 4), cloud=(None, 13, 3)),
    "root without samples": tree(12, device=("cloud", 13, 8), edge=("cloud", 4, 4), cloud=(None, 13, 0)),
    "cut before the loss": tree(12, device=("cloud", 12, 8), edge=("cloud", 1, 4), cloud=(None, 13, 0)),
    "data on the root": tree(12, "cloud", device=("edge", 5, 2), edge=("cloud", 8, 3), cloud=(None, 13, 7)),
}
TWO = tree(12, device=("edge", 3, 4), edge=(None, 13, 8))


@pytest.mark.parametrize("execution", [Execution.paper(), OVERLAPPED], ids=["paper", "overlapped"])
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS.keys())
def test_lenet_equals_single_process_sgd(testbed: Testbed, plan: Plan, execution: Execution) -> None:
    optimizer = OptimizerSettings(learning_rate=0.05, momentum=0.9, weight_decay=5e-4)
    assert largest_difference(testbed, plan, LENET, "digits", optimizer, execution, iterations=6) < TOLERANCE


OWNED = {
    "layer split": PLANS["layer split"],
    "the last layers alone": tree(12, device=("edge", 3, 5), edge=("cloud", 9, 7), cloud=(None, 13, 0)),
    "a root without layers": tree(12, device=("cloud", 9, 5), edge=(None, 13, 0), cloud=("edge", 13, 7)),
}


@pytest.mark.parametrize("execution", [Execution(owners=True), OVERLAPPED], ids=["owners", "overlapped"])
@pytest.mark.parametrize("plan", OWNED.values(), ids=OWNED.keys())
def test_owners_of_layers_equal_single_process_sgd(testbed: Testbed, plan: Plan, execution: Execution) -> None:
    optimizer = OptimizerSettings(learning_rate=0.05, momentum=0.9, weight_decay=5e-4)
    assert largest_difference(testbed, plan, LENET, "digits", optimizer, execution, iterations=6) < TOLERANCE


@pytest.mark.parametrize("iterations", [1, 2, 3])
@pytest.mark.parametrize("name", ["one worker, without the data", "star"])
def test_fewer_iterations_than_are_on_the_way_at_once(testbed: Testbed, name: str, iterations: int) -> None:
    optimizer = OptimizerSettings(learning_rate=0.05)
    difference = largest_difference(testbed, PLANS[name], LENET, "digits", optimizer, PREFETCH, iterations)
    assert difference < TOLERANCE


class EightBits(torch.autograd.Function):
    """A message of activations, and the message of their gradient on the way back."""

    @staticmethod
    def forward(ctx: object, activations: Tensor) -> Tensor:  # noqa: ARG004 - PyTorch passes it
        return dequantize(quantize(activations), tuple(activations.shape))

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> Tensor:
        return EightBits.forward(ctx, *gradients)


def rows_of(plan: Plan, name: str) -> list[int]:
    """The rows of ``outputs``."""
    depth = plan.workers[plan.root].depth
    taken_over = [child for child in plan.children(name) if plan.workers[child].depth < depth]
    return [*plan.own_rows(name), *(row for child in taken_over for row in rows_of(plan, child))]


def outputs(model: ChainModel, plan: Plan, name: str, samples: Tensor) -> Tensor:
    """The outputs at the worker's own depth, or before the loss: of its own rows, then of its children's."""
    own, done = plan.own_rows(name), 0
    x = samples[own.start : own.stop]
    for child in plan.children(name):
        depth = plan.workers[child].depth
        sent = EightBits.apply(outputs(model, plan, child, samples))
        x = torch.cat([model.run(x, done + 1, depth), sent]) if len(x) else sent
        done = depth
    return model.run(x, done + 1, min(plan.workers[name].depth, model.chain.depth - 1))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As many as the workers have: the same arithmetic, so that no value falls to the other side between two levels."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", ["layer split", "chain", "star with equal depths", "cut before the loss"])
def test_activations_of_8_bits_equal_one_process_that_rounds_at_the_cuts(testbed: Testbed, name: str) -> None:
    plan, dataset = PLANS[name], load_dataset("digits")
    optimizer = OptimizerSettings(learning_rate=0.05, momentum=0.9)
    training = training_settings(LENET, dataset, 12, iterations=4, optimizer=optimizer)
    model = build_model(**dict(training.model)).train()
    run = train(testbed, instant_problem(model.chain, 12, JALAD), plan, training)
    stepper = build_optimizer(optimizer, list(model.parameters()))
    losses = []
    for iteration in range(4):
        rows = batch_indices(len(dataset.train_labels), 12, training.seed, iteration)
        logits = outputs(model, plan, plan.root, dataset.train_samples[rows])
        labels = dataset.train_labels[rows][rows_of(plan, plan.root)]
        loss = summed_loss(logits, labels) / 12
        stepper.zero_grad()
        loss.backward()
        stepper.step()
        losses.append(loss.item())
    plain = train_on_one_process(training, dataset).snapshots[4]
    by_plan, rounded, exact = (np.frombuffer(w, np.float32) for w in (run.snapshots[4], pack_weights(model), plain))
    assert run.losses == pytest.approx(losses, abs=TOLERANCE)
    assert np.abs(by_plan - rounded).max() < TOLERANCE
    assert np.abs(by_plan - exact).max() > 50 * TOLERANCE


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_half_precision_changes_losses_a_little(testbed: Testbed, half: str) -> None:
    """By far more than the order of sums, which is below 1e-6 at first; in time training amplifies either."""
    plan, dataset = tree(32, device=("edge", 6, 12), edge=(None, 13, 20)), load_dataset("digits")
    optimizer = OptimizerSettings(learning_rate=0.05, momentum=0.9)
    training = training_settings(LENET, dataset, 32, iterations=30, optimizer=optimizer)
    execution = Execution.model_validate({"activation_encoding": half, "parameter_encoding": half})
    run = train(testbed, instant_problem(chain_of(training.model), 32, execution), plan, training)
    differences = np.abs(np.divide(run.losses, train_on_one_process(training, dataset).losses) - 1)
    assert 1e-4 < differences.max() < 1e-2


@pytest.mark.parametrize(
    ("field", "learning_rate", "place"),
    [
        (
            "parameter_encoding",
            1e9,
            r"edge failed: .*iteration 1, action \d+ of \d+ \(send weights layers 1..3 to device",
        ),
        (
            "activation_encoding",
            1e4,
            r"edge failed: .*iteration 2, action \d+ of \d+ \(send activation gradients at depth 3 .* to device",
        ),
    ],
)
def test_what_float16_cannot_hold_ends_training_with_its_place(
    pair: Testbed, field: str, learning_rate: float, place: str
) -> None:
    dataset, optimizer = load_dataset("digits"), OptimizerSettings(learning_rate=learning_rate, momentum=0.0)
    training = training_settings(LENET, dataset, 12, iterations=3, optimizer=optimizer)
    problem = instant_problem(chain_of(training.model), 12, Execution.model_validate({field: "float16"}))
    with pytest.raises(
        WorkerError, match=place + r".*: its greatest number is \S+; float16 ends at 65504, bfloat16 has"
    ):
        train(pair, problem, TWO, training)


@pytest.mark.parametrize("name", ["one worker, without the data", "data-parallel"])
def test_8_bits_change_nothing_where_no_activations_travel(testbed: Testbed, name: str) -> None:
    assert (
        largest_difference(
            testbed, PLANS[name], LENET, "digits", OptimizerSettings(learning_rate=0.05, momentum=0.0), JALAD
        )
        < TOLERANCE
    )


@pytest.mark.parametrize("encoding", ["float32", "zlib"])
@pytest.mark.parametrize("execution", [Execution.paper(), OVERLAPPED], ids=["paper", "overlapped"])
def test_adam_and_samples_in_other_encodings(testbed: Testbed, encoding: str, execution: Execution) -> None:
    # Adam divides by the root of the squared gradients, which magnifies rounding where gradients are tiny.
    optimizer = OptimizerSettings(name="adam", learning_rate=1e-3)
    execution = execution.model_copy(update={"sample_encoding": encoding})
    assert largest_difference(testbed, PLANS["chain"], LENET, "digits", optimizer, execution) < 1e-5


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_random_plans_equal_single_process_sgd(testbed: Testbed, data: st.DataObject) -> None:
    batch_size = data.draw(st.integers(1, 9))
    plan = data.draw(plans(names=WORKERS, depth=13, batch_size=batch_size))
    execution = data.draw(st.sampled_from(LOSSLESS))
    momentum, decay = data.draw(st.sampled_from([0.0, 0.9])), data.draw(st.sampled_from([0.0, 5e-4]))
    optimizer = OptimizerSettings(learning_rate=0.05, momentum=momentum, weight_decay=decay)
    assert largest_difference(testbed, plan, LENET, "digits", optimizer, execution) < TOLERANCE


@pytest.mark.parametrize(
    ("model", "depths"),
    [
        (ModelSettings(name="alexnet-cifar"), (4, 12, 20)),
        (ModelSettings(name="squeezenet1_1", options={"dropout": 0.0}), (3, 20, 35)),
    ],
    ids=["alexnet-cifar", "squeezenet1_1"],
)
def test_larger_models_equal_single_process_sgd(
    testbed: Testbed, model: ModelSettings, depths: tuple[int, int, int]
) -> None:
    plan = tree(6, device=("edge", depths[0], 2), edge=("cloud", depths[1], 2), cloud=(None, depths[2], 2))
    optimizer = OptimizerSettings(learning_rate=0.01, momentum=0.9)
    assert largest_difference(testbed, plan, model, "synthetic", optimizer, OVERLAPPED, iterations=2) < TOLERANCE


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only Linux with glibc tells")
def test_memory_is_within_what_is_predicted(testbed: Testbed) -> None:
    """Of layers whose sizes dwarf what a process has besides; half of the model is the weights of one of them."""
    model, dataset = ModelSettings(name="alexnet-cifar"), load_dataset("synthetic")
    training = training_settings(model, dataset, 6, iterations=3, optimizer=OptimizerSettings(learning_rate=0.01))
    chain = chain_of(training.model)
    plan = tree(6, device=("cloud", 4, 2), edge=("cloud", 20, 2), cloud=(None, 20, 2))
    problem = replace(instant_problem(chain, 6, OVERLAPPED), optimizer_copies=training.optimizer.copies)
    run = train(testbed, problem, plan, training)
    for name, seen_bytes in run.memory_bytes.items():
        predicted_bytes = needed_bytes(problem, plan, name)
        assert memory_of(run.program, chain, training.optimizer.copies)[name] == predicted_bytes
        assert 0.9 * predicted_bytes <= seen_bytes <= predicted_bytes + process_bytes(chain, plan.workers[name].depth)
    assert run.memory_bytes.keys() == set(WORKERS)
    assert run.memory_bytes["device"] < 0.25 * run.memory_bytes["edge"]  # which has all of the weights


def test_a_worker_whose_layers_have_no_parameters(testbed: Testbed, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"transform_input": True, "dropout": 0.0, "init_weights": False}
    dataset = load_dataset("synthetic")
    training = training_settings(ModelSettings(name="googlenet", options=options), dataset, 8, iterations=2)
    model = build_model(**dict(training.model))
    monkeypatch.setattr("hiertrain.training.train.chain_of", lambda _: model.chain)  # which takes seconds
    chain = model.chain
    assert not chain.parameter_prefix_bytes[1]
    plan = tree(8, device=("edge", 1, 8), edge=(None, chain.depth, 0))
    run = train(testbed, instant_problem(chain, 8, Execution.paper()), plan, training)
    assert run.losses == pytest.approx(train_on_one_process(training, dataset).losses, rel=1e-4)


def test_a_model_is_traced_once_by_whoever_asks_for_trainings(pair: Testbed, monkeypatch: pytest.MonkeyPatch) -> None:
    traced = []

    def build(name: str, **settings: Any) -> ChainModel:
        traced.append(name)
        return build_model(name, **settings)

    monkeypatch.setattr("hiertrain.workload.architectures.build_model", build)
    model = LENET.model_copy(update={"seed": 2**20})  # of which no other test has the chain
    training = training_settings(model, load_dataset("synthetic"), 12, iterations=1)
    problem = instant_problem(chain_of(training.model), 12, Execution.paper())
    program = check_training(TWO, training, pair.settings, problem.execution)
    assert train(pair, problem, TWO, training).losses == train(pair, problem, program, training).losses
    assert traced == ["lenet5"]


def test_a_program_that_would_not_train_is_refused_before_any_work(pair: Testbed) -> None:
    training = training_settings(LENET, load_dataset("synthetic"), 12, iterations=1)
    problem = instant_problem(chain_of(training.model), 12, Execution.paper())
    program = check_training(TWO, training, pair.settings, problem.execution)
    own = program.actions["device"]
    wrong = own[0].model_copy(update={"size_bytes": own[0].size_bytes + 1})
    for actions, message in (
        ({"device": own[1:]}, r"program: deadlocks: .*edge waits at action 1 \(receive samples"),
        (
            {"device": (wrong, *own[1:])},
            r"program: device, action 1 \(.*\): size_bytes 24577; 24576 are what uint8 takes",
        ),
        ({"phone": own}, "program has the worker 'phone'; the testbed has device, edge"),
    ):
        changed = program.model_copy(update={"actions": {**program.actions, **actions}})
        with pytest.raises(InputError, match=message):
            train(pair, problem, changed, training)
    with pytest.raises(InputError, match="program has the batch size 12, the training 8"):
        train(pair, problem, program, training.model_copy(update={"batch_size": 8}))


def test_whatever_a_layer_raises_is_told_with_its_place(pair: Testbed) -> None:
    few = LENET.model_copy(update={"sample_shape": (1, 32, 32), "classes": 5})
    training = training_settings(LENET, load_dataset("digits"), 12, iterations=1).model_copy(update={"model": few})
    problem = instant_problem(build_model(**dict(few)).chain, 12, Execution.paper())
    with pytest.raises(
        WorkerError, match=r"edge failed: .*iteration 1, action \d+ of \d+ \(forward .*Target \d is out of bounds"
    ):
        train(pair, problem, TWO, training)


def test_batch_norm_is_exact_only_where_one_worker_sees_the_whole_mini_batch(
    testbed: Testbed, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = load_dataset("synthetic")
    training = training_settings(ModelSettings(name="resnet18"), dataset, 32, iterations=1)
    model = build_model(**dict(training.model))
    monkeypatch.setattr("hiertrain.training.train.chain_of", lambda _: model.chain)  # which takes seconds
    depth = model.chain.depth
    assert not model.chain.exact
    assert all("BatchNorm2d" in layer for layer in model.chain.inexact_layers)
    problem = instant_problem(model.chain, 32, Execution.paper())
    layers = train(testbed, problem, tree(32, device=("edge", 12, 32), edge=(None, depth, 0)), training)
    samples = train(testbed, problem, tree(32, device=("edge", 12, 16), edge=(None, depth, 16)), training)
    reference = train_on_one_process(training, dataset)
    before = np.frombuffer(pack_weights(model), np.float32)
    by_layers, by_samples, exact = (
        np.frombuffer(run.snapshots[1], np.float32) - before for run in (layers, samples, reference)
    )
    assert layers.losses == pytest.approx(reference.losses, abs=TOLERANCE)
    assert np.abs(by_layers - exact).max() < TOLERANCE

    # Mean and variance of half of the mini-batch are near those of all of it, and so is what follows from them: the
    # loss (a half that is missing or counts twice would change it by 1.2), and the step of the weights.
    assert samples.losses != reference.losses
    assert samples.losses == pytest.approx(reference.losses, abs=0.1)
    assert np.linalg.norm(by_samples) == pytest.approx(np.linalg.norm(exact), rel=0.1)
    assert by_samples @ exact > 0.4 * np.linalg.norm(by_samples) * np.linalg.norm(exact)


def test_grey_samples_train_a_model_that_takes_colour() -> None:
    dataset = load_dataset("digits")
    training = training_settings(ModelSettings(name="resnet18"), dataset, 8, iterations=1)
    assert training.model.sample_shape == (1, 32, 32)
    (loss,) = train_on_one_process(training, dataset).losses
    assert 1 < loss < 5


def test_a_run_reports_spans_losses_and_accuracy(testbed: Testbed) -> None:
    dataset = load_dataset("digits")
    training = training_settings(
        LENET, dataset, 12, iterations=60, optimizer=OptimizerSettings(learning_rate=0.05, momentum=0.9)
    )
    chain = build_model("lenet5", dataset.sample_shape).chain
    plan = PLANS["star"]
    run = train(testbed, instant_problem(chain, 12, Execution.paper()), plan, training)
    assert len(run.losses) == len(run.iteration_s) == len(run.elapsed_s) == 60
    assert run.losses[-1] < run.losses[0]
    trained = accuracy(trained_model(training, run.snapshots[60], dataset), dataset)
    assert trained > accuracy(build_model("lenet5", dataset.sample_shape), dataset)

    timeline = run.timeline(5)
    assert 0 < timeline.period_s <= run.iteration_s[5]
    assert run.late_share == 0  # nothing is paced
    assert run.clock_error_s == 0  # one machine, one clock
    assert {span.worker for span in timeline.spans} == set(WORKERS)
    for span in timeline.spans:
        assert 0 <= span.start_s <= span.end_s
        if span.action.op == Op.RECEIVE:
            sends = [
                other
                for other in timeline.spans
                if (other.worker, other.action.op, other.action.role, other.action.peer)
                == (span.action.peer, Op.SEND, span.action.role, span.worker)
            ]
            assert len(sends) == 1
            assert sends[0].start_s <= span.end_s


def test_what_does_not_fit_is_refused_before_any_work(testbed: Testbed) -> None:
    dataset = load_dataset("digits")
    training = training_settings(LENET, dataset, 12, iterations=1)
    problem = instant_problem(build_model("lenet5", dataset.sample_shape).chain, 12, Execution.paper())
    with pytest.raises(InputError, match="batch size 8, the training 12"):
        train(testbed, problem, tree(8, device=(None, 13, 8)), training)
    with pytest.raises(InputError, match="only 13 layers"):
        train(testbed, problem, tree(12, device=(None, 14, 12)), training)
    with pytest.raises(InputError, match="the testbed has"):
        train(testbed, problem, tree(12, "phone", phone=(None, 13, 12)), training)
    other = instant_problem(build_model("lenet5").chain, 12, Execution.paper())
    with pytest.raises(
        InputError, match="for samples of 3072 bytes are not the 13 layers of lenet5 for samples of 1024"
    ):
        train(testbed, other, PLANS["star"], training)
    slower = problem.profile.workers["edge"].model_copy(update={"slowdown": 4.0})
    profile = problem.profile.model_copy(update={"workers": {**problem.profile.workers, "edge": slower}})
    with pytest.raises(InputError, match="'edge' has the slowdown 4, the testbed's has 1"):
        train(testbed, Problem(profile, problem.network, 12, "device"), PLANS["star"], training)
    with pytest.raises(InputError, match="takes samples"):
        training_settings(ModelSettings(name="lenet5", sample_shape=(3, 32, 32)), dataset, 12)


def test_a_failing_worker_ends_the_session_with_its_name(pair: Testbed) -> None:
    dataset = load_dataset("synthetic")
    problem = instant_problem(build_model("lenet5", dataset.sample_shape).chain, 12, Execution.paper())
    training = training_settings(LENET, dataset, 12, iterations=1)
    nowhere = training.model_copy(update={"dataset": "nothing"})
    with pytest.raises(WorkerError, match=r"worker device failed: InputError: .*nothing"):
        train(pair, problem, TWO, nowhere)
    assert all(not alive(process.pid) for process in pair.processes.values())


def alive(pid: int) -> bool:
    """Whether the process still runs; one that only waits to be reaped does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("execution", [Execution.paper(), OVERLAPPED], ids=["paper", "overlapped"])
@pytest.mark.parametrize(
    ("what", "message"),
    [
        (
            signal.SIGKILL,
            r"worker device is gone in iteration \d+, .*: killed by SIGKILL .*\n"
            r"worker edge failed: .*iteration \d+, .*action \d+",
        ),
        (signal.SIGSTOP, r"worker device gave no sign of life for 3 s in iteration \d+, .*action \d+"),
    ],
    ids=["killed", "frozen"],
)
def test_a_lost_worker_ends_the_training_with_its_name_and_position(
    pair: Testbed, what: signal.Signals, message: str, execution: Execution
) -> None:
    dataset = load_dataset("synthetic")
    problem = instant_problem(build_model("lenet5", dataset.sample_shape).chain, 12, execution)
    training = training_settings(LENET, dataset, 12, iterations=10**6)
    processes = pair.processes
    run, lost_s = pair.run, list[float]()

    def lose_one(jobs: Mapping[str, Job], on_event: OnEvent = lambda *_: None) -> dict[str, Answer]:
        def listen(name: str, event: Progress | Snapshot | Beat, payload: bytes) -> None:
            on_event(name, event, payload)
            if isinstance(event, Beat) and event.iterations and name == "device" and processes[name].poll() is None:
                processes[name].send_signal(what)
                lost_s.append(time.monotonic())

        return run(jobs, listen)

    pair.run = lose_one
    with pytest.raises(WorkerError, match=message) as caught:
        train(pair, problem, TWO, training)
    assert time.monotonic() - lost_s[0] < 10
    completed = caught.value.completed
    assert isinstance(completed["losses"], tuple)
    assert completed["iterations"] == len(completed["losses"]) > 0
    assert not any(alive(process.pid) for process in processes.values())
    pair.run = run
    with pytest.raises(WorkerError, match="the session is over"):
        train(pair, problem, TWO, training)


def test_a_loss_that_is_no_number_ends_the_training_at_once(pair: Testbed) -> None:
    dataset = load_dataset("synthetic")
    problem = instant_problem(build_model("lenet5", dataset.sample_shape).chain, 12, Execution.paper())
    training = training_settings(LENET, dataset, 12, iterations=10**6, optimizer=OptimizerSettings(learning_rate=1e6))
    with pytest.raises(
        WorkerError, match=r"edge failed: .*iteration \d+, action \d+ of \d+ \(forward .*the loss is (nan|inf); a"
    ):
        train(pair, problem, TWO, training)
    with pytest.raises(RunError, match="the loss is"):
        train_on_one_process(training, dataset)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "kill -9"])
def test_a_dead_parent_leaves_no_worker_behind(how: signal.Signals) -> None:
    script = (
        "import sys\n"
        "from hiertrain.testbeds import open_testbed\n"
        "from hiertrain.testbeds.settings import LocalSettings, WorkerSettings\n"
        "workers = {'device': WorkerSettings(), 'edge': WorkerSettings()}\n"
        "with open_testbed(LocalSettings(data_holder='device', workers=workers)) as testbed:\n"
        "    print(*(process.pid for process in testbed.processes.values()), flush=True)\n"
        "    sys.stdin.read()\n"
    )
    with started(script) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2
        parent.send_signal(how)
        parent.wait(30)
        _, left = psutil.wait_procs([psutil.Process(pid) for pid in pids if alive(pid)], timeout=30)
        assert not any(alive(process.pid) for process in left)


def test_only_the_last_weights_are_kept_unless_more_are_asked_for() -> None:
    dataset = load_dataset("digits")
    assert training_settings(LENET, dataset, 12, iterations=1000).snapshot_every == 1000
    assert training_settings(LENET, dataset, 12, iterations=1000, snapshot_every=7).snapshot_every == 7
