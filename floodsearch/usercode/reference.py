"""Code of the user's own: the folders it is imported from, and the function behind a reference."""

from __future__ import annotations

import functools
import importlib
import os
import site
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ParamSpec, TypeGuard, TypeVar

from floodsearch.errors import MistakeError, NestedError, TaskError, first_line, named, pass_on_ctrl_c
from floodsearch.process import nesting
from floodsearch.usercode.arguments import lent

FOLDERS = "FLOODSEARCH_FOLDERS"
"""The environment variable with the folders of the user's code, a JSON list, from a launch to its workers."""
HANDED = "<function>"
"""In the place of a module in a reference: a function that was handed to `launch` in Python, and that only
the process which has it can train. No module can have such a name."""
PYTHONS = {*sys.stdlib_module_names, "test"}
"""The names of Python's own modules."""
P = ParamSpec("P")
R = TypeVar("R")


def beside(study: Path) -> tuple[Path, ...]:
    """Return the folders of a study file and of the file it links to, and the current one, each once."""
    found = (study.absolute().parent, Path(os.path.realpath(study)).parent, Path.cwd())
    return tuple(dict.fromkeys(found))


def own_folders() -> tuple[Path, ...]:
    """Return the import folders of this process except those of Python and of installed packages."""
    others = {*_library(), *site.getsitepackages(), site.getusersitepackages()}
    return tuple(Path(folder).absolute() for folder in sys.path if folder and folder not in others)


def search_in(folders: Iterable[Path]) -> None:
    """Let modules be found in more folders: after Python's own modules, before installed packages.

    So a file of the user's that is called `random.py` or `secrets.py` breaks nobody who wants Python's.
    """
    new = [folder for folder in dict.fromkeys(map(str, folders)) if folder not in sys.path]
    library = _library()
    position = max((sys.path.index(one) + 1 for one in library if one in sys.path), default=0)
    sys.path[position:position] = new


def _library() -> tuple[str, str]:
    """Return the folders of Python's own modules."""
    library = str(Path(os.__file__).parent)
    return library, os.path.join(library, "lib-dynload")  # noqa: PTH118 - compared with entries of sys.path


def find_code(reference: str, wanted: str, arguments: Sequence[str] = ()) -> Callable[..., Any]:
    """Return the function behind `package.module:name`.

    Args:
        reference: names it.
        wanted: kind of function, for the message.
        arguments: that its module finds in `sys.argv`.

    Raises:
        TaskError: if it cannot be imported, saying which import failed, or is not callable.
    """
    if is_handed(reference):
        raise TaskError(elsewhere(reference))
    module_name, _, name = reference.partition(":")
    if (top := module_name.partition(".")[0]) in PYTHONS:
        raise TaskError(
            f"{reference!r} cannot be imported: Python has a module {top!r} of its own, which comes first; "
            "give yours another name"
        )
    try:
        with nesting.importing(reference), as_program(reference, arguments):
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
        exits = isinstance(error, SystemExit)  # which says what to do
        told = first_line(error) if exits else f"{named(error)}; run it in Python to see the whole error"
        raise TaskError(f"{reference!r} cannot be imported: {told}") from error
    found = getattr(module, name, None)
    if found is None:
        where = f" ({module.__file__})" if getattr(module, "__file__", None) else ""
        raise TaskError(f"{reference!r} cannot be imported: {module_name} has no {name!r}{where}")
    if not callable(found):
        raise TaskError(f"{reference!r} is a {type(found).__name__}, not {wanted}")
    return found  # type: ignore[no-any-return]


@contextmanager
def as_program(reference: str, arguments: Sequence[str]) -> Iterator[None]:
    """Let code behind a reference find in `sys.argv` the path of its file, and these arguments."""
    with lent(str(file_of(reference) or reference.partition(":")[0]), arguments):
        yield


def called_as_program(function: Callable[P, R], reference: str, arguments: Sequence[str]) -> Callable[P, R]:
    """Return a function behind a reference that finds its own name and arguments in each call."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        with as_program(reference, arguments):
            return function(*args, **kwargs)

    return call


def is_handed(reference: str | None) -> TypeGuard[str]:
    """Return whether a reference is that of a function which was handed over in Python, and has no file."""
    return reference is not None and reference.startswith(f"{HANDED}:")


def elsewhere(reference: str) -> str:
    """Return the message for a function that was handed over in Python, and is asked for elsewhere."""
    name = reference.partition(":")[2]
    return (
        f"{name!r} is a function that was handed to floodsearch.launch in Python, and only the process that "
        "has it can train it: launch it there again, or put it into a file and name that in another study, "
        'such as objective = "train:train"'
    )


def file_of(reference: str) -> Path | None:
    """Return the file of the module in a reference `package.module:name`; None if it has no file.

    Nothing is imported for that, not even the packages that it is in.
    """
    top, *inner = reference.partition(":")[0].split(".")
    try:
        spec: ModuleSpec | None = find_spec(top)
    except ValueError:  # of a module that is not from a file
        return None
    name = top
    for part in inner:
        name = f"{name}.{part}"
        places = None if spec is None else spec.submodule_search_locations
        spec = None if places is None else PathFinder.find_spec(name, places)
    return None if spec is None or not spec.has_location or spec.origin is None else Path(spec.origin)


FOREIGN = (
    *map(sysconfig.get_path, ("stdlib", "platstdlib", "purelib", "platlib")),
    str(Path(__file__).parents[1]),
)
"""Folders whose code is not the user's own: Python's, installed packages, and this one."""


def said(error: BaseException) -> str:
    """Return an error in one line: its type, its message, and the last line of the user's own code in it."""
    if isinstance(error, TaskError | MistakeError):  # our own words, which say what to change
        return str(error)
    told = named(error)
    own = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).is_absolute() and not frame.filename.startswith(FOREIGN)
    ]
    return f"{told} ({Path(own[-1].filename).name}:{own[-1].lineno})" if own else told
