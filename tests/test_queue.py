"""The queue: every ticket exactly once, whatever is killed, handed back, extended or taken at once."""

from __future__ import annotations

import os
from collections import Counter
from contextlib import contextmanager
from functools import partial

import pytest
import sqlalchemy
from optuna.trial import TrialState

from floodsearch import queue
from floodsearch.answer.tickets import count, latest
from floodsearch.catalog import judge_of
from floodsearch.errors import DivergedError, TicketLostError
from floodsearch.queries import status
from floodsearch.queue import ATTEMPTS, FAILURES_IN_A_ROW, Entry, Reaper
from floodsearch.records import Attribute, Decision, WorkerRecord
from floodsearch.search.halving import Standing
from floodsearch.search.judge import Halving
from floodsearch.storage import schema, tables
from floodsearch.storage.database import Database, open_database
from floodsearch.storage.studies import find_study, put_study
from floodsearch.storage.trial_records import read_trials
from floodsearch.worker.work import _taken

sqlite = pytest.mark.parametrize("storage_url", ["sqlite"], indirect=True)
"""Of tests whose promise no dialect, lock, clock or outage of a database can change."""
REPEATS = range(int(os.environ.get("FLOODSEARCH_REPEAT", "1")))
"""FLOODSEARCH_REPEAT=20 runs the races so many times."""


def take_one(study, worker):
    """Take the next ticket of a study whose tickets are not taken together; None if no ticket waits."""
    found = queue.take(study, worker)
    assert len(found) <= 1
    return found[0] if found else None


@pytest.fixture
def study(database, make_spec):
    """Give the tiny study with its three tickets waiting."""
    stored = put_study(database, make_spec())
    queue.fill(stored)
    return stored


def enter(study):
    return tables.enter_worker(study.database, study.uuid, host="here", pid=1, device="cpu", versions={})


def newest(study):
    return latest(read_trials(study))


def raw(study, number):
    """Return Optuna's own view of a trial."""
    return study.database.optuna.get_all_trials(study.id, deepcopy=False)[number]


def expire_leases(database):
    """Let all leases run out, as they do a minute after their holder was killed."""
    with database.write() as connection:
        connection.execute(sqlalchemy.update(schema.leases).values(until=0))


@pytest.fixture
def other(database, storage_url):
    """Give the same database as another process has it open."""
    opened = open_database(storage_url)
    yield opened
    opened.close()


@contextmanager
def before_each_transaction(database, action):
    """Call an action whenever a connection is fetched for a transaction, before that holds any lock."""
    hook = lambda connection, record, proxy: action()  # noqa: E731
    sqlalchemy.event.listen(database.engine, "checkout", hook)
    try:
        yield
    finally:
        sqlalchemy.event.remove(database.engine, "checkout", hook)


# Filling


@sqlite
def test_fill_makes_exactly_the_tickets(study):
    """A filled queue holds each level once, waiting, level 0 first, and filling again adds none."""
    assert queue.fill(study) == 0
    trials = read_trials(study)
    assert [trial.ticket for trial in trials] == [0, 1, 2]
    assert [trial.level for trial in trials] == [0.0, 0.25, 0.5]
    assert {trial.state for trial in trials} == {"waiting"}
    assert {(trial.epochs, trial.seeds, trial.attempt) for trial in trials} == {(10, 2, 1)}


@sqlite
def test_a_sampled_search_has_open_tickets(database, make_spec):
    """All tickets but those of level 0 wait without a level until a worker takes them."""
    study = put_study(database, make_spec(levels={"count": None}, search={"sampler": "random", "trials": 4}))
    assert queue.fill(study) == 4
    assert [trial.level for trial in read_trials(study)] == [0.0, None, None, None]


FILL = """
import psycopg
from floodsearch import queue
from floodsearch.storage.database import Database, open_database
from floodsearch.storage.studies import find_study

def main(index, url):
    database = open_database(url)
    added = queue.fill(find_study(database, "tiny"))
    database.close()
    return added
"""


@pytest.mark.parametrize("repeat", REPEATS)
def test_six_processes_fill_at_once(database, storage_url, make_spec, crowd, repeat):
    """Processes that fill one queue together add each ticket once."""
    study = put_study(database, make_spec(levels={"count": 30}))
    added = crowd(FILL, 6, storage_url).answers()
    assert sum(added) == 30
    assert sorted(trial.ticket for trial in read_trials(study)) == list(range(30))


KILLED_FILL = """
import os
import signal
import sqlalchemy
from floodsearch import queue
from floodsearch.storage.database import Database, open_database
from floodsearch.storage.studies import find_study

def main(index, url):
    database = open_database(url)

    @sqlalchemy.event.listens_for(database.engine, "before_cursor_execute")
    def die_in_the_middle(connection, cursor, statement, *rest):
        if statement.startswith("INSERT INTO trial_user_attributes"):
            os.kill(os.getpid(), signal.SIGKILL)

    queue.fill(find_study(database, "tiny"))
"""


