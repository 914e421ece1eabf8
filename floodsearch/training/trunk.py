"""The unflooded run of a seed, with its past: what it recorded, and states from which levels fork.

A trunk outlives the cohort that trained it. Those who come later are given its records for nothing, and fork
from the last state that is kept before their level was crossed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from floodsearch.records import EpochRecord
from floodsearch.tasks.task import Task
from floodsearch.training.run import Plan, Run

ROUNDING = 1e-6
"""A level within this share of a batch loss may equal it in single precision. Forking early is exact too."""

State = dict[str, Any]


class Trunk:
    """The run of a seed at level 0, trained as far as it was asked for.

    Args:
        task: what is trained.
        plan: how long, and how it is validated.
        seed: of the run.
        device: where it trains.
        room: bytes for the states of its past. Where they do not suffice every second one is let go, and a
            level that forks later repeats the epochs since the state before.
        lowest_level: no lower level ever forks; below it nothing is kept. In the unit of the task's loss.

    Attributes:
        records: of each epoch trained so far.
        error: what ended its training, after which it is of no use to others.
    """

    def __init__(
        self,
        task: Task,
        plan: Plan,
        *,
        seed: int,
        device: torch.device,
        room: int = 0,
        lowest_level: float = 0.0,
    ) -> None:
        self.run = Run(task, plan, seed=seed, level=0.0, device=device)
        self.room, self.lowest_level = room, lowest_level
        self.records: list[EpochRecord] = []
        self.error: BaseException | None = None
        self._lowest: list[float] = []  # batch loss of each epoch
        self._before: tuple[int, State] | None = None  # the last epoch, and the state at its start
        self._kept: dict[int, State] = {}  # states by their epoch, ascending
        self._tested: list[EpochRecord] | None = None

    def reach(self, epoch: int, *, forks: bool) -> int:
        """Train up to an epoch, if it is not that far yet.

        Args:
            epoch: to be recorded.
            forks: whether a level may fork in the epochs to come.

        Returns:
            How many epochs that took.

        Raises:
            DivergedError: when a batch loss is NaN or infinite.
        """
        known = len(self.records)
        while len(self.records) < epoch:
            if self.error is not None:
                raise self.error
            try:
                self._advance(forks=forks)
            except BaseException as error:
                self.error = error
                raise
        return len(self.records) - known

    def _advance(self, *, forks: bool) -> None:
        so_far = min(self._lowest, default=math.inf)
        keeps = self.room > 0 and so_far > self.lowest_level
        if forks or keeps:
            at, state = self._before or (0, None)
            self._before = self.run.epoch, self.run.state(None if at in self._kept else state)
        self.records.append(self.run.advance())
        self._lowest.append(self.run.lowest)
        if keeps and self.run.lowest < so_far and self._before is not None:
            self._kept.update([self._before])
            self._make_room()

    def _make_room(self) -> None:
        most = max(1, self.room // max(1, _size(next(iter(self._kept.values())))))
        if len(self._kept) > most:
            self._kept = dict(list(self._kept.items())[::2])

    def crossed(self, epoch: int, level: float) -> bool:
        """Return whether a batch loss of an epoch was at or below a level, with that level's first step.

        Not "below": a batch loss that equals the level, rounded as the loss is, has no gradient.
        """
        lowest = self._lowest[epoch - 1]
        return level >= lowest - ROUNDING * abs(lowest)

    def fork(self, epoch: int, level: float) -> tuple[Run, int]:
        """Return the run of a level at the start of an epoch, and how many epochs it repeated to get there.

        It is the run that would have been trained at that level from the start, as long as no batch loss was
        below the level before that epoch: until then, a constant level changes nothing.
        """
        states = {**self._kept, **dict([self._before] if self._before else [])}
        since = max((at for at in states if at < epoch), default=None)
        fork = self.run.sibling(level)
        if since is not None:
            fork.take_up(states[since])
        repeated = range(fork.epoch, epoch - 1)
        for _ in repeated:
            fork.advance()
        return fork, len(repeated)

    def forget(self, epoch: int) -> None:
        """Let go of all states before an epoch, and keep no new ones: nobody will ask for them."""
        self.room = 0
        self._kept = {at: state for at, state in self._kept.items() if at >= epoch}

    def tested(self) -> list[EpochRecord]:
        """Return the records of the best validation epoch and of the last one, with test metrics."""
        if self._tested is None:
            self._tested = self.run.tested()
        return self._tested


class Trunks:
    """The trunks of a task and a plan by seed, made when they are first asked for.

    Args:
        task: what is trained.
        plan: how long, and how it is validated.
        device: where they train.
        room: bytes for the past of each.
        lowest_level: no lower level ever forks from them.
    """

    def __init__(
        self, task: Task, plan: Plan, device: torch.device, *, room: int = 0, lowest_level: float = 0.0
    ) -> None:
        self.task, self.plan, self.device = task, plan, device
        self.room, self.lowest_level = room, lowest_level
        self._by_seed: dict[int, Trunk] = {}

    def of(self, seed: int) -> Trunk:
        """Return the trunk of a seed."""
        if seed not in self._by_seed:
            self._by_seed[seed] = Trunk(
                self.task,
                self.plan,
                seed=seed,
                device=self.device,
                room=self.room,
                lowest_level=self.lowest_level,
            )
        return self._by_seed[seed]

    def fork_above(self, level: float) -> None:
        """Keep no state behind the epoch from which a level is the only one that may still fork."""
        self.lowest_level = level
        for trunk in self._by_seed.values():
            trunk.lowest_level = level

    def drop_broken(self) -> None:
        """Let go of those whose training raised; they are trained again when they are asked for."""
        self._by_seed = {seed: trunk for seed, trunk in self._by_seed.items() if trunk.error is None}


def _size(state: State) -> int:
    """Return the bytes of a state's tensors."""
    return sum(tensor.nbytes for tensor in _tensors(state))


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _tensors(part)
