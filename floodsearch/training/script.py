"""A script that is trained as it is: a process that prints a JSON line an epoch, in the place of a loop.

To a worker it is a training loop like any other, one whose state is in a process. Where a run pauses at a
rung its process is stopped, and goes on when the level does; where there is no room for that it is ended, and
another begins the run again, from its start or from checkpoints of the script's own. So does one whose worker
was killed. What the earlier process has printed is then known from the log, or from the database.
"""

from __future__ import annotations

import hashlib
import json
import signal
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from floodsearch.artifacts.files import Folder
from floodsearch.artifacts.names import log_name
from floodsearch.errors import LoopError
from floodsearch.records import REPORTED, Setting
from floodsearch.study.section import AUTO
from floodsearch.study.spec import ScriptSettings
from floodsearch.training.call_order import ALLOW
from floodsearch.training.loop import LoopRun
from floodsearch.training.printed import Numbering, Numbers, Printed, remembered
from floodsearch.training.room import room_for_another
from floodsearch.training.running import LAST_CHARACTERS, RunningCommand
from floodsearch.usercode.command import filled, located, placeholders

DIGITS = 16


class Part:
    """A part of a run that one process trains.

    Args:
        run: that begins.
        words: of the command.
        log: the name of the file that takes in what it prints.
        outputs: where that is.
        leaving: whether the worker is to leave.
        first: the number of the script's first epoch, if the study says it.
    """

    def __init__(
        self,
        run: LoopRun,
        words: Sequence[str],
        log: str,
        outputs: Folder,
        leaving: Callable[[], bool],
        first: int | None,
    ) -> None:
        self.words, self._log, self._outputs = words, log, outputs
        self._length, self._metrics, self._recorded = run.length, _names(run), run.script.recorded
        self._digits = _digits(run)
        self.numbering = Numbering(first)
        self.command = RunningCommand(words, outputs.append(log), self._digits, leaving)
        self.printed = Printed(self._lines(), self._metrics, run.length, self.numbering)

    def _lines(self) -> Iterator[bytes]:
        for line in self.command.lines():
            _ = self._remembered  # before the first epoch is seen: an earlier process may tell its number
            yield line

    @cached_property
    def _remembered(self) -> Mapping[int, Numbers]:
        """What earlier processes have printed. The log is read when ours prints: it has waited for them."""
        try:
            with self._outputs.open(self._log) as log:
                return remembered(log, self._digits, self._metrics, self._length, self.numbering)
        except OSError:
            return {}

    @cached_property
    def _known(self) -> Mapping[int, Numbers]:
        """What is known of the run's epochs, from the log and from the database."""
        return {**self._recorded(), **self._remembered}

    def before(self, epoch: int) -> Numbers | None:
        """Return what an earlier process said of an epoch; None if none came so far, as far as is known."""
        if epoch in self._remembered:
            return self._remembered[epoch]
        return self._known.get(epoch, {} if any(one > epoch for one in self._known) else None)


