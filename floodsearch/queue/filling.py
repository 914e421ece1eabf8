"""The one operation that creates, extends and repairs the queue of a study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from floodsearch.answer.follow_up import unconfirmed, worth_more_seeds
from floodsearch.answer.tickets import latest
from floodsearch.queue.brackets import bracket_of
from floodsearch.queue.wanted import grown, in_hand, missing, short_of_seeds, trained_to_the_end
from floodsearch.records import Attribute, Parameter, TrialRecord
from floodsearch.search.space import Space
from floodsearch.search.tickets import tickets
from floodsearch.storage import tables, trials
from floodsearch.storage.studies import StoredStudy
from floodsearch.storage.trial_records import read_measured, read_trials
from floodsearch.storage.trials import NewTrial
from floodsearch.study.section import AUTO
from floodsearch.study.spec import Spec


def fill(study: StoredStudy) -> int:
    """Make the queue hold every ticket that should exist; return how many were added.

    Creating, extending and repairing are this one operation. Any number of processes may call it at once,
    and it may be cut short anywhere: the next call adds what is missing.
    """
    with tables.lease(study.database, study.uuid, "fill"):
        study = study.reread()
        if study.spec.levels.high == AUTO:
            return 0  # the pilot has to tell which levels there are
        history = read_trials(study)
        newest, wanted, size = latest(history), tickets(study.spec), _size(study.spec)
        bracket, proven = bracket_of(study.spec, len(wanted)), trained_to_the_end(study.spec, history)
        new = [
            _new_trial(
                wanted[number],
                newest.get(number),
                size
                | _names(number, bracket(number))
                | ({Attribute.CONFIRMS: 1} if number in proven else {}),
            )
            for number in _to_queue(study, history)
        ]
        if not new and not in_hand(newest):
            new = [
                _new_trial(one.parameters, one, {Attribute.TICKET: one.ticket, **size, Attribute.CONFIRMS: 1})
                for one in _unconfirmed(study, newest)
            ]
        small = any(one.state == "waiting" and grown(one, study.spec) for one in newest.values())
        if new or small:
            distributions = Space.of(study.spec).distributions()
            with study.database.write() as connection:
                trials.resize(connection, study.id, size)
                trials.add(connection, study.id, new, distributions)
        return len(new)


def unfinished(study: StoredStudy, history: Sequence[TrialRecord]) -> bool:
    """Return whether a ticket of the study is waiting, in training, or missing from the queue."""
    if study.spec.levels.high == AUTO:
        return True
    return in_hand(latest(history)) or bool(_to_queue(study, history))


def _to_queue(study: StoredStudy, history: Sequence[TrialRecord]) -> list[int]:
    """Return the tickets that have to be queued now; the curves are read only if one lacks new seeds."""
    if absent := missing(study.spec, history):
        return absent
    if not (short := short_of_seeds(study.spec, history)):
        return []
    worth = worth_more_seeds(read_measured(study), study.criterion)
    return [number for number in short if number in worth]


def _unconfirmed(study: StoredStudy, newest: Mapping[int, TrialRecord]) -> list[TrialRecord]:
    """Return the trial that was pruned although it is the maximum of the curve, if there is one.

    The answer must have been trained to its end; one that ended there already for another reason is left.
    """
    if all(one.cause != "pruned" for one in newest.values()):
        return []  # without reading the curves
    found = unconfirmed(read_measured(study), study.criterion)
    return [found] if found is not None and found.cause == "pruned" else []


def _new_trial(
    parameters: Mapping[str, Parameter] | None, last: TrialRecord | None, attributes: Mapping[Attribute, int]
) -> NewTrial:
    """Return the next trial of a ticket, given its parameters by the spec and its newest trial."""
    attempt = 1 if last is None else last.attempt + 1
    # A level that was proposed for an open ticket stays its level.
    known = (last.parameters if last is not None else None) or parameters or {}
    return NewTrial({Attribute.ATTEMPT: attempt, **attributes}, known)


def _names(number: int, bracket: int | None) -> dict[Attribute, int]:
    """Return the attributes that say which ticket a trial is of, and of which bracket."""
    return {Attribute.TICKET: number} | ({} if bracket is None else {Attribute.BRACKET: bracket})


def _size(spec: Spec) -> dict[Attribute, int]:
    """Return the attributes that say how many epochs and seeds a trial is to be trained with."""
    return {Attribute.EPOCHS: spec.training.epochs, Attribute.SEEDS: len(spec.training.seeds)}
