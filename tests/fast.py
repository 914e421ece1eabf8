"""Only the tests that start no process and open no storage: `pytest -p tests.fast`, as of `make fast`.

Which these are is found out, not written down. A module of the package is slow if it imports, itself or
through others of the package, what starts processes, or opens databases or buckets. A test is left out if
it, or a fixture, function or class of the tests that it uses, names something of a slow module. Names do
not tell all: a test that starts a process all the same is skipped at that moment, and says so.
"""

from __future__ import annotations

import ast
import functools
import inspect
import sys
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
SLOW = {"subprocess", "multiprocessing", "sqlalchemy", "sqlite3", "fsspec"}
"""The modules that start processes, or open databases or buckets."""
FORKS = {"fork", "forkpty", "posix_spawn", "popen"}
"""The functions of `os` that start processes."""
SELDOM = "revision"
"""The module that asks git, of a user's own code only: what uses it is let in, and skipped where it asks."""
STARTS = {"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.system"}
"""The names under which Python announces to an audit hook that a process is about to be started."""


@cache
def file_of(module: str) -> Path | None:
    """Return the file of a module of the package; None if there is no such module."""
    path = ROOT.joinpath(*module.split("."))
    files = (path / "__init__.py", path.with_suffix(".py"))
    return next((file for file in files if module.startswith("floodsearch.") and file.exists()), None)


@cache
def imports(file: Path) -> frozenset[str]:
    """Return the names of all modules that a file may import, at whatever moment."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return frozenset(found)


@cache
def is_slow(module: str) -> bool:
    """Return whether a module imports one of these, itself or through others of the package."""
    seen: set[str] = set()
    left = [module]
    while left:
        name = left.pop()
        if name.split(".")[0] in SLOW:
            return True
        if name not in seen and name.split(".")[-1] != SELDOM and (file := file_of(name)):
            left.extend(imports(file))
        seen.add(name)
    return False


def codes(code: CodeType) -> Iterator[CodeType]:
    """Yield the code of a function, and that of the functions inside of it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from codes(constant)


def names(function: FunctionType) -> Iterator[Any]:
    """Yield what a function names: objects of its module, and the names of modules that it imports."""
    for code in codes(function.__code__):
        for name in code.co_names:
            if name.startswith("__"):
                continue
            yield function.__globals__.get(name)
            yield from (
                module for module in (name, f"floodsearch.{name}") if module in SLOW or file_of(module)
            )
            if name in FORKS:
                yield "subprocess"


def parts(thing: Any) -> Iterable[Any]:
    """Return what an object of the tests consists of or names."""
    if isinstance(thing, FunctionType):
        cells = (cell for cell in thing.__closure__ or () if cell != type(cell)())  # those that are not empty
        return [*names(thing), *(cell.cell_contents for cell in cells)]
    if isinstance(thing, functools.partial):
        return [thing.func, thing.args, thing.keywords]
    if isinstance(thing, dict):
        return thing.values()
    if isinstance(thing, list | tuple | set | frozenset):
        return thing
    if inspect.isclass(thing):
        return [*vars(thing).values(), *thing.__bases__]
    return [getattr(thing, "__func__", None), getattr(thing, "__wrapped__", None)]


REACHES: dict[int, bool] = {}
"""By the identity of a function: whether something of a slow module can be reached from it by names."""


def home(thing: Any) -> str | None:
    """Return the name of the module that something is, names or was made in; None for plain values."""
    if isinstance(thing, str):
        return thing
    found = thing.__name__ if isinstance(thing, ModuleType) else getattr(thing, "__module__", None)
    return found if isinstance(found, str) else None


def reaches(thing: Any) -> bool:
    """Return whether something of a slow module can be reached from an object by names."""
    seen: dict[int, Any] = {}
    left = [thing]
    while left:
        one = left.pop()
        if id(one) in seen:
            continue
        seen[id(one)] = one
        module = home(one)
        if module is not None and is_slow(module):
            return True
        ours = module is None or module.startswith("tests.") or isinstance(one, functools.partial)
        if ours and not isinstance(one, str | ModuleType):
            left.extend(parts(one))
    return False


@cache
def function_reaches(function: Any) -> bool:
    """Return the same of a function, which many tests share."""
    return reaches(function)


def is_fast(item: pytest.Item) -> bool:
    """Return whether a test starts no process and opens no storage, as far as names tell."""
    if not isinstance(item, pytest.Function) or item.get_closest_marker("postgres"):
        return False
    always = set(item.session._fixturemanager._getautousenames(item))  # of all tests: they start nothing yet
    found = item._fixtureinfo.name2fixturedefs.items()
    fixtures = [one[-1].func for name, one in found if name not in always]
    values = item.callspec.params if hasattr(item, "callspec") else {}
    return not (any(map(function_reaches, [item.function, *fixtures])) or reaches(values))


class Running:
    """The test that is being run, if any, and whether it has tried to start a process."""

    test: str | None = None
    tried: bool = False


def refuse(event: str, arguments: tuple[Any, ...]) -> None:
    """Let no test start a process; hear what Python announces."""
    if event in STARTS and Running.test is not None:
        Running.tried = True
        pytest.skip("starts a process")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Skip a test that tried to start a process, whatever the code between made of the refusal."""
    Running.test, Running.tried = item.nodeid, False
    try:
        return (yield)
    except Exception:
        if Running.tried:
            pytest.skip("starts a process")
        raise
    finally:
        Running.test = None


def pytest_configure() -> None:
    """Hear of processes from now on; Python forgets no such hook."""
    sys.addaudithook(refuse)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out all tests but the fast ones."""
    fast = [item for item in items if is_fast(item)]
    left_out = [item for item in items if item not in set(fast)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = fast
