"""The flood levels that a study searches: a grid or a range, in the unit of the training loss."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from decimal import ROUND_FLOOR, ROUND_HALF_EVEN, Decimal
from typing import Annotated, Literal

from pydantic import Field, PlainValidator
from pydantic_core import PydanticCustomError

from floodsearch.errors import Problem
from floodsearch.records import LARGEST
from floodsearch.study.section import AUTO, Section

MOST_LEVELS = 10_000
"""Far above any search that makes sense: a slip of the keyboard must not fill the memory or the database."""


def _level_or_auto(value: object) -> float | Literal["auto"]:
    """Return a level above 0, or "auto"; one function, as a union of types would give two messages."""
    if value == AUTO:
        return AUTO
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= sys.float_info.max:
        return float(value)
    raise PydanticCustomError("level", "Input should be a finite number greater than 0, or 'auto'")


class Levels(Section):
    """The flood levels that are searched, in the unit of the training loss."""

    low: float = Field(0.0, ge=0, le=LARGEST)
    high: Annotated[float | Literal["auto"], PlainValidator(_level_or_auto)]
    count: int | None = Field(None, ge=2, le=MOST_LEVELS)
    step: float | None = Field(None, gt=0)

    def problems(self) -> Iterator[Problem]:
        """Yield a problem for each two fields that do not go together."""
        if self.count is not None and self.step is not None:
            yield Problem("levels.step", "given together with levels.count; keep one of the two")
        if self.high == AUTO:
            if self.step is not None and self.low + self.step == self.low:
                yield Problem("levels.step", f"{self.step:g} is nothing beside levels.low = {self.low:g}")
            return
        if self.low >= self.high:
            yield Problem("levels.low", f"{self.low:g} is not below levels.high = {self.high:g}")
        elif self.step is not None and (wrong := _ill_stepped(self.low, self.high, self.step)) is not None:
            yield Problem("levels.step", wrong)

    @property
    def highest(self) -> float:
        """The highest level.

        Raises:
            ValueError: while the pilot has to find it.
        """
        if self.high == AUTO:
            raise ValueError("the highest level is not known before the pilot has ended")
        return self.high

    def up_to(self, bound: float) -> Levels:
        """Return the same with a highest level at a bound, or as little below as makes levels short numbers.

        `count` levels lie on a step of two digits, and a continuous range is two digits wide, both rounded
        down; a given step stays, and the highest level is the last that it reaches.

        Raises:
            ValueError: if the bound is not above `low`, or the step does not fit between them.
        """
        if not self.low < bound < math.inf:
            raise ValueError(f"the levels would end at {bound:.4g}, but levels.low is {self.low:g}")
        low, width = _decimal(self.low), _decimal(bound) - _decimal(self.low)
        if self.count is not None:
            width = _two_digits(width / (self.count - 1)) * (self.count - 1)
        elif self.step is not None:
            if (wrong := _ill_stepped(self.low, bound, self.step)) is not None:
                raise ValueError(f"the levels would end at {bound:.4g}, but levels.step = {wrong}")
            width -= width % _decimal(self.step)
        else:
            width = _two_digits(width)
        return self.model_copy(update={"high": float(low + width)})

    def stand_in(self) -> Levels:
        """Return these levels, with some highest one if the pilot has yet to find it, to check all else.

        That is one step above the lowest level; without a step as far above it as it is from 0, at least 1.
        """
        if self.high != AUTO:
            return self
        if self.step is None:
            return self.up_to(self.low + max(self.low, 1.0))
        # In decimals: as floats 0.3 + 0.6 is less than 0.9, and the step would not fit below it.
        return self.model_copy(update={"high": float(_decimal(self.low) + _decimal(self.step))})

    @property
    def continuous(self) -> bool:
        """Whether any level between the lowest and the highest may be searched, instead of a grid."""
        return self.count is None and self.step is None

    def size(self) -> int | None:
        """Return the number of levels of the grid, level 0 among them.

        None for a continuous search, and where the pilot decides it: with a step and no highest level.
        """
        if self.count is None and self.high == AUTO:
            return None
        grid = self.stand_in().grid()
        return None if grid is None else len(grid)

    def grid(self) -> tuple[float, ...] | None:
        """Return the levels of the grid, ascending and with level 0, or None for a continuous search.

        Computed in decimals, so that 0.29 is 0.29 and not 0.29000000000000004: multiples of a given step are
        exact, those of a count are rounded to four digits of their step, but for both ends.
        """
        low, high = _decimal(self.low), _decimal(self.highest)
        if self.count is not None:
            step = (high - low) / (self.count - 1)
            digit = Decimal(1).scaleb(step.adjusted() - 3)
            inner = ((low + index * step).quantize(digit, ROUND_HALF_EVEN) for index in range(self.count))
            levels = {low, high, *(level for level in [*inner][1:-1] if low < level < high)}
        elif self.step is not None:
            step = _decimal(self.step)
            levels = {low + index * step for index in range(int((high - low) // step) + 1)}
        else:
            return None
        return tuple(sorted({float(level) for level in levels} | {0.0}))


def _decimal(level: float) -> Decimal:
    """Return a level as the decimal that it is written as: as floats, 0.3 - 0.1 is less than 0.2."""
    return Decimal(str(level))


def _two_digits(number: Decimal) -> Decimal:
    """Return a number above 0, rounded down to two digits."""
    return number.quantize(Decimal(1).scaleb(number.adjusted() - 1), ROUND_FLOOR)


def _ill_stepped(low: float, high: float, step: float) -> str | None:
    """Return the problem with a step between two levels, or None; it may be as wide as their distance."""
    width = _decimal(high) - _decimal(low)
    if _decimal(step) > width:
        return f"{step:g} is larger than the range, {width:g} wide"
    if width / _decimal(step) >= MOST_LEVELS:
        return f"{step:g} gives more than {MOST_LEVELS:,} levels; take a larger one"
    return None
