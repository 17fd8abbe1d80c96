"""What a training run left behind: losses, weights, and its spans on one clock. Times in seconds.

However long it is, what it leaves in memory is small: a few numbers per iteration, the spans of a bounded number of
them, and no weights.
"""

import os
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np

from hiertrain.control.answers import ClockReading, Iteration
from hiertrain.program.actions import MOST_AHEAD, Program
from hiertrain.program.simulator import receipts
from hiertrain.program.timeline import Span, Timeline
from hiertrain.values import InputError

AWAITED_S = 2e-4  # a receive that takes so long had to wait: otherwise the message was there
MOST_SPANS = 1000  # iterations of which a run keeps the spans
TOGETHER = 8  # consecutive ones of these: where iterations overlap, one is understood with its neighbours


class Times(NamedTuple):
    """Seconds per iteration of one plan or program."""

    predicted_s: float
    observed_s: float  # measured or emulated; the median


class Snapshots(Mapping[int, bytes]):
    """Packed weights by the number of iterations done, in a temporary file without a name, which ends with this.

    They may come in parts, of some layers each.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed when nothing refers to this any more
        weakref.finalize(self, self._file.close)
        self._places: dict[int, dict[int, tuple[int, int]]] = {}  # offset and size, by the first layer

    def keep(self, iteration: int, packed: bytes, first: int = 1) -> None:
        """Write the weights after ``iteration`` iterations; ``first``: of the layers that they are of."""
        place = self._file.seek(0, os.SEEK_END), self._file.write(packed)
        self._places.setdefault(iteration, {})[first] = place

    def __getitem__(self, iteration: int) -> bytes:
        return b"".join(self._read(*place) for _, place in sorted(self._places[iteration].items()))

    def _read(self, offset: int, size: int) -> bytes:
        self._file.seek(offset)
        return self._file.read(size)

    def __iter__(self) -> Iterator[int]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def keep_iteration(done: list[Iteration], iteration: Iteration) -> None:
    """Append what a worker reports, and keep no more spans than of ``MOST_SPANS`` iterations, ``TOGETHER`` by together.

    Of more iterations it is every second such block that keeps them, then every fourth, and so on; the same on all
    workers.
    """
    done.append(iteration)
    stride = _stride(len(done))
    for number in range(len(done)) if stride > _stride(len(done) - 1) else [len(done) - 1]:
        if number // TOGETHER % stride and done[number].spans:
            done[number] = done[number].model_copy(update={"spans": ()})


def _stride(iterations: int) -> int:
    """The least power of two that leaves at most ``MOST_SPANS``, if it is of blocks of so many that one is kept."""
    return 1 << (max(0, iterations - 1) // MOST_SPANS).bit_length()


def counting(iterations: int, overlapped: bool) -> range:
    """Which iterations, from 0, count: those in the steady state; none where there are too few.

    The first one warms up. Where they overlap, links are full of raw samples once it has ended; in the last ones no
    more are sent, which may make these shorter.
    """
    return range(1, max(1, iterations - MOST_AHEAD * overlapped))


def steady(iteration_s: Sequence[float], overlapped: bool) -> Sequence[float]:
    """The times of those of the iterations that count: see ``counting``."""
    counted = counting(len(iteration_s), overlapped)
    return iteration_s[counted.start : counted.stop]


def begun_s(started_s: np.ndarray, ended_s: np.ndarray, overlapped: bool) -> np.ndarray:
    """Since when each iteration's time counts: where they overlap, since the end of the one before; shape (I,)."""
    return np.concatenate([started_s[:1], ended_s[:-1]]) if overlapped else started_s


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
    snapshots: Mapping[int, bytes]  # packed weights, by the number of iterations done
    memory_bytes: Mapping[str, int] = field(default_factory=dict)  # that they took at most, of workers who can tell

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
        """Seconds per iteration, from its first worker's start to its last worker's end; shape (I,).

        Where they overlap, between the ends of two of them on the worker that updates; the first since it started.
        """
        return tuple((self._ended_s - self._begun_s).tolist())

    @cached_property
    def elapsed_s(self) -> tuple[float, ...]:
        """Seconds from the first iteration's start to the end of each iteration; shape (I,)."""
        return tuple((self._ended_s - self._begun_s[:1]).tolist())

    @property
    def late_share(self) -> float:
        """By how much the paced actions of a worker missed their deadlines, the most of all, as a share of the time.

        0 where the machine keeps up.
        """
        late_s = (sum(iteration.late_s for iteration in own[: self.iterations]) for own in self.done.values())
        return max(late_s) / sum(self.iteration_s)

    @property
    def counted(self) -> range:
        """The iterations, from 0, that count: see ``counting``."""
        return counting(self.iterations, self.program.overlapped)

    @property
    def steady_s(self) -> tuple[float, ...]:
        """The times of the iterations that count; of all where none does."""
        return tuple(steady(self.iteration_s, self.program.overlapped) or self.iteration_s)

    @property
    def clock_error_s(self) -> float:
        """The most by which spans of two workers may be shifted against each other."""
        return max((reading.error_s for readings in self.clocks.values() for reading in readings), default=0.0)

    def typical(self, together: int = 1) -> range:
        """So many consecutive iterations, from 0, whose time is the median of all such that count and have spans.

        Of an even number, the longer. Fewer where fewer count; any where none does.
        """
        among = self.counted or range(self.iterations)
        together = min(together, len(among))
        aside = MOST_AHEAD * self.program.overlapped  # others reach into them, and they into others
        kept = set(self.with_spans)
        firsts = [
            first
            for first in among[: len(among) - together + 1]
            if kept.issuperset(range(max(0, first - aside), min(self.iterations, first + together + aside)))
        ]
        firsts.sort(key=lambda first: sum(self.iteration_s[first : first + together]))
        first = firsts[len(firsts) // 2]
        return range(first, first + together)

    @cached_property
    def with_spans(self) -> tuple[int, ...]:
        """The iterations, from 0, whose spans were kept: see ``keep_iteration``."""
        return tuple(i for i in range(self.iterations) if all(own[i].spans for own in self.done.values()))

    def timeline(self, iteration: int) -> Timeline:
        """The spans of one iteration, on one clock, from where its time counts.

        A send ends when its receiver, waiting for it, had it: in a later iteration where it was sent ahead. The arrival
        of a message that came before its receiver asked for it is known of an emulated link only; on a real one, such a
        send has no length. Raises InputError for an iteration that is not ``with_spans``.
        """
        if iteration not in self.with_spans:
            raise InputError(f"iteration {iteration}: its spans were not kept, only those of at most {MOST_SPANS}")
        start_s = self._begun_s[iteration]
        spans = self._spans(iteration, start_s)
        received = {
            ahead: self._spans(iteration + ahead, start_s) for ahead in {s.action.ahead for s in spans.values()}
        }
        for send, place in receipts(self.program).items():
            receipt = received[spans[send].action.ahead].get(place)
            if receipt is not None and was_awaited(receipt):
                spans[send] = replace(spans[send], end_s=max(spans[send].start_s, receipt.end_s))
        return Timeline(tuple(spans.values()), self.iteration_s[iteration])

    def _spans(self, iteration: int, start_s: float) -> dict[tuple[str, int], Span]:
        """The spans of an iteration as the workers know them, by worker and position; none where they were not kept."""
        if iteration not in self.with_spans:
            return {}
        spans = {}
        for name, own in self.done.items():
            times_s = (self._on_one_clock(name, np.array(own[iteration].spans)) - start_s).tolist()
            timed = zip(self.program.actions[name], times_s, strict=True)
            spans |= {
                (name, position): Span(name, position, action, *times) for position, (action, times) in enumerate(timed)
            }
        return spans

    def summary(self) -> dict[str, object]:
        """What a record keeps of the run."""
        return {
            "program": self.program,
            "iterations": self.iterations,
            "iteration_s": self.iteration_s,
            "losses": self.losses,
            "memory_bytes": dict(self.memory_bytes),
            "clock_error_s": self.clock_error_s,
        }

    @cached_property
    def _begun_s(self) -> np.ndarray:
        """Since when the time of each iteration counts, on one clock; shape (I,)."""
        started_s = np.min(list(self._per_worker("started_s").values()), axis=0)
        return begun_s(started_s, self._ended_s, self.program.overlapped)

    @cached_property
    def _ended_s(self) -> np.ndarray:
        """When each iteration ended: where they overlap on the worker that updates, else on the last; shape (I,)."""
        ended_s = self._per_worker("ended_s")
        return ended_s[self.program.root] if self.program.overlapped else np.max(list(ended_s.values()), axis=0)

    def _per_worker(self, time: Literal["started_s", "ended_s"]) -> dict[str, np.ndarray]:
        """When each worker started or ended each iteration, on one clock; shape (I,) each."""
        return {
            name: self._on_one_clock(name, [getattr(iteration, time) for iteration in own[: self.iterations]])
            for name, own in self.done.items()
        }

    def _on_one_clock(self, name: str, times_s: Sequence[float] | np.ndarray) -> np.ndarray:
        """A worker's own times as the first member's clock shows them."""
        own_s, readings = np.asarray(times_s), self.clocks[name]
        if not readings:  # it ended before its clock was read
            return own_s
        return own_s - np.interp(own_s, [r.at_s for r in readings], [r.offset_s for r in readings])
