"""Studies in the database: created, resumed, extended, refused, stopped, and seen by plain Optuna."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from dataclasses import fields

import optuna
import pytest
import sqlalchemy

from floodsearch import queue
from floodsearch.errors import StudyChangedError, StudyFileError, UnknownStudyError, UsageError
from floodsearch.queries import status
from floodsearch.queue import Entry
from floodsearch.records import Decision, EpochRecord, MeasuredTrial, TrialRecord
from floodsearch.storage import schema, tables
from floodsearch.storage.database import open_database
from floodsearch.storage.studies import SPEC, find_study, put_study, study_names, versions
from floodsearch.storage.trial_records import read_measured, read_trials
from tests.zygote import CODES

sqlite = pytest.mark.parametrize("storage_url", ["sqlite"], indirect=True)
"""Of tests whose promise no dialect, lock, clock or outage of a database can change."""
OPTUNA = "from optuna.cli import main; main()"
CODES.add(OPTUNA)
MAXIMIZE, MINIMIZE = optuna.study.StudyDirection.MAXIMIZE, optuna.study.StudyDirection.MINIMIZE


@pytest.fixture
def plain(database, storage_url):
    """Open a study as a user of plain Optuna would, in an own connection."""
    opened = []

    def load(name="tiny"):
        url = storage_url.replace("postgresql://", "postgresql+psycopg://")
        opened.append(optuna.storages.RDBStorage(url))
        return optuna.load_study(study_name=name, storage=opened[-1])

    yield load
    for storage in opened:
        storage.remove_session()
        storage.engine.dispose()


def stored_rows(database):
    """Return all that is written of studies."""
    with database.read() as connection:
        names = ("studies", "study_user_attributes", "study_system_attributes", "study_directions", "trials")
        return {
            name: sorted(map(repr, connection.execute(sqlalchemy.text(f"SELECT * FROM {name}")).all()))
            for name in names
        }


def test_a_study_is_created(database, make_spec):
    """A new study holds the whole spec, a uuid of its own, the versions that made it, and no trial yet."""
    spec = make_spec()
    study = put_study(database, spec)
    assert (study.name, study.spec) == ("tiny", spec)
    assert len(study.uuid) == 32
    assert study.stopped() is None
    assert read_trials(study) == []
    attributes = database.optuna.get_study_user_attrs(study.id)
    assert json.loads(attributes["floodsearch:versions"]) == versions()
    assert {"floodsearch", "optuna", "torch", "python"} <= versions().keys()


def test_the_same_file_again_resumes(database, make_spec):
    """The same spec under the same name finds the study as it is, also from another connection."""
    first = put_study(database, make_spec())
    before = stored_rows(database)
    assert put_study(database, make_spec()) == first
    found = find_study(database, "tiny")
    assert (found.id, found.uuid, found.spec) == (first.id, first.uuid, first.spec)
    assert stored_rows(database) == before


@pytest.mark.parametrize("size", [1, 32, 100])
@sqlite
def test_any_valid_name_can_be_used(database, make_spec, size):
    """A name of any length that a study file may have is stored."""
    name = "n" * size
    put_study(database, make_spec(name=name))
    assert study_names(database) == [name]


@pytest.mark.parametrize(
    "grown",
    [
        {"training": {"epochs": 20}},
        {"training": {"seeds": 3}},
        {"training": {"seeds": [0, 1, 7]}},
        {"search": {"trials": 9}},
        {"budget": {"epochs": 100, "hours": 2.5}},
        {"training": {"epochs": 20, "seeds": 5}, "search": {"trials": 12}, "budget": {"epochs": 1000}},
    ],
)
@sqlite
def test_a_grown_budget_extends(database, make_spec, grown):
    """More epochs, seeds, trials or budget are taken over; the study keeps its identity."""
    sampled = {"levels": {"count": None}, "search": {"sampler": "random", "trials": 6}}
    first = put_study(database, make_spec(**sampled))
    merged = {key: {**sampled.get(key, {}), **grown.get(key, {})} for key in sampled.keys() | grown.keys()}
    spec = make_spec(**merged)
    assert spec != first.spec
    extended = put_study(database, spec)
    assert (extended.uuid, extended.id, extended.spec) == (first.uuid, first.id, spec)
    assert find_study(database, "tiny").spec == spec
    assert first.reread().spec == spec


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"options": {"label_noise": 0.2}}, ["options.label_noise: 0.1 before, 0.2 now"]),
        ({"levels": {"high": 0.6}}, ["levels.high: 0.5 before, 0.6 now"]),
        ({"levels": {"count": 5}}, ["levels.count: 3 before, 5 now"]),
        ({"training": {"epochs": 9}}, ["training.epochs: 10 before, 9 now; it can only grow"]),
        ({"training": {"seeds": [1, 0]}}, ["training.seeds: [0, 1] before, [1, 0] now"]),
        ({"training": {"seeds": 1}}, ["training.seeds: [0, 1] before, [0] now"]),
        (
            {"search": {"pruner": "median", "seed": 4}, "training": {"batch_size": 50}},
            [
                "search.pruner",
                "search.seed: 0 before, 4 now",
                "training.recipe.batch_size: 100 before, 50 now",
            ],
        ),
    ],
)
@sqlite
def test_a_changed_file_is_refused(database, make_spec, changes, said):
    """Any other change under the same name is refused with each difference listed, and changes nothing."""
    study = put_study(database, make_spec())
    queue.fill(study)
    study.stop("a test")
    before = stored_rows(database)
    with pytest.raises(StudyChangedError) as caught:
        put_study(database, make_spec(**changes))
    for difference in said:
        assert difference in str(caught.value)
    assert "choose another name" in str(caught.value)
    assert stored_rows(database) == before


PUT = """
import psycopg
from floodsearch.study.spec import Spec
from floodsearch.storage.database import open_database
from floodsearch.storage.studies import put_study

