"""What a testbed asks of its workers and what they answer: plain validated JSON, no pickle.

A control message is one line of JSON; if it says ``payload_bytes``, that many raw bytes follow the line. A long payload
travels in parts, so that signs of life pass between them, and each of them is one. Requests go to a worker's standard
input, answers come from its standard output, so that the same code serves a local process, a network namespace and an
SSH session, and a worker notices at once when whoever started it is gone.
"""

import json
from typing import IO, Annotated, Literal

from pydantic import Field, model_validator

from hiertrain.problem.execution import Execution
from hiertrain.problem.network import Link
from hiertrain.problem.plan import Plan
from hiertrain.problem.profile import Accelerator, WorkerProfile
from hiertrain.values import (
    MOST_WORKERS,
    BatchSize,
    Bytes,
    Count,
    MemoryBytes,
    Name,
    Port,
    PositiveCount,
    PositiveSeconds,
    Seconds,
    Threads,
    Value,
)
from hiertrain.workload.spec import ModelSettings, OptimizerSettings, Training

Rival = Literal["plain", "ddp", "ddp-scatter", "pipelining"]  # see the module ``rivals``
BEAT_S = 0.5  # between two signs of life of a worker that has a job
PART_BYTES = 2**16  # of a payload; takes 0.3 s at 1.5 Mbit/s


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
    """Train by a plan. ``links`` are the emulated links from this worker, ``pace`` its emulated speed."""

    kind: Literal["train"] = "train"
    group: Group
    links: dict[Name, Link] = Field(default_factory=dict)
    pace: WorkerProfile | None = None  # None: as fast as the machine is
    threads: Threads
    accelerator: Accelerator = "cpu"
    training: Training
    plan: Plan
    execution: Execution


class RivalJob(Value):
    """Train as one would without this package, where ``plan`` says who has which samples and layers."""

    kind: Literal["rival"] = "rival"
    group: Group
    rival: Rival
    threads: Threads
    training: Training
    plan: Plan


class Machine(Value):
    """What a worker that is started by hand computes with."""

    threads: Threads
    accelerator: Accelerator = "cpu"


class Jobs(Value):
    """A training whose workers are started by hand, nothing emulated: the content of ``jobs.json``, one for all."""

    training: Training
    plan: Plan
    execution: Execution
    workers: dict[Name, Machine] = Field(
        max_length=MOST_WORKERS
    )  # the plan's participants; a worker's rank is its place here
    tag: Name  # see Group; random, so that nobody else on the network has set its keys in the store beforehand
    predicted_s: PositiveSeconds  # per iteration, to be shown beside what is measured
    timeout_s: PositiveSeconds  # see Group
    silence_s: PositiveSeconds

    @model_validator(mode="after")
    def _workers_are_the_participants(self) -> "Jobs":
        if tuple(self.workers) != self.plan.participants:
            raise ValueError(
                f"workers {', '.join(self.workers)}: must be {', '.join(self.plan.participants)}, as in the plan"
            )
        return self

    def job(self, name: str, store_address: str, store_port: int) -> TrainJob:
        """The part of worker ``name``, in the group that meets at this store."""
        group = Group(
            members=tuple(self.workers),
            tag=self.tag,
            store_address=store_address,
            store_port=store_port,
            timeout_s=self.timeout_s,
            silence_s=self.silence_s,
        )
        return TrainJob(
            group=group,
            threads=self.workers[name].threads,
            accelerator=self.workers[name].accelerator,
            training=self.training,
            plan=self.plan,
            execution=self.execution,
        )


Job = Annotated[ProfileJob | ProbeJob | TrainJob | RivalJob, Field(discriminator="kind")]


class Request(Value):
    """One line to a worker."""

    job: Job


class Ready(Value):
    """A worker's first answer. ``store_port`` is that of the rendezvous store, on the worker that serves it."""

    kind: Literal["ready"] = "ready"
    store_port: Port | None = None


