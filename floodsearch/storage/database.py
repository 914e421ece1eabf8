"""From a URL to an open database: Optuna's view of it, and ours.

Each setting here answers a measured failure: without BEGIN IMMEDIATE SQLite hands one waiting trial to
several workers, with a session time zone other than UTC PostgreSQL compares local times, and processes that
create Optuna's tables at the same moment break each other.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy
from optuna.storages import BaseStorage, RDBStorage
from sqlalchemy import Connection, Engine, NullPool, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError

from floodsearch.errors import StorageError
from floodsearch.files import make_private
from floodsearch.storage import tables

NETWORK_FILESYSTEMS = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "lustre", "gpfs", "beegfs", "ceph", "glusterfs", "afs", "9p"}
    | {"fuse.sshfs", "fuse.glusterfs", "fuse.beegfs", "fuse.ceph", "fuse.s3fs"}
)
SCHEMA_ATTEMPTS = 20
POSTGRESQL = {
    "client_encoding": "utf8",  # of a database in SQL_ASCII, psycopg would give bytes
    "connect_timeout": 10,
    # A link that is cut without a word is an error after half a minute, not after TCP's quarter of an hour.
    "tcp_user_timeout": 30_000,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 4,
}
"""Of libpq: times in seconds, but `tcp_user_timeout` in milliseconds."""


@dataclass(frozen=True)
class Database:
    """An open database.

    Args:
        name: the URL without a password, for messages.
        engine: SQLAlchemy's engine, shared with Optuna.
        optuna: Optuna's storage; finished trials are cached in this process.
    """

    name: str
    engine: Engine
    optuna: BaseStorage

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """Open a transaction that may write; SQLite takes its only write lock at once."""
        with self.engine.begin() as connection:
            yield connection

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Open a transaction that only reads, so that SQLite's writers need not wait for it."""
        with self.engine.connect() as connection:
            yield connection.execution_options(floodsearch_read_only=True)

    def close(self) -> None:
        """Close all connections."""
        self.optuna.remove_session()
        self.engine.dispose()


def open_database(url: str, *, create: bool = False, mounts: Path = Path("/proc/self/mounts")) -> Database:
    """Open a storage URL.

    Args:
        url: `sqlite:///PATH` or `postgresql://USER@HOST/DATABASE`.
        create: make the file and the tables if they are missing; any number of processes may at once.
        mounts: the system's table of mounted file systems; where there is none, none is refused.

    Raises:
        StorageError: if the scheme is not supported, the server cannot be reached, the database holds no
            studies, it was made by another version, or SQLite would lie on a network file system.
    """
    parsed = _checked_url(url, create=create, mounts=mounts)
    name = parsed.render_as_string(hide_password=True)
    # Optuna passes URLs through str.format, so braces in a password must be escaped.
    text = parsed.render_as_string(hide_password=False).replace("{", "%7B").replace("}", "%7D")
    try:
        _check_tables(text, name, create=create)
        storage = _connect(text)
    except RuntimeError as error:  # Optuna's own word on a schema that it does not know
        raise StorageError(f"{name} cannot be used: {error}") from None
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        raise StorageError(f"{name} cannot be opened: {cause(error)}") from None
    return Database(name, storage.engine, optuna.storages.get_storage(storage))


def _checked_url(url: str, *, create: bool, mounts: Path) -> URL:
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):  # whose words may hold a part of the password
        raise StorageError(
            "the storage URL cannot be read; write sqlite:///PATH or postgresql://USER@HOST/DATABASE, "
            "with %40 for an @ in a password"
        ) from None
    if "password" in parsed.query:
        raise StorageError(
            "a password after ? would be shown in messages; write USER:PASSWORD@HOST, or set PGPASSWORD"
        )
    backend = parsed.get_backend_name()
    if backend == "postgresql":
        return parsed.set(drivername="postgresql+psycopg")
    if backend != "sqlite":
        raise StorageError(
            f"storage {parsed.drivername!r} is not supported; use sqlite:///PATH or postgresql://USER@HOST/DATABASE"
        )
    if parsed.database in (None, "", ":memory:") or str(parsed.database).startswith("file:"):
        raise StorageError("SQLite in memory cannot be shared by workers; give a file, as in sqlite:///PATH")
    parsed = parsed.set(drivername="sqlite")
    path = Path(str(parsed.database)).absolute()
    if not path.parent.is_dir():
        raise StorageError(f"{parsed} cannot be opened: the folder {path.parent} does not exist")
    if not path.exists() and not create:
        raise StorageError(f"{parsed} does not exist; launch a study first, or name another with --storage")
    if (kind := filesystem_of(path, mounts)) in NETWORK_FILESYSTEMS:
        raise StorageError(
            f"{parsed} lies on a network file system ({kind}), where SQLite loses data; "
            "put it on a local disk, or use postgresql://"
        )
    if create:
        make_private(path)  # SQLite gives the files beside it the same permissions
    return parsed


