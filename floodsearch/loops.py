"""Training loops and scripts of the user's own, as what trains the tickets of a study: one run at a time.

Each run of a bracket is trained up to the next rung, all seeds of a level and then those of the next, and
goes on from its checkpoint when the pruner has decided: successive halving with one model in memory at a
time. A loop that never calls `run.restore` has no state to go on from. Its runs are trained to their ends at
once, and nothing is pruned. A script starts again instead, so that nothing is paused that nobody judges.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from floodsearch.catalog import find_loop, find_program, loop_settings
from floodsearch.heart import Leave, Settings
from floodsearch.queue import Ticket
from floodsearch.records import EpochRecord, Parameter
from floodsearch.spec import Spec
from floodsearch.storage.studies import StoredStudy
from floodsearch.trainer import first_choices, plan_of
from floodsearch.training.checkpoint import Checkpoint, Checkpoints, name_of
from floodsearch.training.cohort import Note, Step
from floodsearch.training.loop import PARTS, LoopRun, read_kept
from floodsearch.training.progress import Plan
from floodsearch.training.randomness import seed_everything
from floodsearch.training.script import Script

log = logging.getLogger("floodsearch.worker")

Loop = Callable[[LoopRun], object]


class Loops:
    """Makes members that a loop or a command of the user's own trains.

    Args:
        spec: of the study, which names the function or the command.
        device: where it trains.
        settings: of the worker.
        leave: why the worker may be asked to leave; a loop is asked at the end of an epoch, a script at once.

    Attributes:
        starts_again: whether a run that was paused begins at its first epoch.

    Raises:
        TaskError: if the function cannot be imported, or the command's program is not there.
    """

    def __init__(self, spec: Spec, device: torch.device, settings: Settings, leave: Leave) -> None:
        self.starts_again = spec.command is not None
        if spec.command is not None:
            find_program(spec.command, settings.folders)
            outputs = settings.logs / spec.name
            self.loop: Loop = Script(spec.command, outputs, leave.wanted.is_set, settings.folders)
        elif spec.objective is not None:
            self.loop = find_loop(spec.objective)
        else:
            raise ValueError(f"study {spec.name!r} trains the task {spec.task!r}, not a loop")
        self.device, self.settings = device, settings
        self._said: set[str] = set()
        if device.type == "cuda":
            torch.cuda.set_device(device)  # where `.cuda()` of the user's own goes

    def __call__(
        self, study: StoredStudy, tickets: Sequence[Ticket], seeds: Mapping[int, Sequence[int]]
    ) -> LoopMembers:
        """Return the members of tickets that differ in level only."""
        levels = {ticket.number: ticket.level for ticket in tickets}
        return self._members(study, levels, seeds, tickets[0].beside, tickets[0].epochs)

    def unflooded(self, study: StoredStudy, seed: int) -> LoopMembers:
        """Return what trains the run of a seed at level 0; the first ticket goes on from its checkpoint."""
        return self._members(
            study, {0: 0.0}, {0: [seed]}, first_choices(study.spec), study.spec.training.epochs
        )

    def _members(
        self,
        study: StoredStudy,
        levels: Mapping[int, float],
        seeds: Mapping[int, Sequence[int]],
        beside: Mapping[str, Parameter],
        epochs: int,
    ) -> LoopMembers:
        settings = loop_settings(study.spec, beside)
        kept = Checkpoints(self.settings.files(study))

        def checkpoint(member: int, seed: int) -> Checkpoint:
            of = {"study": study.uuid, "level": levels[member], "epochs": epochs, "settings": settings}
            return kept.of(name_of(member, seed), of)

        return LoopMembers(
            self,
            plan_of(study.spec, beside, epochs),
            levels=levels,
            seeds=seeds,
            settings=settings,
            checkpoint=checkpoint,
            highest=study.spec.stand_in().levels.highest,
        )

    def call(self, run: LoopRun) -> BaseException | None:
        """Train a part of a run; return what was wrong with it, or None.

        Raises:
            BaseException: what was raised while an epoch was noted.
        """
        # Also before a part that goes on, so that what the function makes first is the same again.
        seed_everything(run.seed, self.device)
        error: BaseException | None = None
        try:
            self.loop(run)
        except (Exception, SystemExit) as raised:  # a user's code may do anything
            error = raised
        if run.interrupted is not None:
            raise run.interrupted
        return run.outcome(error)

    def warn_once(self, mistake: str, message: str) -> None:
        """Log a mistake that a worker is to say once, however often it comes to it."""
        if mistake not in self._said:
            self._said.add(mistake)
            log.warning(message)


class LoopMembers:
    """Members, each a level with a run per seed, that are trained one run after the other.

    Args:
        loops: what calls the user's function.
        plan: of all runs.
        levels: by member, in the unit of the user's loss.
        seeds: by member, those of its runs.
        settings: of all runs.
        checkpoint: (member, seed) to the checkpoint of that run.
        highest: level of the study.
    """

    def __init__(
        self,
        loops: Loops,
        plan: Plan,
        *,
        levels: Mapping[int, float],
        seeds: Mapping[int, Sequence[int]],
        settings: Mapping[str, Any],
        checkpoint: Callable[[int, int], Checkpoint],
        highest: float,
    ) -> None:
        self.loops, self.plan, self.settings, self.checkpoint = loops, plan, settings, checkpoint
        self.highest = highest
        self.levels = dict(levels)
        self.seeds = {member: tuple(seeds[member]) for member in levels}
        self._reached: dict[tuple[int, int], int] = {}  # the epoch to which a run is known to be trained
        self._flooded: dict[int, int] = {}  # in which epoch of any of its runs a member first did
        self._until = 0  # the epoch up to which all are trained now; a run that goes on may be further
        self._training: tuple[int, LoopRun] | None = None

    def forked(self, member: int) -> bool:
        """Return whether a batch loss of a member has been below its level, or may have been."""
        return self._flooded.get(member, math.inf) <= self._until

    def drop(self, member: int) -> None:
        """Train a member no further."""
        self.levels.pop(member, None)
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
                return run.weights
        saved = self.checkpoint(member, seed).load(*PARTS)
        if saved is None or saved["epoch"] < self.plan.epochs:
            return None
        kept = read_kept(saved, self.plan)
        return None if kept is None else kept["weights"]

    def train(self, until: int, note: Note) -> bool:
        """Train each run up to an epoch, one after the other; return whether all are there.

        A script that starts again when it goes on is not paused where nobody judges: at level 0, and alone.
        """
        self._until = until
        return all(
            self._reach(member, seed, self._pause(member, until), note)
            for member in tuple(self.levels)
            for seed in self.seeds[member]
        )

    def _pause(self, member: int, until: int) -> int:
        judged = self.levels.get(member, 0) > 0 and sum(level > 0 for level in self.levels.values()) > 1
        return until if judged or not self.loops.starts_again else self.plan.epochs

    def _reach(self, member: int, seed: int, until: int, note: Note) -> bool:
        """Train a run up to an epoch, from its checkpoint; return whether to go on with others."""
        known = self._reached.get((member, seed), 0)
        if member not in self.levels or known >= until:
            return True
        checkpoint = self.checkpoint(member, seed)
        saved = checkpoint.load(*PARTS)
        if saved is not None and saved["epoch"] > known:
            self._reached[member, seed] = saved["epoch"]
            if not self._note(member, seed, saved["records"], note, trained=0):
                return False
            if member not in self.levels or saved["epoch"] >= until:
                return True
        run = LoopRun(
            self.plan,
            name=name_of(member, seed),
            level=self.levels[member],
            seed=seed,
            device=self.loops.device,
            settings=self.settings,
            until=until,
            note=lambda record: self._note(member, seed, [record], note, trained=1),
            checkpoint=checkpoint,
            saved=saved,
        )
        self._training = member, run
        try:
            error = self.loops.call(run)
        finally:
            self._training = None
        trained_from = 0 if saved is None else saved["epoch"]
        if run.repeated and not note(Step(trained=run.repeated)):
            run.leave()
        if error is not None:
            if run.epoch <= trained_from:  # not one epoch could be trained from it
                checkpoint.remove()
            self.drop(member)
            return note(Step(failed={member: error}))
        if run.can_pause or run.epoch == run.length:
            self._reached[member, seed] = run.epoch
        if run.epoch > trained_from:
            self._warn(member, run)
        return run.goes_on

    def _note(self, member: int, seed: int, records: list[EpochRecord], note: Note, *, trained: int) -> bool:
        """Take in epochs of a run, and let them be noted."""
        for record in records:
            if record.flooded is None or record.flooded > 0:
                self._flooded[member] = min(record.epoch, self._flooded.get(member, record.epoch))
        return note(Step(records={member: records}, trained=trained))

    def _warn(self, member: int, run: LoopRun) -> None:
        if not run.can_pause:
            self.loops.warn_once(
                "no restore",
                "the loop never calls run.restore(), so that its runs cannot pause at a rung: "
                "each is trained to its end, and nothing is pruned",
            )
        if self.loops.starts_again:
            return  # what a script floods is not seen
        if self.plan.keep != "none" and not run.has_weights:
            self.loops.warn_once(
                "no weights",
                f'no weights are kept, although keep = "{self.plan.keep}" asks for them: the loop does not '
                "say what they are; write: run.restore(model=model, ...)",
            )
        if run.level > 0 and math.isinf(run.lowest):
            self.loops.warn_once(
                "no flood",
                "nothing was flooded at a level above 0, as the loop never called run.flood(); "
                "write: loss = run.flood(criterion(model(x), y))",
            )
        elif run.level >= self.highest / 2 and member not in self._flooded and run.epoch == run.length:
            self.loops.warn_once(
                "nothing flooded",
                f"nothing was flooded at level {run.level:g}, nor will be at lower ones: the lowest loss "
                f"that run.flood() was given is {run.lowest:.4g}; if that is a sum, give it the mean over "
                "the batch, else train longer or raise levels.high",
            )
