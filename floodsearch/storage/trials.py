"""Optuna's trials, changed in whole transactions: what Optuna's own calls cannot do at once or in bulk.

Optuna writes each report, attribute and state by itself, 2 to 4 ms each, and lets anyone finish any trial.
Here a trial is locked, its owner checked, and all that belongs together written, or nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from optuna.distributions import BaseDistribution, distribution_to_json
from optuna.trial import TrialState
from sqlalchemy import Connection, Integer, Select, Table, cast, func, insert, select, update

from floodsearch.records import Attribute, Parameter
from floodsearch.storage.optuna_tables import (
    ATTRIBUTE,
    PARAMETER,
    REPORT,
    STUDY,
    STUDY_ATTRIBUTE,
    TRIAL,
    VALUE,
    stored_report,
    stored_value,
)
from floodsearch.storage.schema import UPSERT


@dataclass(frozen=True)
class NewTrial:
    """A trial to be added to the queue; without parameters it waits for a sampler."""

    attributes: Mapping[Attribute, Any]
    parameters: Mapping[str, Parameter]


def add(
    connection: Connection,
    study_id: int,
    new: Sequence[NewTrial],
    distributions: Mapping[str, BaseDistribution],
) -> None:
    """Add waiting trials, all or none; they are numbered from the last one on, as Optuna does."""
    if not new:
        return
    connection.execute(select(STUDY.c.study_id).where(STUDY.c.study_id == study_id).with_for_update())
    last = select(func.max(TRIAL.c.number)).where(
        TRIAL.c.study_id == study_id
    )  # others may have deleted some
    newest = connection.execute(last).scalar_one_or_none()
    first = 0 if newest is None else newest + 1
    added = connection.execute(
        insert(TRIAL).returning(TRIAL.c.trial_id, sort_by_parameter_order=True),
        [
            {"study_id": study_id, "number": first + index, "state": TrialState.WAITING}
            for index in range(len(new))
        ],
    )
    trial_ids = added.scalars().all()
    pairs = list(zip(trial_ids, new, strict=True))
    _upsert(
        connection,
        ATTRIBUTE,
        [row for trial_id, one in pairs for row in _attribute_rows(trial_id, one.attributes)],
        key=("trial_id", "key"),
    )
    _upsert(
        connection,
        PARAMETER,
        [row for trial_id, one in pairs for row in _parameter_rows(trial_id, one.parameters, distributions)],
        key=("trial_id", "param_name"),
    )


def claim(
    connection: Connection,
    study_id: int,
    signature: Mapping[Attribute, Any],
    *,
    most: int = 1,
    fits: int | None = None,
) -> list[int]:
    """Claim the first waiting tickets of a study for a worker; return Optuna's ids of their trials.

    A ticket that belongs to a bracket is claimed with all that wait of its bracket, however many there are.
    SQLite's BEGIN IMMEDIATE lets one process in at a time; on PostgreSQL what another claims is passed over.
    Waiting trials without a ticket, added with Optuna or a dashboard, are left alone.

    Args:
        connection: in a transaction that may write.
        study_id: Optuna's id of the study.
        signature: who signs, with WORKER; attributes that stay until the ticket is put back.
        most: of tickets without a bracket.
        fits: of all; None if there is no bound.
    """
    claimed = _first_bracket(connection, study_id)
    if claimed is None:
        first = _waiting(study_id, Attribute.TICKET).with_for_update(skip_locked=True, of=TRIAL).limit(most)
        claimed = list(connection.execute(first).scalars())
    if claimed:
        claimed = claimed[:fits]
        started = update(TRIAL).where(TRIAL.c.trial_id.in_(claimed))
        connection.execute(started.values(state=TrialState.RUNNING, datetime_start=_now()))
        signed = [row for one in claimed for row in _attribute_rows(one, signature)]
        _upsert(connection, ATTRIBUTE, signed, key=("trial_id", "key"))
    return claimed


def _first_bracket(connection: Connection, study_id: int) -> list[int] | None:
    """Lock the waiting trials of the first bracket that nobody else is claiming; return their ids.

    On PostgreSQL the bracket itself is locked before its trials: two workers that come at once, each of which
    locks a trial and skips that of the other, would share it.

    Returns:
        None where the first ticket that waits belongs to no bracket.
    """
    passed: list[str] = []
    while (row := connection.execute(_first_waiting(study_id, passed)).first()) is not None:
        bracket: str | None = row[0]
        if bracket is None:
            return None
        if connection.dialect.name == "postgresql" and not _try_lock(connection, study_id, bracket):
            passed.append(bracket)
            continue
        same = _waiting(study_id, Attribute.BRACKET).where(ATTRIBUTE.c.value_json == bracket)
        if found := list(connection.execute(same.with_for_update(of=TRIAL)).scalars()):
            return found  # else another has claimed it since
    return []


def _try_lock(connection: Connection, study_id: int, bracket: str) -> bool:
    """Lock a bracket until the transaction ends, if nobody has; a clash of two hashes is taken for a lock."""
    digest = int.from_bytes(hashlib.sha256(bracket.encode()).digest()[:4], "big", signed=True)
    key = cast(study_id, Integer), cast(digest, Integer)
    return bool(connection.execute(select(func.pg_try_advisory_xact_lock(*key))).scalar_one())


def _first_waiting(study_id: int, passed: Sequence[str]) -> Select[Any]:
    """Return a query that gives the bracket of the first waiting ticket, without brackets passed over."""
    its = ATTRIBUTE.alias()
    of_bracket = (its.c.trial_id == TRIAL.c.trial_id) & (its.c.key == Attribute.BRACKET.value)
    return (
        select(its.c.value_json)
        .select_from(TRIAL)
        .join(ATTRIBUTE, ATTRIBUTE.c.trial_id == TRIAL.c.trial_id)
        .outerjoin(its, of_bracket)
        .where(TRIAL.c.study_id == study_id, TRIAL.c.state == TrialState.WAITING)
        .where(ATTRIBUTE.c.key == Attribute.TICKET.value)
        .where(its.c.value_json.is_(None) | its.c.value_json.not_in(passed))
        .order_by(TRIAL.c.number)
        .limit(1)
    )


@dataclass(frozen=True)
class RunningTrial:
    """A trial in training.

    Args:
        id: Optuna's id of it, by which it is locked.
        number: as a dashboard shows it.
        ticket: that it is of; None where somebody else began it.
        worker: the id of the worker that signed it, if one did.
    """

    id: int
    number: int
    ticket: int | None
    worker: int | None


def running(connection: Connection, study_id: int) -> list[RunningTrial]:
    """Return the trials of a study that are in training, in the order of their numbers."""
    keys = (Attribute.TICKET.value, Attribute.WORKER.value)
    named = (ATTRIBUTE.c.trial_id == TRIAL.c.trial_id) & ATTRIBUTE.c.key.in_(keys)
    query = (
        select(TRIAL.c.trial_id, TRIAL.c.number, ATTRIBUTE.c.key, ATTRIBUTE.c.value_json)
        .outerjoin(ATTRIBUTE, named)
        .where(TRIAL.c.study_id == study_id, TRIAL.c.state == TrialState.RUNNING)
        .order_by(TRIAL.c.number)
    )
    found: dict[tuple[int, int], dict[str, Any]] = {}
    for trial_id, number, key, value in connection.execute(query):
        of_trial = found.setdefault((trial_id, number), {})
        if key is not None:
            of_trial[key] = json.loads(value)
    return [RunningTrial(*one, *map(known.get, keys)) for one, known in found.items()]


def _waiting(study_id: int, attribute: Attribute) -> Select[Any]:
    """Return a query that gives the ids of the waiting trials with an attribute, by trial number."""
    return (
        select(TRIAL.c.trial_id)
        .join(ATTRIBUTE, ATTRIBUTE.c.trial_id == TRIAL.c.trial_id)
        .where(TRIAL.c.study_id == study_id, TRIAL.c.state == TrialState.WAITING)
        .where(ATTRIBUTE.c.key == attribute.value)
        .order_by(TRIAL.c.number)
    )


def lock(connection: Connection, trial_id: int) -> tuple[TrialState | None, int | None]:
    """Lock a trial until the transaction ends; return its state and the worker that signed it.

    The state is None if somebody deleted the trial.
    """
    locked = select(TRIAL.c.state).where(TRIAL.c.trial_id == trial_id).with_for_update()
    state: TrialState | None = connection.execute(locked).scalar_one_or_none()
    signed = (ATTRIBUTE.c.trial_id == trial_id) & (ATTRIBUTE.c.key == Attribute.WORKER.value)
    worker = connection.execute(select(ATTRIBUTE.c.value_json).where(signed)).scalar_one_or_none()
    return state, None if worker is None else json.loads(worker)


def cause(connection: Connection, trial_id: int) -> Any:
    """Return the cause with which we ended a trial; None if we did not."""
    written = (ATTRIBUTE.c.trial_id == trial_id) & (ATTRIBUTE.c.key == Attribute.CAUSE.value)
    found = connection.execute(select(ATTRIBUTE.c.value_json).where(written)).scalar_one_or_none()
    return None if found is None else json.loads(found)


def sharing(connection: Connection, key: str, uuid: str) -> dict[int, str]:
    """Return the names of the studies whose attribute of a key holds a uuid, by Optuna's ids of them.

    More than one have the same after somebody copied a study, as a dashboard does to rename it.
    """
    having = (STUDY_ATTRIBUTE.c.key == key) & STUDY_ATTRIBUTE.c.value_json.contains(uuid)
    found = select(STUDY.c.study_id, STUDY.c.study_name).join(
        STUDY_ATTRIBUTE, STUDY_ATTRIBUTE.c.study_id == STUDY.c.study_id
    )
    rows = connection.execute(found.where(having).order_by(STUDY.c.study_id)).all()
    return {row.study_id: row.study_name for row in rows}


def annotate(connection: Connection, trial_id: int, attributes: Mapping[Attribute, Any]) -> None:
    """Set user attributes of a locked trial."""
    _upsert(connection, ATTRIBUTE, _attribute_rows(trial_id, attributes), key=("trial_id", "key"))


def _attribute_rows(trial_id: int, attributes: Mapping[Attribute, Any]) -> list[dict[str, Any]]:
    return [
        {"trial_id": trial_id, "key": key.value, "value_json": json.dumps(value)}
        for key, value in attributes.items()
    ]


def set_parameters(
    connection: Connection,
    trial_id: int,
    parameters: Mapping[str, Parameter],
    distributions: Mapping[str, BaseDistribution],
) -> None:
    """Set the parameters of a trial that has none yet."""
    rows = _parameter_rows(trial_id, parameters, distributions)
    _upsert(connection, PARAMETER, rows, key=("trial_id", "param_name"))


def _parameter_rows(
    trial_id: int, parameters: Mapping[str, Parameter], distributions: Mapping[str, BaseDistribution]
) -> list[dict[str, Any]]:
    return [
        {
            "trial_id": trial_id,
            "param_name": name,
            "param_value": distributions[name].to_internal_repr(value),
            "distribution_json": distribution_to_json(distributions[name]),
        }
        for name, value in parameters.items()
    ]


def report(connection: Connection, trial_id: int, values: Mapping[int, float]) -> None:
    """Set intermediate values of a locked trial, by epoch."""
    rows = []
    for epoch, value in values.items():
        stored, kind = stored_report(value)
        rows.append(
            {
                "trial_id": trial_id,
                "step": epoch,
                "intermediate_value": stored,
                "intermediate_value_type": kind,
            }
        )
    _upsert(connection, REPORT, rows, key=("trial_id", "step"))


def finish(connection: Connection, trial_id: int, state: TrialState, value: float | None) -> None:
    """End a locked trial; a pruned one without a value keeps its last report as its value."""
    if value is None and state == TrialState.PRUNED:
        last = select(REPORT.c.intermediate_value).where(REPORT.c.trial_id == trial_id)
        value = connection.execute(last.order_by(REPORT.c.step.desc()).limit(1)).scalar_one_or_none()
    if value is not None:
        stored, kind = stored_value(value)
        row = {"trial_id": trial_id, "objective": 0, "value": stored, "value_type": kind}
        _upsert(connection, VALUE, [row], key=("trial_id", "objective"))
    ended = update(TRIAL).where(TRIAL.c.trial_id == trial_id)
    connection.execute(ended.values(state=state, datetime_complete=_now()))


def put_back(connection: Connection, trial_id: int, counter: Attribute) -> None:
    """Put a locked trial back into the queue, without a worker, and raise the counter of why.

    What it has reported stays, and is reported again: a worker may not delete rows.
    """
    counted = (ATTRIBUTE.c.trial_id == trial_id) & (ATTRIBUTE.c.key == counter.value)
    before = connection.execute(select(ATTRIBUTE.c.value_json).where(counted)).scalar_one_or_none()
    nobody = {Attribute.WORKER: None, Attribute.REVISION: None}
    annotate(connection, trial_id, {**nobody, counter: json.loads(before or "0") + 1})
    again = update(TRIAL).where(TRIAL.c.trial_id == trial_id)
    connection.execute(again.values(state=TrialState.WAITING, datetime_start=None))


def forgive(connection: Connection, study_id: int) -> None:
    """Mark the errors of a study's tickets as forgiven, so that each ticket has all its attempts again."""
    failed = select(TRIAL.c.trial_id).where(TRIAL.c.study_id == study_id, TRIAL.c.state == TrialState.FAIL)
    errors = (ATTRIBUTE.c.key == Attribute.CAUSE.value) & (ATTRIBUTE.c.value_json == json.dumps("error"))
    forgiven = update(ATTRIBUTE).where(errors, ATTRIBUTE.c.trial_id.in_(failed))
    connection.execute(forgiven.values(value_json=json.dumps("forgiven")))