def test_a_fill_that_was_killed_is_repaired(database, storage_url, make_spec, crowd):
    """A process killed with SIGKILL while it fills adds nothing by halves; the next fill adds each ticket."""
    study = put_study(database, make_spec(levels={"count": 30}))
    assert crowd(KILLED_FILL, 1, storage_url).answers() == [None]
    assert read_trials(study) == []
    expire_leases(database)
    assert queue.fill(study) == 30
    assert sorted(trial.ticket for trial in read_trials(study)) == list(range(30))


def test_a_fill_may_be_cut_short_anywhere(database, make_spec):
    """At whichever of its transactions a fill breaks off, the next one leaves each ticket once."""
    cut, left = 0, [0]
    while left[0] <= 0:
        cut += 1
        left[0] = cut
        study = put_study(database, make_spec(name=f"cut-{cut}"))

        def fail():
            left[0] -= 1
            if left[0] == 0:
                raise ConnectionAbortedError

        with before_each_transaction(database, fail):
            try:
                queue.fill(study)
            except ConnectionAbortedError:
                assert left[0] <= 0
        expire_leases(database)
        queue.fill(study)
        assert [trial.ticket for trial in read_trials(study)] == [0, 1, 2]
    assert cut > 5


@sqlite
def test_more_seeds_and_epochs_extend_the_queue(study, make_spec):
    """Waiting tickets grow where they are; complete ones are trained again, under new trials."""
    worker = enter(study)
    done, running = take_one(study, worker), take_one(study, worker)
    queue.complete(done, 0.8, {})
    extended = put_study(study.database, make_spec(training={"epochs": 20, "seeds": 3}))
    assert queue.fill(extended) == 1
    assert queue.fill(extended) == 0
    found = [(one.ticket, one.state, one.epochs, one.seeds) for one in read_trials(extended)]
    assert found == [
        (0, "complete", 10, 2),
        (1, "running", 10, 2),
        (2, "waiting", 20, 3),
        (0, "waiting", 20, 3),
    ]

    queue.complete(running, 0.7, {})
    assert queue.fill(extended) == 1
    sizes = {(one.ticket, one.state, one.epochs, one.seeds) for one in newest(extended).values()}
    assert sizes == {(ticket, "waiting", 20, 3) for ticket in range(3)}
    assert newest(extended)[1].level == running.level


@sqlite
def test_more_seeds_alone_extend_the_queue_when_it_is_empty(study, make_spec):
    """Seeds that are added while tickets are trained wait for those; then the complete ones get them too."""
    worker = enter(study)
    done, running, waiting = (take_one(study, worker) for _ in range(3))
    queue.hand_back(waiting)
    queue.complete(done, 0.8, {})
    extended = put_study(study.database, make_spec(training={"seeds": 3}))
    assert queue.fill(extended) == 0
    assert {(one.ticket, one.seeds) for one in read_trials(extended)} == {(0, 2), (1, 2), (2, 3)}
    queue.complete(running, 0.7, {})
    assert queue.fill(extended) == 0
    queue.complete(take_one(extended, worker), 0.6, {})
    assert queue.unfinished(extended, read_trials(extended))
    assert queue.fill(extended) == 2, "without curves nobody knows which matter: all do"
    assert [(ticket, one.seeds) for ticket, one in newest(extended).items()] == [(0, 3), (1, 3), (2, 3)]
    assert queue.fill(extended) == 0


@sqlite
def test_more_trials_extend_the_queue(database, make_spec):
    """A search that is granted more trials gets as many open tickets more."""
    sampled = lambda trials: make_spec(levels={"count": None}, search={"sampler": "random", "trials": trials})  # noqa: E731
    queue.fill(put_study(database, sampled(4)))
    study = put_study(database, sampled(7))
    assert queue.fill(study) == 3
    assert sorted(newest(study)) == list(range(7))


def test_extending_while_tickets_are_taken(database, other, make_spec):
    """Whenever a worker takes a ticket while a fill grows it, the stored size is what the worker trains."""
    for delay in range(16):
        name = f"delay-{delay}"
        queue.fill(put_study(database, make_spec(name=name, levels={"count": 4})))
        grown = put_study(
            database, make_spec(name=name, levels={"count": 4}, training={"epochs": 20, "seeds": 3})
        )
        theirs = find_study(other, name)
        worker, taken, left = enter(theirs), [], [delay]

        def take(theirs=theirs, worker=worker, taken=taken, left=left):
            left[0] -= 1
            if left[0] < 0 and (ticket := take_one(theirs, worker)) is not None:
                taken.append(ticket)

        with before_each_transaction(database, take):
            queue.fill(grown)
        sizes = {trial.trial: (trial.ticket, trial.epochs, trial.seeds) for trial in read_trials(grown)}
        for ticket in taken:
            number = other.optuna.get_trial(ticket.trial_id).number
            trains = (ticket.number, ticket.epochs, len(ticket.seeds))
            assert sizes[number] == trains, f"after {delay} transactions"


# Taking

