"""Trains the runs of a try by a loop or a command of the user's own, and looks at them while it does.

A run is what a worker would hand to the code. It is not paused: a checkpoint is saved where its second epoch
begins, from which another run goes on, so that a pause costs one epoch.
"""

from __future__ import annotations

import contextlib
import math
import sys
import threading
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from floodsearch.artifacts.checkpoint import Checkpoints
from floodsearch.artifacts.files import Folder, files_at
from floodsearch.artifacts.names import name_of
from floodsearch.catalog import loop_settings
from floodsearch.errors import DivergedError, FloodsearchError, MistakeError
from floodsearch.process import nesting
from floodsearch.records import EpochRecord
from floodsearch.study.trust import TrustedSpec
from floodsearch.training.independence import Owners, RunKey, Shown
from floodsearch.training.loop import ForScript, LoopRun
from floodsearch.training.loop_state import PARTS
from floodsearch.training.randomness import borrowed
from floodsearch.tryout.folder import Mirror, mirrored
from floodsearch.tryout.held import snapshot
from floodsearch.tryout.observed import EPOCHS, Tried
from floodsearch.usercode.reference import said
from floodsearch.worker.leave import LeaveRequest
from floodsearch.worker.loops import Loops
from floodsearch.worker.mistakes import of_another_run
from floodsearch.worker.settings import WorkerSettings
from floodsearch.worker.trainers import first_choices, plan_of

SOON = 5.0
"""Seconds of a run in which it is trained beyond its second epoch, to see a metric that comes seldom."""
FEWEST_BATCHES = 4
"""A run that takes too long is stopped after so many at the earliest."""


class _EnoughError(BaseException):
    """Ends a run that has taken its time; no code of the user's catches it by mistake."""


class _WatchedRun(LoopRun):
    """A run that is looked at where its epochs begin, and can be stopped between two batches.

    Attributes:
        left: the checkpoint of its first epoch, if that was saved.
    """

    left: dict[str, Any] | None = None

    def watch(self, tried: Tried, *, saves: bool, deadline: float) -> None:
        """Note in `tried` what it shows; `saves` is whether it is saved behind its first epoch."""
        self._tried, self._saves, self._deadline = tried, saves, deadline
        self._called = self._since = time.perf_counter()

    def epochs(self) -> Generator[int]:
        """Yield the epochs, as a run does."""
        for epoch in super().epochs():
            if epoch == EPOCHS and self._saves and self.can_pause:
                self.memory.save(epoch - 1, self.lowest, self.state)
                self.left = self.memory.checkpoint.load(*PARTS)  # before that of the last epoch is written
            if not self._tried.at_start:
                self._tried.began, self._tried.begun = time.time(), time.perf_counter() - self._called
            self._tried.can_pause = self.can_pause
            # A command has no variables that could be looked at.
            self._tried.at_start[epoch] = snapshot(sys._getframe(1), self)
            self._since = time.perf_counter()
            yield epoch

    def flood(self, loss: Tensor, *, across_ranks: bool = False) -> Tensor:
        """Flood a loss, as a run does."""
        if time.monotonic() > self._deadline and len(self._tried.losses) + self._batches() >= FEWEST_BATCHES:
            raise _EnoughError
        return super().flood(loss, across_ranks=across_ranks)

    def _batches(self) -> int:
        return len(self._losses.known) + len(self._losses.unread)

    def note(self, record: EpochRecord, last: int) -> bool:
        """Take in an epoch; return whether another one is wanted."""
        self._tried.seconds[record.epoch] = time.perf_counter() - self._since
        self._tried.shown[record.epoch] = Shown(record, list(self.losses))
        soon = time.perf_counter() - self._called < SOON
        return record.epoch < last and (record.epoch < EPOCHS or soon) and time.monotonic() <= self._deadline

    def unended(self) -> list[float]:
        """Return the losses of the batches of an epoch that was not ended."""
        self._losses.summary(self.level)
        return list(self._losses.known)


