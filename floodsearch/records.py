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

LARGEST = 1e50
"""A number beyond this counts as infinite: single precision ends before, and its square is finite."""

REPORTED = ("val_accuracy", "val_loss", "test_accuracy", "test_loss", "train_accuracy", "train_loss")
"""The fields of `EpochRecord` that are numbers of the user's own; any other has room in `metric` alone."""


def field_of(metric: str) -> str:
    """Return the field of `EpochRecord` that holds a metric."""
    return metric if metric in REPORTED else "metric"


TicketState = Literal["waiting", "running", "complete", "pruned", "failed"]

Verdict = Literal["helps", "not shown", "hurts"]


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
    """Of the user's own code that trained it; None for a built-in task, and until it was taken up."""
    cause: str | None = None
    """Why it did not complete: `pruned`, `diverged`, `lost`, `error`, or ended or changed `by hand`."""
    reason: str | None = None
    """The cause in a sentence."""
    handed_back: int = 0
    """How often a worker that was asked to leave gave it back; that is no attempt."""
    out_of_memory: int = 0
    """How often it was given back because too many were trained at once; that is no attempt either."""
    results: tuple[SeedResult, ...] = ()
    """One entry a seed, in the order of the seeds; empty until complete."""
    rungs: Mapping[int, tuple[float, ...]] = field(default_factory=dict)
    """By epoch of each rung that it reached: the recent mean of the metric of each seed, in the order of the
    seeds. At the last epoch these are the values of `results`. Empty where the curves were not read."""
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
class Decision:
    """A pruner's verdict on one trial; `reason` is never empty."""

    prune: bool
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TicketCounts:
    """How many tickets of a study are in each state."""

    complete: int = 0
    pruned: int = 0
    failed: int = 0
    running: int = 0
    waiting: int = 0

    @property
    def total(self) -> int:
        """All tickets."""
        return self.complete + self.pruned + self.failed + self.running + self.waiting

    @property
    def unfinished(self) -> int:
        """Tickets that still have to be trained."""
        return self.running + self.waiting


