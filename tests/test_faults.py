"""Faults at any moment: nothing is lost or doubled, and the answer is that of a study in peace."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import private_postgres
from tests.faults import Faults, check, spec_of, undisturbed

LEVELS, EPOCHS, FAULTS, WORKERS = 6, 100, 3, 2


def test_faults_on_sqlite_change_nothing(tmp_path: Path) -> None:
    """Workers killed, stopped and asked to leave, checkpoints damaged: as in peace."""
    survive(f"sqlite:///{tmp_path}/floodsearch.db", tmp_path, "none", server=None)


@pytest.mark.postgres
def test_faults_on_postgresql_change_nothing(tmp_path: Path) -> None:
    """The same, with connections cut and the server shut down and started."""
    with private_postgres() as (url, server):
        survive(url, tmp_path, "halving", server=server)


def survive(url: str, folder: Path, pruner: str, server) -> None:
    """Train a small study through a few faults and check what must hold."""
    peace, close = undisturbed(spec_of(LEVELS, EPOCHS, pruner, wait=0.0), folder)
    faults = Faults(url, spec_of(LEVELS, EPOCHS, pruner), folder, server, seed=1)
    try:
        faults.run(FAULTS, WORKERS)
        check(faults.study, peace)
    finally:
        faults.close()
        close()
