"""Reading and writing of our tables: curves, workers, leases and warnings."""

from __future__ import annotations

import json
import math
import time
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from operator import attrgetter
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select, update

from floodsearch.errors import DamagedError
from floodsearch.records import LARGEST, EpochRecord, WorkerRecord
from floodsearch.storage.database import Database
from floodsearch.storage.rows import number, parsed, text, whole
from floodsearch.storage.schema import (
    KIND_CHARACTERS,
    UPSERT,
    curves,
    database_clock,
    leases,
    warnings,
    workers,
)

LEASE_SECONDS = 60.0
"""A lease whose holder died runs out after so long."""
MOST_WARNINGS, WARNING_CHARACTERS = 50, 1000
"""How many warnings one study keeps, and how long each may be: many workers may warn of many things."""

CURVE_FIELDS = tuple(field.name for field in fields(EpochRecord))
EVALUATED = {"metric", *(name for name in CURVE_FIELDS if name.startswith(("val_", "test_")))}
curve_values = attrgetter(*CURVE_FIELDS)
NUMBERS = {int, float, type(None)}


def now(database: Database) -> float:
    """Return the database's time in seconds since 1970 UTC."""
    with database.read() as connection:
        return float(connection.execute(select(database_clock(connection))).scalar_one())


def write_curves(connection: Connection, study: str, ticket: int, records: Sequence[EpochRecord]) -> None:
    """Store epoch records in one write; a record that is there is replaced.

    What was evaluated stays where it is not evaluated again: while a ticket is trained for more epochs, its
    complete trial keeps the validation of its own last epoch, and the tests there and at the best one.
    """
    if not records:
        return
    upsert: Any = UPSERT[connection.dialect.name](curves)
    key = ("study", "ticket", "seed", "epoch")
    new = upsert.excluded
    replaced = {column.name: new[column.name] for column in curves.columns if column.name not in key}
    kept = {name: func.coalesce(new[name], curves.c[name]) for name in replaced if name in EVALUATED}
    upsert = upsert.on_conflict_do_update(index_elements=key, set_=replaced | kept)
    # dataclasses.asdict copies each value deeply, which takes longer than the write itself.
    rows = [
        {"study": study, "ticket": ticket, **dict(zip(CURVE_FIELDS, curve_values(record), strict=True))}
        for record in records
    ]
    connection.execute(upsert, rows)


def end_curves(connection: Connection, study: str, ticket: int, ends: Mapping[int, int]) -> None:
    """Remove what is behind the last epoch of runs that ended early, by seed.

    An attempt that was lost may have come further, where a device rounds as it likes.
    """
    for seed, epoch in ends.items():
        its = (curves.c.study == study) & (curves.c.ticket == ticket) & (curves.c.seed == seed)
        connection.execute(delete(curves).where(its & (curves.c.epoch > epoch)))


def read_curves(
    database: Database,
    study: str,
    tickets: Collection[int] | None = None,
    *,
    after: float = 0,
    having: str | None = None,
) -> dict[int, list[EpochRecord]]:
    """Return epoch records by ticket, in the order of seeds and epochs.

    Args:
        database: where to look.
        study: our uuid of the study.
        tickets: only these; all if None.
        after: only later epochs, and the tested ones.
        having: only epochs at which this field is known.
    """
    columns = [curves.c[name] for name in CURVE_FIELDS]
    query = (
        select(curves.c.ticket, *columns)
        .where(curves.c.study == study)
        .order_by(curves.c.ticket, curves.c.seed, curves.c.epoch)
    )
    if having is not None:
        query = query.where(curves.c[having].is_not(None))
    if after > 0:
        query = query.where((curves.c.epoch > after) | curves.c.test_loss.is_not(None))
    if tickets is not None:
        query = query.where(curves.c.ticket.in_(tickets))
    found: dict[int, list[EpochRecord]] = {}
    with database.read() as connection:
        for ticket, *values in connection.execute(query):
            if not NUMBERS.issuperset(map(type, values)):  # SQLite keeps whatever is put into a column
                raise DamagedError(f"a curve of ticket {ticket}", values, "numbers")
            if LARGEST < max(map(abs, filter(None, values)), default=0) < math.inf:
                raise DamagedError(f"a curve of ticket {ticket}", values, "numbers that a training comes to")
            record = EpochRecord(**dict(zip(CURVE_FIELDS, values, strict=True)))
            found.setdefault(ticket, []).append(record)
    return found


def count_epochs(database: Database, study: str) -> int:
    """Return the number of epoch records of a study, over tickets and seeds; a repeated epoch counts once."""
    with database.read() as connection:
        query = select(func.count()).select_from(curves).where(curves.c.study == study)
        return int(connection.execute(query).scalar_one())


