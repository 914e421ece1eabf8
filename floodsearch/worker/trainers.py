"""What trains the tickets of a study in this process: cohorts, one after the other, on trunks that last."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from floodsearch import queue
from floodsearch.artifacts.checkpoint import Checkpoint, Checkpoints
from floodsearch.artifacts.files import files_at
from floodsearch.artifacts.names import name_of, trunk_name
from floodsearch.catalog import judge_of, schedule_settings, task_of
from floodsearch.errors import pass_on_ctrl_c
from floodsearch.queue import Ticket
from floodsearch.records import EpochRecord, Parameter
from floodsearch.search.space import Space
from floodsearch.storage.notices import warn
from floodsearch.storage.studies import StoredStudy
from floodsearch.study.section import AUTO
from floodsearch.study.spec import Spec
from floodsearch.study.trust import TrustedSpec
from floodsearch.tasks.task import Task
from floodsearch.training.cohort import Cohort, OnEpoch
from floodsearch.training.engine import Engine
from floodsearch.training.progress import RunPlan
from floodsearch.training.sequential import Sequential
from floodsearch.training.stack import Stack
from floodsearch.training.stackable import depends_on_place, obstacle
from floodsearch.training.trunk import CheckpointOf, TrunkPool

FEWEST_STACKED = 3
"""Runs from which on a stack pays on a GPU: its step takes as long as 2.6 of single runs, however few of its
places are taken (an H200, five layers of 500 units)."""
CONVOLUTIONS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
ROOM = 2**30
"""Bytes for the past of all trunks together, from which later cohorts fork."""

log = logging.getLogger(__name__)


class Members(Protocol):
    """Trains the members of a bracket, named by their tickets: together, or one after the other."""

    def train(self, until: int, note: OnEpoch) -> bool:
        """Train all members up to an epoch, unless they are there; return whether they are.

        `note` takes in each step as soon as it is trained. When it wants no more, training ends where it is.
        """

    def forked(self, member: int) -> bool:
        """Return whether a member's level has begun to matter."""

    def lowest(self, member: int, seed: int) -> float | None:
        """Return the lowest loss of a batch of a run that is at its end; None if that is not known.

        It is asked for to see whether a level can flood, so that of a run that has flooded it may be None.
        """

    def drop(self, member: int) -> None:
        """Train a member no further."""

    def tested(self, member: int) -> list[EpochRecord]:
        """Return a member's records with test metrics."""

    def weights(self, member: int, seed: int) -> Mapping[str, Any] | None:
        """Return the weights that the plan keeps of a complete run; None if they are not here."""


@dataclass(frozen=True)
class Group:
    """Tickets of a study that differ in level only, and what of them is to be trained.

    Args:
        study: with its spec as of when they were taken.
        levels: by ticket, in the unit of the loss.
        seeds: by ticket, of the runs that are to be trained.
        beside: the parameters that they have beside the level.
        epochs: how long each run is.
    """

    study: StoredStudy
    levels: Mapping[int, float]
    seeds: Mapping[int, Sequence[int]]
    beside: Mapping[str, Parameter]
    epochs: int

    @classmethod
    def of(cls, tickets: Sequence[Ticket], seeds: Mapping[int, Sequence[int]]) -> Group:
        """Return the group of tickets that differ in level only, given the seeds to train of each."""
        first = tickets[0]
        levels = {ticket.number: ticket.level for ticket in tickets}
        return cls(first.study, levels, seeds, first.beside, first.epochs)

    @classmethod
    def unflooded(cls, study: StoredStudy, seed: int) -> Group:
        """Return the run of a seed at level 0, as if it were ticket 0, with the first of all choices."""
        return cls(study, {0: 0.0}, {0: (seed,)}, first_choices(study.spec), study.spec.training.epochs)


Trainer = Callable[[Group], Members]
"""Makes the members of a group, ready to be trained."""


class PilotTrainer(Protocol):
    """Trains the start of the unflooded runs, before there are tickets."""

    device: torch.device

    def unflooded(self, study: StoredStudy, seed: int) -> Members:
        """Return a trainer of the unflooded run of a seed, as member 0; the first ticket goes on from it."""


