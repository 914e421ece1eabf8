"""Values of rows, checked: anyone who reaches the database may have changed them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from floodsearch.errors import DamagedError

MOST = 2**62
UUID = re.compile(r"[0-9a-f]{32}")


def whole(value: object, where: str, *, least: int = 0) -> int:
    """Return a whole number.

    Raises:
        DamagedError: if it is none, or below `least`; `where` names it.
    """
    if isinstance(value, int) and not isinstance(value, bool) and least <= value < MOST:
        return value
    raise DamagedError(where, value, f"a whole number from {least} on")


def number(value: object, where: str) -> float:
    """Return a finite number.

    Raises:
        DamagedError: if it is none.
    """
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return float(value)
    raise DamagedError(where, value, "a finite number")


def flag(value: object, where: str) -> bool:
    """Return true or false.

    Raises:
        DamagedError: if it is neither.
    """
    if isinstance(value, bool):
        return value
    raise DamagedError(where, value, "true or false")


def text(value: object, where: str) -> str:
    """Return a text.

    Raises:
        DamagedError: if it is none.
    """
    if isinstance(value, str):
        return value
    raise DamagedError(where, value, "a text")


def uuid_of(value: object, where: str) -> str:
    """Return a uuid of ours, which is part of a path.

    Raises:
        DamagedError: if it is none.
    """
    if UUID.fullmatch(text(value, where)):
        return str(value)
    raise DamagedError(where, value, "32 hex digits")


def parsed(value: object, where: str, kind: type[dict[Any, Any]] | type[list[Any]]) -> Any:
    """Return an object or a list of JSON.

    Raises:
        DamagedError: if it is none.
    """
    try:
        found = json.loads(text(value, where))
    except (ValueError, RecursionError):
        found = None
    if isinstance(found, kind):
        return found
    raise DamagedError(where, value, "a JSON object" if kind is dict else "a JSON list")


@contextmanager
def read_by_optuna(where: str) -> Iterator[None]:
    """Read Optuna's tables within this, so that a damaged row is an error of ours.

    Raises:
        DamagedError: if an attribute there is no JSON, or a parameter has no sense.
    """
    try:
        yield
    except json.JSONDecodeError as error:
        raise DamagedError(f"an attribute of {where}", error.doc, "JSON") from error
    except (ValueError, TypeError, IndexError) as error:  # a distribution of a parameter that is none
        raise DamagedError(f"a parameter of {where}", str(error), "a value of its distribution") from error
