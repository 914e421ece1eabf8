"""What a search would take, told before it begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from floodsearch.cost.forecast import Stage, Timed, at_once, epochs_exhaustive, plan, speeds_of, time_stages
from floodsearch.errors import UsageError
from floodsearch.records import Pilot
from floodsearch.search.tickets import ticket_count
from floodsearch.study.spec import Spec


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """What a search would take; None is what only its pilot, or a speed, can tell.

    Args:
        tickets: how many there will be.
        epochs_exhaustive: member-epochs of training all of them to the end.
        epochs_expected: member-epochs by the pruner's plan.
        seconds: that these take with one worker.
        stages: of the plan, each with its time; empty where no speed is known.
    """

    tickets: int | None
    epochs_exhaustive: int | None
    epochs_expected: int | None
    seconds: float | None = None
    stages: tuple[Timed, ...] = ()

    def at_pace_of(self, pilot: Pilot | None) -> Outlook:
        """Return it with the time at the speed of a pilot, if that has ended."""
        if pilot is None or self.epochs_expected is None:
            return self
        return replace(self, seconds=self.epochs_expected * pilot.seconds_per_epoch)


def look_ahead(spec: Spec, *, speed: str | None = None, measure: str | None = None) -> Outlook:
    """Return what the search of a study file would take.

    Args:
        spec: of the study file.
        speed: training samples a second, as `speeds_of` takes them.
        measure: instead, the device on which to measure the speed for a few seconds.

    Raises:
        UsageError: if both are given, a speed says nothing of the study, or the device does not exist.
        TaskError: if the task's data cannot be drawn.
    """
    stages = plan(spec)
    outlook = Outlook(
        tickets=ticket_count(spec),
        epochs_exhaustive=epochs_exhaustive(spec),
        epochs_expected=None if stages is None else sum(stage.epochs for stage in stages),
    )
    if speed is None and measure is None:
        return outlook
    if speed is not None and measure is not None:
        raise UsageError("--speed and --measure are both given; keep one of the two")
    if spec.task is None:
        raise UsageError("the speed of a training loop of your own cannot be told beforehand; leave it out")
    if stages is None:
        raise UsageError("the time is not known before the pilot has found the levels; give levels.count")
    # Here, as it imports torch, which nothing else needs that looks ahead.
    from floodsearch.cost.throughput import measure_speeds, samples_of

    if measure is not None:
        speeds = measure_speeds(spec, measure, sorted({at_once(spec, stage) for stage in stages}))
    else:
        speeds = speeds_of(str(speed))
    return at_speeds(outlook, spec, stages, samples_of(spec), speeds)


def at_speeds(
    outlook: Outlook, spec: Spec, stages: Sequence[Stage], samples: int, speeds: Mapping[int, float]
) -> Outlook:
    """Return an outlook with the time of each stage; the arguments are those of `time_stages`."""
    times = time_stages(spec, stages, samples, speeds)
    return replace(outlook, stages=tuple(times), seconds=sum(one.seconds for one in times) if times else None)
