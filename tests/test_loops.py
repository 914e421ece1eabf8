"""Training loops of the user's own: exact in parts, halved, killed, resumed, and told what they do wrong."""

from __future__ import annotations

import hashlib
import importlib
import io
import logging
import math
import os
import random
import sys
import uuid
from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from floodsearch import flood, queue
from floodsearch.answer.tickets import count, latest
from floodsearch.artifacts import checkpoint as checkpoint_module
from floodsearch.artifacts.checkpoint import Checkpoint, Checkpoints, strange
from floodsearch.artifacts.files import Folder
from floodsearch.artifacts.names import name_of
from floodsearch.artifacts.weights import KeptWeights
from floodsearch.errors import DivergedError, LoopError, TaskError
from floodsearch.queries import answer, status
from floodsearch.records import Attribute
from floodsearch.storage import tables
from floodsearch.storage.studies import put_study
from floodsearch.storage.trial_records import read_measured, read_trials
from floodsearch.training.loop import LoopRun
from floodsearch.training.progress import RunPlan
from floodsearch.worker.bracket import Bracket
from floodsearch.worker.heartbeat import Heartbeat
from floodsearch.worker.leave import LeaveRequest
from floodsearch.worker.loops import Loops
from floodsearch.worker.settings import WorkerSettings
from floodsearch.worker.trainers import Group
from floodsearch.worker.work import work

CPU = torch.device("cpu")

TRAIN = """
import random
import numpy as np
import torch
from torch import nn

def train(run):
    '''Noisy points and dropout; draws from every global generator, none of which it seeds.'''
    width = run.settings.get("width", 8)
    x = torch.randn(40, 4)
    y = (x.sum(dim=1) + torch.randn(40) > 0).long()
    hidden = [nn.Linear(4, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.2)]
    model = nn.Sequential(*hidden, nn.Linear(width, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, run.length)
    order = torch.Generator().manual_seed(run.seed)
    run.restore(model=model, optimizer=optimizer, scheduler=scheduler, order=order)
    for epoch in run.epochs():
        model.train()
        for part in torch.randperm(40, generator=order).split(20):
            noise = random.gauss(0, 0.1) + np.random.normal(0, 0.1)
            loss = run.flood(nn.functional.cross_entropy(model(x[part] + noise), y[part]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            outputs = model(x)
        accuracy = (outputs.argmax(dim=1) == y).float().mean()
        run.report(val_accuracy=accuracy, val_loss=nn.functional.cross_entropy(outputs, y).item())
        scheduler.step()  # behind the report, and still kept
"""
NO_RESTORE = TRAIN.replace("    run.restore(", "    dict(")

STUDY = {
    "task": None,
    "options": {"label_noise": None, "depth": None, "width": 8},
    "levels": {"high": 0.8, "count": 5},
    "training": {"epochs": 12, "seeds": 2, "validate_every": None},
    "search": {"pruner": "halving"},
    "halving": {"first": 0.15},
}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def write_loop(write_code):
    """Write a module with a training loop; give its reference."""
    return lambda source=TRAIN: f"{write_code(source, 'loop')}:train"


@pytest.fixture
def make_study(database, make_spec, write_loop):
    """Put a study of a training loop, filled."""

    def make(name="tiny", source=TRAIN, **changes):
        whole = {
            key: {**STUDY[key], **changes.pop(key, {})} for key in STUDY if key not in ("task", "options")
        }
        if whole["search"]["pruner"] != "halving":
            whole.pop("halving")
        options = {**STUDY["options"], **changes.pop("options", {})}
        spec = make_spec(
            name=name, objective=write_loop(source), task=None, options=options, **whole, **changes
        )
        study = put_study(database, spec)
        queue.fill(study)
        return study

    return make


@pytest.fixture
def here(tmp_path):
    """Give the settings of a worker that keeps its checkpoints here."""
    return WorkerSettings(device="cpu", threads=1, checkpoints=tmp_path / "checkpoints")


def curves(study):
    return tables.read_curves(study.database, study.uuid)


def ends(study):
    found = latest(read_trials(study))
    return {ticket: (one.state, one.cause, one.reason, one.value) for ticket, one in sorted(found.items())}


def epochs_run(study):
    return sum(worker.epochs_run for worker in tables.read_workers(study.database, study.uuid))


def enter(study):
    return tables.enter_worker(study.database, study.uuid, host="here", pid=1, device="cpu", versions={})


def files(settings):
    return sorted(path.name for path in settings.checkpoints.rglob("*.pt"))


sqlite = pytest.mark.parametrize("storage_url", ["sqlite"], indirect=True)


# One run


