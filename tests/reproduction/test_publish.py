"""A run becomes the reference whole, or nothing changes."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from hiertrain import files
from hiertrain.paths import RESULTS
from hiertrain.reproduction import publish as publishing
from hiertrain.reproduction.notebooks import NotebookRecord, digest_of_base, fingerprint
from hiertrain.reproduction.parameters import prepare
from hiertrain.reproduction.publish import executed, filled, obstacle, publish, readme_tables
from hiertrain.results.environment import environment_record
from hiertrain.values import InputError

NAMES = ("times", "largest", "claims", "errors", "accuracy", "ratios")
README = "# A title\n" + "".join(f"<!-- {name} -->\nto be replaced\n<!-- end -->\n" for name in NAMES) + "the end\n"
RUN = "paper"


def change_json(path: Path, **changes: object) -> None:
    content = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(content | changes), encoding="utf-8")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A checkout with a README, an old reference, and a run of today's paper.yml by one source that a commit has."""
    run = tmp_path / "results" / RUN
    shutil.copytree(RESULTS / "reference", run)
    add_newer(tmp_path)
    seal(tmp_path, commit="abc", dirty=False)
    (run / "report.html").write_text("not an output", encoding="utf-8")
    (run / "records" / "01-models.failed.json").write_text('{"environment": {}}', encoding="utf-8")
    old = tmp_path / "results" / "reference"
    old.mkdir()
    (old / "claims.md").write_text("of before", encoding="utf-8")
    (tmp_path / "README.md").write_text(README, encoding="utf-8")
    return tmp_path


def add_newer(root: Path) -> None:
    """What notebooks would leave that is newer than the recorded reference: files of another one."""
    jobs = prepare(RUN, results=root / "results")
    known = next(job for job in jobs if job.name == "10-scheduler")
    for job in jobs:
        if not job.path(".json").exists():
            shutil.copy(known.path(".json"), job.path(".json"))
            change_json(job.path(".json"), outputs={})
        for output in job.outputs:
            if not (job.folder / output).exists():
                same = next(other for other in known.outputs if Path(other).suffix == Path(output).suffix)
                shutil.copy(known.folder / same, job.folder / output)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def seal(root: Path, **environment: object) -> None:
    """Give all records this environment, and say that each notebook left its files as they are."""
    for path in (root / "results" / RUN / "records").glob("*.json"):
        change_json(path, environment=json.loads(path.read_text(encoding="utf-8"))["environment"] | environment)
    jobs, base = prepare(RUN, results=root / "results"), digest_of_base()
    for number, job in enumerate(jobs):
        record = files.load(NotebookRecord, job.path(".json"))
        digests = {output: digest(job.folder / output) for output in (*job.outputs, *record.outputs)}
        now = fingerprint(job, base, jobs[:number])
        change_json(job.path(".json"), parameters=dict(job.parameters), outputs=digests, fingerprint=now)
        job.path(".ipynb").touch()


def test_a_run_replaces_the_reference_and_fills_the_readme(root: Path) -> None:
    jobs = prepare(RUN, results=root / "results")
    outputs = {f"notebooks/{job.name}.json" for job in jobs}.union(*(executed(job).outputs for job in jobs))
    reference = publish(RUN, root)
    assert {str(path.relative_to(reference)) for path in reference.rglob("*") if path.is_file()} == outputs
    text = (root / "README.md").read_text(encoding="utf-8")
    for table in readme_tables(reference).values():
        assert table in text
    assert "to be replaced" not in text
    assert (text[:10], text[-8:]) == (README[:10], README[-8:])
    assert {path.name for path in (root / "results").iterdir()} == {RUN, "reference"}


def change_record(root: Path, **changes: object) -> None:
    """Of one record; its notebook says that it left it so."""
    path = root / "results" / RUN / "records" / "04-training.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    for key, value in changes.items():
        content["results" if key == "kind" else "environment"][key] = value
    path.write_text(json.dumps(content), encoding="utf-8")
    seal(root)


