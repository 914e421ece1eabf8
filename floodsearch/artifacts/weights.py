"""The weights of completed tickets, to be used: one file a run, a plain `state_dict` that torch alone reads.

    model.load_state_dict(torch.load(path, weights_only=True))

They are no checkpoints: nothing goes on from them, and they stay when the study is finished.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from floodsearch.artifacts.checkpoint import strange
from floodsearch.artifacts.files import ROOM, Files
from floodsearch.artifacts.names import WEIGHTS, weights_name
from floodsearch.artifacts.trees import map_leaves
from floodsearch.records import Keep

log = logging.getLogger(__name__)


class KeptWeights:
    """The kept weights of a study.

    Args:
        files: of the study; they lie in a folder of their own in it.
        room: bytes that they may have.
    """

    def __init__(self, files: Files, room: int = ROOM) -> None:
        self.files, self.room = files.within(WEIGHTS), room
        self._warned = False

    def save(self, ticket: int, seed: int, epochs: int, keep: Keep, weights: Mapping[str, Any]) -> None:
        """Write the file of a run, in the place of the one of when it was shorter.

        Where that fails it is said, the first time: the ticket is complete without.
        """
        name = weights_name(ticket, seed, epochs, keep)
        try:
            if (found := strange(weights, "weights")) is not None:
                raise ValueError(f"torch would not load {found}")
            buffer = io.BytesIO()
            torch.save(map_leaves(_on_cpu, dict(weights)), buffer)
            self.files.write(name, buffer.getbuffer(), room=self.room)
            # Also what a worker that died has left unfinished.
            earlier = self.files.names(f"{weights_name(ticket, seed, '*', keep)}*")
            self.files.remove(*(one for one in earlier if one != name))
        except Exception as error:  # of the disk, or of whatever a user's model holds
            if not self._warned:
                log.warning("%s is not kept in %s, nor maybe others: %s", name, self.files, error)
            self._warned = True


def _on_cpu(one: Any, _: object) -> Any:
    """Return a tensor as a machine without this device can load it; anything else as it is."""
    return one.detach().cpu() if isinstance(one, Tensor) else one
