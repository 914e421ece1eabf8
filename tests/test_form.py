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
from floodsearch.study.reader import read

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "floodsearch"


def words(text: str) -> list[str]:
    """Return the words of a text."""
    return text.split()


ORDER = words("""
    errors records findings defaults
    process flooding usercode artifacts answer loggers
    tasks study training search storage catalog
    queue worker cost tryout queries
    report figures asking launchers adapters templates service cli __main__
""")
"""The packages, and the files beside them: each imports only from those before it."""

INSIDE = {
    "process": "terminal diverted signals nesting guard",
    "flooding": "loss schedules",
    "usercode": "arguments reference revision command sources function",
    "artifacts": "files names trees checkpoint weights",
    "answer": "smoothing response gain values tickets combinations best follow_up",
    "loggers": "run_log tensorboard wandb mlflow table",
    "tasks": "recipe options __init__ streams models tensors task augmentation resnet image_sets "
    "synthetic images",
    "study": "section levels spec trust extend fields messages overrides tables values methods trained "
    "reader",
    "training": "devices randomness arithmetic batches progress contract run engine sequential lanes "
    "stack stackable trunk independence rehearsal batch_losses call_order report loop_state "
    "loop printed room running script forks cohort",
    "search": "space halving history samplers judge pauses pruners plain_optuna __init__ tickets pilot",
    "storage": "failures urls rows schema optuna_tables trials checks database retry tables studies "
    "notices trial_records",
    "queue": "ticket brackets wanted filling ownership claims ends judging budget reaper __init__",
    "worker": "trainers logged recorder mistakes outputs loop_members leave settings heartbeat pilot "
    "held bracket loops work",
    "cost": "floods course forecast throughput unflooded outlook",
    "tryout": "result observed source held compared folder runs tasks findings rehearse",
    "report": "weights documents export frames words text",
    "figures": "style levels",
    "launchers": "supervision crew logs local progress here api",
    "adapters": "ranks metrics hooks lightning huggingface skorch",
    "templates": "__init__ my_loop my_task my_lightning my_huggingface my_command",
    "service": "dashboard",
    "cli": "options ending printing opening progress search ask check init end run __init__",
}
"""The files of each package: each imports only from those before it. An `__init__` that is not named imports
nothing of ours."""

THIRD_PARTIES = {
    "flooding": "torch",
    "artifacts": "fsspec torch",
    "answer": "numpy scipy",
    "loggers": "torch tensorboard wandb mlflow",
    "tasks": "torch numpy sklearn torchvision filelock",
    "study": "pydantic pydantic_core",
    "training": "torch numpy",
    "search": "optuna numpy",
    "storage": "optuna sqlalchemy",
    "catalog": "optuna numpy",
    "queue": "optuna sqlalchemy",
    "worker": "torch",
    "tryout": "torch numpy",
    "report": "pyarrow pandas",
    "figures": "matplotlib",
    "launchers": "rich IPython",
    "adapters": "torch lightning skorch transformers",
    "templates": "torch lightning transformers",
    "service": "optuna_dashboard waitress",
    "cli": "typer rich",
}
"""What else each package may import."""

LIGHT = words("""
    errors records defaults process.nesting flooding.schedules usercode.reference usercode.command
    artifacts.files answer.best loggers.table study.spec study.reader study.trust search.space search.samplers
    search.pruners storage.database storage.studies storage.tables storage.trials tasks tasks.options
    catalog queue queries cost.forecast tryout.result
    report.text report.export report.frames figures.levels asking service.dashboard cli
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


def test_modules_that_are_light_do_not_import_torch() -> None:
    """A process that imports any of them has not imported torch: not even one that imports them all has."""
    names = [f"floodsearch.{name}" for name in LIGHT]
    code = f"""
import importlib, sys
for name in {names}:
    importlib.import_module(name)
    if "torch" in sys.modules:
        sys.exit(f"{{name}} imports torch")
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.stderr == ""


@pytest.mark.parametrize("command", ["check", "create"])
@pytest.mark.parametrize("study", ["two_gaussians_10", "digits_10", "cifar10_augmented"])
def test_a_built_in_task_is_checked_and_created_without_torch(
    command: str, study: str, tmp_path: Path
) -> None:
    """A study of a task of ours is read, forecast and put into the database in a process without torch."""
    code = f"""
import sys
from floodsearch.cli import main
sys.argv[1:] = {[command, str(ROOT / "studies" / f"{study}.toml")]}
try:
    main()
except SystemExit as end:
    sys.exit(end.code or ("torch was imported" if "torch" in sys.modules else 0))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, cwd=tmp_path
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_no_drawer_modules() -> None:
    """No module has a name that says nothing of what is in it."""
    assert not {part for name in MODULES for part in name.split(".")} & FORBIDDEN_NAMES


def test_the_command_line_is_frozen() -> None:
    """Commands and options change on purpose only, and no command has more than nine options."""
    group = typer.main.get_command(app)
    surface = {
        name: sorted(option for one in command.params for option in one.opts if option.startswith("--"))
        for name, command in group.commands.items()  # type: ignore[attr-defined]
    }
    assert surface == {
        "init": ["--command", "--huggingface", "--lightning", "--loop", "--task"],
        "launch": [
            "--checkpoints",
            "--detach",
            "--devices",
            "--logs",
            "--set",
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
            "--set",
            "--storage",
            "--threads",
            "--trust",
        ],
        "status": ["--json", "--storage"],
        "best": ["--json", "--storage"],
        "weights": ["--checkpoints", "--out", "--storage"],
        "export": ["--curves", "--format", "--out", "--storage"],
        "check": ["--json", "--measure", "--set", "--speed", "--storage", "--try"],
        "stop": ["--storage"],
        "logs": ["--follow", "--lines", "--logs", "--run"],
        "delete": ["--checkpoints", "--storage", "--yes"],
        "serve": ["--allow-host", "--host", "--port", "--storage"],
        "create": ["--set", "--storage"],
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
