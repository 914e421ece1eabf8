"""The command that begins: it writes a study file, and a small working script beside it if asked."""

from __future__ import annotations

import importlib.util
import re
from importlib import resources
from pathlib import Path
from typing import Annotated

import typer

from floodsearch.cli.printing import echo
from floodsearch.errors import UsageError

NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,99}", re.ASCII)
"""What a study may be called."""


def init(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]", help="Of the study and the files; my-loop, say.", show_default=False
        ),
    ] = None,
    loop: Annotated[bool, typer.Option("--loop", help="With a training loop of PyTorch.")] = False,
    task: Annotated[bool, typer.Option("--task", help="With a model and data, and no loop.")] = False,
    lightning: Annotated[bool, typer.Option("--lightning", help="With a Lightning module.")] = False,
    huggingface: Annotated[
        bool, typer.Option("--huggingface", help="With a transformer of Hugging Face.")
    ] = False,
    command: Annotated[bool, typer.Option("--command", help="With a script that floods by itself.")] = False,
) -> None:
    """Write a study file to begin with, and a small working script beside it."""
    options = {
        "loop": loop,
        "task": task,
        "lightning": lightning,
        "huggingface": huggingface,
        "command": command,
    }
    chosen = [kind for kind, given in options.items() if given]
    if len(chosen) > 1:
        raise UsageError(f"--{chosen[0]} and --{chosen[1]} are both given; keep one of them")
    kind = chosen[0] if chosen else "study"
    files = _files(kind, f"my-{kind}" if name is None else name)
    if there := [path for path in files if path.exists() or path.is_symlink()]:
        raise UsageError(f"{there[0]} is there already, and nothing was written; choose another NAME")
    for path, text in files.items():
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise UsageError(f"{path} cannot be written: {error.strerror}") from None
    study, *_ = files
    echo(f"wrote {' and '.join(map(str, files))}; change what you like, and then")
    echo(f"  floodsearch check {study}     # all problems at once, and what the search costs")
    echo(f"  floodsearch launch {study}    # searches, and prints the answer")


def _files(kind: str, name: str) -> dict[Path, str]:
    """Return the files of a kind by their paths, the study file first.

    Args:
        kind: `study`, `loop`, ...
        name: of the study.

    Raises:
        UsageError: if it is no name of a study, or the script would be a module that there is already.
    """
    if not NAME.fullmatch(name):
        raise UsageError(f"{name!r} may hold only a-z, 0-9 and -, and not begin with -; such as my-study")
    module, template = name.replace("-", "_"), f"my_{kind}"
    found = {}
    for suffix in (".toml", ".py"):
        text = resources.files("floodsearch.templates").joinpath(template + suffix)
        if text.is_file():
            found[Path(module + suffix)] = (
                text.read_text(encoding="utf-8").replace(template, module).replace(f"my-{kind}", name)
            )
    if len(found) > 1 and not Path(f"{module}.py").exists():
        _check_module(module)
    return found


def _check_module(module: str) -> None:
    """Raise a UsageError if a script of this name cannot be imported, or hides another module that can."""
    if not module.isidentifier() or importlib.util.find_spec(module) is not None:
        raise UsageError(
            f"a script {module}.py cannot be imported, or hides the module {module}; choose another NAME"
        )
