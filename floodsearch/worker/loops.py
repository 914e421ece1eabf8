"""Training loops and scripts of the user's own, as what trains the tickets of a study: one run at a time.

Each run of a bracket is trained up to the next rung, all seeds of a level and then those of the next, and
goes on from its checkpoint when the pruner has decided: successive halving with one model in memory at a
time. A loop that never calls `run.restore` has no state to go on from. Its runs are trained to their ends at
once, and nothing is pruned. A script starts again instead, so that nothing is paused that nobody judges.
Level 0 goes to its end first where nothing had flooded at a rung: it tells whether a level ever will.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from floodsearch.artifacts.checkpoint import Checkpoint, Checkpoints
from floodsearch.artifacts.names import name_of
from floodsearch.catalog import command_of, judge_of, loop_of, loop_settings
from floodsearch.errors import MistakeError, pass_on_ctrl_c
from floodsearch.records import EpochRecord, Parameter
from floodsearch.storage.notices import warn
from floodsearch.storage.studies import StoredStudy
from floodsearch.study.trust import TrustedSpec
from floodsearch.training.cohort import Note, Step
from floodsearch.training.independence import Comparison, Finding, Owners, RunKey, Shown
from floodsearch.training.loop import PARTS, LoopRun, read_kept
from floodsearch.training.progress import Plan
from floodsearch.training.randomness import seed_everything
from floodsearch.training.script import Script
from floodsearch.worker.leave import LeaveRequest
from floodsearch.worker.settings import WorkerSettings
from floodsearch.worker.trainers import Group, plan_of

FIRST_EPOCHS, FIRST_SHARE = 3, 0.1
"""A loop that floods nothing in so many epochs, or in this share of them if that is more, never does."""

Loop = Callable[[LoopRun], object]


class Loops:
    """Makes members that a loop or a command of the user's own trains.

    Args:
        trusted: what the study names, a function or a command.
        device: where it trains.
        settings: of the worker.
        leave: why the worker may be asked to leave; a loop is asked at the end of an epoch, a script at once.

    Attributes:
        starts_again: whether a run that was paused begins at its first epoch.

    Raises:
        TaskError: if the function cannot be imported, or the command's program is not there.
    """

    def __init__(
        self, trusted: TrustedSpec, device: torch.device, settings: WorkerSettings, leave: LeaveRequest
    ) -> None:
        spec = trusted.spec
        self.starts_again = spec.command is not None
        if spec.command is not None:
            command, outputs = command_of(trusted, settings.folders), settings.logs / spec.name
            self.loop: Loop = Script(command, outputs, leave.wanted.is_set, settings.folders)
        else:
            self.loop = loop_of(trusted)
        self.device, self.settings = device, settings
        self.comparison, self.owners = Comparison(device), Owners()
        self._said: set[str] = set()
        if device.type == "cuda":
            torch.cuda.set_device(device)  # where `.cuda()` of the user's own goes

    def __call__(self, group: Group) -> LoopMembers:
        """Return the members of tickets that differ in level only."""
        study, settings = group.study, loop_settings(group.study.trusted, group.beside)
        kept = Checkpoints(self.settings.files(study))

        def checkpoint(member: int, seed: int) -> Checkpoint:
            level = group.levels[member]
            of = {"study": study.uuid, "level": level, "epochs": group.epochs, "settings": settings}
            return kept.of(name_of(member, seed), of)

        return LoopMembers(
            self,
            plan_of(study.spec, group.beside, group.epochs),
            levels=group.levels,
            seeds=group.seeds,
            study=study,
            beside=group.beside,
            checkpoint=checkpoint,
        )

    def unflooded(self, study: StoredStudy, seed: int) -> LoopMembers:
        """Return what trains the run of a seed at level 0; the first ticket goes on from its checkpoint."""
        return self(Group.unflooded(study, seed))

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
        except BaseException as raised:  # a user's code may do anything
            pass_on_ctrl_c(raised)
            error = raised
        if run.interrupted is not None:
            raise run.interrupted
        return run.outcome(error)

    def warn_once(self, study: StoredStudy, kind: str, message: str) -> None:
        """Warn of something that the study is to say once, however often a worker comes to it."""
        if kind not in self._said:
            self._said.add(kind)
            warn(study, kind, message)

    def made_outside(self) -> list[str]:
        """Return the names of what the function's module trains but does not make for each run."""
        known = getattr(inspect.unwrap(self.loop), "__globals__", {})
        return [
            name for name, one in known.items() if isinstance(one, torch.optim.Optimizer) or _is_trained(one)
        ]


def _is_trained(one: object) -> bool:
    return isinstance(one, torch.nn.Module) and any(part.requires_grad for part in one.parameters())


