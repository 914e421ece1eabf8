"""The data of a study as CSV, JSON or Parquet: one row a trial, or one row a seed and epoch."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from floodsearch.records import EpochRecord, SeedResult
from floodsearch.storage import tables
from floodsearch.storage.studies import StoredStudy, read_trials

Row = dict[str, Any]

CURVE_COLUMNS = ("ticket", *(field.name for field in fields(EpochRecord)))
TRIAL_COLUMNS = (
    "trial",
    "ticket",
    "attempt",
    "state",
    "level",
    "epochs",
    "seeds",
    "value",
    "flooded",
    "cause",
    "reason",
    "revision",
)
SEED_COLUMNS = tuple(field.name for field in fields(SeedResult) if field.name != "seed")


def curve_rows(study: StoredStudy) -> tuple[list[str], list[Row]]:
    """Return the columns and one row for each ticket, seed and epoch."""
    curves = tables.read_curves(study.database, study.uuid)
    rows = [{"ticket": ticket, **asdict(record)} for ticket, records in curves.items() for record in records]
    return list(CURVE_COLUMNS), rows


def trial_rows(study: StoredStudy) -> tuple[list[str], list[Row]]:
    """Return the columns and one row for each trial: its settings, its state, and means over seeds."""
    searched = [*study.spec.searched, *study.spec.searched_settings]
    columns = [*TRIAL_COLUMNS[:5], *searched, *TRIAL_COLUMNS[5:], *(f"seed_{name}" for name in SEED_COLUMNS)]
    rows = []
    for trial in read_trials(study):
        own: Row = {
            "trial": trial.trial,
            "ticket": trial.ticket,
            "attempt": trial.attempt,
            "state": trial.state,
            "level": trial.level,
            "epochs": trial.epochs,
            "seeds": trial.seeds,
            "value": trial.value,
            "flooded": trial.flooded,
            "cause": trial.cause,
            "reason": trial.reason,
            "revision": trial.revision,
            **{name: trial.beside.get(name) for name in searched},
        }
        # One number a seed, in the order of the seeds, so that nothing is lost in a mean.
        per_seed = {f"seed_{name}": [getattr(one, name) for one in trial.results] for name in SEED_COLUMNS}
        rows.append({name: {**own, **per_seed}[name] for name in columns})
    return columns, rows


def as_csv(columns: Sequence[str], rows: Sequence[Row]) -> bytes:
    """Return CSV with a header; lists are written as JSON, what is not known as nothing."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {name: json.dumps(value) if isinstance(value, list) else value for name, value in row.items()}
        for row in rows
    )
    return _utf8(text.getvalue())


def as_json(columns: Sequence[str], rows: Sequence[Row]) -> bytes:
    """Return a JSON list of objects."""
    del columns
    return (json.dumps(list(rows), indent=1) + "\n").replace("\x7f", "\\u007f").encode()


def as_parquet(columns: Sequence[str], rows: Sequence[Row]) -> bytes:
    """Return a Parquet file."""
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table({name: [_storable(row[name]) for row in rows] for name in columns})
    sink = pyarrow.BufferOutputStream()
    parquet.write_table(table, sink)
    return bytes(sink.getvalue().to_pybytes())


def _storable(value: Any) -> Any:
    return _utf8(value).decode() if isinstance(value, str) else value


def _utf8(text: str) -> bytes:
    """Return a text as UTF-8, with escapes for halves of characters: JSON may hold them, UTF-8 may not."""
    return text.encode(errors="backslashreplace")


FORMATS: Mapping[str, Callable[[Sequence[str], Sequence[Row]], bytes]] = {
    "csv": as_csv,
    "json": as_json,
    "parquet": as_parquet,
}
