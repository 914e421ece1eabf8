"""The command line: the only reader of arguments and environment.

Heavy packages are imported by the command that needs them, so that `floodsearch --help` is quick.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from floodsearch.artifacts.files import expanded
from floodsearch.cli.ask import best, export, logs, serve, status, weights
from floodsearch.cli.check import check
from floodsearch.cli.end import delete, stop
from floodsearch.cli.ending import exit_status, message_of, obey_signals
from floodsearch.cli.init import init
from floodsearch.cli.printing import OURS, say
from floodsearch.cli.search import create, launch, work
from floodsearch.errors import DONE, INTERRUPTED, UsageError
from floodsearch.process.terminal import LogFormatter, mute, standard_streams, stdout

VARIABLES = tuple(f"FLOODSEARCH_{name}" for name in ("STORAGE", "STORAGE_FILE", "CHECKPOINTS", "LOGS"))

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (init, launch, create, work, status, best, weights, export, check, stop, logs, delete, serve):
    app.command()(command)  # in the order in which `--help` lists them


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and all log messages.")] = False,
) -> None:
    """Find the flood level b of |J - b| + b for your model and data."""
    handler = logging.StreamHandler()
    handler.setFormatter(LogFormatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    OURS.setLevel(logging.DEBUG if debug else logging.WARNING)
    # Where its storage fails we say so in a line; Optuna would add the whole statement.
    logging.getLogger("optuna.storages").setLevel(logging.DEBUG if debug else logging.ERROR)


def main() -> None:
    """Run the command line; every expected error is one message on stderr."""
    with standard_streams(), obey_signals():
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
        OURS.debug("this ended it:", exc_info=error)
        say(message_of(error))
        return exit_status(error)


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
