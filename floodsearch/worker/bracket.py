"""Tickets that a worker trains together, from the first epoch to the end of each."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from typing import Literal

import torch

from floodsearch import queue
from floodsearch.answer.values import RUNG_VALIDATIONS, mean_and_se, mean_of, recent_mean, seed_result
from floodsearch.artifacts.checkpoint import Checkpoints
from floodsearch.artifacts.weights import KeptWeights
from floodsearch.errors import (
    DamagedError,
    DivergedError,
    MistakeError,
    StorageError,
    StorageFailedError,
    StudyChangedError,
    StudyDeletedError,
    TicketLostError,
    UntrustedError,
    pass_on_ctrl_c,
)
from floodsearch.queue import Entry, Ticket
from floodsearch.records import Attribute, EpochRecord, Parameter, SeedResult
from floodsearch.search.halving import Standing
from floodsearch.search.pruners import HalvingPruner
from floodsearch.storage import tables
from floodsearch.storage.failures import STORAGE_ERRORS
from floodsearch.storage.notices import warn
from floodsearch.storage.retry import attempt, persistently
from floodsearch.study.spec import Budget
from floodsearch.training.cohort import Step
from floodsearch.worker.heartbeat import Heart
from floodsearch.worker.trainers import Members, Trainer

ROUNDING = 1e-6
"""Relative; a batch loss so near above a level may be one that floods."""
FAR = 3.0
"""A task whose batch losses stay above so many times the highest level cannot be meant so; one that is nearer
may only have been trained for a short time, as in a first try: two classes begin at losses of .7 to 1.1."""
FLUSH_SECONDS = 10.0
"""Curves are written at least this often, so that a dashboard lives and little is lost."""

NOT_OF_THE_CODE = (
    *STORAGE_ERRORS,
    DamagedError,
    StorageError,
    StorageFailedError,
    StudyChangedError,
    StudyDeletedError,
    UntrustedError,
)
"""What is raised while tickets are trained and says nothing of the user's code."""

log = logging.getLogger(__name__)

Ending = Literal["complete", "pruned", "diverged", "failed", "lost", "handed back"]


