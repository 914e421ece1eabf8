"""Which tickets are judged together, and so taken together: a bracket, the block of a grid."""

from __future__ import annotations

from collections.abc import Callable

from floodsearch.catalog import judge_of
from floodsearch.search.samplers import SAMPLERS
from floodsearch.search.tickets import ticket_count
from floodsearch.study.levels import MOST_LEVELS
from floodsearch.study.spec import Spec


def bracket_of(spec: Spec, total: int) -> Callable[[int], int | None]:
    """Return a function from the number of a ticket to the number of its bracket.

    A bracket is a block of a grid whose levels are spread over the whole range. The function returns None
    where tickets are not judged together.

    Args:
        spec: of the study.
        total: the number of its tickets.
    """
    parts = judge_of(spec).brackets if SAMPLERS[spec.search.sampler].fixed else None
    return lambda number: None if parts is None else number * parts // total


def portions(spec: Spec) -> int:
    """Return the number of workers that can train a study at once: each takes a whole bracket."""
    total = ticket_count(spec) or MOST_LEVELS
    bracket = bracket_of(spec, total)
    brackets = {bracket(number) for number in range(total)}
    return total if None in brackets else len(brackets)
