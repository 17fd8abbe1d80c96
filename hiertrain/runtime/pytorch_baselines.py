"""How the same training is done with what one would otherwise use: what the runtime is measured against.

Programs written as PyTorch's documentation shows them: a plain loop, ``DistributedDataParallel`` and
``torch.distributed.pipelining``. They run in the same worker processes, with the same threads, over the same process
group (Gloo), and give the same losses and weights. What differs by design, and is part of a comparison:

- ``plain``: nothing; both sides take their mini-batch from memory.
- ``ddp``: every worker has all the data and takes its rows from it, where a plan's data holder sends raw samples in
  every iteration; every worker steps an optimizer, where a plan's root steps the only one and sends weights.
- ``ddp-scatter``: the same, but the data holder sends the raw samples, as in a plan.
- ``gpipe``, ``1f1b``, ``zero-bubble``: the schedules of torch's pipelining. Every stage steps the optimizer of its own
  layers and keeps its weights, where a plan under the paper's execution, without owners, sends the gradients of the
  layers below a cut up to the root and their weights down.
"""

import time
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe, ScheduleInterleavedZeroBubble
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from hiertrain.control.answers import ClockReading, Iteration
from hiertrain.control.jobs import PIPELINES, Rival, RivalJob
from hiertrain.runtime.transport import Transport
from hiertrain.workload.architectures import build_model
from hiertrain.workload.chain_model import ChainModel, summed_loss
from hiertrain.workload.datasets import load_dataset
from hiertrain.workload.optimizers import build_optimizer
from hiertrain.workload.sample_order import batch_indices
from hiertrain.workload.spec import Training
from hiertrain.workload.weights import pack_weights

# From the rows of a mini-batch in the data set, int64, shape (B,), to this worker's share of its mean loss.
Step = Callable[[Tensor], float]


def run_rival(name: str, job: RivalJob, report: Callable[[Iteration | ClockReading], None]) -> bytes | None:
    """Train as worker ``name``; the last member of the group returns the packed weights (``pack_weights``).

    ``report`` gets every iteration, without spans. The meeting of the workers and the labels come before the first.
    """
    training, plan, members = job.training, job.plan, job.group.members
    rank = members.index(name)
    reads_samples = job.rival.way == "ddp" or name == plan.data_holder
    dataset = load_dataset(training.dataset, training.data_folder) if reads_samples else None
    samples = dataset.train_samples if dataset else None
    model = build_model(**dict(training.model)).train()
    torch.manual_seed(training.seed + rank)  # of Dropout
    with Transport(name, job.group, {}) as transport:
        labels = transport.broadcast(
            plan.data_holder, dataset.train_labels if dataset and name == plan.data_holder else None
        )
        cuts = [0, *(plan.workers[member].depth for member in members)]
        report(transport.read_clock())
        _train(job, model, rank, cuts, labels, samples, report)
        report(transport.read_clock())
        if job.rival.way in PIPELINES:
            _gather_weights(model, cuts, rank)
        transport.barrier()  # whoever left earlier would break the connections of those who still receive
    return pack_weights(model) if name == members[-1] else None


def _train(
    job: RivalJob,
    model: ChainModel,
    rank: int,
    cuts: Sequence[int],
    labels: Tensor,
    samples: Tensor | None,
    report: Callable[[Iteration], None],
) -> None:
    """A function of its own, so that whatever holds the process group is gone before the group is left.

    DDP and stages hold it. Where they outlive it, its end is theirs: the main thread then waits for Gloo's threads
    while it has Python's lock, and one of these may be waiting for that lock.
    """
    step = _build_step(job, model, rank, cuts, labels, samples)
    for iteration in range(job.training.iterations):
        started_s = time.monotonic()
        loss = step(batch_indices(len(labels), job.training.batch_size, job.training.seed, iteration))
        report(Iteration(loss=loss, started_s=started_s, ended_s=time.monotonic(), spans=(), late_s=0.0))


def _build_step(
    job: RivalJob, model: ChainModel, rank: int, cuts: Sequence[int], labels: Tensor, samples: Tensor | None
) -> Step:
    plan, members = job.plan, job.group.members
    match job.rival.way:
        case "plain":
            assert samples is not None
            return plain_step(model, job.training, labels, samples)
        case "gpipe" | "1f1b" | "zero-bubble":
            return pipelining_step(model, job.training, job.rival, cuts, rank, labels, samples)
        case _:
            shares = [plan.own_rows(member) for member in members]
            holder = members.index(plan.data_holder) if job.rival.way == "ddp-scatter" else None
            return ddp_step(model, job.training, shares, rank, labels, samples, holder)


