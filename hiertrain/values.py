"""What every other module shares: frozen, validated values, and the errors that the user may get."""

import traceback
from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict

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