def main(index, url, text):
    database = open_database(url, create=True)
    study = put_study(database, Spec.model_validate_json(text))
    database.close()
    return [study.id, study.uuid]
"""


def test_six_processes_make_one_study(storage_url, make_spec, crowd):
    """Processes that put one study into an empty database at once all get the same one."""
    answers = crowd(PUT, 6, storage_url, make_spec().model_dump_json()).answers()
    assert answers == [answers[0]] * 6
    database = open_database(storage_url)
    assert find_study(database, "tiny").uuid == answers[0][1]
    assert len(database.optuna.get_all_studies()) == 1
    database.close()


def test_a_foreign_study_is_refused(database, make_spec):
    """A study of plain Optuna under that name is neither taken over nor changed."""
    theirs = optuna.create_study(storage=database.optuna, study_name="tiny", direction="maximize")
    theirs.add_trial(optuna.create_trial(value=1.0))
    before = stored_rows(database)
    with pytest.raises(UsageError, match=r"'tiny' .* was not made by floodsearch; choose another name"):
        put_study(database, make_spec())
    with pytest.raises(UnknownStudyError, match="studies there: none"):
        find_study(database, "tiny")
    assert stored_rows(database) == before


@sqlite
def test_an_empty_foreign_study_of_the_other_direction_is_refused(database, make_spec):
    """A study that minimizes is not taken for the interrupted creation of one that maximizes."""
    optuna.create_study(storage=database.optuna, study_name="tiny", direction="minimize")
    with pytest.raises(UsageError, match="tiny"):
        put_study(database, make_spec())


def test_a_creation_that_was_cut_short_is_completed(database, make_spec):
    """Wherever a creation fails, the study is not found yet, and the next creation makes it whole."""
    cut = 0
    done = False
    while not done:
        cut += 1
        name, left = f"cut-{cut}", [cut]

        def fail(connection, left=left):
            left[0] -= 1
            if left[0] == 0:
                raise ConnectionAbortedError

        sqlalchemy.event.listen(database.engine, "begin", fail)
        try:
            put_study(database, make_spec(name=name))
            done = True
        except ConnectionAbortedError:
            pass
        finally:
            sqlalchemy.event.remove(database.engine, "begin", fail)
        if left[0] == 0:
            with database.write() as connection:  # a process that is killed leaves its lease to run out
                connection.execute(sqlalchemy.update(schema.leases).values(until=0))
        study = put_study(database, make_spec(name=name))
        assert study.spec == make_spec(name=name)
        assert study.optuna().metric_names == ["val_accuracy"]
        assert "floodsearch:versions" in database.optuna.get_study_user_attrs(study.id)
    assert cut > 8  # it was cut at each of its transactions
    gc.collect()  # connections that were cut off go back to the pool while there is one


@sqlite
def test_a_study_without_its_spec_is_not_found(database, make_spec):
    """A study row alone, as a killed creation leaves it, is no study yet; putting it again completes it."""
    database.optuna.create_new_study([MAXIMIZE], "tiny")
    with pytest.raises(UnknownStudyError):
        find_study(database, "tiny")
    assert study_names(database) == []
    assert put_study(database, make_spec()).spec == make_spec()
    assert study_names(database) == ["tiny"]


@sqlite
def test_an_unknown_study_names_those_that_exist(database, make_spec):
    """A mistyped name is answered with the names there are, without foreign studies."""
    for name in ("spiral", "gaussians"):
        put_study(database, make_spec(name=name))
    optuna.create_study(storage=database.optuna, study_name="theirs")
    with pytest.raises(
        UnknownStudyError, match=r"no study named 'spirla' in .*; studies there: gaussians, spiral$"
    ):
        find_study(database, "spirla")


@sqlite
def test_a_damaged_spec_is_named(database, make_spec):
    """A stored spec that someone edited is an error that names the study, not a traceback of a parser."""
    study = put_study(database, make_spec())
    database.optuna.set_study_user_attr(study.id, SPEC, '{"name": 3}')
    with pytest.raises(StudyFileError, match="stored spec of 'tiny'"):
        find_study(database, "tiny")


def test_a_study_is_stopped_and_goes_on(database, make_spec):
    """A stop is seen by everyone with its reason, and launching the study again takes it back."""
    study = put_study(database, make_spec())
    find_study(database, "tiny").stop("three tickets failed")
    assert study.stopped() == "three tickets failed"
    assert queue.closed(study, []) == "three tickets failed"
    put_study(database, make_spec())
    assert study.stopped() is None
    assert queue.closed(study, []) is None


@pytest.mark.parametrize(("metric", "direction"), [("val_accuracy", MAXIMIZE), ("val_loss", MINIMIZE)])
def test_plain_optuna_sees_metric_and_best_trial(database, make_spec, plain, metric, direction):
    """With the plain URL Optuna shows the direction, the metric's name, the levels and the best trial."""
    study = put_study(database, make_spec(search={"metric": metric}))
    queue.fill(study)
    worker = tables.enter_worker(database, study.uuid, host="h", pid=1, device="cpu", versions={})
    levels = {}
    for value in (0.7, 0.9, 0.8):
        (ticket,) = queue.take(study, worker)
        queue.complete(ticket, value, {})
        levels[value] = ticket.level
    seen = plain()
    assert seen.direction == direction
    assert seen.metric_names == [metric]
    best = 0.9 if direction == MAXIMIZE else 0.7
    assert seen.best_value == best
    assert seen.best_params == {"level": levels[best]}
    assert [trial.state.name for trial in seen.trials] == ["COMPLETE"] * 3


