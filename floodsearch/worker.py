"""One process on one device: takes tickets, trains them, writes back what happened, and beats.

The only things that end a training early are the pruner, a loss that is not finite, an error of the user's
code, the loss of the ticket to another worker, and a reason to leave. A failing storage never does.
"""

from __future__ import annotations

import logging
import os
import platform
import random
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import IO, Literal, TypeVar

import torch
from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import SQLAlchemyError

from floodsearch import queue
from floodsearch.analysis import mean_and_se, mean_of, recent_mean, seed_result
from floodsearch.catalog import task_of
from floodsearch.errors import DivergedError, TicketLostError, UsageError
from floodsearch.queue import Reaper, Ticket
from floodsearch.records import Attribute, Decision, EpochRecord
from floodsearch.spec import Budget
from floodsearch.storage import tables
from floodsearch.storage.studies import StoredStudy, read_trials, versions
from floodsearch.training.run import Plan, Run

FLUSH_SECONDS = 10.0
"""Curves are written at least this often, so that a dashboard lives and little is lost."""
TRIES = 11
"""Tries of a write that must not be lost; with the waits between them about 100 seconds."""
STORAGE_ERRORS = (StorageInternalError, SQLAlchemyError)

Result = TypeVar("Result")

log = logging.getLogger("floodsearch.worker")


