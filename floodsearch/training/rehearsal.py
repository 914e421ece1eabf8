"""A rehearsal of a task: a batch of its first seed on the CPU, before a search spends hours on a mistake.

Each finding is a line that says what to change. What is unusual but may be meant is left alone.
"""

from __future__ import annotations

import inspect
import logging
import math
import time
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from floodsearch.errors import TaskError
from floodsearch.tasks.task import IGNORED, Data, Split, Task, class_correct
from floodsearch.training.batches import batches, chunks
from floodsearch.training.contract import check_outputs, loss_and_correct, mean_loss, new_model
from floodsearch.training.progress import check_counts
from floodsearch.training.randomness import borrowed
from floodsearch.usercode.reference import said

CPU = torch.device("cpu")
FEWEST = 10
"""Validation samples of all seeds together: with fewer, one of them moves the accuracy by more than .1, and
levels differ by less."""
FEW = 10
"""Samples of each kind that are evaluated; a last batch with fewer is tried."""
QUICK_SECONDS = 2.0
"""Data that take longer are drawn once only."""
MOST_BYTES = 2**30
"""Data that are larger are drawn once only."""
MOST_WORK = 10**9
"""Samples times parameters of the batch that is rehearsed: a second or so of a CPU."""
ROUNDING = 1e-4
"""Share by which two sums of the same losses may differ."""

log = logging.getLogger("floodsearch")


def findings(task: Task, seeds: Sequence[int], sizes: Collection[int]) -> list[str]:
    """Return the mistakes that are found in a task, a line each.

    Args:
        task: of the user's own.
        seeds: of its runs; the first is rehearsed, and the second where its data are quick to draw.
        sizes: batch sizes that are trained.
    """
    rehearsal = _Rehearsal(task, seeds, sizes)
    with borrowed(CPU), warnings.catch_warnings(), suppress(_EndedError):
        warnings.simplefilter("ignore")
        try:
            rehearsal.play()
        except (RuntimeError, TypeError) as error:  # of tensors of a kind that is not known here
            log.warning("the task is not rehearsed to its end, which may be right: %s", said(error))
    return list(dict.fromkeys(rehearsal.findings.found))


class _EndedError(Exception):
    """Ends a rehearsal: after its last finding nothing else can be tried."""


class _Findings:
    """The findings of a rehearsal so far, a line each.

    Attributes:
        found: in the order of the rehearsal.
    """

    def __init__(self) -> None:
        self.found: list[str] = []

    def add(self, finding: str) -> None:
        """Note a finding after which the rehearsal goes on."""
        self.found.append(finding)

    def end(self, finding: str) -> None:
        """Note a finding after which nothing else can be rehearsed."""
        self.found.append(finding)
        raise _EndedError

    @contextmanager
    def telling(self, what: str, more: str = "") -> Iterator[None]:
        """Note an error of the user's own code as a finding, and end the rehearsal there."""
        try:
            yield
        except (Exception, SystemExit) as error:  # it may do anything
            words = said(error)
            if any(name in words.lower() for name in ("cuda", "nvidia")):
                raise _EndedError from error  # it needs the GPU on which it will be trained
            self.end(words if isinstance(error, TaskError) else f"{what}: {words}{more}")


