"""The loggers, by the name that a study file uses; none is imported before a run is written to it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from floodsearch.loggers.mlflow import MlflowLog
from floodsearch.loggers.run_log import LoggedRun, RunLog
from floodsearch.loggers.tensorboard import TensorBoardLog
from floodsearch.loggers.wandb import WandbLog


@dataclass(frozen=True)
class Logger:
    """A logger.

    Args:
        package: that it imports, which is also the name of the extra that installs it.
        open: opens the log of a run, or goes on with it.
    """

    package: str
    open: Callable[[LoggedRun], RunLog]

    def missing(self) -> str | None:
        """Return what is missing here, with the command that installs it; None if nothing is."""
        found = importlib.util.find_spec(self.package)
        if found is not None and found.origin is not None:  # not a folder of runs that has its name
            return None
        return f"needs {self.package}, which is not installed; pip install 'floodsearch[{self.package}]'"


LOGGERS: Mapping[str, Logger] = {
    "tensorboard": Logger("tensorboard", TensorBoardLog),
    "wandb": Logger("wandb", WandbLog),
    "mlflow": Logger("mlflow", MlflowLog),
}
