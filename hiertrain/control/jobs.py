"""What a worker is asked to do: profile, probe a link, train."""

from typing import Annotated, Literal

from pydantic import Field

from hiertrain.problem.network import Link
from hiertrain.problem.plan import Plan
from hiertrain.problem.profile import Accelerator, WorkerProfile
from hiertrain.program.actions import WorkerProgram
from hiertrain.values import (
    BatchSize,
    Count,
    Layers,
    MemoryBytes,
    Name,
    Port,
    PositiveCount,
    PositiveSeconds,
    Threads,
    Value,
)
from hiertrain.workload.spec import ModelSettings, OptimizerSettings, Training

PIPELINES = ("gpipe", "1f1b", "zero-bubble")
Way = Literal["plain", "ddp", "ddp-scatter", "gpipe", "1f1b", "zero-bubble"]


class Rival(Value):
    """What one would train with otherwise: see ``runtime.pytorch_baselines``."""

    way: Way
    micro_batches: PositiveCount = 1  # of a pipeline

    def __str__(self) -> str:
        parts = f"{self.micro_batches} micro-batch{'es' if self.micro_batches > 1 else ''}"
        return f"{self.way}, {parts}" if self.way in PIPELINES else self.way


class Group(Value):
    """The workers that exchange tensors in one job; a worker's rank is its place in ``members``."""

    members: tuple[Name, ...]
    tag: str  # unique per job: jobs of one session share the store
    store_address: str
    store_port: Port
    timeout_s: PositiveSeconds  # the longest that one message may take
    silence_s: PositiveSeconds  # a connection whose other end does not even acknowledge for so long is cut


class ProfileJob(Value):
    """Measure the layers of a model on this worker."""

    kind: Literal["profile"] = "profile"
    model: ModelSettings
    threads: Threads
    accelerator: Accelerator = "cpu"
    sample_counts: tuple[BatchSize, ...] = Field(min_length=1)
    repetitions: PositiveCount
    warm_up: Count
    time_limit_s: PositiveSeconds
    memory_limit_bytes: MemoryBytes | None = None
    optimizer: OptimizerSettings = OptimizerSettings()


class ProbeJob(Value):
    """Measure the link from the group's first member to its second; ``links`` are emulated, by receiver."""

    kind: Literal["probe"] = "probe"
    group: Group
    links: dict[Name, Link] = Field(default_factory=dict)
    repetitions: PositiveCount
    target_s: PositiveSeconds  # a long message is made long enough to take this long


class TrainJob(Value):
    """Train by a program. ``links`` are the emulated links from this worker, ``pace`` its emulated speed."""

    kind: Literal["train"] = "train"
    group: Group
    links: dict[Name, Link] = Field(default_factory=dict)
    pace: WorkerProfile | None = None  # None: as fast as the machine is
    threads: Threads
    accelerator: Accelerator = "cpu"
    training: Training
    program: WorkerProgram
    # By hand: the first and the last layer that each owner updates. Nobody else gathers snapshots, so the first owner
    # gets those of the others.
    owners: dict[Name, tuple[Layers, Layers]] = Field(default_factory=dict)


class RivalJob(Value):
    """Train as one would without this package, where ``plan`` says who has which samples and layers."""

    kind: Literal["rival"] = "rival"
    group: Group
    rival: Rival
    threads: Threads
    training: Training
    plan: Plan


Job = Annotated[ProfileJob | ProbeJob | TrainJob | RivalJob, Field(discriminator="kind")]
