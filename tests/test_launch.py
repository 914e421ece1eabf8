"""Launching: local workers that are started, watched, restarted, stopped, and never left behind."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import sqlalchemy

import floodsearch
from floodsearch.answer.tickets import count, latest
from floodsearch.errors import UsageError, WorkersFailedError
from floodsearch.launchers import local
from floodsearch.storage import tables
from floodsearch.storage.database import open_database
from floodsearch.storage.studies import find_study
from floodsearch.storage.trial_records import read_trials

TINY = {
    "name": "tiny",
    "task": "two_gaussians",
    "options": {"label_noise": 0.1, "width": 8, "depth": 1},
    "levels": {"high": 0.5, "count": 3},
    "training": {"epochs": 10, "seeds": 2, "validate_every": 2},
    "search": {"pruner": "none"},
}
TINY_TOML = """
name = "tiny"
task = "two_gaussians"
options = {label_noise = 0.1, width = 8, depth = 1}
levels = {high = 0.5, count = 3}
training = {epochs = 10, seeds = 2, validate_every = 2}
search = {pruner = "none"}
"""

GATED = '''
import pathlib, sys, time
import torch
from torch import nn
from floodsearch.tasks.task import Data, Recipe, Split, Task

HERE = pathlib.Path(__file__).parent

def task() -> Task:
    """Twenty points; workers wait until there is a file `go`, and are slow while there is a file `slow`."""

    def data(seed):
        torch.manual_seed(seed)
        inputs = torch.randn(20, 2)
        split = Split(inputs, (inputs.sum(dim=1) > 0).long())
        return Data(train=split, validation=split, test=split)

    def loss(outputs, labels):
        while "work" in sys.argv and not (HERE / "go").exists():
            time.sleep(0.005)
        if (HERE / "slow").exists():
            time.sleep(0.02)
        return nn.functional.cross_entropy(outputs, labels)

    return Task(data=data, model=lambda: nn.Linear(2, 2), recipe=Recipe(batch_size=20), loss=loss)
'''
GATED_TOML = """
name = "tiny"
task = "gated:task"
levels = {high = 0.9, count = 3}
training = {epochs = 60, seeds = 2, validate_every = 20}
search = {pruner = "none"}
"""


def gone(pid):
    """Return whether a process has ended, whoever has to collect it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except FileNotFoundError:
        return True


def catches(pid, number):
    """Return whether a process has a handler for a signal; a worker gives it up when it is first told."""
    status = Path(f"/proc/{pid}/status").read_text()
    [mask] = [line.split()[1] for line in status.splitlines() if line.startswith("SigCgt")]
    return bool(int(mask, 16) >> (number - 1) & 1)


class Launched:
    """`floodsearch launch` of the gated study as a process, in a folder of its own."""

    def __init__(self, folder, url):
        self.folder, self.url = folder, url
        (folder / "gated.py").write_text(GATED)
        (folder / "study.toml").write_text(GATED_TOML)
        self.process = None
        self.database = open_database(url, create=True)

    def start(self, *arguments):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "floodsearch", "launch", "study.toml", "--devices", "cpu", *arguments],
            cwd=self.folder,
            env={**os.environ, "FLOODSEARCH_STORAGE": self.url},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        return self.process

    def open_gate(self):
        (self.folder / "go").touch()

    def end(self):
        """Wait until the launch is over; return its exit status, output and messages."""
        out, errors = self.process.communicate(timeout=120)
        return self.process.returncode, out, errors

    @property
    def study(self):
        return find_study(self.database, "tiny")

    def workers(self):
        try:
            return tables.read_workers(self.database, self.study.uuid)
        except UsageError:  # the launch has not made the study yet
            return []

    def trials(self):
        return read_trials(self.study) if self.workers() else []

    def running(self):
        return count(self.trials()).running

    def states(self):
        return {ticket: trial.state for ticket, trial in sorted(latest(self.trials()).items())}

    def logs(self):
        return "".join(log.read_text() for log in sorted(self.folder.glob("floodsearch-logs/*/*.log")))

    def close(self):
        self.open_gate()
        (self.folder / "slow").unlink(missing_ok=True)
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
        for worker in self.workers():
            # Its own command line shows that the process is really one of ours.
            command = Path(f"/proc/{worker.pid}/cmdline")
            if not gone(worker.pid) and b"--leave-on-eof" in command.read_bytes():
                os.kill(worker.pid, signal.SIGKILL)
        self.database.close()


@pytest.fixture
def launched(tmp_path):
    """Give a launch that is not yet started, on SQLite."""
    one = Launched(tmp_path, f"sqlite:///{tmp_path}/studies.db")
    yield one
    one.close()


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Work in a folder of the test's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


# From Python


