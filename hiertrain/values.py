"""What every other module shares: frozen, validated values, and the errors that the user may get.

And what names and numbers may be. Every number has bounds, beyond which something that is said beside them breaks;
``true`` is no number, and neither is ``"1"``.
"""

import re
import traceback
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

ON_DEMAND = "(%tb shows where)"


class _Said(BaseException):
    """What is raised to tell the user something: a notebook shows the message alone, and ``%tb`` the traceback."""

    _asked = False

    def _render_traceback_(self) -> list[str]:  # what IPython asks an exception for
        if self._asked:
            return traceback.format_exception(self)
        self._asked = True
        return [f"{type(self).__name__}: {self}", ON_DEMAND]


class InputError(_Said, ValueError):
    """What the user gave breaks a rule. The message names the thing, its value and the rule."""


class Interrupted(_Said, KeyboardInterrupt):
    """An interrupt, after what was running has been ended. The message says what was."""


class NoPlanError(InputError):
    """No plan keeps all constraints."""


class RunError(_Said, RuntimeError):
    """Something failed while it ran, such as a worker or a notebook. The message names it and where it was.

    ``completed``: what was finished before, so that a record can keep it.
    """

    def __init__(self, message: str, completed: Mapping[str, object] | None = None) -> None:
        super().__init__(message)
        self.completed = completed or {}


class Value(BaseModel):
    """A frozen value, validated when made; unknown fields, infinities and NaN are refused."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
        protected_namespaces=(),
    )


MOST_LETTERS = 64  # of a name: two of them and an ending fit the 255 bytes of a file's name
NAME_RULE = f"1 to {MOST_LETTERS} letters, digits, '_', '.', '+' and '-', the first none of the last three"


def check_name(name: str) -> str:
    """The name, if it can be a file's, an argument and a word of a shell as it is. Raises ValueError for others."""
    if len(name) > MOST_LETTERS or not re.fullmatch(r"\w[\w.+-]*", name, flags=re.ASCII):
        raise ValueError(f"name {shown(name)}: must be {NAME_RULE}")
    return name


def _check_label(label: str) -> str:
    if not 0 < len(label) <= 256 or not label.isprintable():
        raise ValueError(f"name {shown(label)}: must be 1 to 256 printable characters")
    return label


def shown(value: object) -> str:
    """A value for an error's message: one printable line of at most 80 characters, whatever it is."""
    match value:
        case str():
            text = repr(value[:80])
        case int() if value.bit_length() > 128:  # Python refuses to print thousands of digits
            text = f"a number of {value.bit_length()} bits"
        case bool() | int() | float() | None:
            text = repr(value)
        case Mapping():
            text = f"{len(value)} fields"
        case list() | tuple() | set():
            text = f"a list of {len(value)}"
        case _:
            text = f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:76]}...{text[-1]}"


# Of a worker, a model, a data set, a run, a record: it becomes part of paths, commands and keys.
Name = Annotated[str, AfterValidator(check_name)]
# Of a layer: the path of a module, for people, and found again only where it was written.
LayerName = Annotated[str, AfterValidator(_check_label)]

_Whole = Annotated[int, Field(strict=True)]
_Real = Annotated[float, Field(strict=True, allow_inf_nan=False)]
# 2^20 samples of 2^40 bytes are 2^60, which 64 bits hold; no machine here has memory for a sample of a terabyte.
Samples = Annotated[_Whole, Field(ge=0, le=2**20)]
BatchSize = Annotated[_Whole, Field(ge=1, le=2**20)]
Bytes = Annotated[_Whole, Field(ge=0, le=2**40)]
PositiveBytes = Annotated[_Whole, Field(ge=1, le=2**40)]
BurstBytes = Annotated[_Real, Field(ge=0, le=2**40)]
MemoryBytes = Annotated[_Whole, Field(ge=1, le=2**50)]  # of a machine: a petabyte
# Sockets and PyTorch count a time limit in ms with 31 bits; 1e6 s are eleven days.
Seconds = Annotated[_Real, Field(ge=0, le=1e6)]
PositiveSeconds = Annotated[_Real, Field(gt=0, le=1e6)]
PlanSeconds = Annotated[_Real, Field(ge=0, le=1e18)]  # a plan of the longest times and the largest messages
# From 1 kbit/s, slower than any radio that carries IP, to 1 Tbit/s, faster than memory.
RateMbps = Annotated[_Real, Field(ge=1e-3, le=1e6)]
LatencyMs = Annotated[_Real, Field(ge=0, le=3.6e6)]  # an hour: beyond Mars
Share = Annotated[_Real, Field(gt=0, le=1)]
Slowdown = Annotated[_Real, Field(ge=1e-3, le=1e4)]  # from a server to a microcontroller
Threads = Annotated[_Whole, Field(ge=1, le=1024)]  # more cores no machine has
Port = Annotated[_Whole, Field(ge=1, le=65535)]  # 16 bits
Seed = Annotated[_Whole, Field(ge=0, le=2**31 - 1)]  # OR-Tools takes 32 bits with a sign
Count = Annotated[_Whole, Field(ge=0, le=10**9)]  # of iterations or repetitions: years of work
PositiveCount = Annotated[_Whole, Field(ge=1, le=10**9)]
Pixels = Annotated[_Whole, Field(ge=1, le=2**16)]  # of a sample's side, or its channels
Classes = Annotated[_Whole, Field(ge=1, le=10**6)]  # a last layer for more has gigabytes
LearningRate = Annotated[_Real, Field(gt=0, le=1e38)]  # where float32 ends
Momentum = Annotated[_Real, Field(ge=0, le=1)]  # above 1, old gradients grow without end
WeightDecay = Annotated[_Real, Field(ge=0, le=1e38)]
# A keyword argument of a torchvision model.
Option = bool | Annotated[_Whole, Field(ge=-(2**31), le=2**31)] | Annotated[_Real, Field(ge=-1e9, le=1e9)]
Spread = Annotated[_Real, Field(ge=0, le=1e15)]  # of measurements, in their unit
Ratio = Annotated[_Real, Field(ge=0, le=1e30)]  # of two times, rates or numbers of cores

MOST_LAYERS = 10_000  # ten times the deepest networks
Layers = Annotated[_Whole, Field(ge=0, le=MOST_LAYERS)]
MOST_WORKERS = 100  # each is a process, and pairs of them are measured one by one


def one_line(text: str) -> str:
    """Text from outside on one printable line of at most 200 characters."""
    text = "".join(letter if letter.isprintable() else " " for letter in text[:1000])
    text = " ".join(text.split())
    return text if len(text) <= 200 else f"{text[:197]}..."


def check(what: str, value: object, rule: Any) -> None:
    """Raise InputError, which begins with ``what``, unless the value keeps to one of the types above."""
    try:
        TypeAdapter(rule).validate_python(value)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        named = "" if problem["type"] == "value_error" else f"{shown(value)}: "
        raise InputError(f"{what} {named}{broken_rule(problem)}") from None


def broken_rule(problem: ErrorDetails) -> str:
    """What a validation asks for, in the words of all our messages."""
    match problem["type"]:
        case "value_error":  # our own rules name the values themselves
            return str(problem.get("ctx", {})["error"])
        case "missing":
            return "missing; the field is required"
        case "extra_forbidden":
            return "unknown field"
        case _:
            rule = re.sub("^[A-Z][a-z]+ should ", "must ", problem["msg"]).replace(
                "greater than or equal to", "at least"
            )
            return rule.replace("less than or equal to", "at most")
