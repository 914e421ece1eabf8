"""Our tables beside Optuna's: curves, workers, leases, warnings, and the version of their schema."""

from __future__ import annotations

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    Double,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    delete,
    func,
    insert,
    literal_column,
    select,
)
from sqlalchemy.dialects import postgresql, sqlite

VERSION = 3
"""Raised whenever a table changes; a database with another one is refused."""
KIND_CHARACTERS = 64
"""The longest name of a kind of warnings."""

metadata = MetaData()

stamp = Table("floodsearch_schema", metadata, Column("version", Integer, primary_key=True))

curves = Table(
    "floodsearch_curves",
    metadata,
    Column("study", String(32), primary_key=True),  # a uuid of ours: SQLite gives Optuna's ids out again
    Column("ticket", Integer, primary_key=True),
    Column("seed", Integer, primary_key=True),
    Column("epoch", Integer, primary_key=True),
    Column("level", Double, nullable=False),
    Column("train_loss", Double),
    Column("train_accuracy", Double),
    Column("flooded", Double),
    Column("val_loss", Double),
    Column("val_accuracy", Double),
    Column("test_loss", Double),
    Column("test_accuracy", Double),
    Column("test_accuracy_clean", Double),
    Column("metric", Double),
    sqlite_with_rowid=False,  # the key is most of the row; do not store it twice
)

workers = Table(
    "floodsearch_workers",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("study", String(32), nullable=False, index=True),
    Column("host", String(255), nullable=False),
    Column("pid", Integer, nullable=False),
    Column("device", String(64), nullable=False),
    Column("started", Double, nullable=False),
    Column("last_beat", Double, nullable=False),
    Column("left", Double),
    Column("training", Text, nullable=False),  # tickets, a JSON list
    Column("epochs_run", Integer, nullable=False),
    Column("versions", Text, nullable=False),  # a JSON object
)

leases = Table(
    "floodsearch_leases",
    metadata,
    Column("study", String(128), primary_key=True),
    Column("name", String(32), primary_key=True),
    Column("holder", String(64), nullable=False),
    Column("until", Double, nullable=False),
)

warnings = Table(
    "floodsearch_warnings",
    metadata,
    Column("study", String(32), primary_key=True),
    Column("kind", String(KIND_CHARACTERS), primary_key=True),
    Column("text", Text, nullable=False),
    Column("written", Double, nullable=False),
)

UPSERT = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}


GUARDED = (
    ("studies", ""),
    ("study_directions", ""),
    ("study_system_attributes", ""),
    ("study_user_attributes", "floodsearch:pilot, floodsearch:engine, floodsearch:stopped"),
    ("version_info", ""),
    ("alembic_version", ""),
    ("floodsearch_schema", ""),
)
"""The tables that only their owner may change, and the attributes in them that anyone may set: a worker has
to settle these. Workers lock rows of `studies`, for which they need the right to update it."""

GUARD = """
CREATE FUNCTION floodsearch_guard() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog AS $guard$
DECLARE
    settled text[] := string_to_array(TG_ARGV[0], ', ');
BEGIN
    IF pg_has_role(current_user, (SELECT relowner FROM pg_class WHERE oid = TG_RELID), 'USAGE') THEN
        RETURN NEW;
    END IF;
    IF to_jsonb(NEW) ->> 'key' = ANY (settled) AND (TG_OP = 'INSERT' OR (
        to_jsonb(OLD) ->> 'key' = to_jsonb(NEW) ->> 'key'
        AND to_jsonb(OLD) ->> 'study_id' = to_jsonb(NEW) ->> 'study_id'
    )) THEN
        RETURN NEW;
    END IF;
    RAISE insufficient_privilege USING MESSAGE = 'permission denied: only the owner of table '
        || TG_TABLE_NAME || ' may change this in it, not role ' || current_user;
END
$guard$
"""


def create(connection: Connection) -> None:
    """Make our tables that are missing and, on PostgreSQL, the triggers that guard what a study is.

    Workers may have a role that can insert and update, but not say what a study is.
    """
    metadata.create_all(connection)
    if connection.dialect.name == "postgresql":
        _guard(connection)
    if connection.execute(select(stamp.c.version)).first() is None:
        connection.execute(insert(stamp).values(version=VERSION))


def _guard(connection: Connection) -> None:
    if connection.exec_driver_sql("SELECT to_regproc('floodsearch_guard')").scalar() is not None:
        return
    connection.exec_driver_sql(GUARD)
    for table, settled in GUARDED:
        connection.exec_driver_sql(
            f"CREATE TRIGGER floodsearch_guard BEFORE INSERT OR UPDATE ON {table} "
            f"FOR EACH ROW EXECUTE FUNCTION floodsearch_guard('{settled}')"
        )


def version(connection: Connection) -> int:
    """Return the version of the schema that the database holds; 0 if it was never finished."""
    return connection.execute(select(func.max(stamp.c.version))).scalar() or 0


def database_clock(connection: Connection) -> ColumnElement[float]:
    """Return the database's clock, in seconds since 1970 UTC; workers' clocks may differ."""
    if connection.dialect.name == "sqlite":
        return literal_column("(julianday('now') - 2440587.5) * 86400.0", Double)
    return literal_column("extract(epoch from clock_timestamp())::double precision", Double)


def forget(connection: Connection, study: str) -> None:
    """Remove all rows of a study, by our uuid of it."""
    for table in (curves, workers, leases, warnings):
        connection.execute(delete(table).where(table.c.study == study))
