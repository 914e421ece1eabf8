"""What the user asked: a study as checked, complete, immutable values.

A spec holds every setting, defaults included, so that a stored one says what was done even after a default
has changed. It knows no tables: names were checked by `studyfile` when the file was read.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Iterator, Mapping
from decimal import ROUND_FLOOR, ROUND_HALF_EVEN, Decimal
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError
from pydantic_core import PydanticCustomError

from floodsearch.errors import Problem, StudyFileError
from floodsearch.records import LARGEST, Keep, Scalar, Setting

# Far above any search that makes sense: a slip of the keyboard must not fill the memory or the database.
MOST_LEVELS, MOST_SEEDS, MOST_EPOCHS = 10_000, 1_000, 1_000_000

DIRECTIONS: Mapping[str, Literal["maximize", "minimize"]] = {
    "val_accuracy": "maximize",
    "val_loss": "minimize",
}
"""The metrics that a built-in training reports, and which way is better."""


DEFAULT_EPOCHS = 500

AUTO: Literal["auto"] = "auto"
"""A highest level that the pilot finds."""


class Section(BaseModel):
    """A part of a spec: immutable, nothing unknown, no silent conversion, no NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Choices(Section):
    """A recipe field, or a setting of the schedule, that is searched beside the level among these values."""

    choices: Annotated[tuple[Scalar, ...], Field(min_length=1, strict=False)]


class Range(Section):
    """A setting of the schedule that is searched beside the level, anywhere from `low` to `high`."""

    low: float
    high: float
    log: bool = False
    """Whether its logarithm is what is evenly spread."""

    def problem(self) -> str | None:
        """Return what is wrong between the fields."""
        if self.low >= self.high:
            return f"low = {self.low:g} is not below high = {self.high:g}"
        if self.log and self.low <= 0:
            return f"low = {self.low:g} has no logarithm; give a low above 0, or remove log"
        return None


def _level_or_auto(value: object) -> float | Literal["auto"]:
    """Return a level above 0, or "auto" (one message for both, where a union would give two)."""
    if value == AUTO:
        return AUTO
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= sys.float_info.max:
        return float(value)
    raise PydanticCustomError("level", "Input should be a finite number greater than 0, or 'auto'")


class Levels(Section):
    """Which flood levels are searched, in the unit of the training loss."""

    low: float = Field(0.0, ge=0, le=LARGEST)
    high: Annotated[float | Literal["auto"], PlainValidator(_level_or_auto)]
    count: int | None = Field(None, ge=2, le=MOST_LEVELS)
    step: float | None = Field(None, gt=0)

    def problems(self) -> Iterator[Problem]:
        """Yield what is wrong between the fields."""
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
        """Return the same with any highest level, where the pilot has to find it, to look at the rest."""
        return self.up_to(self.low + (self.step or max(self.low, 1.0))) if self.high == AUTO else self

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
    """Return the decimal that somebody has typed: in binary, 0.3 - 0.1 is less than 0.2."""
    return Decimal(str(level))


def _two_digits(number: Decimal) -> Decimal:
    """Return a number above 0, rounded down to two digits."""
    return number.quantize(Decimal(1).scaleb(number.adjusted() - 1), ROUND_FLOOR)


def _ill_stepped(low: float, high: float, step: float) -> str | None:
    """Return what is wrong with a step between two levels; with one as wide as the range it has one step."""
    width = _decimal(high) - _decimal(low)
    if _decimal(step) > width:
        return f"{step:g} is larger than the range, {width:g} wide"
    if width / _decimal(step) >= MOST_LEVELS:
        return f"{step:g} gives more than {MOST_LEVELS:,} levels; take a larger one"
    return None


def default_validate_every(epochs: int) -> int:
    """Return after how many epochs a run is validated where nothing is said: five, or all of fewer."""
    return min(5, epochs)


