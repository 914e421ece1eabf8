"""From a URL to an open database: Optuna's view of it, and ours.

Each setting here answers a measured failure: without BEGIN IMMEDIATE SQLite hands one waiting trial to
several workers, and with a session time zone other than UTC PostgreSQL compares local times.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial, wraps
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

import optuna
from optuna.storages import BaseStorage, RDBStorage
from sqlalchemy import Connection, Engine, NullPool, QueuePool, event

from floodsearch.artifacts.files import make_private
from floodsearch.errors import StorageError, StorageFailedError
from floodsearch.process.terminal import hush
from floodsearch.storage.checks import check_tables
from floodsearch.storage.failures import READ_ONLY, STORAGE_ERRORS, cause, failure
from floodsearch.storage.urls import Place, place_of

NETWORK_FILESYSTEMS = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "lustre", "gpfs", "beegfs", "ceph", "glusterfs", "afs", "9p"}
    | {"fuse.sshfs", "fuse.glusterfs", "fuse.beegfs", "fuse.ceph", "fuse.s3fs"}
)
LOCK_SECONDS = 60
"""How long SQLite waits for the lock of another process."""
POSTGRESQL = {
    "client_encoding": "utf8",  # of a database in SQL_ASCII, psycopg would give bytes
    "connect_timeout": 10,
    # A link that is cut without a word is an error after half a minute, not after TCP's quarter of an hour.
    "tcp_user_timeout": 30_000,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 4,
}
"""The settings of a connection, for libpq: times in seconds, but `tcp_user_timeout` in milliseconds."""


@dataclass(frozen=True)
class Database:
    """An open database; as a context manager it is closed at the end, and tells its failures in our words.

    Args:
        name: the URL without secrets, for messages.
        engine: SQLAlchemy's engine, shared with Optuna.
        optuna: Optuna's storage; finished trials are cached in this process.
    """

    name: str
    engine: Engine = field(repr=False)
    optuna: BaseStorage = field(repr=False)

    def __enter__(self) -> Database:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it.

        Raises:
            StorageError, StorageFailedError: where the database failed within.
        """
        self.close()
        if error is not None and (told := failure(self.name, error)) is not None:
            raise told from error

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


def open_database(
    url: str, *, create: bool = False, read_only: bool = False, mounts: Path = Path("/proc/self/mounts")
) -> Database:
    """Open a storage URL.

    Args:
        url: `sqlite:///PATH` or `postgresql://USER@HOST/DATABASE`.
        create: make the file and the tables if they are missing; any number of processes may at once.
        read_only: open it for reading: nothing can be written, no writer waits for it, and it is enough that
            this user may read.
        mounts: the system's table of mounted file systems; where there is none, none is refused.

    Raises:
        StorageError: if the scheme is not supported, the server cannot be reached, the database holds no
            studies, it was made by another version, or SQLite would lie on a network file system.
    """
    place = place_of(url)
    if place.path is not None:
        _check_path(place.path, place.name, create=create, mounts=mounts)
        # What SQLite makes beside a file would be ours then, and stand in the way of the file's owner.
        if place.path.is_file() and not (read_only or _may_write(place.path)):
            raise StorageError(f"{place.name} cannot be written: {READ_ONLY}")
    # Optuna passes URLs through str.format, so braces in a password must be escaped.
    text = place.url.render_as_string(hide_password=False).replace("{", "%7B").replace("}", "%7D")
    options = _connecting(place, read_only=read_only)
    hush("optuna.storages")  # it would tell of each new study, as we do
    try:
        check_tables(text, place.name, options, create=create)
        storage = _connect(text, place, options, read_only=read_only)
    except RuntimeError as error:  # Optuna's own word on a schema that it does not know
        raise StorageError(f"{place.name} cannot be used: {error}") from None
    except STORAGE_ERRORS as error:
        raise StorageError(f"{place.name} cannot be opened: {place.hushed(cause(error))}") from None
    return Database(place.name, storage.engine, _with_cache(storage))


def _check_path(path: Path, name: str, *, create: bool, mounts: Path) -> None:
    if not path.parent.is_dir():
        raise StorageError(f"{name} cannot be opened: the folder {path.parent} does not exist")
    if not path.exists() and not create:
        raise StorageError(f"{name} does not exist; launch a study first, or name another with --storage")
    if (kind := filesystem_of(path, mounts)) in NETWORK_FILESYSTEMS:
        raise StorageError(
            f"{name} lies on a network file system ({kind}), where SQLite loses data; "
            "put it on a local disk, or use postgresql://"
        )
    if create:
        make_private(path)  # SQLite gives the files beside it the same permissions


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


