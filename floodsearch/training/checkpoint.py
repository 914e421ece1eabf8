"""Checkpoints: all that a run needs to go on, in a file that is written whole or not at all.

They only save time: a run whose file is lost or cannot be read starts again and comes to the same end. A file
holds tensors, numbers, texts and containers of these, and nothing that would run code when it is read.
"""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

PLAIN = (bool, int, float, str, bytes, type(None))
MAPPINGS, SEQUENCES = (dict, OrderedDict), (list, tuple)
"""What a checkpoint may hold beside tensors; exactly these, as NumPy's numbers are subclasses of some."""

log = logging.getLogger("floodsearch.worker")


@dataclass(frozen=True)
class Checkpoint:
    """The checkpoint of one run.

    Args:
        path: of its file.
        of: what tells the run from others that had this file, in plain values.
    """

    path: Path
    of: Mapping[str, Any]

    def save(self, content: Mapping[str, Any]) -> None:
        """Write the file; whoever reads it finds this content or the one before, whole.

        Raises:
            OSError, RuntimeError: if it cannot be written, as on a full disk.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.path.with_name(f"{self.path.name}.{os.getpid()}.unfinished")
        try:
            with unfinished.open("wb") as file:
                torch.save({"of": dict(self.of), **content}, file)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(self.path)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise

    def load(self) -> dict[str, Any] | None:
        """Return the content, its tensors on the CPU; None if there is none of this run or it is damaged."""
        try:
            found: dict[str, Any] = torch.load(self.path, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            return None
        except Exception as error:  # whatever a damaged file leads to
            log.warning("%s cannot be read, so its run starts again: %s", self.path, type(error).__name__)
            return None
        return found if found.pop("of", None) == dict(self.of) else None

    def remove(self) -> None:
        """Remove the file."""
        self.path.unlink(missing_ok=True)


def name_of(ticket: int, seed: int) -> str:
    """Return the name of a run in files."""
    return f"ticket-{ticket}-seed-{seed}"


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of a study, one for each run of a ticket.

    Args:
        folder: that holds them; made when the first is saved, and gone with the last.
    """

    folder: Path

    def of(self, name: str, run: Mapping[str, Any]) -> Checkpoint:
        """Return the checkpoint of a run, by its name, which only these plain values fit."""
        return Checkpoint(self.folder / f"{name}.pt", run)

    def remove(self, ticket: int) -> None:
        """Remove what there is of a ticket, unfinished files of workers that died included."""
        for path in self.folder.glob(f"{name_of(ticket, 0)[:-1]}*"):
            path.unlink(missing_ok=True)
        try:
            self.folder.rmdir()
        except OSError:
            return  # there are others in it, or it was never made


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