class Alone:
    """One run of a function, with all that is asked of its surroundings."""

    def __init__(self, folder, *, level=0.3, epochs=6, **plan):
        self.plan, self.level, self.records = RunPlan(epochs=epochs, **plan), level, []
        self.checkpoint = Checkpoint(Folder(folder), "run.pt", {"level": level})

    def train(self, function, until=10**9, stop_at=10**9):
        """Train one part; return what was wrong, or None."""

        def note(record):
            self.records.append(record)
            return record.epoch < stop_at

        self.run = LoopRun(
            self.plan,
            name="run",
            level=self.level,
            seed=7,
            device=CPU,
            settings={"width": 8},
            until=until,
            note=note,
            checkpoint=self.checkpoint,
            saved=self.checkpoint.load(),
        )
        loops = object.__new__(Loops)
        loops.loop, loops.device = function, CPU
        return loops.call(self.run)


@pytest.fixture
def alone(tmp_path):
    return lambda **options: Alone(tmp_path / uuid.uuid4().hex, **options)


@pytest.fixture
def train(write_loop):
    """Give the training loop as a function."""
    module, _, name = write_loop().partition(":")
    return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize("level", [0.0, 0.4])
@pytest.mark.parametrize("pauses", [(1,), (2, 3, 5), (1, 2, 3, 4, 5)])
def test_a_run_in_parts_equals_one_that_was_never_paused(alone, train, level, pauses):
    """To the bit, whatever generator it draws from, and with a scheduler that steps behind the report."""
    whole, parts = alone(level=level), alone(level=level)
    assert whole.train(train) is None
    for until in (*pauses, 6):
        random.seed()
        np.random.seed()
        torch.seed()
        assert parts.train(train, until=until) is None
        assert parts.run.epoch == until
    assert [record.epoch for record in parts.records] == [1, 2, 3, 4, 5, 6]
    assert parts.records == whole.records
    assert any(record.flooded > 0 for record in whole.records) == (level > 0)


def test_a_run_depends_on_its_seed_alone(alone, train):
    """A loop that seeds nothing gives the same numbers, whatever was drawn in this process before."""
    first, second = alone(), alone()
    first.train(train)
    torch.rand(5), random.random(), np.random.rand()
    second.train(train)
    assert first.records == second.records


def test_a_run_that_is_asked_to_leave_goes_on_where_it_was(alone, train):
    whole, parts = alone(), alone()
    whole.train(train)
    assert parts.train(train, stop_at=2) is None
    assert (parts.run.epoch, parts.run.goes_on) == (2, False)
    parts.train(train)
    assert parts.records == whole.records


def test_a_checkpoint_is_saved_when_it_is_due(alone, train, monkeypatch):
    """A process that dies loses what it trained since the last one, and no more."""
    monkeypatch.setattr(checkpoint_module, "SECONDS", 0.0)
    monkeypatch.setattr(checkpoint_module, "SHARE", 1e9)
    whole, parts = alone(), alone()
    whole.train(train)

    class KilledError(BaseException):
        pass

    def dies(run):
        plain = run._note

        def note(record):
            if record.epoch == 4:
                raise KilledError
            return plain(record)

        run._note = note
        train(run)

    with pytest.raises(KilledError):
        parts.train(dies)
    assert parts.train(train) is None
    assert [record.epoch for record in parts.records] == [1, 2, 3, 4, 5, 6]
    assert parts.records == whole.records


