"""What every other module shares: frozen, validated values, and the two errors that the user may get."""

from pydantic import BaseModel, ConfigDict


class InputError(ValueError):
    """What the user gave breaks a rule. The message names the thing, its value and the rule."""


class RunError(RuntimeError):
    """Something failed while it ran, such as a worker or a notebook. The message names it and where it was."""


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
