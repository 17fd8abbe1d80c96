"""Measures layers on the worker's side: the paper's first stage, profiling."""

import platform
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product

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
IterationTimes = tuple[list[float], list[float]]  # forward and backward, a number for each layer
ROUNDS = 3  # turns that each sample count has


def time_layers(job: ProfileJob, report: Report) -> WorkerProfile:
    """Time forward, backward and update of every layer at the job's sample counts, and fit costs.

    Layers are timed in whole iterations: one that is repeated alone finds in the cache what it will not find there.
    The counts take turns, so that a while in which the machine is slower meets all of them and bends no cost.

    Sample counts that would exceed the job's time or memory limit are skipped, largest first, and the profile says so;
    the smallest is always measured. A count that a layer refuses, as BatchNorm does a single value per channel, is
    skipped too if two others are left to fit. Raises InputError if not, and when the model cannot be built.
    """
    device = torch.device(job.accelerator)
    model = build_model(**dict(job.model)).to(device).train()
    counts, skipped = _choose_counts(job, model, device)
    turns = list(product(_rounds(job), counts))
    times_s: dict[int, list[IterationTimes]] = {samples: [] for samples in counts}
    for done, (repetitions, samples) in enumerate(turns):
        report(done, len(turns), f"{samples} samples")
        passes = [_one_iteration(model, samples, device) for _ in range(job.warm_up + repetitions)]
        times_s[samples] += passes[job.warm_up :]
    points = [point for samples, passes in times_s.items() for point in _points(model, samples, passes)]
    points += _time_updates(model, job, device)
    report(len(turns), len(turns), "done")
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


def _rounds(job: ProfileJob) -> list[int]:
    """How many of the job's repetitions are in each round."""
    return [len(part) for part in np.array_split(np.arange(job.repetitions), min(ROUNDS, job.repetitions))]


def _choose_counts(job: ProfileJob, model: ChainModel, device: torch.device) -> tuple[list[int], list[str]]:
    """The sample counts to time, by one iteration of each, and why the others are skipped. Raises InputError."""
    chosen: list[int] = []
    skipped: list[str] = []
    refused: InputError | None = None
    iterations = len(_rounds(job)) * job.warm_up + job.repetitions
    needed_s = sample_s = 0.0
    for samples in sorted(set(job.sample_counts)):
        reason = _excess(job, model, samples, needed_s + iterations * sample_s * samples)
        if reason and chosen:
            skipped.append(f"{samples} samples: {reason}")
            continue
        begun_s = time.monotonic()
        try:
            _one_iteration(model, samples, device)
        except InputError as error:
            refused = error
            skipped.append(f"{samples} samples: {error}")
            continue
        sample_s = (time.monotonic() - begun_s) / samples
        needed_s += iterations * sample_s * samples
        chosen.append(samples)
    if refused and len(chosen) < 2:
        raise InputError(f"{'; '.join(skipped)}; there must be two sample counts that can be timed") from refused
    return chosen, skipped


def _excess(job: ProfileJob, model: ChainModel, samples: int, needed_s: float) -> str | None:
    """Why this sample count must be skipped, or None."""
    if needed_s > job.time_limit_s:
        return f"would exceed the time limit of {job.time_limit_s:g} s"
    chain = model.chain
    needed = 2 * chain.parameter_prefix_bytes[-1] + samples * sum(
        max(layer.activation_bytes or 0, layer.output_bytes) for layer in chain.layers
    )
    if job.memory_limit_bytes is not None and needed > job.memory_limit_bytes:
        return f"would need {needed} bytes of the memory limit {job.memory_limit_bytes}"
    return None


def _one_iteration(model: ChainModel, samples: int, device: torch.device) -> IterationTimes:
    """Seconds of each layer's forward and of its backward pass, the loss included, in the order of the chain.

    On random samples, all of the first class. Raises InputError that names a layer which refuses so few of them.
    """
    value = torch.randint(0, 256, (samples, *model.sample_shape), dtype=torch.uint8, device=device)
    labels = torch.zeros(samples, dtype=torch.int64, device=device)
    model.zero_grad()
    functions = [partial(model.run, first=number, last=number) for number in range(1, model.chain.depth)]
    forward_s, backward_s, saved = [], [], []
    for layer, function in zip(model.chain.layers, [*functions, partial(summed_loss, labels=labels)], strict=True):
        leaf = value.detach().requires_grad_(bool(saved))  # nobody needs the gradient of raw samples
        begun_s = _read_clock_s(device)
        try:
            value = function(leaf)
        except ValueError as error:
            raise InputError(f"layer {layer.name} refuses them: {error}") from None
        forward_s.append(_read_clock_s(device) - begun_s)
        saved.append((leaf, value))
    gradient: Tensor | None = torch.ones_like(value)
    while saved:
        leaf, output = saved.pop()
        begun_s = _read_clock_s(device)
        if output.requires_grad:  # not so for a first layer without parameters
            torch.autograd.backward(output, gradient)
        backward_s.append(_read_clock_s(device) - begun_s)
        gradient = leaf.grad
    return forward_s, backward_s[::-1]


def _read_clock_s(device: torch.device) -> float:
    synchronize(device)
    return time.perf_counter()


def _points(model: ChainModel, samples: int, passes: list[IterationTimes]) -> list[TimingPoint]:
    forward_s, backward_s = np.array(passes).transpose(1, 2, 0)  # each of shape (layers, repetitions)
    return [
        point
        for layer, forward, backward in zip(model.chain.layers, forward_s, backward_s, strict=True)
        for point in (
            _point(layer.name, "forward", samples, forward),
            _point(layer.name, "backward", samples, backward),
        )
    ]


def _time_updates(model: ChainModel, job: ProfileJob, device: torch.device) -> list[TimingPoint]:
    """One optimizer step per layer with parameters, one after the other, by the gradients of the last iteration."""
    optimizers = {
        layer.name: build_optimizer(job.optimizer, parameters)
        for layer, module in zip(model.chain.layers[:-1], model.layers, strict=True)
        if (parameters := list(module.parameters()))
    }
    rounds_s: dict[str, list[float]] = {name: [] for name in optimizers}
    for _ in range(job.warm_up + job.repetitions):
        for name, optimizer in optimizers.items():
            begun_s = _read_clock_s(device)
            optimizer.step()
            rounds_s[name].append(_read_clock_s(device) - begun_s)
    return [_point(name, "update", 0, times_s[job.warm_up :]) for name, times_s in rounds_s.items()]


def _point(layer: str, step: Step, samples: int, times_s: Sequence[float] | np.ndarray) -> TimingPoint:
    low, median, high = np.quantile(times_s, [0.25, 0.5, 0.75])
    return TimingPoint(layer=layer, step=step, samples=samples, median_s=float(median), spread_s=float(high - low))
