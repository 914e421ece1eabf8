"""training: levels that are trained together, forked from a trunk, are as if trained alone, to the bit."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from floodsearch.errors import DivergedError
from floodsearch.records import EpochRecord
from floodsearch.tasks.models import mlp
from floodsearch.tasks.streams import stream
from floodsearch.tasks.task import Data, Recipe, Split, Task
from floodsearch.training.cohort import Cohort, EpochOutcome
from floodsearch.training.progress import RunPlan
from floodsearch.training.run import Run
from floodsearch.training.sequential import Sequential
from floodsearch.training.trunk import TrunkPool
from tests.device import DEVICE

SAMPLES, BATCH = 50, 16  # the last of four batches is smaller
LEVELS = {0: 0.0, 3: 1e-6, 5: 0.25, 6: 0.4, 7: 0.55, 9: 1e3}
"""By member: the baseline, one that never floods, some that begin to in the middle, one that does at once."""


def draw(seed: int) -> Data:
    """Return two classes in five dimensions that overlap."""
    parts = []
    for name in ("train", "validation", "test"):
        labels = torch.arange(SAMPLES) % 2
        inputs = torch.randn(SAMPLES, 5, generator=stream(seed, "test_cohort", name)) + labels[:, None]
        parts.append(Split(inputs, labels, labels))
    return Data(*parts)


def network(*extra: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(5, 8), *copy.deepcopy(extra), nn.ReLU(), nn.Linear(8, 2))


def make_task(*extra: nn.Module, loss: Any = functional.cross_entropy, **recipe: Any) -> Task:
    chosen = {"batch_size": BATCH, "learning_rate": 0.03, **recipe}
    return Task(data=draw, model=lambda: network(*extra), recipe=Recipe(**chosen), loss=loss)


def make_cohort(
    task: Task,
    plan: RunPlan,
    levels: Mapping[int, float] = LEVELS,
    seeds: Sequence[int] = (0, 2),
    **trunks: Any,
) -> Cohort:
    return Cohort(
        task, plan, levels=levels, seeds=dict.fromkeys(levels, tuple(seeds)), device=DEVICE, **trunks
    )


class Together:
    """What a cohort gives when it is trained to its end."""

    def __init__(self, cohort: Cohort, drop: Mapping[int, int] | None = None) -> None:
        self.records: dict[int, list[EpochRecord]] = {member: [] for member in cohort.levels}
        self.failed: dict[int, BaseException] = {}
        self.steps: list[EpochOutcome] = []
        self.forked: list[set[int]] = []
        for epoch in range(1, cohort.plan.epochs + 1):
            step = cohort.advance()
            self.steps.append(step)
            for member, records in step.records.items():
                assert [one.epoch for one in records] == [epoch] * len(cohort.seeds[member])
                self.records[member] += records
            self.failed |= step.failed
            self.forked.append({member for member in cohort.levels if cohort.forked(member)})
            for member in [one for one, when in (drop or {}).items() if when == epoch]:
                cohort.drop(member)
        self.tested = {member: cohort.tested(member) for member in cohort.levels}

    @property
    def trained(self) -> int:
        return sum(step.trained for step in self.steps)

    def run(self, member: int, seed: int) -> tuple[list[EpochRecord], list[EpochRecord]]:
        """Return the records and the tested records of a member with a seed."""
        return (
            [one for one in self.records[member] if one.seed == seed],
            [one for one in self.tested.get(member, []) if one.seed == seed],
        )


def alone(task: Task, plan: RunPlan, level: float, seed: int) -> tuple[list[EpochRecord], list[EpochRecord]]:
    """Train one level with one seed by itself; return its records and its tested ones."""
    run = Run(task, plan, seed=seed, level=level, device=DEVICE)
    return list(run), run.tested()


def first_flooded(records: Sequence[EpochRecord]) -> float:
    return next((one.epoch for one in records if one.flooded > 0), math.inf)


# --- exact -----------------------------------------------------------------------------------------------

SGD = {"optimizer": "sgd", "learning_rate": 0.2, "momentum": 0.9, "weight_decay": 0.01}
TASKS: Mapping[str, Task] = {
    "adam": make_task(),
    "adamw": make_task(optimizer="adamw", weight_decay=0.1),
    "sgd with momentum, decay and milestones": make_task(**SGD, milestones=(3, 6), gamma=0.5),
    "batch norm": make_task(nn.BatchNorm1d(8)),
    "dropout": make_task(nn.Dropout(0.3)),
    "all of it": make_task(nn.BatchNorm1d(8), nn.Dropout(0.3), **SGD, milestones=(4,)),
    "one batch an epoch": make_task(batch_size=SAMPLES, learning_rate=0.2),
}
PLANS: Mapping[str, RunPlan] = {
    "every epoch": RunPlan(epochs=7),
    "every third, and the last": RunPlan(epochs=8, validate_every=3),
    "by loss": RunPlan(epochs=8, validate_every=2, metric="val_loss", maximize=False),
}


CASES = [*zip(TASKS, itertools.cycle(PLANS), strict=False), ("all of it", "every third, and the last")]


@pytest.mark.parametrize(("name", "validated"), CASES)
def test_forked_is_trained_alone(name, validated):
    """Every record of each level and seed, tests included, is that of the level trained alone, to the bit."""
    task, plan, seeds = TASKS[name], PLANS[validated], (0, 5)
    together = Together(make_cohort(task, plan, seeds=seeds))
    assert not together.failed
    left = set()
    for member, level in LEVELS.items():
        for seed in seeds:
            expected = alone(task, plan, level, seed)
            assert together.run(member, seed) == expected
            left.add(first_flooded(expected[0]))
    assert len(left) > 3  # levels left the trunk at once, in several epochs, and never
    assert {1, math.inf} <= left


def test_members_may_have_seeds_of_their_own():
    """A member trains its own seeds only, and one without seeds nothing."""
    task, plan = TASKS["all of it"], RunPlan(epochs=7, validate_every=2)
    levels, seeds = {1: 0.0, 2: 0.4, 3: 0.6, 4: 0.6}, {1: (0, 1), 2: (1,), 3: (2, 0), 4: ()}
    together = Together(Cohort(task, plan, levels=levels, seeds=seeds, device=DEVICE))
    for member, level in levels.items():
        assert {one.seed for one in together.records[member]} == set(seeds[member])
        for seed in seeds[member]:
            assert together.run(member, seed) == alone(task, plan, level, seed)


@pytest.mark.parametrize("shift", [-1, 0, 1])
def test_a_loss_that_equals_the_level_is_exact(shift):
    """A level that a batch loss hits exactly, or misses by one float, is that of the level trained alone."""
    task, plan = TASKS["one batch an epoch"], RunPlan(epochs=8)
    losses = [one.train_loss for one in alone(task, plan, 0.0, 0)[0]]
    single = torch.tensor(losses[3])
    for near in (losses[3], losses[3] + shift * 1e-9):
        level = float(torch.nextafter(torch.tensor(near), single + shift))
        together = Together(make_cohort(task, plan, {0: 0.0, 1: level}, seeds=(0,)))
        assert together.run(1, 0) == alone(task, plan, level, 0)
        assert together.run(0, 0) == alone(task, plan, 0.0, 0)


def test_the_order_of_members_changes_nothing():
    """The same members in another order, or under other numbers, train to the same records."""
    task, plan = TASKS["dropout"], RunPlan(epochs=6)
    once = Together(make_cohort(task, plan))
    again = Together(make_cohort(task, plan, dict(reversed(LEVELS.items()))))
    assert once.records == again.records
    assert once.tested == again.tested
    assert once.trained == again.trained


# --- what it costs ---------------------------------------------------------------------------------------


def test_shared_epochs_are_trained_once():
    """A trunk is trained while somebody is on it, a fork from the epoch in which it first floods."""
    task, plan, seeds = TASKS["all of it"], RunPlan(epochs=7), (0, 1)
    together = Together(make_cohort(task, plan, seeds=seeds))
    left = {
        (member, seed): first_flooded(alone(task, plan, level, seed)[0])
        for member, level in LEVELS.items()
        for seed in seeds
    }
    forks = sum(plan.epochs - epoch + 1 for epoch in left.values() if epoch < math.inf)
    assert together.trained == len(seeds) * plan.epochs + forks
    for epoch, forked in enumerate(together.forked, start=1):
        assert forked == {member for (member, _), when in left.items() if when <= epoch}


def test_a_level_that_is_never_crossed_is_the_baseline():
    """Levels below every batch loss have the records of level 0 under their own name, and cost nothing."""
    task, plan = TASKS["adam"], RunPlan(epochs=6)
    never = {0: 0.0, 1: 1e-9, 2: 1e-8}
    together, baseline = Together(make_cohort(task, plan, never)), Together(make_cohort(task, plan, {0: 0.0}))
    assert together.trained == baseline.trained == 2 * plan.epochs
    assert together.forked[-1] == set()
    for member, level in never.items():
        for found, expected in (
            (together.records[member], baseline.records[0]),
            (together.tested[member], baseline.tested[0]),
        ):
            assert {one.level for one in found} == {level}
            assert [without_level(one) for one in found] == [without_level(one) for one in expected]


def without_level(record: EpochRecord) -> dict[str, Any]:
    return {name: getattr(record, name) for name in record.__slots__ if name != "level"}


def test_a_trunk_that_everybody_left_is_not_trained():
    """Without level 0 the trunk ends with the last member that was on it."""
    task, plan = TASKS["adam"], RunPlan(epochs=6)
    assert Together(make_cohort(task, plan, {1: 1e3, 2: 2e3}, seeds=(0,))).trained == 1 + 2 * 6


def test_level_zero_never_forks():
    """Level 0 floods nothing, also where the loss is below 0."""
    task = make_task(loss=lambda outputs, labels: functional.cross_entropy(outputs, labels) - 10)
    together = Together(make_cohort(task, RunPlan(epochs=4), {0: 0.0, 1: 0.1}))
    assert together.forked == [{1}] * 4


# --- cohorts that come later -----------------------------------------------------------------------------


@pytest.mark.parametrize("room", [0, 1, 10**4, 10**9])
def test_a_later_cohort_is_exact_and_trains_its_trunks_no_second_time(room):
    """Whatever is kept of a trunk's past: levels fork from it as if alone, and its own epochs are not new."""
    task, plan, seeds = TASKS["all of it"], RunPlan(epochs=8, validate_every=3), (0, 5)
    trunks = TrunkPool(Sequential(task, plan, DEVICE), room=room)
    first = Together(make_cohort(task, plan, {0: 0.0}, seeds, trunks=trunks, last=False))
    assert first.trained == plan.epochs * len(seeds)
    later = Together(make_cohort(task, plan, LEVELS, seeds, trunks=trunks, last=False))
    own = repeated = 0
    for (member, level), seed in itertools.product(LEVELS.items(), seeds):
        expected, tested = alone(task, plan, level, seed)
        assert later.run(member, seed) == (expected, tested)
        if (since := first_flooded(expected)) <= plan.epochs:
            own += plan.epochs + 1 - int(since)
            repeated += int(since) - 1
    assert repeated > 0
    assert own <= later.trained <= own + repeated
    assert later.trained == {0: own + repeated, 10**9: own}.get(room, later.trained)


