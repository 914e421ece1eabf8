"""Warnings of workers, kept with their study: hardly anybody reads a worker's log."""

from __future__ import annotations

import logging

from floodsearch.storage import tables
from floodsearch.storage.retry import attempt
from floodsearch.storage.studies import StoredStudy

log = logging.getLogger(__name__)


def warn(study: StoredStudy, kind: str, message: str) -> None:
    """Keep a warning for whoever asks about a study, and log it, once for all its workers.

    A storage that fails ends no training: the warning is then in the log only.

    Args:
        study: that is warned of.
        kind: what names the warning; the first one of a kind stays.
        message: one line that says what is wrong and what to do.
    """
    new = attempt(tables.write_warning, study.database, study.uuid, kind, message)
    if new is not False:
        log.warning(message)