@pytest.mark.parametrize("storage_url", ["sqlite"], indirect=True)  # PostgreSQL: the last test
def test_launch_returns_the_answer(storage_url, here):
    """`floodsearch.launch` trains a study and returns its best level; launching again trains nothing."""
    best = floodsearch.launch(TINY, storage=storage_url, workers=2, devices="cpu")
    assert (best.study, best.finished, best.seeds) == ("tiny", True, 2)
    assert best.level in (0.0, 0.25, 0.5)
    assert (best.trials.complete, best.trials.total) == (3, 3)
    assert best.epochs_run <= best.epochs_exhaustive == 60
    assert best.baseline is not None

    (here / "tiny.toml").write_text(TINY_TOML)
    again = floodsearch.launch(here / "tiny.toml", storage=storage_url, workers=2, devices="cpu")
    assert again == best == floodsearch.best("tiny", storage=storage_url)
    database = open_database(storage_url)
    assert 1 <= len(tables.read_workers(database, find_study(database, "tiny").uuid)) <= 2
    database.close()


def test_launch_trains_a_task_of_the_users_own(here):
    """A task that the caller can import is trained by the workers too."""
    (here / "gated.py").write_text(GATED)
    (here / "go").touch()
    study = {"name": "mine", "task": "gated:task", "levels": {"high": 0.5, "count": 2}}
    study["training"] = {"epochs": 4, "seeds": 1, "validate_every": 2}
    best = floodsearch.launch(study, storage=f"sqlite:///{here}/studies.db", workers=1, devices="cpu")
    assert (best.finished, best.trials.complete) == (True, 2)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"workers": 0}, "--workers is 0"),
        ({"workers": -1}, "--workers is -1"),
        ({"workers_per_device": 0}, "--workers-per-device is 0"),
        ({"workers": 1, "workers_per_device": 1}, "are both given; keep one"),
        ({"devices": "cuda:99"}, "'cuda:99' does not exist; this machine has"),
        ({"devices": "cpu,abacus"}, "'abacus' is not known; this machine has"),
    ],
)
def test_a_crew_that_cannot_be_is_refused(here, arguments, said):
    """A wrong number of workers or device is refused before anything is made."""
    with pytest.raises(UsageError) as caught:
        floodsearch.launch(TINY, storage=f"sqlite:///{here}/studies.db", **{"devices": "cpu", **arguments})
    assert said in str(caught.value)
    assert not list(here.iterdir())


def test_workers_that_cannot_start_are_given_up(here, monkeypatch):
    """Workers that die whenever they are started end the launch, with their log and its last words."""
    broken = (sys.executable, "-c", "raise SystemExit('the disk is on fire')")
    monkeypatch.setattr(local, "FLOODSEARCH", broken)
    with pytest.raises(WorkersFailedError) as caught:
        floodsearch.launch(TINY, storage=f"sqlite:///{here}/studies.db", workers=2, devices="cpu")
    message = str(caught.value)
    assert "is given up: it died 4 times in a row" in message
    assert "ended with exit status 1" in message
    assert "floodsearch-logs/tiny/worker-" in message
    assert message.endswith("the disk is on fire")
    for log in (here / "floodsearch-logs" / "tiny").glob("*.log"):
        assert log.read_text().count("the disk is on fire") == 4


@pytest.mark.parametrize(
    ("budget", "said"),
    [({"epochs": 1}, "the budget of 1 epochs"), ({"hours": 1e-9}, "the budget of 1e-09 hours")],
)
def test_a_tiny_budget_ends_a_launch_with_what_to_raise(here, command, budget, said):
    """Less than a level costs: the launch is over, not waiting, and says so in a line."""
    (here / "tiny.toml").write_text(
        f"{TINY_TOML}\n[budget]\n" + "\n".join(f"{k} = {v}" for k, v in budget.items())
    )
    code, out, errors = command("launch", "tiny.toml", "--devices", "cpu", "--workers", "1")
    assert code in (0, 1)
    assert said in out + errors
    assert "Traceback" not in out + errors


# As a process that is interrupted and killed


def test_two_launches_at_once_share_one_study(launched, eventually):
    """Of one file, in one folder: both end well, with one answer, and no ticket is trained twice."""
    first = launched.start("--workers", "1")
    second = launched.start("--workers", "1")
    eventually(lambda: launched.running() == 2)
    launched.open_gate()
    ended = [(*one.communicate(timeout=120), one.returncode) for one in (first, second)]
    assert [status for *_, status in ended] == [0, 0], ended
    assert len({out for out, *_ in ended}) == 1
    assert launched.states() == dict.fromkeys(range(3), "complete")
    assert len(launched.trials()) == 3
    assert len({worker.pid for worker in launched.workers()}) == 2