class _Rehearsal:
    """One pass over a task that collects findings, up to the first that makes the rest impossible."""

    def __init__(self, task: Task, seeds: Sequence[int], sizes: Collection[int]) -> None:
        self.task, self.seeds, self.sizes = task, seeds, sorted(sizes)
        self.findings = _Findings()

    def play(self) -> None:
        """Rehearse the data, the model, a step of training, and the evaluation."""
        data, quick = self._draw_twice(self.seeds[0])
        self._look_at(data)
        model, other = self._models(self.seeds[0], data.train)
        self._look_for_broken(other, data)
        most = MOST_WORK // sum(one.numel() for one in model.parameters())
        inputs, labels = self._batch(data.train, max(FEW, min(self.task.recipe.batch_size, most)))
        outputs = self._outputs(model, inputs)
        _look_at_metric(self.task, outputs, labels, self.findings)
        self._take_step(model, other, self._loss(outputs, labels))
        self._take_rest(other, data.train)
        self._evaluate(other, data)
        for seed in self.seeds[1:2] if quick else ():
            data = self._draw(seed)
            self._evaluate(self._models(seed, data.train)[0], data)

    # --- data ---

    def _draw(self, seed: int) -> Data:
        with self.findings.telling(f"data({seed}) fails"):
            return Data.of(self.task.data(seed)).to(CPU)

    def _draw_twice(self, seed: int) -> tuple[Data, bool]:
        """Return the data of a seed, and whether they are quick to draw; a second time they are the same."""
        began = time.perf_counter()
        data = self._draw(seed)
        quick = time.perf_counter() - began < QUICK_SECONDS
        if quick and sum(one.nbytes for one in _tensors(data)) <= MOST_BYTES:
            before = [one.clone() for one in _tensors(data)]
            after = (*_tensors(self._draw(seed)), *_tensors(data))
            if not all(_equal(*pair) for pair in zip(2 * before, after, strict=True)):
                self.findings.add(
                    f"data({seed}) gives other samples the second time; draw all that is random from the "
                    "seed, as by torch.Generator().manual_seed(seed), and change nothing in place that lasts"
                )
        return data, quick

    def _look_at(self, data: Data) -> None:
        """Look for what lets no level be told from another, and for batches that are too large."""
        each, labels = len(data.validation.inputs), data.train.labels
        if (samples := each * len(self.seeds)) < FEWEST:
            self.findings.add(
                f"the validation data of all seeds are {samples} samples, {each} a seed; one of them moves "
                f"the accuracy by {1 / samples:.2f}, so no levels can be told apart: have {FEWEST} or more"
            )
        if self.task.correct is not None and bool((labels == labels[:1]).all()):
            self.findings.add(f"all training labels are {labels[0].tolist()}; there is nothing to learn")
        for size in self.sizes:
            with suppress(_EndedError), self.findings.telling("batch_size"):
                self.task.with_recipe({"batch_size": size}).check_size(data)

    def _look_for_broken(self, model: nn.Module, data: Data) -> None:
        """Look for NaN and infinite numbers that reach the loss: a model may know how to take them."""
        for name, split in data.named():
            if not bool((broken := split.broken).any()):
                continue
            loss = math.nan
            with suppress(Exception):  # what else is wrong is found out without them
                loss = float(self._assessed(model, split.of(broken.nonzero()[:FEW, 0])))
            if not math.isfinite(loss):
                self.findings.add(
                    f"{int(broken.sum())} of {len(broken)} samples of the {name} data hold NaN or infinite "
                    "numbers; remove or fill them"
                )
                if name == "training":
                    raise _EndedError

    # --- model ---

    def _models(self, seed: int, train: Split) -> tuple[nn.Module, nn.Module]:
        """Return two new models of a seed."""
        with self.findings.telling("model() fails"):
            model, other = (new_model(self.task, seed, CPU, train) for _ in range(2))
        weights, others = model.state_dict(), other.state_dict()
        if weights.keys() != others.keys() or not all(_equal(weights[key], others[key]) for key in weights):
            self.findings.add(
                "model gives other weights the second time; draw them from torch's global generator, which "
                "is that of the seed"
            )
        parameters = list(model.parameters())
        if not any(one.requires_grad for one in parameters):
            why = "all of its parameters are frozen" if parameters else "it has no parameters"
            self.findings.end(f"the model cannot be trained: {why}")
        return model, other

    def _batch(self, split: Split, size: int) -> tuple[Tensor, Tensor]:
        with self.findings.telling("prepare fails"):
            return next(iter(batches(split, size, self.seeds[0], 1, self.task.prepare)))

    def _outputs(self, model: nn.Module, inputs: Tensor) -> Any:
        """Return the outputs of the model for a batch, in training mode."""
        kind, hint = _kind(inputs), _types(inputs, model)
        with self.findings.telling(f"the model cannot take inputs of {kind}", hint):
            return model.train()(inputs)

    def _take_rest(self, model: nn.Module, train: Split) -> None:
        """Let the model take the last batch of an epoch where that is small."""
        n = len(train.inputs)
        for size in self.sizes:
            if not 0 < (rest := n % size) < min(size, FEW):
                continue
            inputs, _ = self._batch(train.first(rest), rest)
            few = f"the last batch of an epoch has {rest} of {size} samples, and the model cannot take it"
            with self.findings.telling(few, "; choose another batch_size"):
                model.train()(inputs)

    # --- loss and metric ---

    def _loss(self, outputs: Any, labels: Tensor) -> Tensor:
        """Return the loss of the first batch, which must be a mean that has a gradient."""
        kept = outputs.detach().clone() if isinstance(outputs, Tensor) else outputs
        with self.findings.telling(f"loss({_kind(outputs)}, {_kind(labels)}) fails", _hint(outputs, labels)):
            loss = mean_loss(self.task, outputs, labels.clone())
        value = float(loss.detach())
        if not math.isfinite(value):
            ignored = bool((labels == IGNORED).all())
            why = "all labels are -100, which cross_entropy ignores" if ignored else "look at its formula"
            self.findings.end(f"the loss of the first batch is {value}; {why}")
        if value < 0:
            log.warning(
                "the loss of the first batch is %.4g: where it is negative all levels lie above it, and "
                "flooding only raises it; add a constant that keeps it above 0",
                value,
            )
        if not loss.requires_grad:
            self.findings.end("the loss has no gradient; is it detached, or made of numbers?")
        if isinstance(kept, Tensor) and len(kept) == len(labels):
            with suppress(Exception):  # a loss may need a whole batch
                self.findings.found.extend(_not_mean(self.task, kept, labels))
        return loss

    def _take_step(self, model: nn.Module, other: nn.Module, loss: Tensor) -> None:
        """Take a step, which must change this model and no other."""
        before, others = ([p.detach().clone() for p in each.parameters()] for each in (model, other))
        with self.findings.telling("optimizer fails"):
            optimizer = self.task.optimizer(model.parameters(), self.task.recipe)
        if not isinstance(optimizer, torch.optim.Optimizer):
            gave = type(optimizer).__name__
            self.findings.end(f"optimizer must return a torch.optim.Optimizer, but gave a {gave}")
        closure = inspect.signature(optimizer.step).parameters.get("closure")
        if closure is not None and closure.default is closure.empty:
            self.findings.end(
                f"{type(optimizer).__name__} evaluates the loss several times a step, by a closure, which a "
                "flooded step has not; take one that needs none"
            )
        optimizer.zero_grad(set_to_none=True)
        with self.findings.telling("the gradient of the loss fails"):
            loss.backward()
        if not any(one.grad is not None and bool(one.grad.any()) for one in model.parameters()):
            self.findings.end("the loss does not depend on the weights: its gradient is 0")
        with self.findings.telling("the step of the optimizer fails"):
            optimizer.step()
        if all(map(_equal, before, model.parameters())):
            self.findings.add(
                "a step of the optimizer changes no weight; is it given the parameters that it is handed, "
                f"and is a loss of {float(loss.detach()):.3g} on the scale that is meant?"
            )
        if not all(map(_equal, others, other.parameters())):
            self.findings.add("training one model changes another; make all of its layers anew")

    # --- evaluation ---

    def _evaluate(self, model: nn.Module, data: Data) -> None:
        """Evaluate some samples of each split: the first ones, and those with extreme labels."""
        with self.findings.telling("evaluation fails"):
            self.task.check_classes(data)
        for name, split in data.named():
            few = split.of(_odd_ones(split))
            kind = f"{_kind(few.inputs)} and {_kind(few.labels)}, {_range(split.labels)}"
            with self.findings.telling(f"evaluation on the {name} data fails", f"; they are {kind}"):
                loss = self._assessed(model, few)
            if not loss.isfinite() and not bool(few.broken.any()):
                self.findings.add(f"the loss on the {name} data is {float(loss)}; they are {kind}")

    @torch.no_grad()
    def _assessed(self, model: nn.Module, split: Split) -> Tensor:
        """Return the loss of a few samples, whose metric must fit, too."""
        [batch] = chunks(split, len(split.inputs), self.task.prepare)
        loss, right = loss_and_correct(self.task, model.eval()(batch.inputs), batch.labels)
        if right is not None:
            check_counts(float(right), len(batch.labels))
        return loss


