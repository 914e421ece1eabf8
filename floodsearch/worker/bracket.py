"""Tickets that a worker trains together, from the first epoch to the end of each."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Sequence

from floodsearch import queue
from floodsearch.answer.values import mean_and_se, mean_of, seed_result
from floodsearch.artifacts.weights import KeptWeights
from floodsearch.catalog import judge_of
from floodsearch.errors import (
    DamagedError,
    FirstCallError,
    StorageError,
    StorageFailedError,
    StudyChangedError,
    StudyDeletedError,
    UntrustedError,
    pass_on_ctrl_c,
)
from floodsearch.queue import Ticket
from floodsearch.records import Attribute, Parameter, SeedResult
from floodsearch.search.halving import Standing
from floodsearch.storage import tables
from floodsearch.storage.failures import STORAGE_ERRORS
from floodsearch.storage.notices import warn
from floodsearch.storage.retry import attempt, persistently
from floodsearch.storage.studies import StoredStudy
from floodsearch.study.spec import Budget
from floodsearch.training.cohort import EpochOutcome
from floodsearch.worker.heartbeat import Heartbeat
from floodsearch.worker.held import HeldTickets
from floodsearch.worker.logged import Loggers
from floodsearch.worker.trainers import Group, Members, Trainer

ROUNDING = 1e-6
"""Relative; a batch loss so near above a level may be one that floods."""
FAR = 3.0
"""A task whose batch losses stay above so many times the highest level cannot be meant so; one that is nearer
may only have been trained for a short time, as in a first try: two classes begin at losses of .7 to 1.1."""

NOT_OF_THE_CODE = (
    *STORAGE_ERRORS,
    DamagedError,
    FirstCallError,
    StorageError,
    StorageFailedError,
    StudyChangedError,
    StudyDeletedError,
    UntrustedError,
)
"""What is raised while tickets are trained and is no end of theirs."""

log = logging.getLogger(__name__)


class Bracket:
    """Tickets on their way to their ends, in lockstep; those with other parameters beside follow later.

    Attributes:
        held: those that are still in this worker's hands, and what they have shown.
    """

    def __init__(
        self,
        tickets: Sequence[Ticket],
        heartbeat: Heartbeat,
        trainer: Trainer,
        weights: KeptWeights,
        loggers: Loggers | None = None,
    ) -> None:
        self.held = HeldTickets(tickets, heartbeat, loggers or Loggers(heartbeat.settings.logs))
        self.study = self.held.study
        self.heartbeat, self.trainer, self.weights = heartbeat, trainer, weights

    def end(self) -> None:
        """Train the tickets and write down how each ended."""
        self.held.tell()
        try:
            for tickets in alike(self.held.alive.values()):
                self._train_or_fail(tickets)
                if self._leaving:
                    self.held.hand_back()
        finally:
            self.heartbeat.train()

    def _train_or_fail(self, tickets: Sequence[Ticket]) -> None:
        """Train tickets that differ in level only; what is raised outside of a run is an error of theirs too.

        Raises:
            StorageInternalError, SQLAlchemyError: if the storage is away for too long.
            DamagedError, UsageError: if a row of the database cannot be read, or somebody changed the study.
            FirstCallError: if a function that was handed over cannot train anything.
            KeyboardInterrupt: if that is a Ctrl-C.
        """
        try:
            self._train(tickets)
        except NOT_OF_THE_CODE:
            raise
        except BaseException as error:
            pass_on_ctrl_c(error)
            for number in sorted(ticket.number for ticket in tickets):
                self.held.fail(number, error)

    def _train(self, tickets: Sequence[Ticket]) -> None:
        """Train tickets that differ in level only from rung to rung, until each is at its end."""
        if (group := self._begin(tickets)) is None:
            return
        members = self.trainer(group)
        judged = judged_epochs(tickets[0])
        rungs = {*self.study.spec.training.report_epochs(), *judged}
        for number in group.levels:
            self.held.recorder.report(number, rungs)  # of recalled runs

        def note(step: EpochOutcome) -> bool:
            self._note(members, step, rungs)
            return bool(self._alive(group)) and not self._leaving

        for epoch in judged if any(group.seeds.values()) else ():
            if not members.train(epoch, note) or not self._alive(group):
                return
            if epoch < group.epochs:
                self._judge(members, self._alive(group), epoch)
                if self._leaving:
                    return
        for number in self._alive(group):
            self._complete(number, members)

    def _begin(self, tickets: Sequence[Ticket]) -> Group | None:
        """Return the group of tickets that are to be trained, without runs that are done; None if none is.

        How the tickets ended with which halving does not begin is written down.
        """
        tickets = [ticket for ticket in tickets if ticket.number in self.held.alive]
        aside = queue.set_aside(tickets) if tickets else {}
        for ticket in tickets:
            if (decision := aside.get(ticket.number)) is not None:
                self.held.end(ticket, "pruned", queue.prune, decision)
        tickets = [ticket for ticket in tickets if ticket.number in self.held.alive]
        for ticket in tickets:
            log.info("ticket %d: level %g %s", ticket.number, ticket.level, dict(ticket.beside) or "")
            self.held.recorder.recall(ticket)
        self.held.at_once = len(tickets)
        curves = self.held.recorder.curves
        seeds = {ticket.number: curves[ticket.number].untrained for ticket in tickets}
        return Group.of(tickets, seeds) if tickets else None

    @property
    def _leaving(self) -> bool:
        """Whether the worker is asked to leave."""
        return self.heartbeat.leave.wanted.is_set()

    def _alive(self, group: Group) -> list[int]:
        """Return the tickets of a group that are still in this worker's hands, ascending."""
        return sorted(group.levels.keys() & self.held.alive.keys())

    def _note(self, members: Members, step: EpochOutcome, rungs: Collection[int]) -> None:
        """Take in what was trained, as soon as it is; tickets that are at their end are completed."""
        held, recorder = self.held, self.held.recorder
        self.heartbeat.epochs_run += step.trained
        held.at_once = len(step.failed) + len(step.records)
        for number, error in step.failed.items():
            held.fail(number, error)
        trained = {record.epoch for records in step.records.values() for record in records}
        reached = trained.intersection(rungs)
        for number, records in step.records.items():
            if number in recorder.curves:
                recorder.curves[number].add(records)
        for number, seed in step.ended.items():
            end = recorder.curves[number].end(seed)
            reached |= {rung for rung in rungs if rung > end}  # it keeps what it has come to
        moved = (step.records.keys() | step.ended.keys()) & held.alive.keys() if reached else set()
        for number in moved:
            recorder.report(number, reached)
        if reached:
            _look_at_the_budget(self.study, self.heartbeat)
        for number in moved:
            last = held.alive[number].epochs
            if last in reached and recorder.curves[number].reaches(last):
                self._complete(number, members)
        if recorder.due:
            self._write_all(members)

    def _judge(self, members: Members, reached: Iterable[int], epoch: int) -> None:
        """Ask the pruner about tickets that have all reached a rung, and stop those that it stops.

        Where the storage is away this waits: a rung that was passed over would change what is pruned.
        """
        self._write_all(members, persistent=True)
        recorder, sign = self.held.recorder, 1.0 if self.study.spec.maximize else -1.0
        standings = {}
        for number in reached:
            if (ticket := self.held.alive.get(number)) is not None:
                value = sign * recorder.recent_mean(number, epoch)
                standings[number] = ticket, Standing(ticket.level, value, members.forked(number))
        decisions = persistently(queue.judge, standings, epoch) if standings else {}
        for number, decision in decisions.items():
            if decision.prune:
                members.drop(number)
                ticket, flooded = self.held.alive[number], recorder.curves[number].flooded
                self.held.end(ticket, "pruned", queue.prune, decision, flooded=flooded)

    def _write_all(self, members: Members, *, persistent: bool = False) -> None:
        """Write the new records of all tickets; those that are another worker's by now train no further."""
        for number in self.held.write(self.held.alive, persistent=persistent):
            members.drop(number)

    def _complete(self, number: int, members: Members) -> None:
        """Write down the value of a ticket whose runs are all at their ends."""
        ticket, curve = self.held.alive[number], self.held.recorder.curves[number]
        try:
            curve.add(members.tested(number))
            _keep(self.weights, ticket, members)
            lowest = [members.lowest(number, seed) for seed in ticket.seeds]
            members.drop(number)
        except BaseException as error:  # a user's model may also fail on the test split
            pass_on_ctrl_c(error)
            self.held.fail(number, error)
            return
        self.held.write([number], persistent=True)  # a complete ticket without its curve would have no value
        if number not in self.held.alive:
            return
        results = [seed_result(curve.of(seed), self.study.criterion, ticket.epochs) for seed in ticket.seeds]
        value, numbers = _summary(results)
        self.held.end(ticket, "complete", queue.complete, value, numbers, flooded=curve.flooded)
        _look_whether_levels_flood(ticket, [one for one in lowest if one is not None], self.heartbeat)