class LoopTrainer:
    """Trains runs by a loop or a command of the user's own, each in a folder like the current one.

    Args:
        trusted: the study.
        device: where to train.
        room: a folder of the try's own.
        folders: where files of a command are looked for before the current folder.
    """

    def __init__(
        self, trusted: TrustedSpec, device: torch.device, room: Path, folders: tuple[Path, ...]
    ) -> None:
        self.trusted, self.device, self.room = trusted, device, room
        spec = trusted.spec
        self.is_command = spec.command is not None
        self.beside = first_choices(spec)
        self.plan = plan_of(spec, self.beside, spec.training.epochs)
        self.settings = WorkerSettings(
            device=str(device), checkpoints=room / "checkpoints", logs=room / "logs", folders=folders
        )
        self.runs = 0
        self._files = files_at(room / "checkpoints")
        self._owners = Owners()
        self._prepared: dict[str, Path] = {}
        self._left: dict[str, Any] | None = None  # by the first run
        self._folders = Folder(room / "folders")  # of a command, one a run

    def first(self, seed: int) -> Tried:
        """Train the unflooded run of a seed at once; a loop leaves a checkpoint behind its first epoch.

        It goes on to its first validation if that comes soon.
        """
        with self._in_a_mirror() as mirror:
            last = max(EPOCHS, min(self.plan.validate_every, self.plan.epochs))
            run, tried = self._train(0.0, seed, until=last, last=last, saves=True)
            self._left = run.left
            tried.wrote = mirror.written()
            self._prepared = mirror.prepared(tried.began)
        return tried

    def train(self, level: float, seed: int, *, last: int = EPOCHS, seconds: float = math.inf) -> Tried:
        """Train a run from its beginning.

        Args:
            level: its level.
            seed: its seed.
            last: the epoch after which it ends.
            seconds: after which it is stopped, between two batches; a command at once.
        """
        with self._in_a_mirror() as mirror:
            _, tried = self._train(level, seed, until=last, last=last, seconds=seconds)
            tried.wrote = mirror.written()
        return tried

    def paused(self, first: Tried, *, seconds: float = math.inf) -> Tried | None:
        """Train the first run again with a pause behind its first epoch: of a loop, what comes after it.

        Args:
            first: that run.
            seconds: after which it is stopped.

        Returns:
            None if there is no checkpoint from which it can go on.
        """
        level, seed = first.key.level, first.key.seed
        with self._in_a_mirror():
            if self.is_command:
                if not first.wrote and not any(one.is_file() for one in self._folders.path.rglob("*")):
                    return None  # it has no checkpoints: it would begin again
                run, tried = self._train(level, seed, until=1)
                if tried.error is not None:
                    return tried
                _, again = self._train(level, seed, saved=run.memory.checkpoint.load(*PARTS))
                again.shown = {**tried.shown, **again.shown}
                return again
            if self._left is None:
                return None
            return self._train(level, seed, saved=self._left, seconds=seconds)[1]

    @contextlib.contextmanager
    def _in_a_mirror(self) -> Iterator[Mirror]:
        """Let the current folder be a mirror of it, for another run."""
        self.runs += 1
        with mirrored(self.room / f"run-{self.runs}", self._prepared) as mirror:
            yield mirror

    def _train(
        self,
        level: float,
        seed: int,
        *,
        until: int = EPOCHS,
        last: int = EPOCHS,
        seconds: float = math.inf,
        saves: bool = False,
        saved: dict[str, Any] | None = None,
    ) -> tuple[_WatchedRun, Tried]:
        """Train a part of a run; return it with what it has shown."""
        key = RunKey(frozenset(self.beside.items()), self.plan.epochs, level, seed)
        tried, deadline = Tried(key), time.monotonic() + seconds

        def claim(name: str, one: object) -> str | None:
            owner = self._owners.claim(one, key)
            return None if owner is None else of_another_run(name, owner)

        run = _WatchedRun(
            self.plan,
            name=name_of(self.runs, seed),
            level=level,
            seed=seed,
            device=self.device,
            settings=loop_settings(self.trusted, self.beside),
            until=until,
            note=lambda record: run.note(record, last),
            checkpoint=Checkpoints(self._files).of(f"run-{self.runs}", {"run": self.runs}),
            saved=saved,
            claim=claim,
            script=ForScript(ticket=self.runs, folder=self._folders.within(name_of(self.runs, seed))),
        )
        run.watch(tried, saves=saves and not self.is_command, deadline=deadline)
        error = self._call(run, deadline)
        tried.partial, tried.unended = run.unended(), run.epoch + 1
        _note_end(tried, error, left=self.is_command and run.epoch < min(until, last) and error is None)
        return run, tried

    def _call(self, run: LoopRun, deadline: float) -> BaseException | None:
        """Train a run; return what was wrong with it."""
        leave = LeaveRequest()
        loops = Loops(self.trusted, self.device, self.settings, leave)
        timer = threading.Timer(max(0.0, deadline - time.monotonic()), leave.ask, ["it took its time"])
        timer.daemon = True
        if self.is_command and math.isfinite(deadline):
            timer.start()
        try:
            with nesting.inside("a try"), borrowed(self.device), loops:
                return loops.call(run)
        except FloodsearchError as error:  # of a search that the code would start
            return error
        finally:
            timer.cancel()


def _note_end(tried: Tried, error: BaseException | None, *, left: bool) -> None:
    """Note how a run ended; `left` is whether it was stopped without an error."""
    tried.stopped = left or isinstance(error, _EnoughError)
    if error is None or tried.stopped:
        return
    tried.diverged = isinstance(error, DivergedError)
    tried.mistake = isinstance(error, MistakeError)
    tried.error = str(error) if isinstance(error, FloodsearchError) else said(error)
