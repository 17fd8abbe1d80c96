"""Programs run by threads of this process, without processes, sockets or shaped links."""

import copy
import threading
from collections import defaultdict, deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn

from hiertrain.program.actions import Op, Program
from hiertrain.runtime.runner import MiniBatches, Runner
from hiertrain.runtime.transport import Transport
from hiertrain.workload.chain_model import ChainModel, summed_loss
from hiertrain.workload.compression import compress
from hiertrain.workload.optimizers import build_optimizer
from hiertrain.workload.spec import OptimizerSettings
from hiertrain.workload.weights import pack_weights, unpack_weights

WAIT_S = 60.0  # for a message that never comes
Batches = Sequence[tuple[Tensor, Tensor]]  # raw samples, uint8, and labels


@dataclass
class Posted:
    """One side of a message. Like Gloo, it reads and writes the tensors themselves, once both sides are there."""

    tensor: Tensor
    lock: threading.Lock
    matched: threading.Event = field(default_factory=threading.Event)
    source: "Posted | None" = None  # of a receive, until its tensor is written
    target: "Posted | None" = None  # of a send

    def wait(self) -> tuple[float, float]:
        assert self.matched.wait(WAIT_S)
        with self.lock:
            (self.target or self).write()
        return 0.0, 0.0

    def write(self) -> None:
        if self.source is not None:
            assert self.tensor.shape == self.source.tensor.shape
            self.tensor.copy_(self.source.tensor)
            self.source = None


class Channel:
    """Messages of one tag from one worker to another. They travel at once, or ``late``: not before somebody waits."""

    def __init__(self, late: bool) -> None:
        self.late, self.lock = late, threading.Lock()
        self.sends: deque[Posted] = deque()
        self.receives: deque[Posted] = deque()

    def post(self, side: deque[Posted], tensor: Tensor) -> Posted:
        own = Posted(tensor, self.lock)
        with self.lock:
            side.append(own)
            if self.sends and self.receives:
                send, receive = self.sends.popleft(), self.receives.popleft()
                receive.source, send.target = send, receive
                if not self.late:
                    receive.write()
                send.matched.set()
                receive.matched.set()
        return own


class Exchange:
    """What a worker has in place of Gloo; remembers to whom it sent how many bytes, and the tags of all it posted."""

    def __init__(self, name: str, channels: dict[tuple[str, str, int], Channel], meeting: threading.Barrier) -> None:
        self.name, self.channels, self.meeting = name, channels, meeting
        self.sent: list[tuple[str, int]] = []
        self.posted: list[tuple[Op, int]] = []

    def barrier(self) -> None:
        self.meeting.wait(WAIT_S)

    def receive(self, peer: str, buffer: Tensor, tag: int) -> Posted:
        self.posted.append((Op.RECEIVE, tag))
        channel = self.channels[peer, self.name, tag]
        return channel.post(channel.receives, buffer)

    def send(self, peer: str, tensor: Tensor, tag: int) -> Posted:
        self.sent.append((peer, tensor.nbytes))
        self.posted.append((Op.SEND, tag))
        channel = self.channels[self.name, peer, tag]
        return channel.post(channel.sends, tensor)


def run(
    program: Program, model: ChainModel, optimizer: OptimizerSettings, batches: Batches, late: bool = False
) -> tuple[ChainModel, dict[str, Exchange]]:
    """The model with the weights of those that update them, after these mini-batches; and what every worker sent.

    No message is left, and every iteration is reported.
    """
    channels: dict[tuple[str, str, int], Channel] = defaultdict(lambda: Channel(late))
    meeting = threading.Barrier(len(program.actions))
    models = {name: copy.deepcopy(model) for name in program.actions}
    exchanges = {name: Exchange(name, channels, meeting) for name in program.actions}
    samples, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    compressed = compress(samples)

    def indices(number: int) -> Tensor:
        return torch.arange(program.batch_size) + number * program.batch_size

    def work(name: str) -> None:
        runner = Runner(program.part(name), models[name], cast(Transport, exchanges[name]), optimizer)
        holds = name == program.data_holder
        raw, parts = (samples, compressed) if holds else (None, ())
        own = MiniBatches(len(batches), indices, labels, raw, parts, torch.tensor([len(part) for part in compressed]))
        steps = list(runner.train(own))
        assert len(steps) == sum(map(len, steps)) == len(batches)

    with ThreadPoolExecutor(len(models)) as threads:
        for worker in [threads.submit(work, name) for name in models]:
            worker.result(WAIT_S)
    assert not any(channel.sends or channel.receives for channel in channels.values())
    packed = [pack_weights(models[name], layers) for name, layers in reversed(program.owners.items())]
    trained = copy.deepcopy(model)
    unpack_weights(trained, b"".join(packed))
    return trained, exchanges


def single_machine_sgd(module: nn.Module, optimizer: OptimizerSettings, batches: Batches) -> nn.Module:
    """A copy of the module, trained as anybody would."""
    own = copy.deepcopy(module)
    stepper = build_optimizer(optimizer, list(own.parameters()))
    for samples, labels in batches:
        stepper.zero_grad()
        (summed_loss(own(samples / 255), labels) / len(labels)).backward()
        stepper.step()
    return own
