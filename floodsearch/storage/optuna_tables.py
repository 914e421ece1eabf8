"""Optuna's tables, of the one revision that is written to directly; a database with another one is refused.

What Optuna makes public of them is their revision. The columns are therefore described here once more, and
nowhere else; a test compares them with Optuna's own description.
"""

from __future__ import annotations

import math

from optuna.storages import RDBStorage
from optuna.study import StudyDirection
from optuna.trial import TrialState
from sqlalchemy import Column, DateTime, Enum, Float, Integer, MetaData, String, Table, Text

REVISION = "v3.2.0.a"
"""Of Optuna's tables, since Optuna 3.2."""

metadata = MetaData()


def _attributes(name: str, of: str) -> Table:
    """Return a table of attributes, of studies or of trials: JSON by key."""
    return Table(name, metadata, Column(of, Integer), Column("key", String), Column("value_json", Text))


STUDY = Table(
    "studies", metadata, Column("study_id", Integer, primary_key=True), Column("study_name", String)
)
STUDY_ATTRIBUTE = _attributes("study_user_attributes", "study_id")
TRIAL = Table(
    "trials",
    metadata,
    Column("trial_id", Integer, primary_key=True),
    Column("number", Integer),
    Column("study_id", Integer),
    Column("state", Enum(TrialState)),
    Column("datetime_start", DateTime),  # these two in UTC, without a zone
    Column("datetime_complete", DateTime),
)
ATTRIBUTE = _attributes("trial_user_attributes", "trial_id")
PARAMETER = Table(
    "trial_params",
    metadata,
    Column("trial_id", Integer),
    Column("param_name", String),
    Column("param_value", Float(precision=53)),
    Column("distribution_json", Text),
)
VALUE = Table(
    "trial_values",
    metadata,
    Column("trial_id", Integer),
    Column("objective", Integer),
    Column("value", Float(precision=53)),
    Column("value_type", Enum("FINITE", "INF_POS", "INF_NEG", name="trialvaluetype")),
)
REPORT = Table(
    "trial_intermediate_values",
    metadata,
    Column("trial_id", Integer),
    Column("step", Integer),
    Column("intermediate_value", Float(precision=53)),
    Column(
        "intermediate_value_type",
        Enum("FINITE", "INF_POS", "INF_NEG", "NAN", name="trialintermediatevaluetype"),
    ),
)

# These only Optuna itself reads and writes; without them it fails later, and with less clear words.
_attributes("study_system_attributes", "study_id")
_attributes("trial_system_attributes", "trial_id")
Table(
    "study_directions",
    metadata,
    Column("study_id", Integer),
    Column("objective", Integer),
    Column("direction", Enum(StudyDirection)),
)
Table("trial_heartbeats", metadata, Column("trial_id", Integer), Column("heartbeat", DateTime))
Table("version_info", metadata, Column("schema_version", Integer), Column("library_version", String))


def stored_value(value: float) -> tuple[float | None, str]:
    """Return a value of a trial as `VALUE` holds it: a number, or none and the word for an infinity."""
    if math.isinf(value):
        return None, "INF_POS" if value > 0 else "INF_NEG"
    return value, "FINITE"


def stored_report(value: float) -> tuple[float | None, str]:
    """Return an intermediate value as `REPORT` holds it, where one that is not a number has a word too."""
    return (None, "NAN") if math.isnan(value) else stored_value(value)


def other_revision(storage: RDBStorage) -> str | None:
    """Return the revision of the tables of Optuna's in a database, where it is not ours; None where it is."""
    found = storage.get_current_version()
    return None if found == REVISION else found
