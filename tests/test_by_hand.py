"""Other writers: what they do to a study's rows and files is said and mended, and costs nobody's data."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.storages._cached_storage import _CachedStorage
from optuna.trial import TrialState

from floodsearch import queue
from floodsearch.artifacts.files import Folder
from floodsearch.artifacts.names import remove_files
from floodsearch.errors import WRONG_USE, DamagedError, StudyDeletedError, UsageError
from floodsearch.launchers.crew import Crew
from floodsearch.launchers.local import Launch
from floodsearch.queries import answer, status
from floodsearch.queue import Ticket
from floodsearch.queue.ownership import lose
from floodsearch.records import BY_HAND, Attribute
from floodsearch.report.text import best_text, notes_text, status_text
from floodsearch.storage import schema, tables, trials
from floodsearch.storage.database import Database, open_database
from floodsearch.storage.studies import SPEC, UUID, StoredStudy, delete_study, find_study, put_study
from floodsearch.storage.trial_records import read_trials
from floodsearch.worker.leave import LeaveRequest
from floodsearch.worker.settings import WorkerSettings
from floodsearch.worker.work import work

HERE = WorkerSettings(device="cpu", threads=1)
ENDED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Database]:
    database = open_database(f"sqlite:///{tmp_path}/floodsearch.db", create=True)
    yield database
    database.close()


@pytest.fixture
def study(opened: Database, make_spec: Callable[..., Any]) -> StoredStudy:
    """Give a study of three levels whose tickets wait."""
    stored = put_study(opened, make_spec())
    queue.fill(stored)
    return stored


def change(study: StoredStudy, statement: str, **values: Any) -> None:
    """Change rows by hand."""
    with study.database.engine.begin() as connection:
        connection.execute(sqlalchemy.text(statement), values)


def anew(study: StoredStudy) -> StoredStudy:
    """Return the study as another process reads it, which has cached nothing."""
    storage: Any = study.database.optuna
    return replace(study, database=replace(study.database, optuna=_CachedStorage(storage._backend)))


def take(study: StoredStudy) -> list[Ticket]:
    return queue.take(study, 7)


def finish(study: StoredStudy) -> None:
    assert work(anew(study), HERE, LeaveRequest()) == "all tickets are finished"


def levels(study: StoredStudy) -> list[float | None]:
    """Return the levels of the complete tickets, by ticket."""
    complete = [one for one in read_trials(anew(study)) if one.state == "complete"]
    return [one.level for one in sorted(complete, key=lambda one: one.ticket)]


@pytest.mark.parametrize("state", ENDED, ids=lambda state: state.name)
@pytest.mark.parametrize("held", [True, False], ids=["running", "waiting"])
def test_a_ticket_that_was_told_by_hand_is_trained_again(
    study: StoredStudy, state: TrialState, held: bool
) -> None:
    """Level 0 with a value that nobody trained: `status` says so, and `best` does not use it."""
    if held:
        take(study)
    value = 0.99 if state == TrialState.COMPLETE else None
    study.database.optuna.set_trial_state_values(1, state, None if value is None else [value])
    told = status(anew(study))
    assert (told.trials.complete, told.best_value, told.interruptions[BY_HAND]) == (0, None, 1)
    said = {"COMPLETE": "told complete by hand, with the value 0.99", "FAIL": "told failed by hand"}
    assert f"ticket 0, level 0: {BY_HAND}, trial 0 was {said.get(state.name, 'told pruned by hand')}" in (
        status_text(told)
    )
    finish(study)
    assert levels(study) == [0.0, 0.25, 0.5]
    found = answer(anew(study))
    assert found.baseline is not None
    assert found.value < 0.99
    assert "ticket 0, level 0: complete in attempt 2, after: trial 0 was told" in (
        notes_text(status(anew(study), with_answer=True))
    )


def test_tickets_that_were_told_to_have_failed_stop_no_study(study: StoredStudy) -> None:
    """They are no errors of the user's code, which count in a row and as attempts."""
    for trial_id in (2, 3):
        study.database.optuna.set_trial_state_values(trial_id, TrialState.FAIL, None)
    [ticket] = take(study)
    queue.fail(ticket, ValueError("disk"))
    assert study.stopped() is None
    for _ in range(queue.ATTEMPTS):
        queue.fill(study)
        waiting = [one for one in study.optuna().get_trials() if one.state == TrialState.WAITING]
        study.database.optuna.set_trial_state_values(waiting[-1]._trial_id, TrialState.FAIL, None)
    assert queue.fill(study) == 1
    finish(study)