TAKE = """
import psycopg
from floodsearch import queue
from floodsearch.storage import tables
from floodsearch.storage.database import Database, open_database
from floodsearch.storage.studies import find_study

def main(index, url, *names):
    database = open_database(url)
    taken = {}
    for name in names:
        study = find_study(database, name)
        worker = tables.enter_worker(database, study.uuid, host="h", pid=index, device="cpu", versions={})
        taken[name] = []
        while found := queue.take(study, worker):
            (ticket,) = found
            taken[name].append([ticket.number, ticket.level])
            queue.complete(ticket, 1 - (ticket.level - 0.2) ** 2, {})
    database.close()
    return taken
"""


@pytest.mark.parametrize("repeat", REPEATS)
def test_eight_processes_take_each_ticket_once(database, storage_url, make_spec, crowd, repeat):
    """100 tickets taken by eight processes at once: each is taken by one of them, and trained once."""
    study = put_study(database, make_spec(levels={"count": 100}))
    assert queue.fill(study) == 100
    answers = crowd(TAKE, 8, storage_url, "tiny").answers()
    taken = Counter(number for answer in answers for number, _ in answer["tiny"])
    assert taken == dict.fromkeys(range(100), 1)
    trials = read_trials(study)
    assert len(trials) == 100
    assert {trial.state for trial in trials} == {"complete"}
    assert queue.fill(study) == 0


TAKE_BRACKETS = """
import psycopg
from floodsearch import queue
from floodsearch.storage import tables
from floodsearch.storage.database import open_database
from floodsearch.storage.studies import find_study

def main(index, url):
    with open_database(url) as database:
        study = find_study(database, "tiny")
        worker = tables.enter_worker(database, study.uuid, host="h", pid=index, device="cpu", versions={})
        taken = []
        while found := queue.take(study, worker):
            taken.append([ticket.number for ticket in found])
    return taken
"""


@pytest.mark.postgres
def test_a_bracket_is_never_shared_by_workers_that_come_at_once(postgres_url, make_spec, crowd):
    """Each of its tickets is skipped by whoever has locked another one of them: one worker gets all."""
    with open_database(postgres_url, create=True) as opened:
        halving = {"brackets": 12, "levels": 5, "first": 0.5}
        search = {"pruner": "halving"}
        study = put_study(opened, make_spec(levels={"count": 60}, search=search, halving=halving))
        queue.fill(study)
        answers = crowd(TAKE_BRACKETS, 8, postgres_url).answers()
    whole = sorted(tuple(sorted(one)) for answer in answers for one in answer)
    assert whole == [tuple(range(first, first + 5)) for first in range(0, 60, 5)]


def test_no_two_workers_propose_the_same_level(database, storage_url, make_spec, crowd):
    """Four processes that take open tickets of a sampler at once get levels that all differ."""
    samplers = ("random", "tpe", "gp", "heuristic")
    for name in samplers:
        search = {"sampler": name, "trials": 12}
        queue.fill(put_study(database, make_spec(name=name, levels={"count": 21}, search=search)))
    code = "import torch, optuna._gp.gp, optuna._gp.acqf, optuna._gp.optim_mixed" + TAKE
    answers = crowd(code, 4, storage_url, *samplers).answers()
    for name in samplers:
        levels = sorted(level for answer in answers for _, level in answer[name])
        assert len(levels) == 12, name
        assert len(set(levels)) == 12, name
        assert levels[0] == 0, name
        assert levels[-1] <= 0.5, name


def test_tickets_whose_taker_heard_nothing_are_given_again(study, monkeypatch):
    """The connection breaks when all is written: the next try has the same ticket, and none was lost."""
    worker, plain, answers = enter(study), Database.write, ["lost", "lost"]

    @contextmanager
    def write(self):
        with plain(self) as connection:
            yield connection
        if answers:
            raise sqlalchemy.exc.OperationalError("COMMIT", {}, Exception(answers.pop()))

    monkeypatch.setattr(Database, "write", write)
    [ticket] = _taken(study, worker, None, None)
    assert not answers
    assert ticket.number == 0
    assert [one.state for one in read_trials(study)] == ["running", "waiting", "waiting"]
    assert [found.number for found in _taken(study, worker, None, None)] == [1]


@sqlite
def test_taking_from_an_empty_queue_invents_nothing(study):
    """When nothing waits, None is returned and no trial is made."""
    worker = enter(study)
    numbers = []
    while (ticket := take_one(study, worker)) is not None:
        numbers.append(ticket.number)
    assert numbers == [0, 1, 2]
    assert take_one(study, worker) is None
    assert len(raw_all(study)) == 3


def raw_all(study):
    return study.database.optuna.get_all_trials(study.id, deepcopy=False)


@sqlite
def test_a_ticket_says_what_to_train(study):
    """A taken ticket holds its level, epochs and seeds, and its trial shows who has it."""
    worker = enter(study)
    take_one(study, worker)
    ticket = take_one(study, worker)
    assert (ticket.number, ticket.level, ticket.beside) == (1, 0.25, {})
    assert (ticket.epochs, ticket.seeds, ticket.worker) == (10, (0, 1), worker)
    trial = read_trials(study)[1]
    assert (trial.state, trial.worker, trial.level) == ("running", worker, 0.25)
    assert raw(study, 1).params == {"level": 0.25}


