"""Files that cross borders: read with limits, since anybody may have written them, and written whole or not at all.

Every error is one line that begins with the file, the field and the value, each cut to what a line holds.
"""

import json
import os
import re
import secrets
import stat
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from hiertrain.values import InputError, Value, broken_rule, one_line, shown

V = TypeVar("V", bound=BaseModel)
W = TypeVar("W", bound=BaseModel)

# A record of 100,000 iterations fits. Of larger files, a wrong one would be refused only after minutes and gigabytes.
MOST_JSON_BYTES = 32 * 2**20
MOST_VALUES = 10**6
MOST_LINKS = 40  # that Linux follows
MOST_YAML_BYTES = 256 * 1024  # written by hand; PyYAML takes a second for that
# What a file is, by fields that it always has: files are given in each other's place.
KINDS = {
    "Profile": ("a profile", {"model", "sample_bytes", "layers", "workers"}),
    "Network": ("a network", {"links"}),
    "Plan": ("a plan", {"batch_size", "data_holder", "workers"}),
    "Solution": ("a solution", {"plan", "objective_s", "bound_s"}),
    "Program": ("a program", {"batch_size", "data_holder", "actions"}),
    "Jobs": ("a jobs file", {"training", "program", "workers", "tag"}),
    "_TestbedFile": ("a testbed", {"kind", "data_holder", "workers"}),
    "ParameterFile": ("a parameter file", {"run", "notebooks"}),
    "Record": ("a record", {"run", "name", "parameters", "results"}),
    "NotebookRecord": ("a notebook's record", {"fingerprint", "parameters", "outputs"}),
    "Report": ("a worker's report", {"worker", "iterations", "clock"}),
}


def load(kind: type[V], path: str | os.PathLike[str]) -> V:
    """Read a value from a JSON file, or from a YAML file if the name ends in .yml or .yaml.

    Raises InputError that names the file, the field, the value and the rule.
    """
    return parse(kind, _content(path), one_line(str(path)))


def load_one_of(kinds: tuple[type[V], type[W]], path: str | os.PathLike[str]) -> V | W:
    """Read what may be of either kind: the one whose fields it has, else the first. Raises InputError like ``load``."""
    content = _content(path)
    found = _kind_of(content)
    kind = kinds[1] if found == KINDS[kinds[1].__name__] else kinds[0]
    return parse(kind, content, one_line(str(path)))


def read_text(path: str | os.PathLike[str], most_bytes: int = MOST_JSON_BYTES) -> str:
    """The text of a file of at most so many bytes and of ``MOST_VALUES``. Raises InputError that names the file."""
    source = one_line(str(path))
    try:
        text = _read(path, most_bytes).decode()
        if text.count(",") >= MOST_VALUES:
            raise InputError(f"too large; must have at most {MOST_VALUES} values")
    except InputError as error:
        raise InputError(f"{source}: {error}") from None
    except OSError as error:
        raise InputError(f"{source}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{source}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    except ValueError as error:  # no path, such as one with NUL
        raise InputError(f"{source}: cannot be read: {one_line(str(error))}") from None
    return text


def _content(path: str | os.PathLike[str]) -> object:
    """What JSON or YAML says, within the limits. Raises InputError."""
    source = one_line(str(path))
    is_yaml = Path(path).suffix in (".yml", ".yaml")
    text = read_text(path, MOST_YAML_BYTES if is_yaml else MOST_JSON_BYTES)
    try:
        if is_yaml:
            return yaml.load(text, Loader=_PlainYaml)
        return json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_no_constant)
    except InputError as error:
        raise InputError(f"{source}: {error}") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{source}: not JSON: {error.msg} at line {error.lineno} column {error.colno}") from None
    except (yaml.YAMLError, TypeError) as error:  # TypeError: a key that cannot be one
        raise InputError(f"{source}: not YAML: {one_line(str(error))}") from None
    except ValueError as error:  # a date that is none, a number of too many digits
        raise InputError(f"{source}: cannot be read: {one_line(str(error))}") from None
    except RecursionError:
        raise InputError(f"{source}: cannot be read: nested too deeply") from None


def parse(kind: type[V], content: object, source: str) -> V:
    """Validate JSON content that came from ``source``. Raises InputError like ``load``."""
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        needed, found = KINDS.get(kind.__name__), _kind_of(content)
        if needed and found and needed != found:
            raise InputError(f"{source}: this is {found[0]}; {needed[0]} is needed") from None
        if error.error_count() > 1000:  # pydantic lists all or none, which would take gigabytes
            raise InputError(f"{source}: is no {kind.__name__}; {error.error_count()} fields break its rules") from None
        problems = error.errors(include_url=False)[:3]
        raise InputError("; ".join(_describe(problem, source) for problem in problems)) from None
    except RecursionError:
        raise InputError(f"{source}: nested too deeply") from None


