"""tasks: what every task promises, and the theory of the synthetic ones."""

from __future__ import annotations

import importlib
import itertools
import math
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pytest
import torch
from torch import Tensor

from floodsearch.catalog import describe_task
from floodsearch.errors import TaskError
from floodsearch.study.fields import fields_of
from floodsearch.tasks import TASKS
from floodsearch.tasks.image_sets import SOURCES
from floodsearch.tasks.images import digits
from floodsearch.tasks.models import mlp
from floodsearch.tasks.streams import stream, stream_seed
from floodsearch.tasks.synthetic import (
    flip,
    sinusoid,
    spiral,
    two_gaussians,
    two_gaussians_bayes_cross_entropy,
    two_gaussians_best_accuracy,
    two_gaussians_posterior,
)
from floodsearch.tasks.task import Data, Recipe, Split, Task, build_optimizer, build_task, find_task
from floodsearch.training.progress import RunPlan
from floodsearch.training.randomness import borrowed
from floodsearch.training.rehearsal import findings
from floodsearch.training.run import Run

SMALL = {"width": 8, "depth": 1}
SPLITS = ("train", "validation", "test")
SIZES = {"digits": (1000, 397, 400)}
PAPER_SIZES = (100, 100, 20_000)
MODULE_NUMBERS = itertools.count()

every_task = pytest.mark.parametrize("name", sorted(TASKS.keys() - SOURCES.keys()))
"""But for those that read files: they keep the same promises in test_images."""


def splits(data: Data) -> list[Split]:
    return [getattr(data, name) for name in SPLITS]


def equal(one: Split, other: Split) -> bool:
    return torch.equal(one.inputs, other.inputs) and torch.equal(one.labels, other.labels)


def shares(flags: Tensor) -> tuple[float, float]:
    """Return the mean of n flags and the largest standard error that it can have."""
    return flags.double().mean().item(), 0.5 / math.sqrt(len(flags))


# --- every task ------------------------------------------------------------------------------------------


@every_task
def test_a_task_gives_three_splits_of_its_sizes(name):
    """Inputs are finite floats, labels fit them, and the sizes are those of the facts."""
    task = build_task(name, SMALL, {})
    parts = splits(task.data(0))
    assert tuple(len(part.inputs) for part in parts) == SIZES.get(name, PAPER_SIZES)
    for part in parts:
        assert part.inputs.dtype == torch.float32
        assert part.inputs.ndim == 2
        assert part.inputs.isfinite().all()
        assert part.labels.shape == (len(part.inputs),)
        assert part.clean_labels is not None
        assert (part.clean_labels.shape, part.clean_labels.dtype) == (part.labels.shape, part.labels.dtype)


@every_task
def test_a_seed_fixes_the_data(name):
    """The same seed gives the same data to the bit, whatever was drawn before; another seed gives others."""
    task = build_task(name, SMALL, {})
    once = task.data(3)
    torch.rand(17)
    again, other = task.data(3), task.data(4)
    for one, same, different in zip(splits(once), splits(again), splits(other), strict=True):
        assert equal(one, same)
        assert one.clean_labels is not None
        assert torch.equal(one.clean_labels, same.clean_labels)
        assert not torch.equal(one.inputs, different.inputs)


@every_task
@pytest.mark.parametrize("label_noise", [0.0, 0.01, 0.05, 0.1, 0.29, 1.0])
def test_exactly_that_share_of_labels_is_wrong(name, label_noise):
    """In each split int(n * p) labels, in exact arithmetic, differ from the clean ones that are kept."""
    noisy = build_task(name, {**SMALL, "label_noise": label_noise}, {}).data(1)
    clean = build_task(name, {**SMALL, "label_noise": 0.0}, {}).data(1)
    for part, untouched in zip(splits(noisy), splits(clean), strict=True):
        wrong = part.labels != part.clean_labels
        assert wrong.sum().item() == int(len(part.labels) * Decimal(str(label_noise)))
        assert part.clean_labels is not None
        assert torch.equal(part.clean_labels, untouched.labels)
        assert torch.equal(part.inputs, untouched.inputs)
        assert set(part.labels.unique().tolist()) <= set(part.clean_labels.unique().tolist())


@every_task
def test_splits_are_drawn_apart(name):
    """Training and validation samples differ, and so do the places of their wrong labels."""
    train, validation, test = splits(build_task(name, SMALL, {}).data(0))
    n = min(len(train.labels), len(validation.labels))
    assert not torch.equal(train.inputs[:n], validation.inputs[:n])
    assert not torch.equal(validation.inputs[:n], test.inputs[:n])
    wrong = [part.labels[:n] != part.clean_labels[:n] for part in (train, validation, test)]
    assert not any(torch.equal(one, other) for one, other in itertools.combinations(wrong, 2))


