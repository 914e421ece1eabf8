"""What fails while a study is used: told in a line of ours, and tried again only where that can help."""

from __future__ import annotations

import shutil
import sqlite3
import threading

import pytest
import sqlalchemy
import torch
from optuna.exceptions import StorageInternalError

from floodsearch import queue
from floodsearch.errors import StorageError, StorageFailedError, StudyDeletedError, TicketLostError
from floodsearch.launchers.crew import Crew
from floodsearch.launchers.local import Launch
from floodsearch.queries import status
from floodsearch.records import Decision
from floodsearch.storage.database import open_database
from floodsearch.storage.failures import failure, lasts
from floodsearch.storage.studies import delete_study, find_study, put_study
from floodsearch.storage.trial_records import read_measured, read_trials
from floodsearch.worker.leave import LeaveRequest
from floodsearch.worker.settings import WorkerSettings
from floodsearch.worker.trainers import CohortTrainer
from floodsearch.worker.work import work

HASTY = WorkerSettings(device="cpu", threads=1, beat_seconds=0.05)


def interrupted(happens):
    """Return a trainer that trains as ever, but lets something happen before it begins."""

    def trainer(*arguments):
        happens()
        return CohortTrainer(torch.device("cpu"))(*arguments)

    return trainer


def put(database, spec):
    study = put_study(database, spec)
    queue.fill(study)
    return study


def remove(path):
    """Remove a database, as somebody who tidies up."""
    for name in (path.name, f"{path.name}-wal", f"{path.name}-shm"):
        (path.parent / name).unlink(missing_ok=True)


def replace(path):
    """Put a copy in the place of a database, as a backup that is restored."""
    shutil.copy(path, path.with_name("copy"))
    remove(path)
    path.with_name("copy").rename(path)


@pytest.mark.parametrize("change", [remove, replace])
def test_a_file_that_is_gone_ends_a_training(tmp_path, make_spec, change):
    """What is written to a file that nobody can open any more is lost: that is said, and nothing goes on."""
    path = tmp_path / "studies.db"
    database = open_database(f"sqlite:///{path}", create=True)
    study = put(database, make_spec())
    with pytest.raises(StorageFailedError, match=r"studies\.db was removed or replaced while it was used"):
        work(study, HASTY, LeaveRequest(), interrupted(lambda: change(path)))
    assert "heartbeat" not in {thread.name for thread in threading.enumerate()}
    if change is remove:
        database.engine.dispose()
        with pytest.raises(StorageFailedError, match="removed or replaced"):  # of a new connection, too
            find_study(database, "tiny")
    database.close()
    assert path.exists() == (change is replace)


def test_a_file_that_is_gone_ends_a_launch(tmp_path, make_spec, monkeypatch):
    """A launch whose data are gone gives no answer from what it still has open."""
    monkeypatch.chdir(tmp_path)
    url = f"sqlite:///{tmp_path}/studies.db"
    database = open_database(url, create=True)
    launched = Launch(put(database, make_spec()), url, Crew(devices=(), threads=1))
    watched = launched.watch()
    next(watched)
    remove(tmp_path / "studies.db")
    with pytest.raises(StorageFailedError, match="removed or replaced"):
        list(watched)
    database.close()


@pytest.mark.parametrize("by", ["floodsearch", "the dashboard"])
def test_a_study_that_is_deleted_while_it_is_trained(database, make_spec, by):
    """Its worker says so and leaves; what others have is as it was."""
    other = put(database, make_spec(name="other"))
    study = put(database, make_spec())
    before = read_measured(other)

    def delete():
        if by == "floodsearch":
            delete_study(find_study(database, "tiny"))
        else:
            database.optuna.delete_study(study.id)

    with pytest.raises(StudyDeletedError, match="study 'tiny' was deleted from"):
        work(study, HASTY, LeaveRequest(), interrupted(delete))
    assert read_measured(other) == before
    assert find_study(database, "other").stopped() is None


def test_an_id_that_is_given_again_is_no_study_of_before(tmp_path, make_spec):
    """SQLite gives the id of a deleted study to the next one, which a worker of the first leaves alone."""
    with open_database(f"sqlite:///{tmp_path}/studies.db", create=True) as database:
        study = put(database, make_spec())
        delete_study(study)
        new = put(database, make_spec(name="new"))
        assert new.id == study.id
        with pytest.raises(StudyDeletedError):
            work(study, HASTY, LeaveRequest())
        assert {one.state for one in read_trials(new)} == {"waiting"}


