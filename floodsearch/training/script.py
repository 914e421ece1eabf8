"""A script that is trained as it is: a process that prints a JSON line an epoch, in the place of a loop.

To a worker it is a training loop like any other, one whose state nobody else can keep: where a run pauses at
a rung its process is ended, and another begins it again from its start, or from checkpoints of the script's
own. The epochs that are known by then are not reported a second time.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import selectors
import shlex
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import IO, Any

from floodsearch.artifacts.files import Folder
from floodsearch.artifacts.names import log_name
from floodsearch.errors import LoopError
from floodsearch.records import REPORTED, Setting
from floodsearch.training.loop import LoopRun
from floodsearch.usercode.command import filled, located

GRACE_SECONDS = 10.0
"""Between SIGTERM and SIGKILL; less than a launch waits for its workers."""
LOOK_SECONDS = 0.5
"""Between two looks at whether the worker is to leave, while the script prints nothing."""
LAST_LINES, LAST_CHARACTERS = 3, 200
"""Of what a script that failed has said last: so many lines, of so many characters each."""
ENDS = re.compile(rb"[\r\n]")
"""What ends a line: a progress bar writes over its own by a carriage return only."""
LONGEST = 2**20
"""Bytes of a line; a longer one is no report."""
COLOURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
"""What a terminal takes for colours and moves."""
NAN = re.compile(r"(?<=:)\s*-?nan\b", re.IGNORECASE)
INFINITY = re.compile(r"(?<=:)\s*(-?)inf(inity)?\b", re.IGNORECASE)
"""Numbers as languages print them; JSON has none of these, and Python's reads NaN and Infinity."""


class Script:
    """A command that trains runs, one process each; call it with a run.

    Args:
        command: with placeholders, each a setting of the run or one of `PLACEHOLDERS`.
        outputs: the folder of all that its processes print, a file a run.
        leaving: whether the worker is to leave.
        folders: where files of the command are looked for before the current folder.
    """

    def __init__(
        self, command: str, outputs: Path, leaving: Callable[[], bool], folders: Sequence[Path] = ()
    ) -> None:
        self.command, self.outputs, self.leaving, self.folders = command, outputs, leaving, folders

    def __call__(self, run: LoopRun) -> None:
        """Train a part of a run.

        Raises:
            LoopError: if the command cannot be started, fails, or does not print what it must.
        """
        numbering = _Numbering()
        run.restore(numbering=numbering)
        own: dict[str, Setting | None] = {
            "level": run.level,
            "seed": run.seed,
            "epochs": run.length,
            "device": str(run.device),
        }
        words = located(filled(self.command, {**run.settings, **own}), self.folders)
        with Folder(self.outputs.parent).within(self.outputs.name).append(log_name(run.name)) as output:
            output.write(f"$ {shlex.join(words)}\n".encode(errors="surrogateescape"))
            process = Process(words, output, self.leaving)
            try:
                self._train(run, process, numbering)
            finally:
                process.end()

    def _train(self, run: LoopRun, process: Process, numbering: _Numbering) -> None:
        printed = numbering.epochs(process.lines(), _names(run).keys())
        epoch = 0
        metrics: dict[str, Any] = {}
        for wanted in run.epochs():
            while epoch < wanted:
                epoch, metrics = next(printed, (0, {}))
                if epoch == 0:
                    return self._ended(run, process, wanted)
                run.repeated += epoch < wanted
            if epoch > wanted and run.due(wanted):
                raise LoopError(
                    f"the command printed nothing of epoch {wanted}, at which {run.metric} is due, but then "
                    f"of epoch {epoch}; if it validates seldom, say so with validate_every in [training]"
                )
            # Whether it ends well is part of the run.
            if wanted == run.length and next(printed, None) is None:
                self._ended(run, process, wanted + 1)
                if not run.goes_on:
                    return None
            run.report(**(_known(run, epoch, metrics) if epoch == wanted else {}))
        return None

    def _ended(self, run: LoopRun, process: Process, due: int) -> None:
        """Say what is wrong when a process ended by itself before it had printed an epoch that was due."""
        if self.leaving():
            run.leave()
            return
        status = process.wait()
        said = " / ".join(process.said) or "it printed no error"
        if status < 0:
            raise LoopError(f"the command was killed by {signal.Signals(-status).name}: {said}")
        if status > 0:
            raise LoopError(f"the command failed with exit status {status}: {said}")
        if due == 1:
            raise LoopError(
                "the command ended without a report; let it print a line of JSON an epoch, such as "
                f'{{"epoch": 1, "{run.metric}": 0.8}}'
            )
        if due <= run.length:
            raise LoopError(f"the command ended after epoch {due - 1} of {run.length}; give it {{epochs}}")