class Training(Section):
    """How one level is trained. `recipe` holds the fields of the task's recipe.

    `keep` changes nothing of that: it says which weights are kept of the tickets that are completed.
    """

    epochs: int = Field(DEFAULT_EPOCHS, ge=1, le=MOST_EPOCHS)
    seeds: Annotated[tuple[int, ...], Field(min_length=1, max_length=MOST_SEEDS, strict=False)] = (
        0,
        1,
        2,
        3,
        4,
    )
    validate_every: int = Field(
        default_factory=lambda given: default_validate_every(given.get("epochs", DEFAULT_EPOCHS)), ge=1
    )
    schedule: str = "constant"
    engine: Literal["auto", "loop", "stack"] = "auto"
    keep: Keep = "none"
    recipe: dict[str, Choices | Setting] = {}

    def problems(self) -> Iterator[Problem]:
        """Yield what is wrong between the fields."""
        if len(set(self.seeds)) < len(self.seeds):
            yield Problem("training.seeds", f"{list(self.seeds)} holds a seed twice")
        if min(self.seeds) < 0:
            yield Problem("training.seeds", f"{min(self.seeds)} is negative; seeds are 0 or above")
        if max(self.seeds) >= 2**31:
            yield Problem("training.seeds", f"{max(self.seeds)} is too large; seeds are below 2147483648")
        if self.validate_every > self.epochs:
            yield Problem(
                "training.validate_every", f"{self.validate_every} is more than the {self.epochs} epochs"
            )

    def report_epochs(self) -> tuple[int, ...]:
        """Return the rungs: about 25 validated epochs at which a trial reports and may be pruned.

        Each intermediate value is a transaction and is resent to every open dashboard.
        """
        validated = [*range(self.validate_every, self.epochs, self.validate_every), self.epochs]
        stride = math.ceil(len(validated) / 25)
        return (*validated[stride - 1 : -1 : stride], self.epochs)


class Arithmetic(Section):
    """How numbers are computed. Results differ by it as by rounding, so it is the same for all workers.

    Attributes:
        precision: `float32`; `tf32` rounds the factors of matrix products and convolutions to ten bits on
            GPUs that can; `bf16` computes what torch's autocast computes in it, with weights in float32.
        channels_last: whether the channels of an image lie beside each other in memory.
        compile: the mode of `torch.compile` for training steps, or `off`; `reduce-overhead` uses CUDA graphs.
        deterministic: whether convolutions use algorithms that add up in the same order each time. Without,
            the fastest are found by trying, and two runs of one seed and level differ.
    """

    precision: Literal["float32", "tf32", "bf16"] = "float32"
    channels_last: bool = False
    compile: Literal["off", "default", "reduce-overhead", "max-autotune"] = "off"
    deterministic: bool = True

    def problems(self, engine: str) -> Iterator[Problem]:
        """Yield what does not go with an engine."""
        if engine == "stack" and self.compile != "off":
            what = f"{self.compile!r} is for training.engine = 'loop', not 'stack'"
            yield Problem("arithmetic.compile", what)
        if engine == "stack" and self.channels_last:
            yield Problem("arithmetic.channels_last", "is for training.engine = 'loop', not 'stack'")


PLAIN = Arithmetic()
"""Torch's eager kernels in float32."""


class Search(Section):
    """How levels are proposed, judged and compared."""

    sampler: str = "grid"
    pruner: str = "halving"
    trials: int | None = Field(None, ge=2, le=MOST_LEVELS)
    metric: str = "val_accuracy"
    direction: Literal["maximize", "minimize"] = "maximize"
    window: float = Field(0.2, gt=0, le=1)
    seed: int = Field(0, ge=0)


class Budget(Section):
    """What the whole study may cost, however many workers it has; None is no bound."""

    epochs: int | None = Field(None, ge=1)
    hours: float | None = Field(None, gt=0)