class Leave:
    """A reason to leave, given by a signal, the study, or the end of `launch`; the first one stays."""

    def __init__(self) -> None:
        self.reason: str | None = None
        self.wanted = threading.Event()
        self.signal: int | None = None
        self.abandoned = False

    def ask(self, reason: str) -> None:
        """Ask the worker to hand its tickets back and leave."""
        if not self.wanted.is_set():
            self.reason = reason
            self.wanted.set()

    def on_signals(self, *numbers: int) -> None:
        """Leave on these signals; a second one ends the process at once."""

        def handle(number: int, frame: object) -> None:
            del frame
            signal.signal(number, signal.SIG_DFL)
            self.signal = number
            self.ask(f"signal {signal.Signals(number).name}")

        for number in numbers:
            signal.signal(number, handle)

    def on_end_of(self, stream: IO[bytes]) -> None:
        """Leave when a stream ends: its other end was held by a process that is gone."""

        def wait() -> None:
            while os.read(stream.fileno(), 4096):
                pass
            self.abandoned = True
            self.ask("whoever started this worker is gone")

        threading.Thread(target=wait, name="lifeline", daemon=True).start()


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a worker works; nothing here changes a result.

    Args:
        device: where it trains, as torch names it, or `auto`.
        threads: of torch, on the CPU; None leaves torch's own choice.
        beat_seconds: between two signs of life.
        grace_seconds: silence after which a worker is taken for dead; the same for all workers.
    """

    device: str = "auto"
    threads: int | None = None
    beat_seconds: float = 5.0
    grace_seconds: float = queue.GRACE_SECONDS


@dataclass
class Heart:
    """The thread that beats for a worker, counts its epochs, watches the study and reaps the dead.

    It survives every error of the storage: a worker whose database is away for a while is not dead.
    """

    study: StoredStudy
    worker: int
    settings: Settings
    leave: Leave
    epochs_run: int = 0
    training: tuple[int, ...] = ()
    _stopped: bool = False
    _wake: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Heart:
        self._thread = threading.Thread(target=self._run, name="heart", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopped = True
        self._wake.set()
        self._thread.join()
        attempt(lambda: self.beat(leaving=True))

    def _run(self) -> None:
        reaper = Reaper(self.study, uuid.uuid4().hex, grace_seconds=self.settings.grace_seconds)
        due = time.monotonic() + self.settings.beat_seconds
        while not self._stopped:
            self._wake.wait(max(0.0, due - time.monotonic()))
            self._wake.clear()
            try:
                self.beat()
                # Woken early, only what this worker trains is new. However short its tickets are, it looks
                # at the study and at other workers when that is due.
                if time.monotonic() < due:
                    continue
                due = time.monotonic() + self.settings.beat_seconds
                if (reason := self.study.stopped()) is not None:
                    self.leave.ask(reason)
                for number in reaper.step():
                    log.warning("trial %d was lost; its ticket waits again", number)
            except Exception as error:  # whatever it is, the next beat may work
                due = time.monotonic() + self.settings.beat_seconds
                reaper.forget()
                log.warning("no beat: %s: %s", type(error).__name__, _first_line(error))

    def train(self, *tickets: int) -> None:
        """Say what is trained from now on; written by the thread, so that training waits for no database."""
        self.training = tickets
        self._wake.set()

    def beat(self, *, leaving: bool = False) -> None:
        """Write a sign of life now."""
        tables.beat(
            self.study.database,
            self.worker,
            epochs_run=self.epochs_run,
            training=self.training,
            leaving=leaving,
        )


def work(study: StoredStudy, settings: Settings, leave: Leave) -> str:
    """Train tickets of a study until none is left, it is closed, or there is a reason to leave.

    A worker without a ticket waits while others train: a ticket may come back from one that dies.

    Returns:
        Why it left.

    Raises:
        UsageError: if the device does not exist.
    """
    device = find_device(settings.device)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    worker = tables.enter_worker(
        study.database,
        study.uuid,
        host=socket.gethostname(),
        pid=os.getpid(),
        device=str(device),
        versions=versions() | {"platform": platform.platform()},
    )
    log.info("worker %d trains study %s on %s", worker, study.name, device)
    with Heart(study, worker, settings, leave) as heart:
        while not leave.wanted.is_set():
            study = _reread(study)
            if (reason := persistently(lambda: _closed(study))) is not None:  # noqa: B023 - called at once
                return reason
            try:
                ticket = persistently(lambda: queue.take(study, worker))  # noqa: B023 - called at once
            except TicketLostError as error:
                log.warning("%s", error)
                continue
            if ticket is not None:
                Training(ticket, device, heart).end()
            elif not persistently(lambda: _more_to_come(study)):  # noqa: B023 - called at once
                return "all tickets are finished"
            else:
                leave.wanted.wait(min(1.0, settings.beat_seconds))
    return leave.reason or "asked to leave"


def _reread(study: StoredStudy) -> StoredStudy:
    """Return the study as it is now: it may have grown, but trains what it trained.

    Whoever started this worker has trusted the code of one task; the database cannot name another.
    """
    now = persistently(study.reread)
    if now.spec.task != study.spec.task:
        raise UsageError(f"study {study.name!r} trained {study.spec.task!r}, but now names {now.spec.task!r}")
    return now


def _closed(study: StoredStudy) -> str | None:
    return queue.closed(study, tables.read_workers(study.database, study.uuid))


def _more_to_come(study: StoredStudy) -> bool:
    """Return whether a ticket waits, may come back from another worker, or was added just now.

    What was lost and is not queued again yet counts too, so the queue is repaired first and asked then.
    """
    return queue.fill(study) > 0 or queue.unfinished(study, read_trials(study, results=False))


Ending = Literal["complete", "pruned", "diverged", "failed", "lost", "handed back"]


class Training:
    """One ticket on its way to one of its ends: all its seeds, trained in lockstep."""

    def __init__(self, ticket: Ticket, device: torch.device, heart: Heart) -> None:
        self.ticket, self.device, self.heart = ticket, device, heart
        self.study = ticket.study  # with its spec as of when the ticket was taken
        self.curve = Curve(ticket)

    def end(self) -> Ending:
        """Train the ticket and write down how it ended."""
        log.info(
            "ticket %d: level %g %s", self.ticket.number, self.ticket.level, dict(self.ticket.beside) or ""
        )
        started = time.monotonic()
        self.heart.train(self.ticket.number)
        try:
            ending = self._end()
        except TicketLostError as error:
            log.warning("%s", error)
            ending = "lost"
        finally:
            self.heart.train()
        log.info("ticket %d: %s after %.1f s", self.ticket.number, ending, time.monotonic() - started)
        return ending

    def _end(self) -> Ending:
        try:
            return self._train()
        except DivergedError as error:
            diverged = error
            self.curve.flush()
            log.info("ticket %d: %s", self.ticket.number, error)
            persistently(lambda: queue.diverge(self.ticket, diverged))
            return "diverged"
        except (TicketLostError, *STORAGE_ERRORS):
            raise  # not the fault of what is trained
        except (Exception, SystemExit) as error:  # a user's code may also end the process
            failed = error
            log.exception("ticket %d failed", self.ticket.number)
            persistently(lambda: queue.fail(self.ticket, failed))
            return "failed"

    def _train(self) -> Ending:
        ticket, question = self.ticket, self.study.question
        training = self.study.spec.training
        plan = Plan(
            epochs=ticket.epochs,
            validate_every=training.validate_every,
            schedule=training.schedule,
            metric=question.metric,
            maximize=question.maximize,
        )
        task = task_of(self.study.spec, ticket.beside)
        self._recall()
        runs = [
            Run(task, plan, seed=seed, level=ticket.level, device=self.device)
            for seed in ticket.seeds
            if not self.curve.records[seed]
        ]
        rungs = {*training.report_epochs(), ticket.epochs}
        trainings = [iter(run) for run in runs]
        for epoch in range(1, ticket.epochs + 1) if trainings else ():
            for of_one_seed in trainings:
                self.curve.add([next(of_one_seed)])
                self.heart.epochs_run += 1
            if epoch in rungs:
                decision = self._rung(epoch)
                if decision.prune and epoch < ticket.epochs:
                    self.curve.flush()
                    persistently(lambda: queue.prune(ticket, decision))  # noqa: B023 - called at once
                    return "pruned"
            if self.heart.leave.wanted.is_set() and epoch < ticket.epochs:
                self.curve.flush()
                persistently(lambda: queue.hand_back(ticket))
                return "handed back"
            self.curve.flush_if_due()
        for run in runs:
            self.curve.add(run.tested())
        self._complete()
        return "complete"

    def _recall(self) -> None:
        """Take over the runs that an earlier trial of this ticket finished: only new seeds are trained."""
        ticket = self.ticket
        if ticket.attempt == 1:
            return
        study = self.study
        known = persistently(lambda: tables.read_curves(study.database, study.uuid, {ticket.number}))
        for seed in ticket.seeds:
            records = {record.epoch: record for record in known.get(ticket.number, []) if record.seed == seed}
            last = records.get(ticket.epochs)
            if last is not None and last.test_loss is not None:
                self.curve.records[seed] = records

    def _rung(self, epoch: int) -> Decision:
        """Note the recent mean over all seeds, ask the pruner, and look at the budget."""
        question, spec = self.study.question, self.study.spec
        seeds = self.ticket.seeds
        value, _ = mean_and_se([recent_mean(self.curve.of(seed), question, epoch) for seed in seeds])
        self.curve.reports[epoch] = value
        if spec.budget != Budget():
            attempt(self.heart.beat)  # the budget counts the epochs of all workers up to now
            if (reason := attempt(lambda: _closed(self.study))) is not None:
                self.heart.leave.ask(reason)
        if spec.search.pruner != "none":
            self.curve.flush()
            if (decision := attempt(lambda: queue.judge(self.ticket, epoch))) is not None:
                return decision
        return Decision(prune=False, reason="not judged")

    def _complete(self) -> None:
        self.curve.flush(persistent=True)  # a complete ticket without its curve would have no value
        results = [
            seed_result(self.curve.of(seed), self.study.question, self.ticket.epochs)
            for seed in self.ticket.seeds
        ]
        value, value_se = mean_and_se([result.value for result in results])
        numbers = {
            Attribute.VALUE_SE: value_se,
            Attribute.TEST_ACCURACY: mean_of(results, "test_accuracy"),
            Attribute.TEST_LOSS: mean_of(results, "test_loss"),
        }
        persistently(lambda: queue.complete(self.ticket, value, numbers))


class Curve:
    """What a ticket has shown: all epoch records, and what is not in the database yet.

    It is written in bulk: one transaction now and then, instead of one a value.
    """

    def __init__(self, ticket: Ticket) -> None:
        self.ticket = ticket
        self.records: dict[int, dict[int, EpochRecord]] = {seed: {} for seed in ticket.seeds}
        self.unwritten: dict[tuple[int, int], EpochRecord] = {}
        self.reports: dict[int, float] = {}
        self.flushed = time.monotonic()

    def add(self, records: Sequence[EpochRecord]) -> None:
        """Add records; one for an epoch that is there replaces it."""
        for record in records:
            self.records[record.seed][record.epoch] = record
            self.unwritten[record.seed, record.epoch] = record

    def of(self, seed: int) -> list[EpochRecord]:
        """Return the records of one run."""
        return list(self.records[seed].values())

    def flush(self, *, persistent: bool = False) -> None:
        """Write what is new; where the storage fails it stays for the next time, or is tried for long."""
        records, reports = list(self.unwritten.values()), dict(self.reports)

        def write() -> bool:
            queue.record(self.ticket, records, reports)
            return True

        if persistently(write) if persistent else attempt(write):
            self.unwritten.clear()
            self.reports.clear()
        self.flushed = time.monotonic()

    def flush_if_due(self) -> None:
        """Write what is new if the last write is long ago."""
        if time.monotonic() - self.flushed >= FLUSH_SECONDS:
            self.flush()


def persistently(call: Callable[[], Result], *, tries: int = TRIES) -> Result:
    """Call the storage, again after growing waits where it fails.

    Every call here may be repeated. A ticket that was taken by a call whose answer got lost is found by the
    reaper: it runs, but its worker does not say that it trains it.

    Raises:
        StorageInternalError, SQLAlchemyError: the last failure, when all tries are used up.
    """
    for wait in range(tries - 1):
        try:
            return call()
        except STORAGE_ERRORS as error:
            log.warning("the storage failed, try %d of %d: %s", wait + 1, tries, _first_line(error))
            # The waits differ between workers, so that they do not come back all at once.
            time.sleep(0.1 * 2**wait * random.uniform(0.5, 1.5))  # noqa: S311 - not for security
    return call()


def attempt(call: Callable[[], Result]) -> Result | None:
    """Call the storage a few times; None where it fails, because training matters more."""
    try:
        return persistently(call, tries=3)
    except STORAGE_ERRORS as error:
        log.warning("the storage failed, going on without it: %s", _first_line(error))
        return None


def find_device(name: str) -> torch.device:
    """Return a device; `auto` is the first that is not the CPU, if there is one.

    Raises:
        UsageError: if it does not exist, listing those that do.
    """
    present = devices()
    if name == "auto":
        return torch.device(present[0])
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"device {name!r} is not known; this machine has {', '.join(present)}") from None
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", 0)
    if str(device) not in present:
        raise UsageError(f"device {name!r} does not exist; this machine has {', '.join(present)}")
    return device


def devices() -> list[str]:
    """Return the devices of this machine, as torch names them; `cpu` is always the last."""
    found = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    found += ["mps"] if torch.backends.mps.is_available() else []
    return [*found, "cpu"]


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
