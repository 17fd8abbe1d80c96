"""A trained model as files that outlive the workbench: ``model.safetensors``, and ``model.json`` beside it.

The first holds what the model's own ``state_dict`` holds, under its names and in its shapes, buffers too, so that the
plain module loads it with ``load_state_dict(strict=True)`` (but for torchvision's MNASNet, whose loading also wants the
``_metadata`` that only a pickled ``state_dict`` has). A tensor with two names (tied weights) is there twice, since
the format knows no sharing. The second says what was trained, and how.
"""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from hiertrain import files
from hiertrain.values import InputError, PositiveCount, Value
from hiertrain.workload.architectures import build_model
from hiertrain.workload.chain_model import ChainModel
from hiertrain.workload.spec import Training

WEIGHTS, SETTINGS_SUFFIX = "model.safetensors", ".json"  # the name in the folder of a training


class Saved(Value):
    """How far a saved model is: kept in the file of its weights, so that the two cannot part."""

    iterations: PositiveCount
    statistics: bool  # whether BatchNorm's running statistics, if any, are of training samples; if not, initial ones


def save_model(
    model: ChainModel, training: Training, path: Path, iterations: int | None = None, statistics: bool = True
) -> Path:
    """Write the weights to ``path`` and the settings beside it; return ``path``.

    Each appears whole or not at all. ``iterations``: how many are done, if not all. ``statistics``: whether those of
    BatchNorm are of training samples. Raises InputError when they cannot be written.
    """
    saved = Saved(
        iterations=training.iterations if iterations is None else iterations,
        statistics=statistics or not has_statistics(model),
    )
    # Where the data was belongs to the machine, not to the model.
    files.save(training.model_copy(update={"data_folder": None}), path.with_suffix(SETTINGS_SUFFIX))
    tensors = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in model.module_state.items()}
    files.write_bytes(path, save(tensors, {"format": "pt", "hiertrain": saved.model_dump_json()}))
    return path


def load_model(path: Path) -> tuple[ChainModel, Training, Saved]:
    """A model from its folder or the file of its weights. Raises InputError for whatever does not belong there."""
    weights = weights_in(path)
    tensors, saved = _read(weights)
    training = files.load(Training, weights.with_suffix(SETTINGS_SUFFIX))
    model = build_model(**dict(training.model))
    wanted = model.module_state
    for name in sorted(wanted.keys() ^ tensors.keys()):
        has, lacks = (training.model.name, weights) if name in wanted else (weights, training.model.name)
        raise InputError(f"{weights}: does not fit {training.model.name}: {name!r} is in {has}, not in {lacks}")
    for name, tensor in tensors.items():
        if (tensor.shape, tensor.dtype) != (wanted[name].shape, wanted[name].dtype):
            found, own = _described(tensor), _described(wanted[name])
            raise InputError(f"{weights}: does not fit {training.model.name}: {name!r} is {found}; must be {own}")
    with torch.no_grad():
        for name, tensor in tensors.items():
            wanted[name].copy_(tensor)
    return model, training, saved


def weights_in(path: Path) -> Path:
    """The file of the weights in the folder of a training, or the given file itself."""
    return path / WEIGHTS if path.is_dir() else path


def has_statistics(model: ChainModel) -> bool:
    """Whether parts of the model keep running statistics."""
    return any(isinstance(part, _BatchNorm) and part.track_running_stats for part in model.modules())


def _read(path: Path) -> tuple[dict[str, Tensor], Saved]:
    """The tensors of a file, and what is said about them."""
    if not path.is_file():
        raise InputError(f"{path}: must be a file of safetensors, and is none")
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
            about = file.metadata() or {}
        return tensors, files.parse(Saved, json.loads(about["hiertrain"]), str(path))
    except KeyError:
        raise InputError(f"{path}: does not say how far it was trained; must be written by hiertrain") from None
    except OSError as error:
        raise InputError(f"{path}: {error}") from None
    except (SafetensorError, ValueError) as error:
        raise InputError(f"{path}: not a file of safetensors: {' '.join(str(error).split())}") from None


def _described(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
