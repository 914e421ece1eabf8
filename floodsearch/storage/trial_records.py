"""The trials of a study as records; one that differs from its ticket was changed by hand, and has failed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

from optuna.trial import FrozenTrial, TrialState

from floodsearch.answer.values import rung_value, seed_result, window_start
from floodsearch.errors import DamagedError
from floodsearch.records import (
    BY_HAND,
    ENDINGS,
    Attribute,
    EpochRecord,
    MeasuredTrial,
    Parameter,
    SeedResult,
    TicketState,
    TrialRecord,
    ended_by_us,
)
from floodsearch.search.space import Space
from floodsearch.search.tickets import tickets
from floodsearch.storage import tables
from floodsearch.storage.rows import flag, read_by_optuna, text, whole
from floodsearch.storage.studies import StoredStudy
from floodsearch.study.section import AUTO
from floodsearch.study.spec import Spec

STATES: Mapping[TrialState, TicketState] = {
    TrialState.WAITING: "waiting",
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}


def read_trials(study: StoredStudy) -> list[TrialRecord]:
    """Return all trials of a study that are of its tickets, in the order of their numbers.

    Raises:
        DamagedError: if a row of one cannot be what we wrote.
    """
    with read_by_optuna(f"a trial of study {study.name!r}"):
        found = study.database.optuna.get_all_trials(study.id, deepcopy=False)
    wanted = Wanted.of(study.spec)
    return [record for trial in found if (record := record_of(trial, study, wanted)) is not None]


def read_measured(study: StoredStudy) -> list[MeasuredTrial]:
    """Return the trials of `read_trials` with what each seed came to, which reads the ends of the curves.

    Raises:
        DamagedError: if a row of a trial or of its curve cannot be what we wrote.
    """
    trials = read_trials(study)
    ended = [trial for trial in trials if _has_ended(trial)]
    curves = _ends_of_curves(study, ended) if ended else {}
    rungs: dict[int, set[int]] = {}
    for trial in ended:
        rungs.setdefault(trial.epochs, set()).add(trial.epoch)
    return [
        _measured(study, one, sorted(rungs[one.epochs]), curves) if _has_ended(one) else _with(one)
        for one in trials
    ]


@dataclass(frozen=True)
class Wanted:
    """The tickets of a study, against which its trials are checked: anyone may have changed a row.

    Args:
        spec: of the study.
        tickets: what each evaluates; none while the pilot has to tell which there are.
        space: that open tickets are of; None as long.
    """

    spec: Spec
    tickets: Sequence[Mapping[str, Parameter] | None]
    space: Space | None

    @classmethod
    def of(cls, spec: Spec) -> Wanted:
        """Return the tickets of a study; none while the pilot has to find its levels."""
        if spec.levels.high == AUTO:
            return cls(spec, (), None)
        return cls(spec, tickets(spec), Space.of(spec))

    def parameters_of(self, ticket: int) -> Mapping[str, Parameter]:
        """Return the parameters of a ticket; none where a sampler proposes them, or it is no ticket."""
        return (self.tickets[ticket] if ticket < len(self.tickets) else None) or {}

    def wrong(self, record: TrialRecord) -> str | None:
        """Return a sentence on how a trial differs from its ticket, which is by hand; None if it does not."""
        if record.ticket >= len(self.tickets):
            there = len(self.tickets)
            return f"trial {record.trial} has ticket {record.ticket}, but there are {there} in this study"
        if record.epochs > self.spec.training.epochs or record.seeds > len(self.spec.training.seeds):
            asks = f"{record.epochs} epochs of {record.seeds} seeds"
            return f"trial {record.trial} asks for {asks}, which is more than the study does"
        given, fixed = dict(record.parameters), self.tickets[record.ticket]
        sound = given == fixed if fixed is not None else not given or self._holds(given)
        return None if sound else f"trial {record.trial} has parameters that are not its ticket's: {given}"

    def _holds(self, parameters: Mapping[str, Parameter]) -> bool:
        level = parameters.get("level")
        if self.space is None or isinstance(level, bool) or not isinstance(level, int | float):
            return False
        beside = {name: value for name, value in parameters.items() if name != "level"}
        return 0 <= level <= self.space.high and self.space.holds(beside)


def record_of(trial: FrozenTrial, study: StoredStudy, wanted: Wanted) -> TrialRecord | None:
    """Return one of Optuna's trials of a study; None if it is none of our tickets.

    One that somebody else ended, or changed so that it is not its ticket any more, has failed by hand.

    Raises:
        DamagedError: if an attribute of it cannot be what we wrote.
    """
    record = _record(trial, study.name)
    if record is None:
        return None
    if (why := wanted.wrong(record)) is None:
        if record.state not in ENDINGS or ended_by_us(record.state, trial.user_attrs.get(Attribute.CAUSE)):
            return record
        value = "" if trial.value is None else f", with the value {trial.value:g}"
        why = f"trial {record.trial} was told {record.state} by hand{value}"
    else:
        record = replace(record, parameters=wanted.parameters_of(record.ticket))
    return replace(record, state="failed", cause=BY_HAND, reason=why, value=None)


def _record(trial: FrozenTrial, study: str) -> TrialRecord | None:
    attributes = trial.user_attrs
    if Attribute.TICKET not in attributes:  # added by hand, with a dashboard or a script: not of our budget
        return None

    def where(key: Attribute) -> str:
        return f"{key.value} of trial {trial.number} of study {study!r}"

    def count(key: Attribute, least: int, missing: int | None = None) -> int:
        return whole(attributes.get(key, missing), where(key), least=least)

    def told(key: Attribute) -> str | None:
        return None if attributes.get(key) is None else text(attributes[key], where(key))

    reported = trial.intermediate_values
    epoch, state = max(reported, default=0), STATES[trial.state]
    value = trial.value if trial.state.is_finished() else reported.get(epoch)
    return TrialRecord(
        trial=trial.number,
        ticket=count(Attribute.TICKET, 0),
        state=state,
        parameters=dict(trial.params),
        epochs=count(Attribute.EPOCHS, 1),
        seeds=count(Attribute.SEEDS, 1),
        epoch=epoch,
        value=value if value is not None and math.isfinite(value) else None,
        attempt=count(Attribute.ATTEMPT, 1, 1),
        worker=None if attributes.get(Attribute.WORKER) is None else count(Attribute.WORKER, 0),
        revision=told(Attribute.REVISION),
        cause=None if state == "complete" else told(Attribute.CAUSE),
        reason=told(Attribute.REASON),
        handed_back=count(Attribute.HANDED_BACK, 0, 0),
        out_of_memory=count(Attribute.OUT_OF_MEMORY, 0, 0),
        flooded=None
        if (flooded := attributes.get(Attribute.FLOODED)) is None
        else flag(flooded, where(Attribute.FLOODED)),
    )


def _has_ended(trial: TrialRecord) -> bool:
    """Return whether a trial has ended with a value at a rung: it is complete, or was pruned there."""
    return trial.state in ("complete", "pruned") and trial.epoch > 0


Curves = Mapping[tuple[int, int], Sequence[EpochRecord]]
"""The records of runs, by ticket and seed."""


def _ends_of_curves(study: StoredStudy, ended: Sequence[TrialRecord]) -> Curves:
    """Return the curves of ended trials, as far as their values depend on them.

    Of each run these are the epochs at which the metric is known, without those that cannot matter.
    """
    rungs = {trial.epoch for trial in ended}
    # Without pruning only the ends of the curves matter, which are a fifth of them, and the best epochs: a
    # task was tested there, but a loop of the user's own need not be.
    ends = len(rungs) == 1 and study.spec.task is not None
    curves = tables.read_curves(
        study.database,
        study.uuid,
        {trial.ticket for trial in ended},
        after=window_start(min(rungs), study.spec.search.window) if ends else 0,
        having=study.criterion.field,
    )
    by_seed: dict[tuple[int, int], list[EpochRecord]] = {}
    for ticket, curve in curves.items():
        for record in curve:
            by_seed.setdefault((ticket, record.seed), []).append(record)
    return by_seed


def _measured(study: StoredStudy, trial: TrialRecord, rungs: Sequence[int], by_seed: Curves) -> MeasuredTrial:
    """Return an ended trial with what its seeds came to.

    Args:
        study: whose trial it is.
        trial: that ended.
        rungs: the epochs at which trials of its length ended, ascending.
        by_seed: the curves; one that was deleted by hand leaves its seed out.
    """
    criterion, complete = study.criterion, trial.state == "complete"
    if complete and trial.epoch != trial.epochs:
        where = f"attribute 'epochs' of trial {trial.trial}"
        raise DamagedError(where, trial.epochs, f"{trial.epoch}, which is the last epoch that it reported")
    curves = [by_seed.get((trial.ticket, seed), []) for seed in study.spec.training.seeds[: trial.seeds]]
    may_end = criterion.early_stopping != "none"
    whole = [one for one in curves if (one and may_end) or any(record.epoch == trial.epoch for record in one)]
    reached = [rung for rung in rungs if rung <= trial.epoch] if len(whole) == trial.seeds else []
    return _with(
        trial,
        results=tuple(seed_result(curve, criterion, trial.epochs) for curve in whole) if complete else (),
        rungs={
            rung: tuple(rung_value(curve, criterion, rung, epochs=trial.epochs) for curve in whole)
            for rung in reached
        },
    )


def _with(
    trial: TrialRecord,
    results: tuple[SeedResult, ...] = (),
    rungs: Mapping[int, tuple[float, ...]] | None = None,
) -> MeasuredTrial:
    """Return a trial with what its curves say; by default with nothing, as of one that has not ended."""
    known = {field.name: getattr(trial, field.name) for field in fields(trial)}
    return MeasuredTrial(**known, results=results, rungs=rungs or {})
