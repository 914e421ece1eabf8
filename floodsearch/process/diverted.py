"""What code of the user's own prints, for a while, into a file: by Python's streams, from any thread."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO, cast


class Follower:
    """A stream in the place of a standard one, which is that one, or a file while there is one.

    Loggers and progress bars keep the stream that they find when they are made: they follow it too.

    Args:
        own: the standard stream.
    """

    def __init__(self, own: TextIO) -> None:
        self._own = own
        self._file: TextIO | None = None
        self._failed: Callable[[OSError], object] = lambda error: None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file or self._own, name)

    def write(self, text: str) -> int:
        """Write a text; where the file takes no more, what is still to come goes to the standard stream."""
        if self._file is not None:
            try:
                return self._file.write(text)
            except OSError as error:
                self._give_up(error)
        return self._own.write(text)

    def flush(self) -> None:
        """Let all that was written be seen."""
        try:
            (self._file or self._own).flush()
        except OSError as error:
            if self._file is None:
                raise
            self._give_up(error)

    def fileno(self) -> int:
        """Return the descriptor of the standard stream: who keeps it may outlive the file."""
        return self._own.fileno()

    def follow(self, file: TextIO | None, failed: Callable[[OSError], object]) -> None:
        """Write to a file from now on, or to the standard stream; `failed` is told why a file fails."""
        self._file, self._failed = file, failed

    def _give_up(self, error: OSError) -> None:
        self._file = None
        self._failed(error)


def follow_streams() -> None:
    """Put followers in the place of Python's standard streams, before code of others keeps one of them."""
    sys.stdout, sys.stderr = _follower(sys.stdout), _follower(sys.stderr)


def _follower(stream: TextIO) -> TextIO:
    return stream if isinstance(stream, Follower) else cast(TextIO, Follower(stream))


@contextmanager
def diverted(file: TextIO, failed: Callable[[OSError], object]) -> Iterator[None]:
    """Let Python's standard streams write to a file.

    What is printed below Python, or by processes that inherit the streams, goes where it went.

    Args:
        file: where to.
        failed: told why the file takes no more, once.
    """
    before = sys.stdout, sys.stderr
    follow_streams()
    followers = [cast(Follower, stream) for stream in (sys.stdout, sys.stderr)]

    def give_up(error: OSError) -> None:
        for one in followers:
            one.follow(None, failed)
        failed(error)

    for one in followers:
        one.follow(file, give_up)
    try:
        yield
    finally:
        for one in followers:
            one.follow(None, failed)
        sys.stdout, sys.stderr = before
