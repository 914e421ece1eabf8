"""What tests share: real databases, tiny studies, and a device that does not take all cores."""

from __future__ import annotations

import copy
import os
import pwd
import shutil
import socket
import subprocess
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy

from floodsearch.catalog import known
from floodsearch.spec import Spec
from floodsearch.storage.database import Database, open_database
from floodsearch.studyfile import parse

TINY: Mapping[str, Any] = {
    "name": "tiny",
    "task": "two_gaussians",
    "options": {"label_noise": 0.1, "width": 8, "depth": 1},
    "levels": {"high": 0.5, "count": 3},
    "training": {"epochs": 10, "seeds": 2, "validate_every": 2},
}
"""A study file's content: three levels, two seeds, ten epochs of a model of eight units; a fifth of a second."""


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a study file's content with some tables changed; a None removes its key."""
    result = copy.deepcopy(dict(base))
    for key, value in changes.items():
        if isinstance(value, Mapping):
            result[key] = merged(result.get(key, {}), value)
        elif value is None:
            result.pop(key, None)
        else:
            result[key] = value
    return result


@pytest.fixture
def make_spec() -> Callable[..., Spec]:
    """Make a spec from the tiny study, with some tables changed."""

    def make(**changes: Any) -> Spec:
        return parse(merged(TINY, changes), known())

    return make


def postgres_binaries() -> Path | None:
    """Return the folder of PostgreSQL's server binaries, the newest if there are several."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    if found:
        return found[-1].parent
    on_path = shutil.which("initdb")
    return Path(on_path).parent if on_path else None


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Give the URL of a PostgreSQL server: one that is named, or a private one on loopback."""
    if named := os.environ.get("FLOODSEARCH_TEST_POSTGRES"):
        yield named
        return
    binaries = postgres_binaries()
    if binaries is None:
        pytest.skip("no PostgreSQL: set FLOODSEARCH_TEST_POSTGRES, or install Debian's package postgresql")
    folder = tmp_path_factory.mktemp("postgres")
    as_user: list[str] = []
    if os.getuid() == 0:  # the server refuses to run as root
        owner = pwd.getpwnam("postgres")
        os.chown(folder, owner.pw_uid, owner.pw_gid)
        for parent in list(folder.parents)[:3]:
            if parent.owner() == "root" and parent != Path("/tmp"):
                parent.chmod(0o755)
        as_user = ["runuser", "-u", "postgres", "--"]
    data = folder / "data"
    run = lambda *command: subprocess.run([*as_user, *command], check=True, capture_output=True, cwd="/")  # noqa: E731
    run(binaries / "initdb", "-D", data, "-A", "trust", "--no-sync", "-U", "floodsearch", "-E", "UTF8", "--locale=C")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off"
    run(binaries / "pg_ctl", "-D", data, "-w", "-s", "-l", folder / "log", "-o", options, "start")
    try:
        yield f"postgresql://floodsearch@127.0.0.1:{port}/postgres"
    finally:
        run(binaries / "pg_ctl", "-D", data, "-m", "immediate", "-s", "stop")


@pytest.fixture
def postgres_url(postgres_server: str) -> Iterator[str]:
    """Give the URL of a new, empty PostgreSQL database."""
    name = f"test_{uuid.uuid4().hex}"
    server = sqlalchemy.make_url(postgres_server).set(drivername="postgresql+psycopg")
    engine = sqlalchemy.create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    yield server.set(drivername="postgresql", database=name).render_as_string(hide_password=False)
    with engine.connect() as connection:
        connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")
    engine.dispose()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def storage_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Give the URL of a new, empty database, once of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/floodsearch.db"
    return str(request.getfixturevalue("postgres_url"))


@pytest.fixture
def database(storage_url: str) -> Iterator[Database]:
    """Give an open database with all tables and no study."""
    opened = open_database(storage_url, create=True)
    yield opened
    opened.close()
