"""A run has one process: what would make it one of several, or start others, is refused before it trains."""

from __future__ import annotations

import os

from floodsearch.errors import LoopError


def check_alone() -> None:
    """Refuse a process that is one of several which train together.

    Raises:
        LoopError: if it is: the others would wait for it, or it for them.
    """
    world = os.environ.get("WORLD_SIZE", "")
    if world.isdigit() and int(world) > 1:
        raise LoopError(
            f"this worker is one of {world} processes that torchrun or accelerate has started to train "
            "together (WORLD_SIZE in its environment), but a run is trained by one; start workers without"
        )