@dataclass(frozen=True, slots=True, kw_only=True)
class Baseline:
    """Level 0: the training without flooding, same seeds and other parameters as the answer."""

    value: float
    value_se: float | None
    test_accuracy: float | None
    test_accuracy_clean: float | None
    test_loss: float | None
    best_epoch_test_accuracy: float | None
    """Test accuracy with early stopping: at each seed's best validation epoch."""
    best_epoch_test_loss: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlyStopping:
    """Training without flooding that ends at each seed's best validation, against the level of the answer.

    Three means over seeds on the test split, whose labels no search has seen.
    """

    measure: Literal["test_accuracy", "test_loss"]
    """Of the same kind as the metric of the study: a loss for `val_loss`, else the accuracy."""
    unflooded: float
    """Level 0 at its best validation."""
    at_end: float
    """The answer at its last epoch."""
    stopped: float
    """The answer at its best validation."""
    as_good: bool
    """Whether `unflooded` is at least as good as both others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Combination:
    """The best level for one combination of the parameters that are searched beside it."""

    parameters: Mapping[str, Parameter]
    level: float
    value: float
    baseline: float | None
    """Value of level 0."""
    gain: float | None
    gain_se: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BestLevel:
    """The answer to "which b?". The field names are those of `best --json`."""

    study: str
    level: float
    """Where each run finds its own level: the median over seeds of the levels that the runs came to."""
    highest: float | None
    """Where each run finds its own level: the highest that it may take. None where levels are searched."""
    parameters: Mapping[str, Parameter]
    """What was searched beside the level; at level 0 without the settings of the schedule."""
    trial: int
    """The number of the trial that is the answer, as in a dashboard."""
    interval: tuple[float, float] | None
    """Holds the best level about nine times in ten: from the lowest to the highest level of `tied` and the
    answer. None where the data show no error, as with one seed and few levels. Where each run finds its own
    level: from the lowest to the highest that a run came to; None with one seed and at level 0."""
    tied: tuple[float, ...] | None
    """The other levels that cannot be told apart from the answer; None where no levels were compared."""
    metric: str
    value: float
    value_se: float | None
    seeds: int
    test_accuracy: float | None
    test_accuracy_clean: float | None
    test_loss: float | None
    best_epoch_test_accuracy: float | None
    """Test accuracy with early stopping: at each seed's best validation epoch."""
    best_epoch_test_loss: float | None
    train_accuracy: float | None
    baseline: Baseline | None
    """None where level 0 was not trained to its end; `no_baseline` says why."""
    no_baseline: str | None
    """What became of level 0, where there is no baseline."""
    tried: tuple[float, ...]
    """The levels above 0 that were compared, ascending: what the verdict speaks of."""
    never_flooded: tuple[float, ...] | None
    """The levels that were trained to their ends without a batch below them, on any seed: they, and what is
    below them, are level 0, and count as that everywhere. None where that is not known."""
    early_stopping: EarlyStopping | None
    """None at level 0, and where it was not tested at those epochs."""
    gain: float | None
    """What flooding brings over level 0, positive when it is better: paired over seeds, each measured at the
    level that the other seeds choose. With one seed it is that of the seed that chose, which flatters. 0 at
    level 0."""
    gain_se: float | None
    gain_interval: tuple[float, float] | None
    """90 %; None with one seed and at level 0."""
    p_value: float | None
    """Two-sided; None below six seeds and at level 0."""
    verdict: Verdict | None
    """Whether the interval of the gain of the best flooded level lies above or below 0, or neither."""
    more_seeds: int | None
    """Where the verdict is "not shown": about how many more seeds would decide it, None if very many."""
    combinations: tuple[Combination, ...]
    """One entry for each combination of the parameters searched beside the level; empty if there are none."""
    trials: TicketCounts
    epochs_run: int
    epochs_exhaustive: int | None
    """Distinct tickets x seeds x epochs."""
    cost: float | None
    finished: bool
    stopped: str | None
    """Why no ticket is handed out any more, and what to do about it; None while one may be."""
    changed: str | None = None
    """What somebody changed of the study as a whole, and how to set it right; None if nothing."""

    warnings: tuple[str, ...] = ()
    """What its workers have warned of, each once."""

    @property
    def failed(self) -> bool:
        """Whether the search is over without level 0, so that nothing tells whether flooding helps."""
        return self.baseline is None and (self.finished or self.stopped is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pilot:
    """What the start of the unflooded runs told about a study whose highest level was not given."""

    epochs: int
    """Member-epochs that it trained, of all seeds; the unflooded runs go on from there."""
    minima: tuple[float, ...]
    """The lowest validation loss of each seed."""
    bound: float
    """Flooding above it is underfitting by choice: the largest of the minima, with a margin."""
    high: float
    """The highest level of the study: at the bound, or so little below that its levels are short numbers."""
    seconds_per_epoch: float
    """Of one run, validations included."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class TicketNote:
    """What is to be said of a ticket that did not simply complete."""

    ticket: int
    level: float | None
    state: TicketState
    cause: str | None
    epoch: int
    """The last rung that it reported."""
    attempts: int
    """How often it was taken up: again after a loss or an error, and when the study grew."""
    reason: str | None
    """Why it ended, or why it was taken up again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyStage:
    """What a study trains now: runs on their way from one decision of the pruner to the next."""

    after: int
    """The epoch behind which it begins, of the tickets that are the least far."""
    until: int
    """The epoch with which it ends."""
    tickets: int
    """Those in training, level 0 among them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStatus:
    """What a worker that is alive does now."""

    worker: int
    host: str
    device: str
    levels: tuple[float, ...]
    """Of the tickets in its hands, ascending; empty while it waits, or finds the range of levels."""
    seeds: int | None
    """Of each of these tickets; None while it has none."""
    epochs_run: int
    seconds: float
    """Since it began."""
    silent_seconds: float
    """Since its last sign of life; one comes every few seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyStatus:
    """Where a study stands."""

    name: str
    metric: str
    trials: TicketCounts
    workers: int
    """Workers alive now."""
    best_level: float | None
    """Of the single ticket with the best value: quick to tell, and luckier than the answer."""
    best_value: float | None
    answer: float | None
    """The level that `best` answers with; None where it was not asked for, as it reads the curves."""
    answer_value: float | None
    epochs_run: int
    epochs_exhaustive: int | None
    """None while the pilot has to tell how many levels there are."""
    pilot: Pilot | None
    """What the pilot found; None before, and where the file gives the highest level."""
    piloting: bool
    """Whether the levels are not known yet, because the pilot has not ended."""
    seconds_left: float | None
    """Forecast from the speed of the workers so far; None where nothing is known."""
    finished: bool
    stopped: str | None
    """Why no ticket is handed out any more, or None."""
    revisions: tuple[str, ...] = ()
    """Of the user's own code, all with which its tickets were trained; several may not be comparable."""
    interruptions: Mapping[str, int] = field(default_factory=dict)
    """How often trials were `lost`, ended by an `error` or `by hand`, `handed back`, or `out of memory`, each
    as often as it was."""
    epochs_expected: int | None = None
    """What was run, and what is still to be run by the pruner's plan; None until the pilot has ended."""
    stage: StudyStage | None = None
    """None while nothing is in training."""
    crew: tuple[WorkerStatus, ...] = ()
    """One for each worker alive."""
    notes: tuple[TicketNote, ...] = ()
    """One for each ticket that was pruned, diverged or failed, or was taken up more than once."""
    changed: str | None = None
    """What somebody changed of the study as a whole, and how to set it right; None if nothing."""
    warnings: tuple[str, ...] = ()
    """What its workers have warned of, each once."""