@sqlite
def test_what_is_searched_beside_the_level_is_in_the_ticket(database, make_spec):
    """Choices beside the level come with the ticket and are parameters of the trial."""
    spec = make_spec(levels={"count": 2}, training={"weight_decay": {"choices": [0.0, 0.01]}})
    study = put_study(database, spec)
    queue.fill(study)
    worker = enter(study)
    found = []
    while (ticket := take_one(study, worker)) is not None:
        found.append((ticket.level, ticket.beside["weight_decay"]))
    assert sorted(found) == [(0.0, 0.0), (0.0, 0.01), (0.5, 0.0), (0.5, 0.01)]
    assert raw(study, 3).params.keys() == {"level", "weight_decay"}


@sqlite
def test_taking_with_an_older_view_of_a_grown_study(study, make_spec):
    """A worker that read the study before it was extended still trains all seeds of the grown ticket."""
    queue.fill(put_study(study.database, make_spec(training={"seeds": 3, "epochs": 20})))
    ticket = take_one(study, enter(study))
    assert (ticket.epochs, ticket.seeds) == (20, (0, 1, 2))


@sqlite
def test_trials_that_others_enqueued_are_left_alone(study):
    """A trial that a user enqueues with plain Optuna or the dashboard is no ticket: nobody takes it."""
    by_hand = study.optuna()
    by_hand.enqueue_trial({"level": 0.4})
    worker = enter(study)
    numbers = []
    while (ticket := take_one(study, worker)) is not None:
        numbers.append(ticket.number)
    assert numbers == [0, 1, 2]
    assert raw(study, 3).state == TrialState.WAITING
    assert raw(study, 3).user_attrs == {}


# Handing back


def test_a_ticket_is_handed_back_as_it_was(study):
    """A ticket handed back waits as the same trial, without owner or start; a worker deletes no reports."""
    worker, other = enter(study), enter(study)
    ticket = take_one(study, worker)
    queue.record([Entry(ticket, [], {2: 0.5, 4: 0.6})])
    assert queue.hand_back(ticket)
    trial = raw(study, 0)
    assert (trial.state, trial.datetime_start) == (TrialState.WAITING, None)
    assert trial.intermediate_values == {2: 0.5, 4: 0.6}
    record = read_trials(study)[0]
    assert (record.state, record.worker, record.epoch, record.attempt) == ("waiting", None, 4, 1)
    again = take_one(study, other)
    assert (again.number, again.trial_id, again.worker) == (ticket.number, ticket.trial_id, other)
    assert len(read_trials(study)) == 3


@sqlite
def test_a_proposed_level_survives_being_handed_back(database, make_spec):
    """The level that a sampler proposed for a ticket stays its level."""
    study = put_study(database, make_spec(levels={"count": None}, search={"sampler": "random", "trials": 3}))
    queue.fill(study)
    worker, other = enter(study), enter(study)
    take_one(study, worker)
    ticket = take_one(study, worker)
    queue.hand_back(ticket)
    again = take_one(study, other)
    assert (again.number, again.level) == (ticket.number, ticket.level)
    assert again.level > 0


def test_only_the_owner_hands_back(study):
    """A ticket that was lost, finished, or is in other hands is not handed back."""
    worker, other = enter(study), enter(study)
    ticket = take_one(study, worker)
    queue.hand_back(ticket)
    assert not queue.hand_back(ticket)
    again = take_one(study, other)
    assert not queue.hand_back(ticket)
    assert read_trials(study)[0].worker == other
    queue.complete(again, 0.5, {})
    assert not queue.hand_back(again)
    assert read_trials(study)[0].state == "complete"


def test_a_failing_proposal_hands_the_ticket_back(database, other, make_spec):
    """When a ticket cannot be prepared after it was signed, it waits again."""
    study = put_study(database, make_spec(levels={"count": None}, search={"sampler": "random", "trials": 3}))
    queue.fill(study)
    worker = enter(study)
    take_one(study, worker)
    theirs, failed = find_study(other, "tiny"), []

    def fail():
        if not failed and raw(theirs, 1).user_attrs.get(Attribute.WORKER) is not None:
            failed.append(True)
            raise ConnectionAbortedError

    with before_each_transaction(database, fail), pytest.raises(ConnectionAbortedError):
        take_one(study, worker)
    assert failed
    assert raw(theirs, 1).state == TrialState.WAITING


# Ends


def test_a_complete_ticket_has_its_numbers(study):
    """A complete trial holds its value and the known numbers; what is unknown or not finite is left out."""
    ticket = take_one(study, enter(study))
    queue.record([Entry(ticket, [], {2: 0.5})])
    numbers = {Attribute.VALUE_SE: None, Attribute.TEST_ACCURACY: 0.75, Attribute.TEST_LOSS: float("inf")}
    queue.complete(ticket, 0.875, numbers)
    trial = raw(study, 0)
    assert (trial.state, trial.value, trial.intermediate_values) == (TrialState.COMPLETE, 0.875, {2: 0.5})
    assert trial.user_attrs["test_accuracy"] == 0.75
    assert not {"value_se", "test_loss"} & trial.user_attrs.keys()
    assert trial.datetime_start <= trial.datetime_complete


