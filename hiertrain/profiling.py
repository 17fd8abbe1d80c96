"""Measures layers and links on the worker's side: the paper's first stage, profiling.

Each layer is timed as the runtime executes it: its input is a detached leaf, its backward pass starts from a given
gradient. All times in seconds of wall time, after a warm-up; the median counts, the interquartile range is the spread.
"""

import platform
import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from hiertrain.control import memory
from hiertrain.control.answers import Probed
from hiertrain.control.jobs import ProbeJob, ProfileJob
from hiertrain.fitting import fit_layers
from hiertrain.problem.profile import Measurement, Step, TimingPoint, WorkerProfile
from hiertrain.runtime.runner import synchronize
from hiertrain.runtime.transport import Transport
from hiertrain.values import InputError
from hiertrain.workload.architectures import build_model
from hiertrain.workload.chain_model import ChainModel, summed_loss
from hiertrain.workload.optimizers import build_optimizer

Report = Callable[[int, int, str], None]  # done, total, note

PAUSE_S = 0.02  # fills the bucket of a link that lets 1.5 Mbit/s and bursts of two packets through
MAXIMUM_MESSAGE_BYTES = 64 * 2**20


def time_layers(job: ProfileJob, report: Report) -> WorkerProfile:
    """Time forward, backward and update of every layer at the job's sample counts, and fit costs.

    Sample counts that would exceed the job's time or memory limit are skipped, largest first, and the profile says so;
    the smallest is always measured. A count that a layer refuses, as BatchNorm does a single value per channel, is
    skipped too if two others are left to fit. Raises InputError if not, and when the model cannot be built.
    """
    device = torch.device(job.accelerator)
    model = build_model(**dict(job.model)).to(device).train()
    points: list[TimingPoint] = []
    skipped: list[str] = []
    refused: InputError | None = None
    started_s = time.monotonic()
    counts = sorted(set(job.sample_counts))
    passed_s, previous = 0.0, 0
    for index, samples in enumerate(counts):
        reason = _excess(job, model, samples, time.monotonic() - started_s, passed_s * samples / max(previous, 1))
        if reason and points:
            skipped.append(f"{samples} samples: {reason}")
            continue
        report(index, len(counts), f"{samples} samples")
        begun_s = time.monotonic()
        try:
            points += _time_passes(model, samples, job, device)
        except InputError as error:
            refused = error
            skipped.append(f"{samples} samples: {error}")
            continue
        passed_s, previous = time.monotonic() - begun_s, samples
    if refused and len({point.samples for point in points}) < 2:
        raise InputError(f"{'; '.join(skipped)}; there must be two sample counts that can be timed") from refused
    points += _time_updates(model, job, device)
    report(len(counts), len(counts), "done")
    measurement = Measurement(
        host=platform.node(),
        threads=torch.get_num_threads(),
        accelerator=job.accelerator,
        memory_kept=memory.is_kept(),
        warm_up=job.warm_up,
        repetitions=job.repetitions,
        points=tuple(points),
        skipped=tuple(skipped),
    )
    return WorkerProfile(
        layers=fit_layers([layer.name for layer in model.chain.layers], points), measurement=measurement
    )


def _excess(job: ProfileJob, model: ChainModel, samples: int, elapsed_s: float, expected_s: float) -> str | None:
    """Why this sample count must be skipped, or None."""
    if elapsed_s + expected_s > job.time_limit_s:
        return f"would exceed the time limit of {job.time_limit_s:g} s"
    chain = model.chain
    needed = 2 * chain.parameter_prefix_bytes[-1] + max(
        samples * ((layer.activation_bytes or 0) + 2 * layer.output_bytes) for layer in chain.layers
    )
    if job.memory_limit_bytes is not None and needed > job.memory_limit_bytes:
        return f"would need {needed} bytes of the memory limit {job.memory_limit_bytes}"
    return None


def _time_passes(model: ChainModel, samples: int, job: ProfileJob, device: torch.device) -> list[TimingPoint]:
    """Forward and backward of each layer, the loss included, on random samples.

    Raises InputError that names a layer which refuses so few of them.
    """
    generator = torch.Generator().manual_seed(0)
    value = torch.randint(0, 256, (samples, *model.sample_shape), dtype=torch.uint8, generator=generator).to(device)
    labels = torch.randint(0, job.model.classes, (samples,), generator=generator).to(device)
    points = []
    for number, layer in enumerate(model.chain.layers, start=1):
        loss = number == model.chain.depth
        function = partial(summed_loss, labels=labels) if loss else partial(model.run, first=number, last=number)
        try:
            passes = [_one_pass(function, value, number > 1) for _ in range(job.warm_up + job.repetitions)]
        except ValueError as error:
            raise InputError(f"layer {layer.name} refuses them: {error}") from None
        forward_s, backward_s = np.array(passes[job.warm_up :]).T
        points.append(_point(layer.name, "forward", samples, forward_s))
        points.append(_point(layer.name, "backward", samples, backward_s))
        with torch.no_grad():
            value = function(value)
    return points


