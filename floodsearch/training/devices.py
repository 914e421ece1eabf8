"""The devices of this machine, as torch names them."""

from __future__ import annotations

import torch

from floodsearch.errors import UsageError


def find_device(name: str) -> torch.device:
    """Return a device; `auto` is the first that is not the CPU, if there is one.

    Raises:
        UsageError: if it does not exist, listing those that do.
    """
    present = devices()
    if name == "auto":
        return torch.device(present[0])
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"device {name!r} is not known; this machine has {', '.join(present)}") from None
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", 0)
    if str(device) not in present:
        raise UsageError(f"device {name!r} does not exist; this machine has {', '.join(present)}")
    return device


def devices() -> list[str]:
    """Return the devices of this machine, as torch names them; `cpu` is always the last."""
    found = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    found += ["mps"] if torch.backends.mps.is_available() else []
    return [*found, "cpu"]
