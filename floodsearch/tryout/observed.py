"""What a try has seen, as plain records: nothing here trains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from floodsearch.records import EpochRecord
from floodsearch.training.independence import RunKey, Shown

EPOCHS = 2
"""Of each run of a try: the second one begins with what the first has left."""

PartKind = Literal["plain", "array", "container", "generator", "state"]


class Part(NamedTuple):
    """Something that a user's code holds while it trains: a variable, an attribute, an element."""

    kind: PartKind
    """A plain value, an array or tensor, a container of other things, of which only the number is compared, a
    generator, or an object with a `state_dict`."""
    digest: str
    """Equal where the content is."""
    shown: str
    """What a message calls it: a short value, or the name of its type."""
    shared: bool = False
    """Whether it belongs to a module, so that all runs of a process have the same."""
    lasts: bool = True
    """Whether the code goes on with it in another epoch, as far as its text tells."""
    decides: bool = False
    """Whether it lasts, and the code decides by its value, or reports it."""
    restorable: bool = False
    """Whether `run.restore` takes it."""


Snapshot = Mapping[str, Part]
"""All parts that were found at one time, by what the code calls them, such as `self.scheduler`."""


@dataclass
class Tried:
    """One run of a try.

    Args:
        key: which run it is.

    Attributes:
        shown: its epochs, by number; of a run that went on from a checkpoint only those behind that.
        partial: the losses of the batches of an epoch that was not ended.
        unended: that epoch.
        at_start: what the code held when an epoch began, by epoch.
        error: what ended it, in one line, if it did not end as it was asked to.
        diverged: whether a number of it was NaN or infinite.
        mistake: whether the error is a mistake that spoils every result.
        stopped: whether it was stopped, as it took too long.
        seconds: of each epoch, from its start to its report.
        began: when its first epoch began, in seconds since 1970.
        begun: seconds from the call to then.
        can_pause: whether it gave something to `run.restore`.
        wrote: the files that it wrote, as messages call them.
    """

    key: RunKey
    shown: dict[int, Shown] = field(default_factory=dict)
    partial: list[float] = field(default_factory=list)
    unended: int = 1
    at_start: dict[int, Snapshot] = field(default_factory=dict)
    error: str | None = None
    diverged: bool = False
    mistake: bool = False
    stopped: bool = False
    seconds: dict[int, float] = field(default_factory=dict)
    began: float = 0.0
    begun: float = 0.0
    can_pause: bool = False
    wrote: frozenset[str] = frozenset()

    @property
    def records(self) -> list[EpochRecord]:
        """Its epochs in their order."""
        return [shown.record for _, shown in sorted(self.shown.items())]

    @property
    def losses(self) -> list[float]:
        """The losses of all batches that were seen, in their order."""
        known = [loss for _, shown in sorted(self.shown.items()) for loss in shown.losses]
        return [*known, *self.partial]