def enter_worker(
    database: Database, study: str, *, host: str, pid: int, device: str, versions: dict[str, str]
) -> int:
    """Add a worker and return its id."""
    with database.write() as connection:
        clock = database_clock(connection)
        added = insert(workers).values(
            study=study,
            host=host,
            pid=pid,
            device=device,
            started=clock,
            last_beat=clock,
            training="[]",
            epochs_run=0,
            versions=json.dumps(versions),
        )
        return int(connection.execute(added.returning(workers.c.id)).scalar_one())


def beat(
    database: Database, worker: int, *, epochs_run: int, training: Sequence[int], leaving: bool = False
) -> None:
    """Record that a worker lives, what it trains and the member-epochs that it trained so far."""
    with database.write() as connection:
        clock = database_clock(connection)
        values: dict[str, Any] = {
            "last_beat": clock,
            "epochs_run": epochs_run,
            "training": json.dumps(list(training)),
            # One that was thought dead and beats again is alive.
            "left": clock if leaving else None,
        }
        connection.execute(update(workers).where(workers.c.id == worker).values(values))


def bury_worker(database: Database, worker: int) -> None:
    """Mark a worker that stopped beating as gone, as of its last beat."""
    dead = update(workers).where((workers.c.id == worker) & workers.c.left.is_(None))
    with database.write() as connection:
        connection.execute(dead.values(left=workers.c.last_beat))


def read_workers(database: Database, study: str) -> list[WorkerRecord]:
    """Return all workers that a study ever had, oldest first."""
    query = select(workers).where(workers.c.study == study).order_by(workers.c.id)
    with database.read() as connection:
        rows = connection.execute(query).mappings().all()
    return [
        WorkerRecord(
            id=row["id"],
            host=row["host"],
            pid=row["pid"],
            device=row["device"],
            started=number(row["started"], f"started of worker {row['id']}"),
            last_beat=number(row["last_beat"], f"last_beat of worker {row['id']}"),
            left=None if row["left"] is None else number(row["left"], f"left of worker {row['id']}"),
            training=tuple(parsed(row["training"], f"training of worker {row['id']}", list)),
            epochs_run=whole(row["epochs_run"], f"epochs_run of worker {row['id']}"),
            versions=parsed(row["versions"], f"versions of worker {row['id']}", dict),
        )
        for row in rows
    ]


def acquire_lease(database: Database, study: str, name: str, holder: str, seconds: float) -> bool:
    """Take or renew a lease; return whether it is the holder's for the next `seconds`."""
    upsert: Any = UPSERT[database.engine.dialect.name](leases)
    with database.write() as connection:
        clock = database_clock(connection)
        upsert = upsert.values(study=study, name=name, holder=holder, until=clock + seconds)
        upsert = upsert.on_conflict_do_update(
            index_elements=("study", "name"),
            set_={"holder": upsert.excluded.holder, "until": upsert.excluded.until},
            where=(leases.c.until < clock) | (leases.c.holder == holder),
        )
        return connection.execute(upsert.returning(leases.c.holder)).scalar_one_or_none() == holder


def release_lease(database: Database, study: str, name: str, holder: str) -> None:
    """Give a lease back; nothing happens if it is someone else's by now."""
    held = (leases.c.study == study) & (leases.c.name == name) & (leases.c.holder == holder)
    with database.write() as connection:
        connection.execute(update(leases).where(held).values(until=0.0))


@contextmanager
def lease(database: Database, study: str, name: str, *, seconds: float = LEASE_SECONDS) -> Iterator[None]:
    """Hold a lease, waiting for it; if its holder dies it runs out.

    Args:
        database: where the lease lies.
        study: our uuid of the study, or its name while it is being created.
        name: what must not be done by two at once.
        seconds: longer than the work under it takes.
    """
    holder = uuid.uuid4().hex
    while not acquire_lease(database, study, name, holder, seconds):
        time.sleep(0.05)
    try:
        yield
    finally:
        release_lease(database, study, name, holder)


def write_warning(database: Database, study: str, kind: str, message: str) -> bool:
    """Keep a warning with a study, unless it has one of this kind; return whether it is new."""
    upsert: Any = UPSERT[database.engine.dialect.name](warnings)
    with database.write() as connection:
        counted = select(func.count()).where(warnings.c.study == study)
        if connection.execute(counted).scalar_one() >= MOST_WARNINGS:
            return False
        new = upsert.values(
            study=study,
            kind=kind[:KIND_CHARACTERS],
            text=message[:WARNING_CHARACTERS],
            written=database_clock(connection),
        )
        added = new.on_conflict_do_nothing().returning(warnings.c.kind)
        return connection.execute(added).scalar_one_or_none() is not None


def read_warnings(database: Database, study: str) -> tuple[str, ...]:
    """Return the warnings of the workers of a study, oldest first, each one line."""
    query = select(warnings).where(warnings.c.study == study).order_by(warnings.c.written, warnings.c.kind)
    with database.read() as connection:
        rows = connection.execute(query).mappings().all()
    return tuple(text(row["text"], f"warning {row['kind']!r} of a study") for row in rows)
