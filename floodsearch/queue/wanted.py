"""Which tickets a study still needs, told from its trials alone.

`history` are all trials of the study, in the order of their numbers; the newest of a ticket tells its state.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from floodsearch.answer.tickets import latest
from floodsearch.records import TrialRecord
from floodsearch.search.tickets import tickets
from floodsearch.study.spec import Spec

ATTEMPTS = 3
"""How often a ticket is trained that ends in an error of the user's code."""


def missing(spec: Spec, history: Sequence[TrialRecord]) -> list[int]:
    """Return the tickets that have to be queued now, whatever the others came to.

    Those that never were, and those whose newest trial was lost, ended in an error that is tried again, or is
    shorter than the study by now.
    """
    newest = latest(history)
    return [number for number in range(len(tickets(spec))) if _missing(newest.get(number), history, spec)]


def _missing(last: TrialRecord | None, history: Iterable[TrialRecord], spec: Spec) -> bool:
    """Return whether a ticket has to be queued, given its newest trial."""
    if last is None:
        return True
    if last.state == "failed":
        errors = sum(one.ticket == last.ticket and one.cause == "error" for one in history)
        return errors < ATTEMPTS
    return last.state == "complete" and last.epochs < spec.training.epochs


def short_of_seeds(spec: Spec, history: Sequence[TrialRecord]) -> list[int]:
    """Return the complete tickets that lack seeds which were added to the study, if none is missing.

    Such seeds are trained where they may change the answer, which is asked in rounds: only when nothing else
    is left to train, because until then the answer moves, and again after each round. A ticket is in at most
    one round, as it has all seeds then.
    """
    newest = latest(history)
    if in_hand(newest):
        return []
    return [number for number, one in sorted(newest.items()) if one.state == "complete" and grown(one, spec)]


def in_hand(newest: Mapping[int, TrialRecord]) -> bool:
    """Return whether a ticket waits or is in training, given the newest trial of each."""
    return any(trial.state in ("waiting", "running") for trial in newest.values())


def trained_to_the_end(spec: Spec, history: Iterable[TrialRecord]) -> set[int]:
    """Return the tickets that were trained to the end of the study's epochs, with however many seeds."""
    return {one.ticket for one in history if one.state == "complete" and one.epochs >= spec.training.epochs}


def grown(trial: TrialRecord, spec: Spec) -> bool:
    """Return whether the study has more epochs or seeds now than when a trial was queued."""
    return trial.epochs < spec.training.epochs or trial.seeds < len(spec.training.seeds)
