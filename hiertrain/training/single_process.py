"""Single-process SGD: what every plan must equal, written as anybody would write it, without plan or program."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy
from tqdm.auto import trange

from hiertrain.training.run import Snapshots
from hiertrain.values import RunError
from hiertrain.workload.architectures import build_model
from hiertrain.workload.datasets import Dataset
from hiertrain.workload.optimizers import build_optimizer
from hiertrain.workload.sample_order import batch_indices
from hiertrain.workload.spec import Training
from hiertrain.workload.weights import pack_weights


@dataclass(frozen=True)
class ReferenceRun:
    """The loss of each mini-batch, and the packed weights by the number of iterations done."""

    losses: tuple[float, ...]
    snapshots: Mapping[int, bytes]


def train_on_one_process(training: Training, dataset: Dataset) -> ReferenceRun:
    """Train in this process, at its own speed: the same model, sample order and optimizer as every plan.

    Raises RunError when the loss is no longer finite.
    """
    model = build_model(**dict(training.model)).train()
    torch.manual_seed(training.seed)  # of Dropout
    optimizer = build_optimizer(training.optimizer, list(model.parameters()))
    losses, snapshots = [], Snapshots()
    for iteration in trange(training.iterations, desc="single process", unit="iteration", leave=False):
        rows = batch_indices(len(dataset.train_labels), training.batch_size, training.seed, iteration)
        optimizer.zero_grad()
        loss = cross_entropy(model(dataset.train_samples[rows]), dataset.train_labels[rows])
        if not torch.isfinite(loss):
            raise RunError(f"single process: the loss is {loss.item()} in iteration {iteration + 1}")
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        done = iteration + 1
        if training.snapshot_due(done):
            snapshots.keep(done, pack_weights(model))
    return ReferenceRun(tuple(losses), snapshots)
