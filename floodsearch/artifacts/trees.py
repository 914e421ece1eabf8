"""Nested containers of tensors, such as states of models and optimizers: walked, changed and copied."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

MAPPINGS, SEQUENCES = (dict, OrderedDict, Counter), (list, tuple)
"""The containers that are looked into, of these very types; anything else is a leaf."""


def leaves(value: Any) -> Iterator[Any]:
    """Yield the leaves of nested containers, all that is no container itself, in their order."""
    if type(value) in MAPPINGS:
        parts = value.values()
    elif type(value) in SEQUENCES:
        parts = value
    else:
        yield value
        return
    for part in parts:
        yield from leaves(part)


def map_leaves(change: Callable[[Any, Any], Any], value: Any, other: Any = None) -> Any:
    """Return nested containers of the same types with each leaf changed.

    Args:
        change: (leaf, what is at its place in `other`) to what takes its place.
        value: the containers.
        other: containers alike; where it has nothing at a leaf's place, that is None.
    """
    if type(value) in MAPPINGS:
        beside = other if type(other) in MAPPINGS else {}
        return type(value)({key: map_leaves(change, part, beside.get(key)) for key, part in value.items()})
    if type(value) in SEQUENCES:
        others = other if type(other) in SEQUENCES and len(other) == len(value) else [None] * len(value)
        return type(value)(map_leaves(change, *pair) for pair in zip(value, others, strict=True))
    return change(value, other)
