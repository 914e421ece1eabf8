"""training: one run is the plain loop, whatever else happens around it."""

from __future__ import annotations

import copy
import itertools
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from floodsearch.errors import DivergedError
from floodsearch.records import EpochRecord
from floodsearch.tasks.models import mlp
from floodsearch.tasks.streams import stream, stream_seed
from floodsearch.tasks.synthetic import two_gaussians
from floodsearch.tasks.task import Data, Recipe, Split, Task
from floodsearch.training.batches import batches, chunks
from floodsearch.training.progress import RunPlan
from floodsearch.training.run import Run, evaluate
from tests.device import DEVICE

SAMPLES = 50


def draw(seed: int) -> Data:
    """Return two classes in five dimensions, a tenth of the labels wrong."""
    parts = []
    for name in ("train", "validation", "test"):
        generator = stream(seed, "test_run", name)
        clean = torch.arange(SAMPLES) % 2
        inputs = torch.randn(SAMPLES, 5, generator=generator) + clean[:, None]
        wrong = torch.rand(SAMPLES, generator=generator) < 0.1
        parts.append(Split(inputs, torch.where(wrong, 1 - clean, clean), clean))
    return Data(*parts)


def network() -> nn.Module:
    """Return a model with all that could leak from one run into another: BatchNorm and dropout."""
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 2))


def task(model: Any = network, **fields: Any) -> Task:
    recipe = {"batch_size": 16, "learning_rate": 0.02} | fields.pop("recipe", {})
    return Task(**{"data": draw, "model": model, "recipe": Recipe(**recipe)} | fields)


def start(one: Task, level: float = 0.3, seed: int = 0, epochs: int = 6, **plan: Any) -> Run:
    return Run(one, RunPlan(epochs=epochs, **plan), seed=seed, level=level, device=DEVICE)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# --- the same run, again and beside others ---------------------------------------------------------------


def test_a_seed_and_a_level_fix_every_record():
    """The same seed and level give the same records to the bit; another seed or level gives others."""
    once, again = start(task()), start(task())
    records = list(once)
    torch.rand(5)
    assert list(again) == records
    assert again.tested() == once.tested()
    assert same(weights(again.model), weights(once.model))
    assert list(start(task(), seed=1)) != records
    assert list(start(task(), level=0.5)) != records


def test_runs_that_take_turns_do_not_touch_each_other():
    """Two runs with dropout that alternate epoch by epoch give the records that each gives alone."""
    alone = [list(start(task(), seed=0)), list(start(task(), seed=1, level=0.1))]
    turns = list(zip(start(task(), seed=0), start(task(), seed=1, level=0.1), strict=True))
    assert [list(records) for records in zip(*turns, strict=True)] == alone


def test_a_state_in_the_memory_of_an_earlier_one_is_whole():
    """A run that goes on from it is the undisturbed one, to the bit, whatever its first owner trains on."""
    expected = list(start(task()))
    run, other = start(task()), start(task())
    run.advance()
    first = run.state()
    run.advance()
    state = run.state(first)
    list(run)
    other.restore(state)
    assert list(other) == expected[2:]


