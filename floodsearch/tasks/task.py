"""What is trained: the contract between a task and the engine.

A task is a value: functions for the data and the model, a recipe of numbers, a loss and a metric. Write a
function that takes the task's options by keyword and returns a `Task`, and name it in the study file:

    def task(*, label_noise: float = 0.1) -> Task:
        return Task(
            data=lambda seed: my_data(seed, label_noise),
            model=lambda: nn.Sequential(nn.Linear(10, 100), nn.ReLU(), nn.Linear(100, 3)),
            recipe=Recipe(optimizer="sgd", learning_rate=0.1, batch_size=64),
        )

    task = "my_package.my_module:task"          # in the study file; [options] label_noise = 0.2
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar, get_type_hints

import torch
from torch import Tensor, nn
from torch.nn import functional

from floodsearch.errors import NestedError, TaskError, UsageError, named, pass_on_ctrl_c
from floodsearch.process import nesting
from floodsearch.tasks import TASKS
from floodsearch.tasks.recipe import Recipe
from floodsearch.tasks.tensors import samples_of, tensor_of
from floodsearch.usercode.reference import as_program, called_as_program, find_code

__all__ = ["Data", "Recipe", "Split", "Task"]
"""What a task is written with, from one place."""

IGNORED = -100
"""The label that cross-entropy leaves out."""


@dataclass(frozen=True)
class Split:
    """Samples with their labels, on the CPU. Arrays and lists are made tensors."""

    inputs: Tensor  # (n, ...), as the model takes them, or the task's `prepare` if it has one
    labels: Tensor  # (n,) or (n, ...), as the loss takes them, label noise included
    clean_labels: Tensor | None = None  # like labels, before label noise; None where that is not known

    def __post_init__(self) -> None:
        for name in ("inputs", "labels", "clean_labels"):
            if (values := getattr(self, name)) is not None:
                object.__setattr__(self, name, tensor_of(values, f"{name.replace('_', ' ')} of a split"))
        if len(self.inputs) != len(self.labels) or len(self.inputs) == 0:
            raise ValueError(
                f"a split needs as many labels as inputs, and at least one, but has {len(self.inputs)} "
                f"inputs and {len(self.labels)} labels"
            )

    @property
    def broken(self) -> Tensor:
        """(n,) whether the inputs or the labels of each sample hold a NaN or infinite number."""
        return _not_finite(self.inputs) | _not_finite(self.labels)

    def to(self, device: torch.device) -> Split:
        """Return the split on a device."""
        clean = None if self.clean_labels is None else self.clean_labels.to(device)
        return Split(self.inputs.to(device), self.labels.to(device), clean)

    def first(self, n: int) -> Split:
        """Return the first samples, at most so many."""
        return self.of(slice(n))

    def of(self, rows: Tensor | slice) -> Split:
        """Return the samples of some rows, at least one."""
        clean = None if self.clean_labels is None else self.clean_labels[rows]
        return Split(self.inputs[rows], self.labels[rows], clean)


def _not_finite(tensor: Tensor) -> Tensor:
    return ~tensor.isfinite().flatten(1).all(dim=1) if tensor.ndim > 1 else ~tensor.isfinite()


@dataclass(frozen=True)
class Data:
    """The three splits of one seed. The test split chooses nothing: it is only reported.

    Each may be given as a pair (inputs, labels), or as a data set or list of (input, label) samples.
    """

    train: Split
    validation: Split
    test: Split

    def __post_init__(self) -> None:
        for name in ("train", "validation", "test"):
            part = getattr(self, name)
            if not isinstance(part, Split):
                object.__setattr__(self, name, Split(*samples_of(part, f"the {name} split")))

    def named(self) -> Iterator[tuple[str, Split]]:
        """Yield each split with the name that messages call it by."""
        yield from (("training", self.train), ("validation", self.validation), ("test", self.test))

    @classmethod
    def of(cls, found: Any) -> Data:
        """Return the three splits that a task's `data` gave, also as a tuple or by their names.

        Raises:
            ValueError: if it is something else.
        """
        if isinstance(found, cls):
            return found
        if isinstance(found, tuple | list) and len(found) == 3:
            return cls(*found)
        if isinstance(found, Mapping) and found.keys() == {"train", "validation", "test"}:
            return cls(**found)
        gave = f"{len(found)} parts" if isinstance(found, tuple | list) else f"a {type(found).__name__}"
        raise ValueError(f"data must return Data(train, validation, test), but gave {gave}")

    def to(self, device: torch.device) -> Data:
        """Return the splits on a device."""
        return Data(self.train.to(device), self.validation.to(device), self.test.to(device))


def build_optimizer(parameters: Iterable[nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
    """Return the optimizer that a recipe names.

    Adam runs fused: one kernel over all parameters instead of a dozen small ones each.
    """
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, lr=recipe.learning_rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay
        )
    kind = torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.AdamW
    return kind(parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True)


def logistic_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean logistic loss in nats of (n, 1) logits and (n,) labels 0 and 1."""
    return functional.binary_cross_entropy_with_logits(logits.squeeze(1), labels.to(logits.dtype))