class Spec(Section):
    """A complete study.

    Attributes:
        task: a name of the table of tasks, or `package.module:name` of the user's own.
        objective: instead of a task, a training loop of the user's own, `package.module:name`. Its settings
            are the options and the recipe, whatever they are.
        command: instead of these, a script that is run for each training, with placeholders for the level,
            the seed and its settings.
        settings: the sampler's, the pruner's and the schedule's own settings, by the name of each.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=100)]
    task: str | None = None
    objective: str | None = None
    command: str | None = None
    options: dict[str, Choices | Setting | None] = {}
    levels: Levels
    training: Training = Training()
    arithmetic: Arithmetic = PLAIN
    search: Search = Search()
    budget: Budget = Budget()
    settings: dict[str, dict[str, Choices | Range | Setting]] = {}

    @property
    def maximize(self) -> bool:
        """Whether a larger metric is better."""
        return self.search.direction == "maximize"

    @property
    def code(self) -> str | None:
        """The code of the user's own: `package.module:name` that workers import, a command, or None."""
        own_task = self.task if self.task is not None and ":" in self.task else None
        return self.objective or self.command or own_task

    @property
    def searched(self) -> dict[str, tuple[Scalar, ...]]:
        """What is searched beside the level, of the recipe or of a loop's options, and the choices."""
        every = {**self.options, **self.training.recipe}
        return {name: value.choices for name, value in every.items() if isinstance(value, Choices)}

    @property
    def searched_settings(self) -> dict[str, Choices | Range]:
        """The schedule's settings that are searched beside the level; at level 0 they mean nothing."""
        settings = self.settings.get(self.training.schedule, {})
        return {name: value for name, value in settings.items() if isinstance(value, Choices | Range)}

    def up_to(self, bound: float) -> Spec:
        """Return the same with levels that cover a bound, where the highest one was left to the pilot."""
        return self.model_copy(update={"levels": self.levels.up_to(bound)})

    def stand_in(self) -> Spec:
        """Return the same with any highest level, where the pilot has to find it, to look at the rest."""
        return self.model_copy(update={"levels": self.levels.stand_in()})

    def fingerprint(self) -> str:
        """Return 16 hex digits that are equal for equal specs."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def combinations(settings: Mapping[str, object]) -> int:
    """Return how many combinations of choices some settings have: 1 if none of them is searched."""
    return math.prod(len(value.choices) for value in settings.values() if isinstance(value, Choices))


def exhaustive(levels: Levels, beside: Mapping[str, object], settings: Mapping[str, object]) -> int | None:
    """Return the number of tickets that evaluate each level with each combination of choices.

    Level 0 has no settings of the schedule, which mean nothing there.

    Args:
        levels: to search.
        beside: the settings of the training; some may be searched.
        settings: of the schedule; some may be searched.

    Returns:
        None where there is no such number, as a continuous range is searched, or the pilot decides it.
    """
    size = levels.size()
    if size is None or any(isinstance(value, Range) for value in settings.values()):
        return None
    return combinations(beside) * (1 + (size - 1) * combinations(settings))


def from_json(text: str, source: str) -> Spec:
    """Return the spec that was stored as JSON.

    Raises:
        StudyFileError: if it was damaged or edited by hand; `source` names it in the message.
    """
    try:
        return Spec.model_validate_json(text)
    except ValidationError as error:
        problems = [Problem(".".join(map(str, e["loc"])) or "spec", e["msg"]) for e in error.errors()]
        raise StudyFileError(source, problems) from None


def differences(stored: Spec, wanted: Spec) -> list[str]:
    """Return what stands in the way of continuing `stored` as `wanted`, one line each.

    Growing the budget is no difference: more trials, more seeds after the ones there are, more epochs, and
    any change of `[budget]`. Nor is `keep`, which changes no result: it holds for what is completed later.
    Nor is a default that grows with the epochs.
    """
    old, new = (_flat(spec.model_dump(mode="json")) for spec in (stored, wanted))
    grown = {"training.keep"} | (
        {"training.validate_every"} if _validates_by_default(stored, wanted) else set()
    )
    found = []
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if before == after or key.startswith("budget.") or key in grown:
            continue
        if key in ("search.trials", "training.epochs") and before is not None and after is not None:
            if after > before:
                continue
            found.append(f"{key}: {before} before, {after} now; it can only grow")
        elif key == "training.seeds" and before and after and after[: len(before)] == before:
            continue
        else:
            found.append(f"{key}: {_shown(before)} before, {_shown(after)} now")
    return found


def _validates_by_default(*specs: Spec) -> bool:
    """Return whether these are trainings of a task, validated as where nothing is said."""
    return all(
        one.task is not None and one.training.validate_every == default_validate_every(one.training.epochs)
        for one in specs
    )


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _shown(value: Any) -> str:
    return "not set" if value is None else json.dumps(value)