def test_a_full_disk_ends_no_training(alone, train, monkeypatch, caplog):
    """Where no checkpoint can be saved, the part that was trained is trained again."""

    def full(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(Checkpoint, "save", full)
    whole, parts = alone(), alone()
    whole.train(train)
    assert parts.train(train, until=3) is None
    assert parts.train(train) is None
    assert parts.records == whole.records[:3] + whole.records
    assert "no space left" in caplog.text


def steps(run, *, report=True, flooded=True):
    """Train a line for one step an epoch."""
    line = nn.Linear(1, 1)
    run.restore(line=line)
    for _ in run.epochs():
        loss = line(torch.ones(1, 1)).square().mean()
        loss = run.flood(loss) if flooded else loss
        loss.backward()
        if report:
            run.report(val_accuracy=0.5)


def twice(run):
    for _ in run.epochs():
        run.report(val_accuracy=0.5)
        run.report(val_accuracy=0.5)


def outside(run):
    run.report(val_accuracy=0.5)


def after(run):
    steps(run)
    run.report(val_accuracy=0.5)


def breaks(run):
    for epoch in run.epochs():
        run.report(val_accuracy=0.5)
        if epoch == 2:
            break


def reports(**metrics):
    def function(run):
        for _ in run.epochs():
            run.report(**metrics)

    return function


def restores(**objects):
    def function(run):
        run.restore(**objects)
        steps(run)

    return function


def late(run):
    for _ in run.epochs():
        run.restore(model=nn.Linear(1, 1))


def swallows(run):
    """Catch whatever is said, and go on."""
    for _ in run.epochs():
        try:
            run.report(f1=0.5)
        except Exception:
            continue


class Odd:
    def state_dict(self):
        return {"x": [1, np.float64(2)]}

    def load_state_dict(self, state):
        pass


WRONG = {
    "no report": (lambda run: steps(run, report=False), "epoch 1 ended without run.report()"),
    "two reports": (twice, "run.report() was called twice in epoch 1; call it once"),
    "before": (outside, "run.report() was called outside of the loop over run.epochs()"),
    "after": (after, "run.report() was called outside of the loop over run.epochs()"),
    "returns early": (breaks, "the loop returned after epoch 2 of 6 without being asked to"),
    "no epochs": (lambda run: None, "before its first epoch; write: for epoch in run.epochs()"),
    "unknown metric": (reports(f1=0.5), "was given 'f1', which this study does not know; it knows"),
    "no metric": (reports(val_loss=0.5), "epoch 1 was reported without val_accuracy, the study's metric"),
    "text": (reports(val_accuracy="0.5"), "run.report(val_accuracy=...) was given a str, not a number"),
    "nothing": (reports(val_accuracy=None), "was given a NoneType, not a number"),
    "truth": (reports(val_accuracy=True), "was given a bool, not a number"),
    "many": (reports(val_accuracy=torch.zeros(3)), "was given a Tensor of shape (3,), not a number"),
    "array": (reports(val_accuracy=np.zeros((1, 2))), "was given a ndarray of shape (1, 2), not a number"),
    "stateless": (restores(model=3), "run.restore() was given model, of type int, which cannot be filled"),
    "late": (late, "run.restore() was called after run.epochs()"),
    "swallows": (swallows, "run.report() was given 'f1'"),
    "odd state": (restores(odd=Odd()), "that a checkpoint cannot hold: odd['x'][1], a numpy.float64"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_a_loop_does_wrong_is_one_clear_line(alone, case):
    """It is said with what to do instead, also where the loop's own code catches the error."""
    function, message = WRONG[case]
    error = alone().train(function, until=1 if case == "odd state" else 10**9)
    assert isinstance(error, LoopError), error
    assert message in str(error)
    assert "\n" not in str(error)


@pytest.mark.parametrize("name", ["val_accuracy", "val_loss", "test_accuracy"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e60])
def test_a_number_that_is_not_finite_has_diverged(alone, name, value):
    error = alone().train(reports(**{"val_accuracy": 0.5, name: value}))
    assert isinstance(error, DivergedError)
    assert str(error).startswith(f"the reported {name} is not finite at level 0.3, epoch 1, seed 7; ")


def test_a_flooded_loss_that_is_not_finite_has_diverged(alone):
    def function(run):
        for _ in run.epochs():
            run.flood(torch.tensor(math.nan, requires_grad=True))
            run.report(val_accuracy=0.5)

    error = alone().train(function)
    assert isinstance(error, DivergedError)
    assert str(error).startswith("the loss is not finite at level 0.3, epoch 1, seed 7; ")


def test_numbers_of_every_kind_are_reported(alone):
    """Python's, NumPy's and tensors of no dimension; a test without a loss, and a loss of one's own."""
    one = alone(epochs=1)
    numbers = {"val_accuracy": 1, "val_loss": np.float32(0.5), "test_accuracy": torch.tensor(0.25)}
    assert one.train(reports(**numbers, train_loss=np.array(2.0), train_accuracy=0.75)) is None
    [record] = one.records
    assert (record.val_accuracy, record.val_loss, record.test_accuracy) == (1.0, 0.5, 0.25)
    assert (record.train_loss, record.train_accuracy, record.test_loss) == (2.0, 0.75, None)
    assert all(type(value) in (int, float, type(None)) for value in dataclass_values(record))


def dataclass_values(record):
    return [getattr(record, name) for name in record.__dataclass_fields__]


def test_the_metric_is_due_when_validations_are(alone):
    """Between them it may be missing; at the last epoch it may not."""

    def function(run):
        for epoch in run.epochs():
            run.report(**({"f1": 0.5} if epoch % 2 == 0 else {}))

    assert alone(validate_every=2, metric="f1").train(function) is None
    error = alone(validate_every=2, epochs=5, metric="f1").train(function)
    assert "epoch 5 was reported without f1" in str(error)
    assert "every 2 epochs and at the last" in str(error)


# Flooding in a loop


def test_level_0_returns_the_very_same_tensor(alone):
    seen = []

    def function(run):
        for _ in run.epochs():
            loss = torch.tensor(-0.5, requires_grad=True)
            seen.append(run.flood(loss) is loss and run.flood(loss, across_ranks=True) is loss)
            run.report(val_accuracy=0.5)

    one = alone(level=0.0)
    one.train(function)
    assert seen == [True] * 6
    assert {(record.train_loss, record.flooded) for record in one.records} == {(-0.5, 0.0)}


def test_the_record_holds_the_plain_loss_and_the_share_of_flooded_batches(alone):
    """Of batches that are trained: an evaluation without gradients counts for nothing and is not flooded."""
    grads = []

    def function(run):
        for _ in run.epochs():
            for value in (0.1, 0.2, 0.6, 0.7):
                loss = torch.tensor(value, requires_grad=True)
                flooded = run.flood(loss)
                assert flooded.item() == pytest.approx(flood(loss, 0.3).item())
                flooded.backward()
                grads.append(loss.grad.item())
            with torch.no_grad():
                assert run.flood(torch.tensor(0.1)).item() == pytest.approx(0.1)
            run.report(val_accuracy=0.5)

    one = alone(epochs=1)
    assert one.train(function) is None
    assert grads == [-1, -1, 1, 1]
    assert one.records[0].train_loss == pytest.approx(0.4)
    assert one.records[0].flooded == 0.5


def test_a_loss_that_is_no_scalar_is_refused_as_flood_does(alone):
    def function(run):
        for _ in run.epochs():
            run.flood(torch.zeros(3, requires_grad=True))

    for level in (0.0, 0.3):
        error = alone(level=level).train(function)
        assert isinstance(error, ValueError)
        with pytest.raises(ValueError, match="a scalar") as expected:
            flood(torch.zeros(3), 0.3)
        assert str(error) == str(expected.value)


RANKS = """
import torch
from torch import distributed
from floodsearch.training.loop import LoopRun
from floodsearch.training.progress import RunPlan
from floodsearch.artifacts.weights import KeptWeights

def main(rank, path):
    distributed.init_process_group("gloo", init_method=f"file://{path}", rank=int(rank), world_size=2)
    records = []
    run = LoopRun(RunPlan(epochs=1), name="run", level=0.3, seed=0,
                  device=torch.device("cpu"), settings={}, until=9,
                  note=lambda record: records.append(record) or True, checkpoint=None)
    run.wanted = False
    found = []
    for _ in run.epochs():
        for losses in ((0.1, 0.4), (0.1, 0.9)):  # of the two ranks; the means are below and above the level
            loss = torch.tensor(losses[rank], requires_grad=True)
            flooded = run.flood(loss, across_ranks=True)
            flooded.backward()
            found.append([round(flooded.item(), 6), loss.grad.item()])
        run.report(val_accuracy=0.5)
    distributed.destroy_process_group()
    return [found, records[0].train_loss, records[0].flooded]
"""


def test_ranks_decide_the_sign_together(crowd, tmp_path):
    """It is that of the mean over ranks, for the gradient of the local loss."""
    for found, train_loss, flooded in crowd(RANKS, 2, str(tmp_path / "ranks")).answers():
        assert found == [[0.35, -1.0], [0.5, 1.0]]
        assert train_loss == pytest.approx(0.375)
        assert flooded == 0.5


# Checkpoints


def test_a_checkpoint_is_whole_or_not_there(tmp_path, monkeypatch):
    """A write that is cut short leaves the one before, and nothing else."""
    one = Checkpoint(Folder(tmp_path / "deep"), "run.pt", {"level": 0.1})
    assert one.load() is None
    one.save({"epoch": 1, "state": {"w": torch.ones(2)}})
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError("cut")))
    with pytest.raises(OSError, match="cut"):
        one.save({"epoch": 2})
    found = one.load()
    assert found["epoch"] == 1
    assert torch.equal(found["state"]["w"], torch.ones(2))
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["run.pt"]


def test_a_checkpoint_of_another_run_or_a_damaged_one_is_as_none(tmp_path, caplog):
    here = partial(Checkpoint, Folder(tmp_path), "run.pt")
    here({"level": 0.1}).save({"epoch": 1})
    assert here({"level": 0.2}).load() is None
    path = tmp_path / "run.pt"
    path.write_bytes(path.read_bytes()[:40])
    assert here({"level": 0.1}).load() is None
    assert "is left out" in caplog.text


def test_reading_a_checkpoint_runs_no_code(tmp_path, caplog):
    """Whoever can write to the folder cannot make a worker run what they like."""

    class Attack:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "attacked"),))

    buffer = io.BytesIO()
    torch.save({"of": {}, "x": Attack()}, buffer)
    written = b"1\n" + buffer.getvalue()
    digest = hashlib.sha256(written).hexdigest().encode()
    (tmp_path / "run.pt").write_bytes(checkpoint_module.KIND + digest + b"\n" + written)
    assert Checkpoint(Folder(tmp_path), "run.pt", {}).load() is None
    assert "UnpicklingError" in caplog.text
    assert not (tmp_path / "attacked").exists()


