"""Faults at any moment: nothing is lost or doubled, and the answer is that of a study in peace."""

from __future__ import annotations

from pathlib import Path

import pytest

from floodsearch.queries import status
from tests.faults import check, made

LEVELS, EPOCHS, FAULTS, WORKERS = 6, 100, 3, 2


def test_faults_on_sqlite_change_nothing(tmp_path: Path) -> None:
    """Workers killed, stopped and asked to leave, checkpoints damaged, the disk full: as in peace."""
    survive("sqlite", tmp_path, "none")


@pytest.mark.postgres
def test_faults_on_postgresql_change_nothing(tmp_path: Path) -> None:
    """The same, with connections that are cut or hang and the server shut down and started."""
    survive("postgresql", tmp_path, "halving")


def survive(storage: str, folder: Path, pruner: str) -> None:
    """Train a small study through a few faults and check what must hold."""
    with made(storage, folder, LEVELS, EPOCHS, pruner, seed=1) as (faults, peace):
        faults.run(FAULTS, WORKERS)
        check(faults.study, peace)


@pytest.mark.postgres
def test_a_link_that_hangs_and_a_server_that_is_away_kill_nobody(tmp_path: Path) -> None:
    """For longer than the grace, all workers at once: not one trial is lost or fails."""
    with made("postgresql", tmp_path, LEVELS, 3 * EPOCHS, "none", seed=1) as (faults, peace):
        faults.start(WORKERS)
        for fault in (faults.hang, faults.restart):
            faults.victim()
            fault()
        faults.run(0, WORKERS)
        check(faults.study, peace)
        assert not status(faults.study).interruptions
