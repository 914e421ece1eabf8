"""Calls to the storage that are repeated where it fails, because training matters more."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from typing import TypeVar

from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import SQLAlchemyError

TRIES = 11
"""Tries of a write that must not be lost; with the waits between them about 100 seconds."""
STORAGE_ERRORS = (StorageInternalError, SQLAlchemyError)

Result = TypeVar("Result")

log = logging.getLogger("floodsearch.worker")


def persistently(call: Callable[[], Result], *, tries: int = TRIES) -> Result:
    """Call the storage, again after growing waits where it fails.

    Every call here may be repeated. A ticket that was taken by a call whose answer got lost is found by the
    reaper: it runs, but its worker does not say that it trains it.

    Raises:
        StorageInternalError, SQLAlchemyError: the last failure, when all tries are used up.
    """
    for wait in range(tries - 1):
        try:
            return call()
        except STORAGE_ERRORS as error:
            log.warning("the storage failed, try %d of %d: %s", wait + 1, tries, first_line(error))
            # The waits differ between workers, so that they do not come back all at once.
            time.sleep(0.1 * 2**wait * random.uniform(0.5, 1.5))  # noqa: S311 - not for security
    return call()


def attempt(call: Callable[[], Result]) -> Result | None:
    """Call the storage a few times; None where it fails, because training matters more."""
    try:
        return persistently(call, tries=3)
    except STORAGE_ERRORS as error:
        log.warning("the storage failed, going on without it: %s", first_line(error))
        return None


def first_line(error: BaseException) -> str:
    """Return an error's first line, or its name if it says nothing."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__
