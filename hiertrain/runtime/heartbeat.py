"""What a worker says while it works, from threads of its own: answers, and beats as signs of life."""

import os
import queue
import tempfile
import threading
from collections.abc import Callable
from itertools import count
from typing import IO

from hiertrain.control.answers import BEAT_S, Answer, Beat, ClockReading, Iteration, Progress
from hiertrain.control.messages import PART_BYTES, Reply, write_message


class Outbox:
    """Where answers go, in a thread of its own, so that no training waits for a thin uplink or a stopped parent.

    Payloads leave in parts, and other answers between these: one may take longer than silence may last. Those that
    wait are in temporary files without a name.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._waiting: queue.PriorityQueue[tuple[bool, int, Answer, IO[bytes]]] = queue.PriorityQueue()
        self._numbers = count()
        threading.Thread(target=self._write, daemon=True).start()

    def put(self, answer: Answer, payload: bytes = b"") -> None:
        """Send an answer, before all payloads that have not left."""
        file = tempfile.SpooledTemporaryFile(PART_BYTES)  # noqa: SIM115 - closed when all of it has left
        file.write(payload)
        file.seek(0)
        self._waiting.put((bool(payload), next(self._numbers), answer, file))

    def flush(self) -> None:
        """Wait until everything has left."""
        self._waiting.join()

    def _write(self) -> None:
        while True:
            has_payload, number, answer, payload = self._waiting.get()
            part, ahead = payload.read(PART_BYTES), payload.read(1)
            payload.seek(-len(ahead), os.SEEK_CUR)
            write_message(self._stream, Reply(answer=answer, payload_bytes=len(part), more=bool(ahead)), part)
            if ahead:
                self._waiting.put((has_payload, number, answer, payload))
            else:
                payload.close()
            self._waiting.task_done()

    def progress(self, done: int, total: int, note: str) -> None:
        self.put(Progress(done=done, total=total, note=note))


class Pulse:
    """Beats while a job runs: a context manager. What is added travels with the next beat."""

    def __init__(self, put: Callable[[Beat], None]) -> None:
        self.where: Callable[[], str] = str
        self._put = put
        self._done: queue.SimpleQueue[Iteration | ClockReading] = queue.SimpleQueue()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Pulse":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._beat()

    def add(self, done: Iteration | ClockReading) -> None:
        self._done.put(done)

    def _run(self) -> None:
        while not self._over.wait(BEAT_S):
            self._beat()

    def _beat(self) -> None:
        done = [self._done.get() for _ in range(self._done.qsize())]
        self._put(
            Beat(
                where=self.where(),
                iterations=tuple(item for item in done if isinstance(item, Iteration)),
                clock=tuple(item for item in done if isinstance(item, ClockReading)),
            )
        )
