"""The logs of the runs of a training loop: what the user's function prints in each, in a file."""

from __future__ import annotations

import functools
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from floodsearch.artifacts.files import Folder
from floodsearch.artifacts.names import log_name
from floodsearch.process.diverted import diverted
from floodsearch.storage.notices import warn
from floodsearch.storage.studies import StoredStudy
from floodsearch.training.loop import LoopRun


@contextmanager
def output_kept(logs: Path, study: StoredStudy, run: LoopRun) -> Iterator[None]:
    """Keep what is printed within this in the log of a run; where it cannot be, in that of the worker.

    A log that cannot be written ends no training: it is a warning of the study, once.

    Args:
        logs: the folder of the logs of all studies.
        study: whose run it is.
        run: that is trained.
    """
    failed = functools.partial(_warn, study, logs)
    try:
        opened = Folder(logs).within(study.spec.name).append(log_name(run.name))
    except OSError as error:
        failed(error)
        yield
        return
    file = io.TextIOWrapper(opened, encoding="utf-8", errors="backslashreplace", line_buffering=True)
    try:
        with diverted(file, failed):
            print(f"$ {study.spec.objective} level={run.level:g} seed={run.seed}", *_settings(run))  # noqa: T201
            yield
    finally:
        try:
            file.close()
        except OSError as error:
            failed(error)


def _settings(run: LoopRun) -> Iterator[str]:
    yield from (f"{name}={value}" for name, value in run.settings.items())


def _warn(study: StoredStudy, logs: Path, error: OSError) -> None:
    message = (
        f"the logs of runs cannot be written to {logs}: {error.strerror or error}; what the training prints "
        "is in the worker's own log"
    )
    warn(study, "logs of runs", message)
