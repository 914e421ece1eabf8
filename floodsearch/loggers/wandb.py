"""Weights & Biases: a run of W&B for each run, in a project of the study's name."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from floodsearch.loggers.run_log import WELL, Epochs, LoggedRun

PATIENCE_SECONDS = 20
"""For the server to answer when a run begins; W&B's own is longer than a worker has to leave."""


class WandbLog:
    """A run of W&B, with epochs as the x-axis.

    A worker that goes on with a run resumes it under its id, from the epoch after the last one that the
    server has. Without a server (`WANDB_MODE=offline`) nobody knows that one: each worker writes a run of its
    own under the same id, with all epochs that it knows.

    Args:
        run: that is logged.
    """

    def __init__(self, run: LoggedRun) -> None:
        import wandb

        run.folder.make()
        self.run: Any = wandb.init(
            project=run.project,
            group=run.study,
            id=run.id,
            name=run.name,
            config=dict(run.parameters),
            dir=os.environ.get("WANDB_DIR", str(run.folder.path)),
            resume="allow",
            reinit="create_new",  # runs of several levels are trained side by side
            settings=wandb.Settings(
                silent=True, console="off", init_timeout=PATIENCE_SECONDS, x_disable_stats=True
            ),
        )
        self.run.define_metric("epoch", hidden=True)
        self.run.define_metric("*", step_metric="epoch")
        self._before: Mapping[str, Any] = dict(self.run.summary) if self.run.resumed else {}

    def last(self, metric: str) -> int:
        """Return the last epoch on the server, if a metric is there."""
        return int(self._before.get("epoch", 0)) if metric in self._before else 0

    def write(self, epochs: Epochs) -> None:
        """Add epochs; W&B writes them to its file at once, and sends them by a process of its own."""
        for epoch, numbers in epochs.items():
            self.run.log({"epoch": epoch, **numbers})

    def close(self, ending: str) -> None:
        """Finish the run, and wait until it is sent."""
        self.run.summary["ending"] = ending
        self.run.finish(exit_code=0 if ending in WELL else 1)