@every_task
def test_model_loss_and_metric_fit_each_other(name):
    """The loss is a scalar mean over the batch that reaches every parameter; the metric is (n,) booleans."""
    task = build_task(name, SMALL, {})
    train = task.data(0).train
    model = task.model()
    outputs = model(train.inputs)
    loss = task.loss(outputs, train.labels)
    assert loss.ndim == 0
    assert loss.isfinite()
    halves = [task.loss(outputs[part], train.labels[part]) for part in (slice(0, None, 2), slice(1, None, 2))]
    torch.testing.assert_close(loss, sum(halves) / 2)
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert task.correct is not None
    correct = task.correct(outputs, train.labels)
    assert (correct.shape, correct.dtype) == ((len(train.labels),), torch.bool)


@every_task
def test_the_metric_is_right(name):
    """Outputs made from the labels are all correct and have next to no loss; opposite ones have neither."""
    task = build_task(name, SMALL, {})
    labels = task.data(0).train.labels
    if labels.is_floating_point():
        right = (40 * labels - 20)[:, None]
    else:
        right = 40 * torch.nn.functional.one_hot(labels, 10).float()
    assert task.correct is not None
    assert task.correct(right, labels).all()
    assert not task.correct(-right, labels).any()
    assert task.loss(right, labels).item() < 1e-6
    assert task.loss(-right, labels).item() > 10


@every_task
def test_a_run_of_a_task_leaves_the_global_random_state_alone(name):
    """Training, data and model included, leaves torch's global generator to its owner as it was."""
    task, cpu = build_task(name, SMALL, {}), torch.device("cpu")
    before = torch.get_rng_state()
    with borrowed(cpu):
        Run(task, RunPlan(epochs=1), seed=0, level=0.1, device=cpu).advance()
    assert torch.equal(torch.get_rng_state(), before)


@every_task
@pytest.mark.parametrize(
    "options", [{"label_noise": -0.1}, {"label_noise": 1.1}, {"width": 0}, {"depth": 0}], ids=str
)
def test_options_out_of_range_are_refused(name, options):
    """An option out of its range is refused with its name and value."""
    ((option, value),) = options.items()
    with pytest.raises(TaskError, match=f"{option}.*{value}"):
        build_task(name, {**SMALL, **options}, {})


# --- Two Gaussians ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gaussians() -> Split:
    return two_gaussians(label_noise=0.1, **SMALL).data(0).test


@pytest.mark.parametrize("label", [0, 1])
def test_the_gaussians_have_their_moments(gaussians, label):
    """Means 0 and (1, ..., 1) and the identity covariance, each entry within 5 of its standard errors."""
    samples = gaussians.inputs[gaussians.clean_labels == label].double()
    n = len(samples)
    assert samples.shape == (10_000, 10)
    assert (samples.mean(dim=0) - label).abs().max().item() < 5 / math.sqrt(n)
    # An entry of the sample covariance has variance 2 / n on the diagonal and 1 / n off it.
    error = (torch.cov(samples.T) - torch.eye(10)).abs()
    assert error.diagonal().max().item() < 5 * math.sqrt(2 / n)
    assert error.fill_diagonal_(0).max().item() < 5 / math.sqrt(n)


@pytest.mark.parametrize(
    ("label_noise", "accuracy", "cross_entropy"),
    [(0.01, 0.9342, 0.181), (0.05, 0.8988, 0.290), (0.1, 0.8545, 0.391)],
)
def test_the_oracle_is_that_of_the_facts(label_noise, accuracy, cross_entropy):
    """Best accuracy and Bayes cross-entropy are the published ones, to the digits published."""
    assert two_gaussians_best_accuracy(label_noise=label_noise) == pytest.approx(accuracy, abs=5e-5)
    assert two_gaussians_bayes_cross_entropy(label_noise=label_noise) == pytest.approx(
        cross_entropy, abs=5e-4
    )


def test_the_oracle_knows_the_ends():
    """Labels of pure chance leave accuracy 1/2 and log 2 nats; all lies are as good as the truth."""
    assert two_gaussians_best_accuracy(label_noise=0.5) == pytest.approx(0.5)
    assert two_gaussians_bayes_cross_entropy(label_noise=0.5) == pytest.approx(math.log(2))
    assert two_gaussians_best_accuracy(label_noise=1.0) == two_gaussians_best_accuracy(label_noise=0.0)