def test_a_deleted_trial_is_a_lost_ticket(database, make_spec):
    """A trial that somebody deleted by hand is queued again."""
    study = put(database, make_spec())
    [ticket] = queue.take(study, 1)
    with database.write() as connection:
        for table in ("trial_user_attributes", "trial_params", "trials"):
            connection.exec_driver_sql(f"DELETE FROM {table} WHERE trial_id = {ticket.trial_id}")
    with pytest.raises(TicketLostError):
        queue.prune(ticket, Decision(prune=True, reason="too late"))
    assert queue.fill(study) == 1


def sqlite_error(code, words):
    error = sqlite3.OperationalError(words)
    error.sqlite_errorcode = code
    return sqlalchemy.exc.OperationalError("INSERT", {}, error)


def postgresql_error(state, words):
    error = type("Error", (Exception,), {"sqlstate": state})(words)
    return sqlalchemy.exc.ProgrammingError("INSERT", {}, error)


ERRORS = {
    "locked": (sqlite_error(5, "database is locked"), False, "another process has held its lock"),
    "shared cache": (sqlite_error(262, "database table is locked"), False, "another process"),
    "full": (sqlite_error(13, "database or disk is full"), False, "make room"),
    "read-only": (sqlite_error(8, "attempt to write a readonly database"), True, "may not write"),
    "moved": (sqlite_error(1032, "attempt to write a readonly database"), True, "may not write"),
    "noise": (sqlite_error(26, "file is not a database"), True, "put back a copy"),
    "damage": (sqlite_error(11, "database disk image is malformed"), True, "put back a copy"),
    "away": (sqlite_error(1, "no such table: trials"), False, "try again"),
    "no right": (postgresql_error("42501", "permission denied for table trials"), True, "may not do that"),
    "standby": (postgresql_error("25006", "cannot execute INSERT"), True, "may not do that"),
    "password": (postgresql_error("28P01", "password authentication failed"), True, "password"),
    "shutdown": (postgresql_error("57P01", "terminating connection"), False, "try again"),
    "starting": (postgresql_error("57P03", "the database system is starting up"), False, "try again"),
    "deadlock": (postgresql_error("40P01", "deadlock detected"), False, "try again"),
    "no room": (postgresql_error("53100", "could not extend file"), False, "make room"),
    "cut": (postgresql_error(None, "server closed the connection unexpectedly"), False, "try again"),
    "no table": (postgresql_error("42P01", 'relation "trials" does not exist'), False, "try again"),
}


@pytest.mark.parametrize("optuna", [False, True])
@pytest.mark.parametrize("kind", ERRORS)
def test_an_error_is_told_in_the_words_of_the_database_with_what_to_do(kind, optuna):
    """Whether it comes from our transactions or from Optuna's, which call everything invalid data."""
    error, comes_again, advice = ERRORS[kind]
    words = str(error.orig)
    if optuna:
        inner, error = error, StorageInternalError("invalid data in the commit, e.g. exceeding max length")
        error.__cause__ = inner
    told = failure("sqlite:///x.db", error)
    assert lasts(error) == comes_again
    assert isinstance(told, StorageError) == comes_again
    assert isinstance(told, StorageFailedError) != comes_again
    assert str(told).startswith("sqlite:///x.db ")
    assert words in str(told)
    assert advice in str(told)
    assert "invalid data" not in str(told)


def test_other_errors_are_no_failure_of_the_storage():
    """What is not the database's comes out as it is."""
    assert failure("sqlite:///x.db", KeyError("x")) is None


DAMAGE = {
    "a table of ours": ("DROP TABLE floodsearch_curves", "lacks the table 'floodsearch_curves'"),
    "a table of Optuna's": ("DROP TABLE trial_values", "lacks the table 'trial_values'"),
    "a column": (
        "ALTER TABLE floodsearch_workers DROP COLUMN versions",
        "lacks the column 'versions' of table",
    ),
}


@pytest.mark.parametrize("create", [False, True])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_database_is_refused_as_it_is(database, storage_url, damage, create):
    """A table or column that is missing is named when the database is opened, and not made anew, empty."""
    statement, told = DAMAGE[damage]
    with database.write() as connection:
        connection.exec_driver_sql(statement)
    for _ in range(2):
        with pytest.raises(StorageError, match=told):
            open_database(storage_url, create=create)


def test_a_locked_database_is_told_so(tmp_path, make_spec, monkeypatch):
    """Who has waited long enough for another process hears that it is locked, not of invalid data."""
    monkeypatch.setattr("floodsearch.storage.database.LOCK_SECONDS", 0.1)
    url = f"sqlite:///{tmp_path}/studies.db"
    database = open_database(url, create=True)
    study = put(database, make_spec())
    other = sqlite3.connect(tmp_path / "studies.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    assert status(study).trials.waiting == 3
    with pytest.raises(StorageFailedError, match="is locked; another process has held its lock"), database:
        study.stop("by one who waits")
    other.close()
