"""Optuna's tables as they are described here, checked when a database is opened, and against Optuna."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
from optuna.storages._rdb import models
from optuna.trial import TrialState
from sqlalchemy import Enum, Table

from floodsearch import queue
from floodsearch.errors import StorageError
from floodsearch.records import Attribute
from floodsearch.storage import optuna_tables, schema, trials
from floodsearch.storage.database import Database, open_database
from floodsearch.storage.optuna_tables import REVISION, metadata, stored_report, stored_value
from floodsearch.storage.studies import put_study
from floodsearch.storage.trials import RunningTrial

WRITTEN = {
    "studies": ("study_id", "study_name"),
    "study_user_attributes": ("study_id", "key", "value_json"),
    "trials": ("trial_id", "number", "study_id", "state", "datetime_start", "datetime_complete"),
    "trial_user_attributes": ("trial_id", "key", "value_json"),
    "trial_params": ("trial_id", "param_name", "param_value", "distribution_json"),
    "trial_values": ("trial_id", "objective", "value", "value_type"),
    "trial_intermediate_values": (*("trial_id", "step", "intermediate_value", "intermediate_value_type"),),
}
"""The columns that floodsearch itself reads or writes, by table."""


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/studies.db"


def change(url: str, statement: str) -> None:
    """Change the tables by hand."""
    engine = sqlalchemy.create_engine(url)
    with engine.begin() as connection:
        connection.exec_driver_sql(statement)
    engine.dispose()


def test_what_is_written_is_described() -> None:
    """The description holds each column that the statements of floodsearch name."""
    for name, columns in WRITTEN.items():
        assert set(metadata.tables[name].columns.keys()) == set(columns)


@pytest.mark.parametrize("table", metadata.sorted_tables, ids=lambda table: table.name)
def test_a_description_is_optunas_own(table: Table) -> None:
    """Each table and column is one of Optuna's models, of the same type, an enumeration with its words."""
    own = models.BaseModel.metadata.tables[table.name]
    for column in table.columns:
        of_optuna = own.columns[column.name].type
        assert type(column.type) is type(of_optuna)
        if isinstance(column.type, Enum):
            assert (column.type.name, set(column.type.enums)) == (of_optuna.name, set(of_optuna.enums))


def test_no_table_of_optunas_is_forgotten() -> None:
    """A table that Optuna adds is noticed, as it belongs to a new revision."""
    assert models.BaseModel.metadata.tables.keys() == metadata.tables.keys()


@pytest.mark.parametrize("value", [0.5, -1e300, 0.0, math.inf, -math.inf, math.nan])
def test_numbers_are_stored_as_optuna_stores_them(value: float) -> None:
    """Infinities, and reports that are no numbers, are a word beside a column without a number."""
    for stored, own in (
        (stored_value, models.TrialValueModel.value_to_stored_repr),
        (stored_report, models.TrialIntermediateValueModel.intermediate_value_to_stored_repr),
    ):
        number, word = own(value)
        assert repr(stored(value)) == repr((number, word.name))


@pytest.mark.parametrize("table", WRITTEN)
def test_a_table_without_a_column_that_is_used_is_refused(url: str, table: str) -> None:
    """Whatever column of the tables that are written to is missing is named, in one line, at the opening."""
    open_database(url, create=True).close()
    for column in WRITTEN[table]:
        change(url, f"ALTER TABLE {table} RENAME COLUMN {column} TO moved")
        with pytest.raises(StorageError) as caught:
            open_database(url)
        assert str(caught.value).startswith(f"{url} lacks the column {column!r} of table {table!r}; ")
        assert "\n" not in str(caught.value)
        change(url, f"ALTER TABLE {table} RENAME COLUMN moved TO {column}")
    open_database(url).close()


@pytest.mark.parametrize("made", [False, True])
def test_another_revision_of_optunas_tables_is_refused(
    url: str, monkeypatch: pytest.MonkeyPatch, made: bool
) -> None:
    """A line says which revision is there and which is known; of a new file nothing of ours is made."""
    if made:
        open_database(url, create=True).close()
    monkeypatch.setattr(optuna_tables, "REVISION", "v0.0.0")
    said = (
        rf"has tables of Optuna {optuna.__version__} \(revision {REVISION}, this floodsearch knows v0.0.0\); "
        "upgrade with: pip install -U floodsearch"
    )
    for create in {True, not made}:
        with pytest.raises(StorageError, match=said) as caught:
            open_database(url, create=create)
        assert "\n" not in str(caught.value)
    engine = sqlalchemy.create_engine(url)
    assert sqlalchemy.inspect(engine).has_table(schema.stamp.name) == made
    engine.dispose()


def test_what_is_written_is_read_by_optuna(database: Database, make_spec: Callable[..., Any]) -> None:
    """A ticket that was taken, reported and pruned here is the trial that Optuna reads."""
    study = put_study(database, make_spec())
    queue.fill(study)
    with database.write() as connection:
        [trial_id] = trials.claim(connection, study.id, {Attribute.WORKER: 7})
        trials.report(connection, trial_id, {2: 0.25, 4: math.inf, 6: math.nan, 8: 0.75})
        trials.annotate(connection, trial_id, {Attribute.CAUSE: "pruned"})
        trials.finish(connection, trial_id, TrialState.PRUNED, None)
    found = optuna.load_study(study_name="tiny", storage=database.optuna).trials[0]
    assert (found.state, found.value, found.params) == (TrialState.PRUNED, 0.75, {"level": 0.0})
    assert repr(found.intermediate_values) == repr({2: 0.25, 4: math.inf, 6: math.nan, 8: 0.75})
    assert (found.user_attrs["worker"], found.user_attrs["cause"]) == (7, "pruned")
    assert found.datetime_start is not None
    assert found.datetime_complete is not None
    assert abs(found.datetime_complete.astimezone(UTC) - datetime.now(UTC)) < timedelta(minutes=5)


def test_what_runs_is_told_with_its_holder(database: Database, make_spec: Callable[..., Any]) -> None:
    """A trial in training has its ids, its ticket and its worker; one of somebody else has neither."""
    study = put_study(database, make_spec())
    queue.fill(study)
    with database.write() as connection:
        taken = [
            trial_id
            for worker in (7, 8)
            for trial_id in trials.claim(connection, study.id, {Attribute.WORKER: worker})
        ]
        trials.finish(connection, taken[0], TrialState.FAIL, None)
    template = optuna.create_trial(state=TrialState.RUNNING)
    other = database.optuna.create_new_trial(study.id, template)
    with database.read() as connection:
        assert trials.running(connection, study.id) == [
            RunningTrial(id=taken[1], number=1, ticket=1, worker=8),
            RunningTrial(id=other, number=3, ticket=None, worker=None),
        ]
