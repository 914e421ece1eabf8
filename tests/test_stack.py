"""training: a stacked run is the run alone to the bit, whoever is beside it; a looped one to rounding."""

from __future__ import annotations

import gc
import logging
import math
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from floodsearch import queue
from floodsearch.defaults import REPRODUCIBLE
from floodsearch.errors import DivergedError
from floodsearch.records import EpochRecord
from floodsearch.storage import tables
from floodsearch.storage.studies import find_study, put_study
from floodsearch.storage.trial_records import read_trials
from floodsearch.study.trust import given
from floodsearch.tasks.streams import stream
from floodsearch.tasks.task import Data, Recipe, Split, Task, build_optimizer
from floodsearch.training.cohort import Cohort
from floodsearch.training.lanes import WIDTH
from floodsearch.training.progress import RunPlan
from floodsearch.training.sequential import Sequential
from floodsearch.training.stack import Stack
from floodsearch.training.stackable import depends_on_place, obstacle
from floodsearch.training.trunk import TrunkPool
from floodsearch.worker.leave import LeaveRequest
from floodsearch.worker.settings import WorkerSettings
from floodsearch.worker.trainers import CohortTrainer, default_engine
from floodsearch.worker.work import work
from tests.device import DEVICE
from tests.test_cohort import Together, first_flooded
from tests.zygote import CODES

CPU = torch.device("cpu")
SAMPLES, BATCH, CLASSES = 50, 16, 3  # the last of four batches is smaller; no dimension is a power of two
LEVELS = {0: 0.0, 3: 1e-6, 5: 0.4, 6: 0.6, 7: 0.8, 9: 1e3}
"""By member: the baseline, one that never floods, some that begin to in the middle, one that does at once."""


def draw(seed: int) -> Data:
    """Return three classes in five dimensions that overlap."""
    parts = []
    for name in ("train", "validation", "test"):
        labels = torch.arange(SAMPLES) % CLASSES
        inputs = torch.randn(SAMPLES, 5, generator=stream(seed, "test_stack", name)) + labels[:, None]
        parts.append(Split(inputs, labels, labels))
    return Data(*parts)


def make_task(*extra: Callable[[int], nn.Module], width: int = 7, loss: Any = None, **recipe: Any) -> Task:
    def model() -> nn.Module:
        inner = [make(width) for make in extra]
        return nn.Sequential(nn.Linear(5, width), *inner, nn.ReLU(), nn.Linear(width, CLASSES))

    chosen = {"batch_size": BATCH, "learning_rate": 0.01, **recipe}
    return Task(data=draw, model=model, recipe=Recipe(**chosen), loss=loss or functional.cross_entropy)


norm = nn.BatchNorm1d

SGD = {"optimizer": "sgd", "learning_rate": 0.1, "momentum": 0.9, "weight_decay": 0.01}
TASKS: Mapping[str, Task] = {
    "adam": make_task(),
    "adamw": make_task(optimizer="adamw", weight_decay=0.1),
    "sgd with momentum, decay and milestones": make_task(**SGD, milestones=(3, 6), gamma=0.5),
    "batch norm": make_task(norm),
    "batch norm, sgd and milestones": make_task(norm, **SGD, milestones=(4,)),
    "one batch an epoch": make_task(batch_size=SAMPLES, learning_rate=0.1),
}
PLAN = RunPlan(epochs=8, validate_every=3)
SCHEDULED: Mapping[str, RunPlan] = {
    "backward": RunPlan(epochs=8, schedule="backward", settings={"until_accuracy": 0.6}),
    "adaptive": RunPlan(epochs=8, schedule="adaptive", settings={"until_accuracy": 0.5, "alpha": 0.1}),
}


def make_cohort(
    task: Task,
    plan: RunPlan = PLAN,
    levels: Mapping[int, float] = LEVELS,
    seeds: Sequence[int] = (0, 5),
    **more: Any,
) -> Cohort:
    more.setdefault("trunks", TrunkPool(Stack(task, plan, DEVICE)))
    return Cohort(task, plan, levels=levels, seeds=dict.fromkeys(levels, tuple(seeds)), device=DEVICE, **more)