def _one_pass(function: Callable[[Tensor], Tensor], value: Tensor, passes_gradient: bool) -> tuple[float, float]:
    """Seconds of one forward and one backward pass; ``passes_gradient``: also to what comes before."""
    leaf = value.detach().requires_grad_(passes_gradient)
    synchronize(value.device)
    begun_s = time.perf_counter()
    output = function(leaf)
    synchronize(value.device)
    forward_s = time.perf_counter() - begun_s
    gradient = torch.ones_like(output)
    begun_s = time.perf_counter()
    if output.requires_grad:  # not so for a first layer without parameters
        torch.autograd.backward(output, gradient)
        synchronize(value.device)
    return forward_s, time.perf_counter() - begun_s


def _time_updates(model: ChainModel, job: ProfileJob, device: torch.device) -> list[TimingPoint]:
    """One optimizer step per layer with parameters."""
    points = []
    for layer, module in zip(model.chain.layers[:-1], model.layers, strict=True):
        parameters = list(module.parameters())
        if not parameters:
            continue
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        optimizer = build_optimizer(job.optimizer, parameters)
        step_s = []
        for repetition in range(job.warm_up + job.repetitions):
            begun_s = time.perf_counter()
            optimizer.step()
            synchronize(device)
            if repetition >= job.warm_up:
                step_s.append(time.perf_counter() - begun_s)
        points.append(_point(layer.name, "update", 0, step_s))
    return points


def _point(layer: str, step: Step, samples: int, times_s: Sequence[float] | np.ndarray) -> TimingPoint:
    low, median, high = np.quantile(times_s, [0.25, 0.5, 0.75])
    return TimingPoint(layer=layer, step=step, samples=samples, median_s=float(median), spread_s=float(high - low))


def probe_link(name: str, job: ProbeJob, report: Report) -> Probed:
    """Time messages from the group's first member to its second, each answered by a single byte.

    The long message is lengthened until it takes ``target_s`` longer than one byte. Its time, that of its half and that
    of one byte give bandwidth, latency and the credit of a token bucket, which is full again after each pause.
    """
    sender, receiver = job.group.members
    with Transport(name, job.group, job.links) as transport:
        if name == receiver:
            _answer(transport, sender)
            return Probed()

        def exchange(size_bytes: int) -> float:
            """Seconds from sending ``size_bytes`` to the receiver's answer; the size is announced before."""
            transport.send(receiver, torch.tensor([size_bytes])).wait()
            back = torch.empty(1, dtype=torch.uint8)
            work = transport.receive(receiver, back)
            work.wait()  # the receiver is ready
            message = torch.empty(size_bytes, dtype=torch.uint8)
            work = transport.receive(receiver, back)
            time.sleep(PAUSE_S)
            begun_s = time.perf_counter()
            departure = transport.send(receiver, message)
            work.wait()
            exchange_s = time.perf_counter() - begun_s
            departure.wait()
            return exchange_s

        exchange(1)
        enough_s = exchange(1) + job.target_s
        size_bytes = 4096
        # Twice, so that one message which was late for another reason does not end it.
        while any(exchange(size_bytes) < enough_s for _ in range(2)) and size_bytes < MAXIMUM_MESSAGE_BYTES:
            size_bytes *= 2
        rounds = []
        for repetition in range(job.repetitions):
            report(repetition, job.repetitions, f"{sender} to {receiver}")
            rounds.append((exchange(size_bytes), exchange(size_bytes // 2), exchange(1)))
        transport.send(receiver, torch.tensor([0])).wait()
    long_s, half_s, short_s = zip(*rounds, strict=True)
    return Probed(message_bytes=size_bytes, long_s=long_s, half_s=half_s, short_s=short_s)


def _answer(transport: Transport, sender: str) -> None:
    """The receiver's side of ``probe_link``: answer until a size of 0 is announced."""
    token = torch.zeros(1, dtype=torch.uint8)
    size = torch.empty(1, dtype=torch.int64)
    while True:
        transport.receive(sender, size).wait()
        if not size.item():
            return
        message = torch.empty(int(size.item()), dtype=torch.uint8)
        work = transport.receive(sender, message)
        ready = transport.send(sender, token)
        work.wait()
        ready.wait()
        transport.send(sender, token).wait()