def execute_otherwise(root: Path) -> None:
    change_json(root / "results" / RUN / "notebooks" / "08-convergence.json", parameters={"run": RUN, "iterations": 2})


def execute_other_code(root: Path) -> None:
    path = root / "results" / RUN / "notebooks" / "08-convergence.json"
    change_json(path, fingerprint=files.load(NotebookRecord, path).fingerprint[:-8])


def interrupt(root: Path) -> None:
    (root / "results" / RUN / "notebooks" / "08-convergence.json").unlink()


def forget_what_is_shown(root: Path) -> None:
    path = root / "results" / RUN / "tables" / "06-policies.csv"
    policies = pd.read_csv(path)
    policies[policies["model"] != "lenet5"].to_csv(path, index=False)
    seal(root)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (interrupt, r"08-convergence.json: No such file"),
        (
            execute_otherwise,
            r"08-convergence.json: has the parameters .*'iterations': 2.*; must be .*'iterations': 120",
        ),
        (
            lambda root: (root / "results/paper/claims.md").unlink(),
            r"paper: claims.md is missing; must be as 99-claims left",
        ),
        (
            lambda root: (root / "results/paper/claims.md").write_text("better"),
            r"claims.md is not as the notebook left it; must",
        ),
        (forget_what_is_shown, r"06-policies.csv: has no rows of .*lenet5.*, which the README shows"),
        (lambda root: change_record(root, dirty=True), r"04-training.json: made by source that no commit has"),
        (lambda root: change_record(root, commit=None), r"04-training.json: made by source that no commit has"),
        (
            execute_other_code,
            r"08-convergence.json: the code, its parameters .* changed; a reference must be of the code",
        ),
        (lambda root: change_record(root, kind="emulated"), r"04-training.json: its times are emulated; a reference"),
        (lambda root: (root / "README.md").write_text("nothing"), r"README.md: has places for no table; must have one"),
    ],
)
def test_what_cannot_be_a_reference_changes_nothing(root: Path, spoil: Callable[[Path], None], message: str) -> None:
    spoil(root)
    readme = (root / "README.md").read_text(encoding="utf-8")
    with pytest.raises(InputError, match=message):
        publish(RUN, root)
    assert_as_before(root, readme)


def assert_as_before(root: Path, readme: str) -> None:
    assert [path.name for path in (root / "results" / "reference").iterdir()] == ["claims.md"]
    assert {path.name for path in (root / "results").iterdir()} == {RUN, "reference"}
    assert (root / "README.md").read_text(encoding="utf-8") == readme


def test_after_an_interruption_the_old_reference_is_back(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(publishing.files, "write_text", interrupted)
    with pytest.raises(KeyboardInterrupt):
        publish(RUN, root)
    assert_as_before(root, README)


def test_what_could_not_be_published_is_known_beforehand(monkeypatch: pytest.MonkeyPatch) -> None:
    here = environment_record()
    for changes, lacking, reason in (
        ({"commit": None, "dirty": None}, [], "there is no commit of its source: git is missing, or this is no"),
        ({"commit": "a", "dirty": True}, [], "its source differs from the commit: tracked files are changed"),
        ({"commit": "a", "dirty": False}, ["root"], "its times would be emulated: network namespaces need root"),
    ):
        monkeypatch.setattr(publishing, "environment_record", lambda changes=changes: here.model_copy(update=changes))
        monkeypatch.setattr(publishing, "missing", lambda lacking=lacking: lacking)
        assert (obstacle() or "").startswith(reason)
    monkeypatch.setattr(publishing, "missing", list)
    assert obstacle() is None


def test_a_mark_stands_for_one_table() -> None:
    with pytest.raises(InputError, match="has places for a, a; must have one each for a"):
        filled("<!-- a -->\n<!-- end -->\n" * 2, {"a": ""})
