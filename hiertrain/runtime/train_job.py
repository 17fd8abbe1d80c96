"""One worker's part of a training."""

from collections.abc import Callable

import torch

from hiertrain.control.answers import Snapshot
from hiertrain.control.jobs import TrainJob
from hiertrain.runtime.heartbeat import Pulse
from hiertrain.runtime.runner import Runner, synchronize
from hiertrain.runtime.transport import Transport
from hiertrain.workload.architectures import build_model
from hiertrain.workload.datasets import load_dataset
from hiertrain.workload.sample_order import batch_indices
from hiertrain.workload.weights import pack_weights


def train(name: str, job: TrainJob, put: Callable[[Snapshot, bytes], None], pulse: Pulse) -> None:
    """Train by the job's plan. Each worker reports its iterations, the root its weights."""
    torch.set_num_threads(job.threads)
    training, plan = job.training, job.plan
    device = torch.device(job.accelerator)
    model = build_model(**dict(training.model)).to(device)
    synchronize(device)  # before the group meets: a first use of an accelerator may take longer than a message may
    dataset = load_dataset(training.dataset, training.data_folder) if name == plan.data_holder else None
    torch.manual_seed(training.seed + job.group.members.index(name))  # of Dropout: another stream on each worker
    with Transport(name, job.group, job.links) as transport:
        runner = Runner(name, plan, job.execution, model, transport, training.optimizer, job.pace, device)
        pulse.where = lambda: runner.where
        # Labels reach the workers once, before the first iteration; they are not part of its time.
        labels = transport.broadcast(plan.data_holder, dataset.train_labels if dataset else None)
        pulse.add(transport.read_clock())
        for iteration in range(training.iterations):
            rows = batch_indices(len(labels), plan.batch_size, training.seed, iteration)
            pulse.add(runner.iterate(labels[rows], dataset.train_samples[rows] if dataset else None))
            if name == plan.root and training.snapshot_due(iteration + 1):
                put(Snapshot(iteration=iteration + 1), pack_weights(model))
        pulse.add(transport.read_clock())
