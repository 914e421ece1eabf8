"""Supervision: why workers ended, how often their places are taken again, and that all of it is said."""

from __future__ import annotations

import os
import signal
import socket
import sys
from pathlib import Path

import pytest

from floodsearch import queue
from floodsearch.answer.best import latest
from floodsearch.errors import WorkersFailedError
from floodsearch.launchers import local, supervision
from floodsearch.launchers.local import Crew, Launch, idle_text
from floodsearch.launchers.supervision import CRASHES, KILLS, Death, Patience, last_line, memory_kills
from floodsearch.queries import status
from floodsearch.records import Attribute, EpochRecord
from floodsearch.storage import tables
from floodsearch.storage.database import open_database
from floodsearch.storage.studies import put_study, read_trials
from floodsearch.worker.leave import LeaveRequest
from floodsearch.worker.settings import WorkerSettings
from floodsearch.worker.work import work

KILLED = Death(-signal.SIGKILL, out_of_memory=False, progress=False, said="")
CRASHED = Death(1, out_of_memory=False, progress=False, said="")


# How often


def test_a_worker_that_did_something_is_followed_at_once_however_often():
    """A preempted worker may die a hundred times: as long as each trains something, there is a next one."""
    patience = Patience()
    for status_ in (1, -signal.SIGKILL, -signal.SIGSEGV) * 100:
        assert patience.pause(Death(status_, out_of_memory=False, progress=True, said="")) == 0


def test_workers_that_do_nothing_are_followed_after_growing_pauses_and_then_no_more():
    """Those that fall by themselves a few times, those that something else kills many times."""
    patience = Patience()
    assert [patience.pause(CRASHED) for _ in range(CRASHES)] == [0.5, 1, 2, None]
    patience = Patience()
    pauses = [patience.pause(KILLED) for _ in range(KILLS)]
    assert pauses[:6] == [0.5, 1, 2, 4, 8, 10]
    assert pauses[-2:] == [10, None]


def test_only_deaths_in_a_row_count():
    """A worker that did something wipes out what was before it."""
    patience = Patience()
    for _ in range(10):
        assert [patience.pause(CRASHED) for _ in range(CRASHES - 1)] == [0.5, 1, 2]
        assert patience.pause(Death(1, out_of_memory=False, progress=True, said="")) == 0


def test_a_worker_that_is_killed_for_want_of_memory_each_time_is_not_restarted_for_ever():
    """The next one needs as much."""
    patience, death = Patience(), Death(-signal.SIGKILL, out_of_memory=True, progress=False, said="")
    assert [patience.pause(death) for _ in range(CRASHES)][-1] is None


# Why


@pytest.mark.parametrize(
    ("code", "short", "cause"),
    [
        (1, False, "ended with exit status 1"),
        (75, False, "ended with exit status 75 (it was asked to leave)"),
        (-signal.SIGSEGV, False, "was killed by SIGSEGV"),
        (-signal.SIGKILL, False, "was killed by SIGKILL, perhaps for want of memory"),
        (-signal.SIGKILL, True, "was killed by SIGKILL, for want of memory"),
        (-40, False, "was killed by signal 40"),
    ],
)
def test_the_cause_of_a_death_is_named(code, short, cause):
    assert Death(code, out_of_memory=short, progress=False, said="").cause == cause


@pytest.mark.parametrize(
    ("groups", "file", "content"),
    [
        ("0::/user.slice/a\n", "user.slice/a/memory.events", "low 0\noom 4\noom_kill 3\n"),
        ("0::/of/the/host\n", "memory.events", "oom_kill 3\n"),  # as a container sees it
        ("4:cpu,memory:/a\n0::/\n", "memory/a/memory.oom_control", "under_oom 0\noom_kill 3\n"),
    ],
)
def test_the_kernel_is_asked_for_kills_for_want_of_memory(tmp_path, groups, file, content):
    """Of the control group of the launch, of either version."""
    (tmp_path / "cgroup").write_text(groups)
    path = tmp_path / "mounted" / file
    path.parent.mkdir(parents=True)
    path.write_text(content)
    assert memory_kills(tmp_path / "cgroup", tmp_path / "mounted") == 3


