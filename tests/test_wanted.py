"""Which tickets a study still needs, told from records alone: nothing here opens a database."""

from __future__ import annotations

import pytest

from floodsearch.queue.brackets import bracket_of, portions
from floodsearch.queue.wanted import ATTEMPTS, missing, short_of_seeds, trained_to_the_end
from floodsearch.records import BY_HAND, TrialRecord

EPOCHS, SEEDS = 10, 2


@pytest.fixture
def spec(make_spec):
    """Give a study of four tickets."""
    return make_spec(levels={"count": 4}, training={"epochs": EPOCHS, "seeds": SEEDS})


def trial(number, ticket, state, **changes):
    told = {"epochs": EPOCHS, "seeds": SEEDS, "parameters": {"level": 0.1 * ticket}}
    return TrialRecord(trial=number, ticket=ticket, state=state, **(told | changes))


def ended(*states):
    """Return a trial of each ticket in turn, in these states."""
    return [trial(number, number, state) for number, state in enumerate(states)]


def test_tickets_that_never_were_are_missing(spec):
    """An empty queue lacks all; one that was cut short lacks the rest."""
    assert missing(spec, []) == [0, 1, 2, 3]
    assert missing(spec, ended("waiting", "running", "complete")) == [3]
    assert missing(spec, ended("waiting", "running", "complete", "pruned")) == []


def test_an_error_is_tried_so_often(spec):
    """A ticket that fails is missing until its last attempt; losses and changes by hand do not count."""
    done = ended("complete", "complete", "complete")
    errors = [trial(3 + attempt, 3, "failed", cause="error") for attempt in range(ATTEMPTS)]
    assert missing(spec, done + errors[:-1]) == [3]
    assert missing(spec, done + errors) == []
    others = [trial(9, 3, "failed", cause="lost"), trial(10, 3, "failed", cause=BY_HAND)]
    assert missing(spec, done + errors[:-1] + others) == [3]


def test_more_epochs_make_what_is_complete_missing(spec):
    """A ticket that was pruned stays so, as its curve says enough."""
    history = [trial(0, 0, "complete", epochs=5), trial(1, 1, "pruned", epochs=5)]
    assert missing(spec, history) == [0, 2, 3]
    assert trained_to_the_end(spec, history) == set()
    assert trained_to_the_end(spec, [*history, trial(2, 0, "complete", seeds=1)]) == {0}


def test_more_seeds_wait_until_nothing_else_is_left(spec):
    """Tickets that are complete with fewer seeds are asked about when no other waits or is in training."""
    history = [trial(number, number, "complete", seeds=1) for number in range(3)]
    assert short_of_seeds(spec, [*history, trial(3, 3, "running")]) == []
    assert short_of_seeds(spec, [*history, trial(3, 3, "pruned", seeds=1)]) == [0, 1, 2]
    again = [trial(3, 3, "pruned", seeds=1), trial(4, 1, "complete")]
    assert short_of_seeds(spec, history + again) == [0, 2]


def test_brackets_are_blocks_of_a_grid_under_halving(make_spec):
    """Each has as many tickets as the others, or one more; elsewhere a ticket belongs to none."""
    spec = make_spec(levels={"count": 9}, search={"pruner": "halving"}, halving={"brackets": 2})
    bracket = bracket_of(spec, 9)
    assert [bracket(ticket) for ticket in range(9)] == [0] * 5 + [1] * 4
    assert portions(spec) == 2
    alone = make_spec(levels={"count": 9}, search={"pruner": "none"})
    assert bracket_of(alone, 9)(4) is None
    assert portions(alone) == 9
