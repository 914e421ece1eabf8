"""Training loops and scripts of the user's own, as what trains the tickets of a study."""

from __future__ import annotations

import functools
import inspect
import traceback
from collections.abc import Callable

import torch

from floodsearch.artifacts.checkpoint import Checkpoint, Checkpoints
from floodsearch.artifacts.names import name_of
from floodsearch.catalog import command_of, loop_of, loop_settings
from floodsearch.errors import FloodsearchError, pass_on_ctrl_c
from floodsearch.storage.studies import StoredStudy
from floodsearch.study.trust import TrustedSpec
from floodsearch.training.independence import Comparison
from floodsearch.training.loop import LoopRun
from floodsearch.training.randomness import seed_everything
from floodsearch.training.script import Script
from floodsearch.worker.leave import LeaveRequest
from floodsearch.worker.loop_members import LoopMembers
from floodsearch.worker.mistakes import MistakeFinder, Seen
from floodsearch.worker.outputs import output_kept
from floodsearch.worker.settings import WorkerSettings
from floodsearch.worker.trainers import Group, plan_of

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
        self.seen = Seen(Comparison(device))
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

        plan = plan_of(study.spec, group.beside, group.epochs)
        return LoopMembers(
            functools.partial(self._call_kept, study),
            plan,
            levels=group.levels,
            seeds=group.seeds,
            device=self.device,
            settings=settings,
            checkpoint=checkpoint,
            mistakes=MistakeFinder(
                self.seen,
                study,
                plan,
                beside=group.beside,
                seeds=group.seeds,
                outside=self._made_outside,
                command=self.starts_again,
            ),
            starts_again=self.starts_again,
        )

    def unflooded(self, study: StoredStudy, seed: int) -> LoopMembers:
        """Return what trains the run of a seed at level 0; the first ticket goes on from its checkpoint."""
        return self(Group.unflooded(study, seed))

    def _call_kept(self, study: StoredStudy, run: LoopRun) -> BaseException | None:
        """Train a part of a run, as `call` does, with all that a function prints in the log of the run."""
        if self.starts_again:  # a script, whose output is kept as it is read
            return self.call(run)
        with output_kept(self.settings.logs, study, run):
            error = self.call(run)
            if isinstance(error, FloodsearchError):
                print(error)  # noqa: T201
            elif error is not None:
                traceback.print_exception(error)
            return error

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

    def _made_outside(self) -> list[str]:
        """Return the names of what the function's module trains but does not make for each run."""
        known = getattr(inspect.unwrap(self.loop), "__globals__", {})
        return [
            name for name, one in known.items() if isinstance(one, torch.optim.Optimizer) or _is_trained(one)
        ]


def _is_trained(one: object) -> bool:
    return isinstance(one, torch.nn.Module) and any(part.requires_grad for part in one.parameters())
