"""How the problems of a study file are worded, those that pydantic finds among them."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from floodsearch.errors import Problem
from floodsearch.study.section import Section

Problems = list[Problem]
S = TypeVar("S", bound=Section)

EXAMPLES: Mapping[str, str] = {
    "levels.high": 'such as 0.5, or "auto"',
    "name": 'such as "my-study"',
}
"""What a setting without a default may look like."""


def no_table(key: str, value: object) -> Problem:
    """Return the problem of a value where a table belongs."""
    return Problem(key, f"{value!r} is not a table; write it as [{key}]")


def unknown_key(where: str, name: str, valid: Collection[str]) -> Problem:
    """Return the problem of a key that is none of the valid ones, with the closest of these."""
    listed = f"valid: {', '.join(sorted(valid))}" if valid else "nothing can be set here"
    return Problem(where, f"unknown key{_close(name, valid)}; {listed}")


def unknown_name(where: str, name: object, valid: Collection[str], or_else: str = "") -> Problems:
    """Return the problem of a value that is none of the valid names; no problem if it is one.

    Args:
        where: key of the value.
        name: the value.
        valid: names.
        or_else: what is valid beside them, in words.
    """
    if isinstance(name, str) and name in valid:
        return []
    listed = ", ".join(sorted(valid)) + (f", {or_else}" if or_else else "")
    return [Problem(where, f"{name!r} is not known{_close(name, valid)}; valid: {listed}")]


def refusal(where: str, value: object, message: str) -> Problem:
    """Return pydantic's "Input should be X" as a problem that says "VALUE should be X"."""
    return Problem(where, f"{value!r} {message.removeprefix('Input ')}")


def built(prefix: str, model: type[S], table: Mapping[str, Any]) -> tuple[S | None, Problems]:
    """Return a section with the settings of a table, or None and all that pydantic has against them.

    Args:
        prefix: key of the table; "" for the whole file.
        model: of the section.
        table: of the study file.
    """
    try:
        return model.model_validate(table), []
    except ValidationError as error:
        return None, [
            _explained(prefix, model, entry)
            for entry in error.errors()
            if entry["type"]
            != "default_factory_not_called"  # the field that this default follows has its own
        ]


def _explained(prefix: str, model: type[Section], entry: Mapping[str, Any]) -> Problem:
    """Return an error of pydantic in our words."""
    where = ".".join(str(part) for part in (prefix, *entry["loc"]) if part != "")
    if entry["type"] == "extra_forbidden":
        return unknown_key(where, str(entry["loc"][-1]), model.model_fields)
    if entry["type"] == "missing":
        return Problem(where, f"missing; give it, {EXAMPLES.get(where, 'it has no default')}")
    if entry["type"] == "string_pattern_mismatch":
        return Problem(where, f"{entry['input']!r} may hold only a-z, 0-9 and -, and not begin with -")
    return refusal(where, entry["input"], entry["msg"])


def _close(name: object, valid: Collection[str]) -> str:
    """Return the question whether the closest of the valid names was meant; nothing if none is close."""
    close = difflib.get_close_matches(str(name), sorted(valid), n=1)
    return f", did you mean {close[0]!r}?" if close else ""