class Progress(Value):
    """How far a job has come; ``note`` is what a progress bar shows beside it."""

    kind: Literal["progress"] = "progress"
    done: Count
    total: Count
    note: str = ""


class Failure(Value):
    """The job failed; the message is one line, the traceback goes to the log."""

    kind: Literal["failure"] = "failure"
    error: str
    traceback: str


class Profiled(Value):
    """The answer to a ProfileJob."""

    kind: Literal["profiled"] = "profiled"
    profile: WorkerProfile


class Probed(Value):
    """The answer to a ProbeJob, from the sender; the other member answers without timings.

    The times of a long message, of its half and of one byte there, each with one byte back and after a pause.
    """

    kind: Literal["probed"] = "probed"
    message_bytes: Bytes = 0
    long_s: tuple[PositiveSeconds, ...] = ()
    half_s: tuple[PositiveSeconds, ...] = ()
    short_s: tuple[PositiveSeconds, ...] = ()


class Snapshot(Value):
    """The root's weights after ``iteration`` iterations, as payload (see ``runtime.pack_weights``)."""

    kind: Literal["snapshot"] = "snapshot"
    iteration: PositiveCount


class ClockReading(Value):
    """A worker's monotonic clock minus that of the group's first member, when the worker's own showed ``at_s``.

    From the quickest of several exchanges; ``error_s`` is half of its round trip, the most that it can be wrong.
    """

    at_s: float
    offset_s: float
    error_s: Seconds


class Iteration(Value):
    """One iteration on one worker; times on its monotonic clock, in seconds.

    It starts when all workers are ready: posting the receives and meeting the others before it do not count.
    """

    loss: float  # this worker's share of the mean loss; 0 where it computes no loss
    started_s: float
    ended_s: float
    spans: tuple[tuple[float, float], ...]  # start and end of every action of the worker's program
    late_s: Seconds  # by how much paced actions missed their deadlines


class Beat(Value):
    """A sign of life during a job, every ``BEAT_S``: where the worker is, and what it finished since the last one."""

    kind: Literal["beat"] = "beat"
    where: str = ""  # iteration, position in the program and action, for people
    iterations: tuple[Iteration, ...] = ()
    clock: tuple[ClockReading, ...] = ()


class Report(Value):
    """What a worker that was started by hand leaves behind: the content of ``<worker>.json``."""

    worker: Name
    memory_kept: bool  # see the module ``memory``
    error: str | None  # None: all iterations are done
    iterations: tuple[Iteration, ...]
    clock: tuple[ClockReading, ...]
    alarms: tuple[str, ...]  # as they were shown: see the module ``alarms``


class Trained(Value):
    """The answer to a TrainJob or a RivalJob: all iterations are done and have been reported by beats."""

    kind: Literal["trained"] = "trained"


Answer = Annotated[
    Ready | Progress | Beat | Failure | Profiled | Probed | Snapshot | Trained, Field(discriminator="kind")
]


class Reply(Value):
    """One line from a worker."""

    answer: Answer
    payload_bytes: Bytes = 0
    more: bool = False  # of the payload follows, in a later line with the same answer


def write_message(stream: IO[bytes], message: Request | Reply, payload: bytes = b"") -> None:
    """Write one control message, flushed."""
    stream.write(message.model_dump_json().encode() + b"\n")
    stream.write(payload)
    stream.flush()


def read_request(stream: IO[bytes]) -> Request | None:
    """The next request, or None at the end of the stream."""
    line = stream.readline()
    return Request.model_validate(json.loads(line)) if line else None


def read_reply(stream: IO[bytes]) -> tuple[Reply, bytes] | None:
    """The next line and its part of a payload, or None at the end of the stream."""
    line = stream.readline()
    if not line:
        return None
    reply = Reply.model_validate(json.loads(line))
    payload = stream.read(reply.payload_bytes)
    if len(payload) < reply.payload_bytes:
        return None
    return reply, payload
