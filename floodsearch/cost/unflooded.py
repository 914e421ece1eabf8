"""The unflooded runs of a study, trained for a few seconds before it is begun: they tell when levels flood.

What a search costs depends on it. No database is written to, and what we keep of runs lies in a folder that
is gone afterwards. The first run is trained for an epoch at least; where all come to their ends before the
time is over, nothing is left to be assumed.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path

from floodsearch.artifacts.checkpoint import Checkpoint
from floodsearch.artifacts.files import Folder, files_at
from floodsearch.catalog import loop_settings, task_of
from floodsearch.cost.course import Way
from floodsearch.cost.floods import Floods
from floodsearch.cost.forecast import way_of
from floodsearch.errors import TaskError
from floodsearch.records import EpochRecord
from floodsearch.search.pilot import bound, longest, settled
from floodsearch.study.section import AUTO
from floodsearch.study.spec import Spec
from floodsearch.study.trust import given
from floodsearch.training.arithmetic import choose_kernels
from floodsearch.training.devices import find_device
from floodsearch.training.loop import ForScript, LoopRun
from floodsearch.training.randomness import borrowed
from floodsearch.usercode.reference import said
from floodsearch.worker.leave import LeaveRequest
from floodsearch.worker.loops import Loops
from floodsearch.worker.settings import WorkerSettings
from floodsearch.worker.trainers import default_engine, engine_of, first_choices, plan_of

SECONDS = 20.0
"""After which no more is trained."""


@dataclass
class Begun:
    """An unflooded run, as far as it was trained.

    Attributes:
        records: of its epochs.
        lowest: the lowest batch loss of each; of a command, which shows none, the mean loss if it reports it.
        seconds: that each took; the first with the start.
        pauses: whether it can be continued where it ended.
    """

    records: list[EpochRecord] = field(default_factory=list)
    lowest: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    pauses: bool = True


@dataclass(frozen=True)
class Unflooded:
    """What the unflooded runs of a study have shown.

    Args:
        spec: of the study; with levels, where the pilot would have found them by then.
        runs: by seed, those that were begun.
        pilot: the epoch at which the pilot would have ended, on average; None where it has not by then.
    """

    spec: Spec
    runs: Sequence[Begun]
    pilot: int | None = None

    @property
    def epochs(self) -> int:
        """The epochs that were trained."""
        return sum(len(run.records) for run in self.runs)

    @property
    def floods(self) -> Floods:
        """When levels flood, as far as these runs tell; those that ended early stand for no others."""
        longest = max(len(run.lowest) for run in self.runs)
        lowest = tuple(tuple(run.lowest) for run in self.runs if len(run.lowest) == longest)
        known = all(math.isfinite(loss) for one in lowest for loss in one)
        return Floods(highest=self.spec.stand_in().levels.highest, lowest=lowest if known else ())

    @property
    def way(self) -> Way:
        """How runs of the study are trained."""
        return way_of(self.spec) if all(run.pauses for run in self.runs) else "never pauses"

    @property
    def seconds_an_epoch(self) -> float:
        """The mean time of an epoch, without the start where more than one was trained."""
        later = [seconds for run in self.runs for seconds in run.seconds[1:]]
        every = later or [seconds for run in self.runs for seconds in run.seconds]
        return sum(every) / len(every)

    @property
    def seconds_to_start(self) -> float:
        """The time before the first epoch of a part of a run; only the first run has something to import."""
        return max(0.0, min(run.seconds[0] for run in self.runs) - self.seconds_an_epoch)


def begin_unflooded(
    spec: Spec, device: str, folders: Sequence[Path] = (), *, seconds: float = SECONDS
) -> Unflooded:
    """Train the unflooded runs of a study's seeds, one after the other, until they or the time are at an end.

    Args:
        spec: of a study file.
        device: as torch names it, or `auto`.
        folders: where files of a command are looked for before the current folder.
        seconds: after the first epoch, which waits for imports; the epoch that is trained then is the last.

    Raises:
        UsageError: if the device does not exist.
        TaskError: if the task's data cannot be drawn, the code cannot be imported, or no epoch of a run can
            be trained.
    """
    train = _runs_of_task(spec, device) if spec.task is not None else _runs_of_loop(spec, device, folders)
    ends: float | None = None

    def more() -> bool:
        nonlocal ends
        ends = ends or time.monotonic() + seconds
        return time.monotonic() < ends

    runs = [run for run in train(more) if run.records]
    pilots = [found for run in runs if (found := _pilot_of(spec, run)) is not None]
    if spec.levels.high != AUTO or len(pilots) < len(spec.training.seeds):
        return Unflooded(spec, runs)
    upper = bound([lowest for _, lowest in pilots], spec.levels.low)
    return Unflooded(spec.up_to(upper), runs, round(sum(epoch for epoch, _ in pilots) / len(pilots)))


Train = Callable[[Callable[[], bool]], Iterator[Begun]]
"""From what says whether there is time for another epoch to the runs, each as far as it was trained."""


def _runs_of_task(spec: Spec, device: str) -> Train:
    where = find_device(device)
    choose_kernels(spec.arithmetic)
    choices = first_choices(spec)
    trusted, plan = given(spec), plan_of(spec, choices, spec.training.epochs)
    kind = default_engine(trusted, where) if spec.training.engine == AUTO else spec.training.engine
    engine = engine_of(kind, task_of(trusted, choices), plan, where, spec.training.seeds[0])

    def train(more: Callable[[], bool]) -> Iterator[Begun]:
        for seed in spec.training.seeds:
            begun, run = Begun(), None
            with borrowed(where):
                while len(begun.records) < plan.epochs and (run is None or more()):
                    since = time.monotonic()
                    run = run or engine.new_run(seed, 0.0)
                    outcome = engine.advance([run])[0]
                    if isinstance(outcome, BaseException):
                        if not begun.records:
                            raise _failed(seed, outcome)
                        break
                    begun.records.append(outcome)
                    begun.lowest.append(run.lowest)
                    begun.seconds.append(time.monotonic() - since)
            yield begun
            if not more():
                return

    return train


def _runs_of_loop(spec: Spec, device: str, folders: Sequence[Path]) -> Train:
    where, trusted, choices = find_device(device), given(spec), first_choices(spec)

    def train(more: Callable[[], bool]) -> Iterator[Begun]:
        with tempfile.TemporaryDirectory(prefix="floodsearch-") as folder:
            place, leave = Path(folder), LeaveRequest()
            settings = WorkerSettings(
                device=device, checkpoints=place, logs=place / "logs", folders=tuple(folders)
            )
            (settings.logs / spec.name).mkdir(parents=True)
            with Loops(trusted, where, settings, leave) as loops:
                for seed in spec.training.seeds:
                    yield _begun_of_loop(loops, spec, seed, place, more)
                    if not more():
                        return

    def _begun_of_loop(loops: Loops, spec: Spec, seed: int, place: Path, more: Callable[[], bool]) -> Begun:
        begun, since = Begun(), time.monotonic()

        def note(record: EpochRecord) -> bool:
            nonlocal since
            begun.records.append(record)
            begun.seconds.append(time.monotonic() - since)
            shown = min(run.losses, default=record.train_loss)
            begun.lowest.append(math.inf if shown is None else shown)
            since = time.monotonic()
            return more()

        name = f"unflooded-seed-{seed}"
        run = LoopRun(
            plan_of(spec, choices, spec.training.epochs),
            name=name,
            level=0.0,
            seed=seed,
            device=where,
            settings=loop_settings(trusted, choices),
            until=spec.training.epochs,
            note=note,
            checkpoint=Checkpoint(files_at(place), f"{name}.pt", {}),
            script=ForScript(folder=Folder(place / "folders").within(name)),
        )
        # What it prints is not the forecast.
        with borrowed(where), (place / "printed").open("w") as printed, redirect_stdout(printed):
            error = loops.call(run)
        if error is not None and not begun.records:
            raise _failed(seed, error)
        begun.pauses = run.can_pause
        return begun

    return train


def _failed(seed: int, error: BaseException) -> TaskError:
    """Return what to say of a run of which not one epoch could be trained."""
    return TaskError(f"the unflooded run of seed {seed} failed in its first epoch: {said(error)}")


def _pilot_of(spec: Spec, run: Begun) -> tuple[int, float] | None:
    """Return at which epoch the pilot of a run ends, and its lowest validation loss; None if later."""
    most = longest(spec.training)
    ended = next((epoch for epoch in range(1, most) if settled(run.records[:epoch])), most)
    losses = [one.val_loss for one in run.records[:ended] if one.val_loss is not None]
    return None if len(run.records) < ended or not losses else (ended, min(losses))
