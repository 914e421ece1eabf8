"""Global random states: seeded for a run, kept with it, and lent to a worker while it trains.

Dropout and PyTorch's initialisation draw from torch's global generators, a user's own loop from those of
Python and NumPy too. `torch.manual_seed` would seed all devices at each step, which is slow: without a GPU it
stores a formatted traceback on every call.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor


def seed_global(seed: int, device: torch.device) -> None:
    """Seed torch's global generators of the CPU and of `device`."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


def seed_everything(seed: int, device: torch.device) -> None:
    """Seed all global generators: torch's of the CPU and of `device`, Python's and NumPy's.

    As a script would with `random.seed(seed)`, `numpy.random.seed(seed)` and `torch.manual_seed(seed)`.
    """
    seed_global(seed, device)
    random.seed(seed)
    np.random.seed(seed)


def states(device: torch.device) -> dict[str, Any]:
    """Return the states of all global generators, as tensors and plain numbers."""
    generator: Any = np.random.get_state()
    kind, key, *rest = generator
    return {
        "torch": torch.default_generator.get_state(),
        "device": _device_state(device),
        "python": random.getstate(),
        "numpy": (kind, key.tolist(), *rest),
    }


def set_states(found: dict[str, Any], device: torch.device) -> None:
    """Set the global generators to what `states` returned."""
    torch.default_generator.set_state(found["torch"])
    random.setstate(found["python"])
    np.random.set_state(found["numpy"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(found["device"], device)
    elif device.type == "mps":
        torch.mps.set_rng_state(found["device"])


def _device_state(device: torch.device) -> Tensor | None:
    if device.type == "cuda":
        return torch.cuda.get_rng_state(device)
    return torch.mps.get_rng_state() if device.type == "mps" else None


@contextmanager
def borrowed(device: torch.device) -> Iterator[None]:
    """Restore all global generators afterwards."""
    before = states(device)
    try:
        yield
    finally:
        set_states(before, device)