def test_a_killed_worker_is_restarted(launched, eventually):
    """A worker killed with SIGKILL is started again, its ticket is trained anew, and the study completes."""
    launched.start("--workers", "2")
    eventually(lambda: launched.running() == 2)
    first = {worker.pid: worker.id for worker in launched.workers()}
    held = {trial.worker: trial.ticket for trial in launched.trials() if trial.state == "running"}
    victim = next(iter(first))
    os.kill(victim, signal.SIGKILL)
    eventually(lambda: len(launched.workers()) == 3, "a third worker")
    launched.open_gate()
    status, out, errors = launched.end()
    assert status == 0, errors
    assert "loss" in out
    assert launched.states() == dict.fromkeys(range(3), "complete")
    [lost] = [trial for trial in launched.trials() if trial.state != "complete"]
    assert (lost.cause, lost.worker, lost.ticket) == ("lost", first[victim], held[first[victim]])
    assert lost.reason == "its worker was killed by SIGKILL, perhaps for want of memory"
    [said] = [line for line in errors.splitlines() if "is started again" in line]
    assert said.startswith("floodsearch: worker ")
    assert "was killed by SIGKILL, perhaps for want of memory; it is started again" in said
    assert all(gone(worker.pid) for worker in launched.workers())
    assert all(worker.left is not None for worker in launched.workers())


def interrupt(launched, eventually, number):
    """Send a signal to the launch alone while two workers train; return how it ended."""
    (launched.folder / "slow").touch()
    launched.start("--workers", "2")
    eventually(lambda: launched.running() == 2)
    launched.process.send_signal(number)
    workers = [worker.pid for worker in launched.workers()]
    eventually(lambda: not any(catches(pid, signal.SIGTERM) for pid in workers), "the workers were told")
    launched.open_gate()
    status, _, errors = launched.end()
    assert "Traceback" not in errors
    assert all(gone(worker.pid) for worker in launched.workers())
    assert all(worker.left is not None for worker in launched.workers())
    assert launched.states() == dict.fromkeys(range(3), "waiting")
    (launched.folder / "slow").unlink()
    return status, errors


def test_an_interrupted_launch_can_be_continued(launched, eventually):
    """Ctrl-C hands all tickets back and leaves no worker; launching again completes each ticket once."""
    status, errors = interrupt(launched, eventually, signal.SIGINT)
    assert status == 130, errors
    assert "interrupted; give the same command again to go on" in errors
    launched.start("--workers", "2")
    status, _, errors = launched.end()
    assert status == 0, errors
    assert Counter(trial.state for trial in launched.trials()) == {"complete": 3}


def test_a_terminated_launch_hands_back(launched, eventually):
    """SIGTERM, as a cluster sends it, hands all tickets back and says by the exit status: start me again."""
    status, errors = interrupt(launched, eventually, signal.SIGTERM)
    assert status == 75, errors


def test_workers_leave_when_the_launch_is_killed(launched, eventually):
    """Workers of a launch that was killed with SIGKILL hand their tickets back and leave by themselves."""
    (launched.folder / "slow").touch()
    launched.start("--workers", "2")
    eventually(lambda: launched.running() == 2)
    launched.process.kill()
    launched.end()
    launched.open_gate()
    eventually(lambda: all(gone(worker.pid) for worker in launched.workers()), "the end of the workers")
    assert launched.states() == dict.fromkeys(range(3), "waiting")
    assert all(worker.left is not None for worker in launched.workers())
    assert "whoever started this worker is gone" in launched.logs()


def test_a_launch_survives_an_outage(launched, eventually):
    """While the database fails, the launch waits as its workers do, and then goes on."""
    launched.start("--workers", "2")
    eventually(lambda: launched.running() == 2)
    connection = sqlite3.connect(launched.folder / "studies.db", timeout=60, isolation_level=None)
    connection.execute("ALTER TABLE floodsearch_workers RENAME TO away")
    # Workers beat every five seconds, the launch looks ten times as often.
    eventually(lambda: "no beat" in launched.logs() or launched.process.poll() is not None, "a failed beat")
    connection.execute("ALTER TABLE away RENAME TO floodsearch_workers")
    connection.close()
    launched.open_gate()
    status, _, errors = launched.end()
    assert status == 0, errors
    assert launched.states() == dict.fromkeys(range(3), "complete")


# What others may see


@pytest.mark.postgres
def test_the_password_is_nowhere_to_be_seen(postgres_url, tmp_path, eventually):
    """A password in the URL is in no argument of a worker, no log and no message."""
    secret = "hunter2%7Bx"
    plain = sqlalchemy.make_url(f"x://u:{secret}@h").password
    launched = Launched(tmp_path, postgres_url.replace("floodsearch@", f"floodsearch:{secret}@"))
    try:
        launched.start("--workers", "2")
        eventually(lambda: launched.running() == 2)
        commands = [Path(f"/proc/{worker.pid}/cmdline").read_bytes() for worker in launched.workers()]
        arguments = b" ".join(commands).decode()
        assert arguments.count("--leave-on-eof") == 2
        launched.open_gate()
        status, out, errors = launched.end()
        assert status == 0, errors
        for text in (arguments, launched.logs(), out, errors):
            for word in (secret, plain):
                assert word not in text
        assert "ticket 0" in launched.logs()
    finally:
        launched.close()
