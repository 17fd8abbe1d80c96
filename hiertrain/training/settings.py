"""What is trained, from what a user says of it and from the data set."""

from pathlib import Path

from hiertrain.files import parse
from hiertrain.values import InputError
from hiertrain.workload.datasets import Dataset
from hiertrain.workload.sample_order import iterations_per_epoch
from hiertrain.workload.spec import ModelSettings, OptimizerSettings, Training


def training_settings(
    model: ModelSettings,
    dataset: Dataset,
    batch_size: int,
    *,
    iterations: int | None = None,
    optimizer: OptimizerSettings | None = None,
    seed: int = 0,
    snapshot_every: int | None = None,
    data_folder: Path | None = None,
) -> Training:
    """What to train. By default one epoch; with one snapshot at the end. Raises InputError when they do not fit."""
    if model.sample_shape not in (None, dataset.sample_shape):
        raise InputError(
            f"model {model.name} takes samples {model.sample_shape}, {dataset.name} has {dataset.sample_shape}"
        )
    epoch = iterations_per_epoch(len(dataset.train_labels), batch_size)
    wanted = epoch if iterations is None else iterations
    content = {
        "model": {**dict(model), "sample_shape": dataset.sample_shape, "classes": dataset.classes},
        "dataset": dataset.name,
        "data_folder": None if data_folder is None else str(data_folder),
        "batch_size": batch_size,
        "optimizer": dict(optimizer or OptimizerSettings()),
        "seed": seed,
        "iterations": wanted,
        "snapshot_every": wanted if snapshot_every is None else snapshot_every,
    }
    return parse(Training, content, "training")