def alone(task: Task, plan: RunPlan, level: float, seed: int) -> tuple[list[EpochRecord], list[EpochRecord]]:
    """Train one level with one seed in a stack of its own; return its records and its tested ones."""
    engine = Stack(task, plan, DEVICE)
    run = engine.new_run(seed, level)
    records = []
    for _ in range(plan.epochs):
        [outcome] = engine.advance([run])
        assert isinstance(outcome, EpochRecord), outcome
        records.append(outcome)
    return records, run.tested()


@cache
def known_alone(name: str, level: float, seed: int) -> tuple[list[EpochRecord], list[EpochRecord]]:
    """Train it with the usual plan, once for all who ask."""
    return alone(TASKS[name], PLAN, level, seed)


# --- exact -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TASKS)
def test_stacked_is_trained_alone_to_the_bit(name):
    """Every record of each level and seed, tests included, is that of the level in a stack of its own."""
    together, left = Together(make_cohort(TASKS[name])), set()
    assert not together.failed
    for member, level in LEVELS.items():
        for seed in (0, 5):
            expected = known_alone(name, level, seed)
            assert together.run(member, seed) == expected
            left.add(first_flooded(expected[0]))
    assert len(left) > 3  # levels left the trunk at once, in several epochs, and never
    assert {1, math.inf} <= left


OTHER_MAKE = """
import sys
from tests.other_make import pretend
if not pretend():
    sys.exit("no such library")
from tests.test_stack import CPU, TASKS, depends_on_place
print([depends_on_place(TASKS[name], CPU, 0) for name in ("adam", "batch norm")])
"""
CODES.add(OTHER_MAKE)  # what it is forked from has multiplied nothing: its library has not asked yet


@pytest.mark.parametrize("name", TASKS)
def test_equal_runs_are_equal_on_every_place_here(name):
    """The machine that this runs on rounds a run alike wherever in a stack it lies."""
    assert not depends_on_place(TASKS[name], DEVICE, 0)


@pytest.mark.parametrize("told", [True, False])
def test_on_a_cpu_of_another_make_places_are_alike_only_where_its_library_is_told(told):
    """With kernels of AMD's CPUs equal runs differ by place, which is found out; as workers set them, not.

    The lanes of these models do not begin at multiples of 64 bytes.
    """
    name, value = REPRODUCIBLE
    environment = {key: text for key, text in os.environ.items() if key != name} | (
        {name: value} if told else {}
    )
    done = subprocess.run(
        [sys.executable, "-c", OTHER_MAKE], env=environment, capture_output=True, text=True, check=False
    )
    if "no such library" in done.stderr:
        pytest.skip("this torch has no MKL whose CPU could be of another make")
    assert done.stdout.split() == (["[False,", "False]"] if told else ["[True,", "True]"]), done.stderr


def test_a_worker_tells_the_library_before_it_computes(monkeypatch, tmp_path, command):
    """`floodsearch work` sets the variable, unless its user has."""
    name, value = REPRODUCIBLE
    for mine, expected in ((None, value), ("AVX2", "AVX2")):
        monkeypatch.delenv(name, raising=False)
        if mine is not None:
            monkeypatch.setenv(name, mine)
        command("work", "unknown", "--storage", f"sqlite:///{tmp_path}/none.db")
        assert os.environ[name] == expected


@pytest.mark.parametrize("schedule", SCHEDULED)
def test_each_schedule_is_exact(schedule):
    """A level that moves by itself is stacked as well, to the bit; one that does not, above."""
    task, plan = TASKS["batch norm, sgd and milestones"], SCHEDULED[schedule]
    together = Together(make_cohort(task, plan))
    for member, level in LEVELS.items():
        for seed in (0, 5):
            assert together.run(member, seed) == alone(task, plan, level, seed)
    assert len({record.level for record in together.records[9]}) > 1


