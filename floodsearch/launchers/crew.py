"""How many local workers a launch starts, where, and whether all of them have work."""

from __future__ import annotations

import os
from dataclasses import dataclass

from floodsearch import queue
from floodsearch.errors import UsageError
from floodsearch.search.tickets import ticket_count
from floodsearch.study.spec import Spec
from floodsearch.training.devices import devices, find_device

MOST_CPU_WORKERS = 8


@dataclass(frozen=True, kw_only=True)
class Crew:
    """The local workers of a launch: their devices, and the threads of each.

    Args:
        devices: one for each worker.
        threads: of torch, for each worker on the CPU.
    """

    devices: tuple[str, ...]
    threads: int

    @classmethod
    def of(cls, where: str, workers: int | None, per_device: int | None, cores: int, portions: int) -> Crew:
        """Return the crew for a `--devices` list and a number of workers, in all or on each device.

        By default there is one worker a GPU, or one a core without a GPU, but at most eight, and no more
        than there are `portions` of work to take at once: those that are left train with more threads.

        Raises:
            UsageError: if a device does not exist, or a number is below 1 or both are given.
        """
        for option, number in (("--workers", workers), ("--workers-per-device", per_device)):
            if number is not None and number < 1:
                raise UsageError(f"{option} is {number}; give 1 or more")
        if workers is not None and per_device is not None:
            raise UsageError("--workers and --workers-per-device are both given; keep one of the two")
        names = [name.strip() for name in where.split(",") if name.strip()]
        if names in ([], ["auto"]):
            names = [name for name in devices() if name != "cpu"] or ["cpu"]
        names = [str(find_device(name)) for name in names]
        places = min(cores, MOST_CPU_WORKERS) if names == ["cpu"] else len(names)
        if per_device is not None:
            places = per_device * len(names)
        count = workers or min(places, portions)
        assigned = tuple(names[index % len(names)] for index in range(count))
        return cls(devices=assigned, threads=max(1, cores // max(1, assigned.count("cpu"))))


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def idle_text(spec: Spec, workers: int) -> str | None:
    """Return a warning where more workers are started than can train at once; else None."""
    portions = queue.portions(spec)
    if (idle := workers - portions) <= 0:
        return None
    whom = f"{idle} of {workers} workers {'has' if idle == 1 else 'have'} nothing to train"
    if portions == ticket_count(spec):
        return f"{whom}: there are {portions} tickets, each of which one worker trains"
    parts = "1 bracket" if portions == 1 else f"{portions} brackets"
    return (
        f"{whom}: the levels are {parts}, and one worker trains a bracket; "
        f"a study of another name with brackets = {workers} in [halving] has work for all"
    )
