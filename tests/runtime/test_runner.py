"""Programs run by threads of this process, for models that worker processes could not build by a name."""

import threading
from collections import defaultdict
from collections.abc import Callable
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from hiertrain.problem.execution import Execution
from hiertrain.problem.plan import Assignment, Plan
from hiertrain.program.actions import Op, Role
from hiertrain.program.compiler import compile_plan
from hiertrain.runtime.runner import TAGS, MiniBatches, Runner
from hiertrain.runtime.transport import Transport
from hiertrain.workload.chain_model import chain_from_module
from hiertrain.workload.spec import OptimizerSettings
from tests.in_threads import Channel, Exchange, run, single_machine_sgd

SHAPE, CLASSES, DEPTH = (2, 4, 4), 3, 6
PLANS = {
    "star": {"device": ("edge", 2, 4), "cloud": ("edge", 4, 3), "edge": (None, DEPTH, 5)},
    "chain": {"device": ("edge", 1, 5), "edge": ("cloud", 3, 4), "cloud": (None, DEPTH, 3)},
    "the first layers elsewhere": {"device": ("cloud", 3, 7), "edge": ("cloud", 2, 5), "cloud": (None, DEPTH, 0)},
    "data-parallel": {"device": ("cloud", DEPTH, 5), "edge": ("cloud", DEPTH, 4), "cloud": (None, DEPTH, 3)},
    "layer split": {"device": ("edge", 1, 12), "edge": ("cloud", 3, 0), "cloud": (None, DEPTH, 0)},
    "the last layers alone": {"device": ("edge", 1, 5), "edge": ("cloud", 4, 7), "cloud": (None, DEPTH, 0)},
}


class Scaled(nn.Module):
    """Has a parameter that its output does not depend on."""

    def __init__(self) -> None:
        super().__init__()
        self.factor, self.unused = nn.Parameter(torch.ones(4, 1, 1)), nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def build_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), Scaled(), nn.ReLU(), nn.Flatten(), nn.Linear(64, CLASSES))


def freeze(*numbers: int) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        net = build_net()
        for number in numbers:
            cast(nn.Sequential, net)[number].requires_grad_(False)
        return net

    return build


@pytest.mark.parametrize("build", [build_net, freeze(0), freeze(0, 1), freeze(4)], ids=["none", "0", "0 and 1", "4"])
@pytest.mark.parametrize("shape", PLANS)
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("execution", [Execution.paper(), Execution(owners=True)], ids=["paper", "owners"])
def test_parameters_without_a_gradient_stay_as_in_one_process(
    shape: str, build: Callable[[], nn.Module], optimizer: str, execution: Execution
) -> None:
    momentum = 0.9 if optimizer == "sgd" else 0.0
    settings = OptimizerSettings(name=optimizer, learning_rate=0.05, momentum=momentum, weight_decay=0.5)  # type: ignore[arg-type]
    parts = {name: Assignment(parent=p, depth=m, samples=b) for name, (p, m, b) in PLANS[shape].items()}
    generator = torch.Generator().manual_seed(1)
    batches = [
        (torch.randint(256, (12, *SHAPE), dtype=torch.uint8, generator=generator), torch.arange(12) % CLASSES)
        for _ in range(3)
    ]
    module = build()
    model = chain_from_module(build(), "given", SHAPE, CLASSES)
    assert model.chain.depth == DEPTH
    plan = Plan(batch_size=12, data_holder="device", workers=parts)
    trained, _ = run(compile_plan(plan, model.chain, execution), model, settings, batches)
    found = {name.split(".", 2)[2]: parameter for name, parameter in trained.named_parameters()}
    for name, parameter in single_machine_sgd(module, settings, batches).named_parameters():
        torch.testing.assert_close(found[name], parameter, rtol=0, atol=1e-6)
    assert torch.equal(found["1.unused"], torch.ones(3))


def test_raw_samples_are_taken_two_iterations_early_and_reports_are_given_two_later() -> None:
    """A worker that takes all samples from the data holder, which has sent them for six iterations up front."""
    parts = {
        name: Assignment(parent=p, depth=m, samples=m and 12) for name, p, m in (("a", "b", 0), ("b", None, DEPTH))
    }
    plan = Plan(batch_size=12, data_holder="a", workers=parts)
    model = chain_from_module(build_net(), "given", SHAPE, CLASSES)
    program = compile_plan(plan, model.chain, Execution(prefetch=True))
    channels: dict[tuple[str, str, int], Channel] = defaultdict(lambda: Channel(late=False))
    holder, worker = (Exchange(name, channels, threading.Barrier(1)) for name in ("a", "b"))
    samples, tag = torch.zeros(12, *SHAPE, dtype=torch.uint8), TAGS[Role.SAMPLES]
    for _ in range(6):
        holder.send("b", samples.flatten(), tag)
    runner = Runner(program.part("b"), model, cast(Transport, worker), OptimizerSettings(learning_rate=0.05))
    batches = MiniBatches(6, lambda _: torch.arange(12), torch.arange(12) % CLASSES, None)
    steps = [(len(channels["a", "b", tag].sends), len(reports)) for reports in runner.train(batches)]
    assert steps == [(3, 0), (2, 0), (1, 1), (0, 1), (0, 1), (0, 3)]


@pytest.mark.parametrize("root", ["device", "edge"])
def test_receives_are_posted_before_the_raw_samples_that_would_delay_their_announcement(root: str) -> None:
    """Of the next iteration, by the data holder: Gloo writes what it sends to a worker strictly in order."""
    other = "edge" if root == "device" else "device"
    parts = {root: Assignment(parent=None, depth=DEPTH, samples=7), other: Assignment(parent=root, depth=3, samples=5)}
    plan = Plan(batch_size=12, data_holder="device", workers=parts)
    model = chain_from_module(build_net(), "given", SHAPE, CLASSES)
    program = compile_plan(plan, model.chain, Execution.overlapped())
    batches = [(torch.zeros(12, *SHAPE, dtype=torch.uint8), torch.arange(12) % CLASSES) for _ in range(6)]
    _, exchanges = run(program, model, OptimizerSettings(learning_rate=0.05), batches)
    each = sum(action.op == Op.RECEIVE for action in program.actions["device"])
    posted = exchanges["device"].posted
    sends = [at for at, entry in enumerate(posted) if entry == (Op.SEND, TAGS[Role.SAMPLES])]
    # Samples of mini-batch k are sent in iteration k - 2, after the receives of iteration k - 1.
    assert [sum(op == Op.RECEIVE for op, _ in posted[:at]) for at in sends] == [each * k for k in range(6)]
