"""The command line: the only reader of arguments and environment, the only printer.

Heavy packages are imported by the command that needs them, so that `floodsearch --help` is quick.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import logging
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from floodsearch.artifacts.files import expanded, is_url
from floodsearch.defaults import CHECKPOINTS, LEAVE_SECONDS, LOGS, LOOPBACK, REPRODUCIBLE, STORAGE
from floodsearch.errors import (
    HANDED_BACK,
    INTERRUPTED,
    FloodsearchError,
    NoAnswerError,
    StorageError,
    UsageError,
)
from floodsearch.process.nesting import refuse
from floodsearch.process.signals import listen
from floodsearch.process.terminal import (
    LogFormatter,
    escaped,
    indented,
    keep_stdout,
    mute,
    one_line,
    standard_streams,
    stdout,
)
from floodsearch.usercode.reference import FOLDERS, beside, search_in

if TYPE_CHECKING:
    from rich.table import Table

    from floodsearch.artifacts.files import Files
    from floodsearch.cost.forecast import Stage, Timed
    from floodsearch.launchers.local import Launch
    from floodsearch.records import Pilot, StudyStatus
    from floodsearch.storage.database import Database
    from floodsearch.storage.studies import StoredStudy
    from floodsearch.study.spec import Spec

DONE, FAILED, WRONG_USE = 0, 1, 2
SECONDS_TO_END = 1.0
"""For Python to end a command after a signal; a call into C may last longer."""
SECONDS_TO_STOP = 40.0
"""The same of `launch`, whose workers hand back."""
VARIABLES = tuple(f"FLOODSEARCH_{name}" for name in ("STORAGE", "STORAGE_FILE", "CHECKPOINTS", "LOGS"))
NOT_WRITTEN = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EBADF, errno.EIO)
"""What is wrong where a stream cannot be written."""
PLAIN_SECONDS = 10.0
"""Between two progress lines when the output is not a terminal."""

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
log = logging.getLogger("floodsearch")


def _at_home(path: Path | None) -> Path | None:
    """Return a path of the command line with `~` as a shell expands it: in `--out=~/x` none does."""
    return None if path is None else expanded(path)


def _place(where: str) -> str:
    return where if is_url(where) else str(expanded(Path(where)))


StudyFile = Annotated[
    Path,
    typer.Argument(metavar="STUDY.toml", help="The study file.", show_default=False, callback=_at_home),
]
Name = Annotated[str, typer.Argument(metavar="NAME", help="The study's name.", show_default=False)]
Storage = Annotated[
    str,
    typer.Option(
        envvar="FLOODSEARCH_STORAGE", metavar="URL", help="sqlite:///PATH or postgresql://USER@HOST/DATABASE"
    ),
]
Checkpoints = Annotated[
    str,
    typer.Option(
        envvar="FLOODSEARCH_CHECKPOINTS",
        metavar="FOLDER",
        help="Or s3://BUCKET/PREFIX; what machines share, they go on from.",
        callback=_place,
    ),
]
Logs = Annotated[
    Path,
    typer.Option(
        envvar="FLOODSEARCH_LOGS",
        metavar="FOLDER",
        help="What workers and scripts say, a folder a study.",
        callback=_at_home,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and all log messages.")] = False,
) -> None:
    """Find the flood level b of |J - b| + b for your model and data."""
    handler = logging.StreamHandler()
    handler.setFormatter(LogFormatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    log.setLevel(logging.DEBUG if debug else logging.WARNING)
    # Where its storage fails we say so in a line; Optuna would add the whole statement.
    logging.getLogger("optuna.storages").setLevel(logging.DEBUG if debug else logging.ERROR)


@app.command()
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
    detach: Annotated[
        bool, typer.Option("--detach", help="Return at once; follow it with `floodsearch logs NAME`.")
    ] = False,
) -> None:
    """Create or resume a study, train it with local workers, and print the answer."""
    from floodsearch import queue
    from floodsearch.artifacts.files import check_place
    from floodsearch.launchers.local import Crew, Launch, available_cores
    from floodsearch.launchers.local import detach as in_background
    from floodsearch.storage.studies import put_study

    refuse("a search")
    spec = _read(study)
    crew = Crew.of(devices, workers, workers_per_device, available_cores(), queue.portions(spec))
    check_place(checkpoints)
    check_place(logs / spec.name, "logs")
    with _opened(storage, create=True) as database:
        stored = put_study(database, spec)
        queue.fill(stored)
        if detach:
            arguments = [str(study.absolute()), "--logs", str(logs)]
            arguments += ["--devices", ",".join(crew.devices), "--workers", str(len(crew.devices))]
            pid = in_background(arguments, spec.name, storage, checkpoints, logs)
            where = spec.name if logs == LOGS else f"{spec.name} --logs {shlex.quote(str(logs))}"
            _print(
                f"{spec.name}: launched in the background as process {pid}; "
                f"see floodsearch logs {where}, end it with floodsearch stop {spec.name}"
            )
            return
        signal.signal(signal.SIGTERM, _hand_back)
        if signal.getsignal(signal.SIGINT) is _terminate:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        listen(lambda number: _end_after(SECONDS_TO_STOP, number))
        launched = Launch(stored, storage, crew, logs=logs, checkpoints=checkpoints, folders=beside(study))
        try:
            with launched:
                _show(launched)
        except KeyboardInterrupt:
            _say("interrupted; give the same command again to go on")
            raise typer.Exit(INTERRUPTED) from None
        _conclude(stored)


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
    _print(best_text(found))
    failures = failures_text(status_of(study))
    if failures and not (reason and reason in failures):  # what stopped the study is said below
        _say(failures)
    if reason is not None:
        _say(f"the study was stopped: {reason}")
    if mistake or found.failed:
        raise typer.Exit(FAILED)


@app.command()
def create(study: StudyFile, storage: Storage = STORAGE) -> None:
    """Create or extend a study without training it; workers join with `floodsearch work`."""
    from floodsearch import queue
    from floodsearch.queries import status as status_of
    from floodsearch.report.text import status_text
    from floodsearch.storage.studies import put_study

    spec = _read(study)
    with _opened(storage, create=True) as database:
        stored = put_study(database, spec)
        queue.fill(stored)
        _print(status_text(status_of(stored)))
        for token in stored.trusts.tokens:
            _print(f"  trust     work {spec.name} --trust {shlex.quote(token)}, or work {study}")


@app.command()
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
    grace: Annotated[
        float, typer.Option(metavar="SECONDS", min=1, help="To leave in after SIGTERM, SIGINT or SIGUSR1.")
    ] = LEAVE_SECONDS,
) -> None:
    """Join a study as one worker, on this machine."""
    os.environ.setdefault(*REPRODUCIBLE)  # before torch multiplies anything
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, _hand_back)  # until the imports are done that take a second
    refuse("a worker")
    log.setLevel(min(log.level, logging.INFO))
    keep_stdout()
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
        spec, folders = _read(file), beside(file)
    search_in((*folders, Path.cwd()))
    check_place(checkpoints)
    with _joined(storage, launched=leave_on_eof) as database:
        study = find_study(database, name, trusts) if spec is None else find_study_of(database, spec)
        if study.spec.command is not None:
            check_place(logs / study.name, "logs")
        place = checkpoints if is_url(checkpoints) else Path(checkpoints).absolute()
        settings = WorkerSettings(
            device=device, threads=threads, checkpoints=place, logs=logs.absolute(), folders=folders
        )
        reason = train(study, settings, leave)
        log.info("leaving: %s", reason)
    if leave.signal is not None or leave.abandoned:
        raise typer.Exit(leave.status)


@app.command()
def status(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="One study.", show_default=False)
    ] = None,
    storage: Storage = STORAGE,
    as_json: AsJson = False,
) -> None:
    """Show where all studies stand, or one."""
    from floodsearch.queries import status as status_of
    from floodsearch.report.text import notes_text, status_text
    from floodsearch.storage.studies import find_study, study_names

    with _opened(storage, read_only=True) as database:
        if name is not None:
            one = status_of(find_study(database, name), with_answer=True)
            if as_json:
                _print_json(dataclasses.asdict(one))
            else:
                _print("\n".join(filter(None, (status_text(one), notes_text(one)))))
            return
        found = [status_of(find_study(database, each)) for each in study_names(database)]
        if as_json:
            _print_json([dataclasses.asdict(one) for one in found])
        else:
            _print("\n".join(map(status_text, found)) or f"no studies in {database.name}")


@app.command()
def best(name: Name, storage: Storage = STORAGE, as_json: AsJson = False) -> None:
    """Print the answer: which level, how much better than none, at what cost."""
    from floodsearch.queries import answer
    from floodsearch.report.text import best_text

    with _found(storage, name, read_only=True) as study:
        found = answer(study)
        if as_json:
            _print_json(dataclasses.asdict(found))
        else:
            _print(best_text(found))
    if found.failed:
        raise typer.Exit(FAILED)


@app.command()
def weights(
    name: Name,
    out: Annotated[
        Path,
        typer.Option(metavar="FOLDER", help="Where to copy them.", show_default=False, callback=_at_home),
    ],
    storage: Storage = STORAGE,
    checkpoints: Checkpoints = str(CHECKPOINTS),
) -> None:
    """Copy the weights of the level that `best` answers with, one file a seed."""
    from floodsearch.queries import answer
    from floodsearch.report.text import weights_text
    from floodsearch.report.weights import copy_weights

    with _found(storage, name, read_only=True) as study:
        found = answer(study)
        copied = copy_weights(study, found, checkpoints, out)
        _print(weights_text(found, study.spec.training.keep, copied))


@app.command()
def export(
    name: Name,
    storage: Storage = STORAGE,
    form: Annotated[str, typer.Option("--format", metavar="FORMAT", help="csv, json or parquet")] = "csv",
    curves: Annotated[
        bool, typer.Option("--curves", help="One row a seed and epoch instead of a trial.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Standard output by default.", callback=_at_home),
    ] = None,
) -> None:
    """Write the data of a study."""
    from floodsearch.report.export import FORMATS, curve_rows, trial_rows

    if form not in FORMATS:
        raise UsageError(f"format {form!r} is not known; use {', '.join(FORMATS)}")
    shown = out is None and stdout().isatty()
    if form == "parquet" and shown:
        raise UsageError("parquet is not text; give --out FILE or redirect the output")
    with _found(storage, name, read_only=True) as study:
        columns, rows = curve_rows(study) if curves else trial_rows(study)
    content = FORMATS[form](columns, one_line(rows) if shown and form == "csv" else rows)
    if out is None:
        _write(content)
        return
    try:
        out.write_bytes(content)
    except OSError as error:
        raise UsageError(f"{out} cannot be written: {error.strerror}") from None


@app.command()
def check(
    study: StudyFile,
    storage: Annotated[
        str | None,
        typer.Option(envvar="FLOODSEARCH_STORAGE", metavar="URL", help="Where it was begun: tells the time."),
    ] = None,
    speed: Annotated[
        str | None,
        typer.Option(
            "--speed", metavar="SPEED", help="Samples a second: 21000, or by runs at once: 1=21000,4=70000."
        ),
    ] = None,
    measure: Annotated[
        str | None,
        typer.Option(metavar="DEVICE", help="Train a few seconds on this device, to tell the speed."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the resolved study with all defaults, or all its problems, and what it would cost."""
    from floodsearch.cost.forecast import plan
    from floodsearch.report.text import forecast_text
    from floodsearch.search.tickets import ticket_count
    from floodsearch.study.trust import token_of

    spec = _read(study)
    count, stages = ticket_count(spec), plan(spec)
    expected = None if stages is None else sum(stage.epochs for stage in stages)
    exhaustive = None if count is None else count * len(spec.training.seeds) * spec.training.epochs
    times = _timed(spec, stages, speed, measure)
    seconds = sum(one.seconds for one in times) if times else None
    if seconds is None and storage is not None and expected is not None:
        pilot = _pilot_of(storage, spec.name)
        seconds = None if pilot is None else expected * pilot.seconds_per_epoch
    content, trust = spec.model_dump(mode="json"), token_of(spec)
    if as_json:
        extra = {
            "fingerprint": spec.fingerprint(),
            "trust": trust,
            "tickets": count,
            "epochs_exhaustive": exhaustive,
            "epochs_expected": expected,
            "seconds_expected": seconds,
            "stages": [
                {**one.stage._asdict(), "samples": one.samples, "samples_a_second": one.speed}
                for one in times
            ],
        }
        _print_json({**content, **extra})
        return
    _print("\n".join(f"{key} = {json.dumps(value)}" for key, value in _flattened(content)))
    _print(forecast_text(spec, count, expected, seconds, times))
    if trust is not None:
        _print(f"other machines trust its code by: floodsearch work {spec.name} --trust {shlex.quote(trust)}")


