"""What the tickets of a bracket have shown, and what of it the database does not know yet."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from floodsearch import queue
from floodsearch.answer.values import mean_and_se, rung_value
from floodsearch.queue import Entry, Ticket
from floodsearch.records import EpochRecord
from floodsearch.storage import tables
from floodsearch.storage.retry import attempt, persistently
from floodsearch.storage.trial_records import read_trials
from floodsearch.worker.logged import Loggers

FLUSH_SECONDS = 10.0
"""Curves are written at least this often, so that a dashboard lives and little is lost."""


class Curve:
    """The curves of a ticket: all its epoch records, and which of them the database does not have yet.

    Attributes:
        records: by seed and epoch.
        unwritten: those of them that the database lacks, by seed and epoch.
        reports: the recent means that it lacks, by epoch.
        ended: the seeds whose runs have ended before their last epoch.
        ends: by seed, those ends that it lacks.
    """

    def __init__(self, ticket: Ticket) -> None:
        self.ticket = ticket
        self.records: dict[int, dict[int, EpochRecord]] = {seed: {} for seed in ticket.seeds}
        self.unwritten: dict[tuple[int, int], EpochRecord] = {}
        self.reports: dict[int, float] = {}
        self.ended: set[int] = set()
        self.ends: dict[int, int] = {}

    def add(self, records: Sequence[EpochRecord]) -> None:
        """Add records; one for an epoch that is there replaces it."""
        for record in records:
            self.records[record.seed][record.epoch] = record
            self.unwritten[record.seed, record.epoch] = record

    def end(self, seed: int) -> int:
        """Take it that a run has ended where it is; return its last epoch."""
        self.ended.add(seed)
        self.ends[seed] = max(self.records[seed])
        return self.ends[seed]

    def of(self, seed: int) -> list[EpochRecord]:
        """Return the records of one run."""
        return list(self.records[seed].values())

    @property
    def untrained(self) -> list[int]:
        """The seeds without a record."""
        return [seed for seed in self.ticket.seeds if not self.records[seed]]

    @property
    def flooded(self) -> bool | None:
        """Whether a batch of any run was ever below the level; None where that is not known of all epochs."""
        shares = [one.flooded for records in self.records.values() for one in records.values()]
        if any(shares):
            return True
        return None if None in shares or not shares else False

    def reaches(self, epoch: int) -> bool:
        """Return whether all runs have been trained up to an epoch, or have ended before it."""
        return all(epoch in records or seed in self.ended for seed, records in self.records.items())

    def entry(self) -> Entry:
        """Return the part that the database does not have yet."""
        return Entry(self.ticket, list(self.unwritten.values()), dict(self.reports), dict(self.ends))

    def forget_unwritten(self) -> None:
        """Note that all of it has been written."""
        self.unwritten.clear()
        self.reports.clear()
        self.ends.clear()


class Recorder:
    """Keeps the curves of a bracket's tickets, reports them at rungs, and writes what is new.

    Args:
        tickets: of one study.
        loggers: are given what is written.

    Attributes:
        curves: by ticket.
    """

    def __init__(self, tickets: Sequence[Ticket], loggers: Loggers) -> None:
        self.loggers = loggers
        self.study = tickets[0].study
        self.curves = {ticket.number: Curve(ticket) for ticket in tickets}
        self._tried = time.monotonic()  # when they were last to be written

    @property
    def due(self) -> bool:
        """Whether the new records have waited long enough to be written."""
        return time.monotonic() - self._tried >= FLUSH_SECONDS

    def recall(self, ticket: Ticket) -> None:
        """Take over the runs that an earlier trial of this ticket finished: only new seeds are trained.

        A task is tested when all its runs are trained; a loop of the user's own has reported its tests.
        """
        study, tested = self.study, self.study.spec.task is not None
        if ticket.attempt == 1 and tested:
            return
        curve, complete = self.curves[ticket.number], self._complete_seeds(ticket)
        known = persistently(tables.read_curves, study.database, study.uuid, {ticket.number})
        for seed in ticket.seeds:
            records = {record.epoch: record for record in known.get(ticket.number, []) if record.seed == seed}
            last = records.get(ticket.epochs)
            if last is not None and (last.test_loss is not None or not tested):
                curve.records[seed] = records
            elif records and seed in complete:
                curve.records[seed] = records
                curve.end(seed)

    def _complete_seeds(self, ticket: Ticket) -> Sequence[int]:
        """Return the seeds whose runs an earlier trial of this ticket has completed, if they may end early.

        Of any other run its checkpoint tells whether it has ended or was lost halfway, and not its curve.
        """
        if ticket.attempt == 1 or self.study.spec.training.early_stopping == "none":
            return ()
        trials = persistently(read_trials, self.study)
        seeds = [one.seeds for one in trials if one.ticket == ticket.number and one.state == "complete"]
        return ticket.seeds[: max(seeds, default=0)]

    def report(self, number: int, epochs: Iterable[int]) -> None:
        """Note the recent means of a ticket over all its seeds, at those epochs that all of them reached."""
        curve = self.curves[number]
        for epoch in epochs:
            if curve.reaches(epoch):
                curve.reports[epoch] = self.recent_mean(number, epoch)

    def recent_mean(self, number: int, epoch: int) -> float:
        """Return the mean over a ticket's seeds of the metric's last few validations, in its unit."""
        curve, criterion = self.curves[number], self.study.criterion
        epochs = curve.ticket.epochs
        means = [rung_value(curve.of(s), criterion, epoch, epochs=epochs) for s in curve.ticket.seeds]
        return mean_and_se(means)[0]

    def write(self, numbers: Iterable[int], *, persistent: bool = False) -> set[int]:
        """Write the new records of tickets, in one transaction; where the storage fails they stay for later.

        Args:
            numbers: of the tickets.
            persistent: whether to wait for a storage that is away.

        Returns:
            The tickets that are no longer this worker's.
        """
        entries = [self.curves[number].entry() for number in numbers]
        lost = persistently(queue.record, entries) if persistent else attempt(queue.record, entries)
        self._tried = time.monotonic()
        for entry in entries:
            self.loggers.add(entry.ticket, entry.records)
        self.loggers.write(entry.ticket for entry in entries)
        if lost is None:
            return set()
        for entry in entries:
            self.curves[entry.ticket.number].forget_unwritten()
        return lost
