"""Code of the user's own, imported by the name that a study file gives it."""

from __future__ import annotations

import importlib
import sysconfig
import traceback
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from floodsearch import nesting
from floodsearch.errors import NestedError, TaskError, named, pass_on_ctrl_c


def find_code(reference: str, wanted: str) -> Callable[..., Any]:
    """Return the function behind `package.module:name`.

    Args:
        reference: names it.
        wanted: what it must be, for the message.

    Raises:
        TaskError: if it cannot be imported, saying which import failed, or is not callable.
    """
    module_name, _, name = reference.partition(":")
    try:
        with nesting.importing(reference):
            module = importlib.import_module(module_name)
    except NestedError as error:
        raise TaskError(f"{reference!r} cannot be imported: {error}") from None
    except ModuleNotFoundError as error:
        own = f"{module_name}.".startswith(f"{error.name}.")
        missing = f"module {error.name!r}" + ("" if own else ", which it imports,")
        raise TaskError(
            f"{reference!r} cannot be imported: {missing} is not installed nor in the current folder"
        ) from None
    except BaseException as error:  # a user's module may fail in any way while it is imported
        pass_on_ctrl_c(error)
        raise TaskError(
            f"{reference!r} cannot be imported: {named(error)}; run it in Python to see the whole error"
        ) from error
    found = getattr(module, name, None)
    if found is None:
        raise TaskError(f"{reference!r} cannot be imported: {module_name} has no {name!r}")
    if not callable(found):
        raise TaskError(f"{reference!r} is a {type(found).__name__}, not {wanted}")
    return found  # type: ignore[no-any-return]


def file_of(reference: str) -> Path | None:
    """Return the file of the module that `package.module:name` names; None if it has none."""
    try:
        with nesting.importing(reference):  # looking for a module imports the packages that it is in
            spec = find_spec(reference.partition(":")[0])
    except BaseException as error:
        pass_on_ctrl_c(error)
        return None
    return None if spec is None or not spec.has_location or spec.origin is None else Path(spec.origin)


FOREIGN = (
    *map(sysconfig.get_path, ("stdlib", "platstdlib", "purelib", "platlib")),
    str(Path(__file__).parent),
)
"""Folders whose code is not the user's own: Python's, installed packages, and this one."""


def said(error: BaseException) -> str:
    """Return an error in a line: its kind, its own words, and where in the user's own code it came from."""
    if isinstance(error, TaskError):  # our own words, which say what to change
        return str(error)
    told = named(error)
    own = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).is_absolute() and not frame.filename.startswith(FOREIGN)
    ]
    return f"{told} ({Path(own[-1].filename).name}:{own[-1].lineno})" if own else told
