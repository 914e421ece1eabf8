"""A command of the user's own while it runs: under a guard, its output kept in a log and read as it comes."""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from floodsearch.process import guard
from floodsearch.training.printed import Lines

GUARD = (sys.executable, "-I", "-S", str(Path(guard.__file__)))
"""A guard, as it is started: Python alone, which takes some hundredths of a second."""
GRACE_SECONDS = 10.0
"""Between SIGTERM and SIGKILL; less than a launch waits for its workers."""
LOOK_SECONDS = 0.5
"""Between two looks at whether the worker is to leave, while the script prints nothing."""
LATE_SECONDS = 2.0
"""How much later than that a guard may have ended."""
LAST_LINES, LAST_CHARACTERS = 3, 200
"""Of what a script that failed has said last: so many lines, of so many characters each."""


class RunningCommand:
    """A command, which ends with this process, however that ends.

    Args:
        words: the program and its arguments.
        log: takes in all that it prints; closed here.
        run: hex digits of the run; an earlier process of the same run is ended first.
        leaving: whether nobody wants more of it.

    Attributes:
        said: its last lines of standard error.
    """

    def __init__(self, words: Sequence[str], log: IO[bytes], run: str, leaving: Callable[[], bool]) -> None:
        self.leaving = leaving
        self.said: deque[str] = deque(maxlen=LAST_LINES)
        environment = {key: value for key, value in os.environ.items() if key != "FLOODSEARCH_STORAGE"}
        self._control, end = socket.socketpair()
        with log, end:
            self._process: subprocess.Popen[bytes] = subprocess.Popen(  # noqa: S603 - what the study file names, without a shell
                [*GUARD, str(log.fileno()), run, str(GRACE_SECONDS), *words],
                # Python would print into a pipe only when 8 KB have come together.
                env={**environment, "PYTHONUNBUFFERED": "1"},
                stdin=end.fileno(),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=[log.fileno()],
                start_new_session=True,  # no Ctrl-C at a terminal reaches it
            )
        self._selector = selectors.DefaultSelector()
        self._cut: dict[Any, Lines] = {self._process.stdout: Lines(), self._process.stderr: Lines()}
        for stream in self._cut:
            self._selector.register(stream, selectors.EVENT_READ)

    def lines(self) -> Iterator[bytes]:
        """Yield the lines of standard output; it ends with the output, or when nobody wants more."""
        while self._selector.get_map() and not self.leaving():
            for key, _ in self._selector.select(LOOK_SECONDS):
                yield from self._read(key.fileobj)

    def _read(self, stream: Any) -> list[bytes]:
        """Take in what a stream has; return its whole lines, if it is standard output."""
        content = os.read(stream.fileno(), 2**16)
        if not content:
            self._selector.unregister(stream)
        lines = self._cut[stream].add(content)
        if stream is self._process.stdout:
            return lines
        for line in lines:
            if text := line.decode(errors="replace").strip():
                self.said.append(text[:LAST_CHARACTERS])
        return []

    @property
    def pid(self) -> int:
        """The number of the guard, below which the command and all that it has started are."""
        return self._process.pid

    def wait(self) -> int:
        """Wait until it has ended; return its exit status, or minus the signal that killed it."""
        while not self.leaving():
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self._process.wait(LOOK_SECONDS)
        return 0

    @property
    def refusal(self) -> str:
        """Why it was not started, of one that has ended; empty if it was."""
        with contextlib.suppress(ConnectionResetError):  # it has not heard all that we said to it
            return self._control.recv(2**12).decode(errors="replace")
        return ""

    def pause(self) -> None:
        """Stop it where it is, with all that it has started, until it goes on."""
        self._tell(guard.PAUSE)

    def go_on(self) -> None:
        """Let it go on where it was stopped."""
        self._tell(guard.GO_ON)

    def ask_to_end(self) -> None:
        """Ask it to end, stopped or not: SIGTERM, and SIGKILL for what takes too long."""
        self._tell(guard.END)

    def end(self) -> None:
        """End it with all that it has started, and wait for that."""
        self.ask_to_end()
        deadline = time.monotonic() + GRACE_SECONDS + LATE_SECONDS
        self.leaving = lambda: time.monotonic() > deadline
        for _ in self.lines():
            pass
        with contextlib.suppress(subprocess.TimeoutExpired):  # what cannot be killed now is left to its guard
            self._process.wait(max(0.0, deadline - time.monotonic()))
        self._selector.close()
        for stream in (self._control, self._process.stdout, self._process.stderr):
            if stream is not None:
                stream.close()

    def _tell(self, what: bytes) -> None:
        with contextlib.suppress(OSError):  # it has ended
            self._control.send(what)
