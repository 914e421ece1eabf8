"""Signals end every command, whatever the process waits for."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys

import pytest

from floodsearch import queue
from floodsearch.process.signals import listen
from floodsearch.storage.database import open_database
from floodsearch.storage.studies import put_study

LOCKED_OUT = """
import sqlite3, sys
real = sqlite3.connect
def connect(*arguments, **options):
    print("connects", file=sys.stderr, flush=True)
    return real(*arguments, **options)
sqlite3.connect = connect
from floodsearch.cli import main
main()
"""
"""The command line, which says when it is about to wait for the database."""


@pytest.fixture
def locked(tmp_path, make_spec):
    """Give the URL of a database that another process does not let anyone read or write."""
    url = f"sqlite:///{tmp_path}/studies.db"
    with open_database(url, create=True) as database:
        queue.fill(put_study(database, make_spec()))
    other = sqlite3.connect(tmp_path / "studies.db", isolation_level=None)
    other.execute("PRAGMA locking_mode=EXCLUSIVE")
    other.execute("BEGIN EXCLUSIVE")
    other.execute("DELETE FROM floodsearch_leases")
    yield url
    other.close()


@pytest.mark.parametrize(
    ("command", "number", "status"),
    [
        (["status"], signal.SIGINT, 130),
        (["best", "tiny"], signal.SIGTERM, 143),
        (["work", "tiny", "--device", "cpu", "--grace", "1"], signal.SIGTERM, 75),
    ],
)
def test_a_signal_ends_what_waits_for_a_lock(locked, tmp_path, command, number, status):
    """SQLite waits for a minute, in C, where Python hears of no signal; the lock is never given back."""
    process = subprocess.Popen(
        [sys.executable, "-c", LOCKED_OUT, *command, "--storage", locked],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert "connects\n" in iter(process.stderr.readline, "")
        process.send_signal(number)
        _, errors = process.communicate(timeout=45)  # the wait for the lock alone is longer
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == status, errors
    assert "Traceback" not in errors


def test_who_listens_last_hears_alone(eventually):
    """A signal is heard by a thread at once; who has ended hears nothing, and leaves the others theirs."""
    before = signal.signal(signal.SIGUSR2, lambda number, frame: None)
    heard = []
    end_first = listen(lambda number: heard.append(("first", number)))
    try:
        os.kill(os.getpid(), signal.SIGUSR2)
        eventually(lambda: heard == [("first", signal.SIGUSR2)])
        end_second = listen(lambda number: heard.append(("second", number)))
        end_first()
        os.kill(os.getpid(), signal.SIGUSR2)
        eventually(lambda: len(heard) == 2)
        assert heard[1] == ("second", signal.SIGUSR2)
        end_second()
        assert signal.set_wakeup_fd(-1) == -1
    finally:
        signal.signal(signal.SIGUSR2, before)
