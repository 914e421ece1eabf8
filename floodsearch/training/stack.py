"""Runs trained as stacks: their parameters side by side in one tensor, one kernel for all of them.

Adam, AdamW and SGD act element by element, so each run trains as if alone, and forking or moving one is an
index. What a run comes to depends neither on how many others there are nor on where it lies:

- Every stack is `WIDTH` lanes wide, used or not. Kernels differ with the shapes, and a CPU's also between the
  body and the tail of a tensor, where the last numbers do not fill a vector. Measured on a CPU with AVX-512:
  without this, stacks of 2 and 3, or of 16 and 32 with BatchNorm over seven features, differ in rounding.
  With a multiple of 32 lanes there is no tail.
- A product's kernel may differ also with where in memory a lane begins, as MKL's do on AMD's CPUs. Processes
  that train tell it not to (`defaults.REPRODUCIBLE`), and each worker looks whether places are alike on its
  machine (`stackable.depends_on_place`). Measured on Intel and AMD: with it, they are.
- Runs of all seeds share a stack, each with its own batch: measured, that costs what one batch for all does,
  and the few trunks that a search begins with fill one stack instead of one for each seed.

Against training one after the other the results differ by rounding.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from floodsearch.errors import DivergedError, TaskError, pass_on_ctrl_c
from floodsearch.flooding.loss import flood
from floodsearch.records import EpochRecord
from floodsearch.tasks.task import Task
from floodsearch.training.arithmetic import compute
from floodsearch.training.batches import batches, chunks, count
from floodsearch.training.contract import blaming, loss_and_correct
from floodsearch.training.engine import RunOutcome
from floodsearch.training.lanes import WIDTH, Lane, Lanes, SeedInit
from floodsearch.training.progress import Evaluation, RunPlan
from floodsearch.training.run import EVALUATION_BATCH

NARROWEST = 2
"""Fewer lanes are not computed at once: the kernels for a single matrix round differently from all others."""
CHUNK = max(1, EVALUATION_BATCH // WIDTH)
"""Samples of each lane that are evaluated at once."""
log = logging.getLogger(__name__)


class Stack:
    """Trains runs side by side (see `floodsearch.training.engine.Engine`).

    Args:
        task: what is trained; there must be no `obstacle` to it.
        plan: how long, and how it is validated.
        device: where it trains.
    """

    kind = "Stack"

    def __init__(self, task: Task, plan: RunPlan, device: torch.device) -> None:
        self.task, self.plan, self.device = task, plan, device
        self.model: nn.Module  # of a run that trains, for its structure: its own weights mean nothing
        self.at_once = WIDTH  # lanes whose gradients are computed together
        self._lanes: list[Lanes] = []
        self._inits: dict[int, SeedInit] = {}

    def new_run(self, seed: int, level: float) -> Lane:
        """Return a run before its first epoch."""
        if seed not in self._inits:
            self._inits[seed] = SeedInit(self.task, self.plan, seed=seed, device=self.device)
        return Lane(self._inits[seed], level)

    def advance(self, runs: Sequence[Lane]) -> list[RunOutcome]:
        """Train each run one epoch further; return an outcome for each."""
        outcomes: dict[int, RunOutcome] = {}
        for together in _alike(runs):
            self.model = together[0].init.model
            try:
                for lanes in self._seated(together):
                    outcomes |= {id(lane): outcome for lane, outcome in self._advance(lanes).items()}
            except BaseException as error:  # they run the same code on the same shapes
                pass_on_ctrl_c(error)
                outcomes |= {id(lane): error for lane in together if id(lane) not in outcomes}
        return [outcomes[id(run)] for run in runs]

    def _seated(self, together: Sequence[Lane]) -> list[Lanes]:
        """Give each of some lanes a seat on as few stacks as they fill, without others; return the stacks."""
        # Lanes that train at another time make room, and so do chosen ones on stacks that are not needed.
        chosen = set(map(id, together))
        used = [lanes for lanes in self._lanes if any(id(lane) in chosen for lane in lanes.here())]
        for lane in (lane for lanes in used for lane in lanes.here() if id(lane) not in chosen):
            lane.park()
        used.sort(key=lambda lanes: len(lanes.here()), reverse=True)
        needed = math.ceil(len(together) / WIDTH)
        for lane in [lane for lanes in used[needed:] for lane in lanes.here()]:
            lane.park()
        empty = [lanes for lanes in self._lanes if not lanes.here()]
        used = used[:needed] + empty[: max(0, needed - len(used))]
        used += [Lanes(self.model, self.task) for _ in range(needed - len(used))]
        seats = ((lanes, index) for lanes in used for index in lanes.free())
        for lane in [lane for lane in together if lane.seat is None]:
            lanes, index = next(seats)
            lanes.take_in(lane, index)
        # One empty stack is kept for later; the memory of the others is given back.
        spare = [lanes for lanes in self._lanes if not lanes.here() and lanes not in used][:1]
        others = [lanes for lanes in self._lanes if lanes.here() and lanes not in used]
        self._lanes = used + others + spare
        return used

    def _advance(self, lanes: Lanes) -> dict[Lane, RunOutcome]:
        """Train the runs of a stack an epoch further."""
        here = lanes.here()
        losses, correct, sizes = self._train_epoch(lanes, here[0].epoch + 1)
        outcomes: dict[Lane, RunOutcome] = {}
        for lane in here:
            own, right = ([row[lane.index] for row in rows] for rows in (losses, correct))
            try:
                with blaming(lane.init.train, "training", first=lane.epoch == 0):
                    outcomes[lane] = lane.progress.end_training(own, sizes, right)
            except (DivergedError, TaskError) as error:
                outcomes[lane] = error
        records = {lane: one for lane, one in outcomes.items() if isinstance(one, EpochRecord)}
        due = any(lane.progress.due for lane in records)
        validations = self._evaluate(lanes) if due else {}
        for lane, record in records.items():
            try:
                outcomes[lane] = _ended(lane, record, validations.get(lane), len(sizes))
            except BaseException as error:
                pass_on_ctrl_c(error)
                outcomes[lane] = error
        return outcomes

    def _train_epoch(
        self, lanes: Lanes, epoch: int
    ) -> tuple[list[list[float]], list[list[float]], list[int]]:
        """Return the losses, (batches, WIDTH), how many were correct, likewise, and the batches' sizes."""
        by_seat, recipe = lanes.by_seat(), self.task.recipe
        drawn = {
            lane.init.seed: batches(
                lane.init.train, recipe.batch_size, lane.init.seed, epoch, self.task.prepare
            )
            for lane in by_seat
        }
        levels = torch.tensor([lane.progress.level for lane in by_seat], dtype=torch.float64).to(self.device)
        steps = count(by_seat[0].init.train, recipe.batch_size)
        lanes.set_out(recipe.learning_rate_at(epoch), (epoch - 1) * steps)
        self.model.train()
        losses: list[Tensor] = []
        correct: list[Tensor] = []
        sizes: list[int] = []
        for batch in zip(*drawn.values(), strict=True):
            inputs, labels = _by_seat(by_seat, dict(zip(drawn, batch, strict=True)))
            loss, right = self._step(lanes, inputs, labels, levels)
            losses.append(loss)
            sizes.append(inputs.shape[1])
            if self.task.correct is not None:
                correct.append(right)
        return torch.stack(losses).tolist(), torch.stack(correct).tolist() if correct else [], sizes

    def _step(self, lanes: Lanes, inputs: Tensor, labels: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
        """Take a step; return the plain losses, (WIDTH,), and how many were correct, (WIDTH,)."""

        def gradients(part: slice) -> tuple[Tensor, ...]:
            parameters = {name: one[part].detach().requires_grad_() for name, one in lanes.parameters.items()}
            fixed = {name: one[part] for name, one in lanes.fixed.items()}
            before = {name: one.clone() for name, one in fixed.items()}
            try:
                flooded, loss, right = vmap(self._member)(
                    parameters, fixed, inputs[part], labels[part], levels[part]
                )
                found = torch.autograd.grad(flooded.sum(), tuple(parameters.values()), materialize_grads=True)
            except torch.OutOfMemoryError:
                for name, one in before.items():  # BatchNorm has moved them already
                    fixed[name].copy_(one)
                raise
            return loss.detach(), right, *found

        loss, right, *found = self._in_parts(gradients)
        for parameter, gradient in zip(lanes.parameters.values(), found, strict=True):
            parameter.grad = gradient.contiguous()  # fused Adam reads memory in order, whatever the strides
        lanes.optimizer.step()
        return loss, right

    def _member(
        self,
        parameters: Mapping[str, Tensor],
        fixed: Mapping[str, Tensor],
        inputs: Tensor,
        labels: Tensor,
        level: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the flooded loss of one lane's batch, the plain one, and how many are correct, each ()."""
        loss, right = _loss_and_correct(self.task, self._outputs(parameters, fixed, inputs), labels)
        return flood(loss, level.to(loss.dtype)), loss, right

    def _outputs(self, parameters: Mapping[str, Tensor], fixed: Mapping[str, Tensor], inputs: Tensor) -> Any:
        """Return the outputs of the model for one lane's inputs, with its parameters and fixed tensors."""
        weights = dict(parameters), dict(fixed)
        return compute(
            lambda: functional_call(self.model, weights, (inputs,)), self.plan.arithmetic, self.device
        )

    @torch.no_grad()
    def _evaluate(self, lanes: Lanes) -> dict[Lane, Evaluation]:
        """Return the loss and accuracy of each run on its validation split, in eval mode."""
        by_seat = lanes.by_seat()
        parts = {lane.init.seed: chunks(lane.init.validation, CHUNK, self.task.prepare) for lane in by_seat}
        self.model.eval()
        loss = torch.zeros(WIDTH, dtype=torch.float64, device=self.device)
        right = torch.zeros(WIDTH, dtype=torch.float64, device=self.device)
        samples = len(by_seat[0].init.validation.inputs)
        for drawn in zip(*parts.values(), strict=True):
            batch = {seed: (one.inputs, one.labels) for seed, one in zip(parts, drawn, strict=True)}
            one_loss, one_right = self._assess(lanes, *_by_seat(by_seat, batch))
            loss += one_loss.double() * len(drawn[0].inputs)
            right += one_right.double()
        accuracies = (right / samples).tolist() if self.task.correct is not None else [None] * WIDTH
        found = list(zip((loss / samples).tolist(), accuracies, strict=True))
        return {lane: Evaluation(*found[lane.index]) for lane in lanes.here()}

    def _assess(self, lanes: Lanes, inputs: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        """Return the mean losses of a batch, (WIDTH,), and how many are correct, (WIDTH,)."""

        def assess(parameters: Any, fixed: Any, inputs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            return _loss_and_correct(self.task, self._outputs(parameters, fixed, inputs), labels)

        def part_of(part: slice) -> tuple[Tensor, ...]:
            parameters = {name: one[part] for name, one in lanes.parameters.items()}
            fixed = {name: one[part] for name, one in lanes.fixed.items()}
            found: tuple[Tensor, ...] = vmap(assess)(parameters, fixed, inputs[part], labels[part])
            return found

        return self._in_parts(part_of)

    def _in_parts(self, work: Callable[[slice], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """Do some work for all lanes at once, or where the memory does not suffice, for ever fewer."""
        done: list[tuple[Tensor, ...]] = []
        first = 0
        while first < WIDTH:
            try:
                done.append(work(slice(first, first + self.at_once)))
                first += self.at_once
            except torch.OutOfMemoryError:
                if self.at_once <= NARROWEST:
                    raise
                self.at_once //= 2
                log.warning("out of memory: from now on %d runs of a stack train at once", self.at_once)
        return done[0] if len(done) == 1 else tuple(torch.cat(some) for some in zip(*done, strict=True))


def _ended(lane: Lane, record: EpochRecord, validation: Evaluation | None, steps: int) -> EpochRecord:
    """Note the end of an epoch and keep the weights of the best one."""
    if validation is not None:
        with blaming(lane.init.validation, "validation", first=lane.progress.best is None):
            record = lane.progress.add_validation(record, validation, step=steps)
        if lane.progress.best is record:
            lane.best_weights = lane.weights()
    return lane.progress.end_epoch(record)


def _alike(runs: Iterable[Lane]) -> Iterator[list[Lane]]:
    """Yield runs in groups that can share a stack."""
    groups: dict[str, list[Lane]] = {}
    for run in runs:
        groups.setdefault(repr(run.kind), []).append(run)
    yield from groups.values()


def _by_seat(lanes: Sequence[Lane], batch: Mapping[int, tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Return inputs and labels of each lane's seed, both (WIDTH, n, ...)."""
    inputs = torch.stack([batch[lane.init.seed][0] for lane in lanes])
    labels = torch.stack([batch[lane.init.seed][1] for lane in lanes])
    return inputs, labels


def _loss_and_correct(task: Task, outputs: Any, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the loss of one lane's batch, and how many are correct, each ()."""
    loss, right = loss_and_correct(task, outputs, labels)
    # A function under `vmap` has to return a tensor in each place.
    return loss, torch.zeros((), device=labels.device) if right is None else right