def test_a_pruned_ticket_keeps_its_reason_and_last_report(study):
    """A pruned trial says why, and its value is the last recent mean that it reported."""
    worker = enter(study)
    take_one(study, worker)
    ticket = take_one(study, worker)
    queue.record([Entry(ticket, [], {2: 0.5})])
    queue.record([Entry(ticket, [], {4: 0.625, 6: 0.75})])
    queue.prune(ticket, Decision(prune=True, reason="pruned by median at epoch 6"))
    trial = raw(study, 1)
    assert (trial.state, trial.value) == (TrialState.PRUNED, 0.75)
    record = read_trials(study)[1]
    assert (record.cause, record.reason) == ("pruned", "pruned by median at epoch 6")
    assert (record.state, record.value, record.epoch) == ("pruned", 0.75, 6)
    assert queue.fill(study) == 0


@sqlite
def test_level_0_is_never_pruned(study, database, make_spec):
    """The pruner is not even asked about the baseline; the worst other level is pruned by the same rule."""
    spec = make_spec(name="judged", search={"pruner": "median"}, median={"startup": 1})
    study = put_study(database, spec)
    queue.fill(study)
    worker = enter(study)
    baseline, good, poor = (take_one(study, worker) for _ in range(3))
    queue.record([Entry(good, [], {2: 0.9, 4: 0.9})])
    queue.complete(good, 0.9, {})
    for ticket in (baseline, poor):
        queue.record([Entry(ticket, [], {2: 0.1})])
    together = {ticket.number: (ticket, Standing(ticket.level, 0.1)) for ticket in (baseline, poor)}
    kept, pruned = queue.judge(together, 2).values()
    assert not kept.prune
    assert "level 0" in kept.reason
    assert pruned.prune
    assert "median at epoch 2" in pruned.reason
    assert "0.1" in pruned.reason


@pytest.mark.parametrize(
    "until", [{"choices": [0.9, 1.0]}, {"low": 0.5, "high": 1.0}], ids=["choices", "range"]
)
@sqlite
def test_rivals_have_the_same_choices(database, make_spec, monkeypatch, until):
    """Level 0, which has no settings, is everybody's rival, equal choices are, and any values of a range."""
    spec = make_spec(
        levels={"count": None},
        training={"schedule": "backward"},
        search={"sampler": "random", "trials": 11, "pruner": "halving"},
        backward={"until_accuracy": until},
    )
    study, asked = put_study(database, spec), []
    queue.fill(study)
    taken, worker = [], enter(study)
    while more := queue.take(study, worker):
        taken += more
    rung = judge_of(spec).rungs[0]
    *ended, last = taken
    for ticket in ended:
        queue.record([Entry(ticket, [], {rung: 0.5})])
        queue.complete(ticket, 0.5, {})
    plain = Halving.compare
    monkeypatch.setattr(
        Halving, "compare", lambda self, of, **more: asked.append(of) or plain(self, of, **more)
    )
    queue.judge({last.number: (last, Standing(last.level, 0.1))}, rung)
    alike = [one for one in ended if "choices" not in until or one.beside in ({}, last.beside)]
    assert asked[0].keys() == {last.number} | {-1 - one.number for one in alike}
    assert ended[0].level == 0
    assert len(alike) > 2
    assert (len(alike) < len(ended)) == ("choices" in until)


def test_a_diverged_ticket_is_marked(study):
    """A loss that is not finite ends a trial as pruned and marked, with level, epoch and step, for good."""
    worker = enter(study)
    take_one(study, worker)
    ticket = take_one(study, worker)
    queue.record([Entry(ticket, [], {2: 0.5})])
    queue.diverge(ticket, DivergedError(level=0.25, epoch=3, step=7, seed=1))
    record = read_trials(study)[1]
    assert (record.state, record.cause, record.level) == ("pruned", "diverged", 0.25)
    for part in ("level 0.25", "epoch 3", "step 7", "seed 1"):
        assert part in record.reason
    assert queue.fill(study) == 0


def broken():
    try:
        raise KeyError("width")
    except KeyError as error:
        return error


def test_an_error_is_retried_and_then_failed(study):
    """A ticket whose code raises gets a new trial with the same ticket and level, up to three attempts."""
    worker = enter(study)
    others = [take_one(study, worker), take_one(study, worker)]
    for attempt in range(1, ATTEMPTS + 1):
        ticket = take_one(study, worker)
        assert (ticket.number, ticket.level) == (2, 0.5)
        queue.fail(ticket, broken())
        record = newest(study)[2]
        assert (record.state, record.cause, record.attempt) == ("failed", "error", attempt)
        assert record.reason.startswith("KeyError: 'width' (test_queue.py:")
        assert "in broken" in raw(study, record.trial).user_attrs["traceback"]
        assert queue.fill(study) == (attempt < ATTEMPTS)
    assert take_one(study, worker) is None
    assert count(read_trials(study)).failed == 1
    assert study.stopped() is None
    for ticket in others:
        queue.complete(ticket, 0.5, {})
    assert queue.fill(study) == 0


