"""contract: what a task's own functions do and give while it trains, in both engines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from floodsearch.errors import DivergedError, TaskError
from floodsearch.records import EpochRecord
from floodsearch.tasks.task import Data, Recipe, Split, Task
from floodsearch.training.cohort import Cohort
from floodsearch.training.progress import RunPlan
from floodsearch.training.run import Run
from floodsearch.training.sequential import Sequential
from floodsearch.training.stack import Stack
from floodsearch.training.trunk import TrunkPool
from tests.device import DEVICE

PLAN = RunPlan(epochs=4, validate_every=2)
LEVELS = {0: 0.0, 1: 0.5, 2: 5.0}

both_engines = pytest.mark.parametrize("engine", [Sequential, Stack])


def points(seed: int) -> Data:
    """Return three times 20 points with their classes, of which some are wrong."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(60, 4, generator=generator)
    clean = (inputs.sum(dim=1) > 0).long()
    labels = torch.where(torch.rand(60, generator=generator) < 0.15, 1 - clean, clean)
    return Data(*map(Split, inputs.split(20), labels.split(20), clean.split(20)))


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))


def make(batch_size: int = 10, **fields: Any) -> Task:
    return Task(
        **{
            "data": points,
            "model": network,
            "recipe": Recipe(batch_size=batch_size, learning_rate=0.02),
            **fields,
        }
    )


def trained(
    task: Task, engine: type[Sequential | Stack]
) -> tuple[list[EpochRecord], dict[int, BaseException]]:
    """Return all records of a cohort with its tests, and what failed."""
    trunks = TrunkPool(engine(task, PLAN, DEVICE))
    cohort = Cohort(
        task, PLAN, levels=LEVELS, seeds=dict.fromkeys(LEVELS, (0, 1)), device=DEVICE, trunks=trunks
    )
    found: list[EpochRecord] = []
    failed: dict[int, BaseException] = {}
    for _ in range(PLAN.epochs):
        step = cohort.advance()
        failed |= step.failed
        found += [record for records in step.records.values() for record in records]
    return found + [record for member in cohort.levels for record in cohort.tested(member)], failed


# --- what changes in place what it is given ---------------------------------------------------------------


class Halves(nn.Module):
    """A model that halves its inputs, in place or not."""

    def __init__(self, *, inplace: bool) -> None:
        super().__init__()
        self.layers, self.inplace = network(), inplace

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.mul_(0.5) if self.inplace else x * 0.5)


def loss_of(inplace: bool) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a loss that takes the classes the other way round, and scales the outputs, in place or not."""

    def loss(outputs: Tensor, labels: Tensor) -> Tensor:
        outputs = outputs.mul_(2) if inplace else outputs * 2
        turned = labels.mul_(-1).add_(1) if inplace else 1 - labels
        return functional.cross_entropy(outputs, turned)

    return loss


def correct_of(inplace: bool) -> Callable[[Tensor, Tensor], Tensor]:
    def correct(outputs: Tensor, labels: Tensor) -> Tensor:
        signs = outputs.sign_() if inplace else outputs.sign()
        return signs.argmax(dim=1) == (labels.mul_(-1).add_(1) if inplace else 1 - labels)

    return correct


ROWS = points(0).train.inputs.repeat(3, 1)


def of_rows(inplace: bool) -> Callable[[Tensor, torch.Generator | None], Tensor]:
    """Return what gives a part of a tensor that all share, and changes the rows it was given, or not."""

    def prepare(rows: Tensor, generator: torch.Generator | None) -> Tensor:
        part = ROWS[: len(rows)].to(rows.device)
        if inplace:
            rows.add_(1)
        return part

    return prepare


def rows_for(seed: int) -> Data:
    return Data(*(Split(torch.arange(20), part.labels) for _, part in points(seed).named()))


CHANGING: dict[str, Callable[[bool], dict[str, Any]]] = {
    "model": lambda inplace: {"model": lambda: Halves(inplace=inplace)},
    "loss": lambda inplace: {"loss": loss_of(inplace)},
    "correct": lambda inplace: {"correct": correct_of(inplace)},
    "prepare": lambda inplace: {
        "model": lambda: Halves(inplace=inplace),
        "data": rows_for,
        "prepare": of_rows(inplace),
    },
}


@both_engines
@pytest.mark.parametrize("batch_size", [10, 20])
@pytest.mark.parametrize("part", CHANGING)
def test_what_changes_in_place_changes_for_nobody_else(engine, batch_size, part):
    """All levels and seeds come to what they come to where nothing is changed in place, to the bit."""
    before = ROWS.clone()
    inplace = trained(make(batch_size, **CHANGING[part](True)), engine)
    assert inplace == trained(make(batch_size, **CHANGING[part](False)), engine)
    assert inplace[0]
    assert not inplace[1]
    assert torch.equal(ROWS, before)


# --- models ----------------------------------------------------------------------------------------------


def lazy() -> nn.Sequential:
    return nn.Sequential(nn.LazyLinear(16), nn.ReLU(), nn.LazyLinear(2))


@both_engines
def test_layers_that_find_their_sizes_train_as_if_they_had_them(engine):
    """They are initialised from the run's seed, with the numbers of layers that are given their sizes."""
    assert trained(make(model=lazy), engine) == trained(make(), engine)


