"""Run records: what may be stored, what is refused, and what is known about the machine."""

import os
import subprocess
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hiertrain import files
from hiertrain.paths import ROOT
from hiertrain.problem.network import Link
from hiertrain.results import records
from hiertrain.results.environment import environment_record, package_versions
from hiertrain.results.records import load_record, new_run, record_path, recorded, remembered, run_folder, save_record
from hiertrain.values import InputError, RunError


@dataclass(frozen=True)
class Point:
    x: float


def test_a_record_returns_as_plain_values(tmp_path):
    link = Link(source="device", target="edge", bandwidth_mbps=8, latency_ms=0)
    results = {
        "median_s": np.float64(0.25),
        "counts": np.arange(3),
        "table": pd.DataFrame({"policy": ["a", "b"], "low_ms": [np.nan, 1.5]}),
        "link": link,
        "point": Point(2.0),
        "path": Path("x"),
        "nothing": None,
    }
    path = save_record("try", "02-profiling", {"batch_size": np.int64(8), "shape": (1, 2)}, results, tmp_path)
    assert path == tmp_path / "try" / "records" / "02-profiling.json"
    record = load_record("try", "02-profiling", tmp_path)
    assert (record.run, record.name) == ("try", "02-profiling")
    assert record.parameters == {"batch_size": 8, "shape": [1, 2]}
    assert record.results["median_s"] == 0.25
    assert record.results["counts"] == [0, 1, 2]
    assert record.results["table"] == [{"policy": "a", "low_ms": None}, {"policy": "b", "low_ms": 1.5}]
    assert files.parse(Link, record.results["link"], "record") == link
    assert record.results["point"] == {"x": 2.0}
    assert (record.results["path"], record.results["nothing"]) == ("x", None)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (float("nan"), r"record try/x: results\.value.*finite number, got nan"),
        ([1.0, np.inf], r"record try/x: results\.value.*finite number, got inf"),
        (np.array([np.nan]), r"record try/x: results\.value.*finite number, got nan"),
        (object(), r"record try/x: results: object cannot be stored as JSON, got <object"),
    ],
)
def test_what_json_cannot_hold_is_refused_and_leaves_no_file(tmp_path, value, message):
    with pytest.raises(InputError, match=message):
        save_record("try", "x", {}, {"value": value}, tmp_path)
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize("name", ["", "..", ".hidden", "a/b", "a b", "-option", "é", "a\n", "a" * 65, "\ud800"])
def test_names_are_plain_file_names(tmp_path, name):
    with pytest.raises(InputError, match="must be 1 to 64 letters, digits"):
        run_folder(name, tmp_path)
    with pytest.raises(InputError, match="must be 1 to 64 letters, digits"):
        save_record("try", name, {}, {}, tmp_path)
    assert run_folder("paper-2.1_b+", tmp_path) == tmp_path / "paper-2.1_b+"


def test_every_new_run_gets_a_folder_of_its_own(tmp_path):
    first, second = new_run(tmp_path / "train"), new_run(tmp_path / "train")
    assert (first.name, second.name) == ("0001", "0002")
    save_record(second.name, "train", {}, {}, second.parent)
    assert (second / "records" / "train.json").is_file()
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file/train: cannot be written: Not a directory"):
        new_run(tmp_path / "file" / "train")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_checkout_of_another_user_has_its_commit(tmp_path, monkeypatch):
    for arguments in (
        ["init", "-q"],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "a", "--allow-empty"],
    ):
        subprocess.run(["git", *arguments], cwd=tmp_path, check=True)
    for path in (tmp_path, tmp_path / ".git"):
        os.chown(path, 12345, 12345)
    monkeypatch.setattr("hiertrain.results.environment.ROOT", tmp_path)
    commit = environment_record().commit
    assert commit is not None
    assert len(commit) == 40


def test_a_missing_or_damaged_record_is_named(tmp_path):
    with pytest.raises(InputError, match=r"try/records/x\.json: No such file"):
        load_record("try", "x", tmp_path)
    files.write_text(tmp_path / "try" / "records" / "x.json", '{"run": "try"}')
    with pytest.raises(InputError, match=r"x\.json: name: missing"):
        load_record("try", "x", tmp_path)


