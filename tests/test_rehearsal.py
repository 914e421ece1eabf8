"""rehearsal: what a task's first batch tells is told before the search, and what is right is left alone."""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Subset, TensorDataset

from floodsearch.catalog import known
from floodsearch.errors import StudyFileError
from floodsearch.study.reader import parse
from floodsearch.tasks.task import Data, Recipe, Split, Task, binary_correct, logistic_loss
from floodsearch.training.rehearsal import findings
from tests.conftest import TINY, merged

SEEDS = (0, 1)
Parts = tuple[int, int, int]


def points(seed: int) -> tuple[Tensor, Tensor]:
    """Return 60 points and their classes, 0 and 1."""
    inputs = torch.randn(60, 4, generator=torch.Generator().manual_seed(seed))
    return inputs, (inputs.sum(dim=1) + 0.5 > 0).long()


def splits(inputs: Any, labels: Any, parts: Parts = (20, 20, 20)) -> Data:
    return Data(*map(Split, torch.split(inputs, parts), torch.split(labels, parts)))


def changed(
    inputs: Callable[[Tensor], Any] = Tensor.clone,
    labels: Callable[[Tensor], Any] = Tensor.clone,
    parts: Parts = (20, 20, 20),
) -> Callable[[int], Data]:
    """Return the data function of points whose inputs or labels are changed."""

    def data(seed: int) -> Data:
        x, y = points(seed)
        return splits(inputs(x), labels(y), parts)

    return data


def network(outputs: int = 2) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, outputs))


def found(sizes: tuple[int, ...] = (10,), seeds: tuple[int, ...] = SEEDS, **fields: Any) -> list[str]:
    """Return what is found of a task that is right but for some of its fields."""
    recipe = fields.pop("recipe", {})
    right = {"data": changed(), "model": network, "recipe": Recipe(batch_size=sizes[0], **recipe)}
    return findings(Task(**right | fields), seeds, sizes)


class Frozen(nn.Module):
    """A model of which a part is frozen."""

    def __init__(self, *, whole: bool) -> None:
        super().__init__()
        self.layers = network()
        (self.layers if whole else self.layers[0]).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Gives(nn.Module):
    """A model that gives its outputs as something else, or takes something else."""

    def __init__(self, wrap: Callable[..., Any]) -> None:
        super().__init__()
        self.layers, self.wrap = network(), wrap

    def forward(self, x: Tensor) -> Any:
        return self.wrap(self.layers(x))