@sqlite
def test_tickets_failing_in_a_row_stop_the_study(database, make_spec):
    """Three different tickets that fail one after the other stop the study, with the last one's words."""
    study = put_study(database, make_spec(levels={"count": 8}))
    queue.fill(study)
    worker = enter(study)
    for _ in range(FAILURES_IN_A_ROW):
        assert study.stopped() is None
        queue.fail(take_one(study, worker), broken())
    assert "3 tickets in a row failed" in study.stopped()
    assert "KeyError: 'width'" in study.stopped()


@sqlite
def test_failures_with_a_success_between_do_not_stop(database, make_spec):
    """A ticket that completes between failing ones shows that the code works; lost ones say nothing."""
    study = put_study(database, make_spec(levels={"count": 8}))
    queue.fill(study)
    worker, dead = enter(study), enter(study)
    for _ in range(2):
        queue.fail(take_one(study, worker), broken())
    queue.complete(take_one(study, worker), 0.5, {})
    for _ in range(2):
        queue.fail(take_one(study, worker), broken())
    assert study.stopped() is None
    take_one(study, dead)
    queue.release(study, dead, "gone")
    assert study.stopped() is None
    queue.fail(take_one(study, worker), broken())
    assert study.stopped() is not None


@pytest.mark.parametrize("text", ["", "\n", "two\nlines"])
@sqlite
def test_an_error_without_words_is_named(study, text):
    """An exception whose message is empty or long is a reason in one line all the same."""
    queue.fail(take_one(study, enter(study)), RuntimeError(text))
    reason = read_trials(study)[0].reason
    assert reason.startswith("RuntimeError")
    assert "\n" not in reason


def test_an_end_may_be_written_again(study):
    """A write whose answer was lost can be repeated: nothing changes and nothing is raised."""
    ticket = take_one(study, enter(study))
    queue.complete(ticket, 0.5, {Attribute.TEST_LOSS: 0.25})
    before = raw(study, 0)
    queue.complete(ticket, 0.5, {Attribute.TEST_LOSS: 0.25})
    assert raw(study, 0) == before


@pytest.mark.parametrize("state", [TrialState.FAIL, TrialState.COMPLETE, TrialState.PRUNED])
def test_a_trial_finished_behind_the_owners_back_is_lost(study, state):
    """Its worker learns that the ticket is no longer its own and changes nothing; it is queued again."""
    ticket = take_one(study, enter(study))
    queue.record([Entry(ticket, [], {2: 0.25})])
    study.optuna().tell(raw(study, 0).number, 0.25 if state == TrialState.COMPLETE else None, state=state)
    before = raw(study, 0)
    calls = [
        lambda: queue.complete(ticket, 0.5, {Attribute.TEST_LOSS: 0.5}),
        lambda: queue.prune(ticket, Decision(prune=True, reason="poor")),
        lambda: queue.fail(ticket, ValueError("late")),
    ]
    assert queue.record([Entry(ticket, [], {4: 0.5})]) == {0}
    for call in calls:
        with pytest.raises(TicketLostError, match="ticket 0"):
            call()
        assert raw(study, 0) == before
    assert not queue.hand_back(ticket)
    assert queue.fill(study) == 1


def test_a_ticket_in_other_hands_is_lost(study):
    """A worker that was thought dead cannot write to the trial that its successor trains."""
    dead, other = enter(study), enter(study)
    ticket = take_one(study, dead)
    [number] = queue.release(study, dead, "silent")
    assert number == 0
    successors = [take_one(study, other) for _ in range(3)]
    assert successors[-1].number == ticket.number
    assert queue.record([Entry(ticket, [], {4: 0.5})]) == {ticket.number}
    with pytest.raises(TicketLostError):
        queue.complete(ticket, 0.5, {})
    assert newest(study)[0].state == "running"
    queue.complete(successors[-1], 0.75, {})
    assert newest(study)[0].value == 0.75


# The lost


def test_a_released_ticket_is_queued_again(database, make_spec):
    """A dead worker's tickets fail as lost, with the reason, and wait again with number and level."""
    study = put_study(database, make_spec(levels={"count": None}, search={"sampler": "random", "trials": 4}))
    queue.fill(study)
    dead, living = enter(study), enter(study)
    held = [take_one(study, dead), take_one(study, dead)]
    other = take_one(study, living)
    assert queue.release(study, dead, "it burned down") == [0, 1]
    for ticket in held:
        lost = read_trials(study)[ticket.number]
        assert (lost.state, lost.cause, lost.reason) == ("failed", "lost", "it burned down")
        again = newest(study)[ticket.number]
        assert (again.state, again.level, again.attempt) == ("waiting", ticket.level, 2)
    assert newest(study)[other.number].state == "running"
    assert tables.read_workers(database, study.uuid)[0].left is not None
    assert queue.release(study, dead, "again") == []
    assert count(read_trials(study)).total == 4


