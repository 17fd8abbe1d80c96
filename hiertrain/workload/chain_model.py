"""A model as a chain of layers with sizes and modules (paper, profiling stage), from any module.

Sizes are in bytes. Layer i of the chain is ``layers[i - 1]``; the chain's last layer is the loss, which is
``summed_loss`` divided by the number of samples in the whole mini-batch.
"""

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call
from torch.nn import functional

from hiertrain.problem.chain import Chain, Layer
from hiertrain.values import InputError
from hiertrain.workload.cutting import PROBE_BATCHES, cut, reasons_for
from hiertrain.workload.probing import check_training, copied, inexact_layers, random_state


class ChainModel(nn.Module):
    """A model as modules in a row. Raw samples are uint8 [n, C, H, W], or float32 with the same values 0..255."""

    def __init__(
        self,
        chain: Chain,
        layers: Sequence[nn.Module],
        output_shapes: Sequence[tuple[int, ...]],
        sample_shape: tuple,
        module_state: Mapping[str, Tensor],
    ) -> None:
        """``module_state``: the ``state_dict`` of the module that was cut, whose tensors the layers share."""
        super().__init__()
        self.chain = chain
        self.layers = nn.ModuleList(layers)  # N - 1 modules: all but the loss
        self.output_shapes = tuple(output_shapes)  # per sample, of layers 1..N-1
        self.sample_shape: tuple[int, int, int] = sample_shape
        self.module_state = dict(module_state)

    def forward(self, samples: Tensor) -> Tensor:
        """Logits float32 [n, classes] of raw samples [n, C, H, W]."""
        return self.run(samples, 1, len(self.layers))

    def run(self, x: Tensor, first: int, last: int) -> Tensor:
        """Layers first..last (1-based, inclusive, last < N) applied to the output of layer first - 1."""
        for number in range(first, last + 1):
            x = self.layers[number - 1](x)
        return x


