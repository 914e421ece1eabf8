"""The commands that ask a study and change nothing: status, best, weights, export, logs, serve."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Annotated

import typer

from floodsearch.cli.ending import end_now
from floodsearch.cli.opening import open_storage, open_study
from floodsearch.cli.options import AsJson, Checkpoints, Logs, Name, Storage, at_home
from floodsearch.cli.printing import echo, echo_bytes, echo_json, say
from floodsearch.defaults import CHECKPOINTS, LOGS, LOOPBACK, STORAGE
from floodsearch.errors import FAILED, UsageError
from floodsearch.process.terminal import one_line, stdout


def status(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="One study.", show_default=False)
    ] = None,
    storage: Storage = STORAGE,
    as_json: AsJson = False,
) -> None:
    """Show where all studies stand, or one."""
    from floodsearch.queries import status as status_of
    from floodsearch.report.documents import status_document
    from floodsearch.report.text import notes_text, status_text
    from floodsearch.storage.studies import find_study, study_names

    with open_storage(storage, read_only=True) as database:
        if name is not None:
            one = status_of(find_study(database, name), with_answer=True)
            if as_json:
                echo_json(status_document(one))
            else:
                echo("\n".join(filter(None, (status_text(one), notes_text(one)))))
            return
        found = [status_of(find_study(database, each)) for each in study_names(database)]
        if as_json:
            echo_json([status_document(one) for one in found])
        else:
            echo("\n".join(map(status_text, found)) or f"no studies in {database.name}")


def best(name: Name, storage: Storage = STORAGE, as_json: AsJson = False) -> None:
    """Print the answer: which level, how much better than none, at what cost."""
    from floodsearch.queries import answer
    from floodsearch.report.documents import best_document
    from floodsearch.report.text import best_text

    with open_study(storage, name, read_only=True) as study:
        found = answer(study)
        if as_json:
            echo_json(best_document(found))
        else:
            echo(best_text(found))
    if found.failed:
        raise typer.Exit(FAILED)


def weights(
    name: Name,
    out: Annotated[
        Path,
        typer.Option(metavar="FOLDER", help="Where to copy them.", show_default=False, callback=at_home),
    ],
    storage: Storage = STORAGE,
    checkpoints: Checkpoints = str(CHECKPOINTS),
) -> None:
    """Copy the weights of the level that `best` answers with, one file a seed."""
    from floodsearch.queries import answer
    from floodsearch.report.text import weights_text
    from floodsearch.report.weights import copy_weights

    with open_study(storage, name, read_only=True) as study:
        found = answer(study)
        copied = copy_weights(study, found, checkpoints, out)
        echo(weights_text(found, study.spec.training.keep, copied))


def export(
    name: Name,
    storage: Storage = STORAGE,
    form: Annotated[str, typer.Option("--format", metavar="FORMAT", help="csv, json or parquet")] = "csv",
    curves: Annotated[
        bool, typer.Option("--curves", help="One row a seed and epoch instead of a trial.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Standard output by default.", callback=at_home),
    ] = None,
) -> None:
    """Write the data of a study."""
    from floodsearch.report.export import FORMATS, curve_rows, trial_rows

    if form not in FORMATS:
        raise UsageError(f"format {form!r} is not known; use {', '.join(FORMATS)}")
    shown = out is None and stdout().isatty()
    if form == "parquet" and shown:
        raise UsageError("parquet is not text; give --out FILE or redirect the output")
    with open_study(storage, name, read_only=True) as study:
        columns, rows = curve_rows(study) if curves else trial_rows(study)
    content = FORMATS[form](columns, one_line(rows) if shown and form == "csv" else rows)
    if out is None:
        echo_bytes(content)
        return
    try:
        out.write_bytes(content)
    except OSError as error:
        raise UsageError(f"{out} cannot be written: {error.strerror}") from None


def logs(
    name: Name,
    run: Annotated[
        str | None,
        typer.Option(
            metavar="RUN", help="ticket-3 or ticket-3-seed-0: what these runs have printed instead."
        ),
    ] = None,
    lines: Annotated[int, typer.Option(metavar="N", min=1, help="The last ones of each log.")] = 10,
    follow: Annotated[bool, typer.Option("--follow", help="Go on until Ctrl-C.")] = False,
    logs: Logs = LOGS,
) -> None:
    """Show what the workers of a study said that was launched in this folder, or what its runs printed."""
    from floodsearch.launchers.local import POLL_SECONDS
    from floodsearch.launchers.logs import log_lines

    for line in log_lines(name, lines, logs, run):
        if line:
            if not echo(line):
                return
        elif not follow:
            return
        else:
            time.sleep(POLL_SECONDS)


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
        say(f"optuna-dashboard on http://{host}:{port}, Ctrl-C ends it")
        if host != LOOPBACK:
            say("the dashboard has no access control: whoever reaches this address can read all studies")

    # The server takes an exception for its end; but it has nothing to lose.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end_now)
    with open_storage(storage, read_only=True) as database:
        try:
            run_server(database, host, port, names=allow_host or (), listening=say_where)
        except OSError as error:
            why = f"{host} port {port} cannot be used: {error.strerror}"
            raise UsageError(f"{why}; choose another --port or --host") from None
