import errno
import json
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from hiertrain import files
from hiertrain.control.answers import Report
from hiertrain.control.torchrun import Jobs
from hiertrain.problem.network import Network
from hiertrain.problem.plan import Plan
from hiertrain.problem.profile import Profile
from hiertrain.problem.solution import Solution
from hiertrain.program.actions import Program
from hiertrain.reproduction.notebooks import NotebookRecord
from hiertrain.reproduction.parameters import ParameterFile
from hiertrain.results.records import Record
from hiertrain.testbeds.settings import LocalSettings, _TestbedFile
from hiertrain.values import InputError, Value

COST = {"fixed_s": 1e-4, "per_sample_s": 2e-5}
TIMES = {"forward": COST, "backward": COST, "update_s": 1e-5}
LAYER = {"name": "conv1", "output_bytes": 18816, "parameter_bytes": 1824}
PROFILE = {"model": "m", "sample_bytes": 3072, "layers": [LAYER], "workers": {"device": {"layers": [TIMES]}}}
LINK = {"from": "device", "to": "edge", "bandwidth_mbps": 20.0, "latency_ms": 2.0}
PART = {"parent": None, "depth": 1, "samples": 4}
PLAN = {"batch_size": 4, "data_holder": "device", "workers": {"device": PART}}
TESTBED = {"kind": "local", "data_holder": "device", "workers": {"device": {}}}


@pytest.mark.parametrize(
    ("kind", "content"),
    [(Profile, PROFILE), (Network, {"links": [LINK]}), (Plan, PLAN), (LocalSettings, TESTBED)],
)
def test_what_is_written_is_read_back(kind: type[Value], content: dict, tmp_path: Path) -> None:
    path = tmp_path / "folder" / "value.json"
    value = files.parse(kind, content, "test")
    files.save(value, path)
    assert files.load(kind, path) == value
    assert list(path.parent.iterdir()) == [path]


