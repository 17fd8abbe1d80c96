"""What a piece of work depends on, and one digest of it: recorded work is made anew when that has changed.

The rule: work depends on the modules that do it and on every module of the package that these import, directly or not,
wherever in a file the import stands. Two things an import does not say: a module's full name in a string, by which
testbeds name the worker that they start, and the name of a template or other data beside the module. What a room's
``__init__`` only hands on is followed to where it is from, so that a face of many names ties nobody to all of them.

What counts of a module is its code: parsed, without docstrings, comments and layout. Of any other file every byte does.
So work by the runtime, the transport, a testbed, a model or the cost of an action depends on these and on no figure,
report or test. The digest is of relative paths and their contents, and says by which rule it was made.
"""

import ast
import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from hiertrain.values import InputError

PACKAGE = Path(__file__).parent
RULE = "code-1"  # another one for another rule, so that no digest is compared with one that means something else
FILE = re.compile(r"[\w-]+(\.[\w-]+)+")  # a string that may name a module, or a file beside one


@dataclass(frozen=True)
class Code:
    """What Python source says, and what it refers to."""

    meaning: str  # digest of what is left without docstrings, comments and layout
    imports: tuple[tuple[str, str | None], ...]  # a module, and a name of it where it is ``from module import name``
    strings: tuple[str, ...]  # those that may name a module or a file


@cache
def read(source: bytes) -> Code:
    """Raises SyntaxError for what is no Python."""
    tree = ast.parse(source)
    imports: list[tuple[str, str | None]] = []
    strings: list[str] = []
    for node in ast.walk(tree):
        match node:
            case ast.Module() | ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                if ast.get_docstring(node, clean=False) is not None:
                    del node.body[0]
            case ast.Import():
                imports += [(alias.name, None) for alias in node.names]
            case ast.ImportFrom(module=str(module)):
                imports += [(module, alias.name) for alias in node.names]
            case ast.Constant(value=str(text)) if FILE.fullmatch(text):
                strings.append(text)
    return Code(hashlib.sha256(ast.dump(tree).encode()).hexdigest(), tuple(imports), tuple(strings))


def digest(paths: Sequence[str], package: Path = PACKAGE) -> str:
    """Of what counts of these files, given relative to the package. Raises OSError for one that is not there."""
    found = hashlib.sha256()
    for path in sorted(paths):
        content = (package / path).read_bytes()
        counts = read(content).meaning if path.endswith(".py") else hashlib.sha256(content).hexdigest()
        found.update(f"{path} {counts}\n".encode())
    return f"{RULE}:{found.hexdigest()}"


def reached(*modules: str, apart: Sequence[str] = (), package: Path = PACKAGE) -> list[str]:
    """The files that these modules depend on, themselves included, relative to the package.

    ``modules`` and ``apart`` are full names. Modules and rooms ``apart`` are not entered: what they do for the work is
    known otherwise, say by its parameters. Raises InputError for a module that the package does not have.
    """
    paths = [_file_of(module, package) for module in modules]
    if None in paths:
        raise InputError(f"{', '.join(modules)}: must be modules of {package}")
    return _reached([path for path in paths if path], apart, package)


def reached_by(source: bytes, apart: Sequence[str] = (), package: Path = PACKAGE) -> list[str]:
    """The files that code outside of the package depends on, such as a notebook's. Raises SyntaxError."""
    return _reached(_used_by(read(source), "", package), apart, package)


def _reached(paths: Iterable[str], apart: Sequence[str], package: Path) -> list[str]:
    closed = tuple(module.partition(".")[2].replace(".", "/") for module in apart)
    found: set[str] = set()
    left = list(paths)
    while left:
        path = left.pop()
        if path not in found and not path.startswith(tuple(f"{room}{end}" for room in closed for end in ("/", "."))):
            found.add(path)
            if path.endswith(".py"):
                left += _used_by(read((package / path).read_bytes()), path, package)
    return sorted(found)


def _used_by(code: Code, path: str, package: Path) -> Iterator[str]:
    for module, name in code.imports:
        if file := _file_of(module, package) if name is None else _origin(module, name, package):
            yield file
    for text in code.strings:
        beside = str(Path(path).with_name(text)) if path else text
        is_data = not text.endswith(".py") and (package / beside).is_file()
        if file := _file_of(text, package) or (beside if is_data else None):
            yield file


def _file_of(module: str, package: Path) -> str | None:
    """Of a module or room of the package, by its full name; None for another module."""
    top, *parts = module.split(".")
    if top != PACKAGE.name:
        return None
    path = "/".join(parts)
    files = (f"{path}.py", f"{path}/__init__.py") if parts else ("__init__.py",)
    return next((file for file in files if (package / file).is_file()), None)


def _origin(module: str, name: str, package: Path) -> str | None:
    """The file that ``from module import name`` is about: a room only hands on what its ``__init__`` imports itself."""
    own = _file_of(module, package)
    file = _file_of(f"{module}.{name}", package)
    if file is None and own and own.endswith("__init__.py"):
        handed_on = {taken: origin for origin, taken in read((package / own).read_bytes()).imports}
        return _origin(handed_on[name], name, package) if name in handed_on else own
    return file or own
