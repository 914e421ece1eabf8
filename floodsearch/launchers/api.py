"""From a study file to its answer: what `floodsearch.launch` and the command do alike."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from floodsearch import queue
from floodsearch.artifacts.files import check_place, expanded
from floodsearch.asking import Answer, answer
from floodsearch.catalog import known
from floodsearch.defaults import CHECKPOINTS, LOGS, STORAGE
from floodsearch.errors import UsageError
from floodsearch.launchers.crew import Crew, available_cores
from floodsearch.launchers.here import WorkHere, check_one_worker, check_same_function
from floodsearch.launchers.local import Launch
from floodsearch.launchers.progress import Show, seen
from floodsearch.launchers.progress import progress as shown
from floodsearch.process.nesting import refuse
from floodsearch.process.terminal import indent_lines
from floodsearch.queries import status
from floodsearch.storage.database import open_database
from floodsearch.storage.studies import put_study
from floodsearch.study.reader import load, parse
from floodsearch.study.spec import Spec
from floodsearch.usercode.function import Function
from floodsearch.usercode.reference import beside, is_handed, own_folders

log = logging.getLogger(__name__)


def launch(
    study: Spec | Path | str | Mapping[str, Any],
    *,
    objective: Callable[..., object] | None = None,
    storage: str = STORAGE,
    workers: int | None = None,
    devices: str = "auto",
    workers_per_device: int | None = None,
    checkpoints: Path | str = CHECKPOINTS,
    logs: Path | str = LOGS,
    progress: bool | None = None,
) -> Answer:
    """Create or resume a study, train it with local workers and return the answer.

    A function that other processes can import by its name, `module:function`, is called by workers, as if the
    study named it. One that they cannot, of a notebook, a program itself or another function, is called in
    this process, as one worker: as it stands, with all that it finds around itself, which its source alone
    would not have in a worker.

    Args:
        study: a study file's path, or its content as a mapping, or a spec.
        objective: a training loop, instead of one that the study names.
        storage: `sqlite:///PATH` or `postgresql://USER@HOST/DATABASE`.
        workers: local processes; one a GPU or core by default.
        devices: `auto`, `cpu`, `mps`, or a list such as `cuda:0,cuda:1`.
        workers_per_device: instead of `workers`: processes on each device, for models that do not fill a GPU.
        checkpoints: the folder or URL from which workers go on; one that other machines see lets them do so
            too.
        logs: the folder for what the workers say.
        progress: whether to show it; by default in a notebook and in a terminal. Else what happens to workers
            on the way is logged as warnings.

    Raises:
        UsageError: for bad input, before anything is created.
        NoAnswerError: if no ticket was completed.
        StorageFailedError: if the storage failed for too long, or its file is gone.
        WorkersFailedError: if the workers kept dying without having done anything, or one can never work.
        KeyboardInterrupt: after Ctrl-C; everything is handed back, and the same call goes on.
    """
    refuse("a search")
    function = None if objective is None else Function.of(objective)
    spec, folders = _spec(study, function)
    handed = function if is_handed(spec.objective) else None
    if handed is not None:
        check_one_worker(handed, workers, workers_per_device, devices)
        workers, workers_per_device = 1, None
    prepared = prepare(
        spec,
        storage=storage,
        workers=workers,
        devices=devices,
        workers_per_device=workers_per_device,
        checkpoints=checkpoints,
        logs=expanded(Path(logs)),
        folders=folders,
        handed=handed,
    )
    with prepared as launched:
        shows = seen() if progress is None else progress
        try:
            with shown(_tell) if shows else nullcontext() as show:
                _search(launched, handed, show)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"study {spec.name!r} is handed back; the same call goes on with it"
            ) from None
        return answer(launched.study)


def _spec(
    study: Spec | Path | str | Mapping[str, Any], function: Function | None
) -> tuple[Spec, tuple[Path, ...]]:
    """Return the spec of a study, with the function that was given, and the folders of its code."""
    folders, source = own_folders(), "study"
    if isinstance(study, Spec):
        if function is not None:
            raise UsageError("a spec has its objective; give the study as a mapping or a file instead")
        return study, folders
    if isinstance(study, Mapping):
        raw = study
    else:
        path = expanded(Path(study))
        folders, source = (*beside(path), *folders), str(path)
        raw = load(path)
    names = known(folders)
    if function is not None:
        if "objective" in raw:
            raise UsageError(
                f"{source} names an objective, {raw['objective']!r}, and a function was given, too; keep one"
            )
        raw = {**raw, "objective": function.reference}
        names = replace(names, find_loop=lambda reference, arguments: function.call)
    return parse(raw, names, source=source), folders


def _search(launched: Launch, handed: Function | None, show: Show | None) -> None:
    """Train a study to its end, by workers or, with a function of this process's own, here."""
    if handed is not None:
        if not status(launched.study).finished:
            device = launched.crew.devices[0]
            WorkHere(launched.study, handed, device, launched.checkpoints, launched.logs).run(show)
        return
    with launched:
        for look in launched.watch():
            if show is not None:
                show(look)
                continue
            for said in look.said:
                log.warning(said)


def _tell(message: str) -> None:
    """Tell a person something beside the progress that is shown."""
    print(f"floodsearch: {indent_lines(message)}", file=sys.stderr, flush=True)  # noqa: T201


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
    handed: Function | None = None,
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
        handed: the function that trains it, where no name leads to that.

    Raises:
        UsageError: for bad input, before anything is created.
    """
    crew = Crew.of(devices, workers, workers_per_device, available_cores(), queue.portions(spec))
    check_place(checkpoints)
    check_place(logs / spec.name, "logs")
    with open_database(storage, create=True) as database:
        if handed is not None:
            check_same_function(database, spec.name, handed)
        study = put_study(database, spec)
        queue.fill(study)
        yield Launch(study, storage, crew, logs=logs, checkpoints=checkpoints, folders=folders)
