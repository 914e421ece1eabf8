"""Checkpoints: all that a run needs to go on, in a file that is written whole or not at all.

They only save time: a run whose file is lost or cannot be read starts again and comes to the same end. A file
holds tensors, numbers, texts and containers of these, and nothing that would run code when it is read. It
begins with its kind and the SHA-256 of the rest; the one before is kept beside it, in case it is damaged.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import os
import time
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from floodsearch.records import EpochRecord

KIND = b"floodsearch checkpoint 1\n"
PLAIN = (bool, int, float, str, bytes, type(None))
MAPPINGS, SEQUENCES = (dict, OrderedDict, Counter), (list, tuple)
"""What a checkpoint may hold beside tensors; exactly these, as NumPy's numbers are subclasses of some."""
SECONDS = 60.0
"""Between two checkpoints: what is lost at most when a worker is killed."""
SHARE = 0.005
"""Of its time that a worker spends on them at most, where they take long."""
ROOM = 16 * 2**30
"""Bytes that the checkpoints of a study may have on disk."""
FIELDS = tuple(field.name for field in fields(EpochRecord))

log = logging.getLogger("floodsearch.worker")


class Pace:
    """When the next checkpoint is due: a while after the last one, longer if that took long."""

    def __init__(self) -> None:
        self._next = time.monotonic() + SECONDS

    def due(self) -> bool:
        """Return whether a checkpoint is due."""
        return time.monotonic() >= self._next

    def saved(self, since: float) -> None:
        """Note that saving began at a moment of `time.monotonic` and has ended now."""
        now = time.monotonic()
        self._next = now + max(SECONDS, (now - since) / SHARE)


@dataclass(frozen=True)
class Checkpoint:
    """The checkpoint of one run.

    Args:
        path: of its file.
        of: what tells the run from others that had this file, in plain values.
        room: bytes that all files of its folder may have.
    """

    path: Path
    of: Mapping[str, Any]
    room: int = ROOM

    @property
    def before(self) -> Path:
        """The file before the last one."""
        return self.path.with_suffix(".before")

    def save(self, content: Mapping[str, Any]) -> None:
        """Write the file; whoever reads it finds this content or the one before, whole.

        Raises:
            OSError, RuntimeError: if it cannot be written, as on a full disk or where there is no room.
        """
        buffer = io.BytesIO()
        torch.save({"of": dict(self.of), **content}, buffer)
        written = buffer.getbuffer()
        head = KIND + hashlib.sha256(written).hexdigest().encode() + b"\n"
        write_whole(self.path, head, written, room=self.room, before=self.before)

    def load(self) -> dict[str, Any] | None:
        """Return the newest content that is whole, its tensors on the CPU; None if this run has none."""
        for path in (self.path, self.before):
            try:
                found = _read(path)
            except FileNotFoundError:
                continue
            except Exception as error:  # whatever a damaged file leads to
                log.warning("%s is left out: %s: %s", path, type(error).__name__, error)
                continue
            if found.pop("of", None) == dict(self.of):
                return found
        return None

    def remove(self) -> None:
        """Remove the files."""
        self.path.unlink(missing_ok=True)
        self.before.unlink(missing_ok=True)


def write_whole(path: Path, *parts: bytes | memoryview, room: int, before: Path | None = None) -> None:
    """Write a file that is there whole or not at all, in a folder that is made if it is missing.

    Args:
        path: of the file, which takes the place of an earlier one.
        parts: of its content.
        room: bytes that all files of its folder may have.
        before: where an earlier file is kept instead.

    Raises:
        OSError: if it cannot be written, as on a full disk or where there is no room.
    """
    folder = path.parent
    folder.mkdir(parents=True, exist_ok=True)
    if _bytes_beside(folder, before or path) + sum(map(len, parts)) > room:
        raise OSError(f"{folder} would hold more than {room:,} bytes")
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.unfinished")
    try:
        with unfinished.open("wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        if before is not None and path.exists():
            path.replace(before)
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def _read(path: Path) -> dict[str, Any]:
    """Return what a file holds.

    Raises:
        ValueError: if it is no checkpoint, or not as it was written.
    """
    whole = path.read_bytes()
    end = len(KIND) + 65
    if not whole.startswith(KIND):
        raise ValueError("it is no checkpoint of this version")
    written = memoryview(whole)[end:]
    if whole[len(KIND) : end] != hashlib.sha256(written).hexdigest().encode() + b"\n":
        raise ValueError("it is damaged")
    content: dict[str, Any] = torch.load(io.BytesIO(written), map_location="cpu", weights_only=True)
    return content


def _bytes_beside(folder: Path, replaced: Path) -> int:
    """Return the bytes of a folder without a file that is replaced."""
    total = 0
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # others replace and remove theirs
            total += path.stat().st_size if path != replaced else 0
    return total


def name_of(ticket: int, seed: int) -> str:
    """Return the name of a run in files."""
    return f"ticket-{ticket}-seed-{seed}"


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of a study, one for each run of a ticket, and one for each trunk.

    Args:
        folder: that holds them; made when the first is saved, and gone with the last.
    """

    folder: Path

    def of(self, name: str, run: Mapping[str, Any]) -> Checkpoint:
        """Return the checkpoint of a run, by its name, which only these plain values fit."""
        return Checkpoint(self.folder / f"{name}.pt", run)

    def remove(self, ticket: int) -> None:
        """Remove what there is of a ticket, unfinished files of workers that died included."""
        self._remove(f"{name_of(ticket, 0)[:-1]}*")

    def clear(self) -> None:
        """Remove all: the study is finished."""
        self._remove("ticket-*")
        self._remove("trunk-*")

    def _remove(self, pattern: str) -> None:
        for path in self.folder.glob(pattern):
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # there are others in them, or they were never made
            self.folder.rmdir()
            self.folder.parent.rmdir()


def rows(records: Sequence[EpochRecord]) -> list[tuple[Any, ...]]:
    """Return records as a checkpoint holds them."""
    return list(map(attrgetter(*FIELDS), records))


def read_rows(saved: Sequence[Sequence[Any]]) -> list[EpochRecord]:
    """Return the records of `rows`."""
    return [EpochRecord(**dict(zip(FIELDS, row, strict=True))) for row in saved]


def strange(value: Any, name: str) -> str | None:
    """Return where in nested containers lies what a checkpoint cannot hold, and what it is; None if nowhere.

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
