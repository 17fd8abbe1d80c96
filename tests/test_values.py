"""One rule for names, and bounds for every number that a file or a command may give."""

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

import hiertrain.cli.main
import hiertrain.reproduction.publish  # noqa: F401  with the command line's, every module that has a value of a file
from hiertrain.values import InputError, LayerName, Name, Samples, Seconds, Value, check, shown

# What only the workbench's own workers say, of their clocks and losses: any finite number.
CLOCKS_AND_LOSSES = {"at_s", "offset_s", "loss", "started_s", "ended_s", "spans"}


def kinds(base: type[Value] = Value) -> Iterator[type[Value]]:
    for kind in base.__subclasses__():
        if kind.__module__.startswith("hiertrain."):
            yield kind
        yield from kinds(kind)


def numbers(schema: Any, field: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every number in a JSON schema, with the name of its field."""
    match schema:
        case {"type": "integer" | "number"}:
            yield field, schema
        case {"properties": properties, **rest}:
            for name, part in properties.items():
                yield from numbers(part, name)
            yield from numbers(rest, field)
        case dict():
            for part in schema.values():
                yield from numbers(part, field)
        case list():
            for part in schema:
                yield from numbers(part, field)


def test_every_number_has_a_least_and_a_greatest_value() -> None:
    bounds = ({"minimum", "exclusiveMinimum"}, {"maximum", "exclusiveMaximum"})
    assert {
        f"{kind.__name__}.{field}"
        for kind in kinds()
        for field, schema in numbers(kind.model_json_schema())
        if field not in CLOCKS_AND_LOSSES and not all(bound & schema.keys() for bound in bounds)
    } == set()


@pytest.mark.parametrize(
    "value",
    [True, "1", -1, 2**21, 16**5000, 1e308, float("nan"), float("inf"), None, [], {}, 10**400],
    ids=shown,
)
@pytest.mark.parametrize("rule", [Samples, Seconds])
def test_what_is_no_number_or_beyond_its_bounds_is_refused_in_one_line(rule: object, value: object) -> None:
    with pytest.raises(InputError, match=r"^samples .*: must be ") as caught:
        check("samples", value, rule)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("name", ["device", "cloud-2", "jointdnn+", "squeezenet1_1", "_", "0.5", "a" * 64])
def test_names_that_all_may_have(name: str) -> None:
    check("worker", name, Name)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../../pwned", "a/b", "-x", "--help", "+", "a b", "a\0", "a\n", "\ud800", "é", "a" * 65, 1]
)
def test_names_that_nothing_may_have(name: object) -> None:
    with pytest.raises(InputError, match=r"^worker .*must be") as caught:
        check("worker", name, Name)
    assert str(caught.value).isprintable()


@given(st.text() | st.text("abc.+-_1", max_size=70))
def test_a_name_is_safe_as_a_file_and_as_an_argument(name: str) -> None:
    try:
        check("worker", name, Name)
    except InputError:
        return
    assert set(name).isdisjoint("/\\\0\n '\"$`;*?~=:")
    assert name[0] not in "-.+"
    assert len(name.encode()) <= 64


def test_the_name_of_a_layer_is_one_printable_line() -> None:
    for name in ("features.10.squeeze", "conv1 + relu", "größe"):
        assert TypeAdapter(LayerName).validate_python(name) == name
    for name in ("", "a\nb", "a\x1b[31m", "a" * 257):
        with pytest.raises(ValidationError, match="1 to 256 printable characters"):
            TypeAdapter(LayerName).validate_python(name)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists))
def test_whatever_is_shown_is_one_short_line(value: object) -> None:
    assert shown(value).isprintable()
    assert len(shown(value)) <= 80