def test_the_environment_names_machine_and_versions():
    here = environment_record()
    assert here.cpu
    assert here.cores >= 1
    assert here.time_utc.utcoffset() is not None
    assert here.versions == package_versions()
    assert {"hiertrain", "numpy", "ortools", "torch", "torchvision"} <= here.versions.keys()
    assert "pytest" not in here.versions  # a tool of development
    if (ROOT / ".git").exists():
        assert here.commit is not None
        assert len(here.commit) == 40
        assert here.dirty is not None


def test_versions_are_those_of_all_direct_dependencies_that_are_installed(monkeypatch):
    lines = ["torch==2", 'pandas==3; extra == "notebooks"', 'nowhere-to-be-found==1; extra == "notebooks"']
    monkeypatch.setattr(
        "hiertrain.results.environment.metadata.requires", lambda _: [*lines, 'pytest==9; extra == "dev"']
    )
    assert list(package_versions()) == ["hiertrain", "pandas", "torch"]


def test_a_failure_leaves_a_record_of_the_error_and_of_what_was_completed(tmp_path):
    failed = record_path("try", "train.failed", tmp_path)
    with pytest.raises(RunError, match="worker edge is gone"), recorded("try", "train", {"batch_size": 8}, tmp_path):
        raise RunError("worker edge is gone", completed={"iterations": 2, "losses": (0.5, 0.25)})
    record = load_record("try", "train.failed", tmp_path)
    assert record.parameters == {"batch_size": 8}
    assert record.results["error"] == "worker edge is gone"
    assert record.results["completed"] == {"iterations": 2, "losses": [0.5, 0.25]}
    with recorded("try", "train", {}, tmp_path):
        pass
    assert not failed.exists()


def test_a_result_is_computed_once_as_long_as_it_would_be_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[float] = []

    def compute(value: float) -> dict[str, object]:
        calls.append(value)
        return {"value": value}

    monkeypatch.setattr(compute, "__module__", "hiertrain.experiments.work")
    for value in (1.0, 1.0, 2.0):
        assert remembered("try", "point", {"value": value}, partial(compute, value), tmp_path) == {"value": value}
    assert calls == [1.0, 2.0]
    assert capsys.readouterr().out == "point: made anew; its parameters were others\n"
    path = record_path("try", "point", tmp_path)
    code = load_record("try", "point", tmp_path).code
    assert code is not None
    for old, new, reason in [
        (code, code[:-8], "code that it depends on was another"),
        (f'"{code}"', "null", "it does not say by the rule code-1 which code made it"),
        (code, code.replace("code-1:", "code-0:"), "it does not say by the rule code-1 which code made it"),
        (f'"cpu": "{environment_record().cpu}"', '"cpu": "another"', "it was made on another processor, another"),
        (f'"torch": "{package_versions()["torch"]}"', '"torch": "1"', "versions of packages were others"),
        ('"results"', '"outcome"', "results: missing"),
    ]:
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))
        calls.clear()
        for _ in range(2):
            remembered("try", "point", {"value": 2.0}, partial(compute, 2.0), tmp_path)
        assert calls == [2.0], reason
        printed = capsys.readouterr().out
        assert printed.startswith("point: made anew; "), printed
        assert reason in printed
    with pytest.raises(InputError, match="builtins: must be modules of"):
        remembered("try", "point", {}, dict, tmp_path)


def test_records_of_before_can_be_read() -> None:
    record = load_record("reference", "04-training")
    assert record.code is None
    assert record.environment.source


def test_other_runs_of_the_same_parameters_are_found(tmp_path: Path) -> None:
    save_record("one", "train", {"plan": {"depth": 1}, "seed": 0}, {"number": 1}, tmp_path)
    save_record("two", "train", {"plan": {"depth": 1}, "seed": 1}, {"number": 2}, tmp_path)
    save_record("three", "train", {"plan": {"depth": 2}}, {"number": 3}, tmp_path)
    files.write_text(tmp_path / "broken" / "records" / "train.json", "{}")
    assert records.same_runs("train", {"plan": {"depth": 1}}, tmp_path) == [{"number": 1}, {"number": 2}]
    assert records.same_runs("train", {"plan": {"depth": 1}}, tmp_path / "nowhere") == []
    training = {"model": {"name": "lenet5"}, "iterations": 5}
    save_record("four", "train", {"plan": {"depth": 1}, "training": training}, {"number": 4}, tmp_path)
    same = {"plan": {"depth": 1}, "training": {"model": {"name": "lenet5"}}}
    assert records.same_runs("train", same, tmp_path) == [{"number": 4}]
    assert records.same_runs("train", {"training": {"model": {"name": "vgg16"}}}, tmp_path) == []