class Script:
    """A command that trains runs, one process each; call it with a run.

    Args:
        command: with placeholders, each a setting of the run or one of `PLACEHOLDERS`.
        outputs: the folder of all that its processes print, a file a run.
        leaving: whether the worker is to leave.
        folders: where files of the command are looked for before the current folder.
        settings: of the study.
    """

    def __init__(
        self,
        command: str,
        outputs: Path,
        leaving: Callable[[], bool],
        folders: Sequence[Path] = (),
        *,
        settings: ScriptSettings,
    ) -> None:
        self.command, self.leaving, self.folders = command, leaving, folders
        self.outputs = Folder(outputs.parent).within(outputs.name)
        self.settings = settings
        self._stopped: dict[str, Part] = {}  # by the run's name

    def __call__(self, run: LoopRun) -> None:
        """Train a part of a run.

        Raises:
            LoopError: if the command cannot be started, fails, or does not print what it must.
        """
        words = self._words(run)
        part = self._stopped.pop(run.name, None)
        if part is not None and part.words == words:
            part.command.go_on()
        else:
            if part is not None:
                part.command.end()
            first = None if self.settings.first_epoch == AUTO else self.settings.first_epoch
            part = Part(run, words, log_name(run.name), self.outputs, self.leaving, first)
        stops = False
        try:
            run.restore(numbering=part.numbering)
            self._train(run, part)
            pauses = run.wanted and run.epoch < run.length and not self.leaving()
            stops = pauses and self._has_room(run, part)
        finally:
            if not stops:
                part.command.end()
        if stops:
            part.command.pause()
            self._stopped[run.name] = part

    def end(self, names: Iterable[str]) -> None:
        """End the stopped processes of some runs, which go on no more here."""
        parts = [self._stopped.pop(name) for name in names if name in self._stopped]
        for part in parts:
            part.command.ask_to_end()
        for part in parts:
            part.command.end()

    def end_others(self, names: Collection[str] = ()) -> None:
        """End all stopped processes but those of some runs."""
        self.end(self._stopped.keys() - set(names))

    def _words(self, run: LoopRun) -> list[str]:
        """Return the words of the command for a run; the run's folder is made, if the command wants it."""
        own: dict[str, Setting | None] = {
            "level": run.level,
            "seed": run.seed,
            "epochs": run.length,
            "device": str(run.device),
            "ticket": run.script.ticket,
            "run": run.name,
        }
        if run.script.folder is not None and "folder" in placeholders(self.command):
            own["folder"] = str(run.script.folder.make())
        return located(filled(self.command, {**run.settings, **own}), self.folders)

    def _has_room(self, run: LoopRun, part: Part) -> bool:
        """Return whether a process may be stopped and kept."""
        stopped = len(self._stopped)
        if self.settings.pause != "keep" or stopped >= self.settings.stopped:
            return False
        return room_for_another(part.command.pid, stopped, run.device)

    def _train(self, run: LoopRun, part: Part) -> None:
        for wanted in run.epochs():
            numbers = self._numbers(run, part, wanted)
            if numbers is None or not run.goes_on:
                return
            if wanted == run.until < run.length and not (
                run.script.restart_pays or self._has_room(run, part)
            ):
                run.until = run.length
            run.report(**_known(run, wanted, numbers))

    def _numbers(self, run: LoopRun, part: Part, wanted: int) -> Numbers | None:
        """Return the numbers of an epoch, of the process or of an earlier one where that goes on behind it.

        None where the run has ended before that epoch, as the study lets it.

        Raises:
            LoopError: if nobody says anything of it, or the process fails.
        """
        printed, run.remembered = part.printed, False
        while printed.epoch < wanted:
            if not printed.next():
                return self._after_its_end(run, part, wanted)
            run.repeated += printed.epoch < wanted
        if printed.epoch == wanted:
            numbers = printed.numbers
            # Whether it ends well is part of the run, and it may say more.
            if wanted == run.length and not printed.next():
                self._check_end(run, part)
            return {**numbers, **printed.tests}
        went_on = any(map(run.due, range(1, printed.first)))  # else it prints its first validation
        before = part.before(wanted) if wanted < printed.first and went_on else None
        run.remembered = before is not None
        if not before and run.due(wanted):
            raise LoopError(_gap(run, printed, wanted))
        return before or {}

    def _after_its_end(self, run: LoopRun, part: Part, wanted: int) -> Numbers | None:
        """Return what an earlier process said of an epoch, if this one ended well without it.

        None where the run has ended before that epoch, as the study lets it.

        Raises:
            LoopError: if none did, or the process failed.
        """
        if not self._check_end(run, part):
            return {}
        before = part.before(wanted)
        if before or (before is not None and not run.due(wanted)):
            run.remembered = True
            return {**before, **(part.printed.tests if wanted == run.length else {})}
        if wanted == 1:
            raise LoopError(
                "the command ended without a report; let it print a line of JSON an epoch, such as "
                f'{{"epoch": 1, "{run.metric}": 0.8}}, and keep checkpoints, if it has any, in {{folder}}'
            )
        if run.may_end:
            run.add_tests(**_known(run, wanted - 1, part.printed.tests))
            return None
        went_on = part.printed.first > 1 and self.settings.first_epoch == AUTO
        hint = ", say first_epoch = 0 in [script] if it counts from 0" if went_on else ""
        ended = f"the command ended after epoch {wanted - 1} of {run.length}"
        raise LoopError(f"{ended}; give it {{epochs}}{hint}, or {ALLOW}")

    def _check_end(self, run: LoopRun, part: Part) -> bool:
        """Return whether a process ended by itself, and not because its worker is to leave.

        Raises:
            LoopError: if it ended badly.
        """
        status = part.command.wait()
        if self.leaving():
            run.leave()
            return False
        said = " / ".join(part.command.said) or "it printed no error"
        if refusal := part.command.refusal:
            raise LoopError(refusal)
        if status < 0:
            raise LoopError(f"the command was killed by {signal.Signals(-status).name}: {said}")
        if status > 0:
            raise LoopError(f"the command failed with exit status {status}: {said}")
        return True


def _digits(run: LoopRun) -> str:
    """Return hex digits that tell a run from all others, also of other studies with this name."""
    of = json.dumps([run.name, dict(run.memory.checkpoint.of)], sort_keys=True, default=str)
    return hashlib.sha256(of.encode()).hexdigest()[:DIGITS]


def _gap(run: LoopRun, printed: Printed, wanted: int) -> str:
    """Return what is wrong where the script has passed over an epoch."""
    gap = (
        f"the command printed nothing of epoch {wanted}, at which {run.metric} is due, but then of epoch "
        f"{printed.epoch}; if it validates seldom, say so with validate_every in [training]"
    )
    if wanted > printed.first:
        return gap
    return (
        f"{gap}; if it goes on from a checkpoint of its own, nobody has what it printed before: let it print "
        "those lines again, or delete that checkpoint"
    )


def _known(run: LoopRun, epoch: int, metrics: Numbers) -> dict[str, Any]:
    """Return those numbers of an epoch that a study knows; a script may print any others beside them."""
    names = _names(run)
    known = {name: value for name, value in metrics.items() if name in names and value is not None}
    if metrics and not known:
        raise LoopError(
            f"the command printed {', '.join(metrics)} of epoch {epoch}, of which this study knows nothing; "
            f"it knows {', '.join(names)}"
        )
    for name, value in known.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise LoopError(
                f"the command printed {name} = {json.dumps(value)[:LAST_CHARACTERS]} of epoch {epoch}, not a "
                "number; print it as one, without quotes"
            )
    return known


def _names(run: LoopRun) -> dict[str, None]:
    """Return the names of what a study knows, in their order."""
    return dict.fromkeys((run.metric, *REPORTED))
