"""Runs side by side: their parameters, buffers and optimizer state, each as one tensor for all of them."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from floodsearch.records import EpochRecord, Keep
from floodsearch.tasks.task import Data, Task
from floodsearch.training.contract import new_model
from floodsearch.training.progress import Evaluation, Progress, RunPlan
from floodsearch.training.run import copy_state, evaluate, with_test

WIDTH = 32
"""Lanes of a stack: two vectors of AVX-512, so that no tensor has a tail."""

Key = tuple[str, str]
"""A tensor of a lane: what it is, such as `weight` or `exp_avg`, and the name of the parameter or buffer."""


class SeedInit:
    """The start that all runs of a seed have in common: its data, and its initialisation.

    Args:
        task: what is trained.
        plan: how long, and how it is validated.
        seed: of the runs.
        device: where they train.
        data: the three splits, on the device; drawn by the task if None.
    """

    def __init__(
        self,
        task: Task,
        plan: RunPlan,
        *,
        seed: int,
        device: torch.device,
        data: Data | None = None,
    ) -> None:
        self.task, self.plan, self.seed = task, plan, seed
        data = data or task.draw(seed, device)
        self.train, self.validation, self.test = data.train, data.validation, data.test
        self.model = new_model(task, seed, device, self.train)  # where weights are put to be tested
        self.weights = {("weight", name): one.detach().clone() for name, one in named(self.model).items()}

    @property
    def shape(self) -> tuple[torch.Size, ...]:
        """The shapes of the data."""
        parts = (self.train, self.validation)
        return tuple(tensor.shape for part in parts for tensor in (part.inputs, part.labels))

    def evaluate(self, weights: Mapping[str, Tensor]) -> Evaluation:
        """Return loss and accuracies of the model with these weights on the test split."""
        return evaluate(self.model_of(weights), self.task, self.test, self.plan.arithmetic)

    @torch.no_grad()
    def model_of(self, weights: Mapping[str, Tensor]) -> nn.Module:
        """Return the seed's one model with these weights in it; the next call puts others there."""
        for name, tensor in named(self.model).items():
            tensor.copy_(weights[name])
        return self.model


