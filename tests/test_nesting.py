"""No search inside a search: what a worker, or an import that anybody does for a study, may not start."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading

import pytest

from floodsearch import cli, queue
from floodsearch.catalog import find_loop
from floodsearch.errors import NestedError, TaskError
from floodsearch.process.nesting import MARK, importing, inside, refuse
from floodsearch.storage.studies import find_study, put_study, read_trials
from floodsearch.worker.leave import LeaveRequest
from floodsearch.worker.settings import WorkerSettings
from floodsearch.worker.work import work

sqlite = pytest.mark.parametrize("storage_url", ["sqlite"], indirect=True)
GUARD = 'put that under `if __name__ == "__main__":`'
UNGUARDED = """
import floodsearch

def train(run):
    run.restore()
    for _ in run.epochs():
        run.report(val_accuracy=0.5)

floodsearch.launch(
    {"name": "m", "objective": "train:train", "levels": {"high": 0.5, "count": 3}, "training": {"epochs": 2}},
    workers=1,
)
"""
CATCHES = """
import floodsearch

def start():
    try:
        floodsearch.launch("nothing.toml")
    except BaseException as error:
        print("caught", error)

def train(run):
    {in_training}
    for _ in run.epochs():
        run.report(val_accuracy=0.5)

{in_import}
"""


@pytest.fixture
def run_here(tmp_path, database, make_spec, write_code):
    """Work on a study of a training loop; give the study, and what the worker raised or returned."""

    def run(source):
        spec = make_spec(objective=f"{write_code(source)}:train", task=None, options=None)
        study = put_study(database, spec)
        queue.fill(study)
        work(
            study,
            WorkerSettings(device="cpu", threads=1, checkpoints=tmp_path / "checkpoints"),
            LeaveRequest(),
        )
        return study

    return run


# In this process


def test_places_are_marked_for_as_long_as_they_last(monkeypatch):
    """The mark is that of the innermost place, and gone at the end."""
    monkeypatch.delenv(MARK, raising=False)
    refuse("a search")
    with inside("a worker"):
        with inside("an import"):
            assert os.environ[MARK] == "an import"
        assert os.environ[MARK] == "a worker"
    assert MARK not in os.environ


def test_what_was_refused_is_raised_at_the_end_too():
    """The code that was told may have caught it; whoever waits for that code is told at once."""
    said = []
    with pytest.raises(NestedError, match="a search cannot be started inside of a worker; "):  # noqa: PT012
        with inside("a worker", said.append), contextlib.suppress(NestedError):
            refuse("a search")
        pytest.fail("it was not raised")
    assert len(said) == 1


def test_workers_in_several_threads_leave_no_mark_behind():
    """In whatever order they end."""
    first, second = threading.Event(), threading.Event()

    def one():
        with inside("one"):
            first.set()
            second.wait(10)

    thread = threading.Thread(target=one)
    thread.start()
    first.wait(10)
    with inside("two"):
        second.set()
        thread.join()
        assert os.environ[MARK] == "two"
    assert MARK not in os.environ


def test_a_process_that_an_import_started_imports_no_study():
    """A file that checks its own study where it is imported would import itself without end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(MARK, "the import of 'train:train'")
        with pytest.raises(NestedError, match="another import of a study's code"), importing("other:train"):
            pass
        patch.setenv(MARK, "a worker of study 'tiny'")
        with importing("other:train"):  # a worker's child may look at a study
            pass


@pytest.mark.parametrize("caught", [False, True])
def test_an_import_that_starts_a_search_is_refused(write_code, caught):
    """Also where the file catches what it is told."""
    start = "start()" if caught else 'floodsearch.launch("nothing.toml")'
    module = write_code(CATCHES.format(in_training="", in_import=start))
    with pytest.raises(TaskError) as error:
        find_loop(f"{module}:train")
    assert f"'{module}:train' cannot be imported: a search cannot be started inside of" in str(error.value)
    assert GUARD in str(error.value)
    assert MARK not in os.environ


@sqlite
@pytest.mark.parametrize("start", ["start()", 'floodsearch.launch("nothing.toml")'])
def test_a_training_that_starts_a_search_ends_its_worker(run_here, database, start):
    """With one line and no ticket in its hands, also where the loop goes on as if nothing had been said."""
    with pytest.raises(NestedError, match="inside of a worker of study 'tiny'"):
        run_here(CATCHES.format(in_training=start, in_import=""))
    assert "running" not in {one.state for one in read_trials(find_study(database, "tiny"), results=False)}
    assert MARK not in os.environ


@sqlite
def test_what_a_training_starts_bears_the_mark(run_here, tmp_path):
    """Ranks, loaders of data and scripts inherit it; nothing is left of it behind the worker."""
    path = tmp_path / "mark"
    run_here(f"""
import os, pathlib

def train(run):
    for _ in run.epochs():
        run.report(val_accuracy=0.5)
    pathlib.Path({str(path)!r}).write_text(os.environ[{MARK!r}])
""")
    assert path.read_text() == "a worker of study 'tiny'"
    assert MARK not in os.environ


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (["launch", "study.toml"], "a search"),
        (["launch", "study.toml", "--detach"], "a search"),
        (["work", "study"], "a worker"),
        (["work", "study.toml", "--leave-on-eof"], "a worker"),
    ],
)
def test_the_command_line_refuses_under_the_mark(monkeypatch, capsys, tmp_path, arguments, what):
    """Before it opens or makes anything, in one line, with the exit status of wrong use."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(MARK, "a worker of study 'tiny'")
    monkeypatch.setattr(sys, "argv", ["floodsearch", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    told = f"floodsearch: {what} cannot be started inside of a worker of study 'tiny'; "
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(told)
    assert not list(tmp_path.iterdir())


# As people write it


def test_a_script_without_a_main_guard_starts_no_worker(tmp_path):
    """It is told before anything is made; a timer ends it if it goes on."""
    (tmp_path / "train.py").write_text(UNGUARDED)
    process = subprocess.Popen(
        [sys.executable, "train.py"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        _, errors = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, 9)
    assert process.returncode == 1
    assert "'train:train' cannot be imported" in errors.splitlines()[-1]
    assert GUARD in errors.splitlines()[-1]
    assert [path.name for path in tmp_path.iterdir() if path.name != "__pycache__"] == ["train.py"]
