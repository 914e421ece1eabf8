"""What anyone may ask of a study who can reach its database: where it stands, and which level is best."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from floodsearch import queue
from floodsearch.answer.best import best_level
from floodsearch.answer.tickets import best_of, comparable, count, latest, revisions
from floodsearch.cost.forecast import current_stage, epochs_a_second, epochs_exhaustive, epochs_left
from floodsearch.errors import NoAnswerError
from floodsearch.findings import BestLevel, StudyStatus, TicketNote, WorkerStatus
from floodsearch.records import BY_HAND, MeasuredTrial, TrialRecord, WorkerRecord
from floodsearch.storage import tables
from floodsearch.storage.studies import StoredStudy
from floodsearch.storage.trial_records import read_measured, read_trials
from floodsearch.study.section import AUTO


def answer(study: StoredStudy) -> BestLevel:
    """Return the best flood level of an open study.

    Raises:
        NoAnswerError: if no ticket is complete yet.
    """
    study = study.reread()
    trials = read_measured(study)
    workers = tables.read_workers(study.database, study.uuid)
    return _answer(study, trials, workers, _finished(study, trials, workers))


def _answer(
    study: StoredStudy, trials: Sequence[MeasuredTrial], workers: Sequence[WorkerRecord], finished: bool
) -> BestLevel:
    found = best_level(
        trials,
        study.criterion,
        epochs_run=sum(worker.epochs_run for worker in workers),
        epochs_exhaustive=epochs_exhaustive(study.spec),
        finished=finished,
        stopped=queue.closed(study, workers),
    )
    warnings = tables.read_warnings(study.database, study.uuid)
    return replace(found, changed=study.changed(), warnings=warnings)


def status(study: StoredStudy, *, with_answer: bool = False) -> StudyStatus:
    """Return the status of a study, from few and cheap reads.

    Args:
        study: which study.
        with_answer: also which level is best as far as is known, which reads the curves.
    """
    study = study.reread()
    measured = read_measured(study) if with_answer else None
    trials = read_trials(study) if measured is None else measured
    workers = tables.read_workers(study.database, study.uuid)
    now = tables.now(study.database)
    alive = [one for one in workers if one.left is None and now - one.last_beat < queue.GRACE_SECONDS]
    counts = count(trials)
    finished = _finished(study, trials, workers)
    best_so_far = best_of(comparable(trials), study.criterion)
    try:
        answered = None if measured is None else _answer(study, measured, workers, finished)
    except NoAnswerError:
        answered = None
    return StudyStatus(
        name=study.name,
        metric=study.criterion.metric,
        trials=counts,
        workers=len(alive),
        best_level=_level(best_so_far, study),
        best_value=None if best_so_far is None else best_so_far.value,
        answer=None if answered is None else answered.level,
        answer_value=None if answered is None else answered.value,
        epochs_run=sum(worker.epochs_run for worker in workers),
        epochs_exhaustive=epochs_exhaustive(study.spec),
        pilot=study.pilot,
        piloting=study.spec.levels.high == AUTO,
        seconds_left=None if finished else _seconds_left(study, trials, alive, now),
        finished=finished,
        stopped=queue.closed(study, workers),
        revisions=revisions(trials),
        interruptions=_interruptions(trials),
        epochs_expected=_epochs_expected(study, trials, workers),
        stage=current_stage(study.spec, trials),
        crew=tuple(_crew(alive, trials, now)),
        notes=tuple(_notes(trials)),
        changed=study.changed(),
        warnings=tables.read_warnings(study.database, study.uuid),
    )


def _finished(study: StoredStudy, trials: Sequence[TrialRecord], workers: Sequence[WorkerRecord]) -> bool:
    """Return whether the search is over: no ticket is left, or the budget is spent."""
    if not queue.unfinished(study, trials):
        return True
    spent = study.stopped() is None and queue.closed(study, workers) is not None
    return spent and not any(trial.state == "running" for trial in trials)


def _seconds_left(
    study: StoredStudy, trials: Sequence[TrialRecord], alive: Sequence[WorkerRecord], now: float
) -> float | None:
    speed = epochs_a_second(study, alive, now)
    if speed is None or not alive or study.spec.levels.high == AUTO:
        return None
    return epochs_left(study.spec, trials, study.pilot) / speed


def _epochs_expected(
    study: StoredStudy, trials: Sequence[TrialRecord], workers: Sequence[WorkerRecord]
) -> int | None:
    """Return the member-epochs of the whole search as it looks now; None while the levels are not known."""
    if study.spec.levels.high == AUTO:
        return None
    return sum(worker.epochs_run for worker in workers) + epochs_left(study.spec, trials, study.pilot)


def _crew(alive: Iterable[WorkerRecord], trials: Sequence[TrialRecord], now: float) -> Iterator[WorkerStatus]:
    newest = latest(trials)
    for one in alive:
        held = [newest[ticket] for ticket in one.training if ticket in newest]
        yield WorkerStatus(
            worker=one.id,
            host=one.host,
            device=one.device,
            levels=tuple(sorted(trial.level for trial in held if trial.level is not None)),
            seeds=max((trial.seeds for trial in held), default=None),
            epochs_run=one.epochs_run,
            seconds=now - one.started,
            silent_seconds=now - one.last_beat,
        )


def _interruptions(trials: Sequence[TrialRecord]) -> dict[str, int]:
    counts = {
        "lost": sum(trial.cause == "lost" for trial in trials),
        "error": sum(trial.cause in ("error", "forgiven") for trial in trials),
        BY_HAND: sum(trial.cause == BY_HAND for trial in trials),
        "handed back": sum(trial.handed_back for trial in trials),
        "out of memory": sum(trial.out_of_memory for trial in trials),
    }
    return {cause: count for cause, count in counts.items() if count}


def _notes(trials: Sequence[TrialRecord]) -> list[TicketNote]:
    reasons: dict[int, str] = {}
    for trial in sorted(trials, key=lambda one: one.trial):
        if trial.reason is not None:
            reasons[trial.ticket] = trial.reason
    return [
        TicketNote(
            ticket=ticket,
            level=trial.level,
            state=trial.state,
            cause=trial.cause,
            epoch=trial.epoch,
            attempts=trial.attempt,
            reason=reasons.get(ticket),
        )
        for ticket, trial in sorted(latest(trials).items())
        if trial.reason is not None or trial.attempt > 1
    ]


def _level(trial: TrialRecord | None, study: StoredStudy) -> float | None:
    """Return the level of a trial; None where its runs found their own, which only the curves tell."""
    return None if trial is None or (study.criterion.finds_level and trial.stands_for) else trial.stands_for