def resize(connection: Connection, study_id: int, size: Mapping[Attribute, int]) -> None:
    """Set attributes of all waiting tickets of a study; one that is being taken at this moment keeps its own.

    Args:
        connection: in a transaction that may write.
        study_id: Optuna's id of the study.
        size: how many epochs and seeds a ticket has.
    """
    waiting = select(TRIAL.c.trial_id).where(
        TRIAL.c.study_id == study_id, TRIAL.c.state == TrialState.WAITING
    )
    trial_ids = connection.execute(waiting.with_for_update(skip_locked=True)).scalars().all()
    for key, value in size.items():
        changed = (ATTRIBUTE.c.key == key.value) & ATTRIBUTE.c.trial_id.in_(trial_ids)
        connection.execute(update(ATTRIBUTE).where(changed).values(value_json=json.dumps(value)))


def _now() -> datetime:
    """Return the present time as Optuna stores it: UTC, without a zone."""
    return datetime.now(UTC).replace(tzinfo=None)


def _upsert(connection: Connection, table: Table, rows: list[dict[str, Any]], key: tuple[str, ...]) -> None:
    if not rows:
        return
    add: Any = UPSERT[connection.dialect.name](table)
    replaced = {name: add.excluded[name] for name in rows[0] if name not in key}
    connection.execute(add.on_conflict_do_update(index_elements=key, set_=replaced), rows)