def binary_correct(logits: Tensor, labels: Tensor) -> Tensor:
    """Return (n,) whether each logit of (n, 1) has the sign of its label 0 or 1."""
    return (logits.squeeze(1) > 0) == labels.bool()


def class_correct(logits: Tensor, labels: Tensor) -> Tensor:
    """Return (n,) whether the largest of (n, classes) logits is that of the label."""
    return logits.argmax(dim=1) == labels


Correct = Callable[[Tensor, Tensor], Tensor]
"""(outputs, labels) of a batch to (n,) booleans."""

Prepare = Callable[[Tensor, torch.Generator | None], Tensor]
"""(inputs of a batch as a split holds them, generator) to inputs as the model takes them, on their device."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """Data, model, recipe, loss and metric.

    Args:
        data: seed to the three splits, on the CPU; all that is random in them comes from the seed. `Data`
            may also be a tuple of the three, or a dictionary by their names.
        model: a new model on the CPU. It is called with torch's global generator seeded from the run's
            seed, so PyTorch's usual initialisation needs no care.
        recipe: the numbers of the training.
        loss: (outputs, labels) to the *mean* loss of the batch, a scalar.
        correct: (outputs, labels) to (n,) booleans, whose mean is the accuracy; None where there is no such
            thing, as in regression (then the study's metric is `val_loss`).
        optimizer: (parameters, recipe) to an optimizer.
        prepare: makes the model's inputs of each batch, on the device; None where a split holds them. Splits
            may then hold what is small, such as row numbers of a tensor that all seeds share. The generator
            is that of (seed, epoch), the same for every level, to augment with; in evaluation it is None, and
            nothing may be augmented.
        samples: of a training split, where that is known before the data are drawn.
    """

    data: Callable[[int], Data | Sequence[Any] | Mapping[str, Any]]
    model: Callable[[], nn.Module]
    recipe: Recipe
    loss: Callable[[Tensor, Tensor], Tensor] = functional.cross_entropy
    correct: Correct | None = class_correct
    optimizer: Callable[[Iterable[nn.Parameter], Recipe], torch.optim.Optimizer] = build_optimizer
    prepare: Prepare | None = None
    samples: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.model, nn.Module):
            raise ValueError(
                "model must be a function that makes a new model for each run, but is a model; write "
                "model=lambda: ... and make it there"
            )
        for name in ("data", "model", "loss", "correct", "optimizer", "prepare"):
            value = getattr(self, name)
            if not callable(value) and not (value is None and name in ("correct", "prepare")):
                raise ValueError(f"{name} must be a function, but is a {type(value).__name__}")
        if isinstance(self.loss, type):
            raise ValueError(f"loss must be a function, but is a class; write {self.loss.__name__}()")
        if isinstance(self.optimizer, type):
            name = self.optimizer.__name__
            raise ValueError(f"optimizer must be a function of (parameters, recipe), but is the class {name}")
        if not isinstance(self.recipe, Recipe):
            raise ValueError(f"recipe must be a Recipe, but is a {type(self.recipe).__name__}")

    def new_model(self) -> nn.Module:
        """Return a new model on the CPU.

        Raises:
            TaskError: if `model` gives something else.
        """
        model: object = self.model()
        if not isinstance(model, nn.Module):
            raise TaskError(f"model must return a torch.nn.Module, but gave a {type(model).__name__}")
        return model

    def draw(self, seed: int, device: torch.device) -> Data:
        """Return the data of a seed on a device, which fit the recipe and the model.

        Raises:
            TaskError: if a batch is larger than the training split, or labels are beyond the model's outputs.
            ValueError: if `data` gives something else than three splits.
        """
        data = Data.of(self.data(seed))
        self.check_size(data)
        data = data.to(device)
        self.check_classes(data)
        return data

    def check_size(self, data: Data) -> None:
        """Raise a TaskError if a batch is larger than the training split."""
        samples, size = len(data.train.inputs), self.recipe.batch_size
        if size > samples:
            raise TaskError(
                f"batch_size = {size} is more than the {samples} training samples; lower it in [training]"
            )

    @torch.no_grad()
    def check_classes(self, data: Data) -> None:
        """Ask a new model for its outputs: on a GPU the loss would fail and say nothing of labels.

        It is asked where the data are: layers that it shares with other models may be there already.

        Raises:
            TaskError: if labels are none of the classes that the metric compares.
        """
        if self.correct is not class_correct or data.train.labels.is_floating_point():
            return
        labels = torch.cat([split.labels.long().flatten() for _, split in data.named()])
        labels = labels[labels != IGNORED]
        lowest, highest = (int(labels.min()), int(labels.max())) if len(labels) else (0, 0)
        if lowest < 0:
            raise TaskError(f"there are labels down to {lowest}, but classes are numbered from 0")
        inputs = data.train.inputs[:2].clone()  # a model may change them in place
        if self.prepare is not None:
            inputs = self.prepare(inputs, None).clone()
        outputs = self.new_model().to(inputs.device).eval()(inputs)
        if isinstance(outputs, Tensor) and outputs.ndim > 1 and highest >= outputs.shape[1]:
            has = f"the model has {outputs.shape[1]} outputs, but there are labels up to {highest}"
            raise TaskError(f"{has}; it needs at least {highest + 1}")

    def with_recipe(self, values: Mapping[str, Any]) -> Task:
        """Return the task with some fields of its recipe replaced.

        Raises:
            ValueError: for a value out of bounds, named with its bound.
        """
        return dataclasses.replace(self, recipe=dataclasses.replace(self.recipe, **values))


TaskFactory = Callable[..., Task]
Parameters = ParamSpec("Parameters")
Options = TypeVar("Options")


def built_from(
    options: Callable[Parameters, Options],
) -> Callable[[Callable[[Options], Task]], Callable[Parameters, Task]]:
    """Let a function of a record of options be called with their names, as a study file gives them.

    Args:
        options: the class of the record, which checks the values.
    """

    def decorate(build: Callable[[Options], Task]) -> Callable[Parameters, Task]:
        def task(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Task:
            return build(options(*args, **kwargs))

        task.__name__, task.__qualname__ = build.__name__, build.__qualname__
        task.__module__, task.__doc__ = build.__module__, build.__doc__
        # Whoever asks for the parameters is to find those of the record, with their types.
        task.__annotations__ = get_type_hints(options.__init__)
        task.__dict__["__signature__"] = inspect.signature(options)
        return task

    return decorate


def find_task(reference: str, arguments: Sequence[str] = ()) -> TaskFactory:
    """Return the function behind a name of `TASKS` or a `package.module:name`, which has these arguments.

    Raises:
        TaskError: if it cannot be imported, saying which import failed, or is not callable.
    """
    path = TASKS[reference].path if reference in TASKS else reference
    if not path.partition(":")[2]:
        raise TaskError(f"{reference!r} is neither one of {', '.join(TASKS)} nor a 'package.module:name'")
    return find_code(path, "a function that returns a Task", arguments)


def build_task(
    reference: str, options: Mapping[str, Any], recipe: Mapping[str, Any], arguments: Sequence[str] = ()
) -> Task:
    """Return a task with its options and recipe fields set.

    Code of the user's own finds the arguments in `sys.argv`: in its module, in the function that makes the
    task, and in what makes the data and the model.

    Raises:
        TaskError: if it cannot be imported or built, with the task's own words.
    """
    factory = find_task(reference, arguments)
    try:
        with nesting.importing(reference), as_program(reference, arguments):
            task = factory(**options)
    except NestedError as error:
        raise TaskError(f"{reference!r} cannot be built: {error}") from None
    except (ValueError, TypeError, UsageError) as error:  # says itself what it does not like
        raise TaskError(f"{reference!r} cannot be built: {error}") from error
    except BaseException as error:
        pass_on_ctrl_c(error)
        raise TaskError(f"{reference!r} cannot be built: {named(error)}") from error
    if not isinstance(task, Task):
        raise TaskError(f"{reference!r} returned a {type(task).__name__} instead of a Task")
    if reference not in TASKS:
        task = dataclasses.replace(
            task,
            data=called_as_program(task.data, reference, arguments),
            model=called_as_program(task.model, reference, arguments),
        )
    try:
        return task.with_recipe(recipe)
    except ValueError as error:
        raise TaskError(str(error)) from error
