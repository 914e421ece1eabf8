"""What a search will still cost: its pruner's plan, at a speed that was measured or given."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from floodsearch.answer.tickets import latest
from floodsearch.catalog import judge_of
from floodsearch.errors import UsageError
from floodsearch.findings import StudyStage
from floodsearch.queue import bracket_of, portions
from floodsearch.records import TrialRecord, WorkerRecord
from floodsearch.search.samplers import SAMPLERS
from floodsearch.search.space import Space
from floodsearch.search.tickets import ticket_count, tickets
from floodsearch.storage.studies import StoredStudy
from floodsearch.study.spec import Spec


class Stage(NamedTuple):
    """Runs, of all levels and seeds together, that are trained from after an epoch until another."""

    after: int
    until: int
    runs: int

    @property
    def epochs(self) -> int:
        """The member-epochs."""
        return (self.until - self.after) * self.runs


class Open(NamedTuple):
    """A ticket that is not finished: its level, if that is known, and how far of how many epochs it is."""

    number: int
    level: float | None
    epoch: int
    epochs: int
    seeds: int


def plan(spec: Spec) -> list[Stage] | None:
    """Return what a whole search trains, stage by stage; None while the pilot has to tell how many levels.

    Levels that are judged together go from rung to rung as their judge plans; a judge that looks at each by
    itself is taken to stop nothing. What levels share before they flood is not known before, and comes off.
    """
    if ticket_count(spec) is None:
        return None
    training = spec.training
    levels = [None if ticket is None else float(ticket["level"]) for ticket in tickets(spec.stand_in())]
    size = 0, training.epochs, len(training.seeds)
    parts = list(_parts(spec, [Open(number, level, *size) for number, level in enumerate(levels)]))
    ends = sorted({0, *(part.until for part in parts)})
    return [
        Stage(after, until, sum(part.runs for part in parts if part.after <= after and until <= part.until))
        for after, until in pairwise(ends)
    ]


def epochs_exhaustive(spec: Spec) -> int | None:
    """Return the member-epochs of training every ticket to its end; None if the pilot decides how many."""
    count = ticket_count(spec)
    return None if count is None else count * len(spec.training.seeds) * spec.training.epochs


def epochs_left(spec: Spec, trials: Iterable[TrialRecord]) -> int:
    """Return the member-epochs that the tickets of a study still need."""
    unfinished = [
        Open(one.ticket, one.level, one.epoch, one.epochs, one.seeds)
        for one in latest(trials).values()
        if one.state in ("waiting", "running")
    ]
    return sum(part.epochs for part in _parts(spec, unfinished))


def current_stage(spec: Spec, trials: Iterable[TrialRecord]) -> StudyStage | None:
    """Return what is in training now, by the tickets that are the least far; None if nothing is.

    Where a worker has taken tickets with other choices beside the level, which follow later, those that have
    begun count.
    """
    running = [one for one in latest(trials).values() if one.state == "running"]
    if not running:
        return None
    judge = judge_of(spec)
    if judge.together:
        running = [one for one in running if one.epoch > 0] or running
    # Level 0 goes on to its end when the others are judged.
    reached = min(one.epoch for one in [one for one in running if one.level != 0] or running)
    end = max(one.epochs for one in running)
    stages = ((after, until) for after, until, _ in judge.plan(len(running), 0, end))
    now = next(((after, until) for after, until in stages if after <= reached < until), (0, end))
    return StudyStage(after=now[0], until=now[1], tickets=len(running))


def _parts(spec: Spec, unfinished: Sequence[Open]) -> Iterator[Stage]:
    """Yield what tickets still need: each by itself, or with the others that it is judged with."""
    judge, bracket = judge_of(spec), bracket_of(spec, ticket_count(spec) or 1)
    together = dict[tuple[int | None, int, int], list[int]]()
    for one in unfinished:
        if one.level == 0 or not judge.together:
            yield Stage(one.epoch, one.epochs, one.seeds)
        else:
            together.setdefault((bracket(one.number), one.epochs, one.seeds), []).append(one.epoch)
    for (_, epochs, seeds), reached in together.items():
        levels = len(reached)
        if judge.tried is not None and SAMPLERS[spec.search.sampler].fixed:
            levels = min(levels, judge.tried * len(Space.of(spec.stand_in()).combinations()))
        for after, until, alive in judge.plan(levels, min(reached), epochs):
            yield Stage(after, until, alive * seeds)


def at_once(spec: Spec, stage: Stage) -> int:
    """Return how many runs of a stage one worker trains together."""
    return math.ceil(stage.runs / portions(spec))


class Timed(NamedTuple):
    """A stage, at a speed in training samples a second."""

    stage: Stage
    samples: int
    speed: float

    @property
    def seconds(self) -> float:
        """How long it takes."""
        return self.samples / self.speed


def time_stages(
    spec: Spec, stages: Sequence[Stage], samples: int, speeds: Mapping[int, float]
) -> list[Timed]:
    """Return how long one worker trains each stage.

    Args:
        spec: of the study.
        stages: of its plan.
        samples: of an epoch of one run.
        speeds: training samples a second of all runs together, by how many train at once. Between two of
            these numbers the speed is taken to be that of the smaller.
    """
    least = min(speeds)
    found = []
    for stage in stages:
        most = at_once(spec, stage)
        speed = speeds[max((runs for runs in speeds if runs <= most), default=least)]
        found.append(Timed(stage, stage.epochs * samples, speed))
    return found


def speeds_of(text: str) -> dict[int, float]:
    """Return speeds by the number of runs at once, of `21000` or `1=21000,4=70000`.

    Raises:
        UsageError: if it is neither.
    """
    speeds = {}
    for part in text.split(","):
        runs, _, speed = part.rpartition("=")
        try:
            speeds[int(runs or 1)] = float(speed)
        except ValueError:
            speeds[0] = math.nan
    if not all(runs >= 1 and 0 < speed < math.inf for runs, speed in speeds.items()):
        raise UsageError(
            f"speed {text!r} is not known; give training samples a second, such as 21000, "
            "or by how many runs train at once, such as 1=21000,4=70000"
        )
    return speeds


def epochs_a_second(study: StoredStudy, alive: Sequence[WorkerRecord], now: float) -> float | None:
    """Return the member-epochs a second of the workers that are alive, None if unknown.

    As measured, or as the pilot measured it while they have only begun.
    """
    trained = [one for one in alive if one.epochs_run > 0 and now > one.started]
    if trained:
        return sum(one.epochs_run / (now - one.started) for one in trained)
    if study.pilot is None:
        return None
    return max(1, len(alive)) / study.pilot.seconds_per_epoch
