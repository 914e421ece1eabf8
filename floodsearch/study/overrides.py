"""Values of the command line in the place of those that a study file has: `--set training.seeds=1`."""

from __future__ import annotations

import copy
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

from floodsearch.errors import Problem
from floodsearch.study.messages import Problems

OPTION = "--set"


def override(raw: Mapping[str, Any], settings: Sequence[str]) -> tuple[dict[str, Any], Problems]:
    """Return the content of a study file with some keys set, and the problems of those that cannot be.

    Args:
        raw: content of the study file; it is not changed.
        settings: each `KEY=VALUE`: a dotted key and a value of TOML, or a bare word as a string. Without a
            value the key is removed. Of two that are equal the later counts.
    """
    if not settings:
        return dict(raw), []
    changed, problems = copy.deepcopy(dict(raw)), Problems()
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not (names := _names(key)):
            has = "is not KEY=VALUE with a dotted key; write it as in --set training.seeds=1"
            problems.append(Problem(f"{OPTION} {setting}", has))
        elif (problem := _put(changed, names, value.strip())) is not None:
            problems.append(Problem(f"{OPTION} {key.strip()}", problem))
    return changed, problems


def named_as_given(problems: Problems, raw: Mapping[str, Any], settings: Sequence[str]) -> Problems:
    """Return problems, those of keys that the command line has set under the name of the option.

    Args:
        problems: of a file's content with the settings.
        raw: the content without them; a table that is in it is the file's, whichever of its keys were set.
        settings: of the command line.
    """
    given = [".".join(_names(setting.partition("=")[0])) for setting in settings]

    def is_given(key: str) -> bool:
        if any(key == one or key.startswith(f"{one}.") for one in given):
            return True
        return ("." in key or key not in raw) and any(one.startswith(f"{key}.") for one in given)

    return [Problem(f"{OPTION} {key}" if is_given(key) else key, message) for key, message in problems]


def _names(key: str) -> list[str]:
    """Return the parts of a dotted key as TOML reads them; none if it is no key."""
    try:
        found: Any = tomllib.loads(f"{key.strip()} = 0")
    except ValueError:
        return []
    names = []
    while isinstance(found, dict) and len(found) == 1:
        [(name, found)] = found.items()
        names.append(name)
    return names if found == 0 else []


def _put(table: dict[str, Any], names: Sequence[str], value: str) -> str | None:
    """Set a key of a file's content, or remove it if the value is empty; return what stands in the way."""
    for depth, name in enumerate(names[:-1], start=1):
        inner = table.setdefault(name, {})
        if not isinstance(inner, dict):
            return f"{'.'.join(names[:depth])} is {inner!r}, not a table"
        table = inner
    if value:
        table[names[-1]] = _value(value)
    else:
        table.pop(names[-1], None)
    return None


def _value(text: str) -> Any:
    """Return a value as TOML reads it; a text that is no TOML is a string as it stands."""
    try:
        found = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return found["value"] if len(found) == 1 else text
