"""The runs of a cohort that have left their trunk, and their checkpoints."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping

from floodsearch.artifacts.checkpoint import Checkpoint, rows
from floodsearch.artifacts.names import name_of
from floodsearch.errors import pass_on_ctrl_c
from floodsearch.records import EpochRecord
from floodsearch.training.engine import AnyRun, Engine
from floodsearch.training.progress import pack, unpack

Key = tuple[int, int]
"""A run: (member, seed)."""
Errors = dict[Key, BaseException]
"""What the runs of an epoch raised."""

log = logging.getLogger(__name__)


class Forks:
    """Those of some runs that have left their trunk, with all records of each since its first epoch.

    Args:
        keys: of the runs that may leave it.
        checkpoint: (member, seed) to the checkpoint of a run; None where there is no folder for them.

    Attributes:
        runs: by their keys.
        left: the epoch in which each left its trunk.
        shown: the records of each run, also of those on their trunk; of one that goes on, up to where it was
            saved, which may be further than the others are.
    """

    def __init__(self, keys: Iterable[Key], checkpoint: Callable[[int, int], Checkpoint] | None) -> None:
        self.checkpoint = checkpoint
        self.runs: dict[Key, AnyRun] = {}
        self.left: dict[Key, int] = {}
        self.shown: dict[Key, list[EpochRecord]] = {key: [] for key in keys}

    def go_on(self, engine: Engine, levels: Mapping[int, float]) -> None:
        """Take up the runs that have a checkpoint; `levels` are those of the members."""
        if self.checkpoint is None:
            return
        for member, seed in self.shown:
            saved = self.checkpoint(member, seed).load("epoch", "records", "left", "state")
            if saved is None:
                continue
            try:
                run, left = engine.new_run(seed, levels[member]), int(saved["left"])
                run.restore(unpack(saved["state"]))
            except Exception as error:  # whatever a model says against weights of another
                log.warning("%s starts again: %s", name_of(member, seed), error)
                continue
            self.add((member, seed), run, left)
            self.shown[member, seed] = saved["records"]

    def begin_all(self, engine: Engine, levels: Mapping[int, float]) -> Errors:
        """Start each run above level 0 that has not left its trunk; return what making them raised."""
        errors: Errors = {}
        for member, seed in self.shown:
            if levels[member] > 0 and (member, seed) not in self.runs:
                try:
                    self.add((member, seed), engine.new_run(seed, levels[member]), 1)
                except BaseException as error:  # whatever a user's code does ends this member only
                    pass_on_ctrl_c(error)
                    errors[member, seed] = error
        return errors

    def save(self, epoch: int) -> None:
        """Save the runs that have been trained up to an epoch, and no further.

        Raises:
            OSError, RuntimeError: if one of them cannot be written.
        """
        if self.checkpoint is None:
            return
        for (member, seed), run in self.runs.items():
            shown, left = self.shown[member, seed], self.left[member, seed]
            if run.epoch == len(shown) == epoch:
                content = {"left": left, "records": rows(shown), "state": pack(run.state())}
                self.checkpoint(member, seed).save({"epoch": epoch, **content})

    def add(self, key: Key, run: AnyRun, left: int) -> None:
        """Take in a run that leaves its trunk in an epoch."""
        self.runs[key], self.left[key] = run, left

    def show(self, key: Key, record: EpochRecord) -> None:
        """Take in an epoch of a run, unless a checkpoint has shown it already."""
        if len(self.shown[key]) < record.epoch:
            self.shown[key].append(record)

    def shown_in(self, epoch: int) -> Iterator[tuple[int, EpochRecord]]:
        """Yield the members and records of an epoch that was trained before its checkpoint was saved."""
        for (member, _), shown in self.shown.items():
            if epoch <= len(shown):
                yield member, shown[epoch - 1]

    def drop(self, key: Key) -> None:
        """Let go of a run."""
        for of_runs in (self.runs, self.left, self.shown):
            of_runs.pop(key, None)
