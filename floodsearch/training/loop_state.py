"""What a run of a user's training loop goes on from when its function is called again."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from floodsearch.answer.values import best_validation
from floodsearch.artifacts.checkpoint import PLAIN, Checkpoint, Pace, rows, strange
from floodsearch.artifacts.trees import MAPPINGS
from floodsearch.errors import LoopError, MistakeError
from floodsearch.records import EpochRecord, field_of
from floodsearch.training import randomness
from floodsearch.training.progress import RunPlan
from floodsearch.training.run import copy_state

PARTS = ("epoch", "records", "objects", "random", "lowest")
"""What a checkpoint of a run holds at least."""

STATE = "run.state"
"""What a run calls its own dict."""
MUTABLE = (*MAPPINGS, list)
"""The containers of plain values that a checkpoint can bring back: they are filled in place."""

Claim = Callable[[str, Any], str | None]
"""(name, object) to what is wrong with it as a part of a run's state, or None."""

log = logging.getLogger(__name__)


class LoopState:
    """The objects that a loop trains, the records of its epochs, and the weights that are kept of it.

    Args:
        plan: of the run.
        device: where it trains.
        checkpoint: of the run.
        saved: its content, from an earlier part of the run; None at the start.
        claim: looks whether an object may be a part of it.

    Attributes:
        objects: by the names that the user gave them.
        own: what an earlier part of the run left in its own dict.
        kept: the weights that the plan keeps, with their epoch; None as long as there are none.
    """

    def __init__(
        self,
        plan: RunPlan,
        device: torch.device,
        checkpoint: Checkpoint,
        saved: Mapping[str, Any] | None,
        claim: Claim,
    ) -> None:
        self.plan, self.device, self.checkpoint = plan, device, checkpoint
        self.objects: dict[str, Any] = {}
        self.own: dict[str, Any] = {} if saved is None else dict(saved.get("own", {}))
        self.kept: Mapping[str, Any] | None = None
        self._saved, self._claim = saved, claim
        self._records: list[EpochRecord] = []
        self._pace = Pace()

    @property
    def has_weights(self) -> bool:
        """Whether it is known what the weights of the training are."""
        return "model" in self.objects

    @property
    def weights(self) -> Mapping[str, Any] | None:
        """The weights that the plan keeps, as of now; None where there are none."""
        return None if self.kept is None else self.kept["weights"]

    @property
    def validated(self) -> bool:
        """Whether the study's metric is known of any epoch."""
        field = field_of(self.plan.metric)
        return any(getattr(record, field) is not None for record in self._records)

    @property
    def due(self) -> bool:
        """Whether it is time for another checkpoint."""
        return self._pace.due()

    @property
    def epoch(self) -> int:
        """The last epoch that the objects have been trained for; 0 where there is no checkpoint."""
        return 0 if self._saved is None or not self.objects else int(self._saved["epoch"])

    def restore(self, objects: Mapping[str, Any]) -> bool:
        """Take in objects, set to their states in the checkpoint; return whether there is one.

        Raises:
            LoopError: if an object has no state or does not fit the checkpoint.
            MistakeError: if it is a part of another run.
        """
        for name, one in objects.items():
            if (why := _stateless(name, one)) is not None:
                raise LoopError(f"run.restore() was given {name}, {why}")
            if (mistake := self._claim(name, one)) is not None:
                raise MistakeError(mistake)
        self.objects |= objects
        if self._saved is None:
            return False
        for name, one in objects.items():
            try:
                _set_state(one, self._saved["objects"][name])
            except Exception as error:  # whatever an object says against it
                why = f"{type(error).__name__}: {error}".splitlines()[0]
                raise LoopError(f"the checkpoint does not fit {name} of run.restore(): {why}") from error
        return True

    def begin(self) -> tuple[int, float] | None:
        """Go on from the checkpoint; return its epoch and the lowest loss of a batch until then, or None.

        Raises:
            LoopError: if the checkpoint holds more than the objects, or the model has a state that none can.
        """
        self.check({})
        if self.plan.keep != "none" and self.has_weights:
            self._state("model")  # what no file can hold is said now, and not after the last epoch
        if self._saved is None or not self.objects:
            return None
        if missing := self._saved["objects"].keys() - self.objects.keys():
            raise LoopError(
                f"the checkpoint also holds {', '.join(sorted(missing))}; give it to run.restore()"
            )
        self._records = list(self._saved["records"])
        self.kept = read_kept(self._saved, self.plan)
        # Whatever the function has drawn until here, it goes on where it paused.
        randomness.set_states(self._saved["random"], self.device)
        return self._saved["epoch"], float(self._saved["lowest"])

    def add(self, record: EpochRecord) -> None:
        """Take in an epoch, with its weights if the plan keeps those.

        Raises:
            LoopError: if the model has a state that no file can hold.
        """
        keep = self.plan.keep
        # Where a run may end early any epoch can be the last, and later its weights may be others.
        is_last = record.epoch == self.plan.epochs or self.plan.may_end
        wanted = self._is_best(record) if keep == "best" else is_last
        if keep != "none" and wanted and self.has_weights:
            # Copied: the loop may change them before the file is written, as where it swaps in an average.
            weights = copy_state({"model": self._state("model")}, None)["model"]
            self.kept = {"keep": keep, "epoch": record.epoch, "weights": weights}
        self._records.append(record)

    @property
    def last(self) -> EpochRecord:
        """The record of the last epoch."""
        return self._records[-1]

    def add_tests(self, tests: Mapping[str, float]) -> None:
        """Add what the last epoch came to on the test to its record, by the names of the record's fields."""
        self._records[-1] = replace(self.last, **tests)  # type: ignore[arg-type]

    def _is_best(self, record: EpochRecord) -> bool:
        """Return whether no earlier epoch is as good, by the study's metric."""
        every = [*self._records, record]
        return best_validation(every, field_of(self.plan.metric), maximize=self.plan.maximize) is record

    def check(self, own: Any) -> None:
        """Raise a LoopError if the run's own dict, or a container that it gave, holds what no file can."""
        if not isinstance(own, dict):
            has = f"was replaced by something of type {type(own).__name__}"
            raise LoopError(f"{STATE} {has}; put values into the dict that it is")
        _check_plain(own, STATE)
        for name, one in self.objects.items():
            if type(one) in MUTABLE:
                _check_plain(one, name)

    def save(self, epoch: int, lowest: float, own: Mapping[str, Any], *, ended: bool = False) -> None:
        """Save a checkpoint; where that fails the run goes on, and is trained again from the one before.

        Args:
            epoch: the last one that was trained; behind the plan's last the objects are needed no more.
            lowest: loss of a batch so far.
            own: the run's own dict.
            ended: whether the run has ended here, before the plan's last epoch.

        Raises:
            LoopError: if an object has a state that no file can hold.
        """
        since = time.monotonic()
        done = ended or epoch == self.plan.epochs
        content = {
            "epoch": epoch,
            "records": rows(self._records),
            "ended": ended,
            "own": {} if done else own,
            "objects": {} if done else {name: self._state(name) for name in self.objects},
            "random": randomness.states(self.device),
            "kept": self.kept,
            "lowest": lowest,
        }
        try:
            self.checkpoint.save(content)
        except (OSError, RuntimeError) as error:
            log.warning("no checkpoint: %s", error)
        self._pace.note_save(since)

    def _state(self, name: str) -> Any:
        """Return the state of an object, which a file can hold."""
        one = self.objects[name]
        if type(one) in MUTABLE:
            state = one
        else:
            state = one.get_state() if isinstance(one, torch.Generator) else one.state_dict()
        _check_plain(state, name)
        return state


