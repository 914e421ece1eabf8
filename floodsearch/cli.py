"""The command line: the only reader of arguments and environment, the only printer.

Heavy packages are imported by the command that needs them, so that `floodsearch --help` is quick.
"""

from __future__ import annotations

import dataclasses
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

from floodsearch.defaults import CHECKPOINTS, LEAVE_SECONDS, LOOPBACK, STORAGE
from floodsearch.errors import HANDED_BACK, INTERRUPTED, FloodsearchError, UsageError
from floodsearch.signals import listen

if TYPE_CHECKING:
    from rich.table import Table

    from floodsearch.forecast import Stage, Timed
    from floodsearch.launchers.local import Launch
    from floodsearch.records import Pilot, StudyStatus
    from floodsearch.spec import Spec
    from floodsearch.storage.database import Database
    from floodsearch.storage.studies import StoredStudy

DONE, FAILED, WRONG_USE = 0, 1, 2
SECONDS_TO_END = 1.0
"""For Python to end a command after a signal; a call into C may last longer."""
SECONDS_TO_STOP = 40.0
"""The same of `launch`, whose workers hand back."""
VARIABLES = ("FLOODSEARCH_STORAGE", "FLOODSEARCH_STORAGE_FILE", "FLOODSEARCH_CHECKPOINTS")
PLAIN_SECONDS = 10.0
"""Between two progress lines when the output is not a terminal."""

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
log = logging.getLogger("floodsearch")