def test_a_ticket_leaves_no_file_and_the_last_no_folder(tmp_path):
    every = Checkpoints(Folder(tmp_path).within("name/study"))
    every.remove(3)
    for ticket, seed in ((3, 0), (3, 1), (30, 0)):
        every.of(name_of(ticket, seed), {}).save({"epoch": 1})
    (tmp_path / "name" / "study" / "ticket-3-seed-0.pt.99.unfinished").touch()
    every.remove(3)
    assert [path.name for path in (tmp_path / "name" / "study").iterdir()] == ["ticket-30-seed-0.pt"]
    every.remove(30)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "value", [1, 1.0, "a", None, True, [1, (2, {"a": torch.ones(1)})], {}, Counter("aa")]
)
def test_plain_values_and_tensors_are_kept(value):
    assert strange(value, "x") is None


@pytest.mark.parametrize(
    ("value", "where"),
    [(np.float64(1), "x, a numpy.float64"), ({"a": [0, {1}]}, "x['a'][1], a builtins.set")],
)
def test_what_a_checkpoint_cannot_hold_is_found(value, where):
    assert strange(value, "x") == where


# Whole studies


@sqlite
def test_a_loop_is_halved_as_if_all_runs_trained_together(make_study, here):
    """The verdicts, values and curves are those of runs that were never paused; no checkpoint is left."""
    study = make_study()
    assert work(study, here, LeaveRequest()) == "all tickets are finished"
    found = ends(study)
    assert {state for state, *_ in found.values()} == {"complete", "pruned"}
    assert found[0][0] == "complete"
    whole = make_study("whole", search={"pruner": "none"})
    work(whole, here, LeaveRequest())
    assert {state for state, *_ in ends(whole).values()} == {"complete"}
    for ticket, records in curves(study).items():
        last = latest(read_trials(study))[ticket].epoch
        assert records == [one for one in curves(whole)[ticket] if one.epoch <= last]
    assert epochs_run(study) == sum(map(len, curves(study).values())) < epochs_run(whole) == 5 * 2 * 12
    assert files(here) == []
    assert answer(study).finished


