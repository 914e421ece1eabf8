"""How a command comes to its study: from a file, or from a storage."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from floodsearch.errors import FloodsearchError, StorageError
from floodsearch.process.terminal import keep_stdout
from floodsearch.usercode.reference import beside, search_in

if TYPE_CHECKING:
    from floodsearch.storage.database import Database
    from floodsearch.storage.studies import StoredStudy
    from floodsearch.study.spec import Spec


def read_spec(path: Path, settings: Sequence[str] | None = None) -> Spec:
    """Return the spec of a study file with settings of the command line.

    Its code is found beside it and in the current folder.

    What that code prints goes to standard error from now on.
    """
    from floodsearch.catalog import known
    from floodsearch.study.reader import read

    keep_stdout()
    folders = beside(path)
    search_in(folders)
    return read(path, known(folders), settings or ())


def open_storage(storage: str, *, create: bool = False, read_only: bool = False) -> Database:
    """Open the database at a URL; it closes itself as a context manager."""
    from floodsearch.storage.database import open_database

    return open_database(storage, create=create, read_only=read_only)


@contextmanager
def open_study(storage: str, name: str, *, read_only: bool = False) -> Iterator[StoredStudy]:
    """Open the study of a name in the database at a URL."""
    from floodsearch.storage.studies import find_study

    with open_storage(storage, read_only=read_only) as database:
        yield find_study(database, name)


@contextmanager
def join_storage(storage: str, *, launched: bool) -> Iterator[Database]:
    """Open a storage to train a study of it.

    Raises:
        FloodsearchError: where the storage cannot be opened, but was by the launch that has started this
            worker: it is away for now, so that another worker is to be started.
        StorageError: where it cannot be opened.
    """
    try:
        database = open_storage(storage)
    except StorageError as error:
        if launched:
            raise FloodsearchError(str(error)) from None
        raise
    with database:
        yield database