@pytest.mark.parametrize("label_noise", [0.01, 0.05, 0.1])
def test_the_oracle_agrees_with_the_test_set(label_noise):
    """Accuracy and cross-entropy of the posterior on 20,000 samples: the oracle's within 4 errors."""
    test = two_gaussians(label_noise=label_noise, **SMALL).data(5).test
    posterior = two_gaussians_posterior(test.inputs.double(), label_noise=label_noise)
    accuracy, _ = shares((posterior > 0.5) == test.labels.bool())
    best = two_gaussians_best_accuracy(label_noise=label_noise)
    n = len(test.labels)
    assert abs(accuracy - best) < 4 * math.sqrt(best * (1 - best) / n)
    losses = -torch.where(test.labels.bool(), posterior, 1 - posterior).log()
    error = losses.mean().item() - two_gaussians_bayes_cross_entropy(label_noise=label_noise)
    assert abs(error) < 4 * losses.std().item() / math.sqrt(n)


@pytest.mark.parametrize("label_noise", [0.0, 0.1])
def test_the_posterior_is_calibrated(label_noise):
    """Among samples of about one posterior, that share has label 1: within 4.5 errors in ten bins."""
    test = two_gaussians(label_noise=label_noise, **SMALL).data(6).test
    posterior = two_gaussians_posterior(test.inputs.double(), label_noise=label_noise)
    order = posterior.argsort()
    for part in order.chunk(10):
        chances = posterior[part]
        error = math.sqrt((chances * (1 - chances)).sum().item()) / len(part)
        assert abs(test.labels[part].double().mean().item() - chances.mean().item()) < 4.5 * error


# --- Sinusoid and Spiral ---------------------------------------------------------------------------------


def test_sinusoid_fills_the_disc_of_radius_two_evenly():
    """All samples lie in the disc, and its inner half by area holds half of them, within 4.5 errors."""
    test = sinusoid(label_noise=0.1, **SMALL).data(0).test
    radius = test.inputs.norm(dim=1)
    assert radius.max().item() <= 2 + 1e-6
    inner, error = shares(radius < math.sqrt(2))
    assert abs(inner - 0.5) < 4.5 * error
    right, error = shares(test.inputs[:, 0] > 0)
    assert abs(right - 0.5) < 4.5 * error


def test_sinusoid_is_split_by_its_curve():
    """The clean label is 1 exactly where 1.5 x1 + sin(1.5 x2) is above 0."""
    for part in splits(sinusoid(label_noise=0.1, **SMALL).data(2)):
        side = 1.5 * part.inputs[:, 0] + torch.sin(1.5 * part.inputs[:, 1])
        assert part.clean_labels is not None
        assert torch.equal(part.clean_labels, (side > 0).float())


def test_spiral_arms_without_spread_are_the_formula():
    """Class 1 lies at a (cos a, sin a), class 0 at (a + pi) (cos a, sin a), a from 0 to 4 pi evenly."""
    train = spiral(label_noise=0.1, spread=0.0, **SMALL).data(0).train
    for label, further in ((1, 0.0), (0, math.pi)):
        samples = train.inputs[train.clean_labels == label]
        angle = torch.linspace(0, 4 * math.pi, len(samples))
        expected = (angle + further)[:, None] * torch.stack([angle.cos(), angle.sin()], dim=1)
        torch.testing.assert_close(samples, expected, rtol=1e-5, atol=1e-5)


def test_spiral_noise_is_normal_with_its_deviation():
    """What the spread adds has mean 0 and deviation `spread` in both directions, within 5 standard errors."""
    arms = spiral(spread=0.0, **SMALL).data(1).test
    noisy = spiral(spread=2.0, **SMALL).data(1).test
    noise = (noisy.inputs - arms.inputs).double()
    n = len(noise)
    assert noise.mean(dim=0).abs().max().item() < 5 * 2 / math.sqrt(n)
    assert (noise.std(dim=0) - 2).abs().max().item() < 5 * 2 / math.sqrt(2 * n)
    for bad in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"spread must be at least 0, but is {bad}"):
            spiral(spread=bad)


# --- digits ----------------------------------------------------------------------------------------------


