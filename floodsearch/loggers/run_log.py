"""What a logger is given of a run, and what it has to do with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from floodsearch.artifacts.files import Folder
from floodsearch.records import Setting

Epochs = Mapping[int, Mapping[str, float]]
"""By epoch, ascending, the numbers of each by their names."""
LEFT = ("handed back", "lost")
"""How a ticket leaves a worker whose runs another goes on with."""
WELL = ("complete", "pruned", *LEFT)
"""How a ticket ends without an error."""


@dataclass(frozen=True, kw_only=True)
class LoggedRun:
    """A run, as loggers name it.

    Args:
        id: the same wherever and however often the run is trained, and of no other run.
        name: for a person, with its level, such as `level-0.1-ticket-3-seed-0`.
        study: name of its study.
        project: under which the runs of the study are found.
        parameters: level, seed, ticket, and all settings.
        folder: for files of loggers of this study, and of no other of its name; made when it is needed.
    """

    id: str
    name: str
    study: str
    project: str
    parameters: Mapping[str, Setting | None]
    folder: Folder


class RunLog(Protocol):
    """The log of one run in one logger, which goes on where an earlier worker has left it."""

    def last(self, metric: str) -> int:
        """Return the last epoch of which the log has a number already; 0 without any."""

    def write(self, epochs: Epochs) -> None:
        """Add epochs; what is written survives the death of this process, as far as the library allows."""

    def close(self, ending: str) -> None:
        """Close the log, given how the run's ticket ended here, such as `complete` or `handed back`."""
