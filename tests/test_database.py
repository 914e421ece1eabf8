"""Storage URLs: what is opened, how it is set up, and what is refused with which words."""

from __future__ import annotations

import random
import socket
import sqlite3

import optuna
import pytest
import sqlalchemy

from floodsearch.errors import StorageError
from floodsearch.storage import schema
from floodsearch.storage.database import filesystem_of, open_database
from floodsearch.storage.studies import find_study, put_study

SECRET = "hunter2"
CONNECTIONS = (
    "SELECT count(*) FROM pg_stat_activity"
    " WHERE datname = current_database() AND pid <> pg_backend_pid() AND state IS NOT NULL"
)


def refusal(url, **options):
    with pytest.raises(StorageError) as caught:
        open_database(url, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert SECRET not in message
    return message


def execute(url, *statements):
    """Run SQL beside floodsearch, and return the rows of the last statement that has any."""
    engine = sqlalchemy.create_engine(url.replace("postgresql://", "postgresql+psycopg://"))
    rows = []
    with engine.begin() as connection:
        for statement in statements:
            result = connection.execute(sqlalchemy.text(statement))
            rows = result.all() if result.returns_rows else rows
    engine.dispose()
    return rows


@pytest.fixture
def closed_port():
    """Give a port of loopback on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.parametrize("create", [False, True])
@pytest.mark.parametrize(
    "scheme",
    ["mysql", "mysql+pymysql", "redis", "journal", "oracle", "postgres", "http"],
)
def test_other_schemes_are_refused_by_name(scheme, create):
    """A storage of another kind is refused with its own name and the two that work."""
    message = refusal(f"{scheme}://me:{SECRET}@localhost/studies", create=create)
    assert repr(scheme) in message
    assert "sqlite:///PATH" in message
    assert "postgresql://" in message


@pytest.mark.parametrize(
    "url",
    [
        "",
        "floodsearch.db",
        "postgresql:/localhost",
        f"postgresql://me:{SECRET}@localhost:port/studies",
        f"://{SECRET}",
    ],
)
def test_a_url_that_cannot_be_read_is_refused(url, tmp_path, monkeypatch):
    """Something that is no URL, or one with a broken part, is refused with an example of a good one."""
    monkeypatch.chdir(tmp_path)
    assert "sqlite:///PATH" in refusal(url, create=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "url",
    ["sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite:///file::memory:?cache=shared&uri=true"],
)
def test_sqlite_in_memory_is_refused(url, tmp_path, monkeypatch):
    """A database that lives in one process is refused, with the fix."""
    monkeypatch.chdir(tmp_path)
    message = refusal(url, create=True)
    assert "memory" in message
    assert "sqlite:///PATH" in message


def test_a_missing_file_is_refused_and_not_made(tmp_path):
    """Without `create` a missing file is an error with its path, and stays missing."""
    path = tmp_path / "mistyped.db"
    message = refusal(f"sqlite:///{path}")
    assert str(path) in message
    assert "launch" in message
    assert not path.exists()


@pytest.mark.parametrize("create", [False, True])
def test_a_missing_folder_is_refused(tmp_path, create):
    """A file in a folder that does not exist is refused with the folder's name, which is not made."""
    folder = tmp_path / "missing"
    assert f"the folder {folder} does not exist" in refusal(f"sqlite:///{folder}/studies.db", create=create)
    assert not folder.exists()


def test_a_database_without_studies_is_refused(storage_url):
    """A database of something else is refused as it is, and nothing is added to it."""
    execute(storage_url, "CREATE TABLE other (id INTEGER)")
    assert "holds no studies" in refusal(storage_url)
    engine = sqlalchemy.create_engine(storage_url.replace("postgresql://", "postgresql+psycopg://"))
    assert sqlalchemy.inspect(engine).get_table_names() == ["other"]
    engine.dispose()


def test_a_database_with_only_foreign_studies_is_refused(tmp_path):
    """A database in which only plain Optuna worked holds no studies of floodsearch."""
    url = f"sqlite:///{tmp_path}/optuna.db"
    optuna.create_study(storage=url, study_name="theirs")
    assert "holds no studies of floodsearch" in refusal(url)


@pytest.mark.parametrize("create", [False, True])
def test_a_file_that_is_no_database_is_refused(tmp_path, create):
    """A file of random bytes is refused with SQLite's words and not touched."""
    path = tmp_path / "noise.db"
    noise = random.Random(0).randbytes(5000)
    path.write_bytes(noise)
    message = refusal(f"sqlite:///{path}", create=create)
    assert str(path) in message
    assert "not a database" in message
    assert path.read_bytes() == noise


@pytest.mark.parametrize("create", [False, True])
def test_a_folder_is_no_database(tmp_path, create):
    """The path of a folder is refused with SQLite's words."""
    assert "unable to open database file" in refusal(f"sqlite:///{tmp_path}", create=create)


@pytest.mark.parametrize("create", [False, True])
@pytest.mark.parametrize(
    "password", [SECRET, "{hunter2}", "{0.__class__}hunter2", "p%40hunter2", "hun%7Bter2"]
)
def test_an_unreachable_server_is_named_without_the_password(closed_port, password, create):
    """A PostgreSQL server that does not answer is an error in one line, with *** for any password."""
    message = refusal(f"postgresql://me:{password}@127.0.0.1:{closed_port}/studies", create=create)
    assert f"me:***@127.0.0.1:{closed_port}/studies" in message
    assert "refused" in message
    for secret in (password, sqlalchemy.make_url(f"x://u:{password}@h").password):
        assert secret not in message


@pytest.mark.postgres
@pytest.mark.parametrize("password", ["{hunter2}", "{0}", "%7B%7D", "p%40hunter2", "100%25", "%2F%3A%3F"])
def test_any_password_can_be_used(postgres_url, password):
    """Braces, which Optuna would format, and escaped signs in a password stand in nobody's way."""
    url = postgres_url.replace("floodsearch@", f"floodsearch:{password}@")
    database = open_database(url, create=True)
    assert database.engine.url.password == sqlalchemy.make_url(url).password
    assert database.name == postgres_url.replace("floodsearch@", "floodsearch:***@").replace(
        "sql:", "sql+psycopg:"
    )
    database.close()


@pytest.mark.postgres
def test_a_missing_database_of_a_server_is_refused(postgres_url):
    """A server without that database says so."""
    url = sqlalchemy.make_url(postgres_url).set(database="nowhere").render_as_string(hide_password=False)
    message = refusal(url, create=True)
    assert '"nowhere" does not exist' in message


@pytest.mark.parametrize("create", [False, True])
def test_a_database_of_a_newer_floodsearch_is_refused(storage_url, create):
    """Tables of a later version are refused with both versions, and not changed."""
    open_database(storage_url, create=True).close()
    later = schema.VERSION + 6
    execute(storage_url, f"UPDATE floodsearch_schema SET version = {later}")
    message = refusal(storage_url, create=create)
    assert f"schema {later}" in message
    assert f"knows {schema.VERSION}" in message
    assert execute(storage_url, "SELECT version FROM floodsearch_schema") == [(later,)]


@pytest.mark.parametrize("create", [False, True])
def test_a_database_of_an_older_floodsearch_is_refused(storage_url, create):
    """Tables of an earlier version are refused with both versions, and not changed."""
    open_database(storage_url, create=True).close()
    execute(storage_url, f"UPDATE floodsearch_schema SET version = {schema.VERSION - 1}")
    message = refusal(storage_url, create=create)
    assert f"older floodsearch (schema {schema.VERSION - 1}, this one knows {schema.VERSION})" in message
    assert execute(storage_url, "SELECT version FROM floodsearch_schema") == [(schema.VERSION - 1,)]


@pytest.mark.parametrize("create", [False, True])
def test_a_database_of_a_newer_optuna_is_refused(storage_url, create):
    """Optuna's tables of another version are refused with Optuna's words."""
    open_database(storage_url, create=True).close()
    execute(storage_url, "UPDATE alembic_version SET version_num = 'v99.0.0.a'")
    message = refusal(storage_url, create=create)
    assert "cannot be used" in message
    assert "optuna" in message


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "lustre", "fuse.sshfs"])
def test_a_network_file_system_is_refused(tmp_path, kind):
    """SQLite on a network file system is refused with the file system's name, and no file is made."""
    folder = tmp_path / "shared home"
    folder.mkdir()
    mounted = str(folder).replace(" ", "\\040")
    mounts = tmp_path / "mounts"
    mounts.write_text(
        f"/dev/sda1 / ext4 rw 0 0\nserver:/x {mounted} {kind} rw 0 0\ntmpfs {tmp_path}/other tmpfs rw 0 0\n"
    )
    message = refusal(f"sqlite:///{folder}/studies.db", create=True, mounts=mounts)
    assert f"network file system ({kind})" in message
    assert "postgresql://" in message
    assert not list(folder.iterdir())