def test_a_run_of_layers_that_find_their_sizes_goes_on_from_its_state():
    """A checkpoint of such a run fits a new one."""
    whole, again = (Run(make(model=lazy), PLAN, seed=0, level=0.5, device=DEVICE) for _ in range(2))
    whole.advance()
    again.restore(whole.state())
    assert list(again) == list(whole)


class NeverInEvaluation(nn.Module):
    """A model with a layer that is used in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.more = network(), nn.LazyLinear(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x) + self.more(x) if self.training else self.layers(x)


def test_a_layer_whose_size_cannot_be_found_is_named():
    """It is refused in a line."""
    with pytest.raises(TaskError, match=r"more\.weight has no size yet"):
        Run(make(model=NeverInEvaluation), PLAN, seed=0, level=0.0, device=DEVICE)


@both_engines
@pytest.mark.parametrize("way", ["one model", "one layer"] + ["one memory"] * (DEVICE.type == "cpu"))
def test_a_model_that_another_run_trains_is_found_at_the_second_run(engine, way):
    """Also where the first run has ended: the second would go on from its weights.

    On another device each run has memory of its own, wherever its first weights lie.
    """
    once, layer = network(), nn.Linear(4, 16)
    weights = network().state_dict()

    def assigned() -> nn.Module:
        model = network()
        model.load_state_dict(weights, assign=True)
        return model

    ways: dict[str, Callable[[], nn.Module]] = {
        "one model": lambda: once,
        "one layer": lambda: nn.Sequential(layer, nn.Linear(16, 2)),
        "one memory": assigned,
    }
    task = make(model=ways[way])
    first = engine(task, PLAN, DEVICE).new_run(0, 0.0)
    del first
    with pytest.raises(TaskError, match="must return a new model each time"):
        engine(task, PLAN, DEVICE).new_run(1, 0.5)


def test_frozen_layers_may_be_shared():
    """What is not trained is the same for all runs anyway."""
    frozen = nn.Linear(4, 16).requires_grad_(False)
    found, failed = trained(make(model=lambda: nn.Sequential(frozen, nn.Linear(16, 2))), Sequential)
    assert (len(found) > 0, failed) == (True, {})


# --- what it gives ---------------------------------------------------------------------------------------


@both_engines
@pytest.mark.parametrize(
    ("fields", "fragment"),
    [
        ({"correct": lambda o, y: o > 0}, "correct must give (10,) booleans, one a sample, but gave (10, 2)"),
        ({"correct": lambda o, y: (o.argmax(1) == y).float().mean()}, "but gave ()"),
        ({"correct": lambda o, y: (o.argmax(1) == y) * 0.3}, "correct must give booleans, but their sum"),
        ({"correct": lambda o, y: (o.argmax(1) == y) * 3}, "correct must give booleans, but their sum"),
        ({"loss": lambda o, y: functional.cross_entropy(o, y, reduction="none")}, "but gave (10,)"),
        ({"loss": lambda o, y: 0.3}, "loss must return a tensor, but gave a float"),
        ({"model": lambda: torch.relu}, "model must return a torch.nn.Module"),
        ({"model": lambda: Gives(None)}, "the model must return a tensor, but gave a tuple"),
    ],
)
def test_what_is_not_as_promised_fails_its_runs(engine, fields, fragment):
    """Where a task was not rehearsed, its runs fail at the first batch, with the same words."""
    found, failed = trained(make(**fields), engine)
    assert found == []
    assert failed.keys() == LEVELS.keys()
    assert all(fragment in str(error) for error in failed.values()), failed


class Gives(nn.Module):
    """A model that gives something beside its outputs."""

    def __init__(self, beside: object) -> None:
        super().__init__()
        self.layers, self.beside = network(), beside

    def forward(self, x: Tensor) -> tuple[Tensor, object]:
        return self.layers(x), self.beside


def broken(split: str) -> Callable[[int], Data]:
    """Return the data function of points with a missing value in one split."""

    def data(seed: int) -> Data:
        drawn = points(seed)
        one: Split = getattr(drawn, split)
        inputs = one.inputs.index_fill(0, torch.tensor([3]), float("nan"))
        return replace(drawn, **{split: replace(one, inputs=inputs)})

    return data


@both_engines
@pytest.mark.parametrize(("split", "name"), [("train", "training"), ("validation", "validation")])
def test_a_loss_that_is_not_finite_is_blamed_on_data_that_are_not(engine, split, name):
    """Not on a step of the training, and not on the learning rate."""
    _, failed = trained(make(data=broken(split)), engine)
    assert failed.keys() == LEVELS.keys()
    for error in failed.values():
        assert str(error).startswith(
            f"the {name} loss is not finite: 1 of 20 samples of the {name} data hold"
        )


@both_engines
def test_a_validation_loss_that_breaks_later_is_a_divergence(engine):
    """It says which loss it was; the level has diverged, as by a training step."""

    def loss(outputs: Tensor, labels: Tensor) -> Tensor:
        mean = functional.cross_entropy(outputs, labels)
        return mean if torch.is_grad_enabled() else mean / 0

    _, failed = trained(make(loss=loss), engine)
    assert all(isinstance(error, DivergedError) for error in failed.values())
    assert all(str(error).startswith("the validation loss is not finite") for error in failed.values())
