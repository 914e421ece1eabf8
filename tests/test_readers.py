"""Readers only read: they wait for nobody, nobody waits for them, and a right to read is enough."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from pathlib import Path

import optuna
import pytest
import sqlalchemy

import floodsearch
from floodsearch import queue
from floodsearch.errors import NoAnswerError, StorageError
from floodsearch.queries import answer, status
from floodsearch.report.export import curve_rows, trial_rows
from floodsearch.storage import tables
from floodsearch.storage.database import open_database
from floodsearch.storage.retry import persistently
from floodsearch.storage.studies import find_study, put_study, read_trials, study_names
from floodsearch.worker.leave import LeaveRequest
from floodsearch.worker.settings import WorkerSettings
from floodsearch.worker.work import work

MUST_NOT_WRITE = (sqlalchemy.exc.DBAPIError, optuna.exceptions.StorageInternalError)


def read_all(database):
    """Read what the reading commands read."""
    for name in study_names(database):
        study = find_study(database, name)
        status(study, with_answer=True)
        trial_rows(study)
        curve_rows(study)
        with pytest.raises(NoAnswerError):
            answer(study)


@pytest.fixture
def filled(storage_url, make_spec):
    """Put a study with its queue, and give the storage's URL."""
    with open_database(storage_url, create=True) as database:
        queue.fill(put_study(database, make_spec()))
    return storage_url


def test_a_reading_database_cannot_be_written(filled):
    """Neither through our own transactions nor through Optuna's, as of the dashboard, is anything written."""
    with open_database(filled, read_only=True) as database:
        read_all(database)
        study = find_study(database, "tiny")
        [trial, *_] = database.optuna.get_all_trials(study.id)
        for write in (
            lambda: tables.acquire_lease(database, study.uuid, "fill", "me", 60),
            lambda: study.stop("by a reader"),
            lambda: database.optuna.delete_study(study.id),
            lambda: database.optuna.set_trial_state_values(
                trial._trial_id, optuna.trial.TrialState.COMPLETE, [1.0]
            ),
            lambda: database.optuna.create_new_study([optuna.study.StudyDirection.MAXIMIZE], "another"),
        ):
            with pytest.raises(MUST_NOT_WRITE, match=r"readonly|read-only|invalid data"):
                write()
        assert study_names(database) == ["tiny"]
        assert study.reread().stopped() is None
        assert {one.state for one in read_trials(study)} == {"waiting"}