@pytest.mark.parametrize("name", ["adam", "batch norm, sgd and milestones"])
@pytest.mark.parametrize("count", [2, 5, WIDTH, WIDTH + 1])
def test_a_result_does_not_depend_on_how_many_share_a_stack(count, name):
    """Beside any number of others, in any place, a run is the same to the bit."""
    task, plan = TASKS[name], RunPlan(epochs=3)
    expected = alone(task, plan, 0.8, 5)
    engine = Stack(task, plan, DEVICE)
    others = [engine.new_run(seed, 0.1 * seed) for seed in range(count - 1)]
    run = engine.new_run(5, 0.8)
    for place in range(0, count, 7):
        runs = [*others[:place], run, *others[place:]]
    found = [engine.advance(runs)[runs.index(run)] for _ in range(plan.epochs)]
    assert (found, run.tested()) == expected


def test_wide_layers_are_exact_too():
    """With the layers of the paper, 500 units wide, two members are what many are."""
    task, plan = make_task(width=500), RunPlan(epochs=3)
    few, many = (
        Together(make_cohort(task, plan, {m: 0.02 * m for m in members}, (0,)))
        for members in ((0, 39), range(40))
    )
    for member in (0, 39):
        assert few.run(member, 0) == many.run(member, 0)


BOUNDS = {torch.float32: 1e-4, torch.float64: 1e-9}
"""Share by which the training losses of a stack and a loop may differ in the first 50 epochs. Rounding grows
as training goes on, faster where a level is crossed and near it."""


def in_precision(task: Task, dtype: torch.dtype) -> Task:
    def data(seed: int) -> Data:
        drawn = task.data(seed)
        parts = (drawn.train, drawn.validation, drawn.test)
        return Data(*(Split(part.inputs.to(dtype), part.labels, part.clean_labels) for part in parts))

    return replace(task, data=data, model=lambda: task.model().to(dtype))


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, torch.float64) for name in TASKS),
        *((name, torch.float32) for name in ("adamw", "batch norm, sgd and milestones")),
    ],
)
def test_stacks_and_loops_agree_within_rounding(name, dtype):
    """In 50 epochs training losses differ by less than 1e-9 of themselves in double precision, and in single
    precision, at a tenth of the learning rate, by less than 1e-4."""
    task = in_precision(TASKS[name], dtype)
    rate = task.recipe.learning_rate * (0.1 if dtype == torch.float32 else 1)
    task, plan = task.with_recipe({"learning_rate": rate}), RunPlan(epochs=50, validate_every=10)
    levels = {member: LEVELS[member] for member in (0, 6, 9)}
    stacked, one_by_one = (
        Together(make_cohort(task, plan, levels, (0,), trunks=TrunkPool(engine(task, plan, DEVICE))))
        for engine in (Stack, Sequential)
    )
    worst = 0.0
    for member in levels:
        pairs = zip(stacked.records[member], one_by_one.records[member], strict=True)
        worst = max(worst, *(abs(a.train_loss - b.train_loss) / abs(b.train_loss) for a, b in pairs))
    assert worst < BOUNDS[dtype]


def test_a_regression_without_accuracy_is_stacked():
    """A task without `correct`, with labels of its own shape, gives records without accuracies."""

    def lines(seed: int) -> Data:
        x = torch.randn(3, 20, 4, generator=stream(seed, "lines"))
        return Data(*(Split(part, part[:, :2]) for part in x))

    task = Task(
        data=lines,
        model=lambda: nn.Linear(4, 2),
        recipe=Recipe(batch_size=20),
        loss=functional.mse_loss,
        correct=None,
    )
    plan = RunPlan(epochs=4, metric="val_loss", maximize=False)
    together = Together(make_cohort(task, plan, {0: 0.0, 1: 1e3}))
    assert together.run(1, 5) == alone(task, plan, 1e3, 5)
    assert {one.train_accuracy for one in together.records[0]} == {None}


