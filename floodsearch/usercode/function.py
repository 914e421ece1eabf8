"""A function that was handed over in Python: by which name others import it, or why only this process can."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from floodsearch.errors import UsageError
from floodsearch.usercode.reference import HANDED, file_of
from floodsearch.usercode.sources import source_revision


@dataclass(frozen=True)
class Function:
    """A training loop as an object of this process.

    Args:
        call: the function itself.
        reference: `package.module:name`, by which workers import it, or `<function>:name` where they cannot.
        why_here: why they cannot, to go on after "it"; None where they can.
        revision: of its source, and of what it uses beside itself; None where there is no source.
    """

    call: Callable[..., object]
    reference: str
    why_here: str | None
    revision: str | None

    @classmethod
    def of(cls, function: object) -> Function:
        """Return a function of the user's own with its name and revision.

        Raises:
            UsageError: if it cannot be called.
        """
        if not callable(function):
            shown = repr(function)
            raise UsageError(
                f"objective is {shown[:60]}, which cannot be called; give a function, such as "
                "def train(run): ..."
            )
        named = function if hasattr(function, "__qualname__") else type(function)
        name = str(named.__qualname__)
        why = _why_here(function, name)
        module = HANDED if why is not None else str(function.__module__)
        return cls(function, f"{module}:{name}", why, source_revision(function))

    @property
    def name(self) -> str:
        """Its name in its module."""
        return self.reference.partition(":")[2]


def _why_here(function: Any, name: str) -> str | None:
    """Return why no other process can import a function; None if one can."""
    module = getattr(function, "__module__", None)
    if name.endswith("<lambda>"):
        return "is a lambda"
    if "<locals>" in name:
        return "is defined inside of another function"
    if module == "__main__":
        return "is defined in a notebook, or in the program itself"
    if module is None or getattr(sys.modules.get(module), name, None) is not function:
        return "is no function that its module has by that name"
    known, found = getattr(sys.modules[module], "__file__", None), file_of(f"{module}:{name}")
    if known is None or found is None or Path(known).absolute() != found.absolute():
        return f"is of a module {module!r} that workers would not find"
    return None
