"""Our tables beside Optuna's: curves, workers, leases, warnings and the database's clock, on both."""

from __future__ import annotations

import dataclasses
import math

import pytest
import sqlalchemy

from floodsearch.records import EpochRecord
from floodsearch.storage import schema, tables
from floodsearch.storage.tables import lease

STUDY, OTHER = "a" * 32, "b" * 32


def write(database, study, ticket, records):
    with database.write() as connection:
        tables.write_curves(connection, study, ticket, records)


def record(seed=0, epoch=1, **changes):
    plain = EpochRecord(
        seed=seed, epoch=epoch, level=0.1, train_loss=1 / (epoch + seed + 3), train_accuracy=0.7, flooded=0.25
    )
    return dataclasses.replace(plain, **changes)


def enter(database, study=STUDY, **changes):
    settings = {"host": "here", "pid": 7, "device": "cpu", "versions": {"torch": "2"}, **changes}
    return tables.enter_worker(database, study, **settings)


def test_curves_come_back_as_they_were(database):
    """Every field returns with all its digits, and what is not known returns as None."""
    full = record(
        train_loss=math.pi,
        val_loss=1e-300,
        val_accuracy=1 / 3,
        test_loss=math.inf,
        test_accuracy=0.0,
        test_accuracy_clean=1.0,
        metric=-12.5,
    )
    bare = record(epoch=2, train_accuracy=None, level=0.0)
    write(database, STUDY, 3, [full, bare])
    assert tables.read_curves(database, STUDY) == {3: [full, bare]}


def test_writing_again_replaces(database):
    """A record of the same ticket, seed and epoch takes the place of the first; what was evaluated stays."""
    first = record(test_loss=0.5, val_loss=0.4, train_accuracy=0.9)
    write(database, STUDY, 0, [first, record(epoch=2)])
    again = record(level=0.2, train_loss=9.0, train_accuracy=None)
    write(database, STUDY, 0, [again])
    kept = dataclasses.replace(again, test_loss=0.5, val_loss=0.4)
    assert tables.read_curves(database, STUDY) == {0: [kept, record(epoch=2)]}


def test_many_records_are_one_write(database):
    """Thousands of records are stored and replaced in one transaction, none twice."""
    records = [record(seed, epoch) for seed in range(5) for epoch in range(1, 501)]
    commits = []
    sqlalchemy.event.listen(database.engine, "commit", commits.append)
    for _ in range(2):
        write(database, STUDY, 0, records)
    assert len(commits) == 2
    assert tables.read_curves(database, STUDY)[0] == records


def test_curves_are_filtered_and_ordered(database):
    """Records come by study and ticket, in the order of seeds and epochs; `after` keeps the tested ones."""
    for ticket in (2, 0, 1):
        rows = [record(seed, epoch) for seed in (1, 0) for epoch in (4, 3, 2, 1)]
        rows[3] = dataclasses.replace(rows[3], test_loss=0.5)
        write(database, STUDY, ticket, rows)
    write(database, OTHER, 0, [record()])

    everything = tables.read_curves(database, STUDY)
    assert list(everything) == [0, 1, 2]
    order = [(one.seed, one.epoch) for one in everything[1]]
    assert order == [(seed, epoch) for seed in (0, 1) for epoch in (1, 2, 3, 4)]

    some = tables.read_curves(database, STUDY, {0, 2}, after=3)
    assert list(some) == [0, 2]
    assert [(one.seed, one.epoch) for one in some[0]] == [(0, 4), (1, 1), (1, 4)]
    assert [one.epoch for one in tables.read_curves(database, STUDY, [0], after=2.5)[0]] == [3, 4, 1, 3, 4]
    assert tables.read_curves(database, STUDY, []) == {}
    assert tables.read_curves(database, "c" * 32) == {}


def test_a_worker_enters_beats_and_leaves(database):
    """A worker's row tells who it is, that it lives, what it trains and how much, and that it left."""
    first, second = enter(database), enter(database, host="there", pid=8, device="cuda:1")
    enter(database, OTHER)
    entered, other = tables.read_workers(database, STUDY)
    assert (entered.id, other.id) == (first, second)
    assert (other.host, other.pid, other.device) == ("there", 8, "cuda:1")
    assert entered.versions == {"torch": "2"}
    assert (entered.training, entered.epochs_run, entered.left) == ((), 0, None)
    assert entered.started <= entered.last_beat

    tables.beat(database, first, epochs_run=40, training=(3, 5))
    beaten, unchanged = tables.read_workers(database, STUDY)
    assert unchanged == other
    assert (beaten.training, beaten.epochs_run, beaten.left) == ((3, 5), 40, None)
    assert beaten.started == entered.started
    assert entered.last_beat <= beaten.last_beat <= tables.now(database)

    tables.beat(database, first, epochs_run=50, training=(), leaving=True)
    gone, _ = tables.read_workers(database, STUDY)
    assert beaten.last_beat <= gone.last_beat <= gone.left
    assert (gone.training, gone.epochs_run) == ((), 50)


