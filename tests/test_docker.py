"""docker: what the containers are made of, as far as it can be tried without them."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
import sqlalchemy
import yaml

from floodsearch import queue
from floodsearch.errors import StorageError
from floodsearch.queries import status
from floodsearch.records import Pilot
from floodsearch.storage.database import open_database
from floodsearch.storage.studies import find_study, put_study
from floodsearch.worker.leave import LeaveRequest
from floodsearch.worker.settings import WorkerSettings
from floodsearch.worker.work import work

ROOT = Path(__file__).parents[1]
DOCKER = ROOT / "docker"


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    """Make secrets with the script, in a copy of the folder."""
    shutil.copy(DOCKER / "secrets.sh", tmp_path)
    subprocess.run([tmp_path / "secrets.sh"], check=True)
    return tmp_path / "secrets"


def test_secrets_are_made_once_and_for_nobody_else(secrets: Path) -> None:
    """Four files in a closed folder; run again, the script changes no password."""
    assert stat.S_IMODE(secrets.stat().st_mode) == 0o700
    made = {path.name: path.read_text() for path in secrets.iterdir()}
    assert sorted(made) == ["owner_password", "owner_url", "worker_password", "worker_url"]
    assert len({made["owner_password"], made["worker_password"]}) == 2
    assert len(made["owner_password"]) == 48
    assert (
        made["owner_url"].strip() == f"postgresql://floodsearch:{made['owner_password']}@database/floodsearch"
    )
    assert made["worker_url"].strip() == f"postgresql://worker:{made['worker_password']}@database/floodsearch"


def test_secrets_run_again_stay(secrets: Path) -> None:
    before = {path.name: path.read_text() for path in secrets.iterdir()}
    for name in ("owner_url", "worker_url"):
        (secrets / name).unlink()
    subprocess.run([secrets.parent / "secrets.sh"], check=True)
    assert {path.name: path.read_text() for path in secrets.iterdir()} == before


def test_no_secret_is_in_the_compose_file_or_reaches_the_image() -> None:
    """Passwords come by file only; the image is built from named files; ports are for this machine."""
    compose = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    for service in compose["services"].values():
        for key, value in service.get("environment", {}).items():
            assert key.endswith("_FILE") or key in ("POSTGRES_DB", "POSTGRES_USER"), (key, value)
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    assert (ROOT / ".dockerignore").read_text().startswith("*\n")
    assert "docker/secrets/" in (ROOT / ".gitignore").read_text().splitlines()


FORBIDDEN = (
    "DELETE FROM trials",
    "DELETE FROM studies",
    "DROP TABLE trials",
    "CREATE TABLE mine (a int)",
    "UPDATE studies SET study_name = 'other'",
    "INSERT INTO studies (study_name) VALUES ('other')",
    "UPDATE study_directions SET direction = 'MINIMIZE'",
    "INSERT INTO study_system_attributes (study_id, key, value_json) VALUES (1, 'note', '1')",
    "UPDATE study_user_attributes SET value_json = '1' WHERE key = 'floodsearch:spec'",
    "UPDATE study_user_attributes SET value_json = '1' WHERE key = 'floodsearch:uuid'",
    "UPDATE study_user_attributes SET value_json = '1' WHERE key = 'floodsearch:versions'",
    "UPDATE study_user_attributes SET key = 'floodsearch:pilot' WHERE key = 'floodsearch:spec'",
    "UPDATE study_user_attributes SET key = 'floodsearch:spec' WHERE key = 'floodsearch:engine'",
    "INSERT INTO study_user_attributes (study_id, key, value_json) VALUES (1, 'floodsearch:mine', '1')",
    "INSERT INTO study_user_attributes (study_id, key, value_json) "
    "SELECT study_id, key, '1' FROM study_user_attributes WHERE key = 'floodsearch:spec' "
    "ON CONFLICT (study_id, key) DO UPDATE SET value_json = '1'",
    "UPDATE floodsearch_schema SET version = 1",
    "UPDATE alembic_version SET version_num = '1'",
    "DROP TRIGGER floodsearch_guard ON studies",
    "ALTER TABLE studies DISABLE TRIGGER ALL",
    "SET session_replication_role = replica",
    "CREATE OR REPLACE FUNCTION public.floodsearch_guard() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN END'",
)
"""What a worker's role must not do."""


@pytest.mark.postgres
def test_a_worker_needs_no_right_to_delete_or_to_change_tables(
    postgres_server: str, postgres_url: str, make_spec, tmp_path: Path
) -> None:
    """The role of `roles.sh` trains a study to its end, hands back and goes on, and can do no more.

    It settles the pilot and the engine, and may stop a study; what a study is it cannot change, nor make one.
    """
    url = sqlalchemy.make_url(postgres_url)
    (tmp_path / "password").write_text("secret")
    environment = {
        "PGHOST": str(url.host),
        "PGPORT": str(url.port),
        "POSTGRES_USER": str(url.username),
        "POSTGRES_DB": str(url.database),
        "WORKER_PASSWORD_FILE": str(tmp_path / "password"),
    }
    subprocess.run([DOCKER / "roles.sh"], check=True, env={**os.environ, **environment}, capture_output=True)
    as_worker = url.set(username="worker", password="secret").render_as_string(hide_password=False)
    try:
        with pytest.raises(StorageError):
            open_database(as_worker, create=True)
        owner = open_database(postgres_url, create=True)
        study = put_study(owner, make_spec(levels={"high": "auto", "count": 3}))
        database = open_database(as_worker)
        leave = LeaveRequest()
        leave.ask("lunch")
        settings = WorkerSettings(device="cpu", threads=1, checkpoints=tmp_path)
        work(find_study(database, study.name), settings, leave)
        assert queue.fill(find_study(database, study.name)) == 0
        pilot = Pilot(epochs=1, minima=(0.5,), bound=0.5, high=0.5, seconds_per_epoch=1.0, device="cpu")
        find_study(database, study.name).settle(pilot)
        assert queue.fill(find_study(database, study.name)) == 3
        [ticket, *_] = queue.take(find_study(database, study.name), 0)
        queue.hand_back(ticket)
        find_study(database, study.name).stop("enough")
        find_study(database, study.name).stop(None)
        assert work(find_study(database, study.name), settings, LeaveRequest()) == "all tickets are finished"
        assert status(study).trials.complete == 3
        with database.engine.connect() as connection:
            for forbidden in FORBIDDEN:
                with pytest.raises(sqlalchemy.exc.ProgrammingError, match=r"permission denied|must be owner"):
                    connection.exec_driver_sql(forbidden)
                connection.rollback()
        database.close()
        owner.close()
    finally:
        engine = sqlalchemy.create_engine(
            url.set(drivername="postgresql+psycopg"), isolation_level="AUTOCOMMIT"
        )
        with engine.connect() as connection:
            connection.exec_driver_sql("DROP OWNED BY worker")
            connection.exec_driver_sql("DROP ROLE worker")
        engine.dispose()
