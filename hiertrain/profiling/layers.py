"""Measures layers on the worker's side: the paper's first stage, profiling."""

import platform
import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from hiertrain.control import memory
from hiertrain.control.jobs import ProfileJob
from hiertrain.problem.profile import Measurement, Step, TimingPoint, WorkerProfile
from hiertrain.profiling.estimates import fit_layers
from hiertrain.runtime.runner import synchronize
from hiertrain.values import InputError
from hiertrain.workload.architectures import build_model
from hiertrain.workload.chain_model import ChainModel, summed_loss
from hiertrain.workload.optimizers import build_optimizer

Report = Callable[[int, int, str], None]  # done, total, note


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