class CohortTrainer:
    """Makes cohorts, and keeps their trunks for those that come later.

    Args:
        device: where they train.
        checkpoints: the folder or URL of the checkpoints of all studies; None keeps none.
    """

    def __init__(self, device: torch.device, checkpoints: Path | str | None = None) -> None:
        self.device, self.checkpoints = device, checkpoints
        self._trunks: TrunkPool | None = None
        self._of: object = None  # which study, length, recipe and schedule these trunks are of

    def __call__(self, group: Group) -> Cohort:
        """Return the cohort of a group, whose runs are saved where there is a place for checkpoints."""
        trunks = self.trunks(group.study, group.beside, group.epochs)
        of = {"epochs": group.epochs, "beside": dict(group.beside), "engine": trunks.engine.kind}
        kept, levels = self._checkpoints(group.study, of), group.levels
        return self._cohort(
            group,
            trunks,
            last=queue.portions(group.study.spec) == 1,
            checkpoint=kept and (lambda member, seed: kept(name_of(member, seed), level=levels[member])),
        )

    def unflooded(self, study: StoredStudy, seed: int) -> Cohort:
        """Return the trunk of a seed as a cohort; later cohorts fork from it."""
        group = Group.unflooded(study, seed)
        return self._cohort(group, self.trunks(study, group.beside, group.epochs), last=False)

    def _cohort(
        self,
        group: Group,
        trunks: TrunkPool,
        *,
        last: bool,
        checkpoint: Callable[[int, int], Checkpoint] | None = None,
    ) -> Cohort:
        """Return a cohort; `last` says whether no later one forks from its trunks."""
        return Cohort(
            task_of(group.study.trusted, group.beside),
            plan_of(group.study.spec, group.beside, group.epochs),
            levels=group.levels,
            seeds=group.seeds,
            device=self.device,
            trunks=trunks,
            last=last,
            checkpoint=checkpoint,
        )

    def trunks(self, study: StoredStudy, beside: Mapping[str, Parameter], epochs: int) -> TrunkPool:
        """Return the trunks of a recipe: those of the last time, as far as they are the same runs."""
        spec = study.spec
        recipe = {name: value for name, value in beside.items() if name in spec.searched}
        # A trunk has no use for the settings of the schedule, but what starts beside it is of the same plan.
        key = study.uuid, epochs, recipe, schedule_settings(spec, beside)
        if self._trunks is None or self._of != key:
            room = ROOM // len(spec.training.seeds)
            engine = self._engine(study, beside, epochs)
            of = {"epochs": epochs, "recipe": recipe, "engine": engine.kind}
            self._trunks = TrunkPool(engine, room=room, checkpoint_of=self._of_trunks(study, of))
            self._of = key
        self._trunks.drop_broken()
        if spec.levels.high != AUTO:
            self._trunks.fork_above(min(level for level in Space.of(spec).candidates() if level > 0))
        return self._trunks

    def _checkpoints(self, study: StoredStudy, of: Mapping[str, Any]) -> Callable[..., Checkpoint] | None:
        """Return (name, more of the run) to the checkpoint of a run of a study; None without a place."""
        if self.checkpoints is None:
            return None
        every = Checkpoints(files_at(self.checkpoints).within(study.folder))
        return lambda name, **more: every.of(name, {"study": study.uuid, **of, **more})

    def _of_trunks(self, study: StoredStudy, of: Mapping[str, Any]) -> CheckpointOf | None:
        """Return (seed, epoch) to the checkpoint of a trunk; None without a place for checkpoints."""
        every = self._checkpoints(study, of)
        if every is None:
            return None
        digest = hashlib.sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()[:8]

        def kept(seed: int, epoch: int | None) -> Checkpoint:
            return every(trunk_name(digest, seed, epoch), seed=seed, epoch=epoch)

        return kept

    def _engine(self, study: StoredStudy, beside: Mapping[str, Parameter], epochs: int) -> Engine:
        """Return the engine of a study's runs; what it says of itself is a warning of the study."""
        spec = study.spec
        kind = study.engine or default_engine(study.trusted, self.device)
        task, plan = task_of(study.trusted, beside), plan_of(spec, beside, epochs)
        seed = spec.training.seeds[0]
        return engine_of(kind, task, plan, self.device, seed, lambda message: warn(study, "stack", message))


def engine_of(
    kind: str,
    task: Task,
    plan: RunPlan,
    device: torch.device,
    seed: int,
    say: Callable[[str], None] = log.info,
) -> Engine:
    """Return an engine, `loop` or `stack`; runs that cannot be stacked are trained one after the other."""
    if kind == "loop":
        return Sequential(task, plan, device)
    if (reason := obstacle(task, device, seed)) is not None:
        say(f"runs are trained one after the other, not as a stack: {reason}")
        return Sequential(task, plan, device)
    log.info("runs are trained as stacks")
    if depends_on_place(task, device, seed):
        say(
            "on this machine the last digits of a run depend on its place in a stack, so that results hold "
            'to rounding only; a study with training.engine = "loop" is exact'
        )
    return Stack(task, plan, device)


def default_engine(trusted: TrustedSpec, device: torch.device) -> str:
    """Return the engine of a study that leaves it open and whose first worker is on a device.

    A GPU waits for launches on models of matrices, if enough of them train together. Convolutions fill it by
    themselves, and a stack would compute its empty lanes too. A CPU gains on small models only, if many
    train.
    """
    spec = trusted.spec
    few = not judge_of(spec).together and len(spec.training.seeds) < FEWEST_STACKED
    if device.type != "cuda" or few or next(spec.arithmetic.problems("stack"), None) is not None:
        return "loop"
    try:
        model = task_of(trusted, first_choices(spec)).new_model()
    except BaseException as error:  # of code of the user's own, which fails its tickets with it
        pass_on_ctrl_c(error)
        return "loop"
    return "loop" if any(isinstance(part, CONVOLUTIONS) for part in model.modules()) else "stack"


def first_choices(spec: Spec) -> dict[str, Parameter]:
    """Return the first of all choices beside the level, where one has to stand for the others."""
    return {name: choices[0] for name, choices in spec.searched.items()}


def plan_of(spec: Spec, beside: Mapping[str, Parameter], epochs: int) -> RunPlan:
    """Return the plan of runs of some length, with what is searched beside the level."""
    training = spec.training
    return RunPlan(
        epochs=epochs,
        validate_every=training.validate_every,
        schedule=training.schedule,
        settings=schedule_settings(spec, beside),
        metric=spec.search.metric,
        maximize=spec.maximize,
        arithmetic=spec.arithmetic,
        keep=training.keep,
        may_end=training.early_stopping != "none",
    )
