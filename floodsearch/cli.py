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
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from floodsearch.defaults import CHECKPOINTS, LEAVE_SECONDS, LOOPBACK, STORAGE
from floodsearch.errors import HANDED_BACK, FloodsearchError, NoAnswerError, StorageError, UsageError
from floodsearch.nesting import refuse

if TYPE_CHECKING:
    from rich.table import Table

    from floodsearch.forecast import Stage, Timed
    from floodsearch.launchers.local import Launch
    from floodsearch.records import Pilot, StudyStatus
    from floodsearch.spec import Spec
    from floodsearch.storage.database import Database
    from floodsearch.storage.studies import StoredStudy

DONE, FAILED, WRONG_USE, INTERRUPTED = 0, 1, 2, 130
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
    from floodsearch.files import check_place
    from floodsearch.launchers.local import Crew, Launch, available_cores
    from floodsearch.launchers.local import detach as in_background
    from floodsearch.storage.studies import put_study

    refuse("a search")
    spec = _read(study)
    crew = Crew.of(devices, workers, workers_per_device, available_cores(), queue.portions(spec))
    check_place(checkpoints)
    with _opened(storage, create=True) as database:
        stored = put_study(database, spec)
        queue.fill(stored)
        if detach:
            arguments = [str(study), "--checkpoints", checkpoints, "--devices", ",".join(crew.devices)]
            pid = in_background([*arguments, "--workers", str(len(crew.devices))], spec.name, storage)
            print(  # noqa: T201
                f"{spec.name}: launched in the background as process {pid}; "
                f"see floodsearch logs {spec.name}, end it with floodsearch stop {spec.name}"
            )
            return
        signal.signal(signal.SIGTERM, _terminate)
        launched = Launch(stored, storage, crew, checkpoints=checkpoints)
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
        Exit: if the study was stopped for a mistake.
    """
    from floodsearch.answers import answer
    from floodsearch.answers import status as status_of
    from floodsearch.queue import STOPPED_BY_COMMAND
    from floodsearch.report.text import best_text, failures_text

    reason = study.stopped()
    mistake = reason not in (None, STOPPED_BY_COMMAND)
    try:
        text = best_text(answer(study))
    except NoAnswerError:
        if mistake:
            raise NoAnswerError(f"the study was stopped: {reason}") from None
        raise
    print(text)  # noqa: T201
    if failures := failures_text(status_of(study)):
        _say(failures)
    if reason is not None:
        _say(f"the study was stopped: {reason}")
    if mistake:
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
    from floodsearch.files import check_place, is_url
    from floodsearch.heart import Leave, Settings
    from floodsearch.worker import work as train

    refuse("a worker")
    log.setLevel(min(log.level, logging.INFO))
    _import_from_here(Path.cwd())
    leave = Leave()
    leave.on_signals(signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, grace=grace)
    if leave_on_eof:
        leave.on_end_of(sys.stdin.buffer)
    trusted: set[str | None] = {None, *(trust or ())}
    if name.endswith(".toml"):
        spec = _read(Path(name))
        name = spec.name
        trusted.add(spec.trust)
    check_place(checkpoints)
    with _joined(storage, name, launched=leave_on_eof) as study:
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
        raise typer.Exit(INTERRUPTED if leave.signal == signal.SIGINT else HANDED_BACK)


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

    with _opened(storage) as database:
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

    with _found(storage, name) as study:
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

    with _found(storage, name) as study:
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
    with _found(storage, name) as study:
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
        with _found(storage, name) as study:
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
        str, typer.Option(metavar="ADDRESS", help="To listen on; others than the default can delete studies.")
    ] = LOOPBACK,
) -> None:
    """Show the studies in optuna-dashboard, on this machine only unless you say otherwise."""
    from floodsearch.serve import serve as run_server

    with _opened(storage) as database:
        _say(f"optuna-dashboard on http://{host}:{port}, Ctrl-C ends it")
        if host != LOOPBACK:
            _say("the dashboard has no access control: whoever reaches this address can delete studies")
        try:
            run_server(database, host, port)
        except OSError as error:
            why = f"{host} port {port} cannot be used: {error.strerror}"
            raise UsageError(f"{why}; choose another --port or --host") from None


def main() -> None:
    """Run the command line; every expected error is one message on stderr."""
    try:
        _read_storage_file()
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


def _read_storage_file() -> None:
    """Take the storage's URL from the file that the environment names, as it may hold a password."""
    path = os.environ.get("FLOODSEARCH_STORAGE_FILE")
    if path is None or "FLOODSEARCH_STORAGE" in os.environ:
        return
    try:
        os.environ["FLOODSEARCH_STORAGE"] = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "it is no text"
        raise UsageError(f"FLOODSEARCH_STORAGE_FILE is {path}, which cannot be read: {why}") from None


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


def _terminate(number: int, frame: object) -> None:
    del number, frame
    raise typer.Exit(HANDED_BACK)


@contextmanager
def _opened(storage: str, *, create: bool = False) -> Iterator[Database]:
    from floodsearch.storage.database import open_database

    database = open_database(storage, create=create)
    try:
        yield database
    finally:
        database.close()


@contextmanager
def _found(storage: str, name: str) -> Iterator[StoredStudy]:
    from floodsearch.storage.studies import find_study

    with _opened(storage) as database:
        yield find_study(database, name)


@contextmanager
def _joined(storage: str, name: str, *, launched: bool) -> Iterator[StoredStudy]:
    """Open a study to train it.

    Raises:
        FloodsearchError: where the storage cannot be opened, but was by the launch that has started this
            worker: it is away for now, so that another worker is to be started.
        UsageError: as `_found` does.
    """
    with ExitStack() as stack:
        try:
            study = stack.enter_context(_found(storage, name))
        except StorageError as error:
            if launched:
                raise FloodsearchError(str(error)) from None
            raise
        yield study


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
    bar.add_row(status.name, ProgressBar(total=total, completed=share or 0.0, width=24), told)
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


def _print_json(content: object) -> None:
    print(json.dumps(content, indent=2))  # noqa: T201


def _say(message: str) -> None:
    print(f"floodsearch: {message}", file=sys.stderr)  # noqa: T201