class Killed(KeyboardInterrupt):
    """The end of a process: of all that code may raise, a worker lets a Ctrl-C through."""


@sqlite
def test_a_loop_that_is_cut_short_ends_alike(make_study, here, monkeypatch):
    """Wherever a worker dies or hands back, the next goes on from there and comes to the same end."""
    whole = make_study("whole")
    work(whole, here, LeaveRequest())
    for cut, killed in ((1, True), (7, False), (23, True), (40, False)):
        study = make_study(f"cut-{cut}")
        worker, leave, noted = enter(study), LeaveRequest(), []
        tickets, plain = queue.take(study, worker), Bracket._note

        def note(self, *arguments, plain=plain, noted=noted, cut=cut, killed=killed, leave=leave):
            noted.append(None)
            if len(noted) == cut:
                if killed:
                    raise Killed
                leave.ask("lunch")
            plain(self, *arguments)

        monkeypatch.setattr(Bracket, "_note", note)
        heart = Heartbeat(study, worker, here, leave)
        bracket = Bracket(
            tickets,
            heart,
            Loops(study.trusted, CPU, here, LeaveRequest()),
            KeptWeights(here.files(study)),
        )
        if killed:
            with pytest.raises(Killed):
                bracket.end()
            queue.release(study, worker, "dead")
        else:
            bracket.end()
            assert count(read_trials(study)).waiting + count(read_trials(study)).pruned == 5
        monkeypatch.setattr(Bracket, "_note", plain)
        tables.beat(study.database, worker, epochs_run=heart.epochs_run, training=(), leaving=True)
        work(study, here, LeaveRequest())
        assert ends(study) == ends(whole), cut
        assert curves(study) == curves(whole)
        if not killed:
            assert epochs_run(study) == epochs_run(whole), "nothing was trained twice"
        assert files(here) == []


@sqlite
def test_without_restore_runs_go_straight_to_their_ends(make_study, here, caplog):
    """Nothing is pruned, tickets are complete one after the other, and the log says why, once."""
    caplog.set_level(logging.WARNING, logger="floodsearch")
    study = make_study(source=NO_RESTORE)
    work(study, here, LeaveRequest())
    assert {state for state, *_ in ends(study).values()} == {"complete"}
    assert epochs_run(study) == 5 * 2 * 12
    assert caplog.text.count("the loop never calls run.restore()") == 1
    other = make_study("other")
    work(other, here, LeaveRequest())
    assert curves(other)[0] == curves(study)[0]