def test_seeds_with_other_sizes_are_stacked_apart():
    """Data whose shape depends on the seed still trains, each seed as alone."""

    def uneven(seed: int) -> Data:
        x = torch.randn(3, 20 + seed, 5, generator=stream(seed, "uneven"))
        return Data(*(Split(part, (part[:, 0] > 0).long()) for part in x))

    task = Task(data=uneven, model=lambda: nn.Linear(5, 2), recipe=Recipe(batch_size=8))
    together = Together(make_cohort(task, PLAN))
    for seed in (0, 5):
        assert together.run(9, seed) == alone(task, PLAN, 1e3, seed)


def test_frozen_parameters_stay():
    """A parameter without gradient is no part of the training."""

    def model() -> nn.Module:
        network = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, CLASSES))
        network[0].requires_grad_(False)
        return network

    task = Task(data=draw, model=model, recipe=Recipe(batch_size=25, weight_decay=0.1))
    engine = Stack(task, PLAN, DEVICE)
    run = engine.new_run(0, 0.5)
    before = run.weights()
    engine.advance([run])
    assert obstacle(task, DEVICE, 0) is None
    assert torch.equal(run.weights()["0.weight"], before["0.weight"])
    assert not torch.equal(run.weights()["2.weight"], before["2.weight"])


# --- members that come and go ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole():
    """Train all members to the end."""
    return Together(make_cohort(TASKS["batch norm, sgd and milestones"]))


@pytest.mark.parametrize("gone", [{0: 2}, {3: 1, 6: 4}, {9: 1, 7: 3}, dict.fromkeys(LEVELS, 5)], ids=str)
def test_a_dropped_member_changes_nothing_for_the_others(gone, whole):
    """Whoever is dropped, on the trunk or off it: the others go on as if nobody had been."""
    together = Together(make_cohort(TASKS["batch norm, sgd and milestones"]), gone)
    for member in LEVELS:
        until = gone.get(member, PLAN.epochs)
        assert together.records[member] == [one for one in whole.records[member] if one.epoch <= until]
        assert member in gone or together.tested[member] == whole.tested[member]


def test_dropped_members_make_room():
    """When most of several stacks are dropped, the rest move together."""
    task, plan = TASKS["adam"], RunPlan(epochs=4)
    engine = Stack(task, plan, DEVICE)
    levels = {member: 1e3 + member for member in range(3 * WIDTH)}
    cohort = make_cohort(task, plan, levels, (0,), trunks=TrunkPool(engine))
    expected = Together(make_cohort(task, plan, {95: levels[95]}, (0,)))
    records = [*cohort.advance().records[95], *cohort.advance().records[95]]
    most = len(engine._lanes)
    for member in range(95):
        cohort.drop(member)
    gc.collect()
    records += [*cohort.advance().records[95], *cohort.advance().records[95]]
    assert len(engine._lanes) < most
    assert records == expected.records[95]


@pytest.mark.parametrize("room", [0, 10**9])
def test_a_later_cohort_forks_from_stacked_trunks(room):
    """Trunks outlive their cohort in a stack too: levels fork from their past as if alone."""
    name = "batch norm, sgd and milestones"
    task = TASKS[name]
    trunks = TrunkPool(Stack(task, PLAN, DEVICE), room=room)
    for seed in (0, 5):  # as the pilot does: one seed after the other, not equally far
        unflooded = make_cohort(task, levels={0: 0.0}, seeds=(seed,), trunks=trunks, last=False)
        unflooded.train(PLAN.epochs - seed, lambda _: True)
    later = Together(make_cohort(task, trunks=trunks, last=False))
    for member, level in LEVELS.items():
        for seed in (0, 5):
            assert later.run(member, seed) == known_alone(name, level, seed)


