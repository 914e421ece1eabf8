"""docker: the compose file as a user runs it, in real containers. Opt-in, as it takes minutes and gigabytes.

`FLOODSEARCH_TEST_CONTAINERS=podman FLOODSEARCH_TEST_BASE=IMAGE pytest tests/test_containers.py`, where
IMAGE is one of Debian's kind with Python and venv; `docker` instead of `podman` works too. PostgreSQL is
installed from Debian into an image that behaves like the official one, as far as the compose file asks.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ENGINE = os.environ.get("FLOODSEARCH_TEST_CONTAINERS", "")
BASE = os.environ.get("FLOODSEARCH_TEST_BASE", "")
BUILD = os.environ.get("FLOODSEARCH_TEST_BUILD", "").split()
"""More options of `build`, such as `--network=host`."""
ROOT = Path(__file__).parents[1]
PROJECT = "floodsearch-test"

pytestmark = [
    pytest.mark.skipif(
        not (ENGINE and BASE), reason="containers are tested where FLOODSEARCH_TEST_CONTAINERS is set"
    ),
    pytest.mark.timeout(1800),
]

DATABASE = r"""
ARG BASE
FROM ${BASE}
RUN apt-get update && apt-get install --yes --no-install-recommends postgresql && rm -rf /var/lib/apt/lists/*
COPY entrypoint.sh /entrypoint.sh
ENTRYPOINT ["sh", "/entrypoint.sh"]
"""
ENTRYPOINT = r"""
set -eu
bin=$(echo /usr/lib/postgresql/*/bin); PATH=$bin:$PATH; data=/var/lib/postgresql/data
chown postgres "$data"; chmod 700 "$data"
as() { setpriv --reuid postgres --regid postgres --clear-groups "$@"; }
if [ ! -s "$data/PG_VERSION" ]; then
    as initdb -D "$data" -U "$POSTGRES_USER" --pwfile="$POSTGRES_PASSWORD_FILE" -A scram-sha-256 --locale=C
    echo "host all all all scram-sha-256" >>"$data/pg_hba.conf"
    PGPASSWORD=$(cat "$POSTGRES_PASSWORD_FILE"); export PGPASSWORD
    as pg_ctl -D "$data" -o "-c listen_addresses= -k /tmp" -w start
    export PGHOST=/tmp
    createdb -U "$POSTGRES_USER" "$POSTGRES_DB"
    for script in /docker-entrypoint-initdb.d/*; do sh "$script"; done
    as pg_ctl -D "$data" -m fast -w stop
fi
as_postgres="setpriv --reuid postgres --regid postgres --clear-groups"
exec $as_postgres postgres -D "$data" -c "listen_addresses=*" -k /tmp
"""


@pytest.fixture(scope="module")
def compose(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., str]]:
    """Build both images, and run the compose file of a copy of the folder; take all away afterwards."""
    folder = tmp_path_factory.mktemp("containers")
    (folder / "Dockerfile").write_text(DATABASE)
    (folder / "entrypoint.sh").write_text(ENTRYPOINT)
    shutil.copytree(ROOT / "docker", folder / "docker", ignore=shutil.ignore_patterns("secrets"))
    shutil.copytree(ROOT / "studies", folder / "studies")
    subprocess.run([folder / "docker" / "secrets.sh"], check=True)
    build = [ENGINE, "build", *BUILD, "--build-arg", f"BASE={BASE}"]
    subprocess.run([*build, "-t", "floodsearch-test-database", folder], check=True)
    subprocess.run([*build, "-t", "floodsearch-test", "-f", ROOT / "docker" / "Dockerfile", ROOT], check=True)
    images = {"IMAGE": "localhost/floodsearch-test", "DATABASE_IMAGE": "localhost/floodsearch-test-database"}
    command = [f"{ENGINE}-compose"] if ENGINE == "podman" else [ENGINE, "compose"]
    command += ["--project-name", PROJECT]  # a study of somebody's own stays what it is

    def run(*arguments: str, check: bool = True) -> str:
        done = subprocess.run(
            [*command, *arguments],
            cwd=folder / "docker",
            env={**os.environ, **images, "STUDY": "smoke.toml"},
            check=False,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert done.returncode == 0 or not check, done.stdout
        return done.stdout

    yield run
    run("down", "--volumes")


def best(compose: Callable[..., str]) -> dict[str, Any] | None:
    """Return the answer, once the study is finished."""
    said = compose("exec", "-T", "dashboard", "floodsearch", "best", "smoke", "--json", check=False)
    found = json.loads(said[said.index("{") :]) if "{" in said else None
    return found if found and found["finished"] else None


def test_compose_finishes_a_study(compose: Callable[..., str], eventually: Callable[..., Any]) -> None:
    """`up --scale worker=2` trains the study on the database, one worker is killed, and `best` answers."""
    compose("up", "--detach", "--scale", "worker=2")
    running = [ENGINE, "ps", "--filter", f"name={PROJECT}.worker", "--format", "{{.Names}}"]

    def names() -> list[str]:
        return subprocess.run(running, capture_output=True, text=True, check=True).stdout.split()

    subprocess.run([ENGINE, "kill", eventually(names)[0]], check=True)
    answer = eventually(lambda: best(compose), "the answer", seconds=600)
    assert answer["study"] == "smoke"
    assert answer["trials"]["complete"] + answer["trials"]["pruned"] == 6
