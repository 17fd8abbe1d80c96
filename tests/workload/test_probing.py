"""A module is trained by its chain as it would be itself, or refused; and exactness is found by running."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from hiertrain.values import InputError
from hiertrain.workload.chain_model import ChainModel, chain_from_module

SHAPE, CLASSES = (2, 4, 4), 3


class Net(nn.Module):
    """A classifier with a given middle, a function of itself and the activations, which may use given parts."""

    def __init__(self, middle: Callable[[Any, Tensor], Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(2, 4, 3, padding=1), nn.Linear(16, CLASSES)
        self.middle = middle
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(functional.adaptive_avg_pool2d(functional.relu(self.middle(self, self.conv(x))), 2).flatten(1))


class Reversed(torch.autograd.Function):
    """The identity, whose gradient changes its sign."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:  # noqa: ARG004 - PyTorch passes it
        return x.view_as(x)

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> Tensor:  # noqa: ARG004
        return -gradients[0]


class Part(nn.Module):
    """A part without children, which tracing keeps as it is."""

    def __init__(self, function: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.state: Tensor
        self.register_buffer("state", torch.zeros(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


class FixedNorm(Net):
    """Fine-tuning with frozen statistics."""

    def train(self, mode: bool = True) -> Any:  # without its result, as many repositories have it
        super().train(mode)
        self.get_submodule("norm").eval()


def without_gradient(net: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        return net.second(x)


def in_bfloat16(net: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return net.second(x).float()


def add_to_alias(_: Net, x: Tensor) -> Tensor:
    same = x
    same += 1
    return same * x


def average_over_calls(net: Any, x: Tensor) -> Tensor:
    net.state.mul_(0.9).add_(0.1 * x.detach().mean())
    return x - net.state


def store_average(part: Part, x: Tensor) -> Tensor:
    part.state = 0.9 * part.state + 0.1 * x.detach().mean()
    return x - part.state


def count_calls(net: Any, x: Tensor) -> Tensor:
    net.calls = getattr(net, "calls", 0) + 1
    return x


def freeze_value(_: Net, x: Tensor) -> Tensor:
    return x.requires_grad_(False)


def identity(_: object, x: Tensor) -> Tensor:
    return x


def with_state(middle: Callable[[Any, Tensor], Tensor]) -> Net:
    net = Net(middle)
    net.register_buffer("state", torch.zeros(4, 1, 1))
    return net


def hooked(register: Callable[[Any], object]) -> Net:
    net = Net(identity)
    register(net)
    return net


def conv() -> nn.Module:
    return nn.Conv2d(4, 4, 3, padding=1)


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "an autograd function": (lambda: Net(lambda _, x: Reversed.apply(x)), r"'conv\.\w+' would get another gradient"),
    "no_grad": (lambda: Net(without_gradient, second=conv()), r"'second\.\w+' would get a gradient, as it does not in"),
    "autocast": (lambda: Net(in_bfloat16, second=conv()), "outputs in training would be others from 'second' on"),
    "a hook of the model": (
        lambda: hooked(lambda net: net.register_forward_hook(lambda _, __, output: output * 2)),
        "outputs in training would be others after its last module",
    ),
    "a hook before the model": (
        lambda: hooked(lambda net: net.register_forward_pre_hook(lambda _, inputs: (inputs[0] * 2,))),
        "outputs in training would be others from 'conv' on",
    ),
    "a hook of a parameter": (
        lambda: hooked(lambda net: net.conv.weight.register_hook(lambda gradient: -gradient)),
        r"parameter 'conv\.weight' has a hook",
    ),
    "BatchNorm that stays in evaluation mode": (
        lambda: FixedNorm(lambda net, x: net.norm(x), norm=nn.BatchNorm2d(4)),
        "outputs in training would be others from 'norm' on",
    ),
    "a change seen by another name": (lambda: Net(add_to_alias), "outputs in training would be others from 'fc' on"),
    "what training does only": (
        lambda: Net(lambda net, x: x * 2 if net.training else x),
        "does what the model does in evaluation mode",
    ),
    "Python's random numbers": (
        lambda: Net(lambda _, x: x * (1 + random.random())),
        "outputs in training would be others from 'fc' on",
    ),
    "a changed buffer": (lambda: with_state(average_over_calls), "outputs in training would be others from 'fc' on"),
    "a replaced buffer": (
        lambda: Net(lambda net, x: net.part(x), part=Part(store_average)),
        r"forward function changes 'part\.state'",
    ),
    "a counter": (lambda: Net(count_calls), "forward function changes 'calls'"),
    "an unused part": (lambda: Net(identity, second=conv()), r"'second\.weight' \(and 1 more\) is of no use"),
    "a detached value": (lambda: Net(lambda _, x: x.detach()), "no gradient leads back through layer 'detach'"),
    "a frozen value": (lambda: Net(freeze_value), "does not run in training mode: RuntimeError: you can only change"),
    "nothing to train": (lambda: Net(identity).requires_grad_(False), "it cannot be trained: "),
    "float64": (lambda: Net(identity).double(), r"'conv\.weight' must be float32, on the CPU; it is float64 on cpu"),
    "a scripted part": (
        lambda: Net(lambda net, x: net.part(x), part=torch.jit.script(nn.ReLU())),
        "its part 'part' is scripted; give the module that it was made of",
    ),
    "a lazy part": (
        lambda: Net(lambda net, x: net.part(x), part=nn.LazyConv2d(4, 1)),
        r"parameter 'part\.weight' has no shape yet",
    ),
}


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature", "ignore:.*torch.jit.script.* is deprecated")
@pytest.mark.parametrize("case", REFUSED)
def test_what_a_chain_would_train_otherwise_is_refused(case: str, capfd: pytest.CaptureFixture[str]) -> None:
    make, reason = REFUSED[case]
    with pytest.raises(InputError, match=f"model 'given' cannot be made a chain: .*{reason}"):
        chain_from_module(make(), "given", SHAPE, CLASSES)
    assert capfd.readouterr() == ("", "")


def chain_of(make: Callable[[], nn.Module]) -> ChainModel:
    torch.manual_seed(0)
    return chain_from_module(make(), "given", SHAPE, CLASSES)


def mini_batch() -> tuple[Tensor, Tensor]:
    samples = torch.randint(256, (6, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return samples, torch.arange(6) % CLASSES


def losses(module: nn.Module, samples: Tensor, labels: Tensor) -> list[float]:
    """Of three steps of SGD."""
    optimizer = torch.optim.SGD(module.train().parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    found = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = functional.cross_entropy(module(samples), labels)
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return found


def in_place(name: str, *arguments: float) -> Callable[[], Net]:
    function = getattr(functional, name, None) or getattr(torch, name)
    return lambda: Net(lambda _, x: function(x, *arguments))


ACCEPTED: dict[str, Callable[[], nn.Module]] = {
    "one layer twice": lambda: Net(lambda net, x: net.second(functional.relu(net.second(x))), second=conv()),
    "hooks of a part": lambda: hooked(
        lambda net: net.fc.register_full_backward_hook(lambda _, given, __: (given[0] * 2,))
    ),
    "an autograd function in a part": lambda: Net(
        lambda net, x: net.part(x), part=Part(lambda _, x: Reversed.apply(x))
    ),
    "requires_grad_": lambda: Net(lambda _, x: x.requires_grad_()),
    "a constant index": lambda: Net(lambda _, x: x.index_fill_(1, torch.tensor([0]), 0.0)),
    "an operation that stays in place": lambda: Net(lambda _, x: x + torch.empty_like(x).fill_(0.5)),
    "a straight-through estimator": lambda: Net(lambda _, x: x + (x.round() - x).detach()),
    "relu_": in_place("relu_"),
    "leaky_relu_": in_place("leaky_relu_", 0.1),
    "elu_": in_place("elu_"),
    "hardtanh_": in_place("hardtanh_"),
    "threshold_": in_place("threshold_", 0.1, 0.0),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_what_is_accepted_is_trained_as_the_module_is(case: str) -> None:
    model = chain_of(ACCEPTED[case])
    assert model.chain.exact
    torch.manual_seed(0)
    module = ACCEPTED[case]()
    samples, labels = mini_batch()
    assert losses(model, samples, labels) == pytest.approx(losses(module, samples / 255, labels), abs=1e-6)


RANDOM, MIXED = "random, or with a state", "mixes the samples of a batch"
INEXACT: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "dropout": (lambda: Net(lambda net, x: net.part(x), part=nn.Dropout(0.5)), "part: Dropout"),
    "drop path": (
        lambda: Net(
            lambda net, x: net.part(x), part=Part(lambda _, x: x * torch.empty(len(x), 1, 1, 1).bernoulli_(0.5))
        ),
        f"part: {RANDOM}",
    ),
    "RReLU": (lambda: Net(lambda net, x: net.part(x), part=nn.RReLU()), f"part: {RANDOM}"),
    "noise": (lambda: Net(lambda _, x: x + torch.randn_like(x)), f"randn_like-add: {RANDOM}"),
    "noise in place": (lambda: Net(lambda _, x: x + torch.empty_like(x).normal_()), f"empty_like-add: {RANDOM}"),
    "torch.dropout": (lambda: Net(lambda _, x: torch.dropout(x, 0.5, True)), f"dropout: {RANDOM}"),
    "own normalisation": (
        lambda: Net(lambda _, x: (x - x.mean((0, 2, 3), keepdim=True)) / x.std((0, 2, 3), keepdim=True)),
        f"mean-truediv: {MIXED}",
    ),
    "statistics of the batch": (lambda: Net(lambda _, x: x * x.std(0).mean()), f"std-mul: {MIXED}"),
    "the sample before": (lambda: Net(lambda _, x: x + x.roll(1, 0)), f"roll-add: {MIXED}"),
}


@pytest.mark.parametrize("case", INEXACT)
def test_a_layer_that_is_random_or_mixes_samples_is_named(case: str) -> None:
    make, cause = INEXACT[case]
    assert chain_of(make).chain.inexact_layers == (cause,)


@pytest.mark.parametrize("make", [lambda: Net(identity), lambda: Net(count_calls)], ids=["accepted", "refused"])
def test_module_and_random_streams_are_left_as_they_were(make: Callable[[], Net]) -> None:
    net = make().eval()
    net.add_module("last", nn.ReLU(inplace=True))
    before = dict(vars(net)), {name: value.clone() for name, value in net.state_dict().items()}
    streams = torch.get_rng_state(), random.getstate()
    try:
        model = chain_from_module(net, "given", SHAPE, CLASSES)
    except InputError:
        model = net
    losses(model, *mini_batch()) if isinstance(model, ChainModel) else None
    assert torch.equal(torch.get_rng_state(), streams[0])
    assert random.getstate() == streams[1]
    assert dict(vars(net)) == before[0]
    assert net.get_submodule("last").inplace is True
    assert all(torch.equal(value, before[1][name]) for name, value in net.state_dict().items())