def _look_at_metric(task: Task, outputs: Any, labels: Tensor, findings: _Findings) -> None:
    """Look for outputs and labels that the default metric cannot compare."""
    if task.correct is not None:
        with findings.telling("outputs"):
            check_outputs(outputs)
    if task.correct is not class_correct:
        return
    one_of = "the default correct compares the largest of several outputs with a class number"
    if outputs.ndim < 2 or outputs.shape[1] == 1:
        findings.end(
            f"{one_of}, but outputs are {_kind(outputs)}; give correct=binary_correct for one logit, or "
            'correct=None for a regression, and metric = "val_loss" in [search]'
        )
    if labels.ndim > 1 and labels.shape[1] > 1:
        findings.end(f"{one_of}, but labels are {_kind(labels)}; give a correct with (n,) booleans")
    if labels.is_floating_point() and bool((labels != labels.round()).any()):
        findings.end(
            f'{one_of}, but labels are fractions; give correct=None, and metric = "val_loss" in [search]'
        )


def _not_mean(task: Task, outputs: Tensor, labels: Tensor) -> Iterator[str]:
    """Compare the loss of a batch with those of its halves, and with that of labels in another order."""

    def loss(outputs: Tensor, labels: Tensor) -> float:
        return float(mean_loss(task, outputs.clone(), labels.clone()))

    half = len(labels) // 2
    whole = loss(outputs[: 2 * half], labels[: 2 * half])
    one, other = (loss(outputs[part], labels[part]) for part in (slice(half), slice(half, 2 * half)))
    if whole and abs(whole - one - other) <= ROUNDING * abs(whole):
        yield (
            f"the loss is a sum over the batch: {whole:.4g} of {2 * half} samples, {one:.4g} and {other:.4g} "
            "of its halves; take the mean, as levels are on its scale"
        )
    one_each = outputs.numel() == labels.numel() == len(labels) and outputs.shape != labels.shape
    if one_each and math.isclose(loss(outputs, labels), loss(outputs, labels.roll(1, 0)), rel_tol=1e-6):
        yield (
            f"the loss does not see whose label is which: outputs of {tuple(outputs.shape)} and labels of "
            f"{tuple(labels.shape)} are broadcast to all pairs; let both have one shape, as by .squeeze(1)"
        )


