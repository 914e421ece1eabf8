"""How a worker works: where it trains and writes, and how often it beats."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from floodsearch import queue
from floodsearch.artifacts.files import Files, files_at
from floodsearch.defaults import CHECKPOINTS, LOGS
from floodsearch.storage.studies import StoredStudy


@dataclass(frozen=True, kw_only=True)
class WorkerSettings:
    """The settings of a worker: where it trains and writes; none of them changes a result.

    Args:
        device: where it trains, as torch names it, or `auto`.
        threads: of torch, on the CPU; None leaves torch's own choice.
        beat_seconds: between two signs of life.
        grace_seconds: silence after which a worker is taken for dead; the same for all workers.
        checkpoints: the folder or URL of the checkpoints of all studies.
        logs: the folder of what workers and scripts print.
        folders: where files of a command are looked for before the current folder.
    """

    device: str = "auto"
    threads: int | None = None
    beat_seconds: float = 5.0
    grace_seconds: float = queue.GRACE_SECONDS
    # Absolute, as a user's code may change the current folder.
    checkpoints: Path | str = field(default_factory=CHECKPOINTS.absolute, repr=False)
    logs: Path = field(default_factory=LOGS.absolute)
    folders: tuple[Path, ...] = ()

    def files(self, study: StoredStudy) -> Files:
        """Return the files of a study."""
        return files_at(self.checkpoints).within(study.folder)
