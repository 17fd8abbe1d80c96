import copy
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional

from hiertrain.problem.chain import Chain
from hiertrain.values import InputError
from hiertrain.workload.architectures import OWN_MODELS, build_model, model_names
from hiertrain.workload.chain_model import ChainModel, chain_from_module, summed_loss
from hiertrain.workload.torchvision_ops import torchvision

CLASSES = 7


def small_models() -> dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int]]]:
    """Models of every kind, at the smallest size that they take, with few blocks of each kind of theirs."""
    from torchvision.models.mobilenetv3 import InvertedResidualConfig

    models = torchvision.models
    block = partial(InvertedResidualConfig, dilation=1, width_mult=1.0)
    return {
        "lenet5": (lambda: OWN_MODELS["lenet5"](3, CLASSES), (3, 32, 32)),
        "alexnet-cifar": (lambda: OWN_MODELS["alexnet-cifar"](3, CLASSES), (3, 32, 32)),
        "resnet": (lambda: models.ResNet(models.resnet.BasicBlock, [2, 1, 1, 1], CLASSES), (3, 64, 64)),
        "mobilenet_v2": (
            lambda: models.MobileNetV2(CLASSES, 0.5, [[1, 16, 1, 1], [6, 24, 2, 2], [6, 32, 1, 2]]),
            (3, 64, 64),
        ),
        "mobilenet_v3": (
            lambda: models.MobileNetV3(
                [
                    block(16, 3, 16, 16, True, "RE", stride=2),
                    block(16, 3, 72, 24, False, "RE", stride=2),
                    block(24, 3, 88, 24, False, "RE", stride=1),
                    block(24, 5, 96, 40, True, "HS", stride=2),
                    block(40, 5, 240, 40, True, "HS", stride=1),
                ],
                128,
                CLASSES,
            ),
            (3, 64, 64),
        ),
        "densenet": (lambda: models.DenseNet(8, (3, 2, 2, 1), 16, num_classes=CLASSES), (3, 64, 64)),
        "squeezenet1_1": (lambda: models.squeezenet1_1(num_classes=CLASSES), (3, 64, 64)),
        "shufflenet": (lambda: models.ShuffleNetV2([2, 3, 2], [24, 48, 96, 192, 256], CLASSES), (3, 64, 64)),
        "googlenet": (
            lambda: models.googlenet(num_classes=CLASSES, aux_logits=False, init_weights=False),
            (3, 64, 64),
        ),
        "vit": (
            lambda: models.VisionTransformer(32, 8, 2, 2, 16, 32, 0.1, 0.1, CLASSES),
            (3, 32, 32),
        ),
        "swin": (
            lambda: models.SwinTransformer([4, 4], 16, [1, 1], [2, 2], [4, 4], 4.0, 0.1, 0.1, 0.1, CLASSES),
            (3, 32, 32),
        ),
    }


@cache
def small_chain(kind: str) -> tuple[nn.Module, nn.Module, ChainModel]:
    """The module as it was, the module of which the chain was made, and the chain; all of them to be copied."""
    make, shape = small_models()[kind]
    torch.manual_seed(0)
    module = make()
    return copy.deepcopy(module), module, chain_from_module(module, kind, shape, CLASSES)


