"""What a task's own functions give, held against what they promise wherever that costs nothing.

Each message says what to change. `floodsearch.training.rehearsal` asks the same, and more, before a search.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.parameter import is_lazy

from floodsearch.errors import DivergedError, TaskError
from floodsearch.tasks.streams import stream_seed
from floodsearch.tasks.task import Correct, Split, Task
from floodsearch.training.batches import chunks
from floodsearch.training.randomness import seed_global

_weights: dict[int, StorageWeakRef] = {}
"""The memory of all trainable weights that `new_model` gave and that are still in use, by its address."""


def new_model(task: Task, seed: int, device: torch.device, train: Split) -> nn.Module:
    """Return the model that a run of a seed starts with.

    Args:
        task: makes it.
        seed: of its initialisation.
        device: where it trains.
        train: the training split of the seed: layers that find their sizes at their first batch are shown it.

    Raises:
        TaskError: if that is no model, or one that another run trains.
    """
    seed_global(stream_seed(seed, "initialisation"), device)
    model = task.new_model()
    if _without_size(model):
        _find_sizes(model, task, train)
    given = _memory(model)
    if any((other := _weights.get(key)) is not None and not other.expired() for key in given):
        raise TaskError(
            "model must return a new model each time, but gave one with weights that another run trains; "
            "make it, and all of its layers, inside of the function"
        )
    model = model.to(device)
    for key in [key for key, other in _weights.items() if other.expired()]:
        del _weights[key]
    _weights.update(_memory(model))
    return model


def _memory(model: nn.Module) -> dict[int, StorageWeakRef]:
    """Return the memory of the trainable weights: frozen ones may be shared by all runs."""
    trained = (one.untyped_storage() for one in model.parameters() if one.requires_grad)
    references = map(StorageWeakRef, trained)
    return {reference.cdata: reference for reference in references}


@torch.no_grad()
def _find_sizes(model: nn.Module, task: Task, train: Split) -> None:
    """Show two samples to a model whose layers find their sizes at their first batch."""
    [batch] = chunks(train.first(2).to(torch.device("cpu")), 2, task.prepare)
    was_training = model.training
    model.eval()(batch.inputs)  # not in training mode, which would move running means
    model.train(was_training)
    if missing := _without_size(model):
        raise TaskError(f"{missing[0]} has no size yet after the model's first batch; give its layer one")


def _without_size(model: nn.Module) -> list[str]:
    """Return the names of the parameters and buffers that wait for a batch."""
    return [name for name, one in chain(model.named_parameters(), model.named_buffers()) if is_lazy(one)]


def loss_and_correct(task: Task, outputs: Any, labels: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the mean loss of a batch, (), and how many are correct, (); None where a task does not tell.

    Raises:
        TaskError: if the model, the loss or the metric gives something else.
    """
    if task.correct is None:
        return mean_loss(task, outputs, labels), None
    check_outputs(outputs)
    # Copies for the metric, because each of the two may change in place what it is given.
    outputs_too, labels_too = outputs.detach().clone(), labels.clone()
    loss = mean_loss(task, outputs, labels)
    return loss, count_correct(task.correct, outputs_too, labels_too)


def check_outputs(outputs: Any) -> None:
    """Raise a TaskError unless a model's outputs are a tensor, which metrics take."""
    if not isinstance(outputs, Tensor):
        raise TaskError(
            f"the model must return a tensor, but gave a {type(outputs).__name__}; wrap it in a module that "
            "returns what the loss takes"
        )


def mean_loss(task: Task, outputs: Any, labels: Tensor) -> Tensor:
    """Return the mean loss of a batch, ().

    Raises:
        TaskError: if the loss gives something else.
    """
    loss = task.loss(outputs, labels)
    if not isinstance(loss, Tensor):
        hint = "; leave out .item()" if isinstance(loss, float | int) else ""
        raise TaskError(f"loss must return a tensor, but gave a {type(loss).__name__}{hint}")
    if loss.ndim > 0:
        raise TaskError(
            f"loss must return a scalar, the mean over the batch, but gave {tuple(loss.shape)}; take .mean()"
        )
    return loss


def count_correct(correctness: Correct, outputs: Tensor, labels: Tensor) -> Tensor:
    """Return the number of correct samples of a batch, (); the metric may change its outputs and labels.

    Raises:
        TaskError: if the metric gives something else than one truth a sample.
    """
    n = len(labels)
    correct = correctness(outputs, labels)
    if not isinstance(correct, Tensor) or correct.shape not in ((n,), (n, 1)):
        gave = tuple(correct.shape) if isinstance(correct, Tensor) else f"a {type(correct).__name__}"
        raise TaskError(f"correct must give ({n},) booleans, one a sample, but gave {gave}")
    return correct.sum()


@contextmanager
def blaming(split: Split, name: str, *, first: bool) -> Iterator[None]:
    """Say that it is the data's fault where the first loss on a split is not finite, if it is.

    Args:
        split: whose loss is taken.
        name: of the split, for the message.
        first: whether no loss on it was finite before: then its data are no obstacle.

    Raises:
        TaskError: in the place of a `DivergedError`, if the data hold a NaN or infinite number.
    """
    try:
        yield
    except DivergedError as error:
        if not first or not (broken := int(split.broken.sum())):
            raise
        raise TaskError(
            f"the {name} loss is not finite: {broken} of {len(split.inputs)} samples of the {name} data hold "
            "NaN or infinite numbers; remove or fill them"
        ) from error
