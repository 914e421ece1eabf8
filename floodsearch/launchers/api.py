"""From a study file to its answer: what `floodsearch.launch` and the command do alike."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from floodsearch import queue
from floodsearch.artifacts.files import check_place, expanded
from floodsearch.catalog import known
from floodsearch.defaults import CHECKPOINTS, LOGS, STORAGE
from floodsearch.findings import BestLevel
from floodsearch.launchers.crew import Crew, available_cores
from floodsearch.launchers.local import Launch
from floodsearch.process.nesting import refuse
from floodsearch.queries import answer
from floodsearch.storage.database import open_database
from floodsearch.storage.studies import put_study
from floodsearch.study.reader import parse, read
from floodsearch.study.spec import Spec
from floodsearch.usercode.reference import beside, own_folders

log = logging.getLogger(__name__)


def launch(
    study: Spec | Path | str | Mapping[str, Any],
    *,
    storage: str = STORAGE,
    workers: int | None = None,
    devices: str = "auto",
    workers_per_device: int | None = None,
    checkpoints: Path | str = CHECKPOINTS,
    logs: Path | str = LOGS,
) -> BestLevel:
    """Create or resume a study, train it with local workers and return the answer.

    Args:
        study: a study file's path, or its content as a mapping, or a spec.
        storage: `sqlite:///PATH` or `postgresql://USER@HOST/DATABASE`.
        workers: local processes; one a GPU or core by default.
        devices: `auto`, `cpu`, `mps`, or a list such as `cuda:0,cuda:1`.
        workers_per_device: instead of `workers`: processes on each device, for models that do not fill a GPU.
        checkpoints: the folder or URL from which workers go on; one that other machines see lets them do so
            too.
        logs: the folder for what the workers say.

    Raises:
        UsageError: for bad input, before anything is created.
        NoAnswerError: if no ticket was completed.
        StorageFailedError: if the storage failed for too long, or its file is gone.
        WorkersFailedError: if the workers kept dying without having done anything, or one can never work.

    What happens to workers on the way is logged as warnings.
    """
    refuse("a search")
    folders = own_folders()
    if isinstance(study, Spec):
        spec = study
    elif isinstance(study, Mapping):
        spec = parse(study, known())
    else:
        path = expanded(Path(study))
        folders = (*beside(path), *folders)
        spec = read(path, known(folders))
    prepared = prepare(
        spec,
        storage=storage,
        workers=workers,
        devices=devices,
        workers_per_device=workers_per_device,
        checkpoints=checkpoints,
        logs=expanded(Path(logs)),
        folders=folders,
    )
    with prepared as launched:
        with launched:
            for look in launched.watch():
                for said in look.said:
                    log.warning(said)
        return answer(launched.study)


@contextmanager
def prepare(
    spec: Spec,
    *,
    storage: str,
    workers: int | None,
    devices: str,
    workers_per_device: int | None,
    checkpoints: Path | str,
    logs: Path,
    folders: Sequence[Path],
) -> Iterator[Launch]:
    """Create or extend a study, fill its queue, and give its launch, which has started no worker yet.

    The database closes with the context.

    Args:
        spec: of the study.
        storage: the URL of the database.
        workers: how many processes; None for one a GPU or core.
        devices: where they train.
        workers_per_device: how many on each device, instead of `workers`.
        checkpoints: the folder or URL of those of all studies.
        logs: the folder of the logs of all studies.
        folders: where the user's code lies.

    Raises:
        UsageError: for bad input, before anything is created.
    """
    crew = Crew.of(devices, workers, workers_per_device, available_cores(), queue.portions(spec))
    check_place(checkpoints)
    check_place(logs / spec.name, "logs")
    with open_database(storage, create=True) as database:
        study = put_study(database, spec)
        queue.fill(study)
        yield Launch(study, storage, crew, logs=logs, checkpoints=checkpoints, folders=folders)