class Tied(nn.Module):
    """A model in which two layers have the same weights."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.other.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.other(torch.relu(self.one(x)))))


def batch_norm(*_: Any) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2))


def squared(outputs: Tensor, labels: Tensor) -> Tensor:
    return ((outputs - labels) ** 2).mean()


def each_squared(outputs: Tensor, labels: Tensor) -> Tensor:
    return squared(outputs.squeeze(1), labels)


def by_class(reduction: str) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda outputs, labels: functional.cross_entropy(outputs, labels, reduction=reduction)


def of_loss(change: Callable[[Tensor], Any]) -> Callable[[Tensor, Tensor], Any]:
    """Return cross-entropy with something done to it."""
    return lambda outputs, labels: change(functional.cross_entropy(outputs, labels))


def to_fractions(labels: Tensor) -> Tensor:
    return labels * 1.7 + torch.linspace(0, 1, len(labels))


def with_nan(row: int) -> Callable[[Tensor], Tensor]:
    return lambda inputs: inputs.index_fill(0, torch.tensor([row]), float("nan"))


def three(inputs: Tensor) -> Tensor:
    return (inputs[:, :3] > 0).float()


def many_labels(seed: int) -> Data:
    inputs, _ = points(seed)
    return splits(inputs, three(inputs))


def numpys(kind: type) -> Callable[[int], Data]:
    def data(seed: int) -> Data:
        inputs, labels = points(seed)
        parts = zip(inputs.split(20), labels.split(20), strict=True)
        return Data(*(Split(kind(x.numpy()), kind(y.numpy())) for x, y in parts))

    return data


def pairs(wrap: Callable[..., Any]) -> Callable[[int], Any]:
    """Return a data function that gives three parts in a tuple, each made of inputs and labels."""
    return lambda seed: tuple(wrap(*p) for p in zip(*(x.split(20) for x in points(seed)), strict=True))


def subsets(seed: int) -> Any:
    whole = TensorDataset(*points(seed))
    return {
        name: Subset(whole, range(first, 60, 3)) for first, name in enumerate(("train", "validation", "test"))
    }


SHARED, ENCODER = network(), nn.Linear(4, 16)
NEVER_SEEDED = random.Random(1)
NOISY = points(7)


def changes_what_lasts(seed: int) -> Data:
    inputs, labels = NOISY
    labels[seed] = 1 - labels[seed]
    return splits(inputs, labels)


def unseeded_model() -> nn.Sequential:
    model = network()
    nn.init.constant_(model[2].bias, NEVER_SEEDED.random())
    return model


def of_other(parameters: Any, recipe: Recipe) -> torch.optim.Optimizer:
    del parameters
    return torch.optim.SGD(network().parameters(), lr=recipe.learning_rate)


def lbfgs(parameters: Any, recipe: Recipe) -> torch.optim.Optimizer:
    return torch.optim.LBFGS(parameters, lr=recipe.learning_rate)


def missing(seed: int) -> Data:
    raise FileNotFoundError(2, "No such file", f"/no/such/{seed}.csv")


WRONG: Mapping[str, tuple[dict[str, Any], str]] = {
    "float classes": ({"data": changed(labels=Tensor.float)}, "take labels.long()"),
    "int32 classes": ({"data": changed(labels=Tensor.int)}, "take labels.long()"),
    "bool classes": ({"data": changed(labels=Tensor.bool)}, "take labels.long()"),
    "classes of (n, 1)": ({"data": changed(labels=lambda y: y[:, None])}, "take labels.squeeze(1)"),
    "classes from -1": ({"data": changed(labels=lambda y: 2 * y - 1)}, "labels from -1 to 1"),
    "a class too many": ({"data": changed(labels=lambda y: y + 1)}, "classes of 2 outputs are 0 to 1"),
    "a class too many later": (
        {"data": changed(labels=lambda y: torch.cat([y[:59], torch.tensor([2])]))},
        "labels up to 2",
    ),
    "only ignored": ({"data": changed(labels=lambda y: y * 0 - 100)}, "which cross_entropy ignores"),
    "one class": ({"data": changed(labels=lambda y: y * 0)}, "nothing to learn"),
    "bytes": ({"data": changed(lambda x: (40 * x + 128).byte())}, "make the inputs .float()"),
    "doubles": ({"data": changed(Tensor.double)}, "make the inputs .float()"),
    "numpy's doubles": ({"data": numpys(np.float64)}, "make the inputs .float()"),
    "double model": ({"model": lambda: network().double()}, "make the inputs .double()"),
    "NaN to train": ({"data": changed(with_nan(3))}, "1 of 20 samples of the training data hold NaN"),
    "NaN to validate": ({"data": changed(with_nan(25))}, "1 of 20 samples of the validation data hold NaN"),
    "NaN to test": ({"data": changed(with_nan(45))}, "1 of 20 samples of the test data hold NaN"),
    "few": ({"data": changed(parts=(39, 1, 20))}, "2 samples, 1 a seed"),
    "a batch too large": ({"sizes": (10, 21)}, "batch_size = 21 is more than the 20 training samples"),
    "a last batch of one": (
        {"data": changed(parts=(21, 19, 20)), "model": batch_norm},
        "has 1 of 10 samples",
    ),
    "a searched last batch of one": ({"sizes": (10, 19), "model": batch_norm}, "has 1 of 19 samples"),
    "a dictionary": ({"data": pairs(lambda x, y: Split({"a": x}, y))}, "but are a dict"),
    "two parts": ({"data": points}, "but gave 2 parts"),
    "loaders": (
        {"data": pairs(lambda x, y: DataLoader(TensorDataset(x, y)))},
        "DataLoader; give its data set",
    ),
    "a number for a split": ({"data": lambda seed: (torch.tensor(1.0), 2, 3)}, "but is a Tensor"),
    "ragged lists": ({"data": pairs(lambda x, y: Split([[1.0], [1.0, 2.0]], [0, 1]))}, "fit into one tensor"),
    "nothing": ({"data": lambda seed: None}, "but gave a NoneType"),
    "empty": ({"data": lambda seed: splits(*points(seed), (60, 0, 0))}, "at least one, but has 0 inputs"),
    "no file": ({"data": missing}, "'/no/such/0.csv' (test_rehearsal.py:"),
    "no seed": ({"data": lambda _: splits(torch.randn(60, 4), points(0)[1])}, "gives other samples"),
    "noise that adds up": ({"data": changes_what_lasts}, "gives other samples the second time"),
    "no module": ({"model": lambda: torch.relu}, "torch.nn.Module, but gave a builtin"),
    "no parameters": ({"model": nn.Identity}, "it has no parameters"),
    "all frozen": ({"model": lambda: Frozen(whole=True)}, "all of its parameters are frozen"),
    "one model": ({"model": lambda: SHARED}, "must return a new model each time"),
    "one layer": ({"model": lambda: nn.Sequential(ENCODER, nn.Linear(16, 2))}, "a new model each time"),
    "a model of no seed": ({"model": unseeded_model}, "draw them from torch's global generator"),
    "a tuple": ({"model": lambda: Gives(lambda x: (x, None))}, "must return a tensor, but gave a tuple"),
    "more arguments": ({"model": lambda: Gives(lambda x, mask: x)}, "'mask' (test_rehearsal.py:"),
    "one logit": ({"model": lambda: network(1), "loss": logistic_loss}, "give correct=binary_correct"),
    "a logit too many dimensions": (
        {
            "data": changed(labels=Tensor.float),
            "model": lambda: network(1),
            "loss": functional.binary_cross_entropy_with_logits,
            "correct": binary_correct,
        },
        "as by .squeeze(1)",
    ),
    "a regression": (
        {"data": changed(labels=to_fractions), "model": lambda: network(1), "loss": each_squared},
        "correct=None for a regression",
    ),
    "all pairs": (
        {
            "data": changed(labels=to_fractions),
            "model": lambda: network(1),
            "loss": squared,
            "correct": None,
        },
        "outputs of (10, 1) and labels of (10,) are broadcast to all pairs",
    ),
    "several labels": (
        {
            "data": many_labels,
            "model": lambda: network(3),
            "loss": functional.binary_cross_entropy_with_logits,
        },
        "give a correct with (n,) booleans",
    ),
    "not reduced": ({"loss": by_class("none")}, "the mean over the batch, but gave (10,)"),
    "summed": ({"loss": by_class("sum")}, "the loss is a sum over the batch"),
    "detached": ({"loss": of_loss(Tensor.detach)}, "has no gradient"),
    "a number": ({"loss": of_loss(Tensor.item)}, "but gave a float; leave out .item()"),
    "of shape (1,)": ({"loss": of_loss(lambda one: one[None])}, "but gave (1,)"),
    "constant": ({"loss": of_loss(lambda one: 0.3 + 0 * one)}, "its gradient is 0"),
    "NaN": ({"loss": of_loss(lambda one: one * math.nan)}, "the loss of the first batch is nan"),
    "out of scale": ({"loss": of_loss(lambda one: one * 1e30)}, "changes no weight"),
    "means": (
        {"correct": lambda o, y: (o.argmax(1) == y).float().mean()},
        "booleans, one a sample, but gave ()",
    ),
    "counts": ({"correct": lambda o, y: (o.argmax(1) == y).sum()}, "booleans, one a sample, but gave ()"),
    "one truth a label": ({"correct": lambda o, y: o > 0}, ", 2)"),
    "more than all": ({"correct": lambda o, y: 3 * (o.argmax(1) == y)}, "correct must give booleans"),
    "a closure": ({"optimizer": lbfgs}, "LBFGS evaluates the loss several times"),
    "other weights": ({"optimizer": of_other}, "changes no weight"),
    "no optimizer": ({"optimizer": lambda parameters, recipe: None}, "but gave a NoneType"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_told_in_a_line(name):
    """The line says what to change, in the words of the task's own functions."""
    fields, fragment = WRONG[name]
    told = found(**fields)
    assert any(fragment in one for one in told), told
    assert not any("\n" in one for one in told)