def test_digits_are_shared_out_without_remainder():
    """The three splits together are all 1,797 images with their labels, each exactly once."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    expected = sorted(
        map(tuple, torch.cat([torch.tensor(images) / 16, torch.tensor(labels)[:, None]], 1).tolist())
    )
    parts = splits(digits(**SMALL).data(0))
    rows = [torch.cat([part.inputs.double(), part.clean_labels[:, None].double()], 1) for part in parts]
    assert sorted(map(tuple, torch.cat(rows).tolist())) == expected


def test_a_wrong_digit_may_be_any_other():
    """Each of the nine other classes takes a ninth of the wrong labels, within 4.5 standard errors."""
    shifts = torch.cat(
        [
            (part.labels - part.clean_labels) % 10
            for seed in range(4)
            for part in splits(digits(label_noise=1.0, **SMALL).data(seed))
        ]
    )
    n = len(shifts)
    assert n == 4 * 1797
    for shift in range(1, 10):
        share = (shifts == shift).double().mean().item()
        assert abs(share - 1 / 9) < 4.5 * math.sqrt(1 / 9 * 8 / 9 / n)


# --- parts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "share", "expected"),
    [(100, 0.29, 29), (1000, 0.29, 290), (397, 0.1, 39), (7, 0.99, 6), (5, 0.0, 0), (5, 1.0, 5)],
)
def test_flip_takes_exactly_that_many(n, share, expected):
    """The number of flips is int(n * p) without the drift of binary floats."""
    flipped = flip(n, share, stream(0, "flip"))
    assert (flipped.dtype, flipped.shape, flipped.sum().item()) == (torch.bool, (n,), expected)


def test_streams_are_apart():
    """Seed and every word of the purpose give another stream; the same ones give the same, in 63 bits."""
    purposes = [(), ("data",), ("order",), ("order", 1), ("order", 2), ("data", "train"), ("train", "data")]
    seeds = [stream_seed(seed, *purpose) for seed in range(20) for purpose in purposes]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert torch.equal(torch.rand(5, generator=stream(3, "a")), torch.rand(5, generator=stream(3, "a")))


def test_an_mlp_has_its_layers():
    """Depth counts hidden layers; BatchNorm comes before each ReLU."""
    shapes = [tuple(layer.weight.shape) for layer in mlp(3, 2, width=5, depth=2) if hasattr(layer, "weight")]
    assert shapes == [(5, 3), (5, 5), (2, 5)]
    kinds = [type(layer).__name__ for layer in mlp(3, 2, width=5, depth=1, batch_norm=True)]
    assert kinds == ["Linear", "BatchNorm1d", "ReLU", "Linear"]


@pytest.mark.parametrize(
    ("values", "bound"),
    [
        ({"batch_size": 0}, "at least 1, but is 0"),
        ({"optimizer": "lion"}, "'adam', 'adamw' or 'sgd', but is 'lion'"),
        ({"learning_rate": 0.0}, "above 0, but is 0.0"),
        ({"learning_rate": math.nan}, "above 0, but is nan"),
        ({"momentum": 1.0}, r"in \[0, 1\), but is 1.0"),
        ({"momentum": -0.1}, r"in \[0, 1\), but is -0.1"),
        ({"weight_decay": -1e-4}, "at least 0, but is -0.0001"),
        ({"weight_decay": math.inf}, "at least 0, but is inf"),
        ({"milestones": (0, 3)}, r"epochs from 1, but is \(0, 3\)"),
        ({"gamma": 0.0}, "above 0, but is 0.0"),
    ],
    ids=str,
)
def test_a_recipe_keeps_to_its_bounds(values, bound):
    """A field out of bounds is refused with its name, bound and value, also when it replaces another."""
    (name,) = values
    with pytest.raises(ValueError, match=f"{name} must be {bound}"):
        Recipe(**values)
    with pytest.raises(TaskError, match=f"{name} must be {bound}"):
        build_task("spiral", SMALL, values)


def test_the_learning_rate_falls_after_each_milestone():
    """An epoch after a milestone trains with gamma times the rate; the milestone's own epoch does not."""
    recipe = Recipe(learning_rate=1.0, milestones=(2, 4), gamma=0.5)
    assert [recipe.learning_rate_at(epoch) for epoch in range(1, 7)] == [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]
    assert Recipe(learning_rate=0.3).learning_rate_at(1000) == 0.3


@pytest.mark.parametrize(
    ("name", "kind"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)]
)
def test_the_recipe_names_the_optimizer(name, kind):
    """The optimizer is of the kind named, with the recipe's numbers."""
    recipe = Recipe(optimizer=name, learning_rate=0.3, momentum=0.9, weight_decay=0.01)
    (group,) = build_optimizer(mlp(2, 1, width=2, depth=1).parameters(), recipe).param_groups
    optimizer = build_optimizer(mlp(2, 1, width=2, depth=1).parameters(), recipe)
    assert type(optimizer) is kind
    assert (group["lr"], group["weight_decay"]) == (0.3, 0.01)
    assert group.get("momentum", 0.9) == 0.9