def read_kept(saved: Mapping[str, Any], plan: RunPlan) -> Mapping[str, Any] | None:
    """Return the weights that a checkpoint holds, with their epoch; None if it has none that a plan keeps."""
    kept = saved.get("kept")
    return kept if isinstance(kept, Mapping) and kept.get("keep") == plan.keep else None


def has_ended(saved: Mapping[str, Any]) -> bool:
    """Return whether a checkpoint is of a run that has ended before its last epoch."""
    return saved.get("ended") is True


def _stateless(name: str, one: Any) -> str | None:
    """Return why nothing can be brought back in an object, and what to give instead; None if it can be."""
    kind = type(one)
    if isinstance(one, torch.Generator) or kind in MUTABLE:
        return None
    if hasattr(one, "state_dict") and hasattr(one, "load_state_dict"):
        return None
    if kind in (*PLAIN, tuple):
        return f"of type {kind.__name__}, which cannot be filled in place; write run.state[{name!r}] = {name}"
    return (
        f"a {kind.__name__}, which has no state_dict and load_state_dict; give it these two, or put what "
        "changes in it into run.state, a dict that is saved with the run"
    )


def _check_plain(value: Any, name: str) -> None:
    """Raise a LoopError if a value is not of what a file can hold."""
    if (found := strange(value, name)) is not None:
        has = "run.state has" if name == STATE else "run.restore() was given"
        raise LoopError(
            f"{has} something that a checkpoint cannot hold: {found}; "
            "a state may be of tensors, numbers, texts and dicts and lists of these"
        )


def _set_state(one: Any, state: Any) -> None:
    if isinstance(one, torch.Generator):
        one.set_state(state)
    elif isinstance(one, list):
        one[:] = state
    elif type(one) in MAPPINGS:
        one.clear()
        one.update(state)
    else:
        one.load_state_dict(state)