@sqlite
def test_without_restore_finished_runs_are_kept(make_study, here):
    """What died later does not cost the runs that had been finished."""
    study = make_study(source=NO_RESTORE, search={"pruner": "none"})
    worker = enter(study)
    heart = Heartbeat(study, worker, here, LeaveRequest())
    tickets, trainer = queue.take(study, worker), Loops(study.trusted, CPU, here, LeaveRequest())
    heart.leave.wanted.is_set = lambda: heart.epochs_run >= 15
    Bracket(tickets, heart, trainer, KeptWeights(here.files(study))).end()
    assert heart.epochs_run == 15
    assert files(here) == ["ticket-0-seed-0.pt"]
    work(study, here, LeaveRequest())
    assert epochs_run(study) == 5 * 2 * 12 - 12


@sqlite
def test_an_error_of_the_loop_is_kept_and_the_study_stops(make_study, here):
    """Each ticket ends failed with its message; several in a row stop the study, which says why."""
    study = make_study(source=TRAIN.replace("val_accuracy=", "accuracy="))
    reason = work(
        study, WorkerSettings(device="cpu", checkpoints=here.checkpoints, beat_seconds=0.1), LeaveRequest()
    )
    assert reason.startswith("3 tickets in a row failed, the last with LoopError: run.report() was given")
    failed = [one for one in read_trials(study) if one.state == "failed"]
    assert len(failed) >= 3
    assert {one.cause for one in failed} == {"error"}


@sqlite
def test_a_metric_that_is_nan_ends_its_ticket_as_diverged(make_study, here):
    source = TRAIN.replace("accuracy = (", "accuracy = float('nan') if run.level == 0.6 and epoch > 3 else (")
    study = make_study(source=source, search={"pruner": "none"})
    work(study, here, LeaveRequest())
    causes = {one.level: one.cause for one in read_trials(study)}
    assert causes == {0.0: None, 0.2: None, 0.4: None, 0.6: "diverged", 0.8: None}
    assert files(here) == []


@sqlite
def test_a_metric_of_any_name_is_searched(make_study, here):
    """It is judged and answered in the given direction, and stored with the curves."""
    source = TRAIN.replace("run.report(", "run.report(error=1 - accuracy, ")
    study = make_study(source=source, search={"metric": "error", "direction": "minimize"})
    work(study, here, LeaveRequest())
    found = answer(study)
    assert (found.metric, found.test_accuracy) == ("error", None)
    for record in curves(study)[0]:
        assert record.metric == pytest.approx(1 - record.val_accuracy)
    plain = make_study("plain")
    work(plain, here, LeaveRequest())
    assert {n: one[:2] for n, one in ends(plain).items()} == {n: one[:2] for n, one in ends(study).items()}
    assert found.value == pytest.approx(1 - answer(plain).value)
    assert status(study).metric == "error"


@sqlite
def test_tests_that_a_loop_reports_are_answered(make_study, here):
    """At the last epoch and at the best one, also without a test loss."""
    source = TRAIN.replace("run.report(", "run.report(test_accuracy=epoch / 100, ")
    study = make_study(source=source, search={"pruner": "none"})
    work(study, here, LeaveRequest())
    found = answer(study)
    assert found.test_accuracy == pytest.approx(0.12)
    assert found.test_loss is None
    for trial in read_measured(study):
        for result in trial.results:
            run = [one for one in curves(study)[trial.ticket] if one.seed == result.seed]
            best = max(run, key=lambda one: (one.val_accuracy, -one.epoch))
            assert (result.best_epoch, result.best_test_accuracy) == (best.epoch, best.epoch / 100)
    attributes = study.database.optuna.get_all_trials(study.id)[0].user_attrs
    assert attributes[Attribute.TEST_ACCURACY] == pytest.approx(0.12)


@sqlite
def test_settings_reach_the_loop_and_are_searched(make_study, here):
    """Those of [options] and [training] arrive in run.settings; choices are a ticket each."""
    expects = "    assert (run.settings['name'], run.settings['rates']) == ('x', (1, 2))\n"
    source = TRAIN.replace("    width = ", f"{expects}    width = ").replace('"width"', '"units"')
    study = make_study(
        source=source,
        options={"units": {"choices": [4, 8]}},
        training={"name": "x", "rates": [1, 2]},
        levels={"count": 2},
        search={"pruner": "none"},
    )
    work(study, here, LeaveRequest())
    found = {(one.level, one.parameters["units"]): one.state for one in read_trials(study)}
    assert found == {(level, units): "complete" for level in (0.0, 0.8) for units in (4, 8)}
    assert [one.parameters for one in answer(study).combinations] == [{"units": 4}, {"units": 8}]


