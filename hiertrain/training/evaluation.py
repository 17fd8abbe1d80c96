"""The trained model, and how good it is."""

import torch
from torch.optim.swa_utils import update_bn

from hiertrain.workload.architectures import build_model
from hiertrain.workload.chain_model import ChainModel
from hiertrain.workload.datasets import Dataset
from hiertrain.workload.spec import Training
from hiertrain.workload.weights import unpack_weights

EVALUATION_BATCH = 500
STATISTICS_BATCHES = 10


def trained_model(training: Training, snapshot: bytes, dataset: Dataset) -> ChainModel:
    """The model with a snapshot's weights, and with ``estimate_statistics``."""
    model = build_model(**dict(training.model))
    unpack_weights(model, snapshot)
    estimate_statistics(model, dataset)
    return model


def estimate_statistics(model: ChainModel, dataset: Dataset) -> None:
    """Take BatchNorm's running statistics from training samples: a worker's are of its own samples and layers only."""
    update_bn(dataset.train_samples.split(EVALUATION_BATCH)[:STATISTICS_BATCHES], model)


@torch.no_grad()
def accuracy(model: ChainModel, dataset: Dataset) -> float:
    """The fraction of the test set that ``model`` classifies rightly."""
    model.eval()
    correct = 0
    for samples, labels in zip(
        dataset.test_samples.split(EVALUATION_BATCH), dataset.test_labels.split(EVALUATION_BATCH), strict=True
    ):
        correct += int((model(samples).argmax(1) == labels).sum())
    return correct / len(dataset.test_labels)
