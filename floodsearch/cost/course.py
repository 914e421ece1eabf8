"""The course of a search, told without training: tickets go from rung to rung as their judge lets them.

A pure function of what is judged together and of when levels flood. Which levels are better is not known. The
lower are taken to be: early in a run, when most are stopped, high ones hold back what all others still learn.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from floodsearch.cost.floods import Floods
from floodsearch.search.judge import Judge
from floodsearch.search.pauses import restart_pays

Way = Literal["forks", "goes on", "never pauses", "is a command"]
"""How runs are trained. Those of a task fork from their trunk; those of a loop go on from part to part, or
are trained at once where they have no state. Nobody sees what a command floods, and it is not paused where
nobody judges."""


class Stage(NamedTuple):
    """Runs, of all levels and seeds together, that are trained from after an epoch until another."""

    after: int
    until: int
    runs: int
    saved: int = 0
    """Of their member-epochs those that a trunk is trained for."""

    @property
    def epochs(self) -> int:
        """The member-epochs."""
        return (self.until - self.after) * self.runs - self.saved


@dataclass
class Shown:
    """What tickets that were trained earlier have shown those that are judged after them.

    Attributes:
        began: how many levels above 0 have reached the first rung.
        levels: of those that have flooded, by the epochs of the rungs that they have reached.
    """

    began: int = 0
    levels: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))

    def add(self, judge: Judge, level: float, end: int, *, flooded: bool) -> None:
        """Add a level that has ended at an epoch: it counts at each rung if it has ever flooded."""
        for rung in judge.rungs if flooded else ():
            if rung <= end:
                self.levels[rung].append(level)


class Tickets(NamedTuple):
    """Levels above 0 that are trained together, from the epoch that all have reached.

    Args:
        levels: by ticket number.
        seeds: how many.
        after: the epoch that they have reached.
        epochs: of a run.
        kept: of a command: how many processes are stopped and kept at a rung, those of the first runs.
    """

    levels: dict[int, float]
    seeds: int
    after: int
    epochs: int
    kept: int = 0


def course(tickets: Tickets, judge: Judge, floods: Floods, way: Way, shown: Shown) -> Iterator[Stage]:
    """Yield what tickets are trained for, from rung to rung; `shown` takes in what they show."""
    alive, after, epochs = set(tickets.levels), tickets.after, tickets.epochs
    runs = _Runs.of(tickets, floods)
    if judge.rungs and after < judge.rungs[0]:
        shown.began += len(alive)
    elif judge.together and after:
        runs.were_judged(judge, after, shown)
    ends = dict.fromkeys(alive, epochs)
    share = 1.0  # of the living runs those that are not at their ends already
    for rung in (*(rung for rung in judge.rungs if judge.together and after < rung < epochs), epochs):
        until = epochs if way == "is a command" and len(alive) == 1 else rung
        yield runs.part(alive, way, after, until, share)
        if until == epochs:
            break
        going = _going(runs, alive, judge, until, shown, way)
        if way == "is a command":
            waiting = len(alive) * tickets.seeds * share
            ended = max(0.0, 1 - tickets.kept / waiting)
            if restart_pays(judge, len(alive), until, epochs):  # those that go on begin again
                yield Stage(0, until, math.ceil(len(going) * tickets.seeds * share * ended))
            else:  # they are not paused
                yield Stage(until, epochs, math.ceil(waiting * ended))
                share *= 1 - ended
        ends |= dict.fromkeys(alive - going, until)
        alive, after = going, until
        if not alive:
            break
    for number, end in ends.items():
        shown.add(judge, tickets.levels[number], end, flooded=runs.flooded(number, end))


@dataclass
class _Runs:
    """The runs of tickets: the epochs in which each first floods, and how many runs each stands for."""

    tickets: Tickets
    first: dict[int, list[float]]
    stands_for: list[int]

    @classmethod
    def of(cls, tickets: Tickets, floods: Floods) -> _Runs:
        known = min(tickets.seeds, max(1, len(floods.lowest)))
        first = {
            number: [floods.first(level, place) for place in range(known)]
            for number, level in tickets.levels.items()
        }
        return cls(tickets, first, [len(range(place, tickets.seeds, known)) for place in range(known)])

    def part(self, alive: Iterable[int], way: Way, after: int, until: int, share: float) -> Stage:
        """Return what the runs of the tickets that are alive are trained for, or a share of these runs."""
        first = [pair for number in alive for pair in zip(self.first[number], self.stands_for, strict=True)]
        runs = math.ceil(sum(count for _, count in first) * share)
        if way == "forks":  # the epoch in which a level first floods is trained once more, flooded
            trained = sum((until - max(after, math.ceil(one) - 1)) * n for one, n in first if one <= until)
        elif way == "never pauses":
            trained = 0 if after else runs * self.tickets.epochs
        else:
            trained = runs * (until - after)
        return Stage(after, until, runs, runs * (until - after) - trained)

    def flooded(self, number: int, epoch: int) -> bool:
        """Return whether a run of a ticket has flooded by an epoch."""
        return min(self.first[number]) <= epoch

    def were_judged(self, judge: Judge, after: int, shown: Shown) -> None:
        """Let those that are more than the last rung keeps flood after it: else they had been stopped."""
        last = max((rung for rung in judge.rungs if rung <= after), default=None)
        if last is None:
            return
        early = sorted(
            (number for number in self.first if self.flooded(number, last)),
            key=lambda number: min(self.first[number]),
        )
        for number in early[judge.keeps(last, shown.began) :]:
            self.first[number] = [max(epoch, last + 1.0) for epoch in self.first[number]]


def _going(runs: _Runs, alive: set[int], judge: Judge, rung: int, shown: Shown, way: Way) -> set[int]:
    """Return the tickets that go on after a rung: those that have not flooded, and the best of the others."""
    levels, judged = runs.tickets.levels, {number for number in alive if runs.flooded(number, rung)}
    if way == "is a command" and any(runs.flooded(number, rung) for number in levels):  # before, all tie
        judged = set(alive)
    best = sorted([*shown.levels[rung], *(levels[number] for number in judged)])
    last = best[: judge.keeps(rung, shown.began)][-1] if best else 0.0
    return {number for number in alive if number not in judged or levels[number] <= last}
