"""A study as the user asked for it: checked, complete, immutable values.

A spec holds every setting, defaults included, so that a stored one says what was done even after a default
has changed. It knows no tables: names are checked when a study file is read.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Literal, TypeVar

from pydantic import BeforeValidator, Field, ValidationError

from floodsearch.errors import Problem, StudyFileError
from floodsearch.records import Keep, Parameter, Scalar, Setting, StopRule
from floodsearch.study.levels import MOST_LEVELS, Levels
from floodsearch.study.section import AUTO, Section

V = TypeVar("V", Setting, Setting | None)
# Far above any search that makes sense, as is `MOST_LEVELS`.
MOST_SEEDS, MOST_EPOCHS = 1_000, 1_000_000

DIRECTIONS: Mapping[str, Literal["maximize", "minimize"]] = {
    "val_accuracy": "maximize",
    "val_loss": "minimize",
}
"""The metrics that a built-in training reports, and which way is better."""
DEFAULT_EPOCHS = 500


class Choices(Section):
    """A recipe field, or a setting of the schedule, that is searched beside the level among these values."""

    choices: Annotated[tuple[Scalar, ...], Field(min_length=1, strict=False)]


class Range(Section):
    """A setting of the schedule that is searched beside the level, anywhere from `low` to `high`."""

    low: float
    high: float
    log: bool = False
    """Whether values are spread evenly by their logarithm."""

    def problem(self) -> str | None:
        """Return the problem with the two ends as a range, or None."""
        if self.low >= self.high:
            return f"low = {self.low:g} is not below high = {self.high:g}"
        if self.log and self.low <= 0:
            return f"low = {self.low:g} has no logarithm; give a low above 0, or remove log"
        return None


def _rule(given: object) -> object:
    """Return the rule of early stopping that `true` and `false` stand for; others are what they are."""
    return {True: "best", False: "none"}[given] if isinstance(given, bool) else given


def default_validate_every(epochs: int) -> int:
    """Return the default number of epochs between validations: 5, or all epochs of a shorter run."""
    return min(5, epochs)


class Training(Section):
    """The training of one level. `recipe` holds the fields of the task's recipe.

    `keep` changes no result: it says which weights of completed tickets are kept. `early_stopping` lets runs
    of a loop or a command end before their last epoch, and says what the value of every run is then.
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
    engine: Literal["auto", "loop", "stack"] = AUTO
    keep: Keep = "none"
    early_stopping: Annotated[StopRule, BeforeValidator(_rule)] = "none"
    recipe: dict[str, Choices | Setting] = Field(default_factory=dict)

    def problems(self) -> Iterator[Problem]:
        """Yield a problem for each field that does not go with another, and for seeds out of their bounds."""
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
        """Return the about 25 validated epochs, the last one among them, at which a trial reports a value.

        A rung is one at which the pruner decides: some of these, or all of them, and with halving others too.
        There are no more, as each report is a transaction and is resent to every open dashboard.
        """
        validated = [*range(self.validate_every, self.epochs, self.validate_every), self.epochs]
        stride = math.ceil(len(validated) / 25)
        return (*validated[stride - 1 : -1 : stride], self.epochs)


class Arithmetic(Section):
    """The arithmetic of a training. Results differ by it as by rounding: it is the same for all workers.

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
        """Yield a problem for each setting that an engine, "loop" or "stack", does not take."""
        if engine == "stack" and self.compile != "off":
            what = f"{self.compile!r} is for training.engine = 'loop', not 'stack'"
            yield Problem("arithmetic.compile", what)
        if engine == "stack" and self.channels_last:
            yield Problem("arithmetic.channels_last", "is for training.engine = 'loop', not 'stack'")


PLAIN = Arithmetic()
"""Torch's eager kernels in float32."""


class Search(Section):
    """The search: its sampler, its pruner, and the metric by which levels are compared."""

    sampler: str = "grid"
    pruner: str = "halving"
    trials: int | None = Field(None, ge=2, le=MOST_LEVELS)
    metric: str = "val_accuracy"
    direction: Literal["maximize", "minimize"] = "maximize"
    window: float = Field(0.2, gt=0, le=1)
    seed: int = Field(0, ge=0)


