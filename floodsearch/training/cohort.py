"""Runs of several levels and seeds that a worker trains together, forked from one trunk per seed.

Until the first batch whose loss is below its level, a run is the unflooded run of its seed, step for step. So
each seed starts as one trunk at level 0, and a level leaves it where it first floods: after each epoch the
trunk's lowest batch loss is looked at, and a level above it repeats that epoch, flooded, from the snapshot at
its start. On a CPU a forked run equals one that was trained alone to the bit; a level that is never crossed
is the baseline and costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch

from floodsearch.errors import DivergedError
from floodsearch.records import EpochRecord
from floodsearch.schedules import forks
from floodsearch.tasks.task import Task
from floodsearch.training.run import Plan, Run
from floodsearch.training.trunk import Trunks


@dataclass
class Step:
    """What one epoch of a cohort came to.

    Attributes:
        records: by member, one for each seed that it still trains.
        failed: members whose training raised, and what; they are out of the cohort.
        trained: member-epochs; a shared trunk counts once, and a repeated epoch again.
    """

    records: dict[int, list[EpochRecord]] = field(default_factory=dict)
    failed: dict[int, BaseException] = field(default_factory=dict)
    trained: int = 0


Note = Callable[[Step], bool]
"""Takes in what was trained, and returns whether to go on."""


class Advancing(Protocol):
    """Members that train together, one epoch at a time; `epoch` is the last."""

    epoch: int

    def advance(self) -> Step:
        """Train all members one epoch further."""


def in_lockstep(members: Advancing, until: int, note: Note) -> bool:
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
        trunks: of earlier cohorts with the same task and plan, which are trained no second time.
        last: whether nobody will fork from these trunks again.
    """

    def __init__(
        self,
        task: Task,
        plan: Plan,
        *,
        levels: Mapping[int, float],
        seeds: Mapping[int, Sequence[int]],
        device: torch.device,
        trunks: Trunks | None = None,
        last: bool = True,
    ) -> None:
        self.task, self.plan, self.device, self.last = task, plan, device, last
        self.levels = dict(levels)
        self.seeds = {member: tuple(seeds[member]) for member in levels}
        self.epoch = 0
        self.trunks = Trunks(task, plan, device) if trunks is None else trunks
        self.runs: dict[tuple[int, int], Run] = {}  # the runs that have left their trunk, by (member, seed)

    def forked(self, member: int) -> bool:
        """Return whether a member has left the trunk with any of its seeds: its level has begun to matter."""
        return any((member, seed) in self.runs for seed in self.seeds[member])

    def drop(self, member: int) -> None:
        """Train a member no further and free its memory."""
        for seed in self.seeds.pop(member, ()):
            self.runs.pop((member, seed), None)
        self.levels.pop(member, None)

    def train(self, until: int, note: Note) -> bool:
        """Train all members up to an epoch (see `in_lockstep`)."""
        return in_lockstep(self, until, note)

    def advance(self) -> Step:
        """Train all members one epoch further."""
        step = Step(records={member: [] for member in self.levels})
        self.epoch += 1
        for seed in sorted({seed for seeds in self.seeds.values() for seed in seeds}):
            sharing = self._sharing(seed)
            away = [member for member, seeds in self.seeds.items() if seed in seeds and member not in sharing]
            if not forks(self.plan.schedule):
                alone = [member for member in sharing if self.levels[member] > 0]
                away += self._begin_alone(seed, alone, step)
                sharing = [member for member in sharing if member not in alone]
            if sharing:
                away += self._advance_trunk(seed, sharing, step)
            for member in away:
                self._advance_fork(member, seed, step)
        for member in step.failed:
            step.records.pop(member, None)
        return step

    def _sharing(self, seed: int) -> list[int]:
        """Return the members that are still on the trunk of a seed."""
        return [
            member
            for member, seeds in self.seeds.items()
            if seed in seeds and (member, seed) not in self.runs
        ]

    def _begin_alone(self, seed: int, members: Sequence[int], step: Step) -> list[int]:
        """Start members that have no part in a trunk, because their schedule moves the level by itself."""
        for member in members:
            try:
                level = self.levels[member]
                self.runs[member, seed] = Run(
                    self.task, self.plan, seed=seed, level=level, device=self.device
                )
            except (Exception, SystemExit) as error:
                self._fail(step, [member], error)
        return [member for member in members if member not in step.failed]

    def _advance_trunk(self, seed: int, sharing: Sequence[int], step: Step) -> list[int]:
        """Train a trunk one epoch, if it is not ahead; return the members that fork off before it."""
        above = [member for member in sharing if self.levels[member] > 0]
        try:
            trunk = self.trunks.of(seed)
            step.trained += trunk.reach(self.epoch, forks=bool(above))
            if self.last:
                trunk.forget(self.epoch)
        except DivergedError as error:
            # Whether a level was crossed before the loss broke is found by training it by itself.
            crossed = above
            self._fail(step, [member for member in sharing if member not in above], error)
        except (Exception, SystemExit) as error:  # whatever a user's code does ends these members only
            self._fail(step, sharing, error)
            return []
        else:
            crossed = [member for member in above if trunk.crossed(self.epoch, self.levels[member])]
            record = trunk.records[self.epoch - 1]
            for member in sharing:
                if member not in crossed and member in step.records:
                    step.records[member].append(replace(record, level=self.levels[member]))
        for member in crossed:
            self._fork(member, seed, step)
        return crossed

    def _fork(self, member: int, seed: int, step: Step) -> None:
        try:
            run, repeated = self.trunks.of(seed).fork(self.epoch, self.levels[member])
        except (Exception, SystemExit) as error:  # not every model can be copied
            self._fail(step, [member], error)
        else:
            self.runs[member, seed] = run
            step.trained += repeated

    def _advance_fork(self, member: int, seed: int, step: Step) -> None:
        if member in step.failed:
            return
        try:
            step.records[member].append(self.runs[member, seed].advance())
        except (Exception, SystemExit) as error:
            self._fail(step, [member], error)
        step.trained += 1

    def _fail(self, step: Step, members: Sequence[int], error: BaseException) -> None:
        for member in members:
            step.failed[member] = error
            self.drop(member)

    def tested(self, member: int) -> list[EpochRecord]:
        """Return a member's records with test metrics: of its best validation epochs and its last ones."""
        found: list[EpochRecord] = []
        level = self.levels[member]
        of_trunk: dict[str, Any] = {"level": level}
        for seed in self.seeds[member]:
            run = self.runs.get((member, seed))
            if run is not None:
                found += run.tested()
            else:
                found += [replace(record, **of_trunk) for record in self.trunks.of(seed).tested()]
        return found
