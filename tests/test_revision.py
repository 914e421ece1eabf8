"""The revision of the user's own code: which one it is, and who is told when it has changed."""

from __future__ import annotations

import logging
import subprocess

import pytest

from floodsearch import queue
from floodsearch.queries import status
from floodsearch.report.text import status_text
from floodsearch.storage.studies import put_study, read_trials
from floodsearch.usercode.revision import revision_of
from floodsearch.worker.leave import LeaveRequest
from floodsearch.worker.settings import WorkerSettings
from floodsearch.worker.work import work


def git(folder, *arguments):
    identity = ["-c", "user.name=me", "-c", "user.email=me@localhost", "-c", "commit.gpgsign=false"]
    return subprocess.run(
        ["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


def test_a_file_in_no_repository_is_told_by_its_content(tmp_path):
    path = tmp_path / "train.py"
    path.write_text("1")
    first = revision_of(path)
    assert first.startswith("sha256 ")
    path.write_text("2")
    assert revision_of(path) != first
    path.write_text("1")
    assert revision_of(path) == first


def test_a_file_in_a_repository_is_told_by_commit_and_differences(tmp_path):
    """Also by those of other files; one that git does not know is told by its content."""
    git(tmp_path, "init", "-q")
    folder = tmp_path / "code"
    folder.mkdir()
    path, other, unknown = folder / "train.py", tmp_path / "model.py", folder / "new.py"
    for one in (path, other):
        one.write_text("1")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    unknown.write_text("1")
    commit = git(tmp_path, "rev-parse", "HEAD")[:12]
    assert revision_of(path) == commit
    other.write_text("2")
    dirty = revision_of(path)
    assert dirty.startswith(f"{commit} dirty ")
    other.write_text("3")
    assert revision_of(path) not in (commit, dirty)
    assert revision_of(unknown).startswith("sha256 ")


def test_without_git_a_file_is_told_by_its_content(tmp_path, monkeypatch):
    path = tmp_path / "train.py"
    path.write_text("1")
    monkeypatch.setenv("PATH", "")
    assert revision_of(path).startswith("sha256 ")


LOOP = """
def train(run):
    for epoch in run.epochs():
        run.report(val_accuracy=0.5 + run.level / 10)
"""


def test_a_worker_with_other_code_says_so(database, make_spec, tmp_path, monkeypatch, caplog):
    """Once in its log, and `status` shows it; each trial keeps the revision that trained it."""
    caplog.set_level(logging.WARNING, logger="floodsearch")
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "changing_loop.py"
    path.write_text(LOOP)
    nothing = {"label_noise": None, "depth": None, "width": None}
    spec = make_spec(
        task=None,
        objective="changing_loop:train",
        options=nothing,
        training={"epochs": 2, "validate_every": 1},
    )
    study = put_study(database, spec)
    queue.fill(study)
    settings = WorkerSettings(device="cpu", checkpoints=tmp_path / "checkpoints", logs=tmp_path / "logs")
    first = revision_of(path)
    taken = queue.take(study, worker=99, revision=first)
    assert [one.revision for one in read_trials(study)] == [first, None, None]
    assert "code" not in status_text(status(study))
    queue.hand_back(taken[0])
    assert [one.revision for one in read_trials(study)] == [None, None, None]
    queue.complete(queue.take(study, worker=99, revision="0123456789ab")[0], 0.5, {})
    work(study, settings, LeaveRequest())
    assert [one.revision for one in read_trials(study)] == ["0123456789ab", first, first]
    assert caplog.text.count("but earlier tickets were trained at 0123456789ab") == 1
    assert f"a worker has changing_loop:train at revision {first}" in caplog.text
    assert status(study).revisions == ("0123456789ab", first)
    assert f"code      changed while it was searched: 0123456789ab, then {first}" in status_text(
        status(study)
    )


@pytest.mark.parametrize("storage_url", ["sqlite"], indirect=True)
def test_a_built_in_task_has_no_revision(database, make_spec, tmp_path):
    """It belongs to the version of floodsearch."""
    study = put_study(database, make_spec(levels={"count": 2}))
    queue.fill(study)
    work(study, WorkerSettings(device="cpu", checkpoints=tmp_path), LeaveRequest())
    assert {one.revision for one in read_trials(study)} == {None}
    assert status(study).revisions == ()