class Bracket:
    """Tickets on their way to their ends, in lockstep; those with other parameters beside follow later.

    Attributes:
        fits: how many may be taken at once from now on, where these were too many for the device's memory.
    """

    def __init__(
        self, tickets: Sequence[Ticket], heart: Heart, trainer: Trainer, weights: KeptWeights
    ) -> None:
        self.alive = {ticket.number: ticket for ticket in tickets}
        self.study = tickets[0].study  # with its spec as of when the tickets were taken
        self.heart, self.trainer, self.weights = heart, trainer, weights
        self.checkpoints = Checkpoints(heart.settings.files(self.study))
        self.curves = {ticket.number: Curve(ticket) for ticket in tickets}
        self.flushed = time.monotonic()
        self.together = 0  # how many are trained at once
        self.fits: int | None = None

    def end(self) -> None:
        """Train the tickets and write down how each ended."""
        self._say_what_trains()
        try:
            for together in self._alike():
                self._train_or_fail(together)
                if self.heart.leave.wanted.is_set():
                    self._hand_back()
        finally:
            self.heart.train()

    def _alike(self) -> Iterable[list[int]]:
        """Return the tickets in groups that differ in level only."""
        groups: dict[tuple[frozenset[tuple[str, Parameter]], int], list[int]] = {}
        for number, ticket in self.alive.items():
            groups.setdefault((frozenset(ticket.beside.items()), ticket.epochs), []).append(number)
        return list(groups.values())

    def _train_or_fail(self, together: Sequence[int]) -> None:
        """Train tickets that differ in level only; what is raised outside of a run is an error of theirs too.

        Raises:
            StorageInternalError, SQLAlchemyError: if the storage is away for too long.
            UsageError: if a row of the database cannot be read, or somebody changed the study.
            KeyboardInterrupt: if that is a Ctrl-C.
        """
        try:
            self._train(together)
        except NOT_OF_THE_CODE:
            raise
        except BaseException as error:
            pass_on_ctrl_c(error)
            for number in sorted(self.alive.keys() & set(together)):
                self._failed(number, error)

    def _train(self, together: Sequence[int]) -> None:
        tickets = self._tried([self.alive[number] for number in together if number in self.alive])
        if not tickets:
            return
        for ticket in tickets:
            log.info("ticket %d: level %g %s", ticket.number, ticket.level, dict(ticket.beside) or "")
            self._recall(ticket)
        epochs = tickets[0].epochs
        numbers = {ticket.number for ticket in tickets}
        self.together = len(numbers)
        seeds = {
            ticket.number: [seed for seed in ticket.seeds if not self.curves[ticket.number].records[seed]]
            for ticket in tickets
        }
        cohort = self.trainer(self.study, tickets, seeds)
        judged = self._judged(epochs)
        rungs = {*self.study.spec.training.report_epochs(), *judged}
        for ticket in tickets:
            self._report(ticket.number, rungs)  # of recalled runs

        def note(step: Step) -> bool:
            self._note(cohort, step, rungs)
            return bool(numbers & self.alive.keys()) and not self.heart.leave.wanted.is_set()

        for epoch in judged if any(seeds.values()) else ():
            if not cohort.train(epoch, note) or not numbers & self.alive.keys():
                return
            if epoch < epochs:
                self._judge(cohort, numbers & self.alive.keys(), epoch)
                if self.heart.leave.wanted.is_set():
                    return
        for number in sorted(numbers & self.alive.keys()):
            self._complete(number, cohort)

    def _tried(self, tickets: Sequence[Ticket]) -> list[Ticket]:
        """Return the tickets that are trained; write down how the others ended."""
        aside = queue.set_aside(tickets) if tickets else {}
        for ticket in tickets:
            if (decision := aside.get(ticket.number)) is not None:
                self._ended(ticket.number, "pruned", lambda: queue.prune(ticket, decision))  # noqa: B023 - called at once
        return [ticket for ticket in tickets if ticket.number in self.alive]

    def _judged(self, epochs: int) -> list[int]:
        """Return the epochs up to which all train before anyone goes on: the pruner's, and the last one."""
        pruner = next(iter(self.alive.values())).asked.pruner
        rungs: tuple[int, ...] = ()
        if isinstance(pruner, HalvingPruner):
            rungs = pruner.rungs
        elif self.study.spec.search.pruner != "none":
            rungs = self.study.spec.training.report_epochs()
        return [*(rung for rung in rungs if rung < epochs), epochs]

    def _note(self, cohort: Members, step: Step, rungs: Collection[int]) -> None:
        """Take in what was trained, as soon as it is; tickets that are at their end are completed."""
        self.heart.epochs_run += step.trained
        self.together = len(step.failed) + len(step.records)
        for number, error in step.failed.items():
            self._failed(number, error)
        reached = {record.epoch for records in step.records.values() for record in records}.intersection(
            rungs
        )
        for number, records in step.records.items():
            if number in self.curves:
                self.curves[number].add(records)
            if reached and number in self.alive:
                self._report(number, reached)
        if reached:
            self._look_at_the_budget()
        for number in step.records.keys() & self.alive.keys() if reached else ():
            if self.alive[number].epochs in reached and self.curves[number].reaches(
                self.alive[number].epochs
            ):
                self._complete(number, cohort)
        if time.monotonic() - self.flushed >= FLUSH_SECONDS:
            self._flush(cohort)

    def _recall(self, ticket: Ticket) -> None:
        """Take over the runs that an earlier trial of this ticket finished: only new seeds are trained.

        A task is tested when all its runs are trained; a loop of the user's own has reported its tests.
        """
        study, tested = self.study, self.study.spec.task is not None
        if ticket.attempt == 1 and tested:
            return
        known = persistently(lambda: tables.read_curves(study.database, study.uuid, {ticket.number}))
        for seed in ticket.seeds:
            records = {record.epoch: record for record in known.get(ticket.number, []) if record.seed == seed}
            last = records.get(ticket.epochs)
            if last is not None and (last.test_loss is not None or not tested):
                self.curves[ticket.number].records[seed] = records

    def _report(self, number: int, epochs: Iterable[int]) -> None:
        """Note the recent means over all seeds at those rungs that all of them have reached."""
        curve = self.curves[number]
        for epoch in epochs:
            if curve.reaches(epoch):
                curve.reports[epoch] = self._recent_mean(number, epoch)

    def _recent_mean(self, number: int, epoch: int) -> float:
        ticket, curve = self.alive[number], self.curves[number]
        at_least = 1 if epoch == ticket.epochs else RUNG_VALIDATIONS
        question = self.study.question
        means = [recent_mean(curve.of(s), question, epoch, at_least=at_least) for s in ticket.seeds]
        return mean_and_se(means)[0]

    def _look_at_the_budget(self) -> None:
        if self.study.spec.budget == Budget():
            return
        attempt(self.heart.beat)  # the budget counts the epochs of all workers up to now
        workers = attempt(lambda: tables.read_workers(self.study.database, self.study.uuid))
        if workers and (reason := queue.closed(self.study, workers)) is not None:
            self.heart.leave.ask(reason)

    def _judge(self, cohort: Members, reached: Collection[int], epoch: int) -> None:
        """Ask the pruner about tickets that have all reached a rung, and stop those that it stops.

        Where the storage is away this waits: a rung that was passed over would change what is pruned.
        """
        self._flush(cohort, persistent=True)
        sign = 1.0 if self.study.spec.maximize else -1.0
        standings = {
            number: (
                self.alive[number],
                Standing(
                    self.alive[number].level,
                    sign * self._recent_mean(number, epoch),
                    cohort.forked(number),
                ),
            )
            for number in sorted(reached)
            if number in self.alive
        }
        decisions = persistently(lambda: queue.judge(standings, epoch)) if standings else {}
        for number, decision in decisions.items():
            if decision.prune:
                ticket = self.alive[number]
                cohort.drop(number)
                flooded = self.curves[number].flooded
                self._ended(number, "pruned", lambda: queue.prune(ticket, decision, flooded=flooded))  # noqa: B023 - called at once

    def _failed(self, number: int, error: BaseException) -> None:
        """Write down that a ticket diverged or its code raised; one for which there is no memory waits."""
        ticket = self.alive.get(number)
        if ticket is None:
            return
        self._flush_all([number])
        if isinstance(error, DivergedError):
            log.info("ticket %d: %s", number, error)
            self._ended(number, "diverged", lambda: queue.diverge(ticket, error))
        elif isinstance(error, torch.OutOfMemoryError) and self.together > 1:
            self.fits = max(1, self.together // 2)
            log.warning("out of memory: ticket %d waits to be trained with fewer others", number)
            told = "a device's memory held fewer runs than were to be trained at once: the others wait"
            warn(self.study, "out of memory", told)
            self._ended(number, "handed back", lambda: queue.hand_back(ticket, Attribute.OUT_OF_MEMORY))
        else:
            log.error("ticket %d failed", number, exc_info=error)
            self._ended(number, "failed", lambda: queue.fail(ticket, error))
        if isinstance(error, MistakeError):
            self.heart.leave.ask(str(error))
            self.checkpoints.clear()  # what was trained so is not gone on from when the mistake is mended

    def _ended(self, number: int, ending: Ending, write: Callable[[], object]) -> None:
        """Write down how a ticket ended; one that was taken from this worker is dropped quietly."""
        try:
            persistently(write)
        except TicketLostError as error:
            log.warning("%s", error)
            ending = "lost"
        log.info("ticket %d: %s", number, ending)
        ticket = self.alive.pop(number, None)
        # After an error that came again the next attempt begins anew: it may be in what was gone on from.
        again = ending == "failed" and ticket is not None and ticket.attempt > 1
        if again or ending in ("complete", "pruned", "diverged"):
            self.checkpoints.remove(number)
        self._say_what_trains()

    def _say_what_trains(self) -> None:
        self.heart.train(*self.alive)

    def _hand_back(self) -> None:
        self._flush_all(self.alive)
        for number, ticket in list(self.alive.items()):
            self._ended(number, "handed back", lambda: queue.hand_back(ticket))  # noqa: B023 - called at once

    def _complete(self, number: int, cohort: Members) -> None:
        ticket, curve = self.alive[number], self.curves[number]
        try:
            curve.add(cohort.tested(number))
            self._keep(ticket, cohort)
            lowest = [cohort.lowest(number, seed) for seed in ticket.seeds]
            cohort.drop(number)
        except BaseException as error:  # a user's model may also fail on the test split
            pass_on_ctrl_c(error)
            self._failed(number, error)
            return
        self._flush_all([number], persistent=True)  # a complete ticket without its curve would have no value
        if number not in self.alive:
            return
        results = [seed_result(curve.of(seed), self.study.question, ticket.epochs) for seed in ticket.seeds]
        value, numbers = _summary(results)
        complete = partial(queue.complete, ticket, value, numbers, flooded=curve.flooded)
        self._ended(number, "complete", complete)
        self._stop_if_nothing_floods(ticket, [one for one in lowest if one is not None])

    def _stop_if_nothing_floods(self, ticket: Ticket, lowest: Sequence[float]) -> None:
        """End a study whose unflooded runs came to no batch loss below its highest level, or warn of it.

        Until it floods a run of any level is the unflooded one of its seed, so that no level ever will. With
        other parameters beside the level one may. A task's levels then cost nothing, as none leaves its
        trunk, so that its search ends only where the losses are far from all levels.
        """
        highest = self.study.spec.levels.highest
        if len(lowest) < len(ticket.seeds) or min(lowest) * (1 - ROUNDING) <= highest:
            return
        beside = "".join(f", {name} = {value}" for name, value in ticket.beside.items())
        message = (
            f"no level floods anything: the lowest loss of a batch is {min(lowest):.4g}{beside}, the highest "
            f"level {highest:g}; if the loss is a sum, make it the mean over the batch, else raise "
            "levels.high or train longer"
        )
        far = self.study.spec.task is None or min(lowest) > FAR * highest
        if ticket.beside or not far:
            warn(self.study, f"nothing floods{beside}", message)
            return
        persistently(lambda: self.study.stop(message))
        self.heart.leave.ask(message)

    def _keep(self, ticket: Ticket, cohort: Members) -> None:
        """Keep the weights of a ticket's runs, if that is asked for.

        Before the ends of its curves are in the database: a worker that dies in between is followed by one
        that trains these runs no second time, and has no weights of them.
        """
        if (keep := self.study.spec.training.keep) == "none":
            return
        for seed in ticket.seeds:
            weights = cohort.weights(ticket.number, seed)
            if weights is not None:  # else an earlier trial of this ticket has trained the run, and kept them
                self.weights.save(ticket.number, seed, ticket.epochs, keep, weights)

    def _flush(self, cohort: Members, *, persistent: bool = False) -> None:
        """Write what is new of all tickets; those that are another's by now are trained no further."""
        for number in self._flush_all(self.alive, persistent=persistent):
            cohort.drop(number)

    def _flush_all(self, numbers: Iterable[int], *, persistent: bool = False) -> set[int]:
        """Write what is new, in one transaction; where the storage fails it stays for the next time.

        Returns:
            The tickets that were taken from this worker; they are out.
        """
        entries = [self.curves[number].entry() for number in numbers]

        def write() -> set[int]:
            return queue.record(entries)

        lost = persistently(write) if persistent else attempt(write)
        self.flushed = time.monotonic()
        if lost is None:
            return set()
        for entry in entries:
            self.curves[entry.ticket.number].written()
        for number in lost:
            log.warning("ticket %d was taken from this worker, which was thought dead", number)
            self.alive.pop(number, None)
        if lost:
            self._say_what_trains()
        return lost


def _summary(results: Sequence[SeedResult]) -> tuple[float, dict[Attribute, float | None]]:
    """Return a ticket's value, and the numbers that a dashboard shows beside it."""
    value, value_se = mean_and_se([result.value for result in results])
    return value, {
        Attribute.VALUE_SE: value_se,
        Attribute.TEST_ACCURACY: mean_of(results, "test_accuracy"),
        Attribute.TEST_LOSS: mean_of(results, "test_loss"),
    }


class Curve:
    """What a ticket has shown: all epoch records, and what is not in the database yet."""

    def __init__(self, ticket: Ticket) -> None:
        self.ticket = ticket
        self.records: dict[int, dict[int, EpochRecord]] = {seed: {} for seed in ticket.seeds}
        self.unwritten: dict[tuple[int, int], EpochRecord] = {}
        self.reports: dict[int, float] = {}

    def add(self, records: Sequence[EpochRecord]) -> None:
        """Add records; one for an epoch that is there replaces it."""
        for record in records:
            self.records[record.seed][record.epoch] = record
            self.unwritten[record.seed, record.epoch] = record

    def of(self, seed: int) -> list[EpochRecord]:
        """Return the records of one run."""
        return list(self.records[seed].values())

    @property
    def flooded(self) -> bool | None:
        """Whether a batch of any run was ever below the level; None where that is not known of all epochs."""
        shares = [one.flooded for records in self.records.values() for one in records.values()]
        if any(shares):
            return True
        return None if None in shares or not shares else False

    def reaches(self, epoch: int) -> bool:
        """Return whether all runs have been trained up to an epoch."""
        return all(epoch in records for records in self.records.values())

    def entry(self) -> Entry:
        """Return what is to be written."""
        return Entry(self.ticket, list(self.unwritten.values()), dict(self.reports))

    def written(self) -> None:
        """Forget what has been written."""
        self.unwritten.clear()
        self.reports.clear()