def test_a_value_that_was_told_guides_no_sampler_and_no_pruner(
    opened: Database, make_spec: Callable[..., Any]
) -> None:
    """A sampled search proposes what it proposes without the trial that was told."""
    proposed = []
    for name in ("told", "left"):
        search = {"sampler": "tpe", "trials": 8, "pruner": "halving"}
        study = put_study(opened, make_spec(name=name, levels={"count": None}, search=search))
        queue.fill(study)
        tickets = take(study)
        for ticket in tickets[:3]:
            queue.complete(ticket, 0.5 + ticket.number / 10, {})
        if name == "told":
            opened.optuna.set_trial_state_values(tickets[3].trial_id, TrialState.COMPLETE, [9.0])
        else:
            lose(study, tickets[3].trial_id, 7, "lost")
        proposed.append([ticket.level for ticket in take(anew(study))])
    assert proposed[0] == proposed[1]


OF_ATTRIBUTE = "UPDATE trial_user_attributes SET value_json ="
EDITS = {
    "a level of another ticket": "UPDATE trial_params SET param_value = 0.25 WHERE",
    "a level beyond the range": "UPDATE trial_params SET param_value = 7.0 WHERE",
    "a text for a level": "UPDATE trial_params SET param_value = 0, distribution_json = :text WHERE",
    "no level": "DELETE FROM trial_params WHERE",
    "a parameter that is not searched": (
        "INSERT INTO trial_params (trial_id, param_name, param_value, distribution_json) "
        "SELECT trial_id, 'width', param_value, distribution_json FROM trial_params WHERE"
    ),
    "another ticket": f"{OF_ATTRIBUTE} '1' WHERE key = 'ticket' AND",
    "a ticket that is none": f"{OF_ATTRIBUTE} '99' WHERE key = 'ticket' AND",
    "more epochs": f"{OF_ATTRIBUTE} '999' WHERE key = 'epochs' AND",
    "more seeds": f"{OF_ATTRIBUTE} '9' WHERE key = 'seeds' AND",
}


