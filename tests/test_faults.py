"""Faults at any moment: nothing is lost or doubled, and the answer is that of a study in peace."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from floodsearch.queries import status
from tests.conftest import private_postgres
from tests.faults import check, made

LEVELS, EPOCHS, FAULTS, WORKERS = 6, 30, 3, 2
WAIT = 0.02
"""Seconds of a step: a few epochs take as long as faults need, and cost little."""


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, Callable[[str], None]]]:
    """Give a PostgreSQL server that can be stopped and started."""
    with private_postgres() as found:
        yield found


def test_faults_on_sqlite_change_nothing(tmp_path: Path) -> None:
    """Workers killed, stopped and asked to leave, checkpoints damaged, the disk full: as in peace."""
    survive("sqlite", tmp_path, "none")


@pytest.mark.postgres
def test_faults_on_postgresql_change_nothing(tmp_path: Path, server: tuple[str, Any]) -> None:
    """The same, with connections that are cut or hang and the server shut down and started."""
    survive("postgresql", tmp_path, "halving", server=server)


def survive(storage: str, folder: Path, pruner: str, **options: Any) -> None:
    """Train a small study through a few faults and check what must hold."""
    with made(storage, folder, LEVELS, EPOCHS, pruner, wait=WAIT, seed=1, **options) as (faults, peace):
        faults.run(FAULTS, WORKERS)
        assert faults.done
        check(faults.study, peace)


@pytest.mark.postgres
def test_a_link_that_hangs_and_a_server_that_is_away_kill_nobody(
    tmp_path: Path, server: tuple[str, Any]
) -> None:
    """For longer than the grace, all workers at once: not one trial is lost or fails."""
    options: dict[str, Any] = {"wait": 2.5 * WAIT, "server": server}
    with made("postgresql", tmp_path, LEVELS, EPOCHS, "none", seed=1, **options) as (faults, peace):
        faults.start(WORKERS)
        for fault in (faults.hang, faults.restart):
            faults.victim()
            fault()
        faults.run(0, WORKERS)
        check(faults.study, peace)
        assert not status(faults.study).interruptions
