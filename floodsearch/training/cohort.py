"""Runs of several levels and seeds that a worker trains together, forked from one trunk per seed.

Until the first batch whose loss is below its level, a run is the unflooded run of its seed, step for step. So
each seed starts as one trunk at level 0, and a level leaves it where it first floods: after each epoch the
trunk's lowest batch loss is looked at, and a level above it repeats that epoch, flooded, from the snapshot at
its start. On a CPU a forked run equals one that was trained alone to the bit; a level that is never crossed
is the baseline and costs nothing.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch

from floodsearch.artifacts.checkpoint import Checkpoint, Pace
from floodsearch.errors import DivergedError, pass_on_ctrl_c
from floodsearch.flooding.schedules import SCHEDULES
from floodsearch.records import EpochRecord
from floodsearch.tasks.task import Task
from floodsearch.training.engine import AnyRun, RunOutcome
from floodsearch.training.forks import Errors, Forks, Key
from floodsearch.training.progress import RunPlan
from floodsearch.training.sequential import Sequential
from floodsearch.training.trunk import Trunk, TrunkPool, train


@dataclass
class EpochOutcome:
    """The outcome of one epoch of a cohort: records of its members, and errors of those that failed.

    Attributes:
        records: by member, one for each seed that it still trains.
        failed: members whose training raised, and what; they are out of the cohort.
        trained: member-epochs; a shared trunk counts once, and a repeated epoch again.
        ended: by member, the seed of a run that has ended before its last epoch.
    """

    records: dict[int, list[EpochRecord]] = field(default_factory=dict)
    failed: dict[int, BaseException] = field(default_factory=dict)
    trained: int = 0
    ended: Mapping[int, int] = field(default_factory=dict)


log = logging.getLogger(__name__)

OnEpoch = Callable[[EpochOutcome], bool]
"""Takes in what was trained, and returns whether to go on."""


class Advancing(Protocol):
    """Members that train together, one epoch at a time; `epoch` is the last."""

    epoch: int

    def advance(self) -> EpochOutcome:
        """Train all members one epoch further."""


def in_lockstep(members: Advancing, until: int, note: OnEpoch) -> bool:
    """Train members up to an epoch, as long as `note` wants more; return whether they have reached it."""
    while members.epoch < until and note(members.advance()):
        pass
    return members.epoch >= until


class Cohort:
    """Members, each a level with a run per seed, trained in lockstep, epoch by epoch.

    Args:
        task: what is trained.
        plan: how long, and how it is validated.
        levels: by member, in the unit of the task's loss; a member is named by any number.
        seeds: by member, those of its runs.
        device: where they train.
        trunks: of earlier cohorts with the same task, plan and device, which are trained no second time.
            Their engine trains the members too; by default one that trains them one after the other.
        last: whether nobody will fork from these trunks again.
        checkpoint: (member, seed) to the checkpoint of a run that has left its trunk, from which it goes on;
            None where there is no folder for them. What a run that goes on has shown before, it shows again,
            without training. Trunks have their own.
    """

    def __init__(
        self,
        task: Task,
        plan: RunPlan,
        *,
        levels: Mapping[int, float],
        seeds: Mapping[int, Sequence[int]],
        device: torch.device,
        trunks: TrunkPool | None = None,
        last: bool = True,
        checkpoint: Callable[[int, int], Checkpoint] | None = None,
    ) -> None:
        self.plan, self.last = plan, last
        self.levels = dict(levels)
        self.seeds = {member: tuple(seeds[member]) for member in levels}
        self.epoch = 0
        self.trunks = TrunkPool(Sequential(task, plan, device)) if trunks is None else trunks
        self.forks = Forks(
            ((member, seed) for member, seeds in self.seeds.items() for seed in seeds), checkpoint
        )
        self.forks.go_on(self.trunks.engine, self.levels)
        self._pace = Pace()

    def save(self) -> None:
        """Save all that another process needs to go on from here; where that fails, it trains more again."""
        since = time.monotonic()
        try:
            # Trunks last: a run without a file forks again, if its trunk is not beyond that.
            self.forks.save(self.epoch)
            for seed in sorted(
                {seed for member, seed in self.forks.shown if (member, seed) not in self.runs}
            ):
                self.trunks.of(seed).save()
        except Exception as error:  # of the disk, or of whatever a user's model holds
            log.warning("no checkpoint: %s", error)
        self._pace.note_save(since)

    @property
    def runs(self) -> dict[Key, AnyRun]:
        """The runs that have left their trunk."""
        return self.forks.runs

    def forked(self, member: int) -> bool:
        """Return whether a member has left the trunk with any of its seeds: its level has begun to matter."""
        return any(self.forks.left.get((member, seed), math.inf) <= self.epoch for seed in self.seeds[member])

    def lowest(self, member: int, seed: int) -> float | None:
        """Return the lowest loss of a batch of a run that has not flooded; None if that is not known here."""
        if seed not in self.seeds[member] or (member, seed) in self.runs:
            return None
        return self.trunks.of(seed).lowest

    def drop(self, member: int) -> None:
        """Train a member no further and free its memory."""
        for seed in self.seeds.pop(member, ()):
            self.forks.drop((member, seed))
        self.levels.pop(member, None)

    def train(self, until: int, note: OnEpoch) -> bool:
        """Train all members up to an epoch, saving them when that is due, and when `note` wants no more."""

        def note_and_save(result: EpochOutcome) -> bool:
            goes_on = note(result)
            if not goes_on or self._pace.due():
                self.save()
            return goes_on

        return in_lockstep(self, until, note_and_save)

    def advance(self) -> EpochOutcome:
        """Train all members one epoch further."""
        result = EpochOutcome(records={member: [] for member in self.levels})
        self.epoch += 1
        for member, record in self.forks.shown_in(self.epoch):
            result.records[member].append(record)
        # A schedule that moves the level by itself has no part in a trunk.
        apart = not SCHEDULES[self.plan.schedule].forks
        errors = self.forks.begin_all(self.trunks.engine, self.levels) if apart else {}
        self._advance_together(result, errors)
        # A fork may begin epochs ago, where its trunk was last kept. Those that are furthest behind train
        # first, so that each epoch that several repeat is trained for all of them together.
        while behind := {key: run for key, run in self.runs.items() if run.epoch < self.epoch}:
            first = min(run.epoch for run in behind.values())
            together = {key: run for key, run in behind.items() if run.epoch == first}
            outcomes = self.trunks.engine.advance(list(together.values()))
            self._take_in(dict(zip(together, outcomes, strict=True)), result, errors)
        for member, seed in sorted(errors, key=lambda key: key[1]):
            result.failed.setdefault(member, errors[member, seed])
        for member in result.failed:
            self.drop(member)
            result.records.pop(member, None)
        for member, records in result.records.items():
            records.sort(key=lambda record: record.seed)
            for record in records:
                self.forks.show((member, record.seed), record)
        return result

    def _advance_together(self, result: EpochOutcome, errors: Errors) -> None:
        """Train the trunks and what has left them before, and let the members go whose level was crossed."""
        sharing = {}
        for seed in sorted({seed for seeds in self.seeds.values() for seed in seeds}):
            members = self._sharing(seed, errors)
            try:
                trunk = self.trunks.of(seed) if members else None
            except BaseException as error:  # whatever a user's code does ends these members only
                pass_on_ctrl_c(error)
                errors |= {(member, seed): error for member in members}
                continue
            if trunk is not None:
                sharing[seed] = trunk, members
        due = {
            trunk: any(self.levels[member] > 0 for member in members)
            for trunk, members in sharing.values()
            if trunk.error is None and len(trunk.records) < self.epoch
        }
        on_time = {key: run for key, run in self.runs.items() if run.epoch == self.epoch - 1}
        outcomes = train(self.trunks.engine, due, list(on_time.values()))
        result.trained += sum(trunk.error is None for trunk in due)
        self._take_in(dict(zip(on_time, outcomes, strict=True)), result, errors)
        for seed, (trunk, members) in sharing.items():
            self._leave_trunk(trunk, seed, members, result, errors)

    def _sharing(self, seed: int, errors: Errors) -> list[int]:
        """Return the members that are still on the trunk of a seed."""
        return [
            member
            for member, seeds in self.seeds.items()
            if seed in seeds and (member, seed) not in self.runs and (member, seed) not in errors
        ]

    def _leave_trunk(
        self, trunk: Trunk, seed: int, members: Sequence[int], result: EpochOutcome, errors: Errors
    ) -> None:
        """Fork off the members whose level was crossed in this epoch; the others have the trunk's record."""
        if len(trunk.records) >= self.epoch:
            crossed = {m for m in members if self.levels[m] > 0 and trunk.crossed(self.epoch, self.levels[m])}
            record = trunk.records[self.epoch - 1]
            for member in members:
                if member not in crossed:
                    result.records[member].append(replace(record, level=self.levels[member]))
        else:
            # Whether a level was crossed before the loss broke is found by training it by itself.
            crossed = {m for m in members if self.levels[m] > 0 and isinstance(trunk.error, DivergedError)}
            errors |= {
                (m, seed): trunk.error for m in members if m not in crossed and trunk.error is not None
            }
        for member in sorted(crossed):
            try:
                fork = trunk.fork(self.epoch, self.levels[member])
                self.forks.add((member, seed), fork, self.epoch)
            except BaseException as error:  # not every model can be made a second time
                pass_on_ctrl_c(error)
                errors[member, seed] = error
        if self.last:
            trunk.forget(self.epoch)

    def _take_in(self, outcomes: Mapping[Key, RunOutcome], result: EpochOutcome, errors: Errors) -> None:
        """Take in what an epoch of some runs came to; it may be one that a later fork repeats."""
        for (member, seed), outcome in outcomes.items():
            result.trained += 1
            if isinstance(outcome, BaseException):
                errors[member, seed] = outcome
                del self.runs[member, seed]
            elif outcome.epoch == self.epoch:
                result.records[member].append(outcome)

    def tested(self, member: int) -> list[EpochRecord]:
        """Return a member's records with test metrics: of its best validation epochs and its last ones."""
        found: list[EpochRecord] = []
        for seed in self.seeds[member]:
            if (run := self.runs.get((member, seed))) is not None:
                found += run.tested()
            else:
                of_trunk = self.trunks.of(seed).tested()
                found += [replace(record, level=self.levels[member]) for record in of_trunk]
        return found

    def weights(self, member: int, seed: int) -> dict[str, Any] | None:
        """Return the weights that the plan keeps of a complete run; None if it was not trained here."""
        if seed not in self.seeds[member]:
            return None
        run = self.runs.get((member, seed))
        return (self.trunks.of(seed).run if run is None else run).model_weights(self.plan.keep)
