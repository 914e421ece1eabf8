"""The plain losses of the batches that a training loop of the user's own floods."""

from __future__ import annotations

import math

from torch import Tensor

from floodsearch.training.run import read

UNREAD = 1024
"""Losses that are left on their device before they are read in one transfer."""


class BatchLosses:
    """The plain losses of an epoch's batches, left on their device: to look at one would wait for it.

    Attributes:
        known: those that have been read, in their order.
        of_all_ranks: whether they are means over the ranks of `torch.distributed`.
        unread: those that are still on their device, after those that are known.
    """

    def __init__(self) -> None:
        self.known: list[float] = []
        self.of_all_ranks = False
        self.unread: list[Tensor] = []

    def __bool__(self) -> bool:
        """Return whether there was a batch."""
        return bool(self.known or self.unread)

    def add(self, loss: Tensor) -> None:
        """Add the loss of a batch, ()."""
        if loss.device.type == "cpu":
            self.known.append(loss.item())
            return
        # A copy: at level 0 the user has the very same tensor, and may change it in place.
        self.unread.append(loss.detach().clone())
        if len(self.unread) == UNREAD:
            self._read()

    def summary(self, level: float) -> tuple[float | None, float | None, float]:
        """Return the mean loss, the share of batches below a level, and the lowest loss.

        Without a batch the mean is not known, nor is the share, but at level 0, which floods nothing.
        """
        self._read()
        if not self.known:
            return None, None if level > 0 else 0.0, math.inf
        # Level 0 floods nothing also where a loss can be negative.
        below = sum(loss < level for loss in self.known) if level > 0 else 0
        return sum(self.known) / len(self.known), below / len(self.known), min(self.known)

    def _read(self) -> None:
        self.known += read(self.unread)
        self.unread.clear()
