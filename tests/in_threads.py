"""Programs run by threads of this process, without processes, sockets or shaped links."""

import copy
import queue
import threading
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn

from hiertrain.program.actions import Program
from hiertrain.runtime.runner import Runner
from hiertrain.runtime.transport import Transport
from hiertrain.workload.chain_model import ChainModel, summed_loss
from hiertrain.workload.optimizers import build_optimizer
from hiertrain.workload.spec import OptimizerSettings

WAIT_S = 60.0  # for a message that never comes
Batches = Sequence[tuple[Tensor, Tensor]]  # raw samples, uint8, and labels


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
    """What a worker has in place of Gloo; remembers to whom it sent how many bytes."""

    def __init__(self, name: str, messages: dict[Any, "queue.Queue[Tensor]"], meeting: threading.Barrier) -> None:
        self.name, self.messages, self.meeting = name, messages, meeting
        self.sent: list[tuple[str, int]] = []

    def barrier(self) -> None:
        self.meeting.wait(WAIT_S)

    def receive(self, peer: str, buffer: Tensor, tag: int) -> Arrival:
        return Arrival(self.messages[peer, self.name, tag], buffer)

    def send(self, peer: str, tensor: Tensor, tag: int) -> Departed:
        self.sent.append((peer, tensor.nbytes))
        self.messages[self.name, peer, tag].put(tensor.clone())
        return Departed()


def run(
    program: Program, model: ChainModel, optimizer: OptimizerSettings, batches: Batches
) -> tuple[ChainModel, dict[str, Exchange]]:
    """The model of the worker that updates it, after these mini-batches; and what every worker sent."""
    messages: dict[Any, queue.Queue[Tensor]] = defaultdict(queue.Queue)
    meeting = threading.Barrier(len(program.actions))
    models = {name: copy.deepcopy(model) for name in program.actions}
    exchanges = {name: Exchange(name, messages, meeting) for name in program.actions}

    def work(name: str) -> None:
        runner = Runner(program.part(name), models[name], cast(Transport, exchanges[name]), optimizer)
        for samples, labels in batches:
            runner.iterate(labels, samples if name == program.data_holder else None)

    with ThreadPoolExecutor(len(models)) as threads:
        for worker in [threads.submit(work, name) for name in models]:
            worker.result(WAIT_S)
    (owner,) = (name for name in models if program.part(name).updates)
    return models[owner], exchanges


def single_machine_sgd(module: nn.Module, optimizer: OptimizerSettings, batches: Batches) -> nn.Module:
    """A copy of the module, trained as anybody would."""
    own = copy.deepcopy(module)
    stepper = build_optimizer(optimizer, list(own.parameters()))
    for samples, labels in batches:
        stepper.zero_grad()
        (summed_loss(own(samples / 255), labels) / len(labels)).backward()
        stepper.step()
    return own