def test_trunks_that_serve_no_later_cohort_keep_nothing_of_the_past():
    """Memory: behind the last cohort that uses it a trunk lets its states go."""
    task, plan = TASKS["adam"], RunPlan(epochs=8)
    trunks = TrunkPool(Sequential(task, plan, DEVICE), room=10**9)
    make_cohort(task, plan, {0: 0.0}, (0,), trunks=trunks, last=False).train(4, lambda _: True)
    cohort = make_cohort(task, plan, {0: 0.0, 1: 0.3}, (0,), trunks=trunks, last=True)
    for _ in range(4):
        cohort.advance()
    assert all(at >= 4 for at in trunks.of(0)._kept)


def test_a_trunk_that_broke_is_trained_again_when_its_cause_is_gone():
    """An error of the user's code ends the members of its cohort, not those of later ones."""
    fails = [True]

    def loss(outputs: Tensor, labels: Tensor) -> Tensor:
        if torch.is_grad_enabled() and fails[0]:
            raise OSError("the disk is away")
        return functional.cross_entropy(outputs, labels)

    task, plan = make_task(loss=loss), RunPlan(epochs=3)
    trunks = TrunkPool(Sequential(task, plan, DEVICE), room=10**6)
    broken = Together(make_cohort(task, plan, {0: 0.0}, (0,), trunks=trunks, last=False))
    assert isinstance(broken.failed[0], OSError)
    fails[0] = False
    trunks.drop_broken()
    mended = Together(make_cohort(task, plan, {0: 0.0}, (0,), trunks=trunks, last=False))
    assert mended.run(0, 0) == alone(task, plan, 0.0, 0)


