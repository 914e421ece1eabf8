"""What a search would take, told before it begins."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from floodsearch.cost.course import Stage, Way
from floodsearch.cost.floods import LATE, Floods
from floodsearch.cost.forecast import (
    Timed,
    assumed,
    at_once,
    epochs_exhaustive,
    parts_of,
    pilot_apart,
    pilots_apart,
    plan,
    speeds_of,
    time_stages,
    unbegun,
    way_of,
)
from floodsearch.errors import UsageError
from floodsearch.records import Pilot
from floodsearch.search.tickets import ticket_count
from floodsearch.study.spec import Spec

if TYPE_CHECKING:
    from floodsearch.cost.unflooded import Unflooded


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """What a search would take with one worker; None is what only its pilot, or a speed, can tell.

    Args:
        tickets: how many there will be.
        epochs_exhaustive: member-epochs of training all of them to the end.
        epochs_expected: member-epochs of the search, at the epochs in which levels are likely to flood first.
        epochs_least: the same with the epochs of the range, above or below, in which it takes the fewest.
        epochs_most: and in which it takes the most.
        epochs_tried: member-epochs that were trained to know this.
        seconds: that the expected ones take.
        stages: of a task's plan, each with its time; empty where no speed is known.
    """

    tickets: int | None
    epochs_exhaustive: int | None
    epochs_expected: int | None
    epochs_least: int | None = None
    epochs_most: int | None = None
    epochs_tried: int = 0
    seconds: float | None = None
    stages: tuple[Timed, ...] = ()

    def at_pace_of(self, pilot: Pilot | None) -> Outlook:
        """Return it with the time at the speed of a pilot, if that has ended."""
        if pilot is None or self.epochs_expected is None:
            return self
        return replace(self, seconds=self.epochs_expected * pilot.seconds_per_epoch)


def forecast(
    spec: Spec, floods: Floods | None = None, way: Way | None = None, pilot: int | None = None
) -> Outlook:
    """Return what the search of a study would take, but for its time: a pure function.

    Args:
        spec: of the study.
        floods: when levels first flood, as far as that is known; by default as is assumed.
        way: how runs are trained, by default as `way_of` says.
        pilot: epochs of each seed that only the pilot is trained for; by default what it may be at most.
    """
    floods, way = floods or assumed(spec), way or way_of(spec)
    apart = pilot_apart(spec, way) if pilot is None else pilot
    every = unbegun(spec)
    found = [
        _epochs(spec, parts_of(spec, every, replace(floods, late=late), way, apart))
        for late in (1.0, *LATE)
        if every is not None
    ]
    return Outlook(
        tickets=ticket_count(spec),
        epochs_exhaustive=epochs_exhaustive(spec),
        epochs_expected=found[0] if found else None,
        epochs_least=min(found, default=None),
        epochs_most=max(found, default=None),
    )


def _epochs(spec: Spec, stages: Sequence[Stage]) -> int:
    """Return the member-epochs of stages, at most those of the budget."""
    return min(sum(stage.epochs for stage in stages), spec.budget.epochs or sys.maxsize)


def look_ahead(
    spec: Spec, *, speed: str | None = None, measure: str | None = None, folders: Sequence[Path] = ()
) -> Outlook:
    """Return what the search of a study file would take.

    Args:
        spec: of the study file.
        speed: training samples a second, as `speeds_of` takes them.
        measure: instead, the device on which to train a little, to know when levels flood, and the speed.
        folders: where files of the user's own are looked for before the current folder.

    Raises:
        UsageError: if both are given, a speed says nothing of the study, or the device does not exist.
        TaskError: if the task's data cannot be drawn.
    """
    if speed is not None and measure is not None:
        raise UsageError("--speed and --measure are both given; keep one of the two")
    if measure is not None:
        # Here, as it imports torch, which nothing else needs that looks ahead.
        from floodsearch.cost.unflooded import begin_unflooded

        return _as_begun(begin_unflooded(spec, measure, folders), measure)
    outlook = forecast(spec)
    if speed is None:
        return outlook
    if spec.task is None:
        raise UsageError(
            "samples a second say nothing of a training of your own; use --measure instead of --speed"
        )
    if (stages := plan(spec)) is None:
        raise UsageError("the time is not known before the pilot has found the levels; give levels.count")
    from floodsearch.cost.throughput import samples_of

    return at_speeds(outlook, spec, stages, samples_of(spec), speeds_of(speed))


def _as_begun(begun: Unflooded, device: str) -> Outlook:
    """Return the outlook of a study whose unflooded runs were begun on a device."""
    spec, floods, way = begun.spec, begun.floods, begun.way
    pilot = begun.pilot if begun.pilot and pilots_apart(spec, way) else None
    outlook = replace(forecast(spec, floods, way, pilot), epochs_tried=begun.epochs)
    every = unbegun(spec)
    if every is None or outlook.epochs_expected is None:
        return outlook
    if spec.task is None:
        starts = sum(part.runs for part in parts_of(spec, every, floods, way, pilot or 0))
        seconds = outlook.epochs_expected * begun.seconds_an_epoch + starts * begun.seconds_to_start
        return replace(outlook, seconds=seconds)
    from floodsearch.cost.throughput import measure_speeds, samples_of

    stages = plan(spec, floods) or []
    speeds = measure_speeds(spec, device, sorted({at_once(spec, stage) for stage in stages}))
    return at_speeds(outlook, spec, stages, samples_of(spec), speeds)


def at_speeds(
    outlook: Outlook, spec: Spec, stages: Sequence[Stage], samples: int, speeds: Mapping[int, float]
) -> Outlook:
    """Return an outlook with the time of each stage; the arguments are those of `time_stages`."""
    times = time_stages(spec, stages, samples, speeds)
    return replace(outlook, stages=tuple(times), seconds=sum(one.seconds for one in times) if times else None)