class LoopMembers:
    """Members, each a level with a run per seed, that are trained one run after the other.

    Args:
        loops: what calls the user's function.
        plan: of all runs.
        levels: by member, in the unit of the user's loss.
        seeds: by member, those of its runs.
        study: whose they are.
        beside: what they have beside the level.
        checkpoint: (member, seed) to the checkpoint of that run.
    """

    def __init__(
        self,
        loops: Loops,
        plan: Plan,
        *,
        levels: Mapping[int, float],
        seeds: Mapping[int, Sequence[int]],
        study: StoredStudy,
        beside: Mapping[str, Parameter],
        checkpoint: Callable[[int, int], Checkpoint],
    ) -> None:
        self.loops, self.plan, self.study, self.checkpoint = loops, plan, study, checkpoint
        self.beside, self.settings = frozenset(beside.items()), loop_settings(study.trusted, beside)
        self.highest = study.spec.stand_in().levels.highest
        self.levels = dict(levels)
        self.seeds = {member: tuple(seeds[member]) for member in levels}
        self._reached: dict[tuple[int, int], int] = {}  # the epoch to which a run is known to be trained
        self._flooded: dict[int, int] = {}  # in which epoch of any of its runs a member first did
        self._lowest: dict[tuple[int, int], float] = {}  # batch loss of a run that is at its end
        self._idle: dict[int, set[int]] = {}  # the seeds of a member whose runs are those of level 0
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
        nothing_flooded = self._until > 0 and not any(map(self.forked, self.levels))
        if self._until > 0 and self.loops.starts_again and not self._probe(note):
            return False
        self._until = until
        return all(
            self._reach(member, seed, self._pause(member, until, nothing_flooded), note)
            for member in tuple(self.levels)
            for seed in self.seeds[member]
        )

    def _probe(self, note: Note) -> bool:
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
        key = RunKey(self.beside, self.plan.epochs, self.levels.get(member, 0.0), seed)
        return self.loops.comparison.differs(key) is False

    def _pause(self, member: int, until: int, nothing_flooded: bool) -> int:
        """Return the epoch up to which a member is trained now, if all are wanted up to some epoch."""
        level = self.levels.get(member, 0)
        judged = level > 0 and sum(level > 0 for level in self.levels.values()) > 1
        to_its_end = (self.loops.starts_again and not judged) or (nothing_flooded and level == 0)
        return self.plan.epochs if to_its_end else until

    def _reach(self, member: int, seed: int, until: int, note: Note) -> bool:
        """Train a run up to an epoch, from its checkpoint; return whether to go on with others."""
        known = self._reached.get((member, seed), 0)
        if member not in self.levels or known >= until:
            return True
        checkpoint = self.checkpoint(member, seed)
        saved = checkpoint.load(*PARTS)
        if saved is not None and saved["epoch"] > known:
            self._reached[member, seed] = saved["epoch"]
            self._lowest[member, seed] = float(saved["lowest"])
            if not self._note(member, saved["records"], note):
                return False
            if member not in self.levels or saved["epoch"] >= until:
                return True
        key = RunKey(self.beside, self.plan.epochs, self.levels[member], seed)
        run = LoopRun(
            self.plan,
            name=name_of(member, seed),
            level=key.level,
            seed=seed,
            device=self.loops.device,
            settings=self.settings,
            until=until,
            note=lambda record: self._note_trained(member, key, record, note),
            checkpoint=checkpoint,
            saved=saved,
            claim=lambda name, one: self._claim(key, name, one),
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
            self._lowest[member, seed] = run.lowest
        if run.epoch > trained_from:
            self._warn(member, run)
        return run.goes_on

    def _note(self, member: int, records: list[EpochRecord], note: Note, *, trained: int = 0) -> bool:
        """Take in epochs of a run, and let them be noted."""
        for record in records:
            if record.flooded is None or record.flooded > 0:
                self._flooded[member] = min(record.epoch, self._flooded.get(member, record.epoch))
        return note(Step(records={member: records}, trained=trained))

    def _note_trained(self, member: int, key: RunKey, record: EpochRecord, note: Note) -> bool:
        """Take in an epoch that was trained just now; one that shows a mistake ends its run with that."""
        if self._training is None:
            raise RuntimeError("an epoch was reported while no run was trained")
        run = self._training[1]
        if (mistake := self._mistake(member, run, key, record)) is None:
            return self._note(member, [record], note, trained=1)
        run.refuse(MistakeError(mistake))
        note(Step(trained=1))
        return False

    def _mistake(self, member: int, run: LoopRun, key: RunKey, record: EpochRecord) -> str | None:
        """Return what the user's code does wrong, as far as an epoch shows it."""
        found = self.loops.comparison.note(key, Shown(record, run.losses))
        if found is None or (found.kind == "level not used" and not self.loops.starts_again):
            return self._without_flood(run, key)
        if found.kind == "not independent":
            return _not_independent(key, found, self.loops.made_outside())
        if found.kind == "seed not used":
            return _seed_not_used(key, found, command=self.loops.starts_again)
        if found.kind == "level not used":
            return self._level_not_used(member, key)
        self.loops.warn_once(self.study, "evaluation", _evaluation(key, found))
        return None

    def _without_flood(self, run: LoopRun, key: RunKey) -> str | None:
        """Return what is wrong with a run above level 0 that has flooded nothing, once that is no warm-up.

        One that is another run than that of level 0 floods by itself; until such a pair is there it may.
        """
        first = min(max(FIRST_EPOCHS, math.ceil(FIRST_SHARE * run.length)), run.until)
        if self.loops.starts_again or run.level == 0 or math.isfinite(run.lowest) or run.epoch < first:
            return None
        epochs = "1 epoch" if run.epoch == 1 else f"{run.epoch} epochs"
        message = (
            f"the loop has not called run.flood() in {epochs} at level {run.level:g}; "
            "write: loss = run.flood(criterion(model(x), y))"
        )
        if self.loops.comparison.differs(key) is False:
            return f"nothing is flooded: {message}"
        self.loops.warn_once(self.study, "no flood", message)
        return None

    def _level_not_used(self, member: int, key: RunKey) -> str | None:
        """Return what is wrong where the highest level gave the runs of level 0; warn at a lower one."""
        idle = self._idle.setdefault(member, set())
        idle.add(key.seed)
        if idle != set(self.seeds[member]):
            return None
        message = (
            f"level {key.level:g} gave the runs of level 0, to the last digit: let the command flood its "
            "loss at {level}, or raise levels.high above the lowest loss of a batch"
        )
        if key.level >= self.highest and not self.beside:
            return message
        if key.level >= self.highest / 2:
            self.loops.warn_once(self.study, "level not used", message)
        return None

    def _claim(self, key: RunKey, name: str, one: object) -> str | None:
        """Return what is wrong with an object as a part of a run's state: it is another run's."""
        if (owner := self.loops.owners.claim(one, key)) is None:
            return None
        return (
            f"run.restore() was given {name} of another run, seed {owner.seed} at level {owner.level:g}: "
            "make it inside of the function, so that each run begins anew"
        )

    def _warn(self, member: int, run: LoopRun) -> None:
        if not run.can_pause and judge_of(self.study.spec).rungs:
            self.loops.warn_once(
                self.study,
                "no restore",
                "the loop never calls run.restore(), so that its runs cannot pause at a rung: "
                "each is trained to its end, and nothing is pruned",
            )
        if self.loops.starts_again:
            return  # what a script floods is not seen
        if self.plan.keep != "none" and not run.has_weights:
            self.loops.warn_once(
                self.study,
                "no weights",
                f'no weights are kept, although keep = "{self.plan.keep}" asks for them: the loop does not '
                "say what they are; write: run.restore(model=model, ...)",
            )
        if run.level >= self.highest / 2 and member not in self._flooded and run.epoch == run.length:
            self.loops.warn_once(
                self.study,
                "nothing flooded",
                f"nothing was flooded at level {run.level:g}, nor will be at lower ones: the lowest loss "
                f"that run.flood() was given is {run.lowest:.4g}; if that is a sum, give it the mean over "
                "the batch, else train longer or raise levels.high",
            )


def _seed_not_used(key: RunKey, found: Finding, *, command: bool) -> str:
    gave = f"seed {found.other.seed} and seed {key.seed} gave the same run, to the last digit"
    if command:
        return f"{gave}: let the command seed by {{seed}} all that it draws, or write seeds = 1"
    return (
        f"{gave}: seed what the loop draws by run.seed, not by a number of its own as in "
        "torch.manual_seed(42), or write seeds = 1"
    )


def _not_independent(key: RunKey, found: Finding, outside: Sequence[str]) -> str:
    if outside:
        mend = f"make {' and '.join(outside)} inside of the function, they go on from run to run"
    else:
        mend = (
            "something goes on from run to run, or is drawn without run.seed; make the model inside of the "
            "function, and seed generators of your own by run.seed"
        )
    return (
        f"seed {key.seed} is another run at level {key.level:g} than at level {found.other.level:g}, before "
        f"either floods ({found.where}): {mend}; then give the study another name: its levels were trained so"
    )


def _evaluation(key: RunKey, found: Finding) -> str:
    return (
        f"the same weights were evaluated twice, with seed {key.seed} at levels {found.other.level:g} and "
        f"{key.level:g}, and gave other numbers ({found.where}): seed what the evaluation draws by run.seed, "
        "so that levels are compared in pairs"
    )