# --- members that leave ----------------------------------------------------------------------------------


@pytest.mark.parametrize("gone", [{0: 2}, {3: 1, 6: 4}, {9: 1, 7: 3}, dict.fromkeys(LEVELS, 5)], ids=str)
def test_a_dropped_member_changes_nothing_for_the_others(gone):
    """Whoever is dropped, on the trunk or off it: the others go on as if nobody had been."""
    task, plan = TASKS["all of it"], RunPlan(epochs=8, validate_every=2)
    whole, together = Together(make_cohort(task, plan)), Together(make_cohort(task, plan), gone)
    for member in LEVELS:
        until = gone.get(member, plan.epochs)
        assert together.records[member] == [one for one in whole.records[member] if one.epoch <= until]
        assert member in gone or together.tested[member] == whole.tested[member]
    assert together.trained <= whole.trained
    assert not gone.keys() & together.tested.keys()


def breaks(where: Any, what: Any) -> Any:
    """Return a loss that does `what` to training losses `where` they satisfy a condition."""

    def loss(outputs: Tensor, labels: Tensor) -> Tensor:
        plain = functional.cross_entropy(outputs, labels)
        return what(plain) if torch.is_grad_enabled() and where(float(plain.detach())) else plain

    return loss


def as_alone(task: Task, plan: RunPlan, together: Together, seeds: Sequence[int] = (0, 2)) -> set[int]:
    """Assert that each member ends as its runs do alone; return those that diverged."""
    diverged = set()
    for member, level in LEVELS.items():
        ends: dict[int, DivergedError] = {}
        runs: dict[int, Run] = {}
        expected: dict[int, list[EpochRecord]] = {}
        for seed in seeds:
            runs[seed], expected[seed] = Run(task, plan, seed=seed, level=level, device=DEVICE), []
            try:
                expected[seed].extend(runs[seed])
            except DivergedError as error:
                ends[seed] = error
        if not ends:
            for seed in seeds:
                assert together.run(member, seed) == (expected[seed], runs[seed].tested())
            continue
        diverged.add(member)
        found, error = (
            together.failed[member],
            min(ends.values(), key=lambda error: (error.epoch, error.seed)),
        )
        assert isinstance(found, DivergedError)
        assert (found.level, found.epoch, found.step, found.seed) == (
            error.level,
            error.epoch,
            error.step,
            error.seed,
        )
        for seed in seeds:
            assert together.run(member, seed) == (
                [one for one in expected[seed] if one.epoch < error.epoch],
                [],
            )
    return diverged