@sqlite
def test_every_sampler_and_pruner_trains_a_loop(make_study, here):
    for number, (sampler, pruner) in enumerate(
        [("grid", "median"), ("random", "halving"), ("tpe", "hyperband")]
    ):
        changes = {} if sampler == "grid" else {"levels": {"count": None}, "search": {"trials": 3}}
        search = {"sampler": sampler, "pruner": pruner, **changes.pop("search", {})}
        study = make_study(f"study-{number}", search=search, training={"epochs": 4, "seeds": 1}, **changes)
        assert work(study, here, LeaveRequest()) == "all tickets are finished"
        assert answer(study).finished
        assert files(here) == []


@sqlite
def test_a_study_that_grew_trains_its_loop_again(make_study, here, database):
    """More seeds train the new ones only; more epochs begin again, as loops may depend on their number."""
    study = make_study(search={"pruner": "none"})
    work(study, here, LeaveRequest())
    spec = study.spec.model_copy(
        update={"training": study.spec.training.model_copy(update={"seeds": (0, 1, 2)})}
    )
    grown = put_study(database, spec)
    queue.fill(grown)
    work(grown, here, LeaveRequest())
    assert answer(grown).seeds == 3
    before = epochs_run(grown)
    assert before <= 5 * 3 * 12
    training = grown.spec.training.model_copy(update={"epochs": 18})
    longer = put_study(database, grown.spec.model_copy(update={"training": training}))
    queue.fill(longer)
    work(longer, here, LeaveRequest())
    assert {one.epoch for one in latest(read_trials(longer)).values()} == {18}
    assert epochs_run(longer) - before == 5 * 3 * 18


@sqlite
def test_the_worker_gives_back_every_generator(make_study, here):
    """Python's, NumPy's and torch's go on as if nothing had been trained."""
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    expected = torch.rand(1).item(), random.random(), np.random.rand()
    torch.manual_seed(1), random.seed(1), np.random.seed(1)
    work(make_study(levels={"count": 2}), here, LeaveRequest())
    assert (torch.rand(1).item(), random.random(), np.random.rand()) == expected


@sqlite
def test_a_checkpoint_from_which_nothing_can_be_trained_is_let_go(make_study, here):
    """One that does not fit the loop any more costs one attempt, and the next begins at the first epoch."""
    study = make_study(levels={"count": 2}, search={"pruner": "none"})
    whole = Loops(study.trusted, CPU, here, LeaveRequest())
    whole.unflooded(study, 0).train(3, lambda step: True)
    [path] = here.checkpoints.rglob("*.pt")
    content = checkpoint_module._content(path.read_bytes())
    content["objects"]["model"] = {"other": torch.ones(1)}
    content["records"] = checkpoint_module.rows(content["records"])
    Checkpoint(Folder(path.parent), path.name, content.pop("of")).save(content)
    work(study, here, LeaveRequest())
    first, *_, last = [one for one in read_trials(study) if one.ticket == 0]
    assert (first.state, last.state) == ("failed", "complete")
    assert "the checkpoint does not fit model of run.restore()" in first.reason


@sqlite
def test_a_run_that_goes_on_has_flooded_from_the_same_epoch_on(make_study, here):
    """A rung that is judged again, after a worker died, sees what was there when it was first reached."""
    study = make_study(levels={"high": 0.3, "count": 2}, search={"pruner": "none"})
    worker = enter(study)
    [_], [ticket] = queue.take(study, worker), queue.take(study, worker)
    records = []

    def members():
        return Loops(study.trusted, CPU, here, LeaveRequest())(Group.of([ticket], {ticket.number: [0]}))

    def note(step):
        records.extend(step.records.get(ticket.number, []))
        return True

    assert members().train(ticket.epochs, note)
    first = next(record.epoch for record in records if record.flooded)
    assert 1 < first < ticket.epochs
    again = members()
    again.train(first - 1, note)
    assert not again.forked(ticket.number)
    again.train(first, note)
    assert again.forked(ticket.number)


@sqlite
def test_a_loop_that_cannot_be_imported_is_refused_before_the_worker_enters(make_study, here, monkeypatch):
    study = make_study()
    monkeypatch.setitem(sys.modules, study.spec.objective.partition(":")[0], None)
    with pytest.raises(TaskError, match="cannot be imported: module 'loop_"):
        work(study, here, LeaveRequest())
    assert tables.read_workers(study.database, study.uuid) == []


