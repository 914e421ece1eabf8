"""The tables of a database: made where they are missing, and checked before anything is read or written.

Processes that create Optuna's tables at the same moment break each other, so that making them is tried again.
"""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Mapping
from typing import Any

import optuna
import sqlalchemy
from optuna.storages import RDBStorage
from sqlalchemy import Engine, MetaData, NullPool
from sqlalchemy.exc import DBAPIError

from floodsearch.errors import StorageError
from floodsearch.storage import optuna_tables, schema
from floodsearch.storage.failures import lasts

ATTEMPTS = 20
"""How often making the tables is tried while others do the same."""


def check_tables(url: str, name: str, options: Mapping[str, Any], *, create: bool) -> None:
    """Make the tables if they are missing and `create`; refuse those not ours, or of another version.

    Connections are closed as soon as they are not needed: a refused database keeps none.
    """
    options = {**options, "poolclass": NullPool}
    engine = sqlalchemy.create_engine(url, **options)
    if create and not _were_made(engine):
        _create_tables(url, name, options)
    inspector = sqlalchemy.inspect(engine)
    if not {"studies", schema.stamp.name} <= set(inspector.get_table_names()):
        raise StorageError(
            f"{name} holds no studies of floodsearch; launch one, or name another storage with --storage"
        )
    _require_known(RDBStorage(url, engine_kwargs=options, skip_table_creation=True), name)
    with engine.connect() as connection:
        version = schema.version(connection)
    schemas = f"(schema {version}, this one knows {schema.VERSION})"
    if version > schema.VERSION:
        raise StorageError(
            f"{name} was made by a newer floodsearch {schemas}; upgrade with: pip install -U floodsearch"
        )
    if 0 < version < schema.VERSION:
        raise StorageError(
            f"{name} was made by an older floodsearch {schemas}; export it with that one, "
            "and name another storage"
        )
    _check_columns(inspector, name)


def _require_known(storage: RDBStorage, name: str) -> None:
    """Refuse Optuna's tables where they are of another revision than those of `optuna_tables`.

    Optuna itself has refused those that it does not know, before this.
    """
    if (other := optuna_tables.other_revision(storage)) is not None:
        raise StorageError(
            f"{name} has tables of Optuna {optuna.__version__} (revision {other}, this floodsearch knows "
            f"{optuna_tables.REVISION}); upgrade with: pip install -U floodsearch"
        )


def _were_made(engine: Engine) -> bool:
    """Return whether all tables were made once: what is missing now is damage, and not made anew."""
    if not sqlalchemy.inspect(engine).has_table(schema.stamp.name):
        return False
    with engine.connect() as connection:
        return schema.version(connection) > 0


def _check_columns(inspector: sqlalchemy.Inspector, name: str) -> None:
    """Refuse a database in which a table or column of ours, or of Optuna's, is missing."""
    found = {
        table: {column["name"] for column in columns}
        for (_, table), columns in inspector.get_multi_columns().items()
    }
    known: tuple[MetaData, ...] = (schema.metadata, optuna_tables.metadata)
    for table in (table for metadata in known for table in metadata.sorted_tables):
        missing = [column.name for column in table.columns if column.name not in found.get(table.name, ())]
        if missing:
            what = f"column {missing[0]!r} of " if table.name in found else ""
            raise StorageError(
                f"{name} lacks the {what}table {table.name!r}; put back a copy of the database, "
                "or name another with --storage"
            )


def _create_tables(url: str, name: str, options: Mapping[str, Any]) -> None:
    """Make Optuna's tables and ours, also while others do the same.

    Whoever loses such a race gets an error from the database, in one of many places; a moment later the
    tables are there.
    """
    for attempt in range(1, ATTEMPTS + 1):
        try:
            storage = RDBStorage(url, engine_kwargs=dict(options))
            _require_known(storage, name)
            with storage.engine.begin() as connection:
                schema.create(connection)
        except (DBAPIError, optuna.exceptions.StorageInternalError) as error:
            if attempt == ATTEMPTS or not _lost_race(error):
                raise
            time.sleep(random.uniform(0.02, 0.2))  # noqa: S311 - spreads processes, needs no good randomness
        else:
            return


def _lost_race(error: BaseException) -> bool:
    """Return whether an error may go away by itself, as it does when others make the same tables."""
    original = getattr(error if isinstance(error, DBAPIError) else error.__cause__, "orig", None)
    if lasts(error) or getattr(original, "sqlite_errorcode", None) == sqlite3.SQLITE_CANTOPEN:
        return False
    # Without a state no server has answered.
    return isinstance(original, sqlite3.Error) or getattr(original, "sqlstate", None) is not None
