"""The JSON files that cross borders: profile, network, plan and solution. Every error is one line."""

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from hiertrain.values import InputError, Value, broken_rule, shown

V = TypeVar("V", bound=BaseModel)


def load(kind: type[V], path: str | os.PathLike[str]) -> V:
    """Read a value from a JSON file, or from a YAML file if the name ends in .yml or .yaml.

    Raises InputError that names the file, the field, the value and the rule.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    try:
        if Path(path).suffix in (".yml", ".yaml"):
            content = yaml.load(text, Loader=_UniqueKeys)
        else:
            content = json.loads(text, object_pairs_hook=_unique_keys)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: not JSON: {error.msg} at line {error.lineno} column {error.colno}") from None
    except (yaml.YAMLError, TypeError) as error:  # TypeError: a key that cannot be one
        raise InputError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    except ValueError as error:  # a date that is none, a number of too many digits
        raise InputError(f"{path}: cannot be read: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise InputError(f"{path}: cannot be read: nested too deeply") from None
    return parse(kind, content, str(path))


def parse(kind: type[V], content: object, source: str) -> V:
    """Validate JSON content that came from ``source``. Raises InputError like ``load``."""
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise InputError("; ".join(_describe(problem, source) for problem in error.errors()[:3])) from None


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A JSON object as a dict; a key that appears twice would otherwise silently win over the first."""
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        raise InputError(f"field {next(key for key in keys if keys.count(key) > 1)!r} appears twice in one object")
    return content


class _UniqueKeys(yaml.SafeLoader):
    """YAML with the same rule."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        self.flatten_mapping(node)
        return _unique_keys(self.construct_pairs(node, deep))


def _describe(problem: ErrorDetails, source: str) -> str:
    """One pydantic error as ``source: field: rule, got value``."""
    field = ".".join(part if isinstance(part, str) and part.isprintable() else shown(part) for part in problem["loc"])
    where = ": ".join([source, *([field if len(field) <= 200 else f"{field[:197]}..."] if field else [])])
    got = "" if problem["type"] in ("value_error", "missing", "extra_forbidden") else f", got {shown(problem['input'])}"
    return f"{where}: {broken_rule(problem)}{got}"


def save(value: Value, path: str | os.PathLike[str]) -> None:
    """Write a value as JSON; the file appears whole or not at all."""
    write_text(path, value.model_dump_json(indent=1) + "\n")


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file, as UTF-8. See ``write_bytes``."""
    write_bytes(path, text.encode())


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file by renaming a finished temporary one, so that an interruption leaves no half of it.

    Raises InputError when it cannot be written.
    """
    check_output(path)
    target = Path(path)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(target)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from None
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def check_output(path: str | os.PathLike[str]) -> None:
    """Make the folder of a file that is to be written. Raises InputError when it cannot be written there."""
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from None
    if target.is_dir():
        raise InputError(f"{path}: cannot be written: it is a folder")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise InputError(f"{path}: cannot be written: folder {target.parent} is not writable")
