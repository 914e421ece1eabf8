"""The range of levels from the data: the unflooded runs, until their validation losses stop falling.

The unflooded runs go on from there when the tickets are trained.
"""

from __future__ import annotations

import logging
import time

from floodsearch import queue
from floodsearch.artifacts.checkpoint import Checkpoints
from floodsearch.errors import DivergedError, LoopError, MistakeError, pass_on_ctrl_c
from floodsearch.records import EpochRecord, Pilot
from floodsearch.search.pilot import bound, longest, settled
from floodsearch.storage import tables
from floodsearch.storage.failures import STORAGE_ERRORS
from floodsearch.storage.notices import warn
from floodsearch.storage.retry import persistently
from floodsearch.storage.studies import StoredStudy
from floodsearch.study.spec import Training
from floodsearch.training.cohort import EpochOutcome
from floodsearch.usercode.reference import said
from floodsearch.worker.heartbeat import Heartbeat
from floodsearch.worker.trainers import PilotTrainer

log = logging.getLogger(__name__)


def pilot(study: StoredStudy, trainer: PilotTrainer, heartbeat: Heartbeat) -> bool:
    """Find the highest level of a study and fill its queue, unless another worker does.

    A pilot that fails stops the study: without a range there is nothing to train.

    Returns:
        Whether it was this worker's to do.
    """
    holder = queue.pilot_holder(heartbeat.worker)
    if not tables.acquire_lease(study.database, study.uuid, queue.PILOT, holder, queue.GRACE_SECONDS):
        return False
    heartbeat.lease = queue.PILOT, holder
    try:
        # Another may have ended while this one came to the lease.
        if persistently(study.reread).pilot is None:
            _find(study, trainer, heartbeat)
    finally:
        heartbeat.lease = None
        persistently(tables.release_lease, study.database, study.uuid, queue.PILOT, holder)
    persistently(queue.fill, study)
    return True


def _find(study: StoredStudy, trainer: PilotTrainer, heartbeat: Heartbeat) -> None:
    """Conduct the pilot and store what it found, or why it failed."""
    try:
        found = _conduct(study, trainer, heartbeat)
    except STORAGE_ERRORS:
        raise
    except BaseException as error:  # a user's code may do anything
        pass_on_ctrl_c(error)
        log.error("the pilot failed", exc_info=error)
        reason = str(error) if isinstance(error, MistakeError) else f"the pilot failed: {_why(error)}"
        persistently(study.stop, reason)
        if isinstance(error, MistakeError):  # what was trained so is not gone on from when it is mended
            Checkpoints(heartbeat.settings.files(study)).clear()
        return
    if found is not None:
        log.info("pilot: validation losses fall to %s; levels up to %g", found.minima, found.high)
        persistently(study.settle, found)


def _conduct(study: StoredStudy, trainer: PilotTrainer, heartbeat: Heartbeat) -> Pilot | None:
    """Train the start of all seeds; None if there is a reason to leave before the end."""
    training = study.spec.training
    minima, epochs, trained, seconds, fell = [], 0, heartbeat.epochs_run, 0.0, False
    for seed in training.seeds:
        if heartbeat.leave.wanted.is_set():
            return None
        run = _PilotRun(training, heartbeat)
        began = time.perf_counter()
        trainer.unflooded(study, seed).train(run.most, run.note)
        seconds += time.perf_counter() - began
        if not run.ended:
            return None
        epochs += len(run.records)
        minima.append(min(run.losses))
        fell = fell or minima[-1] < run.losses[0]
    upper = bound(minima, study.spec.levels.low)
    if not fell:
        warn(
            study,
            "nothing learnt",
            f"the validation loss never fell below its first value, {max(minima):.4g}, in the pilot: does "
            "the model learn? levels near that flood from the start",
        )
    return Pilot(
        epochs=epochs,
        minima=tuple(minima),
        bound=upper,
        high=study.spec.levels.up_to(upper).highest,
        seconds_per_epoch=seconds / max(1, heartbeat.epochs_run - trained),
        device=str(trainer.device),
    )


class _PilotRun:
    """The start of one unflooded run: what it came to so far, and whether that tells its bound."""

    def __init__(self, training: Training, heartbeat: Heartbeat) -> None:
        self.validate_every, self.heartbeat = training.validate_every, heartbeat
        self.most = longest(training)
        self.records: list[EpochRecord] = []
        self.ended = False

    @property
    def losses(self) -> list[float]:
        """The validation losses."""
        return [record.val_loss for record in self.records if record.val_loss is not None]

    def note(self, step: EpochOutcome) -> bool:
        """Take in what was trained; return whether more is needed.

        Raises:
            Exception: what ended the run, unless that diverged after it had shown a bound.
            LoopError: if a loop of the user's own reports no validation loss.
        """
        self.heartbeat.epochs_run += step.trained
        self.records += [record for records in step.records.values() for record in records]
        for error in step.failed.values():
            if not (isinstance(error, DivergedError) and self.losses):
                raise error
        if (step.ended or len(self.records) >= self.validate_every) and not self.losses:
            raise LoopError(
                'levels.high = "auto" needs a validation loss; give val_loss to run.report() at each '
                "validation (see validate_every), or levels.high a number"
            )
        over = bool(step.failed or step.ended) or len(self.records) >= self.most
        self.ended = over or settled(self.records)
        return not self.ended and not self.heartbeat.leave.wanted.is_set()


def _why(error: BaseException) -> str:
    """Return the error that made a pilot fail, with what to do about it where that is known."""
    if isinstance(error, DivergedError):
        return f"{error}; lower the learning rate, or give levels.high as a number"
    if isinstance(error, LoopError):
        return str(error)
    return said(error)
