"""A ticket in the hands of a worker, and what the worker has to write down of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from floodsearch.records import EpochRecord, Parameter
from floodsearch.storage.studies import StoredStudy


@dataclass(frozen=True)
class Ticket:
    """One experiment in the hands of a worker.

    Args:
        number: of the ticket.
        study: whose it is, with its spec as of when the ticket was taken.
        trial_id: Optuna's trial under which it is trained this time.
        level: flood level, in the unit of the loss.
        beside: the parameters searched beside the level.
        epochs: how long each run is.
        seeds: of its runs.
        attempt: how often it was taken up, from 1; more than that after a loss, or when the study grew.
        worker: the id of the worker that holds it.
        confirms: whether it is trained to its end whatever the pruner says, because it is the answer or was
            complete with fewer seeds.
    """

    number: int
    study: StoredStudy
    trial_id: int
    level: float
    beside: Mapping[str, Parameter]
    epochs: int
    seeds: tuple[int, ...]
    attempt: int
    worker: int
    confirms: bool = False


@dataclass(frozen=True)
class Entry:
    """The part of a ticket's curves that the database does not have yet.

    Args:
        ticket: whose it is.
        records: its epochs.
        reports: the recent means that others see, by rung.
        ends: by seed, the epoch at which a run has ended before its last one; nothing is known behind it.
    """

    ticket: Ticket
    records: Sequence[EpochRecord]
    reports: Mapping[int, float]
    ends: Mapping[int, int] = field(default_factory=dict)
