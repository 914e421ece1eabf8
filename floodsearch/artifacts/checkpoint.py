"""Checkpoints: all that a run needs to go on, in a file that is written whole or not at all.

They only save time: a run whose file is lost or cannot be read starts again and comes to the same end. A file
holds tensors, numbers, texts and containers of these, and nothing that would run code when it is read. It
begins with its kind and the SHA-256 of the rest; the one before is kept beside it, in case it is damaged.
"""

from __future__ import annotations

import hashlib
import io
import logging
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from floodsearch.artifacts.files import ROOM, Files
from floodsearch.artifacts.names import CHECKPOINT, name_of
from floodsearch.artifacts.trees import MAPPINGS, SEQUENCES
from floodsearch.records import EpochRecord

KIND = b"floodsearch checkpoint 1\n"
HEAD = re.compile(re.escape(KIND) + rb"(?P<digest>[0-9a-f]{64})\n(?P<epoch>[0-9]{1,9})\n")
"""How a file begins; the digest is the SHA-256 of all behind it."""
PLAIN = (bool, int, float, str, bytes, type(None))
"""What a checkpoint may hold beside tensors; exactly these, as NumPy's numbers are subclasses of some."""
SECONDS = 60.0
"""The pause between two checkpoints: so much is lost at most when a worker is killed."""
SHARE = 0.005
"""The share of its time that a worker spends on checkpoints at most; longer ones come less often."""
FIELDS = tuple(field.name for field in fields(EpochRecord))

log = logging.getLogger(__name__)


class Pace:
    """Decides when the next checkpoint is due: a while after the last one, longer if that took long."""

    def __init__(self) -> None:
        self._next = time.monotonic() + SECONDS

    def due(self) -> bool:
        """Return whether a checkpoint is due."""
        return time.monotonic() >= self._next

    def note_save(self, since: float) -> None:
        """Note that a checkpoint was saved, and set when the next one is due.

        Args:
            since: when saving began, by `time.monotonic`; it has ended now.
        """
        now = time.monotonic()
        self._next = now + max(SECONDS, (now - since) / SHARE)


@dataclass(frozen=True)
class Checkpoint:
    """The checkpoint of one run.

    Args:
        files: among which it is.
        name: of its file.
        of: what tells the run from others that had this file, in plain values.
        room: bytes that all those files may have.
    """

    files: Files
    name: str
    of: Mapping[str, Any]
    room: int = ROOM

    @property
    def before(self) -> str:
        """The name of the file that holds the checkpoint before the last one."""
        return f"{self.name}.before"

    def save(self, content: Mapping[str, Any]) -> None:
        """Write the file; whoever reads it finds this content or the one before, whole.

        Raises:
            OSError, RuntimeError: if it cannot be written, as on a full disk or where there is no room.
        """
        buffer = io.BytesIO()
        torch.save({"of": dict(self.of), **content}, buffer)
        epoch, written = b"%d\n" % content.get("epoch", 0), buffer.getbuffer()
        digest = hashlib.sha256(epoch)
        digest.update(written)
        head = KIND + digest.hexdigest().encode() + b"\n" + epoch
        self.files.write(self.name, head, written, room=self.room, before=self.before)

    def load(self, *parts: str) -> dict[str, Any] | None:
        """Return the newest content that is whole, its tensors on the CPU; None if this run has none.

        Args:
            parts: without which a content is of no use.
        """
        for name in (self.name, self.before):
            try:
                found = _content(self.files.read(name), parts)
            except FileNotFoundError:
                continue
            except Exception as error:  # whatever a damaged file or a server leads to
                log.warning("%s in %s is left out: %s: %s", name, self.files, type(error).__name__, error)
                continue
            if found.pop("of", None) == dict(self.of):
                return found
        return None

    def epoch(self) -> int:
        """Return the epoch of the newest content, of which only the head is read; 0 if there is none.

        Raises:
            OSError: if it cannot be read.
        """
        try:
            told = HEAD.match(self.files.head(self.name))
        except FileNotFoundError:
            return 0
        return 0 if told is None else int(told["epoch"])

    def remove(self) -> None:
        """Remove the files; those that stay are in nobody's way."""
        _remove(self.files, self.name, self.before)