@sqlite
def test_the_status_says_why_a_ticket_ended_or_was_taken_up_again(study):
    """Each ticket that did not simply complete has a note: state, attempts and reason, the last there is."""
    worker = enter(study)
    take_one(study, worker)
    pruned = take_one(study, worker)
    queue.record([Entry(pruned, [], {4: 0.5})])
    queue.prune(pruned, Decision(prune=True, reason="3 of 9 at epoch 4"))
    queue.release(study, worker, "it burned down")
    told = {
        note.ticket: (note.level, note.state, note.cause, note.epoch, note.attempts, note.reason)
        for note in status(study).notes
    }
    assert told == {
        0: (0.0, "waiting", None, 0, 2, "it burned down"),
        1: (0.25, "pruned", "pruned", 4, 1, "3 of 9 at epoch 4"),
    }
    assert status(study, with_answer=True).answer is None


@sqlite
def test_losing_a_ticket_is_not_an_attempt_that_failed(study):
    """However often a ticket is lost, it is queued again."""
    for _ in range(ATTEMPTS + 2):
        worker = enter(study)
        while take_one(study, worker) is not None:
            pass
        assert len(queue.release(study, worker, "killed")) == 3
    assert count(read_trials(study)).waiting == 3
    assert study.stopped() is None


def age(study, worker):
    """Let a worker's last beat be long ago."""
    with study.database.write() as connection:
        row = schema.workers.c.id == worker
        connection.execute(sqlalchemy.update(schema.workers).where(row).values(last_beat=1.0))


def wait_for(study, seconds, eventually):
    end = tables.now(study.database) + seconds
    eventually(lambda: tables.now(study.database) > end)


GRACE = 0.1


def look(reaper, eventually, beat=lambda: None):
    """Look until a silence that was just seen has lasted too long; return what was lost then.

    `beat` is called before each look.
    """
    wait_for(reaper.study, GRACE, eventually)
    beat()
    assert reaper.look() == []
    wait_for(reaper.study, GRACE / 4, eventually)
    beat()
    return reaper.look()


def test_one_look_kills_nobody(study):
    """However old a beat is, the first look only notes it, and a second one too soon does nothing."""
    worker = enter(study)
    take_one(study, worker)
    age(study, worker)
    assert Reaper(study, "first", grace_seconds=GRACE).look() == []
    expire_leases(study.database)
    reaper = Reaper(study, "second", grace_seconds=3600)
    assert reaper.look() == reaper.look() == []
    assert newest(study)[0].state == "running"


def test_the_dead_are_found_a_grace_after_their_last_beat(study, eventually):
    """A worker whose beat stood still for a whole grace loses its tickets, which wait again."""
    dead, living = enter(study), enter(study)
    take_one(study, dead)
    take_one(study, living)
    reaper = Reaper(study, "me", grace_seconds=GRACE)
    assert reaper.look() == []
    alive = partial(tables.beat, study.database, living, epochs_run=0, training=(1,))
    assert look(reaper, eventually, alive) == [0]
    lost = read_trials(study)[0]
    assert (lost.cause, lost.worker) == ("lost", dead)
    assert f"worker {dead} on here stopped beating" in lost.reason
    assert newest(study)[0].state == "waiting"
    assert newest(study)[1].state == "running"
    assert look(reaper, eventually, alive) == []


@sqlite
def test_a_moment_that_held_up_everybody_kills_nobody(study, eventually):
    """A reaper that slept with all others, as on a laptop, does not take their old beats for their deaths."""
    worker = enter(study)
    take_one(study, worker)
    reaper = Reaper(study, "me", grace_seconds=GRACE)
    reaper.look()
    wait_for(study, 5 * GRACE, eventually)
    assert reaper.look() == []
    tables.beat(study.database, worker, epochs_run=0, training=(0,))
    wait_for(study, GRACE / 4, eventually)
    assert reaper.look() == []


@sqlite
def test_a_beat_between_two_looks_saves(study, eventually):
    """A worker that beats, however rarely looks come, is alive; its silence counts anew from each beat."""
    worker = enter(study)
    take_one(study, worker)
    reaper = Reaper(study, "me", grace_seconds=GRACE)
    for _ in range(3):
        assert reaper.look() == []
        tables.beat(study.database, worker, epochs_run=0, training=(0,))
        wait_for(study, GRACE, eventually)
    assert reaper.look() == []


@sqlite
def test_after_an_outage_observations_start_again(study, eventually):
    """What was seen before an error of the storage does not count: an outage kills nobody."""
    worker = enter(study)
    take_one(study, worker)
    reaper = Reaper(study, "me", grace_seconds=GRACE)
    reaper.look()
    wait_for(study, GRACE, eventually)
    reaper.forget()
    assert reaper.look() == []
    assert look(reaper, eventually) == [0]


def test_one_reaper_works_at_a_time(study, eventually):
    """A second reaper sees nothing while the first has the lease, and takes over when that one is gone."""
    worker = enter(study)
    take_one(study, worker)
    holder = Reaper(study, "holder", grace_seconds=3600)
    holder.look()
    heir = Reaper(study, "heir", grace_seconds=GRACE)
    for _ in range(2):
        assert heir.look() == []
        wait_for(study, GRACE, eventually)
    expire_leases(study.database)
    assert heir.look() == []
    assert look(heir, eventually) == [0]


