"""Independent streams of random numbers from one seed.

All that is random in a run comes from its seed, through a stream of its own for each purpose: drawing more
numbers for one purpose never changes another.
"""

from __future__ import annotations

import zlib

import numpy as np
import torch


def stream_seed(seed: int, *purpose: str | int) -> int:
    """Return a 63-bit seed for one purpose, such as `stream_seed(3, "order", epoch)`."""
    words = [part if isinstance(part, int) else zlib.crc32(part.encode()) for part in purpose]
    # Two 32-bit words; the top bit is dropped because torch wants a signed 64-bit integer.
    low, high = np.random.SeedSequence([seed, *words]).generate_state(2)
    return (int(high) << 32 | int(low)) & 0x7FFF_FFFF_FFFF_FFFF


def stream(seed: int, *purpose: str | int) -> torch.Generator:
    """Return a CPU generator for one purpose; data are drawn on the CPU so that devices agree."""
    return torch.Generator().manual_seed(stream_seed(seed, *purpose))
