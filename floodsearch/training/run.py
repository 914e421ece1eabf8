"""One training with one seed and one level, epoch by epoch.

The caller decides what to do with each record: report, prune, stop, fork. Nothing here knows of trials.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from floodsearch.artifacts.trees import map_leaves
from floodsearch.flooding.loss import flood
from floodsearch.records import EpochRecord, Keep
from floodsearch.study.spec import PLAIN, Arithmetic
from floodsearch.tasks.streams import stream_seed
from floodsearch.tasks.task import Data, Split, Task
from floodsearch.training.arithmetic import Forward, lay_out
from floodsearch.training.batches import batches, chunks, count
from floodsearch.training.contract import blaming, count_correct, loss_and_correct, new_model
from floodsearch.training.progress import Evaluation, Progress, RunPlan, check_counts
from floodsearch.training.randomness import seed_global

EVALUATION_BATCH = 1024  # samples; bounds the memory of an evaluation: 1 GB for ResNet-34 on 32 x 32 pixels


MOMENTS = {"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer"}
"""Of an optimizer, of each parameter; it writes to memory that it believes to be of the parameter's shape."""


class Run:
    """One training: iterate over it for its records, then ask for the `tested` ones.

    It seeds torch's global generators; whoever needs them afterwards has `borrowed` them before.

    Args:
        task: what is trained.
        plan: how long, and how it is validated.
        seed: fixes all that is random: data, initialisation, order, dropout.
        level: flood level b >= 0, in the unit of the task's loss.
        device: where it trains.
        data: of the seed, on the device; drawn by the task if None.

    """

    def __init__(
        self,
        task: Task,
        plan: RunPlan,
        *,
        seed: int,
        level: float,
        device: torch.device,
        data: Data | None = None,
    ) -> None:
        self.task, self.plan, self.seed, self.device = task, plan, seed, device
        data = data or task.draw(seed, device)
        self.train, self.validation, self.test = data.train, data.validation, data.test
        self.model = lay_out(new_model(task, seed, device, self.train), plan.arithmetic)
        self.forward = Forward(self.model, plan.arithmetic)
        self.dropout_seed = stream_seed(seed, "dropout") >> 1  # room to add the number of the step
        self.optimizer = task.optimizer(self.model.parameters(), task.recipe)
        self.progress = Progress(plan, seed=seed, level=level, samples=len(self.validation.inputs))
        self.best_weights: dict[str, Tensor] = {}

    @property
    def epoch(self) -> int:
        """Epochs trained so far."""
        return self.progress.epoch

    @property
    def lowest(self) -> float:
        """The lowest batch loss of the last epoch, in the unit of the task's loss."""
        return self.progress.lowest

    def __iter__(self) -> Iterator[EpochRecord]:
        """Train to the end, yielding one record an epoch.

        Raises:
            DivergedError: when a batch loss is NaN or infinite.
        """
        while self.epoch < self.plan.epochs:
            yield self.advance()

    def advance(self) -> EpochRecord:
        """Train one more epoch and return its record.

        Raises:
            DivergedError: when a batch loss is NaN or infinite.
            TaskError: when the task gives what it must not.
        """
        progress = self.progress
        with blaming(self.train, "training", first=self.epoch == 0):
            record = self._train_epoch(self.epoch + 1)
        if progress.due:
            steps = count(self.train, self.task.recipe.batch_size)
            validation = self._evaluated(self.validation)
            with blaming(self.validation, "validation", first=progress.best is None):
                record = progress.add_validation(record, validation, step=steps)
            if progress.best is record:
                self.best_weights = {name: value.clone() for name, value in self.model.state_dict().items()}
        return progress.end_epoch(record)

    def sibling(self, level: float) -> Run:
        """Return a new run of the same seed at another level, which shares the data.

        Its model is made anew: a copy would hold what training left outside of this run's state.
        """
        data = Data(self.train, self.validation, self.test)
        return Run(self.task, self.plan, seed=self.seed, level=level, device=self.device, data=data)

    def take_up(self, state: dict[str, Any]) -> None:
        """Go on from the `state` of a run at another level, as if it had been trained at this one."""
        self._load(state)
        self.progress.take_up(state)

    def _train_epoch(self, epoch: int) -> EpochRecord:
        level = self.progress.level
        for group in self.optimizer.param_groups:
            group["lr"] = self.task.recipe.learning_rate_at(epoch)
        losses: list[Tensor] = []  # of each batch, (), left on the device: looking at one would wait for it
        sizes: list[int] = []
        correct: list[Tensor] = []  # likewise, (); how many of each batch
        self.model.train()
        size = self.task.recipe.batch_size
        steps_before = (epoch - 1) * count(self.train, size)
        prepared = batches(self.train, size, self.seed, epoch, self.task.prepare)
        for step, (inputs, labels) in enumerate(prepared, steps_before):
            # Seeding each step makes a run independent of whatever else trains in this process.
            seed_global(self.dropout_seed + step, self.device)
            loss, right = loss_and_correct(self.task, self.forward(inputs), labels)
            self.optimizer.zero_grad(set_to_none=True)
            flood(loss, level).backward()
            self.optimizer.step()
            losses.append(loss.detach())
            sizes.append(len(inputs))
            if right is not None:
                correct.append(right)
        return self.progress.end_training(read(losses), sizes, read(correct))

    def tested(self) -> list[EpochRecord]:
        """Return the records of the best validation epoch and of the last one, with test metrics.

        They replace the records that the iteration gave for those epochs. One record, if they are the same.
        """
        if self.progress.last is None or self.progress.best is None:
            return []
        last = self._with_test(self.progress.last)
        if self.progress.best.epoch == last.epoch:
            return [last]
        weights = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.model.load_state_dict(self.best_weights)
        best = self._with_test(self.progress.best)
        self.model.load_state_dict(weights)
        return [best, last]

    def model_weights(self, keep: Keep) -> dict[str, Any]:
        """Return the model's `state_dict`: after the `last` epoch, or of the `best` validation."""
        return self.best_weights if keep == "best" else self.model.state_dict()

    def _with_test(self, record: EpochRecord) -> EpochRecord:
        return with_test(record, self._evaluated(self.test))

    def _evaluated(self, split: Split) -> Evaluation:
        return evaluate(self.model, self.task, split, self.plan.arithmetic)

    def state(self, into: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return all that a new `Run` of the same task, plan, seed and device needs to go on from here.

        No generator is in it: order and dropout are seeded from (seed, epoch) and (seed, step).

        Args:
            into: a state of this run that nobody needs any more; its memory is used again.
        """
        now = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        before = None if into is None else {name: into[name] for name in now}
        return {
            **self.progress.state(),
            **copy_state(now, before),  # training goes on in place
            "best_weights": self.best_weights,  # replaced as a whole, never changed
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a `state`, which stays as it is.

        Raises:
            Exception: if it is none of this model and optimizer.
        """
        self._load(state)
        self.progress.restore(state)

    def _load(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))  # it keeps what it is given
        for parameter, kept in self.optimizer.state.items():
            for name in MOMENTS & kept.keys():
                if isinstance(kept[name], Tensor) and kept[name].shape != parameter.shape:
                    raise ValueError(f"{name} of the optimizer is not of its parameter's shape")
        self.best_weights = state["best_weights"]


