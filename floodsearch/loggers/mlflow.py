"""MLflow: a run of MLflow for each run, in an experiment of the study's name."""

from __future__ import annotations

import os
import time
from typing import Any

from floodsearch.loggers.run_log import LEFT, WELL, Epochs, LoggedRun

ID = "floodsearch.run"
"""The tag by which a run is found again."""
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
"""With a server that does not answer, unless the environment says otherwise: MLflow would try for minutes,
while the training waits."""
MOST_METRICS = 1000
"""That MLflow takes at once."""


class MlflowLog:
    """A run of MLflow, where `MLFLOW_TRACKING_URI` says, with epochs as steps.

    A worker that goes on with a run finds it by its tag, and goes on after the last epoch that it has.

    Args:
        run: that is logged.
    """

    def __init__(self, run: LoggedRun) -> None:
        for name, value in PATIENCE.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient

        self.client: Any = MlflowClient()
        experiment = _experiment(self.client, run.project)
        found = self.client.search_runs([experiment], f"tags.`{ID}` = '{run.id}'", max_results=1)
        self.new = not found
        if found:
            self.id = found[0].info.run_id
            self.client.update_run(self.id, status="RUNNING")
        else:
            tags = {ID: run.id, "floodsearch.study": run.study}
            self.id = self.client.create_run(experiment, run_name=run.name, tags=tags).info.run_id
            self._describe(run)

    def _describe(self, run: LoggedRun) -> None:
        from mlflow.entities import Param

        self.client.log_batch(self.id, params=[Param(key, str(one)) for key, one in run.parameters.items()])

    def last(self, metric: str) -> int:
        """Return the last epoch of a metric in the run that was found."""
        if self.new:
            return 0
        return max((one.step for one in self.client.get_metric_history(self.id, metric)), default=0)

    def write(self, epochs: Epochs) -> None:
        """Add epochs as steps."""
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        metrics = [
            Metric(name, value, now, epoch)
            for epoch, numbers in epochs.items()
            for name, value in numbers.items()
        ]
        for first in range(0, len(metrics), MOST_METRICS):
            self.client.log_batch(self.id, metrics=metrics[first : first + MOST_METRICS])

    def close(self, ending: str) -> None:
        """Say how the run ended; one that was handed back is shown as running, until another goes on."""
        self.client.set_tag(self.id, "floodsearch.ending", ending)
        if ending not in LEFT:
            self.client.set_terminated(self.id, "FINISHED" if ending in WELL else "FAILED")


def _experiment(client: Any, name: str) -> str:
    """Return the id of the experiment of a name, which is made if there is none."""
    if (found := client.get_experiment_by_name(name)) is None:
        try:
            return str(client.create_experiment(name))
        except Exception:  # another worker has made it just now
            if (found := client.get_experiment_by_name(name)) is None:
                raise
    return str(found.experiment_id)
