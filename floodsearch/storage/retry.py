"""Calls to the storage that are repeated where it fails, because training matters more."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from functools import partial
from typing import ParamSpec, TypeVar

from floodsearch.storage.failures import STORAGE_ERRORS, cause, lasts

PATIENCE = 900.0
"""Seconds for which a call that must not be lost is repeated: a database may be away for minutes."""
FEW_SECONDS = 0.5
"""For which a call that may be lost is repeated."""
LONGEST_WAIT = 10.0
"""Seconds between two tries, so that work goes on soon after the database is back."""

Given = ParamSpec("Given")
Result = TypeVar("Result")

log = logging.getLogger(__name__)


def persistently(call: Callable[Given, Result], *args: Given.args, **named: Given.kwargs) -> Result:
    """Call the storage, again after growing waits where it fails with an error that may pass.

    Args:
        call: that is repeated, and may be.
        *args: of the call.
        **named: arguments of the call, by name.

    Raises:
        StorageInternalError, SQLAlchemyError: the last failure, or the first that lasts, such as a right that
            is missing.
    """
    return _repeated(partial(call, *args, **named), PATIENCE)


def attempt(call: Callable[Given, Result], *args: Given.args, **named: Given.kwargs) -> Result | None:
    """Call the storage a few times; None where it fails, because training matters more."""
    try:
        return _repeated(partial(call, *args, **named), FEW_SECONDS)
    except STORAGE_ERRORS as error:
        log.warning("the storage failed, going on without it: %s", cause(error))
        return None


def _repeated(call: Callable[[], Result], patience: float) -> Result:
    """Return the result of a call, which is repeated for so many seconds as long as the storage fails."""
    began, wait = time.monotonic(), 0.1
    while True:
        try:
            return call()
        except STORAGE_ERRORS as error:
            if lasts(error) or time.monotonic() - began + wait > patience:
                raise
            log.warning("the storage failed and is asked again: %s", cause(error))
        # The waits differ between workers, so that they do not come back all at once.
        time.sleep(wait * random.uniform(0.5, 1.5))  # noqa: S311 - not for security
        wait = min(2 * wait, LONGEST_WAIT)
