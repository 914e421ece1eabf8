"""Which tickets are judged together, and so taken together: a bracket, the block of a grid."""

from __future__ import annotations

from collections.abc import Callable

from floodsearch.catalog import judge_of
from floodsearch.search.samplers import SAMPLERS
from floodsearch.search.tickets import ticket_count
from floodsearch.study.levels import MOST_LEVELS
from floodsearch.study.spec import Spec


def bracket_of(spec: Spec, total: int) -> Callable[[int], int | None]:
    """Return what tells the bracket of a ticket of so many: a block of a grid, in spread order; or None."""
    parts = judge_of(spec).brackets if SAMPLERS[spec.search.sampler].fixed else None
    return lambda number: None if parts is None else number * parts // total


def portions(spec: Spec) -> int:
    """Return how many workers can have tickets of a study in their hands at once."""
    total = ticket_count(spec) or MOST_LEVELS
    bracket = bracket_of(spec, total)
    brackets = {bracket(number) for number in range(total)}
    return total if None in brackets else len(brackets)