def _connecting(place: Place, *, read_only: bool) -> dict[str, Any]:
    """Return the arguments of `create_engine` that say how a connection is made."""
    if place.path is None:
        return {"connect_args": POSTGRESQL}
    connect = partial(_connect_sqlite, place, place.path, read_only=read_only)
    # Where we may not write, each connection looks anew whether somebody else does.
    alone = read_only and not _may_write(place.path)
    return {"creator": connect, "poolclass": NullPool if alone else QueuePool}


def _connect_sqlite(place: Place, path: Path, *, read_only: bool) -> sqlite3.Connection:
    """Connect to a file of SQLite that exists; one that is gone must not come back empty.

    Raises:
        StorageFailedError: if it is gone since the database was opened.
    """
    if _identity(path) is None:
        raise _gone(place)
    mode = "rw"
    if read_only and not _may_write(path):
        # SQLite reads beside writers with the help of files that these have made; it makes none of its own.
        beside = path.with_name(f"{path.name}-wal")
        mode = "ro" if beside.exists() and beside.stat().st_size > 0 else "ro&immutable=1"
    connection = sqlite3.connect(
        f"file:{quote(str(path))}?mode={mode}",
        uri=True,
        timeout=LOCK_SECONDS,
        isolation_level=None,  # we say BEGIN ourselves
        check_same_thread=False,
    )
    pragmas = ("query_only=ON",) if read_only else ("journal_mode=WAL", "synchronous=NORMAL")
    for pragma in pragmas:
        connection.execute(f"PRAGMA {pragma}")
    return connection


def _may_write(path: Path) -> bool:
    return os.access(path, os.W_OK) and os.access(path.parent, os.W_OK | os.X_OK)


def _connect(url: str, place: Place, options: Mapping[str, Any], *, read_only: bool) -> RDBStorage:
    """Open Optuna's storage on tables that were checked, with our connection settings."""
    pool: dict[str, Any] = {}
    if place.path is None:
        # One connection for the training and one for the heartbeat, with room for a moment of overlap; a
        # reader may be a server with several threads.
        pool = {"pool_pre_ping": True, "pool_size": 2, "max_overflow": 8 if read_only else 2}
    storage = RDBStorage(
        url, engine_kwargs={**options, **pool}, skip_compatibility_check=True, skip_table_creation=True
    )
    if place.path is not None:
        event.listen(storage.engine, "begin", partial(_begin_sqlite, place, _identity(place.path), read_only))
    else:
        event.listen(storage.engine, "connect", partial(_configure_postgresql, read_only))
    storage.engine.dispose()  # drop the connections that were opened before the settings
    return storage


READS = tuple(name for name in vars(BaseStorage) if name.startswith("get_"))
"""The methods of Optuna's storages that only read."""

_reading: ContextVar[bool] = ContextVar("reading", default=False)
"""Whether Optuna's storage is about to read only."""


def _with_cache(storage: RDBStorage) -> BaseStorage:
    """Return Optuna's storage with its cache of finished trials, whose reads take no lock of SQLite."""
    cached = optuna.storages.get_storage(storage)
    for name in READS:
        setattr(cached, name, _read_only(getattr(cached, name)))
    return cached


def _read_only(method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def read(*args: Any, **options: Any) -> Any:
        before = _reading.set(True)
        try:
            return method(*args, **options)
        finally:
            _reading.reset(before)

    return read


def _identity(path: Path) -> tuple[int, int] | None:
    """Return the device and inode of the file at a path, which tell it from another; None without a file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _gone(place: Place) -> StorageFailedError:
    """Return the error of whoever uses a file of SQLite that is not there any more, or is another one."""
    return StorageFailedError(
        f"{place.name} was removed or replaced while it was used, and what was written since is lost; "
        "launch the study again"
    )


def _begin_sqlite(
    place: Place, opened: tuple[int, int] | None, read_only: bool, connection: Connection
) -> None:
    """Begin a transaction of SQLite, for reading or with the write lock.

    Raises:
        StorageFailedError: if the path leads to another file than when it was opened, so that what is written
            would be lost.
    """
    if place.path is not None and _identity(place.path) != opened:
        raise _gone(place)
    reads = read_only or _reading.get() or connection.get_execution_options().get("floodsearch_read_only")
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")


def _configure_postgresql(read_only: bool, connection: Any, record: Any) -> None:
    del record
    connection.execute("SET TIME ZONE 'UTC'")
    if read_only:
        connection.execute("SET default_transaction_read_only = on")
    connection.commit()