@pytest.mark.parametrize("storage_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize("read_only", [True, False])
def test_reading_takes_no_lock_of_sqlite(filled, read_only):
    """What only reads is answered while another process writes, and lets others write: also in workers."""
    path = filled.removeprefix("sqlite:///")
    with open_database(filled, read_only=read_only) as database:
        other = sqlite3.connect(path, timeout=0, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")  # a reader that wants this lock would wait for it a minute, and fail
        read_all(database)
        other.execute("COMMIT")
        with database.read() as connection:
            connection.exec_driver_sql("SELECT count(*) FROM trials").all()
            other.execute("BEGIN IMMEDIATE")  # and this would fail at once
            other.execute("COMMIT")
        other.close()


def test_a_reader_sees_what_was_written_just_now(filled, make_spec):
    """A reader that stays open, as `serve` does, reads the present."""
    with open_database(filled, read_only=True) as reader, open_database(filled) as writer:
        assert status(find_study(reader, "tiny")).trials.waiting == 3
        queue.fill(put_study(writer, make_spec(levels={"high": 0.5, "count": 4}, name="other")))
        queue.take(find_study(writer, "tiny"), 1)
        assert study_names(reader) == ["tiny", "other"]
        assert status(find_study(reader, "tiny")).trials.running == 1


@pytest.mark.postgres
def test_a_role_that_may_only_select_reads_and_is_refused_the_rest(postgres_url, make_spec):
    """Reading needs the right to select; what writes is refused at once, in a line with a fix."""
    with open_database(postgres_url, create=True) as database:
        queue.fill(put_study(database, make_spec()))
        with database.write() as connection:
            connection.exec_driver_sql("DROP ROLE IF EXISTS only_reader")
            connection.exec_driver_sql("CREATE ROLE only_reader LOGIN")
            connection.exec_driver_sql("GRANT SELECT ON ALL TABLES IN SCHEMA public TO only_reader")
    url = postgres_url.replace("floodsearch@", "only_reader@")
    with open_database(url, read_only=True) as database:
        read_all(database)
    refused = pytest.raises(StorageError, match=r"permission denied .*; this role may not do that")
    with refused, open_database(url) as database:
        work(find_study(database, "tiny"), WorkerSettings(device="cpu"), LeaveRequest())
    with refused, open_database(url, create=True) as database:
        put_study(database, make_spec())
    with open_database(postgres_url) as database, database.write() as connection:
        connection.exec_driver_sql("DROP OWNED BY only_reader")
        connection.exec_driver_sql("DROP ROLE only_reader")


READ = """
import os
import floodsearch
from floodsearch.worker.leave import LeaveRequest
from floodsearch.worker.settings import WorkerSettings
from floodsearch.errors import StorageError
from floodsearch.storage import tables
from floodsearch.storage.database import open_database
from floodsearch.storage.studies import find_study
from floodsearch.storage.retry import persistently
import alembic.command

def main(index, url):
    if os.getuid() == 0:  # who may do all
        floodsearch.best("tiny", storage=url)  # imports what another user may not
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    level = floodsearch.best("tiny", storage=url).level
    try:
        with open_database(url) as database:
            study = find_study(database, "tiny")
            persistently(lambda: study.stop("by one who may not"))
    except StorageError as error:
        return level, str(error)
"""


@pytest.mark.parametrize("writable", ["nothing", "the folder"])
def test_a_finished_study_that_may_only_be_read_is_read(make_spec, crowd, writable):
    """In a folder or a file that may only be read; nothing is left there, and what writes is refused."""
    folder = Path(tempfile.mkdtemp(prefix="floodsearch-"))  # pytest's own folders are closed to others
    try:
        url = f"sqlite:///{folder}/studies.db"
        with open_database(url, create=True) as database:
            study = put_study(database, make_spec())
            queue.fill(study)
            work(study, WorkerSettings(device="cpu", threads=1, checkpoints=folder), LeaveRequest())
        level = floodsearch.best("tiny", storage=url).level
        (folder / "studies.db").chmod(0o444)
        folder.chmod(0o777 if writable == "the folder" else 0o555)
        before = sorted(folder.iterdir())
        [(read, message)] = crowd(READ, 1, url).answers()
        assert read == level
        assert message.startswith(f"{url} cannot be")
        assert "\n" not in message
        assert "invalid data" not in message
        assert sorted(folder.iterdir()) == before
    finally:
        folder.chmod(0o777)
        shutil.rmtree(folder)


def test_what_a_crash_left_is_read(tmp_path, make_spec):
    """What is in the journal only, as after a crash, is not missing."""
    url = f"sqlite:///{tmp_path}/studies.db"
    with open_database(url, create=True) as database:
        queue.fill(put_study(database, make_spec()))
        (tmp_path / "crashed").mkdir()
        for name in ("studies.db", "studies.db-wal"):
            shutil.copy(tmp_path / name, tmp_path / "crashed" / name)
    with open_database(f"sqlite:///{tmp_path}/crashed/studies.db", read_only=True) as database:
        assert status(find_study(database, "tiny")).trials.waiting == 3


def test_lasting_errors_are_not_tried_again(filled):
    """What comes again however often one tries is raised at the first time."""
    calls = []

    def write(database):
        calls.append(1)
        find_study(database, "tiny").stop("by a reader")

    refused = pytest.raises(StorageError, match="cannot be used")
    with refused, open_database(filled, read_only=True) as database:
        persistently(lambda: write(database))
    assert calls == [1]
