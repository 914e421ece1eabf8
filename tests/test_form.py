"""The shape of the code: who may import whom, what stays light, what the command line offers."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main

from floodsearch.catalog import known
from floodsearch.cli import app
from floodsearch.studyfile import read

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "floodsearch"

ROWS: list[dict[str, set[str]]] = [
    # A file imports only from rows above its own. Each entry names the third-party packages it may import
    # and, after a ">", the files of its own row that it may import.
    {"errors": set(), "records": set(), "defaults": set(), "signals": set(), "terminal": set()},
    {
        "flooding": {"torch"},
        "schedules": set(),
        "nesting": set(),
        "imports": {">nesting"},
        "files": {"fsspec"},
        "revision": set(),
        "spec": {"pydantic", "pydantic_core"},
        "trust": {">spec"},
        "command": {">spec"},
        "studyfile": {"pydantic", ">spec", ">command"},
        "smoothing": {"numpy", "scipy"},
        "landscape": {"numpy", ">smoothing"},
        "evidence": {"numpy", "scipy", ">smoothing"},
        "analysis": {"numpy", ">evidence", ">landscape", ">smoothing"},
    },
    {"tasks": {"torch", "numpy", "sklearn", "torchvision", "filelock"}},
    {"training": {"torch", "numpy"}, "search": {"optuna", "numpy"}},
    {"catalog": {"optuna", "numpy"}, "storage": {"optuna", "sqlalchemy"}},
    {
        "queue": {"optuna", "sqlalchemy"},
        "retry": set(),
        "devices": {"torch"},
        "notices": {">retry"},
    },
    {
        "forecast": set(),
        "heart": set(),
        "trainer": {"torch"},
        "loops": {"torch", ">heart", ">trainer"},
        "speed": {">trainer"},
        "pilot": {">heart", ">trainer"},
        "bracket": {"torch", ">heart", ">trainer"},
        "worker": {"torch", ">heart", ">trainer", ">loops", ">pilot", ">bracket"},
        "answers": {">forecast"},
    },
    {"launchers": set(), "report": {"pyarrow"}, "adapters": {"torch", "lightning", "transformers"}},
    {"serve": {"optuna_dashboard", "waitress"}},
    {"cli": {"typer", "rich"}},
    {"__main__": set()},
]
LIGHT = [
    "errors",
    "records",
    "schedules",
    "spec",
    "studyfile",
    "analysis",
    "catalog",
    "queue",
    "answers",
    "serve",
    "cli",
]
LIGHT += [
    "storage.database",
    "storage.studies",
    "storage.tables",
    "storage.trials",
    "report.text",
    "report.export",
]
LIGHT += ["search.space", "search.samplers", "search.pruners"]
FORBIDDEN_NAMES = {"utils", "common", "helpers", "misc", "core", "base", "manager", "util"}


def modules() -> Iterator[tuple[str, Path]]:
    """Yield each module's dotted name without the package, and its file; the package itself is "" ."""
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        yield ".".join(part for part in parts if part != "__init__"), path


def imported(path: Path) -> set[str]:
    """Return the dotted names that a file imports when it runs: TYPE_CHECKING blocks do not run."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    names: set[str] = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def own_module(name: str, every: set[str]) -> str | None:
    """Return which of our modules an imported name belongs to."""
    parts = name.split(".")[1:]
    while parts and ".".join(parts) not in every:
        parts.pop()
    return ".".join(parts) or None


MODULES = dict(modules())
ROW_OF = {name: index for index, row in enumerate(ROWS) for name in row}


@pytest.mark.parametrize("name", [name for name in MODULES if name])
def test_imports_go_only_to_rows_above(name: str) -> None:
    """A file imports only from rows above its own, and third parties only where the table says so."""
    room = name.split(".", maxsplit=1)[0]
    allowed = ROWS[ROW_OF[room]][room]
    for target in imported(MODULES[name]):
        if not target.startswith("floodsearch"):
            top = target.split(".")[0]
            assert top in sys.stdlib_module_names or top in allowed, f"{name} imports {target}"
        elif module := own_module(target, set(MODULES)):
            other = module.split(".")[0]
            inside = other == room or f">{other}" in allowed
            assert inside or ROW_OF[other] < ROW_OF[room], f"{name} imports {target}"


def test_the_table_names_every_file() -> None:
    """Each file and folder of the package stands in the table of rows, and nothing else does."""
    assert {name.split(".")[0] for name in MODULES if name} == set(ROW_OF)


def test_there_are_no_import_cycles() -> None:
    """No module is imported, through others, by what it imports when it runs."""
    edges = {
        name: {module for target in imported(path) if (module := own_module(target, set(MODULES)))} - {name}
        for name, path in MODULES.items()
        if name
    }
    while leaves := [name for name, targets in edges.items() if not targets & edges.keys()]:
        for leaf in leaves:
            del edges[leaf]
    assert not edges


@pytest.mark.parametrize("name", LIGHT)
def test_module_does_not_import_torch(name: str) -> None:
    """A process that imports this module alone has not imported torch."""
    code = f"import sys, floodsearch.{name}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_no_drawer_modules() -> None:
    """No module has a name that says nothing of what is in it."""
    assert not {part for name in MODULES for part in name.split(".")} & FORBIDDEN_NAMES


def test_the_command_line_is_frozen() -> None:
    """Commands and options change on purpose only, and no command has more than eight options."""
    group = typer.main.get_command(app)
    surface = {
        name: sorted(option for one in command.params for option in one.opts if option.startswith("--"))
        for name, command in group.commands.items()  # type: ignore[attr-defined]
    }
    assert surface == {
        "launch": [
            "--checkpoints",
            "--detach",
            "--devices",
            "--logs",
            "--storage",
            "--workers",
            "--workers-per-device",
        ],
        "work": [
            "--checkpoints",
            "--device",
            "--grace",
            "--leave-on-eof",
            "--logs",
            "--storage",
            "--threads",
            "--trust",
        ],
        "status": ["--json", "--storage"],
        "best": ["--json", "--storage"],
        "weights": ["--checkpoints", "--out", "--storage"],
        "export": ["--curves", "--format", "--out", "--storage"],
        "check": ["--json", "--measure", "--speed", "--storage"],
        "stop": ["--storage"],
        "logs": ["--follow", "--lines", "--logs"],
        "delete": ["--checkpoints", "--storage", "--yes"],
        "serve": ["--allow-host", "--host", "--port", "--storage"],
        "create": ["--storage"],
    }


@pytest.mark.parametrize("path", sorted((ROOT / "studies").glob("*.toml")), ids=lambda path: path.stem)
def test_study_file_loads_and_is_described(path: Path) -> None:
    """Every study file of the repository is valid, and the README beside it says what it asks."""
    read(path, known())
    assert f"`{path.name}`" in (path.parent / "README.md").read_text(encoding="utf-8")


def test_all_is_what_the_package_offers() -> None:
    """Each public name resolves, and `dir` shows it."""
    import floodsearch

    for name in floodsearch.__all__:
        assert getattr(floodsearch, name) is not None
        assert name in dir(floodsearch)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = floodsearch.nothing  # type: ignore[attr-defined]
