"""The JSON lines that a script prints: what they say of its epochs, as they come and as its log has them."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import IO, Any, NamedTuple

from floodsearch.errors import LoopError

TESTED = ("test_accuracy", "test_loss")
"""What a line without an epoch may say, or another line of the last epoch."""
ENDS = re.compile(rb"[\r\n]")
"""What ends a line: a progress bar writes over its own by a carriage return only."""
LONGEST = 2**20
"""Bytes of a line; a longer one is no report."""
COLOURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
"""What a terminal takes for colours and moves."""
NAN = re.compile(r"(?<=:)\s*-?nan\b", re.IGNORECASE)
INFINITY = re.compile(r"(?<=:)\s*(-?)inf(inity)?\b", re.IGNORECASE)
"""Numbers as languages print them; JSON has none of these, and Python's reads NaN and Infinity."""
HEAD = re.compile(rb"\$ .*  # run ([0-9a-f]+)")
"""How a guard begins the part of a log that a process prints."""

Numbers = Mapping[str, Any]


class Lines:
    """Output in pieces, cut into lines."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def add(self, content: bytes) -> list[bytes]:
        """Return the lines that another piece ends; an empty one, the end, ends the last line."""
        self._rest += content
        if content and len(self._rest) <= LONGEST and not ENDS.search(content):
            return []
        *lines, rest = ENDS.split(bytes(self._rest) if content else bytes(self._rest) + b"\n")
        self._rest = bytearray(rest if len(rest) <= LONGEST else b"")
        return lines


class Numbering:
    """How a script counts its epochs: the state of a run that is not in the script.

    Attributes:
        first: the number of its first epoch, 0 or 1; None before that was seen.
    """

    def __init__(self, first: int | None = None) -> None:
        self.first = first

    def state_dict(self) -> dict[str, int | None]:
        """Return it as a checkpoint keeps it."""
        return {"first": self.first}

    def load_state_dict(self, state: Mapping[str, int | None]) -> None:
        """Take it from a checkpoint, unless the study has said it."""
        self.first = state["first"] if self.first is None else self.first

    def see(self, told: object) -> None:
        """Take in an epoch as a script tells it, which may be its first."""
        if self.first is None:
            self.first = 0 if _whole(told) == 0 else 1

    def epoch(self, told: object) -> int | None:
        """Return an epoch as we count it, from 1; None if a script tells none."""
        number = _whole(told)
        return (
            None if self.first is None or number is None or number < self.first else number - self.first + 1
        )


def _whole(told: object) -> int | None:
    """Return a whole number, also one told as 3.0; None if it is none."""
    if isinstance(told, float) and told.is_integer():
        return int(told)
    return told if isinstance(told, int) and not isinstance(told, bool) else None


def _is_number(told: object) -> bool:
    return isinstance(told, int | float) and not isinstance(told, bool)


class Printed:
    """What one process of a script prints of its epochs, in their order.

    Args:
        lines: of its output.
        metrics: names of the numbers that are looked for.
        length: the last epoch of the run.
        numbering: of its epochs.

    Attributes:
        first: the first epoch that was read, counted from 1; 0 before that.
        epoch: the last one that was read.
        numbers: what was said of it.
        tests: what was said of the test since.
    """

    def __init__(
        self, lines: Iterable[bytes], metrics: Iterable[str], length: int, numbering: Numbering
    ) -> None:
        self._reports = (report for line in lines for report in _reports(line, frozenset(metrics)))
        self.length, self.numbering = length, numbering
        self._told: object = None
        self.first = self.epoch = 0
        self.numbers: Numbers = {}
        self.tests: Numbers = {}

    def next(self) -> bool:
        """Read up to the next epoch; return whether there is one.

        Raises:
            LoopError: if an epoch comes twice or after a later one, or is no number of an epoch.
        """
        for told, numbers in self._reports:
            if told is None:
                self.tests = {**self.tests, **_tests(numbers)}
                continue
            self.numbering.see(told)
            epoch = self.numbering.epoch(told)
            if epoch is None:
                raise LoopError(
                    f"the command printed epoch {told!r}; epochs are counted from 0 or from 1, in this run "
                    f"from {self.numbering.first}: if that is wrong, say first_epoch = 0 or 1 in [script]"
                )
            if epoch == self.epoch == self.length:
                self.tests = {**self.tests, **_tests(numbers)}
                continue
            if epoch <= self.epoch:
                raise LoopError(
                    f"the command printed epoch {told} after epoch {self._told}; "
                    "let it print one line an epoch, with all its numbers, in their order"
                )
            if self.epoch < self.length:
                self.tests = {}
            self.epoch, self.numbers, self._told = epoch, numbers, told
            self.first = self.first or epoch
            return True
        return False


def _tests(numbers: Numbers) -> Numbers:
    return {name: value for name, value in numbers.items() if name in TESTED}


class Report(NamedTuple):
    """A JSON object of a script's: the epoch as it is told, or None, and the other numbers."""

    epoch: object
    numbers: Numbers


