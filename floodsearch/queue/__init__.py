"""The queue is the budget: the tickets of a study, filled, taken, finished, handed back and repaired.

A ticket is one experiment. It lies in the queue as a waiting Optuna trial and keeps its number when its
training is lost and done again under another trial. This is the only package that changes a trial's state.
"""

from floodsearch.queue.brackets import bracket_of, portions
from floodsearch.queue.budget import STOPPED_BY_COMMAND, closed, seconds_worked
from floodsearch.queue.claims import take
from floodsearch.queue.ends import (
    FAILURES_IN_A_ROW,
    complete,
    diverge,
    fail,
    hand_all_back,
    hand_back,
    prune,
    record,
)
from floodsearch.queue.filling import fill, unfinished
from floodsearch.queue.judging import judge, set_aside
from floodsearch.queue.reaper import GRACE_SECONDS, PILOT, Reaper, pilot_holder, release
from floodsearch.queue.ticket import Entry, Ticket
from floodsearch.queue.wanted import ATTEMPTS

__all__ = [
    "ATTEMPTS",
    "FAILURES_IN_A_ROW",
    "GRACE_SECONDS",
    "PILOT",
    "STOPPED_BY_COMMAND",
    "Entry",
    "Reaper",
    "Ticket",
    "bracket_of",
    "closed",
    "complete",
    "diverge",
    "fail",
    "fill",
    "hand_all_back",
    "hand_back",
    "judge",
    "pilot_holder",
    "portions",
    "prune",
    "record",
    "release",
    "seconds_worked",
    "set_aside",
    "take",
    "unfinished",
]