def test_a_kernel_that_tells_nothing_has_killed_nobody(tmp_path):
    assert memory_kills(tmp_path / "none", tmp_path) == 0
    (tmp_path / "cgroup").write_text("0::/\n")
    assert memory_kills(tmp_path / "cgroup", tmp_path) == 0


def test_the_last_line_of_a_log_is_of_the_process_that_ended(tmp_path):
    """Not of the one before it, and without the name that every message begins with."""
    path = tmp_path / "worker-0.log"
    assert last_line(path) == "nothing"
    path.write_text("old\n")
    since = path.stat().st_size
    assert last_line(path, since) == "nothing"
    path.write_text("old\nfloodsearch: the disk is full\n\n")
    assert last_line(path, since) == "the disk is full"
    path.write_bytes(b"x\n" * 100_000 + b"no text: \xff\n")
    assert last_line(path) == "no text: \N{REPLACEMENT CHARACTER}"


# Launches of processes that do as they are told


@pytest.fixture
def study(tmp_path, monkeypatch, make_spec):
    """Give a filled study, in a folder of its own, with a launch that looks often and pauses shortly."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(local, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(supervision, "FIRST_PAUSE", 0.01)
    database = open_database(f"sqlite:///{tmp_path}/studies.db", create=True)
    made = put_study(database, make_spec())
    queue.fill(made)
    yield made
    database.close()


@pytest.fixture
def launch(study, monkeypatch):
    """Launch workers that run some code instead of training."""

    def start(code, workers=1):
        monkeypatch.setattr(local, "FLOODSEARCH", (sys.executable, "-S", "-c", code))
        return Launch(study, "unused", Crew(devices=("cpu",) * workers, threads=1))

    return start


RECORD = EpochRecord(
    seed=0, epoch=1, level=0, train_loss=1, train_accuracy=0, flooded=0, val_loss=1, val_accuracy=0
)
WAITS = "import sys; sys.stdin.read()"


def test_a_worker_that_was_told_nonsense_ends_the_launch_at_once(launch):
    """Exit status 2: it would never do better, so that it is not started again, and nor are others."""
    code = "open('starts', 'a').write('x'); print('floodsearch: no such device'); raise SystemExit(2)"
    with pytest.raises(WorkersFailedError) as error, launch(code) as launched:
        list(launched.watch())
    assert str(error.value).startswith("worker 0 cannot work: no such device; see ")
    assert Path("starts").read_text() == "x"


def test_each_restart_and_the_end_of_all_are_said_with_their_causes(launch):
    """And how long the pause is, and what the log ends with."""
    said = []
    with launch("raise SystemExit('no luck')") as launched, pytest.raises(WorkersFailedError) as error:  # noqa: PT012
        for look in launched.watch():
            said += look.said
    ends = "floodsearch-logs/tiny/worker-0.log ends with: no luck"
    assert said[:2] == [
        f"worker 0 ended with exit status 1; it is started again in {pause} s; {ends}"
        for pause in (0.01, 0.02)
    ]
    given_up = "worker 0 is given up: it died 4 times in a row without having trained anything new, and ended"
    assert str(error.value) == f"{given_up} with exit status 1; {ends}"
    assert len(said) == CRASHES - 1


def test_a_worker_that_ends_as_if_it_were_done_is_followed_by_another(launch):
    """Code of the user's own may leave with any exit status, in the middle of its training."""
    with launch("print('bye')") as launched, pytest.raises(WorkersFailedError) as error:
        list(launched.watch())
    assert "ended with exit status 0" in str(error.value)


def test_others_go_on_when_one_is_given_up(launch, study, tmp_path):
    """The launch says who is left, and is no failure when these finish the study."""
    code = """
import os, sys, time
try:
    os.close(os.open("first", os.O_CREAT | os.O_EXCL))
except FileExistsError:
    sys.exit("no luck")
while not os.path.exists("done"):
    time.sleep(0.01)
"""
    said = []
    with launch(code, workers=2) as launched:
        for look in launched.watch():
            said += look.said
            if said and said[-1].endswith("1 of 2 workers are left"):
                work(
                    study,
                    WorkerSettings(device="cpu", threads=1, checkpoints=tmp_path / "kept"),
                    LeaveRequest(),
                )
                (tmp_path / "done").touch()
    assert status(study).finished
    assert sum("is started again" in text for text in said) == CRASHES - 1


