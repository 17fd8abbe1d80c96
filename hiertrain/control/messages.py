"""How jobs and answers travel.

A control message is one line of JSON; if it says ``payload_bytes``, that many raw bytes follow the line. A long payload
travels in parts, so that signs of life pass between them, and each of them is one. Requests go to a worker's standard
input, answers come from its standard output, so that the same code serves a local process, a network namespace and an
SSH session, and a worker notices at once when whoever started it is gone.
"""

import json
from typing import IO

from hiertrain.control.answers import Answer
from hiertrain.control.jobs import Job
from hiertrain.values import Bytes, Value

PART_BYTES = 2**16  # of a payload; takes 0.3 s at 1.5 Mbit/s


class Request(Value):
    """One line to a worker."""

    job: Job


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