def test_a_member_that_diverges_leaves_alone():
    """A level whose loss becomes NaN fails with its own level, epoch, step and seed; the others are exact."""
    loss = breaks(lambda plain: plain > 2.5, lambda plain: plain * math.nan)
    task, plan = make_task(loss=loss, learning_rate=0.1), RunPlan(epochs=10)
    together = Together(make_cohort(task, plan))
    assert as_alone(task, plan, together) == together.failed.keys() == {9}


def test_a_trunk_that_diverges_takes_those_that_diverge_with_it():
    """When the unflooded run breaks, levels above the break go on, the others fail as they do alone."""
    loss = breaks(lambda plain: plain < 0.2, lambda plain: plain * math.inf)
    task, plan = make_task(loss=loss, learning_rate=0.1, batch_size=SAMPLES), RunPlan(epochs=40)
    together = Together(make_cohort(task, plan))
    diverged = as_alone(task, plan, together)
    assert diverged == together.failed.keys()
    assert {0, 3} <= diverged
    assert not diverged & {7, 9}


@pytest.mark.parametrize("kind", [ArithmeticError, SystemExit])
def test_an_error_of_the_users_code_ends_those_that_trained_it(kind):
    """A forked level whose code raises fails alone, with that error; the others are exact."""

    def fail(plain: Tensor) -> Tensor:
        raise kind("my own bug")

    task = make_task(loss=breaks(lambda plain: plain > 2.5, fail), learning_rate=0.1)
    together, plan = Together(make_cohort(task, RunPlan(epochs=10))), RunPlan(epochs=10)
    assert together.failed.keys() == {9}
    assert isinstance(together.failed[9], kind)
    for member in LEVELS.keys() - {9}:
        for seed in (0, 2):
            assert together.run(member, seed) == alone(task, plan, LEVELS[member], seed)


