"""The two things that every other module shares: frozen, validated values and the error for bad input."""

from pydantic import BaseModel, ConfigDict


class InputError(ValueError):
    """What the user gave breaks a rule. The message names the thing, its value and the rule."""


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
