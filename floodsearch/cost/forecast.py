"""What a search will still cost: its pruner's plan, at a speed that was measured or given."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

from floodsearch.answer.tickets import latest
from floodsearch.catalog import judge_of, rule_of
from floodsearch.cost.course import Shown, Stage, Tickets, Way, course
from floodsearch.cost.floods import Floods
from floodsearch.errors import UsageError
from floodsearch.findings import StudyStage
from floodsearch.flooding.schedules import SCHEDULES
from floodsearch.queue import bracket_of, portions
from floodsearch.records import Pilot, TrialRecord, WorkerRecord
from floodsearch.search.history import Tried
from floodsearch.search.judge import Judge
from floodsearch.search.pilot import longest
from floodsearch.search.samplers import SAMPLERS, propose
from floodsearch.search.space import Space
from floodsearch.search.tickets import ticket_count, tickets
from floodsearch.storage.studies import StoredStudy
from floodsearch.study.section import AUTO
from floodsearch.study.spec import Spec

MOST_PROPOSED = 100
"""Levels that a sampler is asked for, which takes milliseconds each; more are spread evenly."""


class Open(NamedTuple):
    """A ticket that is not finished: its level, if that is known, and how far of how many epochs it is."""

    number: int
    level: float | None
    epoch: int
    epochs: int
    seeds: int


def way_of(spec: Spec) -> Way:
    """Return how the runs of a study are trained; of a loop, if it can be paused."""
    if spec.command is not None:
        return "is a command"
    return "forks" if spec.task is not None and SCHEDULES[spec.training.schedule].forks else "goes on"


def assumed(spec: Spec) -> Floods:
    """Return when levels first flood, as far as that is known of a study which nobody has begun."""
    return Floods(highest=spec.stand_in().levels.highest)


def plan(
    spec: Spec, floods: Floods | None = None, way: Way | None = None, pilot: int = 0
) -> list[Stage] | None:
    """Return what a whole search trains, stage by stage; None while the pilot has to tell how many levels.

    Levels that are judged together go from rung to rung as their judge plans; a judge that looks at each by
    itself is taken to stop nothing.

    Args:
        spec: of the study.
        floods: when levels first flood; by default what is assumed.
        way: how runs are trained, by default as `way_of` says.
        pilot: epochs of each seed that only the pilot is trained for.
    """
    if (every := unbegun(spec)) is None:
        return None
    parts = parts_of(spec, every, floods or assumed(spec), way or way_of(spec), pilot)
    ends = sorted({0, *(part.until for part in parts)})
    return [_merged(parts, after, until) for after, until in pairwise(ends)]


def parts_of(spec: Spec, every: Sequence[Open], floods: Floods, way: Way, pilot: int = 0) -> list[Stage]:
    """Return the stages of a whole search, of each bracket and of level 0 by themselves.

    Each run of a stage is begun once, or goes on once. `every` is what `unbegun` returns, the rest as in
    `plan`.
    """
    parts = list(_parts(spec, every, floods, way))
    return parts + ([Stage(0, pilot, len(spec.training.seeds))] if pilot else [])


def unbegun(spec: Spec) -> list[Open] | None:
    """Return all tickets of a study before it is begun; None while the pilot has to tell how many.

    Levels that a sampler is still to propose are those that it does without knowing what others came to.
    """
    if ticket_count(spec) is None:
        return None
    levels, spec = list[float | None](), spec.stand_in()
    rule, space, tried = rule_of(spec), Space.of(spec), list[Tried]()
    for number, ticket in enumerate(tickets(spec)):
        if ticket is None and rule is not None and number < MOST_PROPOSED:
            ticket = propose(rule, space, tried, seed=spec.search.seed, ticket=number)  # noqa: PLW2901
            beside = {name: value for name, value in ticket.items() if name != "level"}
            tried.append(Tried(number, float(ticket["level"]), beside, score=None))
        levels.append(None if ticket is None else float(ticket["level"]))
    size = 0, spec.training.epochs, len(spec.training.seeds)
    return [Open(number, level, *size) for number, level in enumerate(levels)]


def pilot_apart(spec: Spec, way: Way) -> int:
    """Return for how many epochs of a seed, at most, the pilot is trained that nothing goes on from."""
    return longest(spec.training) if spec.levels.high == AUTO and pilots_apart(spec, way) else 0


def pilots_apart(spec: Spec, way: Way) -> bool:
    """Return whether level 0 begins again behind the pilot."""
    return way == "never pauses" or (way == "is a command" and _kept(spec) == 0)


def _kept(spec: Spec) -> int:
    """Return how many processes of a command a worker stops and keeps at most."""
    return 0 if spec.script is None or spec.script.pause == "restart" else spec.script.stopped


def _merged(parts: Sequence[Stage], after: int, until: int) -> Stage:
    """Return all that parts train between two epochs, of which none begins or ends in between."""
    inside = [part for part in parts if part.after <= after and until <= part.until]
    saved = [part.saved * (until - after) // (part.until - part.after) for part in inside]
    return Stage(after, until, sum(part.runs for part in inside), sum(saved))


def epochs_exhaustive(spec: Spec) -> int | None:
    """Return the member-epochs of training every ticket to its end; None if the pilot decides how many."""
    count = ticket_count(spec)
    return None if count is None else count * len(spec.training.seeds) * spec.training.epochs


def epochs_left(spec: Spec, trials: Iterable[TrialRecord], pilot: Pilot | None = None) -> int:
    """Return the member-epochs that the tickets of a study still need, by when levels are assumed to flood.

    Args:
        spec: of the study.
        trials: of the study.
        pilot: what its pilot came to; the first ticket goes on from there.
    """
    trials = list(trials)
    newest = latest(trials)
    done = {
        one.ticket: one.seeds
        for one in trials
        if one.state == "complete" and one.epochs == spec.training.epochs
    }
    unfinished = [
        Open(one.ticket, one.level, one.epoch, one.epochs, one.seeds - done.get(one.ticket, 0))
        for one in newest.values()
        if one.state in ("waiting", "running")
    ]
    begun = [one for one in newest.values() if one.level and one.epoch > 0]  # above level 0
    left = sum(part.epochs for part in _parts(spec, unfinished, assumed(spec), way_of(spec), begun))
    first = next((one for one in unfinished if one.number == 0), None)
    if first is None or pilot is None or pilots_apart(spec, way_of(spec)):
        return left
    return left - max(0, pilot.epochs - first.epoch * first.seeds)


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


def _parts(
    spec: Spec, unfinished: Sequence[Open], floods: Floods, way: Way, begun: Sequence[TrialRecord] = ()
) -> Iterator[Stage]:
    """Yield what tickets still need: each by itself, or with the others that it is judged with.

    Args:
        spec: of the study.
        unfinished: its tickets that are waiting or in training.
        floods: when levels first flood.
        way: how runs are trained.
        begun: of the study's levels above 0, those that have been trained, or are in training.
    """
    judge = judge_of(spec)
    yield from (Stage(one.epoch, one.epochs, one.seeds) for one in unfinished if one.level == 0)
    if not judge.together:
        groups = [([one], Shown()) for one in unfinished if one.level != 0]
    elif SAMPLERS[spec.search.sampler].fixed:
        groups = _blocks(spec, unfinished)
    else:
        groups = _rounds(judge, unfinished, begun)
    for together, shown in groups:
        levels = {one.number: _level(spec, one) for one in together}
        first = together[0]
        after = min(one.epoch for one in together)
        group = Tickets(levels, first.seeds, after, first.epochs, _kept(spec))
        yield from course(group, judge, floods, way, shown)
        if way != "forks" and (ahead := sum(one.epoch - after for one in together)):  # one by one to a rung
            yield Stage(after, first.epochs, 0, ahead * first.seeds)


def _blocks(spec: Spec, unfinished: Sequence[Open]) -> list[tuple[list[Open], Shown]]:
    """Return the tickets of a grid above level 0 that are judged together, without those not tried."""
    wanted = tickets(spec.stand_in())
    judge, bracket = judge_of(spec), bracket_of(spec, len(wanted))

    def block(number: int) -> Hashable:
        beside = {name: value for name, value in (wanted[number] or {}).items() if name != "level"}
        return bracket(number), frozenset(beside.items())

    levels = defaultdict[Hashable, dict[int, float]](dict)
    for number, parameters in enumerate(wanted):
        if parameters is not None and parameters["level"] != 0:
            levels[block(number)][number] = float(parameters["level"])
    tried = {number for of in levels.values() for number in of.keys() - judge.begin(of).keys()}
    together = defaultdict[Hashable, list[Open]](list)
    for one in unfinished:
        if one.level != 0 and one.number < len(wanted):
            together[block(one.number), one.epochs, one.seeds].append(one)
    found = []
    for group in together.values():
        # Where only others are left one of these is the answer, which is confirmed.
        group = [one for one in group if one.number in tried] or group[:1]  # noqa: PLW2901
        begun = bool(judge.rungs) and min(one.epoch for one in group) >= judge.rungs[0]
        of = levels[block(group[0].number)].keys() & tried
        found.append((group, Shown(began=len(of) if begun else 0)))
    return found


def _rounds(
    judge: Judge, unfinished: Sequence[Open], begun: Sequence[TrialRecord]
) -> list[tuple[list[Open], Shown]]:
    """Return open tickets above level 0 as they are taken, a few at a time, each after those before."""
    shown = Shown()
    waiting = {one.number for one in unfinished}
    for one in begun:
        shown.began += bool(judge.rungs) and one.epoch >= judge.rungs[0]
        if one.ticket not in waiting:
            shown.add(judge, one.level or 0.0, one.epoch, flooded=one.flooded is not False)
    order = sorted(unfinished, key=lambda one: (-one.epoch, one.number))
    rounds = [order[first : first + judge.most_open] for first in range(0, len(order), judge.most_open)]
    above = [[one for one in group if one.level != 0] for group in rounds]
    return [(group, shown) for group in above if group]


def _level(spec: Spec, ticket: Open) -> float:
    """Return the level of a ticket above 0; of one that is still to be proposed any, spread evenly."""
    if ticket.level is not None:
        return ticket.level
    space = Space.of(spec.stand_in())
    return space.high - (space.high - space.low) * (ticket.number * math.sqrt(2) % 1)


def at_once(spec: Spec, stage: Stage) -> int:
    """Return how many runs of a stage one worker trains together."""
    return max(1, math.ceil(stage.epochs / (stage.until - stage.after) / portions(spec)))


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