StudyFile = Annotated[Path, typer.Argument(metavar="STUDY.toml", help="The study file.", show_default=False)]
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
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and all log messages.")] = False,
) -> None:
    """Find the flood level b of |J - b| + b for your model and data."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING)
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
    detach: Annotated[
        bool, typer.Option("--detach", help="Return at once; follow it with `floodsearch logs NAME`.")
    ] = False,
) -> None:
    """Create or resume a study, train it with local workers, and print the answer."""
    from floodsearch import queue
    from floodsearch.answers import answer
    from floodsearch.files import check_place
    from floodsearch.launchers.local import Crew, Launch, available_cores
    from floodsearch.launchers.local import detach as in_background
    from floodsearch.report.text import best_text
    from floodsearch.storage.studies import put_study

    spec = _read(study)
    crew = Crew.of(devices, workers, workers_per_device, available_cores(), queue.portions(spec))
    check_place(checkpoints)
    with _opened(storage, create=True) as database:
        stored = put_study(database, spec)
        queue.fill(stored)
        if detach:
            arguments = [str(study), "--devices", ",".join(crew.devices), "--workers", str(len(crew.devices))]
            pid = in_background(arguments, spec.name, storage, checkpoints)
            print(  # noqa: T201
                f"{spec.name}: launched in the background as process {pid}; "
                f"see floodsearch logs {spec.name}, end it with floodsearch stop {spec.name}"
            )
            return
        signal.signal(signal.SIGTERM, _hand_back)
        if signal.getsignal(signal.SIGINT) is _terminate:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        listen(lambda number: _end_after(SECONDS_TO_STOP, number))
        launched = Launch(stored, storage, crew, checkpoints=checkpoints)
        try:
            with launched:
                _show(launched)
        except KeyboardInterrupt:
            _say("interrupted; give the same command again to go on")
            raise typer.Exit(INTERRUPTED) from None
        if (reason := stored.stopped()) is not None:
            _say(f"the study was stopped: {reason}")
        print(best_text(answer(stored)))  # noqa: T201
        if reason not in (None, queue.STOPPED_BY_COMMAND):
            raise typer.Exit(FAILED)


@app.command()
def create(study: StudyFile, storage: Storage = STORAGE) -> None:
    """Create or extend a study without training it; workers join with `floodsearch work`."""
    from floodsearch import queue
    from floodsearch.answers import status as status_of
    from floodsearch.report.text import status_text
    from floodsearch.storage.studies import put_study

    spec = _read(study)
    with _opened(storage, create=True) as database:
        stored = put_study(database, spec)
        queue.fill(stored)
        print(status_text(status_of(stored)))  # noqa: T201


@app.command()
def work(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="The study's name, or its file.", show_default=False)
    ],
    storage: Storage = STORAGE,
    device: Annotated[str, typer.Option(metavar="DEVICE", help="auto, cpu, mps, cuda or cuda:N")] = "auto",
    threads: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Threads of torch on the CPU.")
    ] = None,
    trust: Annotated[
        list[str] | None,
        typer.Option(metavar="MODULE", help="Import this module, or run this command, if the study asks."),
    ] = None,
    leave_on_eof: Annotated[
        bool, typer.Option("--leave-on-eof", help="Leave when standard input ends, as when ssh is cut.")
    ] = False,
    checkpoints: Checkpoints = str(CHECKPOINTS),
    grace: Annotated[
        float, typer.Option(metavar="SECONDS", min=1, help="To leave in after SIGTERM, SIGINT or SIGUSR1.")
    ] = LEAVE_SECONDS,
) -> None:
    """Join a study as one worker, on this machine."""
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, _hand_back)  # until the imports are done that take a second
    from floodsearch.files import check_place, is_url
    from floodsearch.heart import Leave, Settings

    leave = Leave()
    leave.on_signals(signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, grace=grace)
    from floodsearch.worker import work as train

    log.setLevel(min(log.level, logging.INFO))
    _import_from_here(Path.cwd())
    if leave_on_eof:
        leave.on_end_of(sys.stdin.buffer)
    trusted: set[str | None] = {None, *(trust or ())}
    if name.endswith(".toml"):
        spec = _read(Path(name))
        name = spec.name
        trusted.add(spec.trust)
    check_place(checkpoints)
    with _found(storage, name) as study:
        if (wanted := study.spec.trust) is not None and wanted not in trusted:
            does = "runs the command" if study.spec.command else "trains code of"
            raise UsageError(
                f"study {name!r} {does} {wanted!r}, which only the database names; if you trust it, "
                f"add --trust {shlex.quote(wanted)}, or give the study file instead of the name"
            )
        place = checkpoints if is_url(checkpoints) else Path(checkpoints).absolute()
        reason = train(study, Settings(device=device, threads=threads, checkpoints=place), leave)
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
    from floodsearch.answers import status as status_of
    from floodsearch.report.text import notes_text, status_text
    from floodsearch.storage.studies import find_study, study_names

    with _opened(storage, read_only=True) as database:
        if name is not None:
            one = status_of(find_study(database, name), with_answer=True)
            if as_json:
                _print_json(dataclasses.asdict(one))
            else:
                print("\n".join(filter(None, (status_text(one), notes_text(one)))))  # noqa: T201
            return
        found = [status_of(find_study(database, each)) for each in study_names(database)]
        if as_json:
            _print_json([dataclasses.asdict(one) for one in found])
        else:
            print("\n".join(map(status_text, found)) or f"no studies in {database.name}")  # noqa: T201


@app.command()
def best(name: Name, storage: Storage = STORAGE, as_json: AsJson = False) -> None:
    """Print the answer: which level, how much better than none, at what cost."""
    from floodsearch.answers import answer
    from floodsearch.report.text import best_text

    with _found(storage, name, read_only=True) as study:
        found = answer(study)
        if as_json:
            _print_json(dataclasses.asdict(found))
        else:
            print(best_text(found))  # noqa: T201


@app.command()
def weights(
    name: Name,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where to copy them.", show_default=False)],
    storage: Storage = STORAGE,
    checkpoints: Checkpoints = str(CHECKPOINTS),
) -> None:
    """Copy the weights of the level that `best` answers with, one file a seed."""
    from floodsearch.answers import answer
    from floodsearch.report.text import weights_text
    from floodsearch.report.weights import copy_weights

    with _found(storage, name, read_only=True) as study:
        found = answer(study)
        copied = copy_weights(study, found, checkpoints, out)
        print(weights_text(found, study.spec.training.keep, copied))  # noqa: T201


@app.command()
def export(
    name: Name,
    storage: Storage = STORAGE,
    form: Annotated[str, typer.Option("--format", metavar="FORMAT", help="csv, json or parquet")] = "csv",
    curves: Annotated[
        bool, typer.Option("--curves", help="One row a seed and epoch instead of a trial.")
    ] = False,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Standard output by default.")] = None,
) -> None:
    """Write the data of a study."""
    from floodsearch.report.export import FORMATS, curve_rows, trial_rows

    if form not in FORMATS:
        raise UsageError(f"format {form!r} is not known; use {', '.join(FORMATS)}")
    if form == "parquet" and out is None and sys.stdout.isatty():
        raise UsageError("parquet is not text; give --out FILE or redirect the output")
    with _found(storage, name, read_only=True) as study:
        content = FORMATS[form](*(curve_rows(study) if curves else trial_rows(study)))
    if out is None:
        sys.stdout.buffer.write(content)
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
        typer.Option(metavar="SPEED", help="Samples a second: 21000, or by runs at once: 1=21000,4=70000."),
    ] = None,
    measure: Annotated[
        str | None,
        typer.Option(metavar="DEVICE", help="Train a few seconds on this device, to tell the speed."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the resolved study with all defaults, or all its problems, and what it would cost."""
    from floodsearch.forecast import plan
    from floodsearch.report.text import forecast_text
    from floodsearch.search.space import ticket_count

    spec = _read(study)
    count, stages = ticket_count(spec), plan(spec)
    expected = None if stages is None else sum(stage.epochs for stage in stages)
    exhaustive = None if count is None else count * len(spec.training.seeds) * spec.training.epochs
    times = _timed(spec, stages, speed, measure)
    seconds = sum(one.seconds for one in times) if times else None
    if seconds is None and storage is not None and expected is not None:
        pilot = _pilot_of(storage, spec.name)
        seconds = None if pilot is None else expected * pilot.seconds_per_epoch
    content = spec.model_dump(mode="json")
    if as_json:
        extra = {
            "fingerprint": spec.fingerprint(),
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
    print("\n".join(f"{key} = {json.dumps(value)}" for key, value in _flattened(content)))  # noqa: T201
    print(forecast_text(spec, count, expected, seconds, times))  # noqa: T201


def _timed(spec: Spec, stages: list[Stage] | None, speed: str | None, measure: str | None) -> list[Timed]:
    """Return how long each stage takes at a speed that is given or measured; nothing if neither is asked."""
    from floodsearch.forecast import at_once, speeds_of, timed

    if speed is None and measure is None:
        return []
    if speed is not None and measure is not None:
        raise UsageError("--speed and --measure are both given; keep one of the two")
    if spec.task is None:
        raise UsageError("the speed of a training loop of your own cannot be told beforehand; leave it out")
    if stages is None:
        raise UsageError("the time is not known before the pilot has found the levels; give levels.count")
    from floodsearch.speed import measured, samples_of

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
        study.stop(STOPPED_BY_COMMAND)
        print(f"{name}: no more tickets are handed out; workers leave within a few seconds")  # noqa: T201


@app.command()
def logs(
    name: Name,
    lines: Annotated[int, typer.Option(metavar="N", min=1, help="The last ones of each worker.")] = 10,
    follow: Annotated[bool, typer.Option("--follow", help="Go on until Ctrl-C.")] = False,
) -> None:
    """Show what the workers of a study said that was launched in this folder."""
    from floodsearch.launchers.local import POLL_SECONDS, log_lines

    for line in log_lines(name, lines):
        if line:
            print(line, flush=True)  # noqa: T201
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
    from floodsearch.answers import status as status_of
    from floodsearch.files import check_place, files_at
    from floodsearch.storage.studies import delete_study

    check_place(checkpoints)
    with _found(storage, name) as study:
        now = status_of(study)
        if now.workers:
            trains = f"{now.workers} worker{'s' * (now.workers > 1)}"
            raise UsageError(
                f"study {name!r} is trained by {trains} now; end that with floodsearch stop {name}"
            )
        if not yes:
            trained = f"{now.trials.total} tickets, {now.epochs_run:,} epochs trained"
            typer.confirm(f"delete study {name} ({trained}) from {study.database.name}?", abort=True)
        delete_study(study)
        try:
            files_at(checkpoints).within(study.folder).clear()
        except OSError as error:
            _say(f"its checkpoints stay: {error}")
    print(f"{name}: deleted")  # noqa: T201


@app.command()
def serve(
    storage: Storage = STORAGE,
    port: Annotated[int, typer.Option(metavar="PORT", min=1, max=65535, help="To listen on.")] = 8080,
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
    from floodsearch.serve import serve as run_server

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
    with _signals_obeyed():
        _run()


def _run() -> None:
    try:
        _read_environment()
        sys.exit(app(standalone_mode=False) or DONE)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:  # `floodsearch export ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(FAILED)
    except Exception as error:
        if log.isEnabledFor(logging.DEBUG):
            raise
        _say(_message(error))
        sys.exit(_exit_status(error))


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
        url = Path(path).read_text(encoding="utf-8").strip()
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


def _import_from_here(folder: Path) -> None:
    """Let a study name modules beside its file and in the current folder, as `python -m` would."""
    for path in (str(folder.absolute()), str(Path.cwd())):
        if path not in sys.path:
            sys.path.insert(0, path)


def _read(path: Path) -> Spec:
    """Return the spec of a study file, whose modules are found beside it and in the current folder."""
    from floodsearch.catalog import known
    from floodsearch.studyfile import read

    _import_from_here(path.parent)
    return read(path, known())


def _show(launched: Launch) -> None:
    """Show live progress: a line that changes in a terminal, plain lines elsewhere."""
    import time

    from rich.console import Console
    from rich.live import Live

    from floodsearch.report.text import progress_text

    console = Console(stderr=True)
    if launched.slots:
        workers = ", ".join(launched.crew.devices)
        _say(f"{len(launched.slots)} workers on {workers}; logs in {launched.slots[0].log.parent}")
    if console.is_terminal:
        with Live(console=console, refresh_per_second=4) as live:
            for status in launched.watch():
                live.update(_view(status))
        return
    shown, last = "", 0.0
    for status in launched.watch():
        line = progress_text(status)
        if line != shown and (time.monotonic() - last >= PLAIN_SECONDS or status.finished):
            _say(line)
            shown, last = line, time.monotonic()


def _view(status: StudyStatus) -> Table:
    """Return a bar over the tickets, and a line of numbers under it."""
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    from floodsearch.report.text import progress_text

    ended = status.trials.total - status.trials.unfinished
    bar = Table.grid(padding=(0, 1))
    total = None if status.piloting else status.trials.total
    progress = ProgressBar(total=total, completed=ended, width=40)
    told = "pilot" if status.piloting else f"{ended} of {status.trials.total} tickets"
    bar.add_row(status.name, progress, told)
    view = Table.grid()
    view.add_row(bar)
    view.add_row(Text(progress_text(status), style="dim"))
    return view


def _flattened(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _flattened(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _print_json(content: object) -> None:
    print(json.dumps(content, indent=2))  # noqa: T201


def _say(message: str) -> None:
    print(f"floodsearch: {message}", file=sys.stderr)  # noqa: T201