def with_test(record: EpochRecord, test: Evaluation) -> EpochRecord:
    """Return a record with test metrics."""
    return replace(
        record,
        test_loss=test.loss,
        test_accuracy=test.accuracy,
        test_accuracy_clean=test.accuracy_clean,
    )


def copy_state(now: dict[str, Any], into: dict[str, Any] | None) -> dict[str, Any]:
    """Return a copy of nested tensors, in the memory of an earlier one where that has the same shapes.

    For five layers of 500 units that takes a third of the time of new memory.
    """
    targets: list[Tensor] = []
    sources: list[Tensor] = []

    def copy_of(one: Any, before: Any) -> Any:
        if not isinstance(one, Tensor):
            return copy.deepcopy(one)
        if not isinstance(before, Tensor) or (before.shape, before.dtype) != (one.shape, one.dtype):
            return one.clone()  # not deepcopy, which copies all of the memory that a tensor is a part of
        targets.append(before)
        sources.append(one)
        return before

    taken: dict[str, Any] = map_leaves(copy_of, now, into)
    if targets:
        # Private, without a public equal: one kernel for all tensors, where `copy_` launches one for each.
        torch._foreach_copy_(targets, sources)
    return taken


def read(values: list[Tensor]) -> list[float]:
    """Return tensors of one number each, from another device in one transfer."""
    if values and values[0].device.type != "cpu":
        return [float(value) for value in torch.stack(values).tolist()]
    return [float(value) for value in values]


@torch.no_grad()
def evaluate(model: nn.Module, task: Task, split: Split, arithmetic: Arithmetic = PLAIN) -> Evaluation:
    """Return the plain loss and the accuracies on a split, in eval mode."""
    model.eval()
    forward = Forward(model, arithmetic, compiled=False)  # each other shape would be compiled anew
    loss, correct, clean = 0.0, 0.0, 0.0
    for part in chunks(split, EVALUATION_BATCH, task.prepare):
        outputs = forward(part.inputs)
        if task.correct is not None and part.clean_labels is not None:
            clean += float(count_correct(task.correct, outputs.clone(), part.clean_labels))
        mean, right = loss_and_correct(task, outputs, part.labels)
        loss += float(mean) * len(part.inputs)
        correct += 0.0 if right is None else float(right)
    n = len(split.inputs)
    known = task.correct is not None
    check_counts(correct, n)
    return Evaluation(
        loss=loss / n,
        accuracy=correct / n if known else None,
        accuracy_clean=clean / n if known and split.clean_labels is not None else None,
    )