def summed_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross entropy summed over the samples, a scalar, from logits [n, classes] and labels int64 [n].

    The sum, not the mean: divided by the whole mini-batch's size, the losses of all workers' shares add up.
    """
    return functional.cross_entropy(logits, labels, reduction="sum")


def chain_from_module(module: nn.Module, name: str, sample_shape: tuple[int, int, int], classes: int) -> ChainModel:
    """Any classifier as a chain, cut wherever exactly one tensor leads from what is before to what is after.

    The module takes float32 [n, C, H, W] with values 0..1 and gives logits float32 [n, classes]. The chain has copies
    of its parameters and buffers; the module stays as it is, and so do all random streams. A few samples are trained
    on both (see ``probing``). Raises InputError with the place and the reason when the module cannot be cut, or when
    its chain would train something else.
    """
    check_sizes(name, sample_shape, classes)
    # A forward function may draw random numbers while it is traced, and the caller may be in ``no_grad``.
    with refused_by_name(name), random_state(0), torch.enable_grad():
        _check_parts(module)
        own = copied(module)
        model = cut_chain(own, name, sample_shape, classes)
        layers = {layer.name: part for layer, part in zip(model.chain.layers, model.layers, strict=False)}
        _check_coverage(own, model)
        check_training(module, layers, sample_shape, classes)
        found = inexact_layers(layers, sample_shape)
    known = [cause.partition(": ") for cause in model.chain.inexact_layers]
    causes = {layer: [cause for name, _, cause in known if name == layer] or [found.get(layer)] for layer in layers}
    inexact = tuple(f"{layer}: {cause}" for layer, own in causes.items() for cause in own if cause)
    model.chain = model.chain.model_copy(update={"inexact_layers": inexact})
    return model


@contextmanager
def refused_by_name(name: str) -> Iterator[None]:
    """Whatever is refused is refused for a model."""
    try:
        yield
    except InputError as error:
        raise InputError(f"model {name!r} cannot be made a chain: {error}") from error


def cut_chain(
    module: nn.Module, name: str, sample_shape: tuple[int, int, int], classes: int, repeats: int = 1
) -> ChainModel:
    """The chain of a module, which it takes over; grey samples are given to it ``repeats`` times."""
    segments = cut(module, sample_shape, classes, repeats)
    modules = [segment.module for segment in segments]
    (small, unused), (large, _) = (_trace_sizes(modules, (samples, *sample_shape)) for samples in PROBE_BATCHES)
    if unused:  # without gradients, less is kept
        for parameter in unused:
            parameter.requires_grad_(False)
        small, large = (_trace_sizes(modules, (samples, *sample_shape))[0] for samples in PROBE_BATCHES)
    kept = [more - less for (_, less), (_, more) in zip(small, large, strict=True)]
    shapes = [shape[1:] for shape, _ in small[:-1]]
    inputs = [(sample_shape, torch.uint8), *((shape, torch.float32) for shape in shapes)]
    layers = [
        Layer(
            name=segment.name,
            output_bytes=4 * math.prod(shape),
            parameter_bytes=sum(parameter.nbytes for parameter in segment.module.parameters()),
            activation_bytes=size,
            least_samples=_least_samples(segment.module, *value),
        )
        for segment, shape, size, value in zip(segments, shapes, kept[:-1], inputs[:-1], strict=True)
    ]
    chain = Chain(
        model=name,
        sample_bytes=math.prod(sample_shape),
        layers=(*layers, Layer(name="loss", output_bytes=0, parameter_bytes=0, activation_bytes=kept[-1])),
        inexact_layers=tuple(f"{segment.name}: {cause}" for segment in segments for cause in segment.inexact),
    )
    return ChainModel(chain, modules, shapes, sample_shape, module.state_dict(keep_vars=True))


def _check_parts(module: nn.Module) -> None:
    """Raise InputError for parts that cannot be traced, copied, or sent from worker to worker."""
    for name, part in module.named_modules():
        if isinstance(part, torch.jit.ScriptModule):
            raise InputError(f"its part {name!r} is scripted; give the module that it was made of")
    for name, parameter in module.named_parameters():
        if isinstance(parameter, nn.UninitializedParameter):
            raise InputError(f"parameter {name!r} has no shape yet; run the module once, on samples, before")
        if parameter.dtype != torch.float32 or parameter.device.type != "cpu":
            raise InputError(
                f"parameter {name!r} must be float32, on the CPU; it is "
                f"{str(parameter.dtype).removeprefix('torch.')} on {parameter.device.type}"
            )
        if parameter._backward_hooks or parameter._post_accumulate_grad_hooks:
            raise InputError(f"parameter {name!r} has a hook; a copy would not have it")


def _check_coverage(module: nn.Module, model: ChainModel) -> None:
    """Raise InputError for parameters of the module that no layer of its chain has."""
    covered = {id(parameter) for parameter in model.parameters()}
    left = [name for name, parameter in module.named_parameters() if id(parameter) not in covered]
    if left:
        others = f" (and {len(left) - 1} more)" if len(left) > 1 else ""
        raise InputError(
            f"parameter {left[0]!r}{others} is of no use to its output in evaluation mode: no layer has it"
        )


def check_sizes(name: str, sample_shape: tuple[int, ...], classes: int) -> None:
    if len(sample_shape) != 3 or min(sample_shape) < 1:
        raise InputError(
            f"model {name!r}: sample_shape must be (channels, height, width), all >= 1; got {sample_shape}"
        )
    if classes < 1:
        raise InputError(f"model {name!r}: classes must be at least 1; got {classes}")


def _trace_sizes(
    layers: Sequence[nn.Module], shape: tuple[int, ...]
) -> tuple[list[tuple[tuple[int, ...], int]], list[nn.Parameter]]:
    """Output shape, and bytes kept for backward, of each layer and the loss for raw samples of shape [n, C, H, W].

    Then the parameters that are not frozen though the loss does not depend on them: one process gives them no
    gradient, and its optimizer leaves them alone, weight decay and momentum included.

    A storage that several layers keep counts at the first of them, so that the bytes of layers 1..m add up to what
    a worker of depth m keeps. Parameters and buffers do not count. Nothing is computed: the tensors are fake.
    """
    kept: list[Tensor] = []  # holds the storages, so that no two of them have the same address

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    sizes = []
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        # Handed to the layers in place of their own state, which a BatchNorm would otherwise change.
        states: list[dict[str, Tensor]] = [
            {name: mode.from_tensor(tensor) for name, tensor in _state(layer)} for layer in layers
        ]
        counted = {tensor.untyped_storage()._cdata for state in states for tensor in state.values()}
        labels = torch.zeros(shape[0], dtype=torch.int64)
        x = torch.zeros(shape, dtype=torch.uint8)
        steps = [partial(functional_call, layer, state) for layer, state in zip(layers, states, strict=True)]
        for step in (*steps, lambda logits: summed_loss(logits, labels)):
            start = len(kept)
            with saved_tensors_hooks(keep, lambda tensor: tensor), reasons_for("it does not run in training mode"):
                x = step(x)
            storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in kept[start:]}
            sizes.append((tuple(x.shape), sum(size for key, size in storages.items() if key not in counted)))
            counted |= storages.keys()
        reached = _leaves(x)
        unused = [
            parameter
            for layer, state in zip(layers, states, strict=True)
            for name, parameter in layer.named_parameters()
            if parameter.requires_grad and id(state[name]) not in reached
        ]
    return sizes, unused


def _least_samples(layer: nn.Module, shape: tuple[int, ...], dtype: torch.dtype) -> int:
    """How few samples of a shape the layer can be trained on: at most as many as it has been traced with."""
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        state: dict[str, Tensor] = {name: mode.from_tensor(tensor) for name, tensor in _state(layer)}
        try:
            with redirect_stderr(io.StringIO()):  # where torch.fx writes the code that failed
                output = functional_call(layer, state, torch.zeros(1, *shape, dtype=dtype))
        except Exception:  # BatchNorm refuses a single value per channel; a foreign layer may raise anything
            return min(PROBE_BATCHES)
    return 1 if len(output.shape) and len(output) == 1 else min(PROBE_BATCHES)  # squeezed: no sample is left in it


def _leaves(output: Tensor) -> set[int]:
    """The ids of the tensors that would get a gradient from ``output``'s."""
    leaves: set[int] = set()
    steps: dict[Any, None] = {output.grad_fn: None}  # of the autograd graph
    ahead = list(steps)
    while ahead:
        step = ahead.pop()
        leaves.add(id(getattr(step, "variable", None)))
        before = [former for former, _ in getattr(step, "next_functions", ()) if former not in steps]
        steps.update(dict.fromkeys(before))
        ahead += before
    return leaves


def _state(layer: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from layer.named_parameters()
    yield from layer.named_buffers()