def alike(tickets: Iterable[Ticket]) -> list[list[Ticket]]:
    """Return tickets in groups that differ in level only."""
    groups: dict[tuple[frozenset[tuple[str, Parameter]], int], list[Ticket]] = {}
    for ticket in tickets:
        groups.setdefault((frozenset(ticket.beside.items()), ticket.epochs), []).append(ticket)
    return list(groups.values())


def judged_epochs(ticket: Ticket) -> list[int]:
    """Return the epochs up to which all are trained before any goes on: the judge's, and the last one."""
    rungs = judge_of(ticket.study.spec).rungs
    return [*(rung for rung in rungs if rung < ticket.epochs), ticket.epochs]


def _look_at_the_budget(study: StoredStudy, heartbeat: Heartbeat) -> None:
    """Leave if the budget of the study is spent."""
    if study.spec.budget == Budget():
        return
    attempt(heartbeat.beat)  # the budget counts the epochs of all workers up to now
    workers = attempt(tables.read_workers, study.database, study.uuid)
    if workers and (reason := queue.closed(study, workers)) is not None:
        heartbeat.leave.ask(reason)


def _keep(kept: KeptWeights, ticket: Ticket, members: Members) -> None:
    """Keep the weights of a ticket's runs, if that is asked for.

    Before the ends of its curves are in the database: a worker that dies in between is followed by one
    that trains these runs no second time, and has no weights of them.
    """
    if (keep := ticket.study.spec.training.keep) == "none":
        return
    for seed in ticket.seeds:
        weights = members.weights(ticket.number, seed)
        if weights is not None:  # else an earlier trial of this ticket has trained the run, and kept them
            kept.save(ticket.number, seed, ticket.epochs, keep, weights)


