"""The models that have a name: LeNet-5, an AlexNet for 32x32 images, and every classifier of torchvision."""

import difflib
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import cache
from types import MappingProxyType

import torch
from torch import nn

from hiertrain.problem.chain import Chain
from hiertrain.values import InputError
from hiertrain.workload.chain_model import ChainModel, check_sizes, cut_chain, refused_by_name
from hiertrain.workload.spec import ModelSettings


def model_names() -> tuple[str, ...]:
    """The names that ``build_model`` knows."""
    from hiertrain.workload.torchvision_ops import torchvision  # noqa: PLC0415 - see the module: its import takes a second

    return (*OWN_MODELS, *torchvision.models.list_models(module=torchvision.models))


def build_model(
    name: str,
    sample_shape: tuple[int, int, int] | None = None,
    classes: int = 10,
    seed: int = 0,
    options: Mapping[str, float] = MappingProxyType({}),
) -> ChainModel:
    """A model with random weights, which depend on the seed alone; the global random stream is left as it was.

    ``sample_shape`` (C, H, W) is 3x32x32 for LeNet-5 and the AlexNet for 32x32 images, and 3x224x224 for torchvision's
    models, unless given. ``options`` are further arguments of a torchvision model: ``{"dropout": 0.0}`` makes some
    exact. torchvision's models take three channels: where the samples have one, they are given that one three times,
    in the chain's first layer, so that one channel is stored and sent. Raises InputError for an unknown name, for a
    shape or an option that the model does not take.
    """
    if name not in OWN_MODELS and name not in model_names():
        near = difflib.get_close_matches(name, model_names(), n=5)
        hint = f"did you mean {', '.join(near)}? " if near else ""
        raise InputError(
            f"model {name!r} is unknown; {hint}"
            f"hiertrain.workload.architectures.model_names() lists all {len(model_names())}"
        )
    own = name in OWN_MODELS
    if own and options:
        raise InputError(f"model {name!r}: options {dict(options)}: it takes none")
    shape = sample_shape or ((3, 32, 32) if own else (3, 224, 224))
    check_sizes(name, shape, classes)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        module = OWN_MODELS[name](shape[0], classes) if own else _torchvision_model(name, classes, options)
    with refused_by_name(name):
        return cut_chain(module, name, shape, classes, channel_repeats(name, shape))


def chain_of(model: ModelSettings) -> Chain:
    """The chain of a model, traced once per process for the same settings. Raises InputError like ``build_model``."""
    return _chain_of(model.model_dump_json())


@cache
def _chain_of(settings: str) -> Chain:
    # The chain alone is kept: it is frozen, while a model would be shared by all who train it.
    return build_model(**dict(ModelSettings.model_validate_json(settings))).chain


def channel_repeats(name: str, sample_shape: tuple[int, ...]) -> int:
    """How often ``build_model`` gives a model each channel of samples (C, H, W): 3 for torchvision's and grey ones."""
    return 3 if sample_shape[0] == 1 and name not in OWN_MODELS else 1


def _torchvision_model(name: str, classes: int, options: Mapping[str, float]) -> nn.Module:
    from hiertrain.workload.torchvision_ops import torchvision  # noqa: PLC0415 - see the module: its import takes a second

    with warnings.catch_warnings():
        # GoogLeNet and Inception announce that their initialisation may change; the versions are pinned.
        warnings.simplefilter("ignore", FutureWarning)
        try:
            return torchvision.models.get_model(name, weights=None, num_classes=classes, **options)
        except TypeError as error:
            raise InputError(f"model {name!r}: options {dict(options)}: {error}") from None


def _lenet5(channels: int, classes: int) -> nn.Module:
    """LeNet-5 (LeCun et al., 1998) for 32x32 images, with ReLU and maximum pooling as is usual today."""
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(channels, 6, kernel_size=5),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(6, 16, kernel_size=5),
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            fc1=nn.Linear(16 * 5 * 5, 120),
            relu3=nn.ReLU(),
            fc2=nn.Linear(120, 84),
            relu4=nn.ReLU(),
            fc3=nn.Linear(84, classes),
        )
    )


def _alexnet_cifar(channels: int, classes: int) -> nn.Module:
    """AlexNet for 32x32 images: torchvision's with smaller kernels, sized as in icpm/pytorch-cifar10.

    Without its Dropout, so that hybrid training equals training on one machine.
    """
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(channels, 64, kernel_size=3, stride=2, padding=1),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(64, 192, kernel_size=3, padding=1),
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(2),
            conv3=nn.Conv2d(192, 384, kernel_size=3, padding=1),
            relu3=nn.ReLU(),
            conv4=nn.Conv2d(384, 256, kernel_size=3, padding=1),
            relu4=nn.ReLU(),
            conv5=nn.Conv2d(256, 256, kernel_size=3, padding=1),
            relu5=nn.ReLU(),
            pool3=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            fc1=nn.Linear(256 * 2 * 2, 4096),
            relu6=nn.ReLU(),
            fc2=nn.Linear(4096, 4096),
            relu7=nn.ReLU(),
            fc3=nn.Linear(4096, classes),
        )
    )


OWN_MODELS: dict[str, Callable[[int, int], nn.Module]] = {"lenet5": _lenet5, "alexnet-cifar": _alexnet_cifar}
