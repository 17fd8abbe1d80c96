"""What a worker answers: that it is ready, signs of life, measurements, snapshots, and how a job ended."""

from typing import Annotated, Literal

from pydantic import Field

from hiertrain.problem.profile import WorkerProfile
from hiertrain.values import Bytes, Count, Layers, Name, Port, PositiveCount, PositiveSeconds, Seconds, Value

BEAT_S = 0.5  # between two signs of life of a worker that has a job


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
    """Weights after ``iteration`` iterations, as payload (see ``workload.weights.pack_weights``).

    Each worker that updates answers its own layers.
    """

    kind: Literal["snapshot"] = "snapshot"
    iteration: PositiveCount
    first: Layers = 1  # of these layers


class ClockReading(Value):
    """A worker's monotonic clock minus that of the group's first member, when the worker's own showed ``at_s``.

    From the quickest of several exchanges; ``error_s`` is half of its round trip, the most that it can be wrong.
    """

    at_s: float
    offset_s: float
    error_s: Seconds


class Iteration(Value):
    """One iteration on one worker; times on its monotonic clock, in seconds.

    It starts when all workers are ready: posting the receives and meeting the others before it do not count. Of
    overlapped iterations one starts on a worker where the one before has ended there, and may end before what it sent
    has arrived.
    """

    loss: float  # this worker's share of the mean loss; 0 where it computes no loss
    started_s: float
    ended_s: float
    spans: tuple[tuple[float, float], ...]  # start and end of every action; the last ones send nothing ahead
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
    memory_kept: bool  # see ``control.memory``
    memory_bytes: Bytes | None  # that the iterations took at most; None: they are not done, or nobody can tell
    error: str | None  # None: all iterations are done
    iterations: tuple[Iteration, ...]
    clock: tuple[ClockReading, ...]
    alarms: tuple[str, ...]  # as they were shown: see ``results.alarms``


class Trained(Value):
    """The answer to a TrainJob or a RivalJob: all iterations are done and have been reported by beats."""

    kind: Literal["trained"] = "trained"
    memory_bytes: Bytes | None = None  # what the iterations of a TrainJob took at most; None: nobody can tell


Answer = Annotated[
    Ready | Progress | Beat | Failure | Profiled | Probed | Snapshot | Trained, Field(discriminator="kind")
]


def in_one_line(error: Exception) -> str:
    """The error as the line that people get."""
    return f"{type(error).__name__}: {error}".splitlines()[0]
