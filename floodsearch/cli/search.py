"""The commands that search: launch, create, work."""

from __future__ import annotations

import json
import logging
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from floodsearch.artifacts.files import expanded, is_url
from floodsearch.cli.ending import SECONDS_TO_STOP, end_after, hand_back, terminate
from floodsearch.cli.opening import join_storage, open_storage, read_spec
from floodsearch.cli.options import Checkpoints, Logs, Set, Storage, StudyFile
from floodsearch.cli.printing import OURS, echo, leave_root_logger, say
from floodsearch.cli.progress import show_progress
from floodsearch.defaults import CHECKPOINTS, LEAVE_SECONDS, LOGS, REPRODUCIBLE, STORAGE
from floodsearch.errors import FAILED, INTERRUPTED, NoAnswerError, UsageError
from floodsearch.process.diverted import follow_streams
from floodsearch.process.nesting import refuse
from floodsearch.process.signals import listen
from floodsearch.process.terminal import keep_stdout
from floodsearch.usercode.reference import FOLDERS, beside, search_in

if TYPE_CHECKING:
    from floodsearch.launchers.local import Launch
    from floodsearch.storage.studies import StoredStudy

log = logging.getLogger(__name__)


def launch(
    study: StudyFile,
    storage: Storage = STORAGE,
    workers: Annotated[
        int | None, typer.Option(metavar="N", help="Local workers; one a GPU, or one a core, by default.")
    ] = None,
    devices: Annotated[str, typer.Option(metavar="LIST", help="auto, cpu, mps, or cuda:0,cuda:1")] = "auto",
    workers_per_device: Annotated[
        int | None, typer.Option(metavar="N", help="Instead of --workers: so many on each device.")
    ] = None,
    checkpoints: Checkpoints = str(CHECKPOINTS),
    logs: Logs = LOGS,
    settings: Set = None,
    detach: Annotated[
        bool, typer.Option("--detach", help="Return at once; follow it with `floodsearch logs NAME`.")
    ] = False,
) -> None:
    """Create or resume a study, train it with local workers, and print the answer."""
    from floodsearch.launchers.api import prepare

    refuse("a search")
    prepared = prepare(
        read_spec(study, settings),
        storage=storage,
        workers=workers,
        devices=devices,
        workers_per_device=workers_per_device,
        checkpoints=checkpoints,
        logs=logs,
        folders=beside(study),
    )
    with prepared as launched:
        if detach:
            _detach(launched, study, settings or [])
            return
        signal.signal(signal.SIGTERM, hand_back)
        if signal.getsignal(signal.SIGINT) is terminate:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        listen(lambda number: end_after(SECONDS_TO_STOP, number))
        try:
            with launched:
                show_progress(launched)
        except KeyboardInterrupt:
            say("interrupted; give the same command again to go on")
            raise typer.Exit(INTERRUPTED) from None
        _conclude(launched.study)


def _detach(launched: Launch, file: Path, settings: Sequence[str]) -> None:
    """Leave a launch to a process in the background, and say how to follow and end it."""
    from floodsearch.launchers.local import detach

    name, logs = launched.study.spec.name, launched.logs
    pid = detach(launched, file, settings)
    where = name if logs == LOGS else f"{name} --logs {shlex.quote(str(logs))}"
    echo(
        f"{name}: launched in the background as process {pid}; "
        f"see floodsearch logs {where}, end it with floodsearch stop {name}"
    )


def _conclude(study: StoredStudy) -> None:
    """Print the answer of a study that is trained no further, and why something of it is missing.

    Raises:
        NoAnswerError: if there is none, with the reason.
        Exit: if the study was stopped for a mistake, or level 0 has no value.
    """
    from floodsearch.queries import answer
    from floodsearch.queries import status as status_of
    from floodsearch.queue import STOPPED_BY_COMMAND
    from floodsearch.report.text import best_text, failures_text

    reason = study.stopped()
    mistake = reason not in (None, STOPPED_BY_COMMAND)
    try:
        found = answer(study)
    except NoAnswerError:
        if mistake:
            raise NoAnswerError(f"the study was stopped: {reason}") from None
        raise
    echo(best_text(found))
    failures = failures_text(status_of(study))
    if failures and not (reason and reason in failures):  # what stopped the study is said below
        say(failures)
    if reason is not None:
        say(f"the study was stopped: {reason}")
    if mistake or found.failed:
        raise typer.Exit(FAILED)


