"""The unflooded run of a seed, with its past: what it recorded, and states from which levels fork.

A trunk outlives the cohort that trained it. Those who come later are given its records for nothing, and fork
from the last state that is kept before their level was crossed.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from floodsearch.artifacts.checkpoint import Checkpoint, rows
from floodsearch.artifacts.trees import leaves
from floodsearch.errors import pass_on_ctrl_c
from floodsearch.records import EpochRecord
from floodsearch.training.engine import AnyRun, Engine, RunOutcome
from floodsearch.training.progress import pack, unpack

ROUNDING = 1e-6
"""A level within this share of a batch loss may equal it in single precision. Forking early is exact too."""

State = dict[str, Any]

CheckpointOf = Callable[[int, int | None], Checkpoint]
"""(seed, epoch) to the checkpoint of a trunk as of an epoch of its past, or with None as of its last one."""

log = logging.getLogger(__name__)


class Trunk:
    """The run of a seed at level 0, trained as far as it was asked for.

    Args:
        engine: what trains it.
        seed: of the run.
        room: bytes for the states of its past. Where they do not suffice every second one is let go, and a
            level that forks later repeats the epochs since the state before.
        lowest_level: no lower level ever forks; below it nothing is kept. In the unit of the task's loss.
        checkpoint_of: its checkpoints, from which it goes on; None where there is no folder for them.

    Attributes:
        records: of each epoch trained so far.
        error: what ended its training, after which it is of no use to others.
    """

    def __init__(
        self,
        engine: Engine,
        seed: int,
        *,
        room: int = 0,
        lowest_level: float = 0.0,
        checkpoint_of: CheckpointOf | None = None,
    ) -> None:
        self.engine, self.run = engine, engine.new_run(seed, 0.0)
        self.seed, self.checkpoint_of = seed, checkpoint_of
        self.room, self.lowest_level = room, lowest_level
        self.records: list[EpochRecord] = []
        self.error: BaseException | None = None
        self._lowest: list[float] = []  # batch loss of each epoch
        self._before: tuple[int, State] | None = None  # the last epoch, and the state at its start
        self._kept: dict[int, State] = {}  # states by their epoch, ascending
        self._tested: list[EpochRecord] | None = None
        self._on_disk: set[int] = set()  # epochs of the past whose states are in checkpoints
        self._saved = 0  # the epoch of the last checkpoint
        self._go_on()

    def _go_on(self) -> None:
        """Go on from the checkpoints, if there are any."""
        if self.checkpoint_of is None:
            return
        saved = self.checkpoint_of(self.seed, None).load("epoch", "records", "lowest", "past", "state")
        if saved is None:
            return
        try:
            records, lowest = saved["records"], list(map(float, saved["lowest"]))
            past = sorted(map(int, saved["past"]))
            self.run.restore(unpack(saved["state"]))
            if not len(lowest) == len(records) == self.run.epoch:
                raise ValueError("its parts are not of one epoch")
        except Exception as error:  # whatever a model says against weights of another
            log.warning("the unflooded run of seed %d starts again: %s", self.seed, error)
            self.run = self.engine.new_run(self.seed, 0.0)
            return
        self.records, self._lowest, self._saved = records, lowest, len(records)
        for epoch in past if self.room > 0 else ():
            kept = self.checkpoint_of(self.seed, epoch).load("state") or {}
            with contextlib.suppress(Exception):  # a level that forks there repeats more epochs
                self._kept[epoch] = unpack(kept["state"])
                self._on_disk.add(epoch)
        if self._kept:
            self._make_room()

    def save(self) -> None:
        """Save the run and its past, so that another process can go on from here and fork as this one.

        Nothing is written where another worker has come as far.

        Raises:
            OSError, RuntimeError: if it cannot be written.
        """
        if self.checkpoint_of is None or self.error is not None or len(self.records) == self._saved:
            return
        last = self.checkpoint_of(self.seed, None)
        if last.epoch() >= len(self.records):
            return  # another worker has come further
        for epoch in self._kept.keys() - self._on_disk:
            self.checkpoint_of(self.seed, epoch).save({"epoch": epoch, "state": pack(self._kept[epoch])})
            self._on_disk.add(epoch)
        last.save(
            {
                "epoch": len(self.records),
                "records": rows(self.records),
                "lowest": self._lowest,
                "past": sorted(self._kept),
                "state": pack(self.run.state()),
            }
        )
        self._saved = len(self.records)

    def _begin(self, *, forks: bool) -> None:
        """Keep the state at the start of an epoch, if a level may fork there now or later."""
        if forks or self._keeps():
            at, state = self._before or (0, None)
            # The memory of the last state is used again, unless that state is kept for later.
            self._before = self.run.epoch, self.run.state(None if at in self._kept else state)

    def _keeps(self) -> bool:
        return self.room > 0 and min(self._lowest, default=math.inf) > self.lowest_level

    def _end(self, outcome: RunOutcome) -> None:
        """Take in the record of an epoch, or the error that ended it."""
        if isinstance(outcome, BaseException):
            self.error = outcome
            if self.checkpoint_of is not None:
                # The next one begins anew: it may be what this one went on from.
                self.checkpoint_of(self.seed, None).remove()
            return
        keeps, so_far = self._keeps(), min(self._lowest, default=math.inf)
        self.records.append(outcome)
        self._lowest.append(self.run.lowest)
        if keeps and self.run.lowest < so_far and self._before is not None:
            self._kept.update([self._before])
            self._make_room()

    def _make_room(self) -> None:
        most = max(1, self.room // max(1, _size(next(iter(self._kept.values())))))
        if len(self._kept) > most:
            # Every second one goes, so that those that stay are spread evenly over the epochs.
            self._kept = dict(list(self._kept.items())[::2])

    def crossed(self, epoch: int, level: float) -> bool:
        """Return whether a batch loss of an epoch was at or below a level, with that level's first step.

        Not "below": a batch loss that equals the level, rounded as the loss is, has no gradient.
        """
        lowest = self._lowest[epoch - 1]
        return level >= lowest - ROUNDING * abs(lowest)

    @property
    def lowest(self) -> float | None:
        """The lowest loss of a batch in all epochs; None before the first."""
        return min(self._lowest, default=None)

    def fork(self, epoch: int, level: float) -> AnyRun:
        """Return the run of a level as of the start of an epoch, or as near before it as there is a state.

        It is the run that would have been trained at that level from the start, as long as no batch loss was
        below the level before that epoch: until then, a constant level changes nothing.
        """
        states = {**self._kept, **dict([self._before] if self._before else [])}
        since = max((at for at in states if at < epoch), default=None)
        fork = self.run.sibling(level)
        if since is not None:
            fork.take_up(states[since])
        return fork

    def forget(self, epoch: int) -> None:
        """Let go of all states before an epoch, and keep no new ones: nobody will ask for them."""
        self.room = 0
        self._kept = {at: state for at, state in self._kept.items() if at >= epoch}

    def tested(self) -> list[EpochRecord]:
        """Return the records of the best validation epoch and of the last one, with test metrics."""
        if self._tested is None:
            self._tested = self.run.tested()
        return self._tested


def train(engine: Engine, trunks: Mapping[Trunk, bool], others: Sequence[AnyRun] = ()) -> list[RunOutcome]:
    """Train trunks one epoch further, and other runs with them.

    Args:
        engine: of all of them.
        trunks: with whether a level may fork from each in the epochs to come.
        others: runs that have left their trunks.

    Returns:
        What the epoch came to, of each of the others.
    """
    for trunk, forks in trunks.items():
        try:
            trunk._begin(forks=forks)
        except BaseException as error:  # not every model can be copied
            pass_on_ctrl_c(error)
            trunk._end(error)
    ready = [trunk for trunk in trunks if trunk.error is None]
    try:
        outcomes = engine.advance([*(trunk.run for trunk in ready), *others])
    except BaseException as error:
        for trunk in ready:
            trunk.error = error
        raise
    for trunk, outcome in zip(ready, outcomes, strict=False):
        trunk._end(outcome)
    return outcomes[len(ready) :]


class TrunkPool:
    """The trunks of one engine by seed, made when they are first asked for.

    Args:
        engine: what trains them.
        room: bytes for the past of each.
        lowest_level: no lower level ever forks from them.
        checkpoint_of: their checkpoints; None where there is no folder for them.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        room: int = 0,
        lowest_level: float = 0.0,
        checkpoint_of: CheckpointOf | None = None,
    ) -> None:
        self.engine, self.room, self.lowest_level = engine, room, lowest_level
        self.checkpoint_of = checkpoint_of
        self._by_seed: dict[int, Trunk] = {}

    def of(self, seed: int) -> Trunk:
        """Return the trunk of a seed."""
        if seed not in self._by_seed:
            self._by_seed[seed] = Trunk(
                self.engine,
                seed,
                room=self.room,
                lowest_level=self.lowest_level,
                checkpoint_of=self.checkpoint_of,
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
    return sum(one.nbytes for one in leaves(state) if isinstance(one, Tensor))