def _known(run: LoopRun, epoch: int, metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return those numbers of an epoch that a study knows; a script may print any others beside them."""
    names = _names(run)
    known = {name: value for name, value in metrics.items() if name in names and value is not None}
    if metrics and not known:
        raise LoopError(
            f"the command printed {', '.join(metrics)} of epoch {epoch}, of which this study knows nothing; "
            f"it knows {', '.join(names)}"
        )
    for name, value in known.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise LoopError(
                f"the command printed {name} = {json.dumps(value)[:LAST_CHARACTERS]} of epoch {epoch}, not a "
                "number; print it as one, without quotes"
            )
    return known


def _names(run: LoopRun) -> dict[str, None]:
    """Return the names of what a study knows, in their order."""
    return dict.fromkeys((run.metric, *REPORTED))


class _Numbering:
    """How a script counts its epochs: the state of a run that is not in the script.

    Attributes:
        first: the number of its first epoch, 0 or 1; None before that was seen.
    """

    def __init__(self) -> None:
        self.first: int | None = None

    def state_dict(self) -> dict[str, int | None]:
        return {"first": self.first}

    def load_state_dict(self, state: Mapping[str, int | None]) -> None:
        self.first = state["first"]

    def epochs(self, lines: Iterable[bytes], known: Set[str]) -> Iterator[tuple[int, dict[str, Any]]]:
        """Yield each epoch that lines report, counted from 1, and what they say of it.

        Args:
            lines: of the script's output.
            known: names of the numbers that are looked for.

        Raises:
            LoopError: if an epoch comes twice or after a later one, or is no number of an epoch.
        """
        before: int | None = None
        for found in (found for line in lines for found in _reports(line, known)):
            told = found.pop("epoch")
            number = _epoch(told)
            if self.first is None:
                self.first = 0 if number == 0 else 1
            if number is None or number < self.first:
                raise LoopError(f"the command printed epoch {told!r}; epochs are counted from 0 or from 1")
            if before is not None and number <= before:
                raise LoopError(
                    f"the command printed epoch {number} after epoch {before}; "
                    "let it print one line an epoch, with all its numbers, in their order"
                )
            before = number
            yield number - self.first + 1, found


def _epoch(told: object) -> int | None:
    """Return the number of an epoch, also as 3.0; None if it is no whole number."""
    if isinstance(told, float) and told.is_integer():
        return int(told)
    return told if isinstance(told, int) and not isinstance(told, bool) else None


def _reports(line: bytes, known: Set[str]) -> Iterator[dict[str, Any]]:
    """Yield each JSON object with an epoch that a line of output holds; nothing if it is other output.

    Behind other text, such as what a logger or a progress bar puts before, it has to be of numbers that are
    `known`: a script may print its settings, too.
    """
    if b'"epoch"' not in line:
        return
    text = COLOURS.sub("", line.decode(errors="replace"))
    text = INFINITY.sub(r"\1Infinity", NAN.sub("NaN", text))
    at = begins = text.find("{")
    while at >= 0:
        try:
            found, end = json.JSONDecoder().raw_decode(text, at)
        except (ValueError, RecursionError):
            return
        if "epoch" in found and (not text[:begins].strip() or not known.isdisjoint(found)):
            yield found
        at = text.find("{", end)


class Process:
    """A process whose output is kept, and read as it comes.

    Its output passes through this process: if that is killed, the next line ends the script too.

    Args:
        words: the program and its arguments.
        output: takes in all that it prints.
        leaving: whether nobody wants more of it.

    Attributes:
        said: its last lines of standard error.

    Raises:
        LoopError: if it cannot be started.
    """

    def __init__(self, words: Sequence[str], output: IO[bytes], leaving: Callable[[], bool]) -> None:
        self.output, self.leaving = output, leaving
        self.said: deque[str] = deque(maxlen=LAST_LINES)
        environment = {key: value for key, value in os.environ.items() if key != "FLOODSEARCH_STORAGE"}
        try:
            self.process = subprocess.Popen(  # noqa: S603 - what the study file names, without a shell
                words,
                # Python would print into a pipe only when 8 KB have come together.
                env={**environment, "PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,  # a group of its own, so that its children end with it
            )
        except OSError as error:
            raise LoopError(f"the command cannot be started: {words[0]!r}: {error.strerror}") from error
        self.selector = selectors.DefaultSelector()
        self.partial: dict[Any, bytearray] = {}
        for stream in (self.process.stdout, self.process.stderr):
            self.selector.register(stream, selectors.EVENT_READ)  # type: ignore[arg-type]
            self.partial[stream] = bytearray()

    def lines(self) -> Iterator[bytes]:
        """Yield the lines of standard output; it ends with the output, or when nobody wants more.

        What the process left behind may hold its output open, and may go on to print.
        """
        until = math.inf
        while self.selector.get_map() and not self.leaving() and time.monotonic() < until:
            ready = self.selector.select(LOOK_SECONDS)
            if self.process.poll() is not None:
                if not ready:
                    return
                until = min(until, time.monotonic() + GRACE_SECONDS)
            for key, _ in ready:
                yield from self._read(key.fileobj)

    def wait(self) -> int:
        """Wait until it has ended; return its exit status, or minus the signal that killed it."""
        while not self.leaving():
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self.process.wait(LOOK_SECONDS)
        return 0

    def _read(self, stream: Any) -> list[bytes]:
        """Take in what a stream has; return its whole lines, if it is standard output."""
        content = os.read(stream.fileno(), 65536)
        self.output.write(content)
        self.output.flush()
        self.partial[stream] += content
        lines: list[bytes] = []
        if ENDS.search(content) or len(self.partial[stream]) > LONGEST:
            *lines, rest = ENDS.split(self.partial[stream])
            lines, rest = (lines, rest) if len(rest) <= LONGEST else ([*lines, rest], b"")
            self.partial[stream] = bytearray(rest)
        if not content:
            self.selector.unregister(stream)
            lines.append(bytes(self.partial.pop(stream)))
        if stream is self.process.stdout:
            return lines
        for line in lines:
            if text := line.decode(errors="replace").strip():
                self.said.append(text[:LAST_CHARACTERS])
        return []

    def end(self) -> None:
        """End it and its children, if they have not: SIGTERM, and SIGKILL for those that take too long."""
        deadline = time.monotonic() + GRACE_SECONDS
        self.leaving = lambda: time.monotonic() > deadline
        self._signal(signal.SIGTERM)
        for _ in self.lines():
            pass
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(max(0.0, deadline - time.monotonic()))
        self._signal(signal.SIGKILL)  # also to children that it has left behind
        self.process.wait()
        self.selector.close()
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)