def chain_without_weights(name: str, *args: Any, **kwargs: Any) -> Chain:
    """The chain of a model whose weights have sizes only: to draw those of a large one takes seconds."""
    with torch.device("meta"):
        return build_model(name, *args, **kwargs).chain


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Many small operations: a second thread gains nothing here, and waits for a core on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def samples_of(shape: tuple[int, int, int], samples: int = 4) -> Tensor:
    return torch.randint(256, (samples, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def gradients(module: nn.Module) -> dict[str, Tensor]:
    """Gradients by the parameter's name in the module, which a chain keeps after ``layers.3.``."""
    named = ((name.split("."), p.grad) for name, p in module.named_parameters() if p.grad is not None)
    return {".".join(parts[2:] if parts[0] == "layers" else parts): gradient for parts, gradient in named}


def check_gradients(model: nn.Module, reference: nn.Module) -> None:
    """Assert that the gradients are close; most of them are equal, which is found out much sooner."""
    found, wanted = gradients(model), gradients(reference)
    assert found.keys() == wanted.keys()
    differing = [name for name in wanted if not torch.equal(found[name], wanted[name])]
    for name in differing:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-4, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def segment_by_segment(model: ChainModel, samples: Tensor, labels: Tensor) -> Tensor:
    """Logits, after a backward pass that is cut at every depth as the runtime cuts it."""
    tape = []
    x = samples
    for number in range(1, model.chain.depth):
        leaf = x.detach()
        leaf.requires_grad_(number > 1)
        x = model.run(leaf, number, number)
        tape.append((leaf, x))
    logits = x.detach().requires_grad_()
    summed_loss(logits, labels).backward()
    gradient = logits.grad
    for leaf, output in reversed(tape):
        if output.requires_grad:
            torch.autograd.backward(output, gradient)
        gradient = leaf.grad
    return x.detach()


@pytest.mark.parametrize("kind", small_models())
def test_chain_computes_what_the_module_computes_whole_and_cut_at_every_depth(kind: str) -> None:
    original, module, uncut_model = small_chain(kind)
    assert all(torch.equal(value, module.state_dict()[name]) for name, value in original.state_dict().items())
    reference, model, cut_model = copy.deepcopy(original), copy.deepcopy(uncut_model), copy.deepcopy(uncut_model)
    shape = model.sample_shape
    samples, labels = samples_of(shape), torch.tensor([0, 1, 2, 3])

    torch.manual_seed(2)
    wanted = reference(samples.float() / 255)
    summed_loss(wanted, labels).backward()
    torch.manual_seed(2)
    logits = model(samples)
    summed_loss(logits, labels).backward()
    torch.manual_seed(2)
    cut_logits = segment_by_segment(cut_model, samples, labels)

    torch.testing.assert_close(logits, wanted, rtol=0, atol=0)
    torch.testing.assert_close(cut_logits, wanted, rtol=0, atol=0)
    assert len(gradients(reference)) > 0
    check_gradients(model, reference)
    check_gradients(cut_model, reference)

    model.eval()
    reference.eval()
    torch.testing.assert_close(model(samples), reference(samples.float() / 255), rtol=0, atol=0)
    torch.testing.assert_close(model(samples.float()), model(samples), rtol=0, atol=0)


@pytest.mark.parametrize("kind", small_models())
def test_sizes_are_those_of_the_real_tensors(kind: str) -> None:
    model = copy.deepcopy(small_chain(kind)[2])
    chain, shape = model.chain, model.sample_shape
    assert sum(layer.parameter_bytes for layer in chain.layers) == 4 * sum(p.numel() for p in model.parameters())
    assert chain.sample_bytes == samples_of(shape, 1).nbytes
    kept = [real_sizes(model, samples_of(shape, samples)) for samples in (4, 5)]
    for layer, per_sample, (output, less), (_, more) in zip(
        chain.layers, (*model.output_shapes, None), *kept, strict=True
    ):
        assert layer.activation_bytes == more - less, layer.name
        if per_sample is not None:
            assert tuple(output.shape[1:]) == per_sample
            assert layer.output_bytes * len(output) == output.nbytes
    assert (chain.layers[-1].name, chain.layers[-1].output_bytes, chain.layers[-1].parameter_bytes) == ("loss", 0, 0)
    assert len(model.layers) == len(model.output_shapes) == chain.depth - 1


def real_sizes(model: ChainModel, samples: Tensor) -> list[tuple[Tensor, int]]:
    """Output, and bytes kept for backward, of each layer, from computing it."""
    counted = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    alive: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        alive.append(tensor)
        return tensor

    sizes = []
    x = samples
    for number in range(1, model.chain.depth + 1):
        start = len(alive)
        with saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = number == model.chain.depth
            x = summed_loss(x, torch.arange(len(x))) if loss else model.run(x, number, number)
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in alive[start:]}
        sizes.append((x, sum(size for key, size in storages.items() if key not in counted)))
        counted |= storages.keys()
    return sizes


@pytest.mark.parametrize(
    ("name", "shape", "classes", "parameters"),
    [
        ("lenet5", (1, 32, 32), 10, 61_706),  # LeCun et al., with full connections between the convolutions
        ("lenet5", (3, 32, 32), 10, 62_006),
        ("alexnet-cifar", None, 10, 23_272_266),
        ("alexnet", None, 1000, 61_100_840),
        ("vgg16", None, 1000, 138_357_544),
        ("resnet18", None, 1000, 11_689_512),
        ("resnet50", None, 1000, 25_557_032),
        ("mobilenet_v2", None, 1000, 3_504_872),
        ("densenet121", None, 1000, 7_978_856),
        ("vit_b_16", None, 1000, 86_567_656),
    ],
)
def test_published_parameter_counts(
    name: str, shape: tuple[int, int, int] | None, classes: int, parameters: int
) -> None:
    chain = chain_without_weights(name, shape, classes)
    assert sum(layer.parameter_bytes for layer in chain.layers) == 4 * parameters


def test_lenet5_has_the_layers_of_the_paper() -> None:
    chain = build_model("lenet5").chain
    wanted = "conv1 relu1 pool1 conv2 relu2 pool2 flatten fc1 relu3 fc2 relu4 fc3 loss"
    assert " ".join(layer.name for layer in chain.layers) == wanted
    assert (chain.sample_bytes, chain.layers[0].output_bytes, chain.layers[0].parameter_bytes) == (3072, 18816, 1824)
    assert chain.exact


def test_alexnet_cifar_is_exact_and_has_twenty_layers() -> None:
    chain = build_model("alexnet-cifar").chain
    assert chain.depth == 20
    assert chain.exact


def test_lenet5_keeps_what_can_be_counted_by_hand() -> None:
    kept = {layer.name: layer.activation_bytes for layer in build_model("lenet5").chain.layers}
    assert kept["conv1"] == 4 * 3 * 32 * 32  # its scaled input
    assert kept["relu1"] == 4 * 6 * 28 * 28  # its output
    assert kept["pool1"] == 8 * 6 * 14 * 14  # indices; its input is kept already
    assert kept["flatten"] == 0
    assert kept["fc1"] == 4 * 400  # pool2's output, kept first here
    assert kept["loss"] == 4 * 10 + 8  # log-probabilities and the label


def test_layers_say_how_few_samples_they_can_be_trained_on() -> None:
    """At 1x1 pixels BatchNorm has a single value per channel of a single sample, which it refuses."""
    resnet = build_model("resnet18", (3, 32, 32))
    least = {layer.name: layer.least_samples for layer in resnet.chain.layers}
    assert {name: samples for name, samples in least.items() if samples != 1} == {"layer4.0": 2, "layer4.1": 2}
    before = list(least).index("layer4.0")
    value = resnet.run(samples_of((3, 32, 32), 2), 1, before)
    resnet.run(value, before + 1, before + 1)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        resnet.run(value[:1], before + 1, before + 1)
    assert {layer.least_samples for layer in chain_without_weights("resnet18").layers} == {1}


class Squeezed(nn.Module):
    """A single sample is squeezed away with its pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 4, 3), nn.Linear(4, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(functional.adaptive_avg_pool2d(self.conv(x), 1).squeeze())


class Picky(nn.Module):
    """A layer with a rule of its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[0] < 2:
            raise RuntimeError("a pair at least")
        return x * 2


@pytest.mark.parametrize("module", [Squeezed(), nn.Sequential(nn.Flatten(), Picky(), nn.Linear(64, 10))])
def test_a_layer_that_cannot_do_with_one_sample_says_so_whatever_the_reason(module: nn.Module) -> None:
    chain = chain_from_module(module, "own", (1, 8, 8), 10).chain
    assert max(layer.least_samples for layer in chain.layers) == 2


def test_inexact_layers_are_named_with_their_cause() -> None:
    assert chain_without_weights("alexnet", classes=2).inexact_layers == (
        "classifier.0: Dropout",
        "classifier.3: Dropout",
    )
    resnet = chain_without_weights("resnet18", (3, 32, 32))
    assert resnet.inexact_layers[:2] == ("bn1: BatchNorm2d", "layer1.0: BatchNorm2d")
    assert not resnet.exact
    assert chain_without_weights("alexnet", options={"dropout": 0.0}).exact
    swin = small_chain("swin")[2].chain
    causes = {reason.split(": ")[1] for reason in swin.inexact_layers}
    assert causes == {"Dropout", "shifted_window_attention", "StochasticDepth"}
    vit = small_chain("vit")[2].chain
    assert {reason.split(": ")[1] for reason in vit.inexact_layers} == {"Dropout", "MultiheadAttention"}


def test_auxiliary_heads_are_left_out() -> None:
    with_heads = build_model("googlenet", (3, 64, 64))
    assert not any(name for name, _ in with_heads.named_parameters() if "aux" in name)
    assert with_heads.training
    assert with_heads(samples_of((3, 64, 64))).shape == (4, 10)


def test_grey_samples_are_given_to_models_of_torchvision_three_times() -> None:
    model = build_model("squeezenet1_1", (1, 32, 32), options={"dropout": 0.0})
    colour = build_model("squeezenet1_1", (3, 32, 32), options={"dropout": 0.0})
    samples, labels = samples_of((1, 32, 32)), torch.tensor([0, 1, 2, 3])
    wanted = colour(samples.expand(-1, 3, -1, -1))
    summed_loss(wanted, labels).backward()
    assert torch.equal(segment_by_segment(model, samples, labels), wanted)
    check_gradients(model, colour)
    assert model.chain.sample_bytes == 32 * 32
    assert [layer.output_bytes for layer in model.chain.layers] == [layer.output_bytes for layer in colour.chain.layers]
    assert names(model) == names(colour)


def test_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, again, other = build_model("lenet5", seed=1), build_model("lenet5", seed=1), build_model("lenet5", seed=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


def test_every_torchvision_classifier_has_a_name() -> None:
    assert model_names()[:2] == ("lenet5", "alexnet-cifar")
    assert set(torchvision.models.list_models(module=torchvision.models)) < set(model_names())


@pytest.mark.parametrize("name", ["lenet5", "alexnet"])
def test_unknown_option_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"model '{name}': options {{'depth': 3}}"):
        build_model(name, options={"depth": 3})


def test_unknown_model_names_the_close_ones() -> None:
    with pytest.raises(InputError, match=r"model 'resnet19' is unknown; did you mean .*resnet18.*model_names\(\)"):
        build_model("resnet19")


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("lenet5", (3, 224, 224), "'lenet5' cannot be made a chain: it does not run on samples of shape 3x224x224"),
        ("vit_b_32", (3, 32, 32), "does not run on samples of shape 3x32x32: .*image height"),
        ("resnet18", (2, 32, 32), "does not run on samples of shape 2x32x32"),
        ("lenet5", (3, 32), "sample_shape must be"),
    ],
)
def test_sample_shape_that_a_model_does_not_take(name: str, shape: tuple[int, int, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_model(name, shape)


class Function(nn.Module):
    """A module whose forward function is given; with its own ``inner`` layer where that uses one."""

    def __init__(self, forward: Callable[[nn.Module, Tensor], object], inner: bool = False) -> None:
        super().__init__()
        self.function = forward
        self.fc = nn.Linear(12, CLASSES)
        self.inner = nn.Linear(12, 12) if inner else None
        self.drop = nn.Dropout(0.0)

    def forward(self, x: Tensor) -> object:
        return self.function(self, x)


def chain_of(forward: Callable[..., object], inner: bool = False) -> ChainModel:
    torch.manual_seed(0)
    return chain_from_module(Function(forward, inner), "given", (3, 2, 2), CLASSES)


def add_in_place(self: Function, x: Tensor) -> Tensor:
    view = x.view(-1, 12)
    x.add_(1)
    return self.fc(view)


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (lambda self, x: self.fc(x.flatten(1)) if x.sum() > 0 else x, "cannot be traced: TraceError: symbolically"),
        (lambda self, x: (self.fc(x.flatten(1)), x), "output must be one tensor; it is a tuple"),
        (lambda self, x: self.fc(x.flatten(1)).double(), "must be float32 of shape .* it is float64"),
        (lambda self, x: self.inner(x.flatten(1)), r"shape \[n, 7\]; for n = 2 it is float32 of shape \[2, 12\]"),
        (lambda self, x: self.fc(x.flatten()), "does not run on samples of shape 3x2x2"),
        (add_in_place, "changes .* in place, and .* is a view of it"),
    ],
)
def test_module_that_cannot_be_cut_says_why(forward: Callable[..., object], message: str) -> None:
    with pytest.raises(InputError, match=f"model 'given' cannot be made a chain: .*{message}"):
        chain_of(forward, inner=True)


