"""The runs of a loop or a script of the user's own, trained one at a time.

Each run of a bracket is trained up to the next rung, all seeds of a level and then those of the next, and
goes on from its checkpoint when the pruner has decided: successive halving with one model in memory at a
time. A loop that never calls `run.restore` has no state to go on from. Its runs are trained to their ends at
once, and nothing is pruned. The process of a script is stopped where it pauses, or starts again, so that
nothing is paused that nobody judges.
Level 0 goes to its end first where nothing had flooded at a rung: it tells whether a level ever will.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from floodsearch.artifacts.checkpoint import Checkpoint
from floodsearch.artifacts.names import name_of
from floodsearch.errors import MistakeError
from floodsearch.records import EpochRecord
from floodsearch.training.cohort import EpochOutcome, OnEpoch
from floodsearch.training.independence import RunKey
from floodsearch.training.loop import ForScript, LoopRun
from floodsearch.training.loop_state import PARTS, has_ended, read_kept
from floodsearch.training.progress import RunPlan
from floodsearch.worker.mistakes import MistakeFinder


class LoopMembers:
    """Members, each a level with a run per seed, that are trained one run after the other.

    Args:
        call: trains a part of a run by the user's function; returns what was wrong with it, or None.
        plan: of all runs.
        levels: by member, in the unit of the user's loss.
        seeds: by member, those of its runs.
        device: where they train.
        settings: what the user's function is handed.
        checkpoint: (member, seed) to the checkpoint of that run.
        mistakes: looks at what the runs show.
        for_script: (member, seed, how many levels are judged at a rung, that rung) to what a script has to
            know of a run; None for a loop.
        end: ends what is kept in memory of the runs of a member, given their seeds.
    """

    def __init__(
        self,
        call: Callable[[LoopRun], BaseException | None],
        plan: RunPlan,
        *,
        levels: Mapping[int, float],
        seeds: Mapping[int, Sequence[int]],
        device: torch.device,
        settings: Mapping[str, Any],
        checkpoint: Callable[[int, int], Checkpoint],
        mistakes: MistakeFinder,
        for_script: Callable[[int, int, int, int], ForScript] | None,
        end: Callable[[int, Sequence[int]], None],
    ) -> None:
        self.call, self.plan, self.device, self.settings = call, plan, device, settings
        self.checkpoint, self.mistakes, self.for_script, self.end = checkpoint, mistakes, for_script, end
        self.levels = dict(levels)
        self.seeds = {member: tuple(seeds[member]) for member in levels}
        self._reached: dict[tuple[int, int], int] = {}  # how far a run is known to be; to its end if it ended
        self._flooded: dict[int, int] = {}  # in which epoch of any of its runs a member first did
        self._lowest: dict[tuple[int, int], float] = {}  # batch loss of a run that is at its end
        self._until = 0  # the epoch up to which all are trained now; a run that goes on may be further
        self._training: tuple[int, LoopRun] | None = None

    def forked(self, member: int) -> bool:
        """Return whether a batch loss of a member has been below its level, or may have been."""
        return self._flooded.get(member, math.inf) <= self._until

    def lowest(self, member: int, seed: int) -> float | None:
        """Return the lowest loss of a batch of a complete run; None if nobody has seen its batches."""
        lowest = self._lowest.get((member, seed), math.inf)
        if self._training is not None and (self._training[0], self._training[1].seed) == (member, seed):
            lowest = self._training[1].lowest
        return lowest if math.isfinite(lowest) else None

    def drop(self, member: int) -> None:
        """Train a member no further."""
        self.levels.pop(member, None)
        self.end(member, self.seeds.get(member, ()))
        if self._training is not None and self._training[0] == member:
            self._training[1].wanted = False

    def tested(self, member: int) -> list[EpochRecord]:
        """Return no records: the loop has reported its own tests."""
        del member
        return []

    def weights(self, member: int, seed: int) -> Mapping[str, Any] | None:
        """Return the weights that the plan keeps of a complete run; None if they are not here."""
        if self._training is not None:
            number, run = self._training
            if (number, run.seed) == (member, seed):
                return run.memory.weights
        saved = self.checkpoint(member, seed).load(*PARTS)
        if saved is None or self._reaches(saved) < self.plan.epochs:
            return None
        kept = read_kept(saved, self.plan)
        return None if kept is None else kept["weights"]

    def train(self, until: int, note: OnEpoch) -> bool:
        """Train each run up to an epoch, one after the other; return whether all are there.

        A script is not paused where nobody judges: at level 0, and alone.
        """
        nothing_flooded = self._until > 0 and not any(map(self.forked, self.levels))
        if self._until > 0 and self.for_script is not None and not self._probe(note):
            return False
        self._until = until
        return all(
            self._reach(member, seed, self._pause(member, until, nothing_flooded), note)
            for member in tuple(self.levels)
            for seed in self.seeds[member]
        )

    def _probe(self, note: OnEpoch) -> bool:
        """Train the highest level of a script on where no level has changed a number yet: none may ever do.

        Seed by seed, until one changes a number, so that it is judged with the others if it does. Return
        whether to go on with others.
        """
        above = {member: level for member, level in self.levels.items() if level > 0}
        if not above or not all(self._as_level_0(one, seed) for one in above for seed in self.seeds[one]):
            return True
        highest = max(above, key=lambda member: above[member])
        for seed in self.seeds[highest]:
            if not self._reach(highest, seed, self.plan.epochs, note):
                return False
            if not self._as_level_0(highest, seed):
                break
        return True

    def _as_level_0(self, member: int, seed: int) -> bool:
        """Return whether all numbers of a run are those of one of its seed whose level is another."""
        return self.mistakes.same_as_another(self.mistakes.key(self.levels.get(member, 0.0), seed))

    def _pause(self, member: int, until: int, nothing_flooded: bool) -> int:
        """Return the epoch up to which a member is trained now, if all are wanted up to some epoch."""
        level = self.levels.get(member, 0)
        judged = level > 0 and self._judged > 1
        to_its_end = (self.for_script is not None and not judged) or (nothing_flooded and level == 0)
        return self.plan.epochs if to_its_end else until

    @property
    def _judged(self) -> int:
        """How many members are compared at a rung."""
        return sum(level > 0 for level in self.levels.values())

    def _reach(self, member: int, seed: int, until: int, note: OnEpoch) -> bool:
        """Train a run up to an epoch, from its checkpoint; return whether to go on with others."""
        known = self._reached.get((member, seed), 0)
        if member not in self.levels or known >= until:
            return True
        checkpoint = self.checkpoint(member, seed)
        saved = checkpoint.load(*PARTS)
        if saved is not None and self._reaches(saved) > known:
            self._reached[member, seed] = self._reaches(saved)
            self._lowest[member, seed] = float(saved["lowest"])
            ended = {member: seed} if has_ended(saved) else {}
            if not self._note(member, saved["records"], note, ended=ended):
                return False
            if member not in self.levels or self._reached[member, seed] >= until:
                return True
        key = self.mistakes.key(self.levels[member], seed)
        run = LoopRun(
            self.plan,
            name=name_of(member, seed),
            level=key.level,
            seed=seed,
            device=self.device,
            settings=self.settings,
            until=until,
            note=lambda record: self._note_trained(member, key, record, note),
            checkpoint=checkpoint,
            saved=saved,
            claim=lambda name, one: self.mistakes.in_object(key, name, one),
            script=ForScript()
            if self.for_script is None
            else self.for_script(member, seed, self._judged, until),
        )
        self._training = member, run
        try:
            error = self.call(run)
        finally:
            self._training = None
        if run.ended and (mistake := self.mistakes.at_end(member, run, key)) is not None:
            error = MistakeError(mistake)
        trained_from = 0 if saved is None else saved["epoch"]
        if run.repeated and not note(EpochOutcome(trained=run.repeated)):
            run.leave()
        if error is not None:
            if run.epoch <= trained_from:  # not one epoch could be trained from it
                checkpoint.remove()
            self.drop(member)
            return note(EpochOutcome(failed={member: error}))
        if run.can_pause or run.ended or run.epoch == run.length:
            self._reached[member, seed] = run.length if run.ended else run.epoch
            self._lowest[member, seed] = run.lowest
        if run.epoch > trained_from:
            self.mistakes.warn_of(run, flooded=member in self._flooded)
        if run.ended and not self._note(member, [run.memory.last], note, ended={member: seed}):
            run.leave()
        return run.goes_on

    def _reaches(self, saved: Mapping[str, Any]) -> int:
        """Return the epoch up to which a checkpoint's run is known: the plan's last if it has ended."""
        return self.plan.epochs if has_ended(saved) else int(saved["epoch"])

    def _note(
        self,
        member: int,
        records: list[EpochRecord],
        note: OnEpoch,
        *,
        trained: int = 0,
        ended: Mapping[int, int] | None = None,
    ) -> bool:
        """Take in epochs of a run, and let them be noted."""
        for record in records:
            if record.flooded is None or record.flooded > 0:
                self._flooded[member] = min(record.epoch, self._flooded.get(member, record.epoch))
        return note(EpochOutcome(records={member: records}, trained=trained, ended=ended or {}))

    def _note_trained(self, member: int, key: RunKey, record: EpochRecord, note: OnEpoch) -> bool:
        """Take in an epoch that was trained just now; one that shows a mistake ends its run with that."""
        if self._training is None:
            raise RuntimeError("an epoch was reported while no run was trained")
        run = self._training[1]
        trained = 0 if run.remembered else 1
        if (mistake := self.mistakes.in_epoch(member, run, key, record)) is None:
            return self._note(member, [record], note, trained=trained)
        run.refuse(MistakeError(mistake))
        note(EpochOutcome(trained=trained))
        return False