def create(study: StudyFile, storage: Storage = STORAGE, settings: Set = None) -> None:
    """Create or extend a study without training it; workers join with `floodsearch work`."""
    from floodsearch import queue
    from floodsearch.queries import status as status_of
    from floodsearch.report.text import status_text
    from floodsearch.storage.studies import put_study

    spec = read_spec(study, settings)
    with open_storage(storage, create=True) as database:
        stored = put_study(database, spec)
        queue.fill(stored)
        echo(status_text(status_of(stored)))
        for token in stored.trusts.tokens:
            echo(f"  trust     work {spec.name} --trust {shlex.quote(token)}, or work {study}")


def work(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="The study's name, or its file.", show_default=False)
    ],
    storage: Storage = STORAGE,
    device: Annotated[
        str, typer.Option("--device", metavar="DEVICE", help="auto, cpu, mps, cuda or cuda:N")
    ] = "auto",
    threads: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Threads of torch on the CPU.")
    ] = None,
    trust: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TOKEN",
            help="Run this code with these arguments: MODULE:FUNCTION@DIGEST, as check tells.",
        ),
    ] = None,
    leave_on_eof: Annotated[
        bool, typer.Option("--leave-on-eof", help="Leave when standard input ends, as when ssh is cut.")
    ] = False,
    checkpoints: Checkpoints = str(CHECKPOINTS),
    logs: Logs = LOGS,
    settings: Set = None,
    grace: Annotated[
        float, typer.Option(metavar="SECONDS", min=1, help="To leave in after SIGTERM, SIGINT or SIGUSR1.")
    ] = LEAVE_SECONDS,
) -> None:
    """Join a study as one worker, on this machine."""
    os.environ.setdefault(*REPRODUCIBLE)  # before torch multiplies anything
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, hand_back)  # until the imports are done that take a second
    refuse("a worker")
    OURS.setLevel(min(OURS.level, logging.INFO))
    keep_stdout()
    follow_streams()
    leave_root_logger()
    folders = tuple(map(Path, json.loads(os.environ.pop(FOLDERS, "") or "[]")))
    from floodsearch.artifacts.files import check_place
    from floodsearch.worker.leave import LeaveRequest
    from floodsearch.worker.settings import WorkerSettings

    leave = LeaveRequest()
    leave.on_signals(signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, grace=grace)
    from floodsearch.storage.studies import find_study, find_study_of
    from floodsearch.study.trust import trust_by
    from floodsearch.worker.work import work as train

    if leave_on_eof:
        leave.on_end_of(sys.stdin.buffer)
    trusts = trust_by(trust or ())
    spec = None
    if name.endswith(".toml"):
        file = expanded(Path(name))
        spec, folders = read_spec(file, settings), beside(file)
    elif settings:
        raise UsageError(f"--set {settings[0]} changes a study file, and {name} is a study; give its file")
    search_in((*folders, Path.cwd()))
    check_place(checkpoints)
    with join_storage(storage, launched=leave_on_eof) as database:
        study = find_study(database, name, trusts) if spec is None else find_study_of(database, spec)
        if study.spec.command is not None:
            check_place(logs / study.name, "logs")
        place = checkpoints if is_url(checkpoints) else Path(checkpoints).absolute()
        how = WorkerSettings(
            device=device, threads=threads, checkpoints=place, logs=logs.absolute(), folders=folders
        )
        reason = train(study, how, leave)
        log.info("leaving: %s", reason)
    if leave.signal is not None or leave.abandoned:
        raise typer.Exit(leave.status)