def names(model: ChainModel) -> list[str]:
    return [layer.name for layer in model.chain.layers]


def test_no_cut_between_two_uses_of_one_parameter() -> None:
    model = chain_of(lambda self, x: self.fc(self.inner(functional.relu(self.inner(x.flatten(1))))), inner=True)
    assert names(model) == ["flatten", "inner", "fc", "loss"]


def test_modules_without_state_may_be_used_on_both_sides() -> None:
    model = chain_of(lambda self, x: self.fc(self.drop(self.inner(self.drop(x.flatten(1))))), inner=True)
    assert names(model) == ["flatten", "drop", "inner", "drop_2", "fc", "loss"]


def test_no_cut_where_a_size_crosses_or_samples_leave_the_first_dimension() -> None:
    model = chain_of(lambda self, x: self.fc(functional.relu(x).view(x.shape[0], 12)))
    assert names(model) == ["relu-view", "fc", "loss"]
    model = chain_of(lambda self, x: self.fc(x.flatten(1).t().relu().t()))
    assert names(model) == ["flatten", "t", "fc", "loss"]


def many_in_place(self: Function, x: Tensor) -> Tensor:
    assert self.inner is not None
    h = self.inner(x.flatten(1))
    h += 1
    h.mul_(2)
    torch.relu_(h)
    return self.fc(h)


