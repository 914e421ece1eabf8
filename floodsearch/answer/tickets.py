"""The tickets of a study, by their trials: which trial tells of each, and which of them are comparable."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from floodsearch.answer.values import Criterion
from floodsearch.findings import TicketCounts
from floodsearch.records import BY_HAND, TrialRecord

Trial = TypeVar("Trial", bound=TrialRecord)


def latest(trials: Iterable[Trial]) -> dict[int, Trial]:
    """Return the newest trial of each ticket: earlier ones were lost, failed, or covered fewer seeds.

    One that somebody ended or changed by hand tells of its ticket only where there is no other.
    """
    newest: dict[int, Trial] = {}
    for trial in sorted(trials, key=lambda one: (one.cause != BY_HAND, one.trial)):
        newest[trial.ticket] = trial
    return newest


def revisions(trials: Iterable[TrialRecord]) -> tuple[str, ...]:
    """Return the revisions of the user's own code with which trials were trained, the first one first."""
    found = {one.revision: None for one in sorted(trials, key=lambda one: one.trial)}
    return tuple(revision for revision in found if revision is not None)


def count(trials: Iterable[TrialRecord]) -> TicketCounts:
    """Return the number of tickets in each state."""
    states = [trial.state for trial in latest(trials).values()]
    return TicketCounts(
        complete=states.count("complete"),
        pruned=states.count("pruned"),
        failed=states.count("failed"),
        running=states.count("running"),
        waiting=states.count("waiting"),
    )


def comparable(trials: Iterable[Trial]) -> list[Trial]:
    """Return the complete trials of one length and number of seeds, one a ticket.

    While a study that grew is trained on, its tickets differ in both; single levels are compared only at the
    same. Taken is the group with the most tickets among those with a complete level 0, or among all, if there
    is none; the longest of equal ones, and of those the one with the most seeds.
    """
    at_length = _largest(trials, lambda trial: trial.epochs)
    group = _largest(at_length, lambda trial: trial.seeds)
    newest = latest(group)
    return [trial for trial in group if trial is newest[trial.ticket]]


def _largest(trials: Iterable[Trial], key: Callable[[TrialRecord], int]) -> list[Trial]:
    """Return the complete trials of one key: those with level 0, with the most tickets, of the largest."""
    groups: dict[int, list[Trial]] = {}
    for trial in trials:
        if trial.state == "complete":
            groups.setdefault(key(trial), []).append(trial)

    def rank(item: tuple[int, list[Trial]]) -> tuple[bool, int, int]:
        found, group = item
        return any(one.stands_for == 0 for one in group), len({one.ticket for one in group}), found

    return max(groups.items(), key=rank, default=(0, []))[1]


def best_of(trials: Iterable[TrialRecord], criterion: Criterion) -> TrialRecord | None:
    """Return the trial with the best value; of equal ones the lowest level, then the first ticket.

    Levels are what the trials stand for: one that never flooded counts as level 0.
    """
    sign = 1.0 if criterion.maximize else -1.0
    return max(
        (trial for trial in trials if trial.value is not None),
        key=lambda trial: (sign * (trial.value or 0.0), -(trial.stands_for or 0.0), -trial.ticket),
        default=None,
    )