def test_optunas_commands_read_our_studies(database, make_spec, storage_url):
    """`optuna studies`, `trials` and `best-trial` show them beside Optuna's own, which we do not list."""
    study = put_study(database, make_spec())
    queue.fill(study)
    worker = tables.enter_worker(database, study.uuid, host="h", pid=1, device="cpu", versions={})
    for value in (0.7, 0.9):
        queue.complete(queue.take(study, worker)[0], value, {})
    url = storage_url.replace("postgresql://", "postgresql+psycopg://")
    theirs = optuna.storages.RDBStorage(url)
    optuna.create_study(storage=theirs, study_name="theirs").enqueue_trial({"x": 1.0})
    theirs.remove_session()
    theirs.engine.dispose()

    def said(*words):
        command = [sys.executable, "-c", OPTUNA, *words, "-f", "json"]
        done = subprocess.run([*command, "--storage", url], capture_output=True, text=True, check=True)
        return json.loads(done.stdout)

    assert sorted(one["name"] for one in said("studies")) == ["theirs", "tiny"]
    assert [one["state"] for one in said("trials", "--study-name", "tiny")] == ["COMPLETE"] * 2 + ["WAITING"]
    assert said("best-trial", "--study-name", "tiny")["value"] == {"val_accuracy": 0.9}
    assert study_names(database) == ["tiny"]


