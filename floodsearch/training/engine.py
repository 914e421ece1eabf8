"""What an engine is: it trains the runs of a cohort an epoch further, one after the other or as a stack.

Which of the two is fixed for a study, because they round differently.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from floodsearch.records import EpochRecord, Keep

RunOutcome = EpochRecord | BaseException
"""What an epoch of a run came to: its record, or why it cannot go on."""


class AnyRun(Protocol):
    """A run that some engine trains; `Run` has the promises of each method."""

    @property
    def epoch(self) -> int:
        """Epochs trained so far."""

    @property
    def lowest(self) -> float:
        """The lowest batch loss of the last epoch, in the unit of the task's loss."""

    def sibling(self, level: float) -> AnyRun:
        """Return a new run of the same seed at another level."""

    def state(self, into: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return all that is needed to go on from here."""

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a `state` of this very run."""

    def take_up(self, state: dict[str, Any]) -> None:
        """Go on from the `state` of a run at another level, as if it had been trained at this one."""

    def tested(self) -> list[EpochRecord]:
        """Return the records of the best validation epoch and of the last one, with test metrics."""

    def model_weights(self, keep: Keep) -> dict[str, Any]:
        """Return the model's `state_dict`: after the `last` epoch, or of the `best` validation."""


class Engine(Protocol):
    """Makes runs and trains them; an engine trains only those that it made, or their siblings."""

    kind: str
    """Its name in a checkpoint, from which no other engine may go on."""

    def new_run(self, seed: int, level: float) -> AnyRun:
        """Return a run before its first epoch."""

    def advance(self, runs: Sequence[Any]) -> list[RunOutcome]:
        """Train each run one epoch further; return an outcome for each."""