class Lane:
    """A run in a stack, or parked beside it; the counterpart of `Run`, but only a `Stack` trains it."""

    def __init__(self, init: SeedInit, level: float) -> None:
        self.init = init
        samples = len(init.validation.inputs)
        self.progress = Progress(init.plan, seed=init.seed, level=level, samples=samples)
        self.best_weights: dict[str, Tensor] = {}
        self.seat: tuple[Lanes, int] | None = None
        self.parked: Mapping[Key, Tensor] = init.weights  # while it has no seat; what is missing is 0

    @property
    def epoch(self) -> int:
        """Epochs trained so far."""
        return self.progress.epoch

    @property
    def lowest(self) -> float:
        """The lowest batch loss of the last epoch, in the unit of the task's loss."""
        return self.progress.lowest

    @property
    def kind(self) -> object:
        """The epoch and the shapes of the data: lanes for which these are equal can share a stack."""
        return self.epoch, self.init.shape

    @property
    def index(self) -> int:
        """Its place in the stack where it has a seat."""
        if self.seat is None:
            raise RuntimeError("a parked run has no place")
        return self.seat[1]

    def sibling(self, level: float) -> Lane:
        """Return a new run of the same seed at another level, which shares the data."""
        return Lane(self.init, level)

    def tensors(self) -> Mapping[Key, Tensor]:
        """Return its tensors, which training changes."""
        if self.seat is None:
            return self.parked
        lanes, index = self.seat
        return {key: tensor[index] for key, tensor in lanes.tensors.items()}

    def weights(self) -> dict[str, Tensor]:
        """Return a copy of its parameters and buffers, by name."""
        return {name: tensor.clone() for (what, name), tensor in self.tensors().items() if what == "weight"}

    def park(self) -> None:
        """Give up its seat and keep its tensors."""
        if self.seat is not None:
            self.parked = {key: tensor.clone() for key, tensor in self.tensors().items()}
            lanes, index = self.seat
            lanes.seats[index] = None
            self.seat = None

    def state(self, into: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return all that another run of the same seed needs to go on from here (see `Run.state`)."""
        now, before = {"tensors": dict(self.tensors())}, None
        if into is not None:
            before = {"tensors": into["tensors"]}
        return {**self.progress.state(), **copy_state(now, before), "best_weights": self.best_weights}

    def take_up(self, state: dict[str, Any]) -> None:
        """Go on from the `state` of a run at another level, as if it had been trained at this one."""
        self.park()
        self.parked, self.best_weights = state["tensors"], state["best_weights"]
        self.progress.take_up(state)

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a `state`, which stays as it is."""
        self.take_up(state)
        self.progress.restore(state)

    def tested(self) -> list[EpochRecord]:
        """Return the records of the best validation epoch and of the last one, with test metrics."""
        last, best = self.progress.last, self.progress.best
        if last is None or best is None:
            return []
        of_last = with_test(last, self.init.evaluate(self.weights()))
        if best.epoch == last.epoch:
            return [of_last]
        return [with_test(best, self.init.evaluate(self.best_weights)), of_last]

    def model_weights(self, keep: Keep) -> dict[str, Any]:
        """Return the model's `state_dict`: after the `last` epoch, or of the `best` validation."""
        weights = self.best_weights if keep == "best" else self.weights()
        # Of a model: its names are not those of a lane where parameters are shared or buffers not kept.
        return copy_state(self.init.model_of(weights).state_dict(), None)


class Lanes:
    """`WIDTH` seats for runs whose tensors lie side by side, with one optimizer over all of them."""

    def __init__(self, model: nn.Module, task: Task) -> None:
        self.seats: list[weakref.ref[Lane] | None] = [
            None
        ] * WIDTH  # weak: a run that its cohort let go frees its seat
        trainable = {name for name, one in model.named_parameters() if one.requires_grad}
        weights = {name: _zeros_of(one) for name, one in named(model).items()}
        self.parameters = {name: nn.Parameter(one) for name, one in weights.items() if name in trainable}
        self.fixed = {name: one for name, one in weights.items() if name not in trainable}
        self.optimizer = task.optimizer(self.parameters.values(), task.recipe)
        self.tensors: dict[Key, Tensor] = {("weight", name): one for name, one in weights.items()}
        self._steps: list[Tensor] = []
        self._make_optimizer_state()

    def _make_optimizer_state(self) -> None:
        """Let the optimizer make its state now, all zeros: a step of zeros from zero."""
        for parameter in self.parameters.values():
            parameter.grad = torch.zeros_like(parameter)
        self.optimizer.step()
        for name, parameter in self.parameters.items():
            for what, value in self.optimizer.state[parameter].items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    self.tensors[what, name] = value
                elif isinstance(value, Tensor):  # of all lanes together: how many steps there were
                    self._steps.append(value)

    def here(self) -> list[Lane]:
        """Return the lanes that are alive."""
        return [lane for seat in self.seats if seat is not None and (lane := seat()) is not None]

    def free(self) -> list[int]:
        """Return the indices of the seats that nobody needs."""
        return [index for index, seat in enumerate(self.seats) if seat is None or seat() is None]

    def take_in(self, lane: Lane, index: int) -> None:
        """Give a parked lane a seat."""
        for key, tensor in self.tensors.items():
            if key in lane.parked:
                tensor[index].copy_(lane.parked[key])
            else:
                tensor[index].zero_()  # of the optimizer, before the first step of the lane
        lane.parked, lane.seat = {}, (self, index)
        self.seats[index] = weakref.ref(lane)

    def set_out(self, learning_rate: float, steps: int) -> None:
        """Prepare an epoch: its learning rate, and the number of steps that were before it."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        for count in self._steps:
            count.fill_(steps)

    def by_seat(self) -> list[Lane]:
        """Return for each seat the lane whose batches it computes: on a free seat, that of another lane.

        A stack is always `WIDTH` wide; what a free seat comes to is not read.
        """
        anybody = self.here()[0]
        return [(seat and seat()) or anybody for seat in self.seats]


def _zeros_of(tensor: Tensor) -> Tensor:
    return torch.zeros((WIDTH, *tensor.shape), dtype=tensor.dtype, device=tensor.device)


def named(model: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers of a model, by name."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}