# The range from the data


@sqlite
def test_the_pilot_of_a_loop_costs_nothing_twice(make_study, here):
    """The levels end where they do without it; the unflooded runs go on from where it left them."""
    training = {"epochs": 16}
    study = make_study(levels={"high": "auto", "count": 4}, training=training, search={"pruner": "none"})
    assert work(study, here, LeaveRequest()) == "all tickets are finished"
    found = study.reread()
    assert found.pilot.epochs > 0
    assert min(found.pilot.minima) > 0
    told = make_study(
        "told", levels={"high": found.pilot.high, "count": 4}, training=training, search={"pruner": "none"}
    )
    work(told, here, LeaveRequest())
    assert curves(told) == curves(found)
    assert epochs_run(found) == epochs_run(told) == 4 * 2 * 16
    assert files(here) == []


@sqlite
def test_a_pilot_that_is_cut_short_goes_on(make_study, here):
    """What it had trained when its worker was asked to leave is trained no second time."""
    study = make_study(levels={"high": "auto", "count": 3}, search={"pruner": "none"})
    loops, seen = Loops(study.trusted, CPU, here, LeaveRequest()), []
    loops.unflooded(study, 0).train(12, lambda step: seen.append(step.trained) or len(seen) < 2)
    assert files(here) == ["ticket-0-seed-0.pt"]
    work(study, here, LeaveRequest())
    assert epochs_run(study) == 3 * 2 * 12 - 2


@sqlite
def test_a_range_from_the_data_needs_a_validation_loss(make_study, here):
    """Without one the study stops at the first validation, and says what to do."""
    study = make_study(source=TRAIN.replace("val_loss=", "test_loss="), levels={"high": "auto", "count": 3})
    reason = work(study, here, LeaveRequest())
    assert reason == (
        'the pilot failed: levels.high = "auto" needs a validation loss; give val_loss to run.report() at '
        "each validation (see validate_every), or levels.high a number"
    )
    assert epochs_run(study) == 1


@sqlite
def test_a_loop_that_fails_in_the_pilot_stops_the_study(make_study, here):
    study = make_study(source=TRAIN.replace("val_loss=", "loss="), levels={"high": "auto", "count": 3})
    assert work(study, here, LeaveRequest()).startswith(
        "the pilot failed: run.report() was given 'loss', which this"
    )


REPORTS = """
def train(run):
    for epoch in run.epochs():
        run.report(val_accuracy=0.5, val_loss={loss})
"""


@sqlite
@pytest.mark.parametrize(
    ("loss", "low", "why"),
    [
        (
            "-epoch",
            0.0,
            "needs a validation loss that stays above 0, but it fell to -3; a loss that can be 0 or",
        ),
        (
            "max(0, 2 - epoch)",
            0.0,
            "needs a validation loss that stays above 0, but it fell to 0; a loss that",
        ),
        ("0.4", 0.5, "falls to 0.4, so that levels are useful up to 0.5, and levels.low is 0.5; lower it"),
        ("0.5 if epoch == 3 else None", 0.0, "was given a NoneType, not a number"),
        ("float('inf')", 0.0, "the reported val_loss is not finite at level 0, epoch 1, seed 0"),
    ],
)
def test_a_validation_loss_that_bounds_no_level_stops_the_study(make_study, here, loss, low, why):
    """It is said what it came to and what to write."""
    levels = {"low": low, "high": "auto", "count": 3}
    study = make_study(source=REPORTS.format(loss=loss), levels=levels)
    reason = work(study, here, LeaveRequest())
    assert reason.startswith("the pilot failed: ")
    assert why in reason


@sqlite
def test_a_validation_loss_that_never_falls_is_told(make_study, here):
    study = make_study(source=REPORTS.format(loss=0.7), levels={"high": "auto", "count": 3})
    work(study, here, LeaveRequest())
    told = "the validation loss never fell below its first value, 0.7, in the pilot"
    assert any(one.startswith(told) for one in status(study).warnings)


@sqlite
def test_a_loop_that_floods_by_itself_is_told_to_let_the_run_do_it(make_study, here):
    """It is searched, as its level has an effect; what it floods is not known."""
    source = TRAIN.replace("import torch\n", "import torch\nfrom floodsearch import flood\n", 1)
    source = source.replace("loss = run.flood(", "loss = flood(").replace("y[part]))", "y[part]), run.level)")
    study = make_study(source=source, levels={"low": 1.5, "high": 2.0, "count": 2})
    assert work(study, here, LeaveRequest()) == "all tickets are finished"
    [warning] = [one for one in status(study).warnings if "has not called run.flood()" in one]
    assert "write: loss = run.flood(criterion(model(x), y))" in warning