def _timed(spec: Spec, stages: list[Stage] | None, speed: str | None, measure: str | None) -> list[Timed]:
    """Return how long each stage takes at a speed that is given or measured; nothing if neither is asked."""
    from floodsearch.cost.forecast import at_once, speeds_of, timed

    if speed is None and measure is None:
        return []
    if speed is not None and measure is not None:
        raise UsageError("--speed and --measure are both given; keep one of the two")
    if spec.task is None:
        raise UsageError("the speed of a training loop of your own cannot be told beforehand; leave it out")
    if stages is None:
        raise UsageError("the time is not known before the pilot has found the levels; give levels.count")
    os.environ.setdefault(*REPRODUCIBLE)  # as workers do
    from floodsearch.cost.throughput import measured, samples_of

    if measure is not None:
        speeds = measured(spec, measure, sorted({at_once(spec, stage) for stage in stages}))
    else:
        speeds = speeds_of(str(speed))
    return timed(spec, stages, samples_of(spec), speeds)


def _pilot_of(storage: str, name: str) -> Pilot | None:
    """Return what the pilot of a study found; without it nothing is known of the time, which is no error."""
    try:
        with _found(storage, name, read_only=True) as study:
            return study.pilot
    except UsageError as error:
        _say(f"the time is not known: {error}")
        return None


