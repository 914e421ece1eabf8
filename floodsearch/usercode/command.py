"""A command of the user's own with placeholders, split and filled in without a shell."""

from __future__ import annotations

import os
import re
import shlex
import string
from collections.abc import Mapping, Sequence
from decimal import Decimal
from pathlib import Path

from floodsearch.records import Setting

PLACEHOLDERS = ("level", "seed", "epochs", "device", "ticket", "run", "folder")
"""The placeholders of every command; a study's settings are others."""
INTERPRETER = re.compile(r"(python|pypy)[0-9.]*|(ba|da|z|k)?sh|Rscript|julia|perl|ruby|node|torchrun")
SCRIPTS = (".py", ".sh", ".R", ".r", ".jl", ".pl", ".rb", ".js")
"""The endings of files that are scripts of an interpreter."""


def placeholders(command: str) -> list[str]:
    """Return the names in braces, in the order of the command; `{{` and `}}` are braces themselves.

    Raises:
        ValueError: if the command is empty, a quote or a brace is not closed, or something is formatted.
    """
    words = shlex.split(command)
    if not words:
        raise ValueError("is empty; write a program and its arguments")
    found = []
    for word in words:
        for _, name, form, conversion in string.Formatter().parse(word):
            if name is None:
                continue
            if not name.isidentifier() or form or conversion:
                raise ValueError(f"{{{name}}} in {word!r} is not a plain name; write a brace of yours twice")
            found.append(name)
    return found


def filled(command: str, values: Mapping[str, Setting | None]) -> list[str]:
    """Return the words of a command with values in place of their placeholders; no shell sees them.

    A list is written with commas, and true and false in small letters. A number that is not whole by its type
    has a point and no exponent, which all parsers take for such a number: 0.0, 0.05, 0.00001.
    """
    texts = {name: _text(value) for name, value in values.items()}
    return [word.format_map(texts) for word in shlex.split(command)]


def located(words: Sequence[str], folders: Sequence[Path]) -> list[str]:
    """Return the words of a command with the relative paths of files found in some folders made absolute.

    Args:
        words: a program and its arguments. A path is a word of its own, or follows the `=` of an option; as
            the program it has a slash, since other names are looked up on the PATH.
        folders: where to look, the first one first. A path that is in none of them stays as it is, as does
            one that is found in the current folder, in which the command runs.
    """
    program, *arguments = words
    return [
        _located(program, folders) if os.sep in program else program,
        *(
            option + equals + _located(path, folders)
            for option, equals, path in (_option(word) for word in arguments)
        ),
    ]


def _option(word: str) -> tuple[str, str, str]:
    """Return an argument as option, equals sign and value, of which the first two may be empty."""
    return word.partition("=") if word.startswith("-") and "=" in word else ("", "", word)


def _located(path: str, folders: Sequence[Path]) -> str:
    here = Path.cwd()
    # `os.path`, as a word may be no path at all, or longer than one may be.
    found = next((one for one in folders if os.path.isfile(one / path)), here)  # noqa: PTH113
    return path if found == here else str(found / path)


def missing_script(words: Sequence[str]) -> str | None:
    """Return the script that a located command gives its interpreter, if there is no such file; else None."""
    program, *arguments = words
    if "-c" in arguments or not _interprets(program):
        return None
    scripts = (word for word in arguments if word.endswith(SCRIPTS) and not word.startswith("-"))
    script = next(scripts, None)
    return None if script is None or "{" in script or Path(script).is_file() else script


def _interprets(program: str) -> bool:
    return INTERPRETER.fullmatch(Path(program).name) is not None


def script_file(command: str, folders: Sequence[Path] = ()) -> Path | None:
    """Return the first file that a command names, such as its script, or None.

    Args:
        command: with placeholders.
        folders: where its files are looked for before the current folder.
    """
    program, *arguments = located(shlex.split(command), folders)
    words = arguments if _interprets(program) else [program, *arguments]
    return next((Path(word) for word in words if os.path.isfile(word)), None)  # noqa: PTH113


def _text(value: Setting | None) -> str:
    if isinstance(value, tuple):
        return ",".join(map(_text, value))
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, float):
        return str(value)
    text = format(Decimal(f"{value:.12g}"), "f")
    return text if "." in text else f"{text}.0"