def test_a_member_that_diverges_leaves_alone():
    """A level whose loss becomes infinite fails with its own level and seed; the others are exact."""

    def loss(outputs: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(outputs, labels) + 0.01 * outputs.square().mean()

    task, plan, calm = make_task(**SGD, loss=loss), RunPlan(epochs=25), {0: 0.0, 5: 0.4}
    together = Together(make_cohort(task, plan, {**calm, 9: 1e38}))
    assert together.failed.keys() == {9}
    error = together.failed[9]
    assert isinstance(error, DivergedError)
    assert error.level == 1e38
    assert len(together.records[9]) >= 2 * (error.epoch - 1) > 2
    for member, level in calm.items():
        for seed in (0, 5):
            assert together.run(member, seed) == alone(task, plan, level, seed)


def test_an_error_of_the_users_code_ends_those_that_trained_it():
    """An error in a stack fails its members; another cohort may still train."""
    broken = [False]

    def loss(outputs: Tensor, labels: Tensor) -> Tensor:
        if broken[0]:
            raise OSError("the disk is away")
        return functional.cross_entropy(outputs, labels)

    task = make_task(loss=loss)
    cohort = make_cohort(task)
    assert not cohort.advance().failed
    broken[0] = True
    assert {type(error) for error in cohort.advance().failed.values()} == {OSError}
    broken[0] = False
    assert not Together(make_cohort(task)).failed


# --- out of memory ---------------------------------------------------------------------------------------


def starved(training: Sequence[int], evaluation: Sequence[int] = ()) -> Callable[..., Tensor]:
    """Return a loss that runs out of memory at some of its calls, counted from 0."""
    calls = {True: 0, False: 0}

    def loss(outputs: Tensor, labels: Tensor) -> Tensor:
        trains = torch.is_grad_enabled()
        calls[trains] += 1
        if calls[trains] - 1 in (training if trains else evaluation):
            raise torch.OutOfMemoryError("injected")
        return functional.cross_entropy(outputs, labels)

    return loss


def test_out_of_memory_splits_the_stack_and_goes_on(caplog):
    """Less at once, also in mid-step, behind BatchNorm, and in validation; nothing is lost or done twice."""
    parts: dict[str, Any] = {"width": 8, **SGD}
    whole = Together(make_cohort(make_task(norm, **parts)))
    with caplog.at_level(logging.WARNING):
        together = Together(make_cohort(make_task(norm, **parts, loss=starved([2, 8], [1]))))
    assert together.records == whole.records
    assert together.tested == whole.tested
    said = [record.args for record in caplog.records if record.name == "floodsearch.training.stack"]
    assert said == [(16,), (8,), (4,)]


def test_memory_that_never_suffices_fails_the_members():
    """When not even the smallest part fits, the error is that of the members."""
    together = Together(make_cohort(make_task(loss=starved(range(10**6))), RunPlan(epochs=1)))
    assert {type(error) for error in together.failed.values()} == {torch.OutOfMemoryError}


# --- what can be stacked ---------------------------------------------------------------------------------


class Looks(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs if inputs.sum() > 0 else -inputs


class Counts(nn.Module):
    """Keeps a number outside of its parameters and buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += 1
        return inputs * self.calls


class Keeps(nn.Module):
    """Keeps a tensor outside of its parameters and buffers."""

    kept: Any = 0.0

    def forward(self, inputs: Tensor) -> Tensor:
        self.kept = self.kept + inputs.mean(dim=0).detach()
        return inputs + self.kept


def own_optimizer(parameters: Any, recipe: Recipe) -> torch.optim.Optimizer:
    return build_optimizer(parameters, recipe)


OBSTACLES: Mapping[str, tuple[Task, str]] = {
    "dropout": (make_task(lambda _: nn.Dropout(0.3)), "random operation"),
    "control flow": (make_task(lambda _: Looks()), "control flow"),
    "averaging BatchNorm": (make_task(lambda width: nn.BatchNorm1d(width, momentum=None)), "item"),
    "a number beside": (make_task(lambda _: Counts()), "not computed"),
    "a tensor beside": (make_task(lambda _: Keeps()), ""),
    "an optimizer of its own": (
        Task(
            data=draw,
            model=lambda: nn.Linear(5, 3),
            recipe=Recipe(batch_size=25),
            optimizer=own_optimizer,
        ),
        "optimizer",
    ),
    "a task that raises": (make_task(lambda _: nn.Linear(8, 8)), "shape"),
}


@pytest.mark.parametrize("name", OBSTACLES)
def test_what_cannot_be_stacked_is_recognised(name):
    """Models that a stack would train otherwise than alone are told, with the reason."""
    task, reason = OBSTACLES[name]
    found = obstacle(task, DEVICE, 0)
    assert found is not None
    assert reason in found
    assert "\n" not in found


@pytest.mark.parametrize("name", TASKS)
def test_what_can_be_stacked_is(name):
    """Nothing stands in the way of plain layers, BatchNorm, and any of the optimizers."""
    assert obstacle(TASKS[name], DEVICE, 0) is None


# --- a study and its engine ------------------------------------------------------------------------------

HERE = WorkerSettings(device="cpu", threads=1)


def test_the_engine_is_settled_once(database, make_spec):
    """The first worker settles what `auto` is for all; what the file says cannot be changed."""
    study = put_study(database, make_spec())
    assert study.engine is None
    assert study.settle_engine("stack").engine == "stack"
    assert study.settle_engine("loop").engine == "stack"
    assert find_study(database, study.name).engine == "stack"
    asked = put_study(database, make_spec(name="asked", training={"engine": "loop"}))
    assert asked.engine == "loop"
    assert asked.settle_engine("stack").engine == "loop"


def test_auto_is_a_stack_for_matrices_on_a_gpu(make_spec):
    """A CPU, models with convolutions, and fewer than three runs at once are trained one after the other."""
    cuda = torch.device("cuda", 0)
    matrices = make_spec(search={"pruner": "halving"})
    assert (default_engine(given(matrices), CPU), default_engine(given(matrices), cuda)) == ("loop", "stack")
    for seeds, engine in ((2, "loop"), (3, "stack")):
        one_level = make_spec(training={"seeds": seeds}, search={"pruner": "none"})
        assert default_engine(given(one_level), cuda) == engine
    options = {"label_noise": None, "width": None, "depth": None}
    images = make_spec(name="images", task="cifar10", options=options, search={"pruner": "halving"})
    assert default_engine(given(images), cuda) == "loop"


def trained(database: Any, spec: Any) -> dict[tuple[int, int, int], float]:
    study = put_study(database, spec)
    queue.fill(study)
    work(study, HERE, LeaveRequest())
    assert any(trial.state == "complete" for trial in read_trials(study.reread()))
    curves = tables.read_curves(database, study.uuid)
    return {
        (number, one.seed, one.epoch): one.train_loss for number, found in curves.items() for one in found
    }


@pytest.mark.parametrize("storage_url", ["sqlite"], indirect=True)
def test_a_worker_trains_a_study_as_stacks(database, make_spec, caplog):
    """From the pilot to the answer: the same tickets as with a loop, and losses equal within rounding."""
    auto = {"levels": {"high": "auto", "count": 4}, "search": {"pruner": "halving"}}
    with caplog.at_level(logging.INFO):
        stacked = trained(database, make_spec(name="stacked", training={"engine": "stack"}, **auto))
    assert "runs are trained as stacks" in caplog.messages
    one_by_one = trained(database, make_spec(name="looped", training={"engine": "loop"}, **auto))
    assert stacked.keys() == one_by_one.keys()
    assert all(math.isclose(stacked[key], one_by_one[key], rel_tol=1e-3) for key in stacked)


@pytest.mark.parametrize("storage_url", ["sqlite"], indirect=True)
def test_a_study_that_cannot_be_stacked_is_looped(database, make_spec, monkeypatch, caplog):
    """The worker says why, once, and trains."""
    monkeypatch.setattr("floodsearch.worker.trainers.task_of", lambda spec, beside: OBSTACLES["dropout"][0])
    study = put_study(database, make_spec(training={"engine": "stack"}))
    cohorts = CohortTrainer(DEVICE)
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            trunks = cohorts.trunks(study, {}, 10)
    assert isinstance(trunks.engine, Sequential)
    [line] = [message for message in caplog.messages if "stack" in message]
    assert "random operation" in line