def changed(content: dict, **fields: object) -> dict:
    return {**content, **fields}


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        (Profile, changed(PROFILE, extra=1), "extra: unknown field"),
        (
            Profile,
            changed(PROFILE, workers={"device": {"layers": []}}),
            "'device' has times for 0 layers, the model has 1",
        ),
        (Profile, changed(PROFILE, layers=[LAYER, LAYER]), "layer name 'conv1' appears 2 times"),
        (Profile, changed(PROFILE, layers=[changed(LAYER, output_bytes=-1)]), "layers.0.output_bytes: .*got -1"),
        (Profile, changed(PROFILE, workers={}), "workers: .*at least 1 item"),
        (Network, {"links": [changed(LINK, bandwidth_mbps=0)]}, "links.0.bandwidth_mbps: .*at least 0.001, got 0"),
        (Network, {"links": [changed(LINK, to="device")]}, "link from 'device' to itself"),
        (Network, {"links": [LINK, LINK]}, "'device' to 'edge' appears twice"),
        (Plan, changed(PLAN, batch_size=0), "batch_size: .*got 0"),
        (Plan, changed(PLAN, batch_size=5), "samples add up to 4; they must add up to the batch size 5"),
        (Plan, changed(PLAN, data_holder="phone"), "data_holder 'phone' is not one of the workers device"),
        (Plan, changed(PLAN, workers={"device": changed(PART, parent="device")}), "exactly one worker is the root"),
        (LocalSettings, changed(TESTBED, kind="moon"), "kind: .*got 'moon'"),
        (LocalSettings, changed(TESTBED, data_holder="edge"), "'edge' is not one of the workers device"),
        (LocalSettings, changed(TESTBED, links=[LINK]), "'edge' is not one of the workers device"),
        (
            LocalSettings,
            changed(TESTBED, workers={"device": {"slowdown": 1.5}}),
            "slowdown 1.5: must be 1 .*at least 2",
        ),
    ],
)
def test_a_bad_value_is_named_in_one_line(kind: type[Value], content: dict, message: str, tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=message) as caught:
        files.load(kind, path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("value.json", "{", "not JSON: .* at line 1 column 2"),
        ("value.json", '{"links": [], "links": []}', "field 'links' appears twice"),
        ("value.json", "[]", "value.json: must be a valid dictionary"),
        ("value.json", "\xff", "not UTF-8 text"),
        ("value.yml", "links: [", "not YAML"),
        ("value.yml", "links: 2024-13-45", "cannot be read: month must be in 1..12"),
        ("value.json", "[" * 100_000, "cannot be read: nested too deeply"),
        ("value.yml", "links: []\nlinks: []", "field 'links' appears twice"),
        ("missing.json", None, "No such file or directory"),
        ("value.json", '{"links": NaN}', "not JSON: NaN is no number"),
        ("value.json", '{"links": 1' + "0" * 5000 + "}", "cannot be read: Exceeds the limit"),
        ("value.yml", "links: 0x" + "f" * 5000, "links: must be a valid tuple, got a number of 20000 bits"),
        ("value.yml", "a: &a [1, 1]\nb: [*a, *a]", "alias 'a': must be written out"),
        ("value.yml", "&a [*a]", "alias 'a': must be written out"),
        ("value.yml", "2024-01-01: x", r"datetime.date\(2024, 1, 1\): must be strings, got a date"),
        ("value.json", '{"links": ' + "[" * 900 + "]" * 900 + "}", "links.0: must be a valid .*, got a list of 1"),
        ("value.json", '{"links": [' + "1," * 2000 + "1]}", "is no Network; 2001 fields break its rules"),
        ("value.json", '{"links": [' + "1," * 10**6 + "1]}", "too large; must have at most 1000000 values"),
        ("value.json", '{"' + "a" * 10**6 + '": "' + "b" * 10**6 + '"}', r"a{190,200}\.\.\.: unknown field"),
        ("value.yml", "a: " + "b" * 300_000, "too large; must have at most 262144 bytes"),
    ],
)
def test_a_broken_file_is_named_in_one_line(name: str, text: str | None, message: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=message) as caught:
        files.load(Network, tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_folder_that_is_not_writable_is_named_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As for a user who is not root, whom permissions do not stop.
    monkeypatch.setattr(os, "access", lambda path, mode: (os.stat(path).st_mode >> 6) & mode == mode)
    files.check_output(tmp_path / "value.json")
    for mode in (0o500, 0o600):
        tmp_path.chmod(mode)
        with pytest.raises(InputError, match=rf"value.json: cannot be written: folder {tmp_path} is not writable"):
            files.check_output(tmp_path / "value.json")
    tmp_path.chmod(0o700)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written: Not a directory"):
        files.check_output(tmp_path / "file" / "folder" / "value.json")


def test_only_regular_files_of_some_size_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "fifo.json")
    for path in (tmp_path / "fifo.json", "/dev/zero", "/dev/null"):
        with pytest.raises(InputError, match="not a regular file"):
            files.load(Network, path)
    with pytest.raises(InputError, match="Is a directory"):
        files.load(Network, tmp_path)
    monkeypatch.setattr(files, "MOST_JSON_BYTES", 10)
    (tmp_path / "value.json").write_text('{"links":[]}')
    with pytest.raises(InputError, match=r"value.json: too large; must have at most 10 bytes"):
        files.load(Network, tmp_path / "value.json")


def test_numbers_of_yaml_may_have_an_exponent_alone(tmp_path: Path) -> None:
    (tmp_path / "value.yml").write_text("links: [{from: a, to: b, bandwidth_mbps: 1e3, latency_ms: 2E-1}]")
    link = files.load(Network, tmp_path / "value.yml").links[0]
    assert (link.bandwidth_mbps, link.latency_ms) == (1000, 0.2)


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        (Profile, {"links": [LINK]}, "this is a network; a profile is needed"),
        (Network, PROFILE, "this is a profile; a network is needed"),
        (Network, TESTBED | {"links": [LINK]}, "this is a testbed; a network is needed"),
        (Plan, PROFILE, "this is a profile; a plan is needed"),
        (_TestbedFile, {"links": [LINK]}, "this is a network; a testbed is needed"),
        (Network, {"link": []}, "links: missing; the field is required; .*: link: unknown field"),
    ],
)
def test_a_file_in_the_place_of_another_is_called_what_it_is(
    kind: type[BaseModel], content: dict, message: str
) -> None:
    with pytest.raises(InputError, match=f"^file.json: {message}$"):
        files.parse(kind, content, "file.json")


def test_kinds_of_files_are_told_apart_by_fields_that_they_have() -> None:
    for kind in (Profile, Network, Plan, Solution, Program, Jobs, ParameterFile, Record, NotebookRecord, Report):
        assert files.KINDS[kind.__name__][1] <= kind.model_fields.keys()
    assert files.KINDS["_TestbedFile"][1] <= LocalSettings.model_fields.keys()
    assert len(files.KINDS) == 11