def test_a_split_needs_a_label_for_each_input():
    """Unequal or empty splits are refused with their sizes."""
    for inputs, labels in ((3, 2), (0, 0)):
        with pytest.raises(ValueError, match=f"has {inputs} inputs and {labels} labels"):
            Split(torch.zeros(inputs, 2), torch.zeros(labels))


# --- the user's own --------------------------------------------------------------------------------------


@pytest.fixture
def write_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Write a package with one module of the user's own; return `package.module`."""

    def write(source: str) -> str:
        package = f"users_package_{next(MODULE_NUMBERS)}"
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
        (tmp_path / package / "tasks.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path)
        importlib.invalidate_caches()
        return f"{package}.tasks"

    return write


OWN = """
import torch
from torch import nn
from floodsearch.tasks.task import Data, Recipe, Split, Task

def regression(*, noise: float = 0.1, n: int = 12) -> Task:
    def data(seed):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(3, n, 2, generator=generator)
        y = x.sum(dim=2) + noise * torch.randn(3, n, generator=generator)
        return Data(*(Split(x[i], y[i]) for i in range(3)))
    return Task(
        data=data,
        model=lambda: nn.Sequential(nn.Linear(2, 1), nn.Flatten(0)),
        recipe=Recipe(optimizer="sgd", learning_rate=0.1, batch_size=5),
        loss=nn.functional.mse_loss,
        correct=None,
    )
"""


def test_a_task_of_the_users_own_trains(write_module):
    """A function named as package.module:name is built with its options and recipe, and trains."""
    task = build_task(write_module(OWN) + ":regression", {"n": 20}, {"learning_rate": 0.2})
    assert isinstance(task, Task)
    assert (task.recipe.learning_rate, task.recipe.batch_size) == (0.2, 5)
    run = Run(
        task,
        RunPlan(epochs=8, metric="val_loss", maximize=False),
        seed=0,
        level=0.0,
        device=torch.device("cpu"),
    )
    records = list(run)
    assert records[-1].val_loss < records[0].val_loss
    assert (records[-1].val_accuracy, records[-1].train_accuracy) == (None, None)
    assert run.tested()[-1].test_accuracy is None


@pytest.mark.parametrize(
    ("source", "name", "fragment"),
    [
        (OWN, "regresion", "has no 'regresion'"),
        ("task = 3", "task", "is a int, not a function"),
        ("def task(): return None", "task", "returned a NoneType instead of a Task"),
        ("import no_such_library", "task", "module 'no_such_library', which it imports, is not installed"),
        ("from . import missing_sibling", "task", "missing_sibling"),
        ("1 / 0", "task", "ZeroDivisionError"),
    ],
    ids=["name", "number", "None", "library", "sibling", "crash"],
)
def test_a_task_that_cannot_be_built_is_refused(write_module, source, name, fragment):
    """The error names the reference and what is wrong with it."""
    reference = f"{write_module(source)}:{name}"
    with pytest.raises(TaskError) as error:
        build_task(reference, {}, {})
    assert reference in str(error.value)
    assert fragment in str(error.value)


def test_unknown_options_are_refused_by_the_function():
    """An option that the function does not take is a TaskError that names it."""
    with pytest.raises(TaskError, match=r"'two_gaussians' cannot be built.*depht"):
        build_task("two_gaussians", {"depht": 2}, {})


@pytest.mark.parametrize("name", TASKS)
def test_every_name_of_the_table_is_found(name):
    """Each entry of TASKS leads to a function of that name, which takes the options that the entry says."""
    factory = find_task(name)
    assert factory.__name__ == name
    assert fields_of(factory) == fields_of(TASKS[name].options)


@pytest.mark.parametrize("options", [{}, {"label_noise": 0.2, "batch_norm": True}], ids=str)
@every_task
def test_a_task_is_what_its_options_say_before_it_is_built(name, options):
    """What a study file is checked against, without torch, is what the task is when it is built."""
    task, fields = build_task(name, options, {}), describe_task(name, options)
    assert {key: field.default for key, field in fields.recipe.items()} == vars(task.recipe)
    assert (task.correct is not None) == ("val_accuracy" in fields.metrics)


@every_task
def test_nothing_is_found_wrong_with_a_task(name):
    """Only tasks of the user's own are rehearsed before a search: those of floodsearch are, here."""
    task = build_task(name, {}, {})
    assert findings(task, (0, 1), {task.recipe.batch_size}) == []
