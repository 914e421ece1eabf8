"""Searches of the scripts of this suite, as users launch them, and with a worker killed in their middle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from floodsearch.errors import FloodsearchError
from floodsearch.storage import tables
from floodsearch.storage.database import open_database
from floodsearch.storage.studies import find_study
from tests.wild.kinds import Kind

ROOT = Path(__file__).parents[2]
COSTS = ("epochs_run", "cost", "trial")
"""Of an answer, what a killed worker changes: what it trained is trained again, by another trial."""


def environment(folder: Path) -> dict[str, str]:
    """Return the variables of a command: its database, our package, and `python` as the one of the tests."""
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "FLOODSEARCH_STORAGE": f"sqlite:///{folder}/floodsearch.db",
        "PYTHONPATH": os.pathsep.join(paths),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }


def put(kind: Kind, folder: Path, pruner: str) -> Path:
    """Copy a kind into a folder, searched with a pruner; return its study file."""
    study = kind.put(folder)
    text = study.read_text()
    head, search, rest = text.partition("[search]\n")
    study.write_text(f'{head}[search]\npruner = "{pruner}"\n{rest if search else ""}')
    return study


class Search:
    """A launch of a study, whose workers have a quick clock.

    Args:
        kind: what is searched.
        folder: for its files; it is made.
        pruner: of the study.
        workers: how many it starts.
    """

    def __init__(self, kind: Kind, folder: Path, pruner: str, workers: int) -> None:
        self.folder, self.name = folder, kind.title
        study = put(kind, folder, pruner)
        command = [sys.executable, "-m", "tests.quick", "launch", study.name, "--devices", "cpu"]
        self.environment = environment(self.folder)
        self.log = self.folder / "launch.log"
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                [*command, "--workers", str(workers)],
                cwd=self.folder,
                env=self.environment,
                stdout=output,
                stderr=output,
            )

    def training(self, epochs: int) -> int | None:
        """Return the number of a process that trains, once so many epochs are known; else None."""
        try:
            database = open_database(self.environment["FLOODSEARCH_STORAGE"])
        except FloodsearchError:
            return None
        try:
            study = find_study(database, self.name)
            if sum(map(len, tables.read_curves(database, study.uuid).values())) < epochs:
                return None
            workers = tables.read_workers(database, study.uuid)
            return next((one.pid for one in workers if one.training and one.left is None), None)
        except FloodsearchError:
            return None
        finally:
            database.close()

    def kill_one(self, epochs: int) -> bool:
        """Kill a worker, with SIGKILL, once so many epochs are known; return whether there was one."""
        while self.process.poll() is None:
            if (found := self.training(epochs)) is not None:
                os.kill(found, signal.SIGKILL)
                return True
            time.sleep(0.05)
        return False

    def answer(self) -> Mapping[str, Any]:
        """Wait for its end; return the answer.

        Raises:
            RuntimeError: if it comes to none.
        """
        status = self.process.wait()
        command = [sys.executable, "-m", "floodsearch", "best", self.name, "--json"]
        told = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False
        )
        if status or told.returncode:
            raise RuntimeError(f"{self.name} ended with {status}: {self.log.read_text()}{told.stderr}")
        found: Mapping[str, Any] = json.loads(told.stdout)
        return found


def without_costs(answer: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an answer says of the training alone."""
    return {name: value for name, value in answer.items() if name not in COSTS}