def one_in_place(self: Function, x: Tensor) -> Tensor:
    assert self.inner is not None
    return self.fc(functional.leaky_relu(self.inner(x.flatten(1)), 0.1, inplace=True))


@pytest.mark.parametrize("forward", [many_in_place, one_in_place])
def test_in_place_functions_are_cut_like_others(forward: Callable[..., Tensor]) -> None:
    model = chain_of(forward, inner=True)
    torch.manual_seed(0)
    reference = Function(forward, inner=True)
    samples, labels = samples_of((3, 2, 2)), torch.tensor([0, 1, 2, 3])
    wanted = reference(samples.float() / 255)
    assert isinstance(wanted, Tensor)
    summed_loss(wanted, labels).backward()
    assert torch.equal(segment_by_segment(model, samples, labels), wanted)
    torch.testing.assert_close(gradients(model), gradients(reference))


def test_functional_dropout_follows_the_mode_of_the_chain() -> None:
    model = chain_of(lambda self, x: self.fc(functional.dropout(x.flatten(1), 0.5, training=self.training)))
    samples = samples_of((3, 2, 2))
    assert model.chain.inexact_layers == ("dropout: dropout",)
    assert not torch.equal(model(samples), model(samples))
    model.eval()
    assert torch.equal(model(samples), model(samples))


def test_summed_loss_is_the_sum_over_samples() -> None:
    logits, labels = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    torch.testing.assert_close(summed_loss(logits, labels) / 5, functional.cross_entropy(logits, labels))
