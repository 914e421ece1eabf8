"""The weights of completed tickets, to be used: one file a run, a plain `state_dict` that torch alone reads.

    model.load_state_dict(torch.load(path, weights_only=True))

They are no checkpoints: nothing goes on from them, and they stay when the study is finished.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from floodsearch.spec import Keep
from floodsearch.training.checkpoint import ROOM, name_of, strange, write_whole

log = logging.getLogger("floodsearch.worker")


class KeptWeights:
    """The kept weights of a study.

    Args:
        folder: of the study's checkpoints; they lie in one of their own in it.
        room: bytes that they may have.
    """

    def __init__(self, folder: Path, room: int = ROOM) -> None:
        self.folder, self.room = folder / "weights", room
        self._warned = False

    def of(self, ticket: int, seed: int, epochs: int | str, keep: Keep) -> Path:
        """Return the file of a run, whose name says which weights: a study may grow, and ask for others."""
        return self.folder / f"{name_of(ticket, seed)}-epochs-{epochs}-{keep}.pt"

    def save(self, ticket: int, seed: int, epochs: int, keep: Keep, weights: Mapping[str, Any]) -> None:
        """Write the file of a run, in the place of the one of when it was shorter.

        Where that fails it is said, the first time: the ticket is complete without.
        """
        path = self.of(ticket, seed, epochs, keep)
        try:
            if (found := strange(weights, "weights")) is not None:
                raise ValueError(f"torch would not load {found}")
            buffer = io.BytesIO()
            torch.save(tree_map(_on_cpu, dict(weights)), buffer)
            write_whole(path, buffer.getbuffer(), room=self.room)
            # Also what a worker that died has left unfinished.
            for earlier in self.folder.glob(f"{self.of(ticket, seed, '*', keep).name}*"):
                if earlier != path:
                    earlier.unlink(missing_ok=True)
        except Exception as error:  # of the disk, or of whatever a user's model holds
            if not self._warned:
                log.warning("the weights are not kept in %s, nor maybe others: %s", path, error)
            self._warned = True


def _on_cpu(one: Any) -> Any:
    """Return a tensor as a machine without this device can load it; anything else as it is."""
    return one.detach().cpu() if isinstance(one, Tensor) else one