def held(study, pid):
    """Enter a worker of a process and give it a ticket."""
    enter = {"host": socket.gethostname(), "pid": pid, "device": "cpu", "versions": {}}
    worker = tables.enter_worker(study.database, study.uuid, **enter)
    [ticket] = queue.take(study, worker)
    return worker, ticket


def killed(launched):
    """Kill the worker of a launch, and return what the launch says of it."""
    looks = launched.watch()
    next(looks)
    os.kill(launched.slots[0].process.pid, signal.SIGKILL)
    return next(look.said for look in looks if look.said)[0]


@pytest.mark.parametrize("leaving", [False, True])
def test_tickets_of_a_worker_wait_again_however_it_ended(launch, study, leaving):
    """Also if it has said that it leaves, and not what becomes of them."""
    with launch(WAITS) as launched:
        worker, ticket = held(study, launched.slots[0].process.pid)
        tables.beat(study.database, worker, epochs_run=0, training=(ticket.number,), leaving=leaving)
        killed(launched)
    newest = latest(read_trials(study, results=False))[ticket.number]
    assert (newest.state, newest.attempt) == ("waiting", 2)
    [reason] = [one.reason for one in status(study).notes if one.ticket == ticket.number]
    assert reason == "its worker was killed by SIGKILL, perhaps for want of memory"


def test_what_a_worker_has_trained_is_known_also_of_one_that_never_told_its_epochs(launch, study):
    """One that lives for a few seconds only may have completed tickets: it is followed at once."""
    with launch(WAITS) as launched:
        _, ticket = held(study, launched.slots[0].process.pid)
        queue.record([queue.Entry(ticket, [RECORD], {})])
        queue.complete(ticket, 0.5, {Attribute.VALUE_SE: None})
        assert "it is started again; " in killed(launched)


def test_epochs_that_were_known_already_are_no_progress(launch, study):
    """A worker that dies in the same epoch each time has trained, and not a bit further."""
    with study.database.write() as connection:
        tables.write_curves(connection, study.uuid, 0, [RECORD])
    with launch(WAITS) as launched:
        worker, ticket = held(study, launched.slots[0].process.pid)
        queue.record([queue.Entry(ticket, [RECORD], {})])
        tables.beat(study.database, worker, epochs_run=1, training=(ticket.number,))
        assert "it is started again in 0.01 s" in killed(launched)


def test_a_process_that_does_not_leave_a_finished_study_is_ended(launch, study, tmp_path, monkeypatch):
    """As where code of the user's own has left a thread behind, for which Python waits."""
    monkeypatch.setattr(local, "STOP_SECONDS", 0.1)
    said = []
    with launch("import signal; signal.pause()") as launched:
        work(study, WorkerSettings(device="cpu", threads=1, checkpoints=tmp_path / "kept"), LeaveRequest())
        for look in launched.watch():
            said += look.said
    assert said[-1] == "workers that did not leave a finished study were ended"
    assert all(text.startswith("warning: ") for text in said[:-1])  # of levels that do not flood


# What is said first


def test_workers_that_have_nothing_to_train_are_told(make_spec):
    """Halving has a worker a bracket; without it there is one a ticket."""
    one = make_spec(search={"pruner": "halving"})
    assert "1 of 2 workers has nothing to train: the levels are 1 bracket" in idle_text(one, 2)
    two = make_spec(search={"pruner": "halving"}, halving={"brackets": 2})
    assert idle_text(two, 2) is None
    assert "2 of 4 workers have nothing to train: the levels are 2 brackets" in idle_text(two, 4)
    assert "1 of 4 workers has nothing to train: there are 3 tickets" in idle_text(make_spec(), 4)
    assert idle_text(make_spec(), 3) is None
