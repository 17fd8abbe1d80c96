"""What every other module shares: frozen, validated values, and the two errors that the user may get."""

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict


class InputError(ValueError):
    """What the user gave breaks a rule. The message names the thing, its value and the rule."""


class RunError(RuntimeError):
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
