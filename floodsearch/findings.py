"""What a study tells, as frozen records: where it stands, and which level is best.

Units are those of `records`; `None` means "not known".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from floodsearch.records import Parameter, Pilot, TicketState

Verdict = Literal["helps", "not shown", "hurts"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TicketCounts:
    """The number of tickets of a study in each state."""

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
class CurvePoint:
    """A level on the curve from which the answer is taken, in the unit of the metric."""

    level: float
    value: float
    """Mean over seeds at the end of training; of a level that was pruned, carried on to there by how the
    levels around it changed."""
    mean: float
    """The smooth curve."""
    se: float | None
    """Of `mean`. What a seed adds to all of its levels is no error, as levels are compared within seeds.
    None where nothing tells it."""
    low: float | None
    high: float | None
    """90 % about `mean`, two-sided, by Student's t; None where `se` is."""
    seeds: int
    """With how many seeds it was trained, if not to the end."""
    complete: bool
    """Whether it was trained to the end."""


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
    """Holds the best level of the smoothed curve about nine times in ten (`answer.smoothing.Smooth.tied`):
    from the lowest to the highest level of `tied` and the answer. None where the data show no error, as with
    one seed and few levels. Where each run finds its own level: from the lowest to the highest that a run
    came to; None with one seed and at level 0."""
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
    """None at level 0, where it was not tested there, and where all runs are worth their best validation."""
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
    """A sentence on how somebody changed the study by hand, and the repair; None if nobody did."""
    warnings: tuple[str, ...] = ()
    """The warnings of its workers, each once, oldest first."""
    points: tuple[CurvePoint, ...] = ()
    """The curve over levels, ascending, level 0 among them; of the combination that is the answer. Empty
    where no levels were compared."""

    @property
    def failed(self) -> bool:
        """Whether the search is over without level 0, so that nothing tells whether flooding helps."""
        return self.baseline is None and (self.finished or self.stopped is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class TicketNote:
    """A ticket that did not simply complete: it was pruned, diverged or failed, or was taken up again."""

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
    """The part of a search that is trained now: runs between one decision of the pruner and the next."""

    after: int
    """The epoch behind which it begins, of the tickets that are the least far."""
    until: int
    """The epoch with which it ends."""
    tickets: int
    """How many tickets are in training, level 0 among them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStatus:
    """A worker that is alive, and what it trains."""

    worker: int
    host: str
    device: str
    levels: tuple[float, ...]
    """The levels of the tickets in its hands, ascending; empty while it waits, or finds their range."""
    seeds: int | None
    """How many seeds each of these tickets has; None while it has none."""
    epochs_run: int
    seconds: float
    """Since it began."""
    silent_seconds: float
    """Since its last sign of life; one comes every few seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyStatus:
    """The progress of a study: its tickets, workers, epochs and the best so far."""

    name: str
    metric: str
    trials: TicketCounts
    workers: int
    """Workers alive now."""
    best_level: float | None
    """The level of the single ticket with the best value: quick to tell, and luckier than the answer."""
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
    """All revisions of the user's own code that trained its tickets; results of several may not compare."""
    interruptions: Mapping[str, int] = field(default_factory=dict)
    """How often trials were `lost`, ended by an `error` or `by hand`, `handed back`, or `out of memory`, each
    as often as it was."""
    epochs_expected: int | None = None
    """Member-epochs run, and still to be run by the pruner's plan; None until the pilot has ended."""
    stage: StudyStage | None = None
    """None while nothing is in training."""
    crew: tuple[WorkerStatus, ...] = ()
    """One for each worker alive."""
    notes: tuple[TicketNote, ...] = ()
    """One for each ticket that was pruned, diverged or failed, or was taken up more than once."""
    changed: str | None = None
    """A sentence on how somebody changed the study by hand, and the repair; None if nobody did."""
    warnings: tuple[str, ...] = ()
    """The warnings of its workers, each once, oldest first."""
