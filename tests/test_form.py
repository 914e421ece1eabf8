"""The shape of the code: who may import whom, what stays light, what the documents promise."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main

from floodsearch.catalog import known
from floodsearch.cli import app
from floodsearch.flooding.schedules import SCHEDULES
from floodsearch.search.pruners import PRUNERS
from floodsearch.search.samplers import SAMPLERS
from floodsearch.study.reader import read
from floodsearch.tasks import TASKS

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "floodsearch"
README = (ROOT / "README.md").read_text(encoding="utf-8")


def words(text: str) -> list[str]:
    """Return the words of a text."""
    return text.split()


ORDER = words("""
    errors records defaults
    process flooding usercode artifacts answer
    tasks study training search storage catalog
    queue worker cost queries
    report launchers adapters service cli __main__
""")
"""The packages, and the files beside them: each imports only from those before it."""

INSIDE = {
    "process": "terminal signals nesting",
    "flooding": "loss schedules",
    "usercode": "reference revision command",
    "artifacts": "files names checkpoint weights",
    "answer": "smoothing response gain best",
    "tasks": "__init__ streams models tensors task augmentation resnet image_sets synthetic images",
    "study": "spec reader trust",
    "training": "devices randomness arithmetic batches progress contract run engine lanes stack stackable "
    "trunk cohort independence rehearsal loop script",
    "search": "space history samplers tickets halving judge pruners plain_optuna",
    "storage": "failures urls rows schema trials database retry tables studies notices",
    "queue": "ticket brackets wanted filling ownership claims ends judging budget reaper __init__",
    "worker": "settings leave heartbeat trainers loops pilot recorder held bracket work",
    "cost": "forecast throughput",
    "report": "text export weights",
    "launchers": "supervision local",
    "adapters": "ranks metrics lightning huggingface",
    "service": "dashboard",
}
"""The files of each package: each imports only from those before it. An `__init__` that is not named imports
nothing of ours."""

THIRD_PARTIES = {
    "flooding": "torch",
    "artifacts": "fsspec torch",
    "answer": "numpy scipy",
    "tasks": "torch numpy sklearn torchvision filelock",
    "study": "pydantic pydantic_core",
    "training": "torch numpy",
    "search": "optuna numpy",
    "storage": "optuna sqlalchemy",
    "catalog": "optuna numpy",
    "queue": "optuna sqlalchemy",
    "worker": "torch",
    "report": "pyarrow",
    "adapters": "torch lightning transformers",
    "service": "optuna_dashboard waitress",
    "cli": "typer rich",
}
"""What else each package may import."""

LIGHT = words("""
    errors records defaults process.nesting flooding.schedules usercode.reference usercode.command
    artifacts.files answer.best study.spec study.reader study.trust
    search.space search.samplers search.pruners search.plain_optuna
    storage.database storage.studies storage.tables storage.trials catalog queue queries cost.forecast
    report.text report.export service.dashboard cli
""")
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


def split(module: str) -> tuple[str, str]:
    """Return the package of a module, and its file in it."""
    package, _, file = module.partition(".")
    return package, file or "__init__"


@pytest.mark.parametrize("name", [name for name in MODULES if name])
def test_imports_go_one_way(name: str) -> None:
    """A file imports only from packages before its own and from files before it, others where it may."""
    package, file = split(name)
    files = INSIDE.get(package, "").split()
    for target in imported(MODULES[name]):
        if not target.startswith("floodsearch"):
            top = target.split(".")[0]
            allowed = THIRD_PARTIES.get(package, "").split()
            assert top in sys.stdlib_module_names or top in allowed, f"{name} imports {target}"
        elif module := own_module(target, set(MODULES)):
            other, other_file = split(module)
            if other != package:
                assert ORDER.index(other) < ORDER.index(package), f"{name} imports {target}"
            else:
                assert files.index(other_file) < files.index(file), f"{name} imports {target}"


def test_the_lists_name_every_file() -> None:
    """Each file and folder of the package stands in the lists, and nothing else does."""
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert sorted(ORDER) == sorted({split(name)[0] for name in MODULES if name})
    assert packages == set(INSIDE)
    for package, files in INSIDE.items():
        found = {path.stem for path in (PACKAGE / package).glob("*.py")}
        assert found - {"__init__"} == set(files.split()) - {"__init__"}


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


def test_readme_names_every_command_and_table_entry() -> None:
    """The README mentions every command, task, sampler and pruner."""
    group = typer.main.get_command(app)
    for command in group.commands:  # type: ignore[attr-defined]
        assert f"floodsearch {command}" in README
    for name in (*TASKS, *SAMPLERS, *PRUNERS, *SCHEDULES):
        assert f"`{name}`" in README


def test_readme_maps_every_file_of_the_package() -> None:
    """The file map of the README has a line for each module."""
    for name, path in MODULES.items():
        if name and path.name != "__init__.py":
            assert path.name in README, f"{path} is not in the README's map"


def test_readme_links_resolve() -> None:
    """Every relative link of a document leads to a file."""
    for document in (ROOT / "README.md", ROOT / "studies" / "README.md"):
        text = document.read_text(encoding="utf-8")
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
            assert link.startswith("http") or (document.parent / link).exists(), f"{document}: {link}"


@pytest.mark.parametrize("path", sorted((ROOT / "studies").glob("*.toml")), ids=lambda path: path.stem)
def test_study_file_loads_and_is_described(path: Path) -> None:
    """Every study file of the repository is valid, and the README beside it says what it asks."""
    read(path, known())
    assert f"`{path.name}`" in (path.parent / "README.md").read_text(encoding="utf-8")


def test_the_readme_example_of_a_study_file_is_valid(tmp_path: Path) -> None:
    """The study file that the README shows can be launched as it stands."""
    blocks = re.findall(r"```toml\n(.*?)```", README, flags=re.DOTALL)
    assert blocks
    for index, block in enumerate(blocks):
        tomllib.loads(block)
        path = tmp_path / f"{index}.toml"
        path.write_text(block, encoding="utf-8")
        read(path, known())


def test_all_is_what_the_package_offers() -> None:
    """Each public name resolves, and `dir` shows it."""
    import floodsearch

    for name in floodsearch.__all__:
        assert getattr(floodsearch, name) is not None
        assert name in dir(floodsearch)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = floodsearch.nothing  # type: ignore[attr-defined]
