import json
import os
from pathlib import Path

import pytest

from hiertrain import files
from hiertrain.network import Network
from hiertrain.plan import Plan
from hiertrain.profile import Profile
from hiertrain.testbeds.settings import LocalSettings
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