@app.command()
def stop(name: Name, storage: Storage = STORAGE) -> None:
    """Let the workers of a study hand back what they train and leave; launching it again resumes."""
    from floodsearch.queue import STOPPED_BY_COMMAND

    with _found(storage, name) as study:
        study.require_unchanged()
        study.stop(STOPPED_BY_COMMAND)
        _print(f"{name}: no more tickets are handed out; workers leave within a few seconds")


@app.command()
def logs(
    name: Name,
    lines: Annotated[int, typer.Option(metavar="N", min=1, help="The last ones of each worker.")] = 10,
    follow: Annotated[bool, typer.Option("--follow", help="Go on until Ctrl-C.")] = False,
    logs: Logs = LOGS,
) -> None:
    """Show what the workers of a study said that was launched in this folder."""
    from floodsearch.launchers.local import POLL_SECONDS, log_lines

    for line in log_lines(name, lines, logs):
        if line:
            if not _print(line):
                return
        elif not follow:
            return
        else:
            time.sleep(POLL_SECONDS)


@app.command()
def delete(
    name: Name,
    storage: Storage = STORAGE,
    checkpoints: Checkpoints = str(CHECKPOINTS),
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Remove a study with all its data, its checkpoints and the weights that were kept."""
    from floodsearch.artifacts.files import check_place, files_at
    from floodsearch.queries import status as status_of
    from floodsearch.storage.studies import delete_study

    check_place(checkpoints)
    with _found(storage, name) as study:
        now, copied = status_of(study), study.others()
        if now.workers and not (copied and study.name != study.spec.name):  # which train the original
            trains = f"{now.workers} worker{'s' * (now.workers > 1)}"
            raise UsageError(
                f"study {name!r} is trained by {trains} now; end that with floodsearch stop {name}"
            )
        if not yes:
            trained = f"{now.trials.total} tickets, {now.epochs_run:,} epochs trained"
            _confirm(f"delete study {name} ({trained}) from {study.database.name}?")
        if copied := delete_study(study):
            _say(f"its curves and files stay: {', '.join(copied)} has them too, as somebody copied the study")
        else:
            _remove_files(files_at(checkpoints).within(study.folder))
    _print(f"{name}: deleted")


def _remove_files(files: Files) -> None:
    """Remove the files of a study that is gone, and say what stays of them."""
    from floodsearch.artifacts.names import remove_files

    try:
        if left := remove_files(files):
            _say(f"{files} stays, with what is not ours: {', '.join(left)}")
    except OSError as error:
        _say(f"its checkpoints stay: {error}")


@app.command()
def serve(
    storage: Storage = STORAGE,
    port: Annotated[
        int, typer.Option("--port", metavar="PORT", min=1, max=65535, help="To listen on.")
    ] = 8080,
    host: Annotated[
        str,
        typer.Option(metavar="ADDRESS", help="To listen on; others than the default can read all studies."),
    ] = LOOPBACK,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="By which a reverse proxy asks for it; may be repeated."),
    ] = None,
) -> None:
    """Show the studies in optuna-dashboard, on this machine only unless you say otherwise."""
    from floodsearch.service.dashboard import serve as run_server

    def say_where() -> None:
        _say(f"optuna-dashboard on http://{host}:{port}, Ctrl-C ends it")
        if host != LOOPBACK:
            _say("the dashboard has no access control: whoever reaches this address can read all studies")

    # The server takes an exception for its end; but it has nothing to lose.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _end_now)
    with _opened(storage, read_only=True) as database:
        try:
            run_server(database, host, port, names=allow_host or (), listening=say_where)
        except OSError as error:
            why = f"{host} port {port} cannot be used: {error.strerror}"
            raise UsageError(f"{why}; choose another --port or --host") from None


def main() -> None:
    """Run the command line; every expected error is one message on stderr."""
    with standard_streams(), _signals_obeyed():
        sys.exit(_run())


def _run() -> int:
    """Run the command line; return its exit status."""
    try:
        _check_current_folder()
        _read_environment()
        return app(standalone_mode=False) or DONE
    except KeyboardInterrupt:
        return INTERRUPTED
    except SystemExit as error:
        if not isinstance(error.__context__, BrokenPipeError):
            raise
        mute(stdout())  # `floodsearch export ... | head`: typer ends the process so, and rich in `--help`
        return DONE
    except Exception as error:
        log.debug("this ended it:", exc_info=error)
        _say(_message(error))
        return _exit_status(error)


def _check_current_folder() -> None:
    """Say at once that the current folder was deleted: torch and others fail on it in words of their own."""
    try:
        Path.cwd()
    except OSError as error:
        raise UsageError(f"the current folder cannot be used ({error.strerror}); cd to another one") from None


def _read_environment() -> None:
    """Take the storage's URL from the file that the environment names, as it may hold a password.

    Raises:
        UsageError: if a variable of ours is empty, which would otherwise mean the default without a word.
    """
    for name in VARIABLES:
        if not os.environ.get(name, "unset").strip():
            raise UsageError(f"{name} is empty; give it a value, or unset it")
    path = os.environ.get("FLOODSEARCH_STORAGE_FILE")
    if path is None or "FLOODSEARCH_STORAGE" in os.environ:
        return
    try:
        url = expanded(Path(path)).read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is no text"
        raise UsageError(f"FLOODSEARCH_STORAGE_FILE is {path}, which cannot be read: {why}") from None
    if not url:
        raise UsageError(
            f"FLOODSEARCH_STORAGE_FILE is {path}, which is empty; write the storage's URL into it"
        )
    os.environ["FLOODSEARCH_STORAGE"] = url


def _message(error: Exception) -> str:
    if isinstance(error, FloodsearchError):
        return str(error)
    if hasattr(error, "format_message"):  # typer's own: an unknown option, a missing argument
        return f"{error.format_message()} See floodsearch --help.".strip()
    if isinstance(error, OSError) and error.filename is None and error.errno in NOT_WRITTEN:
        return f"standard output cannot be written: {error.strerror}"
    first = str(error).splitlines()[0] if str(error) else ""
    return f"unexpected {type(error).__name__}: {first} (floodsearch --debug ... shows where)"


def _exit_status(error: Exception) -> int:
    if isinstance(error, UsageError) or hasattr(error, "format_message"):
        return WRONG_USE
    return FAILED


def _hand_back(number: int, frame: object) -> None:
    del number, frame
    raise typer.Exit(HANDED_BACK)


def _terminate(number: int, frame: object) -> None:
    del frame
    sys.exit(128 + number)


def _end_now(number: int, frame: object) -> None:
    del frame
    os._exit(128 + number)


def _end_after(seconds: float, number: int) -> None:
    """End the process after a signal, unless Python's own handler of it comes first, as it should."""
    time.sleep(seconds)
    os._exit(128 + number)


@contextmanager
def _signals_obeyed() -> Iterator[None]:
    """Let SIGINT and SIGTERM end a command whatever it does; workers and launches listen for themselves."""
    if threading.current_thread() is not threading.main_thread():  # of a program that calls us
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # as in the background of a shell
            # Without a handler, process 1 of a container ignores SIGTERM. KeyboardInterrupt in an import
            # changes the exit status of Python.
            signal.signal(number, _terminate)
    end = listen(lambda number: _end_after(SECONDS_TO_END, number))
    try:
        yield
    finally:
        end()
        for number, handler in before.items():
            signal.signal(number, handler)


def _opened(storage: str, *, create: bool = False, read_only: bool = False) -> Database:
    from floodsearch.storage.database import open_database

    return open_database(storage, create=create, read_only=read_only)


@contextmanager
def _found(storage: str, name: str, *, read_only: bool = False) -> Iterator[StoredStudy]:
    from floodsearch.storage.studies import find_study

    with _opened(storage, read_only=read_only) as database:
        yield find_study(database, name)


@contextmanager
def _joined(storage: str, *, launched: bool) -> Iterator[Database]:
    """Open a storage to train a study of it.

    Raises:
        FloodsearchError: where the storage cannot be opened, but was by the launch that has started this
            worker: it is away for now, so that another worker is to be started.
        StorageError: where it cannot be opened.
    """
    try:
        database = _opened(storage)
    except StorageError as error:
        if launched:
            raise FloodsearchError(str(error)) from None
        raise
    with database:
        yield database


def _read(path: Path) -> Spec:
    """Return the spec of a study file, whose code is found beside it and in the current folder.

    What that code prints goes to standard error from now on.
    """
    from floodsearch.catalog import known
    from floodsearch.study.reader import read

    keep_stdout()
    folders = beside(path)
    search_in(folders)
    return read(path, known(folders))


def _show(launched: Launch) -> None:
    """Show live progress: a line that changes in a terminal, plain lines elsewhere."""
    from rich.console import Console
    from rich.live import Live

    from floodsearch.report.text import progress_text

    console = Console(stderr=True)
    if launched.slots:
        count, devices = len(launched.slots), ", ".join(launched.crew.devices)
        workers = "1 worker" if count == 1 else f"{count} workers"
        _say(f"{workers} on {devices}; logs in {launched.slots[0].log.parent}")
    if console.is_terminal:
        with Live(console=console, refresh_per_second=4) as live:
            for status, said in launched.watch():
                for text in said:
                    _say(text)
                live.update(_view(status))
        return
    shown, last = "", 0.0
    for status, said in launched.watch():
        for text in said:
            _say(text)
        line = progress_text(status)
        if line != shown and (time.monotonic() - last >= PLAIN_SECONDS or status.finished):
            _say(line)
            shown, last = line, time.monotonic()


def _view(status: StudyStatus) -> Table:
    """Return a bar over the epochs that are expected, what is trained and found, and a line a worker."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    from floodsearch.report.text import crew_lines, found_text, share_done, stage_text, time_text

    share = share_done(status)
    told = ", ".join(filter(None, ("" if share is None else f"{share:.0%}", time_text(status))))
    bar = Table.grid(padding=(0, 1))
    total = None if share is None else 1.0
    progress = ProgressBar(total=total, completed=share or 0.0, width=24)
    bar.add_row(Text(one_line(status.name)), progress, told)
    view = Table.grid()
    view.add_row(bar)
    for line in (stage_text(status), found_text(status), *crew_lines(status)):
        if line:
            view.add_row(Text(line, style="dim", no_wrap=True, overflow="ellipsis"))
    return view


def _flattened(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _flattened(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _confirm(question: str) -> None:
    """Ask a person; return if the answer is yes.

    Raises:
        UsageError: if there is nobody to ask.
        typer.Exit: if the answer is another.
    """
    from rich.console import Console
    from rich.prompt import Confirm
    from rich.text import Text

    console = Console(stderr=True)
    try:
        if Confirm.ask(Text(escaped(question)), console=console, default=False):
            return
    except EOFError:
        console.print()  # ends the line of the question
        if not sys.stdin.isatty():
            raise UsageError("nothing was deleted: there is no terminal to ask on; add --yes") from None
    _say("nothing was deleted")
    raise typer.Exit(FAILED)


def _print(text: str) -> bool:
    """Print a text as a terminal takes it; return whether anybody still reads it."""
    try:
        print(escaped(text), file=stdout(), flush=True)
    except BrokenPipeError:  # `floodsearch logs ... | head`: the reader has what it wanted
        mute(stdout())
        return False
    return True


def _print_json(content: object) -> None:
    # The only character that JSON leaves as it is, and a terminal does not show.
    _print(json.dumps(content, indent=2).replace("\x7f", "\\u007f"))


def _write(content: bytes) -> None:
    """Write data as they are to standard output, or as text to a terminal."""
    if stdout().isatty():
        _print(content.decode().removesuffix("\n"))
    else:
        stdout().buffer.write(content)
        stdout().buffer.flush()


def _say(message: str) -> None:
    """Tell a person something; without anybody who listens, the command goes on."""
    try:
        print(f"floodsearch: {indented(message)}", file=sys.stderr, flush=True)  # noqa: T201
    except OSError:
        mute(sys.stderr)