def _remove(files: Files, *names: str) -> None:
    try:
        files.remove(*names)
    except OSError as error:
        log.warning("checkpoints stay: %s", error)


def _content(whole: bytes, parts: Sequence[str] = ()) -> dict[str, Any]:
    """Return the content of a checkpoint's file, its `records` as epoch records.

    Raises:
        Exception: if it is no checkpoint, or not as it was written, or not of a run.
    """
    told = HEAD.match(whole)
    if told is None:
        raise ValueError("it is no checkpoint of this version")
    if told["digest"] != hashlib.sha256(memoryview(whole)[told.start("epoch") :]).hexdigest().encode():
        raise ValueError("it is damaged")
    written = io.BytesIO(memoryview(whole)[told.end() :])
    content: dict[str, Any] = torch.load(written, map_location="cpu", weights_only=True)
    if missing := [name for name in parts if name not in content]:
        raise ValueError(f"it has no {missing[0]}")
    epoch = content.get("epoch", 0)
    if type(epoch) is not int or epoch < 0:
        raise ValueError("its epoch is no number")
    if "records" in content:
        content["records"] = read_rows(content["records"])
        if [one.epoch for one in content["records"]] != list(range(1, epoch + 1)):
            raise ValueError(f"its records are not those of the epochs 1 to {epoch}")
    return content


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of a study, one for each run of a ticket, and one for each trunk.

    Args:
        files: among which they are.
    """

    files: Files

    def of(self, name: str, run: Mapping[str, Any]) -> Checkpoint:
        """Return the checkpoint of a run, by its name, which only these plain values fit."""
        return Checkpoint(self.files, f"{name}.pt", run)

    def remove(self, ticket: int) -> None:
        """Remove the checkpoints of a ticket, also those that a worker which died left unfinished."""
        self._remove(f"{name_of(ticket, 0)[:-1]}*")

    def clear(self) -> None:
        """Remove all: the study is finished."""
        self._remove("*")

    def _remove(self, pattern: str) -> None:
        try:
            names = [name for name in self.files.names(pattern) if CHECKPOINT.fullmatch(name)]
        except OSError as error:
            log.warning("checkpoints stay: %s", error)
        else:
            _remove(self.files, *names)


def rows(records: Sequence[EpochRecord]) -> list[tuple[Any, ...]]:
    """Return epoch records as tuples of plain values, as a checkpoint holds them."""
    return list(map(attrgetter(*FIELDS), records))


def read_rows(saved: Sequence[Sequence[Any]]) -> list[EpochRecord]:
    """Return the epoch records from the tuples of `rows`.

    Raises:
        ValueError, TypeError: if they are not such rows.
    """
    found = [EpochRecord(**dict(zip(FIELDS, row, strict=True))) for row in saved]
    for row, record in zip(saved, found, strict=True):
        if type(record.seed) is not int or type(record.epoch) is not int:
            raise ValueError("a seed or an epoch of its records is no number")
        if any(type(one) not in (int, float, type(None)) for one in row):
            raise ValueError(f"its record of epoch {record.epoch} holds what is no number")
    return found


def strange(value: Any, name: str) -> str | None:
    """Return the place and the type of the first value that a checkpoint cannot hold; None without one.

    Args:
        value: to be kept.
        name: of it, such as `optimizer`.
    """
    if isinstance(value, Tensor) or type(value) in PLAIN:
        return None
    if type(value) in MAPPINGS:
        parts = [(f"{name}[{key!r}]", part) for key, part in value.items()]
    elif type(value) in SEQUENCES:
        parts = [(f"{name}[{index}]", part) for index, part in enumerate(value)]
    else:
        return f"{name}, a {type(value).__module__}.{type(value).__name__}"
    return next((found for where, part in parts if (found := strange(part, where)) is not None), None)
