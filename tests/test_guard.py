"""The guard of a command: what runs under it ends with whoever runs it, one process of a run at a time."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import pytest
import torch

from floodsearch.artifacts.files import Folder
from floodsearch.catalog import judge_of
from floodsearch.process.guard import tree
from floodsearch.search.pauses import restart_pays
from floodsearch.training import room
from floodsearch.training import running as running_module
from floodsearch.training.running import RunningCommand

linux = pytest.mark.skipif(sys.platform != "linux", reason="by what Linux alone has")
RUN = "0123456789abcdef"
DEAF = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
code = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); signal.pause()"
child = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stdout=subprocess.PIPE)
child.stdout.readline()
print(os.getpid(), child.pid)
while True: time.sleep(0.01)
"""
"""A command that ends at no SIGTERM, with a child like it in a session of its own."""


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Start a program of Python under a guard."""
    monkeypatch.setattr(running_module, "GRACE_SECONDS", 0.2)
    started = []

    def begin(code, leaving=lambda: False, run=RUN):
        log = Folder(tmp_path).append("log")
        started.append(RunningCommand([sys.executable, "-c", code], log, run, leaving))
        return started[-1]

    yield begin
    for one in started:
        one.end()


def state(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "Z"


def pids(command):
    return [int(word) for word in next(command.lines()).split()]


@linux
def test_a_command_ends_with_all_that_it_has_started(start):
    """Also what is deaf to SIGTERM and has left its group."""
    command = start(DEAF)
    both = pids(command)
    assert set(both) <= set(tree(command.pid))
    command.end()
    assert [state(pid) for pid in both] == ["Z", "Z"]


@linux
def test_what_is_stopped_is_stopped_whole_and_hears_that_it_is_to_end(start, eventually):
    """SIGTERM comes to a process that is stopped when it goes on, and it trains no step between."""
    command = start(
        DEAF.replace("SIGTERM, signal.SIG_IGN)\ncode", "SIGTERM, lambda *_: sys.exit(print('saved')))\ncode")
    )
    both = pids(command)
    command.pause()
    eventually(lambda: [state(pid) for pid in both] == ["T", "T"], "the stop of both")
    command.go_on()
    eventually(lambda: "T" not in [state(pid) for pid in both], "both to go on")
    command.pause()
    eventually(lambda: [state(pid) for pid in both] == ["T", "T"], "the stop of both")
    command.ask_to_end()
    assert list(command.lines()) == [b"saved", b""]
    assert [state(pid) for pid in both] == ["Z", "Z"]


@linux
def test_a_guard_that_is_killed_takes_its_command_with_it(start, eventually):
    command = start("import os, time; print(os.getpid()); time.sleep(60)")
    [pid] = pids(command)
    os.kill(command.pid, signal.SIGKILL)
    eventually(lambda: state(pid) == "Z", "the end of the command")


@linux
def test_a_run_has_one_process_at_a_time(start, tmp_path):
    """The next one begins when the one before is gone with all that it has printed; other runs wait not."""
    first = start(DEAF)
    both = pids(first)
    other = start("print('beside')", run="f" * 16)
    assert next(other.lines()) == b"beside"
    assert "Z" not in [state(pid) for pid in both]
    second = start(f"import os; print([pid for pid in {both} if os.path.exists(f'/proc/{{pid}}')])")
    assert next(second.lines()) == b"[]"
    assert first.wait() == -signal.SIGKILL
    assert (tmp_path / "log").read_text().count(f"  # run {RUN}\n") == 2


@pytest.mark.parametrize(
    ("code", "status"), [("raise SystemExit(3)", 3), ("import os; os.kill(os.getpid(), 11)", -11), ("", 0)]
)
def test_a_guard_ends_as_its_command_did(start, code, status):
    command = start(code)
    assert list(command.lines()) == [b""]
    assert command.wait() == status


def test_output_that_nobody_reads_waits(start, tmp_path):
    """More than pipes hold, while it is stopped; nothing of it is lost, and the log has it too."""
    command = start("print(*(f'{n:09}' for n in range(150_000)), sep='\\n', end='')")
    lines = command.lines()
    assert next(lines) == b"%09d" % 0
    command.pause()
    command.go_on()
    assert len(list(lines)) == 150_000 - 1
    assert (tmp_path / "log").read_bytes().count(b"\n") == 150_000


def test_a_process_is_kept_where_another_fits_beside_it(monkeypatch):
    """A fifth of the memory is left to others, on the GPU as much as one process has."""
    pid = os.getpid()
    monkeypatch.setattr(room, "tree", lambda _: [pid])
    own = room._resident(pid)
    assert own > 10**6
    for left, fits in ((0.21, True), (0.19, False)):
        monkeypatch.setattr(room, "_memories", lambda left=left: [(own + int(left * 10**12), 10**12)])
        assert room.room_for_another(pid, 0, torch.device("cpu")) is fits
    monkeypatch.setattr(room, "_memories", lambda: [])
    for free, stopped, fits in ((70, 0, True), (40, 0, False), (40, 1, True), (10, 7, False), (12, 7, True)):
        monkeypatch.setattr("torch.cuda.mem_get_info", lambda _, free=free: (free, 100))
        assert room.room_for_another(pid, stopped, torch.device("cuda")) is fits


def test_a_restart_pays_where_few_go_on_early(make_spec):
    judge = judge_of(make_spec(search={"pruner": "halving"}, training={"epochs": 100, "validate_every": 1}))
    assert [rung for rung in judge.rungs if restart_pays(judge, 9, rung, 100)] == [8, 16, 32, 64]
    assert [rung for rung in judge.rungs if restart_pays(judge, 2, rung, 100)] == [8, 16, 32]


def test_what_a_log_says_is_json(start):
    """A line stays whole, however it comes through the pipes."""
    command = start(
        "import time\nfor part in ('{\"epoch\"', ': 1', '}\\n'): print(end=part); time.sleep(0.01)"
    )
    assert json.loads(next(command.lines())) == {"epoch": 1}