def test_a_device_a_fifo_and_a_link_stay_what_they_are(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        for path in (tmp_path / "fifo", tmp_path / "socket", "/dev/null", "/dev/full"):
            with pytest.raises(InputError, match="cannot be written: it is no regular file"):
                files.write_text(path, "text")
    assert stat.S_ISFIFO((tmp_path / "fifo").stat().st_mode)
    assert Path("/dev/null").is_char_device()
    (tmp_path / "link").symlink_to(tmp_path / "folder" / "target")
    files.write_text(tmp_path / "link", "first")
    files.write_text(tmp_path / "link", "second")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "folder" / "target").read_text() == "second"
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(InputError, match="loop: cannot be written"):
        files.write_text(tmp_path / "loop", "text")
    with pytest.raises(InputError, match="cannot be written: embedded null byte"):
        files.write_text("a\0b", "text")


def test_a_file_keeps_its_permissions_and_a_new_one_has_the_usual_ones(tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    files.write_bytes(tmp_path / "new", b"1")
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "usual").stat().st_mode
    (tmp_path / "new").chmod(0o640)
    files.write_bytes(tmp_path / "new", b"2")
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o640


def test_a_full_disk_and_an_interruption_leave_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "value.json"
    path.write_text("before")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"value.json: cannot be written: No space left on device"):
        files.write_text(path, "after")
    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        files.write_text(path, "after")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("value.json", "before")]


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates(),
    lambda part: st.lists(part, max_size=3) | st.dictionaries(st.text(max_size=8) | st.integers() | st.dates(), part),
    max_leaves=12,
)


def mutated(content: object, change: Callable[[], object], chosen: Callable[[int], int]) -> object:
    """``content`` with one value somewhere in it replaced."""
    if isinstance(content, dict) and content and chosen(4):
        key = list(content)[chosen(len(content) - 1)]
        return {**content, key: mutated(content[key], change, chosen)}
    if isinstance(content, list) and content and chosen(4):
        return [mutated(content[0], change, chosen), *content[1:]]
    return change()


@pytest.mark.parametrize("kind", [Profile, Network, Plan, Solution, Jobs, _TestbedFile, Record, ParameterFile])
@given(data=st.data())
def test_whatever_a_file_holds_it_is_a_value_or_an_error_of_one_line(
    kind: type[BaseModel], data: st.DataObject
) -> None:
    start = data.draw(st.sampled_from([PROFILE, {"links": [LINK]}, PLAN, TESTBED, None]))
    content = mutated(start, lambda: data.draw(ANYTHING), lambda most: data.draw(st.integers(0, most)))
    with TemporaryDirectory() as folder:
        for name, text in (
            ("value.json", json.dumps(content, default=str, skipkeys=True)),
            ("value.yml", yaml.safe_dump(content, allow_unicode=True)),
        ):
            path = Path(folder) / name
            path.write_bytes(text.encode(errors="surrogatepass"))
            assert_loads_or_says_why(kind, path)


@given(text=st.text(alphabet=st.characters(codec="utf-8")) | st.text("{}[]:,-&*!|>#'\"\\\n 0127eE.tfnu~?%@`<="))
def test_any_text_is_a_value_or_an_error_of_one_line(text: str) -> None:
    with TemporaryDirectory() as folder:
        for name in ("value.json", "value.yml"):
            (Path(folder) / name).write_text(text, encoding="utf-8")
            assert_loads_or_says_why(Network, Path(folder) / name)


def assert_loads_or_says_why(kind: type[BaseModel], path: Path) -> None:
    message = f"{path}: a value"
    try:
        files.load(kind, path)
    except InputError as error:
        message = str(error)
    assert message.startswith(f"{path}: ")
    assert message.isprintable()
    assert len(message) < 2000


@pytest.mark.skipif(not Path("/dev/stdout").is_symlink(), reason="needs /dev/stdout as on Linux")
@pytest.mark.parametrize("path", ["/dev/stdout", "/proc/self/fd/1"])
def test_what_is_open_already_is_not_replaced(path: str) -> None:
    with pytest.raises(InputError, match=f"{path}: cannot be written: it stands for a file that is open already"):
        files.check_output(path)


def test_of_two_kinds_the_one_that_the_file_is_names_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "either.json"
    path.write_text('{"plan": {}, "objective_s": true, "bound_s": 1}')
    with pytest.raises(InputError, match=r"either\.json: plan\.batch_size: missing"):
        files.load_one_of((Plan, Solution), path)
    path.write_text('{"batch_size": 0, "data_holder": "a", "workers": {}}')
    with pytest.raises(InputError, match=r"either\.json: batch_size: "):
        files.load_one_of((Plan, Solution), path)
