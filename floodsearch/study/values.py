"""Tables of settings that belong to a task, sampler, pruner or schedule, checked against its fields."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from floodsearch.errors import Problem
from floodsearch.study.fields import Field, Fields
from floodsearch.study.messages import Problems, built, refusal, unknown_key
from floodsearch.study.spec import Choices, Range
from floodsearch.usercode.command import PLACEHOLDERS

ANYTHING = Field(Any, None)
"""A setting whose values are not checked."""


def values_of(
    key: str,
    table: Mapping[str, Any],
    fields: Fields,
    searchable: Sequence[type[Choices | Range]] = (),
) -> tuple[dict[str, Any], Problems]:
    """Check a table of settings against the fields there are; return it with the defaults.

    A field with a problem has its default, so that the rest can be checked.

    Args:
        key: of the table.
        table: of the study file.
        fields: that may be set.
        searchable: how a value may be searched instead of given.
    """
    values = {name: field.default for name, field in fields.items()}
    problems: Problems = []
    for name, value in table.items():
        where = f"{key}.{name}"
        if name not in fields:
            problems.append(unknown_key(where, name, fields))
            continue
        if Range in searchable and isinstance(value, dict) and "choices" not in value:
            values[name], found = _range(where, value, fields[name])
        elif Choices in searchable and isinstance(value, dict):
            values[name], found = _choices(where, value, fields[name])
        else:
            values[name], found = _typed(where, value, fields[name])
        problems += found
    return values, problems


def own_values(key: str, table: Mapping[str, Any]) -> tuple[dict[str, Any], Problems]:
    """Check settings of the user's own loop or command, which may have any name.

    Args:
        key: of the table.
        table: of the study file.
    """
    values: dict[str, Any] = {}
    problems: Problems = []
    for name, value in table.items():
        where = f"{key}.{name}"
        if name in PLACEHOLDERS:
            problems.append(Problem(where, f"{name!r} is told by each run; choose another name"))
        elif isinstance(value, dict):
            values[name], found = _choices(where, value, ANYTHING)
            problems += found
        elif all(_is_scalar(one) for one in (value if isinstance(value, list) else [value])):
            values[name] = tuple(value) if isinstance(value, list) else value
        else:
            has = f"{value!r} is neither a finite number, text, true or false nor a list of these"
            problems.append(Problem(where, f"{has}; or search it with {{choices = [...]}}"))
    return values, problems


def _choices(where: str, table: Mapping[str, Any], field: Field) -> tuple[Any, Problems]:
    """Return the choices of a searched setting, or its default if the table is no choices."""
    searched, problems = built(where, Choices, table)
    if searched is None:
        return field.default, problems
    for choice in searched.choices:
        problems += _typed(where, choice, field)[1]
    if len(set(searched.choices)) < len(searched.choices):
        problems.append(Problem(f"{where}.choices", f"{list(searched.choices)} holds a choice twice"))
    return searched, problems


def _range(where: str, table: Mapping[str, Any], field: Field) -> tuple[Any, Problems]:
    """Return the range of a searched setting, or its default if there is a problem."""
    searched, problems = built(where, Range, table)
    if searched is None:
        return field.default, problems
    try:
        _adapter(field).validate_python(0.5)
    except ValidationError:
        problem: str | None = "takes no fractions, so no range; write {choices = [...]}"
    else:
        problem = searched.problem()
    if problem is None:
        return searched, []
    return field.default, [Problem(where, problem)]


def _typed(where: str, value: Any, field: Field) -> tuple[Any, Problems]:
    """Return a value of the field's type, or the default if it is of another."""
    try:
        # TOML knows lists only, where settings are tuples.
        return _adapter(field).validate_python(tuple(value) if isinstance(value, list) else value), []
    except ValidationError as error:
        return field.default, [refusal(where, value, error.errors()[0]["msg"])]


def _adapter(field: Field) -> TypeAdapter[Any]:
    return TypeAdapter(field.type, config=ConfigDict(strict=True, allow_inf_nan=False))


def _is_scalar(value: object) -> bool:
    return isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value))
