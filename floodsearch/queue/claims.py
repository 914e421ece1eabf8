"""Tickets are taken: atomically, those that are trained together at once, with their levels."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from optuna.trial import FrozenTrial

from floodsearch.catalog import judge_of, rule_of
from floodsearch.queue.ownership import held, lose, lost, put_back
from floodsearch.queue.ticket import Ticket
from floodsearch.records import BY_HAND, Attribute, Parameter, TrialRecord
from floodsearch.search.history import tried_in
from floodsearch.search.samplers import SAMPLERS, Rule, propose
from floodsearch.search.space import Space
from floodsearch.storage import tables, trials
from floodsearch.storage.rows import read_by_optuna
from floodsearch.storage.studies import StoredStudy
from floodsearch.storage.trial_records import Wanted, record_of

log = logging.getLogger(__name__)


def take(
    study: StoredStudy,
    worker: int,
    revision: str | None = None,
    *,
    most: int | None = None,
    again: bool = False,
) -> list[Ticket]:
    """Take the next tickets that are trained together, with their levels; none if no ticket waits.

    Of a grid whose tickets are judged together this is a bracket; of open tickets as many as the judge says;
    else one. Taking is atomic: no ticket is in two hands. Where a sampler proposes levels, one worker at a
    time takes, so that each sees what the one before was given.

    Args:
        study: whose tickets.
        worker: who takes them.
        revision: of the user's own code that will train them.
        most: that fit into the worker's memory; None if that is not known to be less.
        again: whether an earlier call failed, so that the worker, whose hands are empty, may have taken
            tickets and not heard of it; then these are given.
    """
    if SAMPLERS[study.spec.search.sampler].fixed:
        return _take(study, worker, revision, most, again)
    with tables.lease(study.database, study.uuid, "propose"):
        return _take(study, worker, revision, most, again)


def _take(
    study: StoredStudy, worker: int, revision: str | None, fits: int | None, again: bool
) -> list[Ticket]:
    signature = {Attribute.WORKER: worker} | ({} if revision is None else {Attribute.REVISION: revision})
    most = judge_of(study.spec).most_open
    with study.database.write() as connection:
        running = trials.running(connection, study.id) if again else []
        claimed = [one.id for one in running if one.worker == worker]
        claimed = claimed or trials.claim(connection, study.id, signature, most=most, fits=fits)
    if not claimed:
        return []
    try:
        found = _records(study, claimed)
        if any(one.cause == BY_HAND for *_, one in found):
            study = study.reread()  # if it has grown since this worker looked, nothing is wrong
            found = _records(study, claimed)
        for trial_id, _, record in found:
            if record.cause == BY_HAND:
                _discard(study, trial_id, worker, record)
        sound = [one for one in found if one[-1].cause != BY_HAND]
        return [_ticket(study, *one, worker) for one in sound]
    except BaseException:
        for trial_id in claimed:
            put_back(study, trial_id, worker)
        raise


def _records(study: StoredStudy, trial_ids: Iterable[int]) -> list[tuple[int, FrozenTrial, TrialRecord]]:
    """Return trials of tickets with their ids, and what they may be in the study as it was read."""
    wanted = Wanted.of(study.spec)
    with read_by_optuna(f"a trial of study {study.name!r}"):
        found = [(trial_id, study.database.optuna.get_trial(trial_id)) for trial_id in trial_ids]
    records = [(trial_id, trial, record_of(trial, study, wanted)) for trial_id, trial in found]
    return [(trial_id, trial, record) for trial_id, trial, record in records if record is not None]


def _discard(study: StoredStudy, trial_id: int, worker: int, record: TrialRecord) -> None:
    """End a trial that was changed by hand, so that its ticket is queued again as it was."""
    log.warning("ticket %d is queued again: %s", record.ticket, record.reason)
    lose(study, trial_id, worker, str(record.reason), BY_HAND)


def _ticket(
    study: StoredStudy, trial_id: int, trial: FrozenTrial, record: TrialRecord, worker: int
) -> Ticket:
    parameters = dict(record.parameters)
    if not parameters and (rule := rule_of(study.spec)) is not None:
        parameters = _propose(study, rule, trial_id, record.ticket, worker)
    return Ticket(
        number=record.ticket,
        study=study,
        trial_id=trial_id,
        level=float(parameters.pop("level")),
        beside=parameters,
        epochs=record.epochs,
        seeds=study.spec.training.seeds[: record.seeds],
        attempt=record.attempt,
        worker=worker,
        confirms=bool(trial.user_attrs.get(Attribute.CONFIRMS)),
    )


def _propose(study: StoredStudy, rule: Rule, trial_id: int, ticket: int, worker: int) -> dict[str, Parameter]:
    """Return the level that a rule proposes for an open ticket, and what is beside it; write it down."""
    spec, space = study.spec, Space.of(study.spec)
    with read_by_optuna(f"a trial of study {study.name!r}"):
        every = study.database.optuna.get_all_trials(study.id, deepcopy=False)
    tried = tried_in(every, space, maximize=spec.maximize)
    proposed = propose(rule, space, tried, seed=spec.search.seed, ticket=ticket)
    with study.database.write() as connection:
        if not held(connection, trial_id, worker):
            raise lost(ticket)
        trials.set_parameters(connection, trial_id, proposed, space.distributions())
    return proposed