def test_a_buried_worker_left_at_its_last_beat(database):
    """The dead are gone since their last sign of life; one that left by itself keeps its own time."""
    dead, gone = enter(database), enter(database)
    tables.beat(database, gone, epochs_run=1, training=(), leaving=True)
    before = tables.read_workers(database, STUDY)
    for worker in (dead, gone, dead):
        tables.bury_worker(database, worker)
    after = tables.read_workers(database, STUDY)
    assert after[0].left == before[0].last_beat
    assert after[1] == before[1]


def test_a_lease_is_held_by_one(database):
    """A lease that is held is refused to others, renewed for its holder, and free after its release."""
    take = lambda holder, name="fill", study=STUDY: tables.acquire_lease(database, study, name, holder, 60)  # noqa: E731
    assert take("me")
    assert not take("you")
    assert take("me")
    assert take("you", name="reaper")
    assert take("you", study=OTHER)
    tables.release_lease(database, STUDY, "fill", "me")
    assert take("you")
    assert not take("me")


def test_releasing_the_lease_of_another_does_nothing(database):
    """Whoever lost a lease cannot take it from its new holder."""
    assert tables.acquire_lease(database, STUDY, "fill", "me", 60)
    tables.release_lease(database, STUDY, "fill", "you")
    tables.release_lease(database, STUDY, "reaper", "me")
    assert not tables.acquire_lease(database, STUDY, "fill", "you", 60)


def test_a_lease_runs_out(database):
    """The lease of a holder that died is anyone's after its time, by the database's clock."""
    assert tables.acquire_lease(database, STUDY, "fill", "dead", -1)
    assert tables.acquire_lease(database, STUDY, "fill", "me", 60)
    assert not tables.acquire_lease(database, STUDY, "fill", "dead", 60)


def test_renewing_a_lease_makes_it_last(database, eventually):
    """A holder that renews keeps its lease; when it stops, the lease goes to whoever waits."""
    assert tables.acquire_lease(database, STUDY, "fill", "me", 0.05)
    assert tables.acquire_lease(database, STUDY, "fill", "me", 60)
    end = tables.now(database) + 0.1
    eventually(lambda: tables.now(database) > end)
    assert not tables.acquire_lease(database, STUDY, "fill", "you", 60)
    assert tables.acquire_lease(database, STUDY, "fill", "me", 0.05)
    eventually(lambda: tables.acquire_lease(database, STUDY, "fill", "you", 60))


def test_a_lease_is_given_back_after_an_error(database):
    """Work under a lease that raises leaves the lease free."""

    def fall_over():
        with lease(database, STUDY, "fill"):
            assert not tables.acquire_lease(database, STUDY, "fill", "you", 60)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fall_over()
    assert tables.acquire_lease(database, STUDY, "fill", "you", 60)


COUNT = """
import pathlib, psycopg
from floodsearch.storage.database import open_database
from floodsearch.storage.tables import lease

def main(index, url, study, path):
    database = open_database(url)
    for _ in range(10):
        with lease(database, study, "count"):
            counter = pathlib.Path(path)
            counter.write_text(str(int(counter.read_text()) + 1))
    database.close()
"""


def test_a_lease_excludes_other_processes(database, storage_url, tmp_path, crowd):
    """Six processes that count under one lease lose no count."""
    counter = tmp_path / "counter"
    counter.write_text("0")
    crowd(COUNT, 6, storage_url, STUDY, str(counter)).answers()
    assert counter.read_text() == "60"


def test_the_clock_runs_forward_in_utc_seconds(database):
    """The database's clock is in seconds since 1970 UTC and does not go back."""
    times = [tables.now(database) for _ in range(200)]
    assert times == sorted(times)
    assert times[0] < times[-1] < times[0] + 3600
    with database.read() as connection:
        sqlite = connection.dialect.name == "sqlite"
        said = "SELECT strftime('%s', 'now')" if sqlite else "SELECT extract(epoch from now())"
        assert abs(float(connection.exec_driver_sql(said).scalar_one()) - times[-1]) < 60


def test_a_warning_is_kept_once_a_kind_and_in_order(database):
    """The first one of a kind stays, whoever comes later; each study has its own, until it is forgotten."""
    assert tables.write_warning(database, STUDY, "b", "first")
    assert tables.write_warning(database, STUDY, "a", "second")
    assert not tables.write_warning(database, STUDY, "b", "again")
    assert tables.write_warning(database, OTHER, "b", "other")
    assert tables.read_warnings(database, STUDY) == ("first", "second")
    with database.write() as connection:
        schema.forget(connection, STUDY)
    assert tables.read_warnings(database, STUDY) == ()
    assert tables.read_warnings(database, OTHER) == ("other",)


def test_warnings_are_bounded(database):
    """In their number and length, whatever is warned of."""
    for number in range(tables.MOST_WARNINGS + 5):
        tables.write_warning(database, STUDY, f"{number} " + "k" * 200, "x" * 100_000)
    found = tables.read_warnings(database, STUDY)
    assert len(found) == tables.MOST_WARNINGS
    assert set(map(len, found)) == {tables.WARNING_CHARACTERS}
