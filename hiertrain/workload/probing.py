"""Whether a chain trains what the module trains that it was cut from: found by running both on a few samples.

Tracing sees the operations on tensors and nothing else: no hooks of the whole model, no contexts like ``no_grad`` and
``autocast``, no backward function of a ``torch.autograd.Function``, no ``train`` function that leaves parts in
evaluation mode. No list of such things is ever complete. So outputs, gradients and buffers are compared with the
module's own in training mode, the chain cut at every layer, and each layer is asked whether its output depends on
random numbers or on the other samples. Copies are run: module, chain and all random streams are left as they were.
"""

import copy
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from hiertrain.values import InputError
from hiertrain.workload.cutting import reasons_for

T = TypeVar("T")

SAMPLES = 4  # of a probe: halves of two, since BatchNorm takes no single value
BRIGHTEST = (256, 32)  # of the samples of each probe, exclusive
# Of the largest value of a tensor. Module and chain compute the same operations, and only gradients may be summed in
# another order; other numbers of samples may be computed by other kernels. Bfloat16 would be off by 4e-3.
TOLERANCE = 1e-5
KERNEL_TOLERANCE = 1e-4
NOISE = 1e-6  # of the largest gradient: behind BatchNorm of few values there are gradients of rounding errors alone
UNSEEN = (
    "a chain has no hooks of the whole model, no no_grad, no autocast, no backward and no train() of the model's own, "
    "and does what the model does in evaluation mode"
)


def copied(original: T) -> T:
    """A deep copy. Raises InputError where there is none."""
    with reasons_for("it cannot be copied"):
        return copy.deepcopy(original)


def check_training(
    module: nn.Module, layers: Mapping[str, nn.Module], sample_shape: tuple[int, ...], classes: int
) -> None:
    """Raise InputError, with the place, unless the layers of a chain train as the module does.

    ``layers``: by name, in order; their parameters and buffers have the names that they have in the module. Raw samples
    have ``sample_shape`` (C, H, W). Gradients add up over the probes, on both sides.
    """
    whole, parts = copied(module), copied(dict(layers))
    for part in (whole, *parts.values()):
        part.train()
    wanted_outputs, found_outputs = _record_outputs(whole), _record_outputs(*parts.values())
    labels = torch.arange(SAMPLES) % classes
    for seed, brightest in enumerate(BRIGHTEST):
        samples = _samples(sample_shape, seed, brightest)
        with random_state(seed):
            wanted = _run("the module", whole, samples / 255)
            if not isinstance(wanted, Tensor):
                raise InputError(f"in training mode its output must be one tensor; it is a {type(wanted).__name__}")
            _backward(wanted, labels)
        with random_state(seed):
            found = _train_cut(parts, samples, labels)
        if _differ(found, wanted):
            place = _first_difference(found_outputs, wanted_outputs)
            where = f"from {place!r} on" if place else "after its last module"
            raise InputError(f"its outputs in training would be others {where}: {UNSEEN}")
        _check_buffers(whole, parts)
        _check_gradients(whole, parts)


