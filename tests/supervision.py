"""Workers under one launch, of which a random one is killed every few seconds, and what must hold then.

    python -m tests.supervision [--pruner none|halving] [--seconds 180] [--workers 3] [--levels 20]

The launch runs as users start it. For so many seconds one of its workers, whatever it does in this moment, is
killed with SIGKILL every 2 to 5 seconds, as a seed draws. Then:

- as many workers live as at the start, as long as there is something to train;
- the launch ends with exit status 0;
- exactly one complete or pruned trial for each ticket, and no worker was given up.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from floodsearch.queries import status
from floodsearch.storage.database import open_database
from floodsearch.storage.studies import StoredStudy, find_study
from floodsearch.storage.trial_records import read_trials
from tests.faults import study_file

FROM, TO = 2.0, 5.0
"""Seconds between two kills."""
STEP_SECONDS = 0.1
"""A step waits so long, so that a study of 3,000 epochs outlasts the kills on any machine."""


def children(pid: int) -> list[int]:
    """Return the processes that a process has started and not yet taken leave of."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    """Return whether a process has not ended."""
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


def kill_at_random(launch: subprocess.Popen[bytes], seconds: float, draw: random.Random) -> int:
    """Kill a random worker of a launch every few seconds; return how many were."""
    until, kills = time.monotonic() + seconds, 0
    while time.monotonic() < until and launch.poll() is None:
        time.sleep(draw.uniform(FROM, TO))
        if launch.poll() is None and (workers := [pid for pid in children(launch.pid) if alive(pid)]):
            os.kill(draw.choice(workers), signal.SIGKILL)
            kills += 1
    return kills


def most_alive(launch: subprocess.Popen[bytes], study: StoredStudy, wanted: int) -> int:
    """Return how many workers were alive at once at most, until that is enough or the study is finished."""
    most = 0
    while most < wanted and launch.poll() is None and not status(study).finished:
        most = max(most, sum(map(alive, children(launch.pid))))
        time.sleep(0.2)
    return most


def main() -> None:
    """Kill workers and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pruner", choices=["none", "halving"], default="none")
    parser.add_argument("--seconds", type=float, default=180.0)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--levels", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=150)
    parser.add_argument("--wait", type=float, default=STEP_SECONDS, help="seconds of a step")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "study.toml").write_text(
            study_file(asked.levels, asked.epochs, asked.pruner, wait=asked.wait)
        )
        url = f"sqlite:///{folder}/studies.db"
        command = [sys.executable, "-m", "floodsearch", "launch", "study.toml", "--devices", "cpu"]
        path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
        environment = {**os.environ, "FLOODSEARCH_STORAGE": url, "PYTHONPATH": path}
        began = time.monotonic()
        with (folder / "launch.log").open("wb") as output:
            launch = subprocess.Popen(
                [*command, "--workers", str(asked.workers)],
                cwd=folder,
                env=environment,
                stdout=output,
                stderr=output,
            )
        try:
            kills = kill_at_random(launch, asked.seconds, random.Random(asked.seed))
            database = open_database(url)
            study = find_study(database, f"faults-{asked.pruner}")
            left = status(study).trials.unfinished
            most = most_alive(launch, study, asked.workers)
            ended = launch.wait()
        finally:
            launch.terminate()
        said = (folder / "launch.log").read_text()
        print(said)
        trials = read_trials(study)
        ends = Counter(one.ticket for one in trials if one.state in ("complete", "pruned"))
        lost = sum(one.cause == "lost" for one in trials)
        database.close()
        print(
            f"{asked.pruner}: {kills} kills in {asked.seconds:.0f} s, {lost} trials lost, {left} tickets left"
            f" then, {most} of {asked.workers} workers alive; exit status {ended} after "
            f"{time.monotonic() - began:.0f} s"
        )
        assert ended == 0
        assert most == asked.workers, "not as many workers live as at the start"
        assert "given up" not in said
        assert ends == Counter(range(asked.levels)), "one complete or pruned trial for each ticket"


if __name__ == "__main__":
    main()
