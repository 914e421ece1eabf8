"""What a training loop or a script of the user's own does wrong, found out from the runs that it trains.

A mistake ends its run, in words that say what to change; what may be meant is a warning of the study, once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from floodsearch.catalog import judge_of
from floodsearch.records import EpochRecord, Parameter
from floodsearch.storage.notices import warn
from floodsearch.storage.studies import StoredStudy
from floodsearch.training.independence import Comparison, Finding, Owners, RunKey, Shown
from floodsearch.training.loop import LoopRun
from floodsearch.training.progress import RunPlan

DROPPED = (
    "although run.flood() was called: go on with what it returns, "
    "loss = run.flood(loss) before loss.backward()"
)
"""What to do where the flooded loss is not what is trained."""
FIRST_EPOCHS, FIRST_SHARE = 3, 0.1
"""A loop that floods nothing in so many epochs, or in this share of them if that is more, never does."""


@dataclass
class Seen:
    """All that is kept of the runs of a process, to compare later ones with.

    Args:
        comparison: of their numbers with each other.
        owners: which run each object was given to.
        said: kinds of warnings that the study has been given already.
    """

    comparison: Comparison
    owners: Owners = field(default_factory=Owners)
    said: set[str] = field(default_factory=set)


class MistakeFinder:
    """Looks at the runs of tickets that differ in level only.

    Args:
        seen: of all runs of this process.
        study: whose they are.
        plan: of the runs.
        beside: what they have beside the level.
        seeds: by ticket, those of its runs.
        outside: gives the names of what the user's module trains, but does not make for each run.
        command: whether it is a script, whose batches are not seen.
    """

    def __init__(
        self,
        seen: Seen,
        study: StoredStudy,
        plan: RunPlan,
        *,
        beside: Mapping[str, Parameter],
        seeds: Mapping[int, Sequence[int]],
        outside: Callable[[], list[str]],
        command: bool,
    ) -> None:
        self.seen, self.study, self.plan = seen, study, plan
        self.beside, self.seeds = frozenset(beside.items()), seeds
        self.outside, self.command = outside, command
        self.highest = study.spec.stand_in().levels.highest
        self._idle: dict[int, set[int]] = {}  # the seeds of a ticket whose runs are those of level 0

    def key(self, level: float, seed: int) -> RunKey:
        """Return the key by which a run is compared with the others of the study."""
        return RunKey(self.beside, self.plan.epochs, level, seed)

    def same_as_another(self, key: RunKey) -> bool:
        """Return whether all numbers of a run are those of one of its seed whose level is another."""
        return self.seen.comparison.differs(key) is False

    def in_epoch(self, member: int, run: LoopRun, key: RunKey, record: EpochRecord) -> str | None:
        """Return the mistake that an epoch shows in the user's code, as a message; None if it shows none."""
        found = self.seen.comparison.note(key, Shown(record, run.losses))
        return self._told(member, run, key, found)

    def at_end(self, member: int, run: LoopRun, key: RunKey) -> str | None:
        """Return the mistake that a run shows that has ended before its last epoch; None if it shows none."""
        return self._told(member, run, key, self.seen.comparison.end(key))

    def _told(self, member: int, run: LoopRun, key: RunKey, found: Finding | None) -> str | None:
        """Return a finding as a message, if it is a mistake; one that may be meant is a warning."""
        if found is None or (found.kind == "level not used" and not self.command):
            return self._without_flood(run, key)
        if found.kind == "not independent":
            return _not_independent(key, found, self.outside())
        if found.kind == "seed not used":
            return _seed_not_used(key, found, command=self.command)
        if found.kind == "level not used":
            return self._level_not_used(member, key)
        self._warn_once("evaluation", _evaluation(key, found))
        return None

    def _without_flood(self, run: LoopRun, key: RunKey) -> str | None:
        """Return a message where a run above level 0 has flooded nothing, and its warm-up must be over.

        One that is another run than that of level 0 floods by itself; until such a pair is there it may.
        """
        if self.seen.comparison.is_unmoved(key):
            return f"level {key.level:g} gave the run of level 0, to the last digit, {DROPPED}"
        first = min(max(FIRST_EPOCHS, math.ceil(FIRST_SHARE * run.length)), run.until)
        early = run.epoch < first and not run.ended
        if self.command or run.level == 0 or math.isfinite(run.lowest) or early:
            return None
        epochs = "1 epoch" if run.epoch == 1 else f"{run.epoch} epochs"
        message = (
            f"the loop has not called run.flood() in {epochs} at level {run.level:g}; "
            "write: loss = run.flood(criterion(model(x), y))"
        )
        if self.seen.comparison.differs(key) is False:
            return f"nothing is flooded: {message}"
        self._warn_once("no flood", message)
        return None

    def _level_not_used(self, member: int, key: RunKey) -> str | None:
        """Return a message where the highest level gave the runs of level 0; warn where a lower one did."""
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
            self._warn_once("level not used", message)
        return None

    def in_object(self, key: RunKey, name: str, one: object) -> str | None:
        """Return a message where an object of a run's state is a part of another run's; else None."""
        if (owner := self.seen.owners.claim(one, key)) is None:
            return None
        return of_another_run(name, owner)

    def warn_of(self, run: LoopRun, *, flooded: bool) -> None:
        """Warn of what a part of a run shows that may be meant; `flooded` is whether its level ever has."""
        if not run.can_pause and judge_of(self.study.spec).rungs:
            self._warn_once(
                "no restore",
                "the loop never calls run.restore(), so that its runs cannot pause at a rung: "
                "each is trained to its end, and nothing is pruned",
            )
        if self.command:
            return  # what a script floods is not seen
        if self.plan.keep != "none" and not run.memory.has_weights:
            self._warn_once(
                "no weights",
                f'no weights are kept, although keep = "{self.plan.keep}" asks for them: the loop does not '
                "say what they are; write: run.restore(model=model, ...)",
            )
        if run.level >= self.highest / 2 and not flooded and (run.ended or run.epoch == run.length):
            self._warn_once(
                "nothing flooded",
                f"nothing was flooded at level {run.level:g}, nor will be at lower ones: the lowest loss "
                f"that run.flood() was given is {run.lowest:.4g}; if that is a sum, give it the mean over "
                "the batch, else train longer or raise levels.high",
            )

    def _warn_once(self, kind: str, message: str) -> None:
        """Warn of something that the study is to say once, however often a worker comes to it."""
        if kind not in self.seen.said:
            self.seen.said.add(kind)
            warn(self.study, kind, message)


def of_another_run(name: str, owner: RunKey) -> str:
    """Return a message for an object of a run's state that is a part of another run's."""
    return (
        f"run.restore() was given {name} of another run, seed {owner.seed} at level {owner.level:g}: "
        "make it inside of the function, so that each run begins anew"
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