def test_an_orphan_without_a_worker_is_found(study, eventually):
    """A ticket whose worker died before it could sign is queued again after the grace."""
    assert study.optuna()._pop_waiting_trial_id() is not None
    enter(study)
    reaper = Reaper(study, "me", grace_seconds=GRACE)
    assert reaper.look() == []
    assert look(reaper, eventually) == [0]
    assert newest(study)[0].state == "waiting"
    assert newest(study)[0].attempt == 2


@sqlite
def test_a_ticket_that_its_worker_knows_nothing_of_is_found(study, eventually):
    """A worker that never heard of the success of its own taking does not keep the ticket for ever."""
    worker = enter(study)
    take_one(study, worker)
    take_one(study, worker)
    reaper = Reaper(study, "me", grace_seconds=GRACE)
    alive = partial(tables.beat, study.database, worker, epochs_run=0, training=(1,))
    alive()
    assert reaper.look() == []
    assert look(reaper, eventually, alive) == [0]
    assert newest(study)[0].state == "waiting"
    assert newest(study)[1].state == "running"


@sqlite
def test_a_ticket_of_a_worker_that_left_is_found(study, eventually):
    """A worker that left without finishing its ticket, as after an error, leaves it to the reaper."""
    worker = enter(study)
    take_one(study, worker)
    tables.beat(study.database, worker, epochs_run=0, training=(), leaving=True)
    reaper = Reaper(study, "me", grace_seconds=GRACE)
    assert reaper.look() == []
    assert look(reaper, eventually) == [0]
    assert newest(study)[0].state == "waiting"


@sqlite
def test_an_orphan_that_was_signed_in_between_is_observed_anew(study, eventually):
    """A trial seen as an orphan, then in good hands, then as an orphan again, is given a whole grace."""
    first, second = enter(study), enter(study)
    ticket = take_one(study, first)
    tables.beat(study.database, first, epochs_run=0, training=(), leaving=True)
    reaper = Reaper(study, "me", grace_seconds=GRACE)
    reaper.look()
    study.database.optuna.set_trial_user_attr(ticket.trial_id, Attribute.WORKER, second)
    wait_for(study, GRACE, eventually)
    tables.beat(study.database, second, epochs_run=0, training=(0,))
    assert reaper.look() == []
    tables.beat(study.database, second, epochs_run=0, training=(), leaving=True)
    assert reaper.look() == []
    assert look(reaper, eventually) == [0]


@sqlite
def test_trials_of_others_are_not_reaped(study, eventually):
    """A trial that a user asked for with plain Optuna runs as long as it likes."""
    while study.optuna()._pop_waiting_trial_id() is not None:
        pass
    study.optuna().ask()
    reaper = Reaper(study, "me", grace_seconds=GRACE)
    reaper.look()
    assert look(reaper, eventually) == [0, 1, 2]
    assert raw(study, 3).state == TrialState.RUNNING


# The budget


def worker_record(started, last_beat, left=None, epochs_run=0):
    return WorkerRecord(
        id=1,
        host="here",
        pid=1,
        device="cpu",
        started=started,
        last_beat=last_beat,
        left=left,
        training=(),
        epochs_run=epochs_run,
    )


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        ([], 0),
        ([(0, 10)], 10),
        ([(0, 10), (0, 10)], 10),
        ([(0, 10), (5, 20)], 20),
        ([(5, 20), (0, 10)], 20),
        ([(0, 100), (10, 20), (30, 40)], 100),
        ([(0, 10), (20, 30)], 20),
        ([(0, 10), (10, 20)], 20),
        ([(3, 3)], 0),
    ],
)
def test_seconds_worked_count_once(spans, expected):
    """Time in which several workers are alive counts once, pauses do not count."""
    assert queue.seconds_worked([worker_record(start, end) for start, end in spans]) == expected
    left = [worker_record(start, end + 50, left=end) for start, end in spans]
    assert queue.seconds_worked(left) == expected


@pytest.mark.parametrize(
    ("budget", "reason"),
    [
        ({}, None),
        ({"epochs": 101}, None),
        ({"epochs": 100}, "the budget of 100 epochs is spent; raise budget.epochs in the study file"),
        ({"hours": 2.1}, None),
        ({"hours": 2.0}, "the budget of 2 hours is spent; raise budget.hours in the study file"),
        ({"epochs": 1000, "hours": 1.5}, "the budget of 1.5 hours is spent; raise budget.hours"),
    ],
)
def test_a_spent_budget_closes_the_study(tmp_path, make_spec, budget, reason):
    """The epochs of all workers, and the hours with one alive, are held; the reason says what to raise."""
    database = open_database(f"sqlite:///{tmp_path}/studies.db", create=True)
    study = put_study(database, make_spec(budget=budget))
    workers = [worker_record(0, 7200, epochs_run=60), worker_record(3600, 7200, left=7000, epochs_run=40)]
    closed = queue.closed(study, iter(workers))
    assert closed is None if reason is None else str(closed).startswith(reason)
    study.stop("enough")
    assert queue.closed(study, workers) == "enough"
    database.close()
