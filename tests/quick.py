"""The command line with a quick clock: beats, graces and checkpoints in fractions of a second.

    python -m tests.quick launch STUDY.toml

Its workers have that clock too. Nothing else is changed.
"""

from __future__ import annotations

import sys

from floodsearch.launchers import local

BEAT, GRACE, INTERVAL = 0.2, 1.5, 0.5
"""Seconds: between two beats, of silence until a worker is taken for dead, between two checkpoints."""


def hurry() -> None:
    """Let all workers of this process be quick."""
    from floodsearch.artifacts import checkpoint
    from floodsearch.worker.settings import WorkerSettings

    checkpoint.SECONDS, checkpoint.SHARE = INTERVAL, 1e9
    defaults = WorkerSettings.__init__.__kwdefaults__
    assert defaults is not None
    defaults |= {"beat_seconds": BEAT, "grace_seconds": GRACE}


if __name__ == "__main__":
    from floodsearch.cli import main

    local.FLOODSEARCH = (sys.executable, "-P", __file__)
    if "work" in sys.argv:
        hurry()
    main()
