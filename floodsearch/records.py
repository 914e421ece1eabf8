"""What happened, as frozen records: the only data that crosses layers.

Losses are in nats for cross-entropy (in the unit of the task's loss otherwise), accuracies are shares in
[0, 1], epochs count from 1. `None` means "not known"; it is never replaced by a guess.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

Parameter = float | int | str | bool
"""The value of one searched parameter."""

Scalar = bool | int | float | str
Setting = Scalar | tuple[Scalar, ...]
"""The value of one setting, as a study file may hold it."""

Keep = Literal["none", "last", "best"]
"""Which weights of a complete ticket are kept: none, after its last epoch, or of its best validation."""

StopRule = Literal["none", "last", "best"]
"""What the value of a run is where runs may end before their last epoch: that of its last validations, or of
its best one; none: no run may."""

LARGEST = 1e50
"""A number beyond this counts as infinite: single precision ends before, and its square is finite."""

REPORTED = ("val_accuracy", "val_loss", "test_accuracy", "test_loss", "train_accuracy", "train_loss")
"""The fields of `EpochRecord` that are numbers of the user's own; any other has room in `metric` alone."""


def field_of(metric: str) -> str:
    """Return the field of `EpochRecord` that holds a metric."""
    return metric if metric in REPORTED else "metric"


TicketState = Literal["waiting", "running", "complete", "pruned", "failed"]


class Attribute(StrEnum):
    """The user attributes of our Optuna trials: few and short, because a dashboard resends them all."""

    TICKET = "ticket"
    ATTEMPT = "attempt"
    SEEDS = "seeds"
    EPOCHS = "epochs"
    BRACKET = "bracket"
    CONFIRMS = "confirms"
    WORKER = "worker"
    REVISION = "revision"
    HANDED_BACK = "handed_back"
    OUT_OF_MEMORY = "out_of_memory"
    CAUSE = "cause"
    REASON = "reason"
    TRACEBACK = "traceback"
    VALUE_SE = "value_se"
    TEST_ACCURACY = "test_accuracy"
    TEST_LOSS = "test_loss"
    FLOODED = "flooded"


BY_HAND = "by hand"
"""The cause of a trial that somebody else has ended or changed: its ticket is trained again."""

ENDINGS: Mapping[str, frozenset[str]] = {
    "complete": frozenset({"complete"}),
    "pruned": frozenset({"pruned", "diverged"}),
    "failed": frozenset({"error", "forgiven", "lost", BY_HAND}),
}
"""By state, what we write as the cause when we end a trial; one that ended without it was ended by hand."""


def ended_by_us(state: str, cause: object) -> bool:
    """Return whether a finished trial of a ticket says why we ended it so."""
    return isinstance(cause, str) and cause in ENDINGS.get(state, ())


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochRecord:
    """One epoch of one run. `train_loss` is the plain loss, never the flooded one."""

    seed: int
    epoch: int
    level: float
    train_loss: float | None
    train_accuracy: float | None
    flooded: float | None
    """Share of the epoch's batches whose loss was below the level, in [0, 1]; None where only code of the
    user's own has seen them."""
    val_loss: float | None = None
    val_accuracy: float | None = None
    test_loss: float | None = None
    """Test metrics are measured at the last epoch and at the best validation epoch only."""
    test_accuracy: float | None = None
    test_accuracy_clean: float | None = None
    """Accuracy against the labels before label noise, where the task keeps them."""
    metric: float | None = None
    """The study's metric, where that is a number of another name which the user's own loop reports."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedResult:
    """One finished run of a trial: the metric over the window, and the test at two epochs."""

    seed: int
    value: float
    train_accuracy: float | None
    test_loss: float | None
    test_accuracy: float | None
    test_accuracy_clean: float | None
    best_epoch: int
    """The epoch of the best validation metric, the first one where several are equal."""
    best_test_loss: float | None
    best_test_accuracy: float | None
    final_level: float | None = None
    """The level of the last epoch: where a schedule moves the level, the one that this run came to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialRecord:
    """One Optuna trial of a study."""

    trial: int
    """Its number, as in a dashboard."""
    ticket: int
    state: TicketState
    parameters: Mapping[str, Parameter]
    """`level` and whatever is searched beside it; empty until a sampler has proposed."""
    epochs: int
    seeds: int
    """How many of the study's seeds this trial covers, the first ones."""
    epoch: int = 0
    """The last rung that it reported."""
    value: float | None = None
    """The study's metric: final if complete, the last recent mean if pruned or running."""
    attempt: int = 1
    worker: int | None = None
    revision: str | None = None
    """The revision of the user's own code that trained it; None for a built-in task and before that."""
    cause: str | None = None
    """Why it did not complete: `pruned`, `diverged`, `lost`, `error`, or ended or changed `by hand`."""
    reason: str | None = None
    """The cause in a sentence."""
    handed_back: int = 0
    """How often a worker that was asked to leave gave it back; that is no attempt."""
    out_of_memory: int = 0
    """How often it was given back because too many were trained at once; that is no attempt either."""
    flooded: bool | None = None
    """Whether a batch of any seed was ever below the level; None until it ended, and where that is not known,
    as of a script."""

    @property
    def level(self) -> float | None:
        """The flood level, or None for an open ticket that nobody has proposed for."""
        level = self.parameters.get("level")
        return None if level is None else float(level)

    @property
    def stands_for(self) -> float | None:
        """The level that it tells about: level 0 where nothing was ever flooded, as that is the same run."""
        return 0.0 if self.flooded is False and self.level is not None else self.level

    @property
    def beside(self) -> dict[str, Parameter]:
        """The parameters searched beside the level."""
        return {name: value for name, value in self.parameters.items() if name != "level"}


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredTrial(TrialRecord):
    """A trial with what its curves say, which takes longer to read: what the answer is made of."""

    results: tuple[SeedResult, ...]
    """One entry a seed, in the order of the seeds; empty until complete."""
    rungs: Mapping[int, tuple[float, ...]]
    """By epoch of each rung that it reached: the recent mean of the metric of each seed, in the order of the
    seeds; empty until it ended. At the last epoch these are the values of `results`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """A pruner's verdict on one trial; `reason` is never empty."""

    prune: bool
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Pilot:
    """The findings of the pilot, the start of the unflooded runs, where no highest level was given."""

    epochs: int
    """Member-epochs that it trained, of all seeds; the unflooded runs go on from there."""
    minima: tuple[float, ...]
    """The lowest validation loss of each seed."""
    bound: float
    """Flooding above it is underfitting by choice: the largest of the minima, with a margin."""
    high: float
    """The highest level of the study: at the bound, or so little below that its levels are short numbers."""
    seconds_per_epoch: float
    """How long an epoch of one run takes, validations included."""
    device: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerRecord:
    """One worker of a study. Times are seconds of the database's clock since 1970, UTC."""

    id: int
    host: str
    pid: int
    device: str
    started: float
    last_beat: float
    left: float | None
    training: tuple[int, ...]
    """The tickets in its hands."""
    epochs_run: int
    versions: Mapping[str, str] = field(default_factory=dict)
