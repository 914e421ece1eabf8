"""Who decides which levels of a study go on: what a pruner is to the rest of the program.

A judge is told how levels stand at a rung and answers with decisions. It also says when it decides and what
it judges together, which is what the queue, the workers and the forecast need to know. Successive halving is
one; Optuna's pruners, which look at one trial among all others, stand behind an adapter.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from optuna.pruners import BasePruner

from floodsearch.records import Decision
from floodsearch.search.halving import Standing, halve, spread


@dataclass(frozen=True)
class Rung:
    """A rung that tickets have reached together, with all that a judge may ask about them.

    What it does not ask for is not read from the database.

    Args:
        epoch: that they have reached.
        standings: how they stand, by ticket.
        scale: the range of levels over which their curve is smooth, in the unit of the loss.
        maximize: whether a larger value of the metric is better.
        ended: returns how others stood at an epoch, which are judged with these and have ended, or have gone
            on without them; by keys that are no ticket's of these.
        ask: returns whether one of Optuna's pruners stops the trial of one of these tickets.
    """

    epoch: int
    standings: Mapping[int, Standing]
    scale: float
    maximize: bool
    ended: Callable[[int], Mapping[int, Standing]]
    ask: Callable[[BasePruner, int], bool]


@dataclass(frozen=True, kw_only=True)
class Judge:
    """The judge that stops nothing; the others differ from it where they have to.

    Args:
        rungs: the epochs at which it decides, ascending and before the last one. All tickets that a worker
            trains together reach one before any of them goes on.
        brackets: into how many parts a grid is cut, whose tickets are judged, and so taken and trained,
            together. None of a judge that looks at each ticket by itself.
        tried: with how many levels of one part of a grid it begins; None for all.
        most_open: how many open tickets a worker takes at once, whose levels are still to be proposed. Few,
            so that a sampler sees results before it proposes more.
    """

    rungs: tuple[int, ...] = ()
    brackets: int | None = None
    tried: int | None = None
    most_open: int = 1

    @property
    def together(self) -> bool:
        """Whether it compares tickets that are trained together, rather than each with those before it."""
        return self.brackets is not None

    def begin(self, levels: Mapping[int, float]) -> dict[int, Decision]:
        """Return the decision on each level of one part of a grid that is not tried, by ticket."""
        del levels
        return {}

    def judge(self, rung: Rung) -> dict[int, Decision]:
        """Return a decision on each ticket that has reached a rung; level 0 is never stopped."""
        return dict.fromkeys(rung.standings, Decision(prune=False, reason="not judged"))

    def keeps(self, rung: int, began: int) -> int:
        """Return how many levels above 0 that have flooded go on after a rung, of so many that began.

        It tells what a search will cost; level 0, and a level that has not flooded yet, go on beside them.

        Args:
            rung: one of the rungs.
            began: how many levels above 0 have reached the first rung.
        """
        del rung
        return began

    def plan(self, levels: int, epoch: int, epochs: int) -> Iterator[tuple[int, int, int]]:
        """Yield (after which epoch, up to which one, how many levels) a bracket will train at most.

        Args:
            levels: above 0, alive and behind the same epoch.
            epoch: that they have reached.
            epochs: of a run.
        """
        yield epoch, epochs, levels


@dataclass(frozen=True, kw_only=True)
class Halving(Judge):
    """Successive halving of a bracket of flood levels.

    Args:
        reduction: one level in this many is kept at a rung.
        ties: levels within this many standard errors below the last one kept go on too.
    """

    reduction: float
    ties: float

    def begin(self, levels: Mapping[int, float]) -> dict[int, Decision]:
        """Return the decision on each level of one part of a grid that is not tried, by ticket."""
        if self.tried is None:
            return {}
        tried = spread([*levels.values()], self.tried)
        aside = Decision(
            prune=True, reason=f"pruned before the first epoch: {len(tried)} levels, evenly spread, are tried"
        )
        return {ticket: aside for ticket, level in levels.items() if level > 0 and level not in tried}

    def judge(self, rung: Rung) -> dict[int, Decision]:
        """Return the decisions on all levels that have reached a rung; at other epochs all go on.

        What is kept is a share of those that have reached the first rung, not of those that are left: where
        levels flood late, each rung has new ones to judge.
        """
        if rung.epoch not in self.rungs:
            return super().judge(rung)
        own = rung.standings
        began = {**own, **rung.ended(self.rungs[0])}
        decisions = self.compare(
            {**rung.ended(rung.epoch), **own},
            epoch=rung.epoch,
            highest=rung.scale,
            began=sum(one.level > 0 for one in began.values()),
        )
        return {ticket: decisions[ticket] for ticket in own}

    def compare(
        self, standings: Mapping[int, Standing], *, epoch: int, highest: float, began: int
    ) -> dict[int, Decision]:
        """Return the decisions on all levels that have reached a rung, those that have ended included.

        Args:
            standings: by ticket.
            epoch: one of the rungs.
            highest: level of the study.
            began: how many levels above 0 have reached the first rung.
        """
        keep = self.keeps(epoch, began)
        return halve(standings, epoch=epoch, highest=highest, keep=keep, ties=self.ties)

    def keeps(self, rung: int, began: int) -> int:
        """Return how many levels above 0 that have flooded go on after a rung, if none ties with the last."""
        share: float = self.reduction ** -(self.rungs.index(rung) + 1.0)  # it may be as large as floats are
        return max(1, math.ceil(began * share - 1e-9))

    def plan(self, levels: int, epoch: int, epochs: int) -> Iterator[tuple[int, int, int]]:
        """Yield (after which epoch, up to which one, how many levels) a bracket will train, if none ties.

        Args:
            levels: above 0, alive and behind the same epoch.
            epoch: that they have reached.
            epochs: of a run.
        """
        for rung in (*(rung for rung in self.rungs if epoch < rung < epochs), epochs):
            yield epoch, rung, levels
            levels, epoch = math.ceil(levels / self.reduction), rung


@dataclass(frozen=True, kw_only=True)
class OptunaJudge(Judge):
    """One of Optuna's pruners: each trial is judged by itself, among all trials of the study.

    Args:
        name: of the pruner, for the reasons.
        pruner: of Optuna's.
    """

    name: str
    pruner: BasePruner

    def judge(self, rung: Rung) -> dict[int, Decision]:
        """Return the pruner's decision on each ticket that has reached a rung."""
        return {ticket: self._decision(rung, ticket) for ticket in rung.standings}

    def _decision(self, rung: Rung, ticket: int) -> Decision:
        standing = rung.standings[ticket]
        if standing.level == 0:
            return Decision(prune=False, reason="level 0 is never pruned")
        value = standing.value if rung.maximize else -standing.value
        told = f"by {self.name} at epoch {rung.epoch}, with a recent mean of {value:.4g}"
        prune = rung.ask(self.pruner, ticket)
        return Decision(prune=prune, reason=f"pruned {told}" if prune else f"kept {told}")
