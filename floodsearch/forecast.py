"""What a search will still cost: its pruner's plan, at the speed measured so far."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from floodsearch.analysis import latest
from floodsearch.catalog import pruner_of
from floodsearch.queue import brackets
from floodsearch.records import TrialRecord, WorkerRecord
from floodsearch.search.pruners import HalvingPruner
from floodsearch.search.space import Space, ticket_count, tickets
from floodsearch.spec import Spec
from floodsearch.storage.studies import StoredStudy


class Open(NamedTuple):
    """A ticket that is not finished: its level, if that is known, and how far of how many epochs it is."""

    number: int
    level: float | None
    epoch: int
    epochs: int
    seeds: int


def epochs_expected(spec: Spec) -> int | None:
    """Return the member-epochs of a whole search, or None while the pilot has to tell how many levels.

    Under halving the levels of each bracket that are tried go from rung to rung as planned; other pruners are
    taken to stop nothing. What levels share before they flood is not known before, and comes off.
    """
    if ticket_count(spec) is None:
        return None
    training = spec.training
    levels = [None if ticket is None else float(ticket["level"]) for ticket in tickets(spec.stand_in())]
    size = 0, training.epochs, len(training.seeds)
    return _left(spec, [Open(number, level, *size) for number, level in enumerate(levels)])


def epochs_left(spec: Spec, trials: Iterable[TrialRecord]) -> int:
    """Return the member-epochs that the tickets of a study still need."""
    return _left(
        spec,
        [
            Open(one.ticket, one.level, one.epoch, one.epochs, one.seeds)
            for one in latest(trials).values()
            if one.state in ("waiting", "running")
        ],
    )


def _left(spec: Spec, unfinished: Sequence[Open]) -> int:
    pruner, bracket = pruner_of(spec), brackets(spec, ticket_count(spec) or 1)
    left, together = 0, dict[tuple[int | None, int, int], list[int]]()
    for one in unfinished:
        if one.level == 0 or not isinstance(pruner, HalvingPruner):
            left += (one.epochs - one.epoch) * one.seeds
        else:
            together.setdefault((bracket(one.number), one.epochs, one.seeds), []).append(one.epoch)
    if isinstance(pruner, HalvingPruner):
        for (_, epochs, seeds), reached in together.items():
            levels = len(reached)
            if spec.search.sampler == "grid":
                levels = min(levels, pruner.together * len(Space.of(spec.stand_in()).combinations()))
            left += seeds * pruner.epochs_left(levels, min(reached), epochs)
    return left


def epochs_a_second(study: StoredStudy, alive: Sequence[WorkerRecord], now: float) -> float | None:
    """Return the member-epochs a second of the workers that are alive, None if unknown.

    As measured, or as the pilot measured it while they have only begun.
    """
    trained = [one for one in alive if one.epochs_run > 0 and now > one.started]
    if trained:
        return sum(one.epochs_run / (now - one.started) for one in trained)
    if study.pilot is None:
        return None
    return max(1, len(alive)) / study.pilot.seconds_per_epoch