@sqlite
def test_trials_of_others_are_not_counted(database, make_spec, plain):
    """Trials that a user adds or enqueues with plain Optuna are not of our budget."""
    study = put_study(database, make_spec())
    queue.fill(study)
    seen = plain()
    distributions = {"level": optuna.distributions.FloatDistribution(0.0, 0.5)}
    seen.add_trial(optuna.create_trial(params={"level": 0.3}, distributions=distributions, value=2.0))
    seen.enqueue_trial({"level": 0.4})
    assert queue.fill(study) == 0
    assert len(read_trials(study)) == 3
    assert {trial.ticket for trial in read_trials(study)} == {0, 1, 2}
    counts = status(study).trials
    assert (counts.waiting, counts.total) == (3, 3)
    assert status(study).best_value is None


@sqlite
def test_two_studies_share_a_database(database, make_spec):
    """Studies in one database have nothing of each other's: tickets, curves, workers or stops."""
    one, other = (put_study(database, make_spec(name=name)) for name in ("one", "other"))
    assert one.uuid != other.uuid
    queue.fill(one)
    tables.enter_worker(database, one.uuid, host="h", pid=1, device="cpu", versions={})
    one.stop("enough")
    assert read_trials(other) == []
    assert tables.read_workers(database, other.uuid) == []
    assert other.stopped() is None
    assert study_names(database) == ["one", "other"]


@pytest.fixture
def study_of_ends(database, make_spec):
    """Give a study of three tickets: one complete, one pruned at epoch 4, one waiting."""
    study = put_study(database, make_spec())
    queue.fill(study)
    for epoch in (10, 4):
        [ticket] = queue.take(study, 1)
        records = [
            EpochRecord(
                seed=seed,
                epoch=one,
                level=0.1,
                train_loss=0.2,
                train_accuracy=0.9,
                flooded=0,
                val_accuracy=0.8,
            )
            for seed in ticket.seeds
            for one in range(1, epoch + 1)
        ]
        queue.record([Entry(ticket, records, {epoch: 0.8})])
        if epoch == 10:
            queue.complete(ticket, 0.8, {})
        else:
            queue.prune(ticket, Decision(prune=True, reason="poor"))
    return study


def test_a_trial_is_the_same_however_it_was_read(study_of_ends):
    """What the curves say is a record of its own: the other has no place for it that could look empty."""
    study = study_of_ends
    trials, measured = read_trials(study), read_measured(study)
    names = [field.name for field in fields(TrialRecord)]
    assert [field.name for field in fields(MeasuredTrial)] == [*names, "results", "rungs"]
    assert not {"results", "rungs"} & set(dir(trials[0]))
    for trial, more in zip(trials, measured, strict=True):
        assert [getattr(trial, name) for name in names] == [getattr(more, name) for name in names]
    assert [len(one.results) for one in measured] == [2, 0, 0]
    assert [list(one.rungs) for one in measured] == [[4, 10], [4], []]