def need_gpu() -> float:
    raise RuntimeError("Found no NVIDIA driver on your system.")


def soft_loss() -> nn.Module:
    return nn.CrossEntropyLoss(weight=torch.tensor([1.0, 3.0]), label_smoothing=0.1)


def all_right(outputs: Tensor, labels: Tensor) -> Tensor:
    return ((outputs > 0) == labels.bool()).all(dim=1)


class Fills(nn.Module):
    """A model that knows how to take missing values."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = network()

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x.nan_to_num())


REGRESSION = {"data": changed(labels=to_fractions), "loss": each_squared, "correct": None}
RIGHT: Mapping[str, dict[str, Any]] = {
    "plain": {},
    "numpy": {"data": numpys(np.asarray)},
    "lists": {"data": pairs(lambda x, y: Split(x.tolist(), y.tolist()))},
    "pairs": {"data": pairs(lambda x, y: (x, y))},
    "data sets": {"data": pairs(TensorDataset)},
    "lists of samples": {"data": pairs(lambda x, y: list(zip(x, y, strict=True)))},
    "parts of a data set": {"data": subsets},
    "one data set for all seeds": {"data": lambda _: splits(*points(0))},
    "some ignored": {"data": changed(labels=lambda y: torch.where(torch.arange(60) % 7 > 0, y, -100))},
    "seeds of different lengths": {
        "data": lambda s: splits(*(x[: 40 + s] for x in points(s)), (10 + s, 10, 20)),
        "sizes": (5,),
    },
    "missing values": {"data": changed(with_nan(3)), "model": Fills},
    "one validation sample, many seeds": {
        "data": changed(parts=(39, 1, 20)),
        "seeds": tuple(range(10)),
    },
    "batch norm": {"model": batch_norm},
    "dropout": {"model": lambda: nn.Sequential(network(8), nn.Dropout(), nn.Linear(8, 2))},
    "a frozen part": {"model": lambda: Frozen(whole=False)},
    "a frozen part for all": {
        "model": lambda: nn.Sequential(ENCODER.requires_grad_(False), nn.Linear(16, 2))
    },
    "tied weights": {"model": Tied},
    "lazy layers": {"model": lambda: nn.Sequential(nn.LazyLinear(8), nn.LazyBatchNorm1d(), nn.LazyLinear(2))},
    "a double model": {"data": changed(Tensor.double), "model": lambda: network().double()},
    "a tuple for the loss": {
        "model": lambda: Gives(lambda x: (x, None)),
        "loss": lambda outputs, labels: functional.cross_entropy(outputs[0], labels),
        "correct": None,
    },
    "a module of loss": {"loss": nn.CrossEntropyLoss()},
    "weights and smoothing": {"loss": soft_loss()},
    "a loss below zero": {"loss": of_loss(lambda one: one - 10)},
    "a regression": {"model": lambda: network(1), **REGRESSION},
    "several labels": {
        "data": many_labels,
        "model": lambda: network(3),
        "loss": functional.binary_cross_entropy_with_logits,
        "correct": all_right,
    },
    "one logit": {"model": lambda: network(1), "loss": logistic_loss, "correct": binary_correct},
    "truth of (n, 1)": {
        "data": changed(labels=lambda y: y[:, None].float()),
        "model": lambda: network(1),
        "loss": functional.binary_cross_entropy_with_logits,
        "correct": lambda outputs, labels: (outputs > 0) == labels.bool(),
    },
    "an optimizer": {"optimizer": lambda parameters, recipe: torch.optim.RMSprop(parameters)},
    "a loss of many samples": {"loss": lambda o, y: functional.cross_entropy(o, y) / (len(y) > 9)},
    "tensors that only some functions know": {
        "data": changed(lambda x: x.to_sparse()),
        "model": lambda: Gives(lambda x: x),
    },
    "a loss on a GPU": {"loss": of_loss(lambda one: one + need_gpu())},
    "rows": {
        "data": lambda s: splits(torch.arange(60), points(s)[1]),
        "prepare": lambda rows, generator: points(0)[0][rows],
    },
}


@pytest.mark.parametrize("name", RIGHT)
def test_what_is_right_is_left_alone(name):
    """Nothing is found in a task that trains as it is meant."""
    ENCODER.requires_grad_(True)
    assert found(**RIGHT[name]) == []


def test_a_loss_below_zero_is_warned_of(caplog):
    """Levels are 0 and above, so flooding can only raise such a loss."""
    assert found(**RIGHT["a loss below zero"]) == []
    assert "where it is negative all levels lie above it" in caplog.text


def test_a_rehearsal_leaves_the_random_states_alone():
    """Who draws numbers after it draws those that would have come without it."""
    torch.manual_seed(3)
    np.random.seed(3)
    expected = torch.rand(3), np.random.rand()
    torch.manual_seed(3)
    np.random.seed(3)
    found(data=changed(labels=lambda y: (y + torch.randint(2, y.shape)) % 2))
    assert torch.equal(torch.rand(3), expected[0])
    assert np.random.rand() == expected[1]


@pytest.mark.parametrize(
    ("fields", "fragment"),
    [
        ({"model": SHARED}, "but is a model; write model=lambda: ..."),
        ({"loss": nn.CrossEntropyLoss}, "write CrossEntropyLoss()"),
        ({"optimizer": torch.optim.Adam}, "a function of (parameters, recipe), but is the class Adam"),
        ({"data": points(0)}, "data must be a function, but is a tuple"),
        ({"correct": "accuracy"}, "correct must be a function, but is a str"),
        ({"recipe": {"batch_size": 10}}, "recipe must be a Recipe, but is a dict"),
    ],
)
def test_what_is_no_function_is_no_part_of_a_task(fields, fragment):
    """It is refused when the task is made, with what to write instead."""
    with pytest.raises(ValueError, match=re.escape(fragment)):
        Task(**{"data": points, "model": network, "recipe": Recipe(), **fields})


OWN = """
import torch
from torch import nn
from floodsearch.tasks.task import Data, Recipe, Split, Task

