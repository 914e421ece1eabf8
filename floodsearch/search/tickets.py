"""The tickets of a study: what each evaluates, how many there are, and their order."""

from __future__ import annotations

from floodsearch.records import Parameter
from floodsearch.search.samplers import SAMPLERS
from floodsearch.search.space import Space
from floodsearch.study.spec import Spec, combinations, exhaustive


def tickets(spec: Spec) -> list[dict[str, Parameter] | None]:
    """Return the parameters that each ticket of a study evaluates, by ticket number; None of an open ticket.

    Level 0 comes first, once for each combination of recipe fields; it has no settings of the schedule, which
    mean nothing there. A grid follows in van der Corput order, so that any first part of it is spread over
    the whole range; a sampled search has open tickets, whose parameters are proposed when a worker takes one.
    A schedule that finds the level in each run has one level here, the highest that it may take. The tickets
    of a grown study begin with those of the old.

    Raises:
        ValueError: while the pilot has to find the highest level.
    """
    space = Space.of(spec)
    fixed: list[dict[str, Parameter] | None] = [{"level": 0.0, **beside} for beside in space.baselines()]
    if not SAMPLERS[spec.search.sampler].fixed:
        return fixed + [None] * ((spec.search.trials or 0) - len(fixed))
    levels = [level for level in space.grid or () if level != 0]
    return fixed + [
        {"level": levels[index], **beside}
        for index in van_der_corput(len(levels))
        for beside in space.combinations()
    ]


def ticket_count(spec: Spec) -> int | None:
    """Return the number of tickets of a study; None with a step and no end, until the pilot has found one."""
    if SAMPLERS[spec.search.sampler].fixed:
        return exhaustive(spec.levels, spec.training_settings, spec.schedule_settings)
    return max(spec.search.trials or 0, combinations(spec.training_settings))


def van_der_corput(n: int) -> list[int]:
    """Return 0 to n - 1, ordered by their binary digits read backwards: 0, then half, quarters, ..."""
    bits = max(1, (n - 1).bit_length())
    return sorted(range(n), key=lambda index: int(f"{index:0{bits}b}"[::-1], 2))
