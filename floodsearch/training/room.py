"""Whether there is memory for one more process, beside those that are stopped."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import torch

from floodsearch.process.guard import tree

MARGIN = 0.2
"""The share of a machine's memory that is left to others."""
GROUPS = Path("/sys/fs/cgroup")


def room_for_another(guard: int, stopped: int, device: torch.device) -> bool:
    """Return whether a process of the same size fits beside one that is stopped.

    Args:
        guard: the process below which it is.
        stopped: how many others are.
        device: that they train on, whose memory they keep as well.
    """
    own = sum(map(_resident, tree(guard)))
    if any(left - own < MARGIN * whole for left, whole in _memories()):
        return False
    if device.type != "cuda":
        return True
    try:
        free, whole = torch.cuda.mem_get_info(device)
    except RuntimeError:
        return False
    return free > (whole - free) / (stopped + 1)  # what each has, if all that is taken is theirs


def _resident(pid: int) -> int:
    """Return the bytes of a process that no other shares; 0 if it has ended."""
    with contextlib.suppress(OSError):
        _, resident, shared = map(int, Path(f"/proc/{pid}/statm").read_text().split()[:3])
        return (resident - shared) * os.sysconf("SC_PAGE_SIZE")
    return 0


def _memories() -> Iterator[tuple[int, int]]:
    """Yield (bytes left, all bytes) of the machine and of each control group of ours, as far as known."""
    with contextlib.suppress(OSError, KeyError):
        told = _table(Path("/proc/meminfo"))
        yield told["MemAvailable:"] * 1024, told["MemTotal:"] * 1024
    with contextlib.suppress(OSError):
        own = Path("/proc/self/cgroup").read_text().rpartition("0::/")[2].strip()
        for group in (GROUPS / own, *(GROUPS / own).parents):
            with contextlib.suppress(OSError, ValueError, KeyError):
                most, used = (int((group / f"memory.{name}").read_text()) for name in ("max", "current"))
                # What is kept of files is given up first.
                yield most - used + _table(group / "memory.stat")["inactive_file"], most


def _table(path: Path) -> dict[str, int]:
    lines = (line.split() for line in path.read_text().splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) > 1}
