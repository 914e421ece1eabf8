"""The order of a try: which runs are trained, from the cheapest that tells most, and what they come to."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from floodsearch.catalog import judge_of
from floodsearch.cost.outlook import Outlook
from floodsearch.records import field_of
from floodsearch.study.section import AUTO
from floodsearch.study.spec import Spec
from floodsearch.study.trust import given
from floodsearch.training.devices import find_device
from floodsearch.tryout.compared import CodeKind, Runs, far_level, wants_again
from floodsearch.tryout.findings import findings
from floodsearch.tryout.observed import Tried
from floodsearch.tryout.result import Report
from floodsearch.tryout.runs import LoopTrainer
from floodsearch.tryout.tasks import TaskTrainer

SECONDS = 20.0
"""What all runs but the first may take together."""
RUNS = 4
"""Behind the first one, at most."""
LEAST_SECONDS = 2.0
"""A run is given at least so long to show something."""


def try_out(spec: Spec, folders: tuple[Path, ...], outlook: Outlook, say: Callable[[str], object]) -> Report:
    """Train a few short runs of a study's code; nothing of them is left behind.

    Args:
        spec: of a study file that a person gave: its code is run.
        folders: where files of a command are looked for before the current folder.
        outlook: the epochs that its search would take.
        say: tells a person what takes long.

    Raises:
        TaskError: if the code cannot be imported.
    """
    since = time.perf_counter()
    device = find_device("auto")
    with tempfile.TemporaryDirectory(prefix="floodsearch-try-") as room:
        trainer = _trainer(spec, device, Path(room), folders)
        runs, not_tried = _train(spec, trainer, say)
    epoch = _seconds_of_an_epoch(runs.first)
    expected = outlook.epochs_expected if runs.first.can_pause else outlook.epochs_exhaustive
    return Report(
        findings=tuple(findings(runs)),
        not_tried=tuple(not_tried),
        runs=trainer.runs,
        seconds=time.perf_counter() - since,
        epoch=epoch,
        seconds_expected=_seconds(spec, runs, outlook, expected),
        seconds_exhaustive=_seconds(spec, runs, outlook, outlook.epochs_exhaustive),
    )


def _seconds_of_an_epoch(tried: Tried) -> float | None:
    """Return how long an epoch takes that is not the first of a process, which comes with imports."""
    return min(tried.seconds.values(), default=None)


def _seconds(spec: Spec, runs: Runs, outlook: Outlook, epochs: int | None) -> float | None:
    """Return how long some epochs of a search take with one worker, if each run is begun once."""
    epoch, later = _seconds_of_an_epoch(runs.first), runs.far
    if epoch is None or epochs is None or outlook.tickets is None:
        return None
    start = 0.0 if later is None or 1 not in later.seconds else later.begun + later.seconds[1] - epoch
    return epoch * epochs + max(0.0, start) * outlook.tickets * len(spec.training.seeds)


def _trainer(
    spec: Spec, device: torch.device, room: Path, folders: tuple[Path, ...]
) -> LoopTrainer | TaskTrainer:
    """Return what trains the runs of a study."""
    if spec.task is not None:
        return TaskTrainer(given(spec), device)
    return LoopTrainer(given(spec), device, room, folders)


def _kind(spec: Spec) -> CodeKind:
    """Return what kind of code a study trains."""
    if spec.task is not None:
        return "task"
    return "loop" if spec.command is None else "command"


def _train(
    spec: Spec, trainer: LoopTrainer | TaskTrainer, say: Callable[[str], object]
) -> tuple[Runs, list[str]]:
    """Train the runs of a try, as many as there is time for; return what was not tried, too."""
    seeds, not_tried = spec.training.seeds, list[str]()
    runs = Runs(
        first=trainer.first(seeds[0]),
        metric=spec.search.metric,
        kind=_kind(spec),
        prunes=bool(judge_of(spec).rungs),
        on_a_cpu=trainer.device.type == "cpu",
        from_pilot=spec.levels.high == AUTO,
    )
    first = runs.first
    if first.error is not None:
        return runs, ["all else: the first run has failed"]
    budget = _Budget(first, runs.kind)
    if budget.short:
        say(f"an epoch takes {max(first.seconds.values()):.0f} s: the other runs of the try are cut short")
    highest = spec.stand_in().levels.highest
    if not budget.pauses:
        not_tried.append("a pause: an epoch takes too long")
    elif spec.training.epochs > 1:
        runs = replace(runs, paused=trainer.paused(first, seconds=budget.share()))
    runs = replace(
        runs, far=trainer.train(far_level(first, highest), seeds[0], last=budget.last, seconds=budget.share())
    )
    if len(seeds) > 1:
        runs = replace(runs, other=trainer.train(0.0, seeds[1], last=budget.last, seconds=budget.share()))
    if wants_again(runs) and budget.pauses:
        runs = replace(runs, again=trainer.train(0.0, seeds[0], last=budget.last, seconds=budget.share()))
    if runs.far is not None and not runs.far.shown and runs.far.error is None:
        not_tried.append("an evaluation at a level, and which files two runs write: an epoch takes too long")
    if runs.kind != "task" and not _validated(first, spec.search.metric):
        due, ended = spec.training.validate_every, len(first.shown)
        not_tried.append(f"{spec.search.metric}: it is due at epoch {due}, and {ended} were trained")
    return runs, not_tried


def _validated(tried: Tried, metric: str) -> bool:
    """Return whether a run has shown the study's metric."""
    return any(getattr(one, field_of(metric)) is not None for one in tried.records)


class _Budget:
    """How long the runs behind the first one may take.

    Args:
        first: the first run.
        kind: of the code; a command and a task show nothing before an epoch has ended.

    Attributes:
        short: whether there is no time for whole runs.
        last: the epoch up to which the others are trained.
        pauses: whether there is time to try a pause.
    """

    def __init__(self, first: Tried, kind: CodeKind) -> None:
        self.by_epoch = kind != "loop"
        epochs = first.seconds.values()
        # A command's first epoch comes with its imports.
        whole = len(epochs) * min(epochs) if kind == "command" else sum(epochs)
        self.short = RUNS * whole > SECONDS
        self.last = 1 if self.short else max(first.shown)
        self.pauses = not (self.short and self.by_epoch)
        self._until = time.monotonic() + SECONDS
        self._left = RUNS

    def share(self) -> float:
        """Return the seconds of the next run: what is left, in equal parts."""
        share = max(LEAST_SECONDS, (self._until - time.monotonic()) / max(1, self._left))
        self._left -= 1
        return math.inf if self.by_epoch or not self.short else share