class ScriptSettings(Section):
    """How a script of the user's own is run, beside its command.

    Attributes:
        pause: what becomes of its process where a run pauses at a rung: stopped and kept, or ended.
        stopped: how many stopped processes a worker keeps at most; where memory is short it keeps fewer. Each
            takes some of the files that a process may have open.
        first_epoch: the number of the first epoch that it prints; `auto` where its first line tells.
    """

    pause: Literal["keep", "restart"] = "keep"
    stopped: int = Field(32, ge=0, le=200)
    first_epoch: Literal["auto", 0, 1] = AUTO


class Budget(Section):
    """The bounds of what the whole study may cost, however many workers it has; None is no bound."""

    epochs: int | None = Field(None, ge=1)
    hours: float | None = Field(None, gt=0)


class Log(Section):
    """Which loggers the runs are written to; it changes no result.

    Attributes:
        to: their names.
        project: under which W&B and MLflow show the runs; None for the name of the study.
    """

    to: Annotated[tuple[str, ...], Field(strict=False)] = ()
    project: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]*$", max_length=100)] | None = None


class Spec(Section):
    """A complete study.

    Attributes:
        task: a name of the table of tasks, or `package.module:name` of the user's own.
        objective: instead of a task, a training loop of the user's own, `package.module:name`. Its settings
            are the options and the recipe, whatever they are.
        command: instead of these, a script that is run for each training, with placeholders for the level,
            the seed and its settings.
        arguments: what a task or objective of the user's own finds in `sys.argv` behind its own name.
        script: how a command is run; None where there is none.
        settings: the sampler's, the pruner's and the schedule's own settings, by the name of each.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$", max_length=100)]
    task: str | None = None
    objective: str | None = None
    command: str | None = None
    arguments: Annotated[tuple[str, ...], Field(strict=False)] = ()
    options: dict[str, Choices | Setting | None] = Field(default_factory=dict)
    levels: Levels
    training: Training = Training()
    arithmetic: Arithmetic = PLAIN
    script: ScriptSettings | None = None
    search: Search = Search()
    budget: Budget = Budget()
    log: Log = Log()
    settings: dict[str, dict[str, Choices | Range | Setting]] = Field(default_factory=dict)

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
    def training_settings(self) -> dict[str, Choices | Setting | None]:
        """The options and the recipe, by name; searched ones are `Choices`."""
        return {**self.options, **self.training.recipe}

    @property
    def schedule_settings(self) -> dict[str, Choices | Range | Setting]:
        """The settings of the schedule, by name; searched ones are `Choices` or a `Range`."""
        return self.settings.get(self.training.schedule, {})

    @property
    def searched(self) -> dict[str, tuple[Scalar, ...]]:
        """The choices of each recipe field or option that is searched beside the level."""
        every = self.training_settings
        return {name: value.choices for name, value in every.items() if isinstance(value, Choices)}

    @property
    def searched_settings(self) -> dict[str, Choices | Range]:
        """The settings of the schedule that are searched beside the level; at level 0 they have no effect."""
        every = self.schedule_settings
        return {name: value for name, value in every.items() if isinstance(value, Choices | Range)}

    def up_to(self, bound: float) -> Spec:
        """Return the same study with `levels.up_to` a bound, which the pilot has found."""
        return self.model_copy(update={"levels": self.levels.up_to(bound)})

    def stand_in(self) -> Spec:
        """Return the same study with `levels.stand_in()`, to check all else before the pilot has ended."""
        return self.model_copy(update={"levels": self.levels.stand_in()})

    def fingerprint(self) -> str:
        """Return 16 hex digits that are equal for equal specs."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def with_chosen(settings: Mapping[str, Choices | Range | V], beside: Mapping[str, Parameter]) -> dict[str, V]:
    """Return settings with one value each; a searched one has that of a ticket.

    A searched setting that the ticket has no value for is left out: a baseline, at level 0, has no settings
    of the schedule, whose defaults have no effect there.

    Args:
        settings: of a spec.
        beside: parameters of the ticket; those that are not searched in these settings are passed over.
    """
    fixed = {name: value for name, value in settings.items() if not isinstance(value, Choices | Range)}
    searched = settings.keys() - fixed.keys()
    return {**fixed, **{name: value for name, value in beside.items() if name in searched}}


def combinations(settings: Mapping[str, object]) -> int:
    """Return the number of combinations of all choices among some settings; 1 if there are none."""
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