def _tensors(data: Data) -> list[Tensor]:
    return [one for _, part in data.named() for one in (part.inputs, part.labels)]


def _equal(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors are the same; a NaN equals a NaN."""
    same = one.shape == other.shape and one.dtype == other.dtype
    return same and bool(((one == other) | (one.isnan() & other.isnan())).all())


def _odd_ones(split: Split) -> Tensor:
    """Return the rows of the first samples, and of some with the least and the largest label."""
    odd = torch.arange(len(split.labels)) < FEW
    for label in (split.labels.min(), split.labels.max()) if split.labels.ndim == 1 else ():
        odd[(split.labels == label).nonzero()[:FEW, 0]] = True
    return odd.nonzero()[:, 0]


def _kind(value: Any) -> str:
    """Return the type and shape of a value, as a message says it."""
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"


def _range(labels: Tensor) -> str:
    return f"labels from {labels.min().tolist()} to {labels.max().tolist()}"


def _types(inputs: Tensor, model: nn.Module) -> str:
    """Return the end of a message: how to give inputs the type of the weights; "" where they have it."""
    weights = next(model.parameters()).dtype
    if inputs.dtype == weights:
        return ""
    shown = str(weights).removeprefix("torch.")
    to = {"float32": ".float()", "float64": ".double()"}.get(shown, f".to(torch.{shown})")
    return f"; its weights are {shown}, so make the inputs {to}"


def _hint(outputs: Any, labels: Tensor) -> str:
    """Return the end of a message: what usually mends a loss that fails on such outputs and labels."""
    if not isinstance(outputs, Tensor):
        return "; wrap the model in a module that returns what the loss takes"
    if outputs.ndim < 2 or outputs.shape[1] == 1:
        same = outputs.shape == labels.shape or outputs.numel() != labels.numel()
        return f"; {_range(labels)}" if same else "; let both have one shape, as by .squeeze(1)"
    if labels.ndim == 2 and labels.shape[1] == 1:
        return "; class numbers are (n,), so take labels.squeeze(1)"
    if labels.ndim == 1 and labels.dtype != torch.int64:
        return "; class numbers are int64, so take labels.long()"
    classes = outputs.shape[1]
    return f"; {_range(labels)}, but the classes of {classes} outputs are 0 to {classes - 1}"
