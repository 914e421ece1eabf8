"""Training loops and scripts of the user's own, as what trains the tickets of a study."""

from __future__ import annotations

import functools
import inspect
import traceback
from collections.abc import Callable, Sequence

import torch

from floodsearch.artifacts.checkpoint import Checkpoint, Checkpoints
from floodsearch.artifacts.files import Files, Folder, is_url, shown
from floodsearch.artifacts.names import RUNS, name_of, run_folder
from floodsearch.catalog import command_of, judge_of, loop_of, loop_settings
from floodsearch.errors import FirstCallError, FloodsearchError, UsageError, pass_on_ctrl_c
from floodsearch.records import REPORTED, field_of
from floodsearch.search.pauses import restart_pays
from floodsearch.storage import tables
from floodsearch.storage.retry import persistently
from floodsearch.storage.studies import StoredStudy
from floodsearch.study.spec import ScriptSettings
from floodsearch.study.trust import TrustedSpec
from floodsearch.training.independence import Comparison
from floodsearch.training.loop import ForScript, LoopRun
from floodsearch.training.randomness import seed_everything
from floodsearch.training.script import Script
from floodsearch.usercode.command import placeholders
from floodsearch.usercode.function import Function
from floodsearch.usercode.reference import called_as_program
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
        handed: the function itself, where it was handed over in Python and no name leads to it.

    Attributes:
        script: the command, if it is one.
        handed: whether it is a function that was handed over in Python.

    Raises:
        TaskError: if the function cannot be imported, or the command's program is not there.
        UsageError: if the command wants a folder and there is none for it.
    """

    def __init__(
        self,
        trusted: TrustedSpec,
        device: torch.device,
        settings: WorkerSettings,
        leave: LeaveRequest,
        handed: Function | None = None,
    ) -> None:
        spec, self.handed = trusted.spec, handed is not None
        self.script = None if spec.command is None else script_for(trusted, settings, leave)
        if handed is not None:
            self.loop: Loop = called_as_program(handed.call, str(spec.objective), spec.arguments)
        else:
            self.loop = self.script or loop_of(trusted)
        self.device, self.settings = device, settings
        self.seen = Seen(Comparison(device))
        if device.type == "cuda":
            torch.cuda.set_device(device)  # where `.cuda()` of the user's own goes

    def __call__(self, group: Group) -> LoopMembers:
        """Return the members of tickets that differ in level only; what is kept of others is ended."""
        if self.script is not None:
            self.script.end_others(
                {name_of(member, seed) for member, seeds in group.seeds.items() for seed in seeds}
            )
        return self._members(group)

    def _members(self, group: Group) -> LoopMembers:
        study, settings = group.study, loop_settings(group.study.trusted, group.beside)
        kept = Checkpoints(self.settings.files(study))

        def checkpoint(member: int, seed: int) -> Checkpoint:
            level = group.levels[member]
            of = {"study": study.uuid, "level": level, "epochs": group.epochs, "settings": settings}
            return kept.of(name_of(member, seed), of)

        plan = plan_of(study.spec, group.beside, group.epochs)

        def for_script(member: int, seed: int, judged: int, until: int) -> ForScript:
            return ForScript(
                ticket=member,
                recorded=lambda: _recorded(study, member, seed, group.levels[member]),
                restart_pays=restart_pays(judge_of(study.spec), judged, until, group.epochs),
                folder=_folder(self.settings.files(study), name_of(member, seed), group.epochs),
            )

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
                command=self.script is not None,
            ),
            for_script=None if self.script is None else for_script,
            end=self._end,
        )

    def _end(self, member: int, seeds: Sequence[int]) -> None:
        """End what is kept of the runs of a member, which is trained no further."""
        if self.script is not None:
            self.script.end(name_of(member, seed) for seed in seeds)

    def unflooded(self, study: StoredStudy, seed: int) -> LoopMembers:
        """Return what trains the run of a seed at level 0; the first ticket goes on from its checkpoint."""
        return self._members(Group.unflooded(study, seed))

    def __enter__(self) -> Loops:
        return self

    def __exit__(self, *error: object) -> None:
        """End all processes of a script that are stopped."""
        if self.script is not None:
            self.script.end_others()

    def _call_kept(self, study: StoredStudy, run: LoopRun) -> BaseException | None:
        """Train a part of a run, as `call` does, with all that a function prints in the log of the run."""
        # The output of a script is kept as it is read; that of a function that was handed over stays where
        # the person is who runs it.
        if self.script is not None or self.handed:
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
            FirstCallError: if the function was handed over in Python and cannot train anything.
            BaseException: what was raised while an epoch was noted.
        """
        # Also before a part that goes on, so that what the function makes first is the same again.
        seed_everything(run.seed, self.device)
        error: BaseException | None = None
        try:
            self.loop(run)
        except FirstCallError:
            raise
        except SystemExit as raised:  # 0 at the end is a return, as at the end of a script
            error = raised if raised.code or run.outcome(None) is not None else None
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


def script_for(trusted: TrustedSpec, settings: WorkerSettings, leave: LeaveRequest) -> Script:
    """Return the command of a study, to be run by a worker.

    Raises:
        TaskError: if its program is not there.
        UsageError: if it wants a folder of its own, and checkpoints are not in one.
    """
    spec, command = trusted.spec, command_of(trusted, settings.folders)
    if "folder" in placeholders(command) and is_url(settings.checkpoints):
        raise UsageError(
            f"{{folder}} of the command is a folder for its checkpoints, and those are at "
            f"{shown(str(settings.checkpoints))}; give a folder with --checkpoints, or leave {{folder}} out"
        )
    outputs = settings.logs / spec.name
    how = spec.script or ScriptSettings()
    return Script(command, outputs, leave.wanted.is_set, settings.folders, settings=how)


def _folder(files: Files, run: str, epochs: int) -> Folder | None:
    """Return the folder that a command has for a run, if the files of its study are in one."""
    found = files.within(RUNS).within(run_folder(run, epochs))
    return found if isinstance(found, Folder) else None


def _recorded(study: StoredStudy, ticket: int, seed: int, level: float) -> dict[int, dict[str, float]]:
    """Return what the database has of a run, by epoch and name."""
    records = persistently(tables.read_curves, study.database, study.uuid, {ticket}).get(ticket, [])
    names = {field_of(name): name for name in (*REPORTED, study.spec.search.metric)}
    return {
        record.epoch: {
            name: value for field, name in names.items() if (value := getattr(record, field)) is not None
        }
        for record in records
        if record.seed == seed and record.level == level
    }


def _is_trained(one: object) -> bool:
    return isinstance(one, torch.nn.Module) and any(part.requires_grad for part in one.parameters())
