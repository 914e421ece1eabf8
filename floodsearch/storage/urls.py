"""Storage URLs: the file of SQLite or the server of PostgreSQL that one names, shown without secrets."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from floodsearch.errors import StorageError

SQLITE = re.compile(r"sqlite(?:\+pysqlite)?://(?:/(.*))?", re.DOTALL)
SQLALCHEMY_OPTION = re.compile(r"\?\w+=[^/]*\Z")
SHOWN = frozenset(
    {"host", "hostaddr", "port", "user", "dbname", "sslmode", "sslrootcert", "connect_timeout"}
    | {"application_name", "target_session_attrs", "load_balance_hosts", "channel_binding", "gssencmode"}
)
"""Parameters of libpq whose values are no secrets; of all others only the name is shown."""
HIDDEN = "***"


@dataclass(frozen=True)
class Place:
    """The place of a database.

    Args:
        name: the URL without secrets, for messages; of a file with its path as it was written.
        url: as SQLAlchemy wants it, with the password.
        path: of the file, absolute; None for a server.
    """

    name: str
    url: URL = field(repr=False)
    path: Path | None = None

    def secrets(self) -> Iterator[str]:
        """Yield the password and the other secrets of the URL, which no message may hold."""
        if self.url.password:
            yield str(self.url.password)
        for key, values in self.url.normalized_query.items():
            if key not in SHOWN:
                yield from filter(None, values)

    def hushed(self, words: str) -> str:
        """Return a text about this place, such as an error of a library, with its secrets masked."""
        for secret in sorted(self.secrets(), key=len, reverse=True):
            if len(secret) > 2:  # the words would be gone with a letter, and tell it so
                words = words.replace(secret, HIDDEN)
        return words


def place_of(url: str) -> Place:
    """Return the place that a storage URL names.

    Raises:
        StorageError: if it cannot be read, is of another kind, or would show a part of a password.
    """
    if (file := SQLITE.fullmatch(url)) is not None:
        return _file(file[1] or "")
    try:
        parsed = make_url(url)
        backend = parsed.get_backend_name()
    except (ArgumentError, ValueError):  # whose words may hold a part of the password
        backend = "sqlite"
    if backend == "sqlite":  # of another form
        raise StorageError(
            "the storage URL cannot be read; write sqlite:///PATH or postgresql://USER@HOST/DATABASE, "
            "with %40 for an @ and %2F for a / in a password"
        )
    if backend != "postgresql":
        raise StorageError(
            f"storage {parsed.drivername!r} is not supported; use sqlite:///PATH or postgresql://USER@HOST/DATABASE"
        )
    return _server(url, parsed)


def _server(url: str, parsed: URL) -> Place:
    """Return the place of a server; where a password ends must be beyond doubt, as all else is shown."""
    before, at, _ = url.partition("://")[2].rpartition("@")
    if at and set("@/?#") & set(before):
        raise StorageError(
            "the storage URL has an @, /, ? or # in its user or password; write %40, %2F, %3F or %23 there, "
            "as in postgresql://USER:PASS%40WORD@HOST/DATABASE"
        )
    if "password" in parsed.query:
        raise StorageError(
            "a password after ? would be shown in messages; write USER:PASSWORD@HOST, or set PGPASSWORD"
        )
    parsed = parsed.set(drivername="postgresql+psycopg")
    told = [
        f"{key}={value if key in SHOWN else HIDDEN}"
        for key, values in parsed.normalized_query.items()
        for value in values
    ]
    plain = parsed.set(query={}).render_as_string(hide_password=True)
    return Place("?".join(filter(None, (plain, "&".join(told)))), parsed)


def _file(written: str) -> Place:
    """Return the place of a file: `~` is the home folder, all else is taken as it is written.

    Only where that leads nowhere is the path decoded, as of a URL.
    """
    if written in ("", ":memory:") or written.startswith("file:"):
        raise StorageError("SQLite in memory cannot be shared by workers; give a file, as in sqlite:///PATH")
    if "\0" in written:
        raise StorageError("the storage URL holds a zero byte; write sqlite:///PATH")
    shown = _meant(_at_home(written))
    option = SQLALCHEMY_OPTION.search(shown)
    if option is not None and not os.path.exists(shown):  # noqa: PTH110 - false also where one may not look
        raise StorageError(
            f"sqlite:///{shown} has an option after ?, which SQLite's URLs do not take here; "
            f"write sqlite:///{shown[: option.start()]}"
        )
    path = Path(shown).absolute()
    return Place(f"sqlite:///{shown}", URL.create("sqlite", database=str(path)), path)


def _at_home(written: str) -> str:
    try:
        return str(Path(written).expanduser()) if written.startswith("~") else written
    except RuntimeError:
        raise StorageError(
            f"sqlite:///{written} names a home folder that is not known; write the whole path, or ./~"
        ) from None


def _meant(written: str) -> str:
    """Return a path as it is written, or else decoded: whichever file is there, or else whichever folder."""
    ways = (written, unquote(written))
    for there in (os.path.isfile, lambda way: os.path.isdir(os.path.dirname(way) or ".")):  # noqa: PTH112, PTH120
        for way in ways:
            if "\0" not in way and there(way):
                return way
    return written