def test_a_link_to_a_network_file_system_is_refused(tmp_path):
    """It counts where a file really lies, not which way leads to it."""
    (tmp_path / "far").mkdir()
    (tmp_path / "near").symlink_to(tmp_path / "far")
    mounts = tmp_path / "mounts"
    mounts.write_text(f"/dev/sda1 / ext4 rw 0 0\nserver:/x {tmp_path}/far nfs rw 0 0\n")
    assert "nfs" in refusal(f"sqlite:///{tmp_path}/near/studies.db", create=True, mounts=mounts)


def test_a_local_file_system_is_opened(tmp_path):
    """A local folder beside, below or above a network mount is no network folder; the last mount counts."""
    folder = tmp_path / "home"
    folder.mkdir()
    mounts = tmp_path / "mounts"
    mounts.write_text(
        f"/dev/sda1 / ext4 rw 0 0\nserver:/x {tmp_path}/ho nfs rw 0 0\n"
        f"server:/x {tmp_path} nfs rw 0 0\n/dev/sdb1 {folder} nfs rw 0 0\n/dev/sdb1 {folder} xfs rw 0 0\n"
    )
    assert filesystem_of(folder / "studies.db", mounts) == "xfs"
    open_database(f"sqlite:///{folder}/studies.db", create=True, mounts=mounts).close()
    (tmp_path / "none").mkdir()
    open_database(f"sqlite:///{tmp_path}/none.db", create=True, mounts=tmp_path / "no-such-table").close()


