"""A command of the user's own, with placeholders: what is run instead of a shell's line."""

from __future__ import annotations

import shlex
import string
from collections.abc import Mapping
from pathlib import Path

from floodsearch.spec import Setting

PLACEHOLDERS = ("level", "seed", "epochs", "device")
"""Beside the study's own settings."""


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
    """Return the words of a command with values in the place of their names; no shell sees them.

    A list is written with commas, and what is true or false in small letters.
    """
    texts = {name: _text(value) for name, value in values.items()}
    return [word.format_map(texts) for word in shlex.split(command)]


def script_of(command: str) -> Path | None:
    """Return the first file of the current folder that a command names, such as its script, or None."""
    files = (Path(word) for word in shlex.split(command))
    return next((path for path in files if path.is_file()), None)


def _text(value: Setting | None) -> str:
    if isinstance(value, tuple):
        return ",".join(map(_text, value))
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:.12g}" if isinstance(value, float) else str(value)