def _look_whether_levels_flood(ticket: Ticket, lowest: Sequence[float], heartbeat: Heartbeat) -> None:
    """End a study whose unflooded runs came to no batch loss below its highest level, or warn of it.

    Until it floods a run of any level is the unflooded one of its seed, so that no level ever will. With
    other parameters beside the level one may. A task's levels then cost nothing, as none leaves its
    trunk, so that its search ends only where the losses are far from all levels.

    Args:
        ticket: that is complete.
        lowest: the lowest loss of a batch of each of its runs of which that is known.
        heartbeat: of the worker, which leaves if the study ends.
    """
    study = ticket.study
    highest = study.spec.levels.highest
    if len(lowest) < len(ticket.seeds) or min(lowest) * (1 - ROUNDING) <= highest:
        return
    beside = "".join(f", {name} = {value}" for name, value in ticket.beside.items())
    message = (
        f"no level floods anything: the lowest loss of a batch is {min(lowest):.4g}{beside}, the highest "
        f"level {highest:g}; if the loss is a sum, make it the mean over the batch, else raise "
        "levels.high or train longer"
    )
    far = study.spec.task is None or min(lowest) > FAR * highest
    if ticket.beside or not far:
        warn(study, f"nothing floods{beside}", message)
        return
    persistently(study.stop, message)
    heartbeat.leave.ask(message)


def _summary(results: Sequence[SeedResult]) -> tuple[float, dict[Attribute, float | None]]:
    """Return a ticket's value, and the numbers that a dashboard shows beside it."""
    value, value_se = mean_and_se([result.value for result in results])
    return value, {
        Attribute.VALUE_SE: value_se,
        Attribute.TEST_ACCURACY: mean_of(results, "test_accuracy"),
        Attribute.TEST_LOSS: mean_of(results, "test_loss"),
    }
