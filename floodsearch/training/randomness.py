"""torch's global random state, lent to a worker while it trains.

Dropout and PyTorch's initialisation draw from global generators. `torch.manual_seed` would seed all devices
at each step, which is slow: without a GPU it stores a formatted traceback on every call.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def seed_global(seed: int, device: torch.device) -> None:
    """Seed torch's global generators of the CPU and of `device`."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


@contextmanager
def borrowed(device: torch.device) -> Iterator[None]:
    """Restore torch's global generators of the CPU and of `device` afterwards."""
    cpu = torch.default_generator.get_state()
    own = torch.get_device_module(device).get_rng_state() if device.type != "cpu" else None
    try:
        yield
    finally:
        torch.default_generator.set_state(cpu)
        if own is not None:
            torch.get_device_module(device).set_rng_state(own)