def _kind_of(content: object) -> tuple[str, set[str]] | None:
    """Which of ``KINDS`` has all its fields in the content; the one with the most of them."""
    if not isinstance(content, dict):
        return None
    found = [kind for kind in KINDS.values() if kind[1] <= content.keys()]
    return max(found, key=lambda kind: len(kind[1]), default=None)


def _read(path: str | os.PathLike[str], most_bytes: int) -> bytes:
    """The content of a regular file. Raises OSError, and InputError for another kind of file or a larger one."""
    # Without waiting for whoever may once write to a FIFO.
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise InputError("not a regular file")
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise InputError(f"too large; must have at most {most_bytes} bytes")
    return content


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A JSON object as a dict; a key that appears twice would otherwise silently win over the first."""
    content = dict(pairs)
    if len(content) < len(pairs):
        (key, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise InputError(f"field {shown(key)} appears twice in one object")
    return content


def _no_constant(name: str) -> None:
    raise InputError(f"not JSON: {name} is no number")


class _PlainYaml(yaml.SafeLoader):
    """YAML with the same rule, without aliases (a few lines of them make gigabytes), and with numbers like 1e-3."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        return _unique_keys(self.construct_pairs(node, deep))

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise InputError(f"alias {shown(self.peek_event().anchor)}: must be written out; aliases are not read")
        return super().compose_node(parent, index)


_PlainYaml.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+"), list("-+0123456789")
)


def _describe(problem: ErrorDetails, source: str) -> str:
    """One pydantic error as ``source: field: rule, got value``."""
    field = one_line(".".join(part if isinstance(part, str) else shown(part) for part in problem["loc"]))
    where = f"{source}: {field}" if field else source
    got = "" if problem["type"] in ("value_error", "missing", "extra_forbidden") else f", got {shown(problem['input'])}"
    return f"{where}: {broken_rule(problem)}{got}"


def save(value: Value, path: str | os.PathLike[str]) -> None:
    """Write a value as JSON; the file appears whole or not at all."""
    write_text(path, value.model_dump_json(indent=1) + "\n")


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file like ``write_bytes``."""
    write_bytes(path, text.encode())


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file, by renaming a finished one onto it, so that an interruption or a full disk leaves no half of it.

    Where ``path`` is a link, what it points to is replaced. The file keeps its owner and its permissions; a new one has
    those of any new file. Raises InputError when it cannot be written.
    """
    check_output(path)
    target = Path(os.path.realpath(path))
    partial = target.with_name(f".{secrets.token_hex(8)}.partial")  # a name that nobody can foresee
    try:
        with partial.open("xb") as file:  # exclusively: a link is not followed
            if target.exists():
                before = target.stat()
                with suppress(PermissionError):  # only root may give files away
                    os.chown(file.fileno(), before.st_uid, before.st_gid)
                os.chmod(file.fileno(), stat.S_IMODE(before.st_mode))
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
    except OSError as error:
        raise InputError(f"{one_line(str(path))}: cannot be written: {error.strerror}") from None
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def _is_descriptor(path: str | os.PathLike[str]) -> bool:
    """Whether the path leads through /proc to what a process has open."""
    place = os.path.abspath(path)
    for _ in range(MOST_LINKS):
        folder = os.path.realpath(os.path.dirname(place))
        if folder.startswith("/proc/"):
            return True
        if not os.path.islink(place):
            break
        place = os.path.join(folder, os.readlink(place))
    return False


def check_output(path: str | os.PathLike[str]) -> None:
    """Make the folder of a file that is to be written. Raises InputError when it cannot be written there.

    So it is for what is no file, such as a device or a FIFO, and for a file that is open already, such as /dev/stdout:
    nothing could replace it by a finished one.
    """
    source = f"{one_line(str(path))}: cannot be written"
    if _is_descriptor(path):
        raise InputError(f"{source}: it stands for a file that is open already")
    try:
        target = Path(os.path.realpath(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        mode = target.stat().st_mode if os.path.lexists(target) else stat.S_IFREG  # a loop of links is an error
    except (OSError, ValueError) as error:  # ValueError: no path, such as one with NUL
        raise InputError(f"{source}: {getattr(error, 'strerror', None) or error}") from None
    if not stat.S_ISREG(mode):
        raise InputError(f"{source}: it is {'a folder' if stat.S_ISDIR(mode) else 'no regular file'}")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise InputError(f"{source}: folder {one_line(str(target.parent))} is not writable")
