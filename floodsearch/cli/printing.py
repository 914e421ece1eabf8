"""What a command prints, and what it tells and asks a person beside that: nothing else of it prints."""

from __future__ import annotations

import logging
import sys

import typer

from floodsearch.errors import FAILED, UsageError
from floodsearch.process.terminal import LogFormatter, escape, indent_lines, mute, stdout

OURS = logging.getLogger("floodsearch")
"""The logger above those of all our modules: its level decides what they tell."""


def leave_root_logger() -> None:
    """Log by our own loggers only: while root has a handler, `basicConfig` of a user's code does nothing."""
    root = logging.getLogger()
    for handler in [one for one in root.handlers if isinstance(one.formatter, LogFormatter)]:
        root.removeHandler(handler)
        OURS.addHandler(handler)


def echo(text: str) -> bool:
    """Print a text as a terminal takes it; return whether anybody still reads it."""
    try:
        print(escape(text), file=stdout(), flush=True)
    except BrokenPipeError:  # `floodsearch logs ... | head`: the reader has what it wanted
        mute(stdout())
        return False
    return True


def echo_json(document: object) -> None:
    """Print a document of `report.documents`."""
    from floodsearch.report.documents import json_text

    echo(json_text(document, indent=2))


def echo_bytes(content: bytes) -> None:
    """Write data as they are to standard output, or as text to a terminal."""
    if stdout().isatty():
        echo(content.decode().removesuffix("\n"))
    else:
        stdout().buffer.write(content)
        stdout().buffer.flush()


def say(message: str) -> None:
    """Tell a person something; without anybody who listens, the command goes on."""
    try:
        print(f"floodsearch: {indent_lines(message)}", file=sys.stderr, flush=True)  # noqa: T201
    except OSError:
        mute(sys.stderr)


def confirm(question: str) -> None:
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
        if Confirm.ask(Text(escape(question)), console=console, default=False):
            return
    except EOFError:
        console.print()  # ends the line of the question
        if not sys.stdin.isatty():
            raise UsageError("nothing was deleted: there is no terminal to ask on; add --yes") from None
    say("nothing was deleted")
    raise typer.Exit(FAILED)