@pytest.mark.parametrize("what", EDITS)
def test_a_waiting_trial_that_was_changed_is_not_trained_but_its_ticket_is(
    study: StoredStudy, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The worker says so in a line and goes on: each level of the study is trained, and no other."""
    text = optuna.distributions.distribution_to_json(CategoricalDistribution(("high", "low")))
    change(study, f"{EDITS[what]} trial_id = 3", text=text)
    finish(study)
    assert levels(study) == [0.0, 0.25, 0.5]
    assert status(anew(study)).interruptions[BY_HAND] == 1
    assert [record.message for record in caplog.records if "is queued again: trial 2 " in record.message]


def test_a_complete_trial_whose_level_was_changed_is_not_believed(study: StoredStudy) -> None:
    """Its curve is still its own: the ticket is complete again without a training."""
    finish(study)
    before, run = answer(study).value, status(study).epochs_run
    change(study, "UPDATE trial_params SET param_value = 0.4 WHERE trial_id = 3")
    assert status(anew(study)).trials.failed == 1
    finish(study)
    assert (answer(anew(study)).value, levels(study)) == (before, [0.0, 0.25, 0.5])
    assert status(anew(study)).epochs_run == run


def test_a_trial_that_was_deleted_is_queued_again_under_a_number_of_its_own(study: StoredStudy) -> None:
    for table in ("trial_params", "trial_user_attributes", "trials"):
        change(study, f"DELETE FROM {table} WHERE trial_id = 1")
    assert queue.fill(study) == 1
    numbers = [one.trial for one in read_trials(anew(study))]
    assert sorted(set(numbers)) == sorted(numbers)
    finish(study)
    assert levels(study) == [0.0, 0.25, 0.5]


def test_a_trial_that_was_added_is_nobodys_ticket(study: StoredStudy) -> None:
    study.optuna().add_trial(
        optuna.create_trial(
            value=9.0, params={"level": 0.4}, distributions={"level": FloatDistribution(0.0, 0.5)}
        )
    )
    finish(study)
    assert answer(anew(study)).value < 1


@pytest.mark.parametrize("uuid", ["../../..", "", "A" * 32, "0" * 31, "0" * 33, "..", "0" * 31 + "\n"])
def test_a_uuid_that_is_none_is_refused_where_it_is_read(study: StoredStudy, uuid: str) -> None:
    study.database.optuna.set_study_user_attr(study.id, UUID, uuid)
    with pytest.raises(DamagedError, match="not 32 hex digits"):
        find_study(study.database, "tiny")


def test_damage_is_not_the_fault_of_who_asks_but_ends_a_command_as_wrong_use(
    study: StoredStudy, command: Callable[..., tuple[int, str, str]]
) -> None:
    """A program can tell the two apart; a launch starts no worker again that ends so."""
    assert not issubclass(DamagedError, UsageError)
    study.database.optuna.set_study_user_attr(study.id, UUID, "x")
    status, out, err = command("status", "tiny", "--storage", study.database.name)
    said = (
        "floodsearch:uuid of study 'tiny' is 'x', not 32 hex digits; it was changed by hand, so set it right"
    )
    assert (status, out) == (WRONG_USE, "")
    assert said in err


def test_a_uuid_that_becomes_another_is_refused_by_whoever_has_the_study(study: StoredStudy) -> None:
    study.database.optuna.set_study_user_attr(study.id, UUID, "0" * 32)
    with pytest.raises(StudyDeletedError, match="is another one now"):
        study.reread()


@pytest.mark.parametrize("name", ["../up", "Tiny", "a/b", ""])
def test_a_name_that_is_none_is_refused_where_it_is_read(study: StoredStudy, name: str) -> None:
    """Paths are made of the spec's own name, which has a pattern."""
    text = study.spec.model_dump_json().replace('"name":"tiny"', f'"name":"{name}"')
    study.database.optuna.set_study_user_attr(study.id, SPEC, text)
    with pytest.raises(UsageError, match="the stored spec of 'tiny' has 1 problem"):
        find_study(study.database, "tiny")


@pytest.mark.parametrize(
    ("here", "there", "said"),
    [
        ('"pruner":"none"', '"pruner":"__class__"', "search.pruner: '__class__' is not known"),
        ('"sampler":"grid"', '"sampler":"os.system"', "search.sampler: 'os.system' is not known"),
        ('"schedule":"constant"', '"schedule":"x"', "training.schedule: 'x' is not known"),
        ('"settings":{}', '"settings":{"none":{"study":1}}', "search.pruner: none has no study"),
        ('"task":"two_gaussians"', '"task":null', "task: is to be given"),
    ],
)
def test_a_name_that_stands_for_nothing_is_not_looked_up(
    study: StoredStudy, here: str, there: str, said: str
) -> None:
    text = study.spec.model_dump_json()
    assert here in text
    study.database.optuna.set_study_user_attr(study.id, SPEC, text.replace(here, there))
    with pytest.raises(UsageError, match=said):
        find_study(study.database, "tiny")


def copied(study: StoredStudy, name: str = "copy") -> StoredStudy:
    """Copy a study as a dashboard does to rename it."""
    optuna.copy_study(
        from_study_name="tiny",
        from_storage=study.database.optuna,
        to_storage=study.database.optuna,
        to_study_name=name,
    )
    return find_study(study.database, name)


def rows_of(study: StoredStudy) -> int:
    return sum(map(len, tables.read_curves(study.database, study.uuid).values()))


def test_a_copy_is_said_and_not_written_to(study: StoredStudy, make_spec: Callable[..., Any]) -> None:
    """Nor is the original, until the copy is deleted; that takes nothing from it, whichever goes first."""
    finish(study)
    before, rows = answer(study), rows_of(study)
    copy = copied(study)
    for one, other in ((study, "copy"), (copy, "tiny")):
        said = f"was copied by hand, and '{other}' would share its data; delete the copy: floodsearch delete"
        with pytest.raises(UsageError, match=said):
            work(one, HERE, LeaveRequest())
        assert said in status_text(status(one))
        assert said in best_text(answer(one))
    with pytest.raises(UsageError, match="copied by hand"):
        put_study(study.database, make_spec())
    assert delete_study(copy) == ["tiny"]
    assert (answer(study), rows_of(study)) == (before, rows)
    put_study(study.database, make_spec())
    copy = copied(study)
    assert delete_study(study) == ["copy"]
    assert rows_of(copy) == rows
    assert answer(copy).value == before.value
    assert delete_study(copy) == []
    assert rows_of(copy) == 0


def test_a_renamed_study_is_said_and_not_written_to(
    study: StoredStudy, make_spec: Callable[..., Any]
) -> None:
    """Its file makes no second one in its place; named as it was, all is well."""
    finish(study)
    change(study, "UPDATE studies SET study_name = 'other'")
    renamed = find_study(anew(study).database, "other")
    said = "study 'other' was made as 'tiny' and renamed by hand; name it 'tiny' again"
    for write in (
        lambda: work(renamed, HERE, LeaveRequest()),
        lambda: put_study(renamed.database, make_spec()),
        lambda: put_study(renamed.database, make_spec(name="other")),
    ):
        with pytest.raises(UsageError, match=said):
            write()
    assert said in status_text(status(renamed))
    assert said in best_text(answer(renamed))
    assert renamed.folder == study.folder
    change(study, "UPDATE studies SET study_name = 'tiny'")
    again = anew(study)
    assert put_study(again.database, make_spec()).changed() is None


def test_a_study_that_was_turned_round_is_said(study: StoredStudy) -> None:
    change(study, "UPDATE study_directions SET direction = 'MINIMIZE'")
    with pytest.raises(UsageError, match="changed by hand to minimize; set it to maximize again"):
        work(anew(study), HERE, LeaveRequest())


def test_only_files_with_our_names_are_removed_and_no_link_is_followed(tmp_path: Path) -> None:
    """What stays is named: files of others, folders, links; nothing outside is touched."""
    root, outside = tmp_path / "checkpoints", tmp_path / "outside"
    outside.mkdir()
    (outside / "ticket-0-seed-0.pt").touch()
    files = Folder(root).within("tiny/01234567")
    ours = ["ticket-0-seed-1.pt", "ticket-0-seed-1.pt.before", "trunk-0123abcd-seed-0.pt"]
    ours += ["trunk-0123abcd-seed-0-epoch-5.pt", "ticket-3-seed-2.pt.4711.unfinished"]
    for name in (*ours, "notes.txt", "ticket-list.pt", "trunk-1.csv"):
        files.write(name, b"", room=1)
    for name in ("ticket-0-seed-1-epochs-10-last.pt", "ticket-0-seed-1-epochs-10-best.pt", "ticket-0.pt"):
        files.within("weights").write(name, b"", room=1)
    (files.path / "ticket-9-seed-9.pt").symlink_to(outside / "ticket-0-seed-0.pt")
    (files.path / "more").symlink_to(outside)
    assert remove_files(files) == [
        "more",
        "notes.txt",
        "ticket-9-seed-9.pt",
        "ticket-list.pt",
        "trunk-1.csv",
        "weights/ticket-0.pt",
    ]
    assert [path.name for path in outside.iterdir()] == ["ticket-0-seed-0.pt"]


@pytest.mark.parametrize("part", ["tiny", "tiny/01234567", "tiny/01234567/weights"])
def test_a_folder_that_is_a_link_is_not_entered(tmp_path: Path, part: str) -> None:
    outside, root = tmp_path / "outside", tmp_path / "checkpoints"
    for folder in (outside, outside / "01234567", outside / "weights", outside / "01234567" / "weights"):
        folder.mkdir()
        (folder / "ticket-0-seed-0.pt").touch()
        (folder / "ticket-0-seed-0-epochs-1-last.pt").touch()
    before = sorted(outside.rglob("*"))
    (root / part).parent.mkdir(parents=True)
    (root / part).symlink_to(outside)
    files = Folder(root).within("tiny/01234567")
    for use in (
        lambda: remove_files(files),
        lambda: files.within("weights").write("ticket-0-seed-0.pt", b"x", room=9),
    ):
        with pytest.raises(OSError, match=r"Not a directory|symbolic links"):
            use()
    assert sorted(outside.rglob("*")) == before


def test_files_leave_their_folder_by_no_name(tmp_path: Path) -> None:
    for name in ("..", "a/../../b", "/etc", "."):
        with pytest.raises(ValueError, match="leaves"):
            Folder(tmp_path).within(name)


def test_logs_are_not_written_through_links(study: StoredStudy, tmp_path: Path) -> None:
    precious = tmp_path / "precious.txt"
    precious.write_text("mine")
    (tmp_path / "logs" / "tiny").mkdir(parents=True)
    (tmp_path / "logs" / "tiny" / "worker-0.log").symlink_to(precious)
    crew = Crew(devices=("cpu",), threads=1)
    launch = Launch(study, "sqlite:///nowhere", crew, logs=tmp_path / "logs")
    with pytest.raises(UsageError, match=r"the log .*worker-0.log cannot be written"):
        launch.__enter__()
    assert precious.read_text() == "mine"


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o177, 0o777])
def test_what_is_made_is_its_owners_only(tmp_path: Path, umask: int) -> None:
    """Databases, checkpoints and logs may hold secrets; what is there keeps its permissions."""

    def mode(path: Path) -> int:
        return stat.S_IMODE(path.stat().st_mode)

    (tmp_path / "shared").mkdir(mode=0o755)
    before = os.umask(umask)
    try:
        database = open_database(f"sqlite:///{tmp_path}/floodsearch.db", create=True)
        with database.write() as connection:
            connection.execute(sqlalchemy.select(schema.stamp))
            modes = {path.name: mode(path) for path in tmp_path.glob("floodsearch.db*")}
        database.close()
        files = Folder(tmp_path / "shared").within("tiny/01234567")
        files.write("ticket-0-seed-0.pt", b"1", room=9, before="old")
        files.append("worker-0.log").close()
        (files.path / "ticket-0-seed-0.pt").chmod(0o640)
        files.write("ticket-0-seed-0.pt", b"2", room=9, before="old")
    finally:
        os.umask(before)
    assert set(modes.values()) == {0o600}
    assert {"floodsearch.db", "floodsearch.db-wal", "floodsearch.db-shm"} == modes.keys()
    assert {mode(files.path), mode(files.path.parent)} == {0o700}
    assert {path.name: mode(path) for path in files.path.iterdir()} == {
        "ticket-0-seed-0.pt": 0o640,
        "old": 0o640,
        "worker-0.log": 0o600,
    }
    assert mode(tmp_path / "shared") == 0o755


def test_the_mark_of_an_end_is_written_with_it(study: StoredStudy) -> None:
    """By it a trial that a worker ended is told from one that somebody else did."""
    [ticket] = take(study)
    queue.complete(ticket, 0.5, {})
    with study.database.read() as connection:
        assert trials.cause(connection, ticket.trial_id) == "complete"
    assert read_trials(study)[0].cause is None
    attributes = study.database.optuna.get_trial(ticket.trial_id).user_attrs
    assert attributes[Attribute.CAUSE] == "complete"
