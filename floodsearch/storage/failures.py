"""Errors of the database: whether one passes by itself, and the message that a user gets."""

from __future__ import annotations

from collections.abc import Iterator

from optuna.exceptions import DuplicatedStudyError, StorageInternalError
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from floodsearch.errors import FloodsearchError, StorageError, StorageFailedError

STORAGE_ERRORS = (StorageInternalError, SQLAlchemyError)
NOT_FOUND = "Record does not exist."
"""Optuna's word, in a KeyError, for a study or trial that is not there any more."""

READ_ONLY = "this user may not write the file or its folder; status, best, export and serve can read it"
DAMAGED = "put back a copy of the file, or name another with --storage"
LASTING_SQLITE = {3: READ_ONLY, 8: READ_ONLY, 23: READ_ONLY, 11: DAMAGED, 26: DAMAGED}
"""SQLite's primary result codes PERM, READONLY, AUTH, CORRUPT and NOTADB, and what to do."""
PASSING_SQLITE = {
    5: "another process has held its lock for too long; end that process, or try again",
    6: "another process has held its lock for too long; end that process, or try again",
    13: "make room and try again",
}
"""BUSY, LOCKED and FULL: what to do where nobody can wait any longer."""
NO_RIGHT = "this role may not do that; ask the owner of the database, or read with status, best and export"
LASTING_POSTGRESQL = {
    "25006": NO_RIGHT,
    "28": "check the user and the password",
    "3D": "check the name of the database",
    "3F": "check the schema",
    "42501": NO_RIGHT,
    "42703": "its tables were changed by hand; put them right again",
}
"""By SQLSTATE or its class. A table that is missing may be on its way back, as in a restore."""
PASSING_POSTGRESQL = {"53100": "make room and try again"}


def lasts(error: BaseException) -> bool:
    """Return whether an error of the database comes again however often one tries."""
    return _advice(error, LASTING_SQLITE, LASTING_POSTGRESQL) is not None


def failure(name: str, error: BaseException) -> FloodsearchError | None:
    """Return an error of the database as one of ours, with a message for users; None if it is no such error.

    Args:
        name: the database's, for messages.
        error: any.

    Returns:
        StorageError if it lasts, else StorageFailedError: another time it may work.
    """
    if isinstance(error, KeyError) and error.args == (NOT_FOUND,):
        return StorageError(f"a study in {name} was deleted while it was used")
    if isinstance(error, DuplicatedStudyError):
        return StorageError(
            f"{name} holds rows of a study that was deleted by hand; "
            "remove them, or name another with --storage"
        )
    if not isinstance(error, STORAGE_ERRORS):
        return None
    if (advice := _advice(error, LASTING_SQLITE, LASTING_POSTGRESQL)) is not None:
        return StorageError(f"{name} cannot be used: {cause(error)}; {advice}")
    advice = _advice(error, PASSING_SQLITE, PASSING_POSTGRESQL) or "try again when it answers"
    return StorageFailedError(f"{name} failed: {cause(error)}; {advice}")


def cause(error: BaseException) -> str:
    """Return the database's own words, which hold no password, in one line."""
    *_, last = _causes(error)
    words = str(getattr(last, "orig", None) or last).strip().splitlines()
    return words[0] if words else type(last).__name__


def _advice(error: BaseException, sqlite: dict[int, str], postgresql: dict[str, str]) -> str | None:
    """Return the advice for an error of the database, by its code in one of two tables; None without one."""
    for one in _causes(error):
        original = one.orig if isinstance(one, DBAPIError) else one
        if (code := getattr(original, "sqlite_errorcode", None)) is not None:
            return sqlite.get(code & 0xFF)
        if (state := getattr(original, "sqlstate", None)) is not None:
            return postgresql.get(state) or postgresql.get(state[:2])
    return None


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and, from the nearest to the first, the errors that it was raised from."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__