def test_sqlite_settings_are_in_force(tmp_path):
    """Every connection waits a minute for a lock and syncs as WAL allows; the file is in WAL mode."""
    database = open_database(f"sqlite:///{tmp_path}/studies.db", create=True)
    with database.read() as first, database.read() as second:
        for connection in (first, second):
            found = {
                name: connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
                for name in ("journal_mode", "busy_timeout", "synchronous")
            }
            assert found == {"journal_mode": "wal", "busy_timeout": 60_000, "synchronous": 1}
    database.close()


def test_sqlite_takes_its_lock_before_it_reads(tmp_path):
    """A writing transaction has the write lock from its start; reading waits for none and takes none."""
    path = tmp_path / "studies.db"
    database = open_database(f"sqlite:///{path}", create=True)
    other = sqlite3.connect(path, timeout=0, isolation_level=None)
    with database.write(), database.read() as reading:
        assert reading.exec_driver_sql("SELECT count(*) FROM studies").scalar_one() == 0
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("BEGIN IMMEDIATE")
    with database.read() as reading:
        reading.exec_driver_sql("SELECT count(*) FROM studies")
        other.execute("BEGIN IMMEDIATE")
        other.execute("ROLLBACK")
    other.close()
    database.close()


def test_optuna_takes_the_lock_before_it_reads_too(tmp_path):
    """Optuna's own transactions, which pop the queue, begin with the write lock as well."""
    database = open_database(f"sqlite:///{tmp_path}/studies.db", create=True)
    said = []
    sqlalchemy.event.listen(
        database.engine, "before_cursor_execute", lambda c, cursor, statement, *rest: said.append(statement)
    )
    database.optuna.create_new_study([optuna.study.StudyDirection.MAXIMIZE], "one")
    assert said[0] == "BEGIN IMMEDIATE"
    database.close()


