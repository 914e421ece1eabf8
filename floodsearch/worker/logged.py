"""What the loggers of a study are given of the runs that a worker trains."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from floodsearch.artifacts.files import Folder
from floodsearch.artifacts.names import name_of, titled
from floodsearch.errors import first_line
from floodsearch.loggers.run_log import LEFT, Epochs, LoggedRun, RunLog
from floodsearch.loggers.table import LOGGERS
from floodsearch.queue import Ticket
from floodsearch.records import REPORTED, EpochRecord
from floodsearch.storage.notices import warn
from floodsearch.study.spec import with_chosen
from floodsearch.training.randomness import borrowed

PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 60.0, 3600.0
"""Before a logger that has failed is tried again, twice as long each time: one that waits for a server holds
up the training."""
MOST_CHARACTERS = 300
"""Of the error of a logger that are told."""
NUMBERS = ("train_loss", *(name for name in REPORTED if name != "train_loss"), "flooded")
"""The fields of a record that are logged, as far as they are known."""

log = logging.getLogger(__name__)


class Loggers:
    """Writes the epochs of runs to the loggers that their study names; one that fails ends no training.

    No number of a run depends on a logger: what it draws from global generators is put back.

    Args:
        logs: the folder of the logs of all studies.
    """

    def __init__(self, logs: Path) -> None:
        self.logs = logs
        self._open: dict[tuple[str, int, int], _Written] = {}  # by logger, ticket and seed
        self._unwritten: dict[tuple[str, int, int], dict[int, EpochRecord]] = {}
        self._paused: dict[str, float] = {}  # until when, on the monotonic clock
        self._failures: Counter[str] = Counter()  # in a row

    def add(self, ticket: Ticket, records: Iterable[EpochRecord]) -> None:
        """Take in epochs of a ticket, which are written later."""
        for record in records:
            for kind in ticket.study.spec.log.to:
                self._unwritten.setdefault((kind, ticket.number, record.seed), {})[record.epoch] = record

    def write(self, tickets: Iterable[Ticket]) -> None:
        """Write what is new of tickets; where a logger fails it stays for later."""
        by_number = {ticket.number: ticket for ticket in tickets}
        due = [key for key in self._unwritten if key[1] in by_number]
        if not due:
            return
        with borrowed(torch.device("cpu")):
            for key in due:
                if self._write(key, by_number[key[1]]):
                    del self._unwritten[key]

    def close(self, ticket: Ticket, ending: str) -> None:
        """Close the logs of a ticket's runs that ended here."""
        for key in [key for key in self._unwritten if key[1] == ticket.number]:
            del self._unwritten[key]  # a logger that failed has not taken it
        closed = [key for key in self._open if key[1] == ticket.number]
        if not closed:
            return
        with borrowed(torch.device("cpu")):
            for key in closed:
                run = self._open.pop(key)
                # A run that is at its end is trained no further, by whomever the others are.
                at_its_end = ending in LEFT and run.epoch == ticket.epochs
                try:
                    run.log.close("complete" if at_its_end else ending)
                except Exception as error:
                    self._failed(key[0], ticket, error)

    def _write(self, key: tuple[str, int, int], ticket: Ticket) -> bool:
        """Write what is new of a run to a logger; return whether it has taken it."""
        kind, _, seed = key
        if time.monotonic() < self._paused.get(kind, 0.0):
            return False
        try:
            if key not in self._open:
                self._open[key] = _Written(_opened(kind, _described(ticket, seed, self.logs)))
            self._open[key].write(_numbers(self._unwritten[key], ticket.study.spec.search.metric))
        except Exception as error:  # of whatever library
            self._open.pop(key, None)
            self._failed(kind, ticket, error)
            return False
        self._failures[kind] = 0
        return True

    def _failed(self, kind: str, ticket: Ticket, error: Exception) -> None:
        pause = min(PAUSE_SECONDS * 2 ** self._failures[kind], LONGEST_PAUSE_SECONDS)
        self._paused[kind] = time.monotonic() + pause
        self._failures[kind] += 1
        log.debug("%s failed", kind, exc_info=error)
        why = first_line(error)[:MOST_CHARACTERS]
        message = f"{kind} has failed, so that its logs of runs have gaps: {why}"
        warn(ticket.study, f"logger {kind}", message)


class _Written:
    """The log of a run, and up to which epoch each number is in it."""

    def __init__(self, log: RunLog) -> None:
        self.log = log
        self._last: dict[str, int] = {}

    @property
    def epoch(self) -> int:
        """The last epoch of any number."""
        return max(self._last.values(), default=0)

    def write(self, epochs: Epochs) -> None:
        """Write the numbers that the log does not have: epochs of a checkpoint come again."""
        for name in {name for numbers in epochs.values() for name in numbers} - self._last.keys():
            self._last[name] = self.log.last(name)
        new = {
            epoch: {name: value for name, value in numbers.items() if epoch > self._last[name]}
            for epoch, numbers in epochs.items()
        }
        new = {epoch: numbers for epoch, numbers in new.items() if numbers}
        if new:
            self.log.write(new)
        for epoch, numbers in new.items():
            self._last |= dict.fromkeys(numbers, epoch)


def _opened(kind: str, run: LoggedRun) -> RunLog:
    """Open the log of a run.

    Raises:
        ValueError: if the logger is not known or not installed here.
    """
    if (logger := LOGGERS.get(kind)) is None:
        raise ValueError(f"this version knows no {kind!r}")
    if (missing := logger.missing()) is not None:
        raise ValueError(f"it {missing}")
    return logger.open(run)


def _described(ticket: Ticket, seed: int, logs: Path) -> LoggedRun:
    """Return a run as loggers name it."""
    spec, name = ticket.study.spec, name_of(ticket.number, seed)
    trains = {"task": spec.task, "objective": spec.objective, "command": spec.command}
    return LoggedRun(
        id=f"{ticket.study.uuid[:16]}-{name}",
        name=titled(ticket.level, name),
        study=spec.name,
        project=spec.log.project or spec.name,
        parameters={
            **with_chosen(spec.training_settings, ticket.beside),
            **with_chosen(spec.schedule_settings, ticket.beside),
            **{key: value for key, value in trains.items() if value is not None},
            "epochs": ticket.epochs,
            "ticket": ticket.number,
            "seed": seed,
            "level": ticket.level,
        },
        folder=Folder(logs).within(ticket.study.folder),
    )


def _numbers(records: Mapping[int, EpochRecord], metric: str) -> Epochs:
    """Return what is known of epochs, ascending; a metric of the user's own under its name."""
    fields = {**{name: name for name in NUMBERS}, "metric": metric}
    return {
        epoch: {
            name: value
            for field, name in fields.items()
            if (value := getattr(records[epoch], field)) is not None
        }
        for epoch in sorted(records)
    }