def task(*, float_labels: bool = False) -> Task:
    def data(seed):
        print("drawing")
        x = torch.randn(60, 4, generator=torch.Generator().manual_seed(seed))
        y = (x.sum(dim=1) > 0).long()
        return Data(*(Split(a, b.float() if float_labels else b) for a, b in zip(x.split(20), y.split(20))))
    return Task(data=data, model=lambda: nn.Linear(4, 2), recipe=Recipe(batch_size=10))
"""


def test_findings_are_problems_of_the_file(write_code):
    """Told together with what else is wrong with it."""
    own = {"task": f"{write_code(OWN)}:task", "options": None, "levels": {"count": 1}}
    content = merged(merged(TINY, own), {"options": {"float_labels": True}})
    with pytest.raises(StudyFileError) as error:
        parse(content, known())
    assert [problem.key for problem in error.value.problems] == ["levels.count", "task"]
    assert "take labels.long()" in error.value.problems[1].message


def test_what_a_task_prints_while_it_is_tried_is_no_part_of_the_output(write_code, tmp_path, command):
    path = tmp_path / "own.toml"
    path.write_text(f'name = "own"\ntask = "{write_code(OWN)}:task"\nlevels = {{high = 0.5, count = 3}}\n')
    code, out, errors = command("check", path, "--json")
    assert (code, json.loads(out)["name"], "drawing" in errors) == (0, "own", True)


def test_each_of_several_batch_sizes_is_tried(write_code):
    """A choice that is too large for the data is told, whatever the others are."""
    own = {"task": f"{write_code(OWN)}:task", "options": None}
    content = merged(merged(TINY, own), {"training": {"batch_size": {"choices": [10, 30]}}})
    with pytest.raises(StudyFileError, match="batch_size = 30 is more than the 20 training samples"):
        parse(content, known())