UTC = """
import alembic.command, psycopg
from floodsearch.storage.database import open_database

def main(index, url):
    database = open_database(url, create=True)
    with database.engine.connect() as one, database.engine.connect() as other:
        zones = [c.exec_driver_sql("SHOW timezone").scalar_one() for c in (one, other)]
    with database.write() as connection:
        zones.append(connection.exec_driver_sql("SHOW timezone").scalar_one())
    database.close()
    return zones
"""


@pytest.mark.postgres
def test_postgresql_sessions_are_in_utc(postgres_url, crowd):
    """Whatever time zone the environment asks for, every session works in UTC."""
    [zones] = crowd(UTC, 1, postgres_url, PGTZ="America/New_York").answers()
    assert zones == ["UTC"] * 3


@pytest.mark.postgres
def test_a_database_without_an_encoding_can_be_used(postgres_url):
    """SQL_ASCII is what initdb makes of the locale C; there texts are bytes, unless one asks otherwise."""
    server = sqlalchemy.make_url(postgres_url).set(drivername="postgresql+psycopg")
    engine = sqlalchemy.create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(
            "CREATE DATABASE ascii_only ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
        )
    try:
        url = server.set(drivername="postgresql", database="ascii_only").render_as_string(hide_password=False)
        open_database(url, create=True).close()
    finally:
        with engine.connect() as connection:
            connection.exec_driver_sql("DROP DATABASE ascii_only WITH (FORCE)")
        engine.dispose()


def test_closing_leaves_no_connection(postgres_url):
    """A closed database holds no connection of the server."""
    database = open_database(postgres_url, create=True)
    database.optuna.get_all_studies()
    database.close()
    assert execute(postgres_url, CONNECTIONS) == [(0,)]


@pytest.mark.postgres
def test_a_refused_database_leaves_no_connection(postgres_url):
    """Whatever is refused after it was connected to is closed again."""
    open_database(postgres_url, create=True).close()
    execute(postgres_url, f"UPDATE floodsearch_schema SET version = {schema.VERSION + 1}")
    refusal(postgres_url)
    refusal(postgres_url, create=True)
    assert execute(postgres_url, CONNECTIONS) == [(0,)]


CREATE = """
import alembic.command, psycopg
from floodsearch.storage.database import open_database

def main(index, url):
    database = open_database(url, create=True)
    names = [study.study_name for study in database.optuna.get_all_studies()]
    database.close()
    return names
"""


def test_six_processes_create_the_tables_at_once(storage_url, crowd):
    """Processes that open one empty database together all succeed and leave one row of each version."""
    assert crowd(CREATE, 6, storage_url).answers() == [[]] * 6
    assert execute(storage_url, "SELECT version FROM floodsearch_schema") == [(schema.VERSION,)]
    assert len(execute(storage_url, "SELECT version_num FROM alembic_version")) == 1
    assert len(execute(storage_url, "SELECT schema_version FROM version_info")) == 1
    open_database(storage_url).close()


def test_opening_again_finds_what_was_stored(storage_url, make_spec):
    """A database that is closed and opened, with or without `create`, holds its studies."""
    database = open_database(storage_url, create=True)
    stored = put_study(database, make_spec())
    database.close()
    for create in (False, True):
        database = open_database(storage_url, create=create)
        assert find_study(database, "tiny").uuid == stored.uuid
        database.close()
