"""Programs run by threads of this process, for models that worker processes could not build by a name."""

import copy
import queue
import threading
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from hiertrain.problem.execution import Execution
from hiertrain.problem.plan import Assignment, Plan
from hiertrain.program.compiler import compile_plan
from hiertrain.runtime.runner import Runner
from hiertrain.runtime.transport import Transport
from hiertrain.workload.chain_model import ChainModel, chain_from_module, summed_loss
from hiertrain.workload.optimizers import build_optimizer
from hiertrain.workload.spec import OptimizerSettings

SHAPE, CLASSES, DEPTH = (2, 4, 4), 3, 6
WAIT_S = 60.0  # for a message that never comes
PLANS = {
    "star": {"device": ("edge", 2, 4), "cloud": ("edge", 4, 3), "edge": (None, DEPTH, 5)},
    "chain": {"device": ("edge", 1, 5), "edge": ("cloud", 3, 4), "cloud": (None, DEPTH, 3)},
    "the first layers elsewhere": {"device": ("cloud", 3, 7), "edge": ("cloud", 2, 5), "cloud": (None, DEPTH, 0)},
    "data-parallel": {"device": ("cloud", DEPTH, 5), "edge": ("cloud", DEPTH, 4), "cloud": (None, DEPTH, 3)},
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


@dataclass(frozen=True)
class Arrival:
    messages: "queue.Queue[Tensor]"
    buffer: Tensor

    def wait(self) -> None:
        self.buffer.copy_(self.messages.get(timeout=WAIT_S))


class Departed:
    def wait(self) -> tuple[float, float]:
        return 0.0, 0.0


class Exchange:
    """What a worker has in place of Gloo."""

    def __init__(self, name: str, messages: dict[Any, "queue.Queue[Tensor]"], meeting: threading.Barrier) -> None:
        self.name, self.messages, self.meeting = name, messages, meeting

    def barrier(self) -> None:
        self.meeting.wait(WAIT_S)

    def receive(self, peer: str, buffer: Tensor, tag: int) -> Arrival:
        return Arrival(self.messages[peer, self.name, tag], buffer)

    def send(self, peer: str, tensor: Tensor, tag: int) -> Departed:
        self.messages[self.name, peer, tag].put(tensor.clone())
        return Departed()


def train_by_plan(
    model: ChainModel, plan: Plan, optimizer: OptimizerSettings, batches: list[tuple[Tensor, Tensor]]
) -> dict[str, Tensor]:
    """The root's parameters after these mini-batches."""
    messages: dict[Any, queue.Queue[Tensor]] = defaultdict(queue.Queue)
    meeting = threading.Barrier(len(plan.participants))
    models = {name: copy.deepcopy(model) for name in plan.participants}

    program = compile_plan(plan, model.chain, Execution.paper())

    def work(name: str) -> None:
        transport = cast(Transport, Exchange(name, messages, meeting))
        runner = Runner(program.part(name), models[name], transport, optimizer)
        for samples, labels in batches:
            runner.iterate(labels, samples if name == plan.data_holder else None)

    with ThreadPoolExecutor(len(models)) as threads:
        for worker in [threads.submit(work, name) for name in models]:
            worker.result(WAIT_S)
    return {name.split(".", 2)[2]: parameter for name, parameter in models[plan.root].named_parameters()}


@pytest.mark.parametrize("build", [build_net, freeze(0), freeze(0, 1), freeze(4)], ids=["none", "0", "0 and 1", "4"])
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_parameters_without_a_gradient_stay_as_in_one_process(
    plan: str, build: Callable[[], nn.Module], optimizer: str
) -> None:
    momentum = 0.9 if optimizer == "sgd" else 0.0
    settings = OptimizerSettings(name=optimizer, learning_rate=0.05, momentum=momentum, weight_decay=0.5)  # type: ignore[arg-type]
    parts = {name: Assignment(parent=p, depth=m, samples=b) for name, (p, m, b) in PLANS[plan].items()}
    generator = torch.Generator().manual_seed(1)
    batches = [
        (torch.randint(256, (12, *SHAPE), dtype=torch.uint8, generator=generator), torch.arange(12) % CLASSES)
        for _ in range(3)
    ]
    module = build()
    model = chain_from_module(build(), "given", SHAPE, CLASSES)
    assert model.chain.depth == DEPTH
    found = train_by_plan(model, Plan(batch_size=12, data_holder="device", workers=parts), settings, batches)
    stepper = build_optimizer(settings, list(module.parameters()))
    for samples, labels in batches:
        stepper.zero_grad()
        (summed_loss(module(samples / 255), labels) / 12).backward()
        stepper.step()
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(found[name], parameter, rtol=0, atol=1e-6)
    assert torch.equal(found["1.unused"], torch.ones(3))
