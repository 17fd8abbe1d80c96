"""What a training run left behind: losses, weights, and its spans on one clock. Times in seconds.

However long it is, what it leaves in memory is small: a few numbers per iteration, the spans of a bounded number of
them, and no weights.
"""

import os
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from hiertrain.control.answers import ClockReading, Iteration
from hiertrain.program.actions import Program
from hiertrain.program.simulator import receipts
from hiertrain.program.timeline import Span, Timeline
from hiertrain.values import InputError

AWAITED_S = 2e-4  # a receive that takes so long had to wait: otherwise the message was there
MOST_SPANS = 1000  # iterations of which a run keeps the spans


class Times(NamedTuple):
    """Seconds per iteration of one plan or program."""

    predicted_s: float
    observed_s: float  # measured or emulated; the median


class Snapshots(Mapping[int, bytes]):
    """Packed weights by the number of iterations done, in a temporary file without a name, which ends with this."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed when nothing refers to this any more
        weakref.finalize(self, self._file.close)
        self._places: dict[int, tuple[int, int]] = {}  # offset and size

    def keep(self, iteration: int, packed: bytes) -> None:
        """Write the weights after ``iteration`` iterations."""
        self._places[iteration] = self._file.seek(0, os.SEEK_END), self._file.write(packed)

    def __getitem__(self, iteration: int) -> bytes:
        offset, size = self._places[iteration]
        self._file.seek(offset)
        return self._file.read(size)

    def __iter__(self) -> Iterator[int]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def keep_iteration(done: list[Iteration], iteration: Iteration) -> None:
    """Append what a worker reports, and keep no more spans than of ``MOST_SPANS`` iterations and the last one.

    Of more iterations it is every second one that keeps them, then every fourth, and so on; the same on all workers.
    """
    done.append(iteration)
    stride = _stride(len(done))
    passed = range(len(done) - 1) if stride > _stride(len(done) - 1) else range(max(0, len(done) - 2), len(done) - 1)
    for number in passed:
        if number % stride and done[number].spans:
            done[number] = done[number].model_copy(update={"spans": ()})


def steady(iteration_s: Sequence[float]) -> Sequence[float]:
    """The times of the iterations after the first, which warms up; of a single one, its own."""
    return iteration_s[1:] or iteration_s


def _stride(iterations: int) -> int:
    """The least power of two of which ``iterations`` has at most ``MOST_SPANS`` multiples."""
    return 1 << (max(0, iterations - 1) // MOST_SPANS).bit_length()


def was_awaited(receipt: Span) -> bool:
    """Whether the receiver was waiting when the message came, so that the receive's end is its arrival."""
    return receipt.end_s - receipt.start_s > AWAITED_S


@dataclass(frozen=True)
class TrainingRun:
    """What was completed of a training. Shapes: I iterations, those that every worker has completed.

    Spans of different hosts are put on the clock of the group's first member: each worker has compared its own with
    that before the first and after the last iteration, and clocks drift evenly in between.
    """

    program: Program
    done: Mapping[str, Sequence[Iteration]]
    clocks: Mapping[str, Sequence[ClockReading]]
    snapshots: Mapping[int, bytes]  # the root's packed weights, by the number of iterations done

    @cached_property
    def iterations(self) -> int:
        """I: how many iterations every worker has completed."""
        return min(map(len, self.done.values()))

    @cached_property
    def losses(self) -> tuple[float, ...]:
        """The mean loss of each mini-batch; shape (I,)."""
        return tuple(sum(parts) for parts in zip(*([i.loss for i in own] for own in self.done.values()), strict=False))

    @cached_property
    def iteration_s(self) -> tuple[float, ...]:
        """Seconds per iteration, from its first worker's start to its last worker's end; shape (I,)."""
        return tuple((self._ended_s.max(axis=0) - self._started_s.min(axis=0)).tolist())

    @cached_property
    def elapsed_s(self) -> tuple[float, ...]:
        """Seconds from the first iteration's start to the end of each iteration; shape (I,)."""
        return tuple((self._ended_s.max(axis=0) - self._started_s[:, :1].min()).tolist())

    @property
    def late_share(self) -> float:
        """By how much the paced actions of a worker missed their deadlines, the most of all, as a share of the time.

        0 where the machine keeps up.
        """
        late_s = (sum(iteration.late_s for iteration in own[: self.iterations]) for own in self.done.values())
        return max(late_s) / sum(self.iteration_s)

    @property
    def steady_s(self) -> tuple[float, ...]:
        """The ``steady`` ones of the times of its iterations."""
        return tuple(steady(self.iteration_s))

    @property
    def clock_error_s(self) -> float:
        """The most by which spans of two workers may be shifted against each other."""
        return max((reading.error_s for readings in self.clocks.values() for reading in readings), default=0.0)

    @property
    def typical(self) -> int:
        """The iteration, from 0, whose time is the median of all with spans; of an even number of these, the longer."""
        return sorted(self.with_spans, key=lambda iteration: self.iteration_s[iteration])[len(self.with_spans) // 2]

    @cached_property
    def with_spans(self) -> tuple[int, ...]:
        """The iterations, from 0, whose spans were kept: see ``keep_iteration``."""
        return tuple(i for i in range(self.iterations) if all(own[i].spans for own in self.done.values()))

    def timeline(self, iteration: int) -> Timeline:
        """The spans of one iteration, on one clock; it starts with its first worker.

        A send ends when its receiver, waiting for it, had it. The arrival of a message that came before its receiver
        asked for it is known of an emulated link only; on a real one, such a send has no length. Raises InputError for
        an iteration that is not ``with_spans``.
        """
        if iteration not in self.with_spans:
            raise InputError(f"iteration {iteration}: its spans were not kept, only those of {MOST_SPANS} and the last")
        start_s = self._started_s[:, iteration].min()
        spans = {}
        for name, own in self.done.items():
            times_s = (self._on_one_clock(name, np.array(own[iteration].spans)) - start_s).tolist()
            timed = zip(self.program.actions[name], times_s, strict=True)
            spans |= {
                (name, position): Span(name, position, action, *times) for position, (action, times) in enumerate(timed)
            }
        for send, receipt in receipts(self.program).items():
            if was_awaited(spans[receipt]):
                end_s = max(spans[send].start_s, spans[receipt].end_s)
                spans[send] = replace(spans[send], end_s=end_s)
        return Timeline(tuple(spans.values()))

    def summary(self) -> dict[str, object]:
        """What a record keeps of the run."""
        return {
            "program": self.program,
            "iterations": self.iterations,
            "iteration_s": self.iteration_s,
            "losses": self.losses,
            "clock_error_s": self.clock_error_s,
        }

    @cached_property
    def _started_s(self) -> np.ndarray:
        """Shape (workers, I), on one clock."""
        return self._per_worker({name: [i.started_s for i in own] for name, own in self.done.items()})

    @cached_property
    def _ended_s(self) -> np.ndarray:
        return self._per_worker({name: [i.ended_s for i in own] for name, own in self.done.items()})

    def _per_worker(self, times_s: Mapping[str, Sequence[float]]) -> np.ndarray:
        return np.array([self._on_one_clock(name, own[: self.iterations]) for name, own in times_s.items()])

    def _on_one_clock(self, name: str, times_s: Sequence[float] | np.ndarray) -> np.ndarray:
        """A worker's own times as the first member's clock shows them."""
        own_s, readings = np.asarray(times_s), self.clocks[name]
        if not readings:  # it ended before its clock was read
            return own_s
        return own_s - np.interp(own_s, [r.at_s for r in readings], [r.offset_s for r in readings])
