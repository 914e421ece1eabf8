"""One process on one device: takes tickets, trains them, writes back what happened, and beats.

The only things that end a training early are the pruner, a loss that is not finite, an error of the user's
code, the loss of the ticket to another worker, and a reason to leave. A failing storage never does.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import platform
import socket

import torch

from floodsearch import queue
from floodsearch.answer.tickets import revisions
from floodsearch.artifacts.checkpoint import Checkpoints
from floodsearch.artifacts.weights import KeptWeights
from floodsearch.catalog import code_revision
from floodsearch.errors import TicketLostError
from floodsearch.process.nesting import inside
from floodsearch.storage import tables
from floodsearch.storage.notices import warn
from floodsearch.storage.retry import persistently
from floodsearch.storage.studies import StoredStudy, versions
from floodsearch.storage.trial_records import read_trials
from floodsearch.study.section import AUTO
from floodsearch.training.arithmetic import choose_kernels
from floodsearch.training.devices import find_device
from floodsearch.training.randomness import borrowed
from floodsearch.usercode.function import Function
from floodsearch.worker.bracket import Bracket
from floodsearch.worker.heartbeat import Heartbeat
from floodsearch.worker.leave import LeaveRequest
from floodsearch.worker.logged import Loggers
from floodsearch.worker.loops import Loops
from floodsearch.worker.pilot import pilot
from floodsearch.worker.settings import WorkerSettings
from floodsearch.worker.trainers import CohortTrainer, Trainer, default_engine

log = logging.getLogger(__name__)


def work(
    study: StoredStudy,
    settings: WorkerSettings,
    leave: LeaveRequest,
    trainer: Trainer | None = None,
    handed: Function | None = None,
) -> str:
    """Train tickets of a study until none is left, it is closed, or there is a reason to leave.

    A worker without a ticket waits while others train: a ticket may come back from one that dies.

    Args:
        study: whose tickets it takes.
        settings: how it works.
        leave: why it may be asked to leave.
        trainer: makes what trains tickets, cohorts or the user's own loop by default; a replay gives back
            recorded curves instead.
        handed: the training loop of the study, where it was handed over in Python and no name leads to it.

    Returns:
        Why it left.

    Raises:
        UsageError: if the device does not exist, a loop or command of the user's own cannot be found or is
            not trusted here, or somebody changed or deleted the study.
        StorageFailedError: if the database's file is gone.
    """
    persistently(study.require_unchanged)
    trusted = study.trusted
    device = find_device(settings.device)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    engines = study.spec.task is not None
    own: CohortTrainer | Loops = (
        CohortTrainer(device, settings.checkpoints)
        if engines
        else Loops(trusted, device, settings, leave, handed)
    )
    processes = own if isinstance(own, Loops) else contextlib.nullcontext()
    revision = code_revision(trusted, settings.folders) if handed is None else handed.revision
    if engines:
        choose_kernels(study.spec.arithmetic)
    worker = persistently(
        tables.enter_worker,
        study.database,
        study.uuid,
        host=socket.gethostname(),
        pid=os.getpid(),
        device=str(device),
        versions=versions() | {"platform": platform.platform()} | ({"code": revision} if revision else {}),
    )
    log.info("worker %d trains study %s on %s", worker, study.name, device)
    _compare(revision, study)
    files = settings.files(study)
    weights, loggers = KeptWeights(files), Loggers(settings.logs)
    if engines and study.engine is None:
        study = persistently(study.settle_engine, default_engine(trusted, device))
    fits: int | None = None
    place = f"a worker of study {study.name!r}"
    heart = Heartbeat(study, worker, settings, leave)
    with borrowed(device), inside(place, leave.ask), heart as heartbeat, processes:
        while not leave.wanted.is_set():
            study = persistently(study.reread)
            if (reason := persistently(_closed, study)) is not None:
                return reason
            if study.spec.levels.high == AUTO:
                if not persistently(pilot, study, own, heartbeat):
                    leave.wanted.wait(min(1.0, settings.beat_seconds))
                continue
            try:
                tickets = _taken(study, worker, revision, fits)
            except TicketLostError as error:
                log.warning("%s", error)
                continue
            if tickets:
                bracket = Bracket(tickets, heartbeat, trainer or own, weights, loggers)
                bracket.end()
                fits = bracket.held.fits or fits
            elif not persistently(_more_to_come, study):
                Checkpoints(files).clear()
                return "all tickets are finished"
            else:
                leave.wanted.wait(min(1.0, settings.beat_seconds))
    if leave.error is not None:
        raise leave.error
    return leave.reason or "asked to leave"


def _taken(study: StoredStudy, worker: int, revision: str | None, fits: int | None) -> list[queue.Ticket]:
    """Return the next tickets of a worker whose hands are empty, however often the storage fails."""
    tries = itertools.count()

    def take() -> list[queue.Ticket]:
        return queue.take(study, worker, revision, most=fits, again=next(tries) > 0)

    return persistently(take)


def _compare(revision: str | None, study: StoredStudy) -> None:
    """Say so where other code of the user's own has trained tickets of this study."""
    known = revisions(persistently(read_trials, study))
    others = [one for one in known if one != revision]
    if revision is not None and others:
        warn(
            study,
            f"revision {revision}",
            f"a worker has {study.spec.code} at revision {revision}, but earlier tickets were trained at "
            f"{', '.join(others)}: if that changes what is trained, give the study another name",
        )


def _closed(study: StoredStudy) -> str | None:
    """Return why the study hands out no more tickets, as of now; None while it does."""
    return queue.closed(study, tables.read_workers(study.database, study.uuid))


def _more_to_come(study: StoredStudy) -> bool:
    """Return whether a ticket waits, may come back from another worker, or was added just now.

    What was lost and is not queued again yet counts too, so the queue is repaired first and asked then.
    """
    return queue.fill(study) > 0 or queue.unfinished(study, read_trials(study))
