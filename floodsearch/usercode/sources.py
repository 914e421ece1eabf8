"""The source of a function of the user's own, with that of what it uses: told apart when a cell is edited."""

from __future__ import annotations

import ast
import dis
import inspect
import textwrap
from collections.abc import Collection, Iterator
from contextlib import suppress
from types import CodeType, FunctionType
from typing import Any

from floodsearch.usercode.revision import hash_of

PLAIN = (bool, int, float, complex, str, bytes, type(None))
"""Types of values that are told by their `repr`."""
READ, SET = ("LOAD_GLOBAL", "LOAD_NAME"), ("STORE_GLOBAL", "STORE_NAME", "STORE_DEREF")
"""What code does with names that are not its own."""


def source_revision(function: object) -> str | None:
    """Return a text that differs between any two versions of a function; None where it has no source.

    It covers the functions and classes that the function uses of its own module, or of its notebook, and
    numbers and texts there and in its closure, unless it sets them itself. Comments and the way code is
    written do not count.
    """
    parts = list(_parts("", function, getattr(function, "__module__", None), set()))
    if not parts or parts[0] is None:
        return None
    return f"sha256 {hash_of(chr(0).join(map(str, parts)).encode(errors='backslashreplace'))}"


def _parts(name: str, one: Any, module: str | None, seen: set[int]) -> Iterator[str | None]:
    """Yield the source of a function or class of a module, and of all that it uses there; values by name."""
    if _is_plain(one):
        yield f"{name} = {one!r}"
        return
    own = inspect.isroutine(one) or inspect.isclass(one)
    if not own or getattr(one, "__module__", None) != module or id(one) in seen:
        return
    seen.add(id(one))
    yield _source(one)
    inner = vars(one).values() if inspect.isclass(one) else [inspect.unwrap(one)]
    for function in inner:
        if isinstance(function, FunctionType):
            for used, value in sorted(_used(function).items()):
                yield from _parts(used, value, module, seen)


def _is_plain(one: Any) -> bool:
    return isinstance(one, PLAIN) or (isinstance(one, tuple) and all(map(_is_plain, one)))


def _source(one: Any) -> str | None:
    """Return the source of a function or class without comments; None if there is none."""
    try:
        source = textwrap.dedent(inspect.getsource(one))
    except (OSError, TypeError):
        return None
    with suppress(SyntaxError):  # of a part of an expression, as a lambda may be
        source = ast.unparse(ast.parse(source))
    return source


def _used(function: FunctionType) -> dict[str, Any]:
    """Return what a function finds around itself when it runs, by name: globals, and its closure."""
    code = function.__code__
    names, known = _names(code, READ) - _names(code, SET), function.__globals__
    found = {name: known[name] for name in names if name in known}
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        with suppress(ValueError):  # of a cell that is still empty
            if name not in _names(code, SET):
                found[name] = cell.cell_contents
    return found


def _names(code: CodeType, operations: Collection[str]) -> set[str]:
    """Return the names with which code does one of these, its inner functions' among them."""
    names = {one.argval for one in dis.get_instructions(code) if one.opname in operations}
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names |= _names(constant, operations)
    return names