def filesystem_of(path: Path, mounts: Path) -> str:
    """Return the type of the file system that holds a path, such as `ext4`; empty if unknown."""
    try:
        lines = mounts.read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    path = path.resolve()
    found: tuple[int, str] = (0, "")
    for line in lines:
        _, mounted, kind, *_ = line.split(" ")
        mounted = mounted.replace("\\040", " ")
        if path.is_relative_to(mounted) and len(mounted) >= found[0]:
            found = (len(mounted), kind)
    return found[1]


def _connect(url: str) -> RDBStorage:
    """Open Optuna's storage on tables that were checked, with our connection settings."""
    sqlite = url.startswith("sqlite")
    # One connection for the training and one for the heartbeat, with room for a moment of overlap.
    pool: dict[str, Any] = {} if sqlite else {"pool_pre_ping": True, "pool_size": 2, "max_overflow": 2}
    storage = RDBStorage(
        url,
        engine_kwargs={**_connect_arguments(url), **pool},
        skip_compatibility_check=True,
        skip_table_creation=True,
    )
    if sqlite:
        event.listen(storage.engine, "connect", _configure_sqlite)
        event.listen(storage.engine, "begin", _begin_sqlite)
    else:
        event.listen(storage.engine, "connect", _configure_postgresql)
    storage.engine.dispose()  # drop the connections that were opened before the settings
    return storage


def _connect_arguments(url: str) -> dict[str, Any]:
    return {"connect_args": {"timeout": 60} if url.startswith("sqlite") else POSTGRESQL}


def _check_tables(url: str, name: str, *, create: bool) -> None:
    """Make what tables are missing, if `create`; refuse what is not ours or newer than we are.

    Connections are closed as soon as they are not needed: a refused database keeps none.
    """
    options = {**_connect_arguments(url), "poolclass": NullPool}
    if create:
        _create_tables(url, options)
    engine = sqlalchemy.create_engine(url, **options)
    present = set(sqlalchemy.inspect(engine).get_table_names())
    if not {"studies", tables.schema.name} <= present:
        raise StorageError(
            f"{name} holds no studies of floodsearch; launch one, or name another storage with --storage"
        )
    RDBStorage(url, engine_kwargs=options, skip_table_creation=True)  # raises if Optuna does not know it
    with engine.connect() as connection:
        version = tables.version(connection)
    schemas = f"(schema {version}, this one knows {tables.VERSION})"
    if version > tables.VERSION:
        raise StorageError(
            f"{name} was made by a newer floodsearch {schemas}; upgrade with: pip install -U floodsearch"
        )
    if 0 < version < tables.VERSION:
        raise StorageError(
            f"{name} was made by an older floodsearch {schemas}; export it with that one, "
            "and name another storage"
        )


def _create_tables(url: str, options: Mapping[str, Any]) -> None:
    """Make Optuna's tables and ours, also while others do the same.

    Whoever loses such a race gets an error from the database, in one of many places; a moment later the
    tables are there.
    """
    for attempt in range(1, SCHEMA_ATTEMPTS + 1):
        try:
            storage = RDBStorage(url, engine_kwargs=dict(options))
            with storage.engine.begin() as connection:
                tables.create(connection)
        except (DBAPIError, optuna.exceptions.StorageInternalError) as error:
            if attempt == SCHEMA_ATTEMPTS or not _lost_race(error):
                raise
            time.sleep(random.uniform(0.02, 0.2))  # noqa: S311 - spreads processes, needs no good randomness
        else:
            return


def _lost_race(error: BaseException) -> bool:
    """Return whether an error may go away by itself, as it does when others make the same tables."""
    cause = error if isinstance(error, DBAPIError) else error.__cause__
    original = getattr(cause, "orig", None)
    if type(original).__module__.startswith("psycopg"):
        return getattr(original, "sqlstate", None) is not None  # without one, no server has answered
    return not any(words in str(original) for words in ("not a database", "unable to open", "readonly"))


def _configure_sqlite(connection: Any, record: Any) -> None:
    del record
    connection.isolation_level = None  # we say BEGIN ourselves
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL"):
        connection.execute(f"PRAGMA {pragma}")


def _begin_sqlite(connection: Connection) -> None:
    read_only = connection.get_execution_options().get("floodsearch_read_only", False)
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")


def _configure_postgresql(connection: Any, record: Any) -> None:
    del record
    connection.execute("SET TIME ZONE 'UTC'")
    connection.commit()


def cause(error: BaseException) -> str:
    """Return the database's own words, which hold no password, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    words = str(getattr(error, "orig", None) or error).strip().splitlines()
    return words[0] if words else type(error).__name__