def plain_step(model: ChainModel, training: Training, labels: Tensor, samples: Tensor) -> Step:
    """One process, as in https://docs.pytorch.org/tutorials/beginner/basics/optimization_tutorial.html."""
    optimizer = build_optimizer(training.optimizer, list(model.parameters()))

    def step(rows: Tensor) -> float:
        optimizer.zero_grad()
        loss = cross_entropy(model(samples[rows]), labels[rows])
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def ddp_step(
    model: ChainModel,
    training: Training,
    shares: Sequence[range],
    rank: int,
    labels: Tensor,
    samples: Tensor | None,
    holder: int | None,
) -> Step:
    """Data parallelism, as in https://docs.pytorch.org/docs/stable/notes/ddp.html.

    ``shares``: the rows of the mini-batch of each rank, which need not be equally many. ``holder``: the rank that
    sends the others their raw samples; None where every rank has ``samples`` itself.
    """
    replica = DistributedDataParallel(model)
    optimizer = build_optimizer(training.optimizer, list(model.parameters()))

    def step(rows: Tensor) -> float:
        own = rows[shares[rank].start : shares[rank].stop]
        if holder is None:
            assert samples is not None
            batch = samples[own]
        else:
            batch = _scatter(samples, rows, shares, rank, holder, model.sample_shape)
        optimizer.zero_grad()
        loss = summed_loss(replica(batch), labels[own]) / training.batch_size
        (loss * len(shares)).backward()  # DDP takes the mean of the ranks' gradients, not their sum
        optimizer.step()
        return loss.item()

    return step


def _scatter(
    samples: Tensor | None,
    rows: Tensor,
    shares: Sequence[range],
    rank: int,
    holder: int,
    sample_shape: tuple[int, int, int],
) -> Tensor:
    """This rank's raw samples. Not by ``dist.scatter``, which takes equal shares only."""
    if samples is None:
        batch = torch.empty((len(shares[rank]), *sample_shape), dtype=torch.uint8)
        dist.recv(batch, holder)
        return batch
    parts = [samples[rows[share.start : share.stop]] for share in shares]
    sends = [dist.isend(part, peer) for peer, part in enumerate(parts) if peer != holder]
    for send in sends:
        assert send is not None  # only for ranks outside the group
        send.wait()
    return parts[rank]


def pipelining_step(
    model: ChainModel,
    training: Training,
    rival: Rival,
    cuts: Sequence[int],
    rank: int,
    labels: Tensor,
    samples: Tensor | None,
) -> Step:
    """A pipeline, as in https://docs.pytorch.org/docs/stable/distributed.pipelining.html.

    Rank r computes layers ``cuts[r]`` + 1 to ``cuts[r + 1]``; the first has ``samples``. The shapes are given, so that
    the stages need not ask each other for them, which they would do by pickle.
    """
    layers = _stage_layers(model, cuts, rank)
    last = rank == len(cuts) - 2
    shapes = [model.sample_shape, *model.output_shapes]

    def example(depth: int) -> Tensor:
        shape = (training.batch_size // rival.micro_batches, *shapes[depth])
        return torch.empty(shape, dtype=torch.float32 if depth else torch.uint8, device="meta", requires_grad=depth > 0)

    stage = PipelineStage(
        layers,
        rank,
        len(cuts) - 1,
        torch.device("cpu"),
        input_args=example(cuts[rank]),
        output_args=example(min(cuts[rank + 1], len(model.layers))),
    )
    schedule = _schedule(rival, stage)
    optimizer = build_optimizer(training.optimizer, list(layers.parameters()))
    losses: list[Tensor] = []

    def step(rows: Tensor) -> float:
        optimizer.zero_grad()
        inputs = () if samples is None else (samples[rows],)
        targets = {"target": labels[rows], "losses": losses} if last else {}
        schedule.step(*inputs, **targets, return_outputs=False)
        optimizer.step()
        return torch.stack(losses).mean().item() if last else 0.0

    return step


def _schedule(rival: Rival, stage: PipelineStage) -> ScheduleGPipe | Schedule1F1B | ScheduleInterleavedZeroBubble:
    match rival.way:
        case "gpipe":
            return ScheduleGPipe(stage, rival.micro_batches, loss_fn=cross_entropy)
        case "1f1b":
            return Schedule1F1B(stage, rival.micro_batches, loss_fn=cross_entropy)
        case _:
            return ScheduleInterleavedZeroBubble([stage], rival.micro_batches, loss_fn=cross_entropy)


def _stage_layers(model: ChainModel, cuts: Sequence[int], rank: int) -> nn.Sequential:
    return nn.Sequential(*model.layers[cuts[rank] : cuts[rank + 1]])


def _gather_weights(model: ChainModel, cuts: Sequence[int], rank: int) -> None:
    """Bring the weights of all stages into the last one's model."""
    last = len(cuts) - 2
    if rank < last:
        dist.send(parameters_to_vector(_stage_layers(model, cuts, rank).parameters()).detach(), last)
        return
    for source in range(last):
        parameters = list(_stage_layers(model, cuts, source).parameters())
        received = torch.empty_like(parameters_to_vector(parameters))
        dist.recv(received, source)
        vector_to_parameters(received, parameters)