def _reports(line: bytes, metrics: frozenset[str]) -> Iterator[Report]:
    """Yield each report that a line of output holds; nothing if it is other output.

    Behind other text, such as what a logger or a progress bar puts before, it has to be of numbers that are
    looked for: a script may print its settings, too. Without an epoch it has to be of the test.
    """
    if b'"epoch"' not in line and b'"test_' not in line:
        return
    text = COLOURS.sub("", line.decode(errors="replace"))
    text = INFINITY.sub(r"\1Infinity", NAN.sub("NaN", text))
    at = begins = text.find("{")
    while at >= 0:
        try:
            found, end = json.JSONDecoder().raw_decode(text, at)
        except (ValueError, RecursionError):
            return
        numbers = {name: value for name, value in found.items() if name != "epoch"}
        if "epoch" not in found:
            if _tests(numbers):
                yield Report(None, numbers)
        elif not text[:begins].strip() or not metrics.isdisjoint(found):
            yield Report(found["epoch"], numbers)
        at = text.find("{", end)


def remembered(
    log: IO[bytes], run: str, metrics: Iterable[str], length: int, numbering: Numbering
) -> dict[int, Numbers]:
    """Return what earlier processes of a run have printed, by epoch counted from 1.

    A log is trusted no more than any file of the user's: what does not parse, or is of another run of this
    name, is passed over. Of an epoch that was trained again the later numbers count.

    Args:
        log: to be read from its beginning; the last part of this run is that of the process that runs now.
        run: hex digits of the run.
        metrics: names of the numbers that are looked for.
        length: the last epoch of the run.
        numbering: of its epochs; told the first that was ever printed.
    """
    found: dict[int, Numbers] = {}
    names = frozenset(metrics)
    for part in _parts(log, run, names)[:-1]:
        last: int | None = None
        for told, numbers in part:
            if told is not None:
                numbering.see(told)
                last = numbering.epoch(told)
            if last is not None and (told is not None or last == length):
                known = {name: one for name, one in numbers.items() if name in names and _is_number(one)}
                found[last] = {**found.get(last, {}), **(known if told is not None else _tests(known))}
    return found


def _parts(log: IO[bytes], run: str, metrics: frozenset[str]) -> list[list[Report]]:
    """Return the reports of each process of a run that a log holds, in their order."""
    parts: list[list[Report]] = []
    ours, cut = False, Lines()
    pieces = itertools.chain(iter(lambda: log.read(2**16), b""), [b""])
    for line in itertools.chain.from_iterable(map(cut.add, pieces)):
        if head := HEAD.fullmatch(line):
            ours = head[1].decode() == run
            parts += [[]] if ours else []
        elif ours:
            parts[-1] += _reports(line, metrics)
    return parts