def inexact_layers(layers: Mapping[str, nn.Module], sample_shape: tuple[int, ...]) -> dict[str, str]:
    """The layers whose outputs in training do not depend on their own sample alone, each with its cause."""
    parts = copied(dict(layers))
    causes: dict[str, str] = {}
    for seed, brightest in enumerate(BRIGHTEST):
        x = _samples(sample_shape, seed, brightest)
        for name, part in parts.items():
            part.train()
            runs = []
            for batches, stream in (([x], 0), ([x], 1), (x.split(SAMPLES // 2), 0)):
                with random_state(stream), torch.no_grad():
                    runs.append(torch.cat([_run(f"layer {name!r}", part, batch.clone()) for batch in batches]))
            output, again, by_halves = runs
            if _differ(again, output):
                causes.setdefault(name, "random, or with a state")
            elif _differ(by_halves, output, KERNEL_TOLERANCE):
                causes.setdefault(name, "mixes the samples of a batch")
            x = output
    return causes


@contextmanager
def random_state(seed: int) -> Iterator[None]:
    """Random streams that begin anew; afterwards they are as they were."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def _samples(shape: tuple[int, ...], seed: int, brightest: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(brightest, (SAMPLES, *shape), dtype=torch.uint8, generator=generator)


def _record_outputs(*modules: nn.Module) -> list[tuple[str, Tensor]]:
    """A list that gets the output of every part that is called, with the part's name."""
    outputs: list[tuple[str, Tensor]] = []

    def record_as(name: str, part: nn.Module) -> None:
        def record(_: nn.Module, __: object, output: object) -> None:
            if isinstance(output, Tensor):
                outputs.append((name, output.detach().clone()))  # the next operation may change it in place

        part.register_forward_hook(record)

    for module in modules:
        for name, part in module.named_modules():
            if name:
                record_as(name, part)
    return outputs


def _run(name: str, module: nn.Module, x: Tensor) -> Tensor:
    with reasons_for(f"{name} does not run in training mode"):
        return module(x)


def _backward(output: Tensor, labels: Tensor) -> None:
    with reasons_for("it cannot be trained"):
        cross_entropy(output, labels, reduction="sum").backward()


def _train_cut(parts: Mapping[str, nn.Module], samples: Tensor, labels: Tensor) -> Tensor:
    """Logits of the chain, after a backward pass that is cut at every layer, as a plan may cut it."""
    tape = []
    x = samples
    for number, (name, part) in enumerate(parts.items()):
        leaf = x.detach().requires_grad_() if number else x  # nobody needs the gradient of raw samples
        x = _run(f"layer {name!r}", part, leaf)
        tape.append((name, leaf, x))
    logits = x.detach().requires_grad_()
    _backward(logits, labels)
    gradient = logits.grad
    for name, leaf, output in reversed(tape):
        if output.requires_grad:
            with reasons_for(f"layer {name!r} cannot be trained"):
                torch.autograd.backward(output, gradient)
        gradient = leaf.grad
        if leaf.requires_grad and gradient is None:
            raise InputError(
                f"no gradient leads back through layer {name!r}; to keep what comes before it as it is, freeze its "
                "parameters (requires_grad) instead"
            )
    return logits.detach()


def _differ(found: Tensor, wanted: Tensor, tolerance: float = TOLERANCE, noise: float = 0.0) -> bool:
    if (found.shape, found.dtype) != (wanted.shape, wanted.dtype):
        return True
    if torch.equal(found, wanted):  # most are, which is found out much sooner
        return False
    allowed = tolerance * _largest(wanted) + noise
    return not (wanted.is_floating_point() and torch.allclose(found, wanted, rtol=0, atol=allowed, equal_nan=True))


def _largest(values: Tensor) -> float:
    """The greatest absolute value that is finite; 0 where there is none."""
    return values.abs().nan_to_num(posinf=0).max().item() if values.numel() else 0.0


def _first_difference(found: list[tuple[str, Tensor]], wanted: list[tuple[str, Tensor]]) -> str | None:
    """The name of the first part, in the order of the module's own calls, whose output is another in the chain."""
    left = list(found)
    for name, output in wanted:
        match = next((pair for pair in left if pair[0] == name), None)
        if match is None:  # a part that is not traced as one
            continue
        left = [pair for pair in left if pair is not match]
        if _differ(match[1], output):
            return name
    return None


def _check_gradients(whole: nn.Module, parts: Mapping[str, nn.Module]) -> None:
    wanted = {name: parameter.grad for name, parameter in whole.named_parameters(remove_duplicate=False)}
    noise = NOISE * max((_largest(gradient) for gradient in wanted.values() if gradient is not None), default=0.0)
    for part in reversed(list(parts.values())):  # the last one first: a wrong gradient is passed on to all before it
        for name, parameter in part.named_parameters(remove_duplicate=False):
            gradient, own = parameter.grad, wanted[name]
            if (gradient is None) != (own is None):
                which = "no gradient" if gradient is None else "a gradient, as it does not in the module"
                raise InputError(f"parameter {name!r} would get {which}: {UNSEEN}")
            if gradient is not None and own is not None and _differ(gradient, own, noise=noise):
                raise InputError(f"parameter {name!r} would get another gradient: {UNSEEN}")


def _check_buffers(whole: nn.Module, parts: Mapping[str, nn.Module]) -> None:
    wanted = dict(whole.named_buffers(remove_duplicate=False))
    for part in parts.values():
        for name, buffer in part.named_buffers(remove_duplicate=False):
            if name in wanted and _differ(buffer, wanted[name]):
                raise InputError(f"its forward function changes {name!r}, a state, which a chain would not")
