"""How a command ends: by a signal or an error, and with which exit status."""

from __future__ import annotations

import errno
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import typer

from floodsearch.errors import FAILED, HANDED_BACK, WRONG_USE, DamagedError, FloodsearchError, UsageError
from floodsearch.process.signals import listen

SECONDS_TO_END = 1.0
"""For Python to end a command after a signal; a call into C may last longer."""
SECONDS_TO_STOP = 40.0
"""The same of `launch`, whose workers hand back."""
NOT_WRITTEN = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EBADF, errno.EIO)
"""What is wrong where a stream cannot be written."""


def message_of(error: Exception) -> str:
    """Return the message for a person of an error that ends a command."""
    if isinstance(error, FloodsearchError):
        return str(error)
    if hasattr(error, "format_message"):  # typer's own: an unknown option, a missing argument
        return f"{error.format_message()} See floodsearch --help.".strip()
    if isinstance(error, OSError) and error.filename is None and error.errno in NOT_WRITTEN:
        return f"standard output cannot be written: {error.strerror}"
    first = str(error).splitlines()[0] if str(error) else ""
    return f"unexpected {type(error).__name__}: {first} (floodsearch --debug ... shows where)"


def exit_status(error: Exception) -> int:
    """Return the exit status of a command that an error ends."""
    if isinstance(error, UsageError | DamagedError) or hasattr(error, "format_message"):
        return WRONG_USE
    return FAILED


@contextmanager
def obey_signals() -> Iterator[None]:
    """Let SIGINT and SIGTERM end a command whatever it does; workers and launches listen for themselves."""
    if threading.current_thread() is not threading.main_thread():  # of a program that calls us
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # as in the background of a shell
            # Without a handler, process 1 of a container ignores SIGTERM. KeyboardInterrupt in an import
            # changes the exit status of Python.
            signal.signal(number, terminate)
    end = listen(lambda number: end_after(SECONDS_TO_END, number))
    try:
        yield
    finally:
        end()
        for number, handler in before.items():
            signal.signal(number, handler)


def hand_back(number: int, frame: object) -> None:
    """Handle a signal: end a command that is to be started again, with the exit status that says so."""
    del number, frame
    raise typer.Exit(HANDED_BACK)


def terminate(number: int, frame: object) -> None:
    """Handle a signal: end a command as the signal itself would, but close what is open."""
    del frame
    sys.exit(128 + number)


def end_now(number: int, frame: object) -> None:
    """Handle a signal: end the process at once, whatever it does."""
    del frame
    os._exit(128 + number)


def end_after(seconds: float, number: int) -> None:
    """End the process after a signal, unless Python's own handler of it comes first, as it should."""
    time.sleep(seconds)
    os._exit(128 + number)