def test_every_step_has_its_own_dropout():
    """Dropout differs from step to step, from epoch to epoch and from seed to seed."""
    drawn: list[tuple[float, ...]] = []

    class Draws(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(5, 2)

        def forward(self, inputs: Tensor) -> Tensor:
            if self.training:
                drawn.append(tuple(torch.rand(3).tolist()))
            return self.linear(inputs)

    for seed in (0, 1):
        list(start(task(Draws), seed=seed, epochs=3))
    assert len(drawn) == 2 * 3 * math.ceil(SAMPLES / 16)
    assert len(set(drawn)) == len(drawn)


# --- the loop --------------------------------------------------------------------------------------------


def bare_loop(
    level: float, *, seed: int, epochs: int, size: int, floods: bool = True, optimizer: str = "sgd"
) -> tuple[list[tuple[float, float, float]], nn.Module]:
    """Train as one would by hand; return each epoch's plain loss, accuracy and share of flooded batches."""
    train = draw(seed).train.to(DEVICE)
    torch.manual_seed(stream_seed(seed, "initialisation"))
    model = mlp(5, 2, width=8, depth=1).to(DEVICE)
    if optimizer == "sgd":
        steps: torch.optim.Optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    else:
        steps = torch.optim.Adam(model.parameters(), lr=0.3, fused=True)
    records = []
    for epoch in range(1, epochs + 1):
        order = torch.randperm(SAMPLES, generator=stream(seed, "order", epoch))
        total = right = below = 0.0
        for first in range(0, SAMPLES, size):
            chosen = order[first : first + size]
            outputs = model(train.inputs[chosen])
            loss = functional.cross_entropy(outputs, train.labels[chosen])
            steps.zero_grad()
            ((loss - level).abs() + level if floods else loss).backward()
            steps.step()
            total += loss.item() * len(chosen)
            right += (outputs.argmax(1) == train.labels[chosen]).sum().item()
            below += loss.item() < level
        records.append((total / SAMPLES, right / SAMPLES, below / math.ceil(SAMPLES / size)))
    return records, model


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("level", [0.0, 0.3])
def test_a_run_is_the_loop_written_by_hand(level, optimizer):
    """Plain loss, accuracy, share of flooded batches and weights are those of a bare loop, to the bit."""
    recipe = {"optimizer": optimizer, "learning_rate": 0.3, "momentum": 0.9, "batch_size": 16}
    run = start(task(lambda: mlp(5, 2, width=8, depth=1), recipe=recipe), level, seed=2, epochs=12)
    records = list(run)
    expected, model = bare_loop(level, seed=2, epochs=12, size=16, optimizer=optimizer)
    assert [(one.train_loss, one.train_accuracy, one.flooded) for one in records] == expected
    assert same(weights(run.model), weights(model))
    assert any(one.flooded > 0 for one in records) == (level > 0)
    assert [one.level for one in records] == [level] * 12
    assert [one.epoch for one in records] == list(range(1, 13))


def test_level_zero_is_training_without_flooding():
    """At level 0 the weights are, to the bit, those of a loop that knows no flooding."""
    recipe = {"optimizer": "sgd", "learning_rate": 0.3, "momentum": 0.9, "batch_size": 16}
    run = start(task(lambda: mlp(5, 2, width=8, depth=1), recipe=recipe), 0.0, epochs=12)
    list(run)
    _, model = bare_loop(0.0, seed=0, epochs=12, size=16, floods=False)
    assert same(weights(run.model), weights(model))


def test_runs_of_one_seed_are_one_run_until_they_flood():
    """Until the first batch below its level, a run equals the unflooded run of its seed; then no more."""
    one = two_gaussians(width=16, depth=2).with_recipe({"learning_rate": 0.01})
    plain, flooded = list(start(one, 0.0, epochs=60)), list(start(one, 0.4, epochs=60))
    first = next(record.epoch for record in flooded if record.flooded > 0)
    assert 1 < first < 60
    unnamed = [
        [replace(record, level=0.0) for record in records[: first - 1]] for records in (plain, flooded)
    ]
    assert unnamed[0] == unnamed[1]
    assert replace(flooded[first], level=0.0) != plain[first]


@pytest.mark.parametrize(("level", "share"), [(0.0, 0.0), (1e9, 1.0)])
def test_the_share_of_flooded_batches_has_its_ends(level, share):
    """At level 0 no batch is flooded, far above every loss all are."""
    assert {record.flooded for record in start(task(), level, epochs=2)} == {share}


def test_level_zero_leaves_a_negative_loss_alone():
    """A loss that is always negative trains at level 0 to the same weights as that loss shifted above 0."""
    below = task(loss=lambda outputs, labels: functional.cross_entropy(outputs, labels) - 10)
    runs = start(below, 0.0), start(task(), 0.0)
    losses = [[record.train_loss for record in run] for run in runs]
    assert max(losses[0]) < 0 < min(losses[1])
    assert same(*(weights(run.model) for run in runs))


def test_weight_decay_is_not_flooded():
    """Below the level the gradient of the loss turns round and the pull of weight decay does not."""
    recipe = {"optimizer": "sgd", "learning_rate": 0.1, "weight_decay": 0.5, "batch_size": SAMPLES}
    run = start(task(lambda: nn.Linear(5, 2), recipe=recipe), 1e3, epochs=1)
    assert isinstance(run.model, nn.Linear)
    before = run.model.weight.detach().clone()
    loss = functional.cross_entropy(run.model(run.train.inputs), run.train.labels)
    (slope,) = torch.autograd.grad(loss, run.model.weight)
    list(run)
    torch.testing.assert_close(run.model.weight.detach(), before - 0.1 * (-slope + 0.5 * before))


def test_milestones_change_the_rate_of_the_epochs_after_them():
    """The optimizer trains each epoch with the rate that the recipe has for it."""
    one = task(recipe={"optimizer": "sgd", "learning_rate": 1.0, "milestones": (2, 4), "gamma": 0.5})
    run = start(one, epochs=6)
    assert [run.optimizer.param_groups[0]["lr"] for _ in run] == [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]


@pytest.mark.parametrize(("epoch", "step"), [(1, 1), (1, 4), (2, 2), (3, 3)])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_loss_that_is_not_finite_ends_the_run(epoch, step, value):
    """The error holds level, epoch, step and seed of the first loss that is NaN or infinite."""
    steps = itertools.count(1)
    batches_an_epoch = math.ceil(SAMPLES / 16)

    def loss(outputs: Tensor, labels: Tensor) -> Tensor:
        plain = functional.cross_entropy(outputs, labels)
        if not torch.is_grad_enabled():
            return plain
        return plain * 0 + value if next(steps) == (epoch - 1) * batches_an_epoch + step else plain

    run = start(task(loss=loss), 0.25, seed=3, epochs=5)
    seen: list[EpochRecord] = []
    with pytest.raises(DivergedError) as error:
        seen.extend(run)
    found = error.value
    assert (found.level, found.epoch, found.step, found.seed) == (0.25, epoch, step, 3)
    for part in ("level 0.25", f"epoch {epoch}", f"step {step}", "seed 3"):
        assert part in str(found)
    assert run.epoch == epoch - 1


def test_weights_that_break_in_the_last_step_end_the_run():
    """A run whose very last step ruins its weights has diverged: it must not end with a value of NaN."""
    recipe = {"optimizer": "sgd", "learning_rate": 1e38, "batch_size": SAMPLES}
    broken = task(lambda: nn.Sequential(nn.Linear(5, 8), nn.Linear(8, 2)), recipe=recipe)
    with pytest.raises(DivergedError):
        list(start(broken, 0.0, epochs=1))


@pytest.mark.parametrize("level", [-0.1, math.nan, math.inf])
def test_a_level_that_means_nothing_is_refused(level):
    """A run with a level that cannot be is not begun."""
    with pytest.raises(ValueError, match="flood level must be"):
        start(task(), level)


# --- evaluation ------------------------------------------------------------------------------------------


def test_an_evaluation_changes_nothing():
    """Evaluating touches neither BatchNorm's statistics nor gradients nor the random state."""
    run = start(task(), epochs=1)
    list(run)
    before, state = weights(run.model), torch.get_rng_state()
    evaluate(run.model.train(), run.task, run.test)
    assert same(weights(run.model), before)
    assert torch.equal(torch.get_rng_state(), state)


def test_an_evaluation_is_the_plain_loss_in_eval_mode():
    """Loss and accuracies are those in eval mode: dropout off, running statistics, no flooding."""
    run = start(task(), 5.0, epochs=2)
    list(run)
    found = evaluate(run.model.train(), run.task, run.test)
    with torch.no_grad():
        outputs = run.model.eval()(run.test.inputs)
    assert found.loss == pytest.approx(functional.cross_entropy(outputs, run.test.labels).item(), rel=1e-6)
    assert found.accuracy == (outputs.argmax(1) == run.test.labels).double().mean().item()
    assert found.accuracy_clean == (outputs.argmax(1) == run.test.clean_labels).double().mean().item()
    assert found == evaluate(run.model, run.task, run.test)


def test_a_large_split_is_evaluated_in_parts_of_their_weight():
    """A split of several unequal parts gives the mean over samples, not over parts."""
    torch.manual_seed(0)
    model = nn.Linear(5, 2)
    split = Split(torch.randn(4096 + 7, 5), torch.randint(0, 2, (4096 + 7,)))
    found = evaluate(model, task(), split)
    with torch.no_grad():
        outputs = model(split.inputs)
    assert found.loss == pytest.approx(
        functional.cross_entropy(outputs.double(), split.labels).item(), rel=1e-6
    )
    assert found.accuracy == pytest.approx((outputs.argmax(1) == split.labels).double().mean().item())
    assert found.accuracy_clean is None


def test_validations_come_when_they_should():
    """Every so many epochs, and always at the last one; test metrics are not in the iteration."""
    records = list(start(task(), epochs=7, validate_every=3))
    assert [one.epoch for one in records if one.val_accuracy is not None] == [3, 6, 7]
    assert [one.epoch for one in records if one.val_loss is not None] == [3, 6, 7]
    assert all(one.test_loss is None for one in records)


@pytest.mark.parametrize(("metric", "maximize"), [("val_accuracy", True), ("val_loss", False)])
def test_the_first_best_validation_is_tested(metric, maximize):
    """The best epoch is the first of the best ones, and it is tested with the weights that it had."""
    run = start(task(), 0.1, epochs=12, metric=metric, maximize=maximize)
    snapshots, records = [], []
    for record in run:
        records.append(record)
        snapshots.append(copy.deepcopy(run.model))
    values = [getattr(record, metric) for record in records]
    best = values.index(max(values) if maximize else min(values))
    tested = run.tested()
    assert [one.epoch for one in tested] == sorted({best + 1, 12})
    for one in tested:
        test = evaluate(snapshots[one.epoch - 1], run.task, run.test)
        assert one == replace(
            records[one.epoch - 1],
            test_loss=test.loss,
            test_accuracy=test.accuracy,
            test_accuracy_clean=test.accuracy_clean,
        )


def test_of_equal_validations_the_first_is_the_best():
    """A model that never changes is best at its first validation, by either metric."""
    frozen = task(lambda: nn.Linear(5, 2), recipe={"optimizer": "sgd", "learning_rate": 1e-30})
    for metric, maximize in (("val_accuracy", True), ("val_loss", False)):
        run = start(frozen, epochs=6, validate_every=2, metric=metric, maximize=maximize)
        list(run)
        assert [one.epoch for one in run.tested()] == [2, 6]


def test_testing_in_between_changes_nothing():
    """Asking for the tested records after each epoch leaves weights, records and the end as they are."""
    expected = start(task())
    records = list(expected)
    run, found = start(task()), []
    assert run.tested() == []
    for record in run:
        found.append(record)
        before = weights(run.model)
        run.tested()
        assert same(weights(run.model), before)
    assert found == records
    assert run.tested() == run.tested() == expected.tested()


# --- stop and resume -------------------------------------------------------------------------------------


RESUMED = {
    "adam, BatchNorm, dropout": task(),
    "adamw, decay": task(recipe={"optimizer": "adamw", "weight_decay": 0.1}),
    "sgd, momentum, milestones": task(
        recipe={"optimizer": "sgd", "momentum": 0.9, "learning_rate": 0.2, "milestones": (2, 4)}
    ),
    "sgd without momentum": task(recipe={"optimizer": "sgd", "learning_rate": 0.2}),
    "dropout only": task(lambda: nn.Sequential(nn.Dropout(0.5), nn.Linear(5, 2))),
    "one batch": task(recipe={"batch_size": SAMPLES}),
}


@pytest.mark.parametrize("name", RESUMED)
@pytest.mark.parametrize("validate_every", [1, 2])
def test_a_stopped_run_goes_on_as_if_nothing_had_happened(name, validate_every):
    """Restored at any epoch, remaining records, tested ones and weights are the same, to the bit."""
    whole = start(RESUMED[name], validate_every=validate_every)
    states = [copy.deepcopy(whole.state())]
    records = []
    for record in whole:
        records.append(record)
        states.append(copy.deepcopy(whole.state()))
    for epoch, state in enumerate(states):
        resumed = start(RESUMED[name], validate_every=validate_every)
        resumed.restore(state)
        assert list(resumed) == records[epoch:]
        assert resumed.tested() == whole.tested()
        assert same(weights(resumed.model), weights(whole.model))


def test_a_restored_run_shares_nothing_with_the_first():
    """A run that goes on from the state of another one does not change that other one's course."""
    expected = list(start(task()))
    first = start(task())
    training = iter(first)
    records = [next(training), next(training)]
    second = start(task())
    second.restore(first.state())
    assert list(second) == expected[2:]
    assert records + list(training) == expected


# --- batches ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 16, 25, 49])
def test_an_epoch_visits_each_sample_once(size):
    """Batches of an epoch hold every sample once, with its label, in an order of that seed and epoch."""
    split = Split(torch.arange(SAMPLES), torch.arange(SAMPLES) * 2)
    epochs = [list(batches(split, size, seed, epoch)) for seed, epoch in ((0, 1), (0, 2), (1, 1), (0, 1))]
    orders = []
    for epoch in epochs:
        assert [len(inputs) for inputs, _ in epoch[:-1]] == [size] * (len(epoch) - 1)
        inputs, labels = (torch.cat(parts) for parts in zip(*epoch, strict=True))
        assert torch.equal(labels, inputs * 2)
        assert sorted(inputs.tolist()) == list(range(SAMPLES))
        orders.append(inputs.tolist())
    assert orders[0] == orders[3]
    assert orders[0] != orders[1] != orders[2] != orders[0]


def test_a_split_that_fits_is_one_batch():
    """A split of at most the batch size is one batch, in its own order."""
    split = draw(0).train
    ((inputs, labels),) = batches(split, SAMPLES, 0, 1)
    assert torch.equal(inputs, split.inputs)
    assert torch.equal(labels, split.labels)


def test_chunks_are_the_split_in_order():
    """Parts of an evaluation put together are the split, clean labels included."""
    split = draw(0).test
    parts = list(chunks(split, 16))
    assert [len(part.inputs) for part in parts] == [16, 16, 16, 2]
    for name in ("inputs", "labels", "clean_labels"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(split, name))
