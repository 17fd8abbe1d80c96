"""One worker's part of a training."""

from collections.abc import Callable, Mapping
from functools import partial

import torch

from hiertrain.control import memory
from hiertrain.control.answers import Snapshot
from hiertrain.control.jobs import TrainJob
from hiertrain.runtime.heartbeat import Pulse
from hiertrain.runtime.runner import TAGS, MiniBatches, Runner, synchronize
from hiertrain.runtime.transport import Transport
from hiertrain.workload.architectures import build_model
from hiertrain.workload.chain_model import ChainModel
from hiertrain.workload.compression import compress
from hiertrain.workload.datasets import load_dataset
from hiertrain.workload.sample_order import batch_indices
from hiertrain.workload.weights import give_up_weights, pack_weights, parameters_of, weights_bytes

GATHERED = len(TAGS)  # a tag that no action's message has
PART = 2**16  # numbers that travel at once, since each message has to arrive in time


def train(name: str, job: TrainJob, put: Callable[[Snapshot, bytes], None], pulse: Pulse) -> int | None:
    """Train by the job's program. Each worker reports its iterations, and the weights that it updates.

    The result is the memory in bytes that the iterations took at most: the process's resident set above what it was
    before them, without the worker's own weights; what is free is given back first. None where nobody can tell.
    """
    torch.set_num_threads(job.threads)
    training, program = job.training, job.program
    device = torch.device(job.accelerator)
    model = build_model(**dict(training.model)).to(device)
    synchronize(device)  # before the group meets: a first use of an accelerator may take longer than a message may
    dataset = load_dataset(training.dataset, training.data_folder) if name == program.data_holder else None
    compressed = compress(dataset.train_samples) if dataset and any(a.compressed for a in program.actions) else []
    if name != next(iter(job.owners), None):  # who gathers the weights of others has all layers
        give_up_weights(model, program.layers)
    before, taken = memory.resident_bytes(), None
    torch.manual_seed(training.seed + job.group.members.index(name))  # of Dropout: another stream on each worker
    with Transport(name, job.group, job.links) as transport:
        runner = Runner(program, model, transport, training.optimizer, job.pace, device)
        pulse.where = lambda: runner.where
        # Labels and the sizes of compressed samples, if these are sent, reach all workers once, before the first
        # iteration; they are not part of its time.
        labels = transport.broadcast(program.data_holder, dataset.train_labels if dataset else None)
        sizes = torch.tensor([len(sample) for sample in compressed], dtype=torch.int64)
        sizes = transport.broadcast(program.data_holder, sizes if dataset else None)
        pulse.add(transport.read_clock())
        order = partial(batch_indices, len(labels), program.batch_size, training.seed)
        samples = dataset.train_samples if dataset else None
        batches = MiniBatches(training.iterations, order, labels, samples, compressed, sizes)
        for done, reports in enumerate(runner.train(batches), start=1):
            for report in reports:
                pulse.add(report)
            if done == training.iterations:
                pulse.add(transport.read_clock())
                taken = None if before is None else memory.peak_bytes() - before + weights_bytes(model)
            if not training.snapshot_due(done):
                continue
            if job.owners:
                gather_weights(name, job.owners, model, transport)
                if name == next(iter(job.owners)):
                    put(Snapshot(iteration=done), pack_weights(model))
            elif program.updated:
                put(Snapshot(iteration=done, first=program.updated.start), pack_weights(model, program.updated))
    return taken


def gather_weights(name: str, owners: Mapping[str, tuple[int, int]], model: ChainModel, transport: Transport) -> None:
    """Bring the weights of all owners into the first one's model: see ``TrainJob.owners``. Others do nothing."""
    keeper, *others = owners
    for owner in others if name == keeper else [name] if name in others else []:
        first, last = owners[owner]
        for parameter in parameters_of(model, range(first, last + 1)):
            values = parameter.detach().flatten().cpu()
            for part in values.split(PART):
                if name == keeper:
                    transport.receive(owner, part, GATHERED).wait()
                else:
                    transport.send(keeper, part, GATHERED).wait()
            if name == keeper:
                parameter.data.copy_(values.view_as(parameter))
