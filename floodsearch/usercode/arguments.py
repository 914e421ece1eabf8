"""What code of the user's own finds in `sys.argv`: its own name and arguments, as if Python ran its file."""

from __future__ import annotations

import argparse
import json
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from floodsearch.errors import named

_outer: list[list[str]] = []
"""The process's own words, and above them those that are lent; empty where none are."""


@contextmanager
def lent(program: str, arguments: Sequence[str]) -> Iterator[None]:
    """Let `sys.argv` be a program and its arguments for as long as this lasts, in all threads.

    Each time it is a new list, whatever the code did to the one before.

    Raises:
        SystemExit: that of the code, in the words of what ended it, such as its parser of arguments.
    """
    words = [program, *arguments]
    if not _outer:
        _outer.append(sys.argv)
    _outer.append(words)
    sys.argv = words
    try:
        yield
    except SystemExit as error:
        if not isinstance(error.code, str):  # else it says itself why
            given = json.dumps([*arguments])
            error.args = (f"{_said(error)}; the study file gives it arguments = {given}",)
        raise
    finally:
        # By identity, as workers in several threads end in any order.
        _outer[:] = [one for one in _outer if one is not words]
        sys.argv = _outer[-1]
        if len(_outer) == 1:
            _outer.clear()


def _said(error: SystemExit) -> str:
    """Return what made code exit with a number: what its parser printed, or the error that it had caught."""
    if not error.code:
        return "it called sys.exit(0), as a script or --help does"
    for frame, _ in reversed([*traceback.walk_tb(error.__traceback__)]):
        message = frame.f_locals.get("message")  # of `error` and `exit` of a parser, which print it
        if isinstance(frame.f_locals.get("self"), argparse.ArgumentParser) and isinstance(message, str):
            return " ".join(message.split())
    cause = error.__context__
    return f"exit status {error.code}" + ("" if cause is None else f" after {named(cause)}")