def test_an_error_on_the_trunk_ends_those_that_are_on_it():
    """When the trunk raises, what has left it before goes on and is exact."""

    def fail(plain: Tensor) -> Tensor:
        raise ArithmeticError("too good")

    task = make_task(loss=breaks(lambda plain: plain < 0.2, fail), learning_rate=0.1, batch_size=SAMPLES)
    together, plan = Together(make_cohort(task, RunPlan(epochs=40))), RunPlan(epochs=40)
    assert {0, 3} <= together.failed.keys()
    assert not together.failed.keys() & {7, 9}
    assert {type(error) for error in together.failed.values()} == {ArithmeticError}
    for member in LEVELS.keys() - together.failed.keys():
        for seed in (0, 2):
            assert together.run(member, seed) == alone(task, plan, LEVELS[member], seed)


@pytest.mark.parametrize("part", ["data", "model"])
def test_a_task_that_cannot_be_built_fails_its_members(part):
    """An error of the data or the model of a seed ends all members, without records."""

    def fail(*seed: int) -> Any:
        raise FileNotFoundError("no such data")

    parts: dict[str, Any] = {"data": draw, "model": lambda: mlp(5, 2, width=8, depth=1), part: fail}
    cohort = make_cohort(Task(**parts, recipe=Recipe(batch_size=SAMPLES)), RunPlan(epochs=3))
    step = cohort.advance()
    assert step.failed.keys() == LEVELS.keys()
    assert (step.records, step.trained) == ({}, 0)
    assert cohort.advance() == EpochOutcome()


@pytest.mark.parametrize("validate_every", [1, 2])
def test_a_model_that_cannot_be_copied_is_forked(validate_every):
    """A fork's model is made anew: weights that are computed, as under weight normalisation, fork exactly."""

    def model() -> nn.Module:
        return nn.utils.parametrizations.weight_norm(nn.Linear(5, 2))

    task = Task(data=draw, model=model, recipe=Recipe(batch_size=SAMPLES))
    plan = RunPlan(epochs=4, validate_every=validate_every)
    together = Together(make_cohort(task, plan, {0: 0.0, 1: 1e-9, 2: 1e3}))
    assert not together.failed
    assert together.records[0] == [*alone_in_turn(task, plan, 0.0)]
    assert together.records[2] == [*alone_in_turn(task, plan, 1e3)]


def alone_in_turn(task: Task, plan: RunPlan, level: float) -> list[EpochRecord]:
    runs = [alone(task, plan, level, seed)[0] for seed in (0, 2)]
    return [record for both in zip(*runs, strict=True) for record in both]
