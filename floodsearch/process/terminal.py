"""Text as a terminal takes it, and the standard streams of a command line.

Names, reasons and logs come from rows and from other programs: their characters may move a cursor, turn the
order of letters round, or look like a line of ours. And code of others prints where our own output goes.
"""

from __future__ import annotations

import codecs
import dataclasses
import io
import logging
import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, TextIO, TypeVar

Value = TypeVar("Value")

PLAIN: Mapping[str, str] = {"±": "+-", "·": "|", "…": "..."}
"""Signs that text of ours may hold, and what is printed where a terminal has them not."""
TOLERANT = "floodsearch.plain"
"""The name of the error handler that prints these, and of other characters their escapes."""


def escape(text: str) -> str:
    r"""Return a text with what cannot be seen as escapes such as `\x1b`; lines and tabs stay.

    These are control characters, invisible ones such as those that turn the order of letters round, and
    halves of a character.
    """
    return text if text.isprintable() else "".join(map(_escape, text))


def _escape(character: str) -> str:
    if character.isprintable() or character in "\n\t":
        return character
    return character.encode("unicode_escape").decode()


def one_line(value: Value) -> Value:
    """Return a text in one line, escaped; or a record, sequence or mapping with each text of it so."""
    found: Any = value
    if isinstance(value, str):
        found = escape(value).replace("\n", "\\n")
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        found = dataclasses.replace(value, **{name: one_line(one) for name, one in _fields(value)})
    elif isinstance(value, Mapping):
        found = {one_line(key): one_line(one) for key, one in value.items()}
    elif isinstance(value, list | tuple):
        parts = [one_line(one) for one in value]
        found = type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return found  # type: ignore[no-any-return]


def _fields(record: Any) -> Iterator[tuple[str, Any]]:
    return ((field.name, getattr(record, field.name)) for field in dataclasses.fields(record))


def indent_lines(text: str) -> str:
    """Return a text, escaped, in which no line but the first can be taken for the beginning of a text."""
    return re.sub(r"\n(?=\S)", "\n  ", escape(text))


class LogFormatter(logging.Formatter):
    """Formats records as lines of a log, escaped, of which all but the first one of each are indented."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the lines of a record."""
        return escape(super().format(record)).replace("\n", "\n  ")


def hush(logger: str) -> None:
    """Let a library's logger tell warnings only, unless somebody has set it otherwise."""
    if (found := logging.getLogger(logger)).level == logging.NOTSET:
        found.setLevel(logging.WARNING)


# Standard streams

_own: TextIO | None = None


def stdout() -> TextIO:
    """Return the stream to which a command prints its result, rather than messages."""
    return sys.stdout if _own is None else _own


def keep_stdout() -> None:
    """Keep standard output to ourselves: what others print from now on goes to standard error.

    That holds for code of a user's that is about to be imported, for what it prints below Python and when
    the process ends, and for processes that it starts.
    """
    global _own  # noqa: PLW0603 - as global as the streams of a process are
    if _own is not None:
        return
    shared = _own = sys.stdout
    of_the_process = sys.stdout is sys.__stdout__  # else somebody holds it for us already, as a test does
    if of_the_process:
        shared.flush()
        _own = os.fdopen(os.dup(shared.fileno()), "w", encoding=shared.encoding, errors=TOLERANT)
        os.dup2(sys.stderr.fileno(), shared.fileno())
    sys.stdout = sys.stderr


@contextmanager
def standard_streams() -> Iterator[None]:
    """Give a command streams that take every character, also where the process was started without them."""
    global _own
    _reopen()
    before = sys.stdout, sys.stderr
    for stream in before:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=TOLERANT)
    try:
        yield
    finally:
        for stream in (stdout(), sys.stderr):
            try:
                stream.flush()
            except OSError:
                mute(stream)  # or Python would complain of it once more when it ends
        (sys.stdout, sys.stderr), _own = before, None


def mute(stream: TextIO) -> None:
    """Let a stream that nobody reads any more, or whose disk is full, take what is still to come."""
    with suppress(OSError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def _reopen() -> None:
    """Put something in the place of streams that are closed, before a file of ours takes their numbers.

    Standard output becomes one that cannot be written: whoever asks for an answer is to hear of it.
    """
    ways = (("stdin", "r", os.O_RDONLY), ("stdout", "w", os.O_RDONLY), ("stderr", "w", os.O_WRONLY))
    for number, (name, mode, flags) in enumerate(ways):
        if getattr(sys, name) is None:
            opened = os.open(os.devnull, flags)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            stream = open(number, mode, closefd=False)  # noqa: SIM115
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)


def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    plain = (PLAIN.get(one) or one.encode("ascii", "backslashreplace").decode() for one in missing)
    return "".join(plain), error.end


codecs.register_error(TOLERANT, _plain)
