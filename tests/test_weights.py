"""Kept weights: of every complete level, exactly those that were tested, and fetched where they are."""

from __future__ import annotations

import importlib
import logging
import os
import uuid
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from floodsearch import queue
from floodsearch.answer.tickets import latest
from floodsearch.answer.values import seed_result
from floodsearch.artifacts.names import weights_name
from floodsearch.artifacts.weights import KeptWeights
from floodsearch.catalog import task_of
from floodsearch.errors import UsageError
from floodsearch.queries import answer
from floodsearch.report.weights import copy_weights
from floodsearch.storage import tables
from floodsearch.storage.studies import put_study
from floodsearch.storage.trial_records import read_measured, read_trials
from floodsearch.tasks.streams import stream
from floodsearch.tasks.task import Data, Recipe, Split, Task
from floodsearch.training.cohort import Cohort
from floodsearch.training.progress import RunPlan
from floodsearch.training.run import evaluate
from floodsearch.training.sequential import Sequential
from floodsearch.training.stack import Stack
from floodsearch.training.trunk import TrunkPool
from floodsearch.worker.bracket import Bracket
from floodsearch.worker.heartbeat import Heartbeat
from floodsearch.worker.leave import LeaveRequest
from floodsearch.worker.loops import Loops
from floodsearch.worker.settings import WorkerSettings
from floodsearch.worker.work import work
from tests.device import DEVICE

CPU = torch.device("cpu")

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.parametrize("storage_url", ["sqlite"], indirect=True),
]


@pytest.fixture
def here(tmp_path):
    """Give the settings of a worker that keeps its files here."""
    return WorkerSettings(device="cpu", threads=1, checkpoints=tmp_path / "checkpoints")


def states(study):
    return {ticket: trial.state for ticket, trial in sorted(latest(read_trials(study)).items())}


def files(study, here):
    """Return all files of a study, without the folder that they should be in."""
    folder = here.checkpoints / study.folder
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def loaded(study, here, ticket, seed, epochs=None):
    training = study.spec.training
    kept = KeptWeights(here.files(study))
    name = weights_name(ticket, seed, epochs or training.epochs, training.keep)
    return torch.load(kept.files.path / name, weights_only=True)


# Tasks


@pytest.fixture
def make_study(database, make_spec):
    """Put a study of a task, filled: of four levels the last floods from the first epochs on."""

    def make(name="tiny", training=None, **changes):
        training = {"keep": "last", "learning_rate": 0.02, **(training or {})}
        changes = {"levels": {"high": 0.6, "count": 4}, **changes}
        study = put_study(database, make_spec(name=name, training=training, **changes))
        queue.fill(study)
        return study

    return make


def check_tests(study, here, tickets):
    """Check that loaded weights come to the very test loss and accuracy that were recorded."""
    task, keep = task_of(study.trusted, {}), study.spec.training.keep
    curves = tables.read_curves(study.database, study.uuid)
    for ticket in tickets:
        for seed in study.spec.training.seeds:
            records = [record for record in curves[ticket] if record.seed == seed]
            result = seed_result(records, study.criterion, study.spec.training.epochs)
            model = task.model()
            model.load_state_dict(loaded(study, here, ticket, seed))
            found = evaluate(model, task, task.draw(seed, CPU).test)
            recorded = (result.test_loss, result.test_accuracy)
            if keep == "best":
                recorded = (result.best_test_loss, result.best_test_accuracy)
            assert (found.loss, found.accuracy) == recorded


@pytest.mark.parametrize("engine", ["loop", "stack"])
@pytest.mark.parametrize("keep", ["last", "best"])
def test_kept_weights_come_to_the_recorded_tests(make_study, here, engine, keep):
    """To the bit, of all levels, those that never flooded included; and nothing else stays of a study."""
    study = make_study(training={"engine": engine, "keep": keep})
    assert work(study, here, LeaveRequest()) == "all tickets are finished"
    curves = tables.read_curves(study.database, study.uuid)
    flooded = {ticket: any(record.flooded for record in records) for ticket, records in curves.items()}
    assert sorted(flooded.values()) != [False] * 4
    assert sum(flooded.values()) < 3, "a level above 0 is on the trunk to the end"
    results = [one for trial in read_measured(study) for one in trial.results]
    assert any(one.best_epoch < study.spec.training.epochs for one in results)
    check_tests(study, here, range(4))
    names = [f"weights/ticket-{n}-seed-{seed}-epochs-10-{keep}.pt" for n in range(4) for seed in (0, 1)]
    assert files(study, here) == names


def test_nothing_is_kept_unless_it_is_asked_for(make_study, here):
    study = make_study(training={"keep": None})
    work(study, here, LeaveRequest())
    assert not (here.checkpoints / study.name).exists()


def test_under_halving_the_complete_levels_are_kept(make_study, here):
    """Level 0 and the winner: of what was pruned there are none."""
    study = make_study(levels={"count": 9}, search={"pruner": "halving"}, training={"epochs": 24})
    work(study, here, LeaveRequest())
    complete = [ticket for ticket, state in states(study).items() if state == "complete"]
    assert 0 < len(complete) < 9
    names = [f"weights/ticket-{n}-seed-{seed}-epochs-24-last.pt" for n in complete for seed in (0, 1)]
    assert files(study, here) == sorted(names)
    check_tests(study, here, complete)


class Odd(nn.Module):
    """A model with BatchNorm, and a buffer that no `state_dict` has."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
        self.register_buffer("scale", torch.full((2,), 2.0), persistent=False)

    def forward(self, x):
        return self.layers(x) * self.scale


@pytest.mark.parametrize("engine", [Sequential, Stack])
@pytest.mark.parametrize("keep", ["last", "best"])
def test_a_state_dict_is_that_of_the_model(engine, keep, storage_url):
    """Running means are in it, and what the model does not save is not, whatever trains it."""
    del storage_url

    def data(seed):
        labels = torch.arange(50) % 2
        inputs = torch.randn(50, 5, generator=stream(seed, "test_weights")) + 0.3 * labels[:, None]
        return Data(*(Split(inputs[i::2], labels[i::2]) for i in (0, 1, 1)))

    recipe = Recipe(batch_size=5, optimizer="sgd", learning_rate=0.3, momentum=0.9)
    task, plan, levels = (
        Task(data=data, model=Odd, recipe=recipe),
        RunPlan(epochs=8, keep=keep),
        {0: 0.0, 1: 0.5},
    )
    trunks = TrunkPool(engine(task, plan, DEVICE))
    cohort = Cohort(
        task, plan, levels=levels, seeds=dict.fromkeys(levels, (0, 1)), device=DEVICE, trunks=trunks
    )
    assert cohort.train(8, lambda step: not step.failed)
    differ = set()
    for member in levels:
        for seed in (0, 1):
            tested = [record for record in cohort.tested(member) if record.seed == seed]
            model = Odd().to(DEVICE)
            model.load_state_dict(cohort.weights(member, seed))  # strict: no name more or less
            found = evaluate(model, task, data(seed).test.to(DEVICE))
            record = tested[-1] if keep == "last" else tested[0]
            assert (found.loss, found.accuracy) == (record.test_loss, record.test_accuracy)
            differ.add(len(tested))
    assert 2 in differ
    assert cohort.weights(0, 7) is None


def test_a_study_that_grew_keeps_what_it_came_to(make_study, here):
    """More seeds add files; longer runs take the place of the shorter ones."""
    study = make_study(search={"pruner": "none"})
    work(study, here, LeaveRequest())
    before = {name: loaded(study, here, 0, 0)[name] for name in loaded(study, here, 0, 0)}
    study = make_study(training={"seeds": 3})
    work(study, here, LeaveRequest())
    kept = [ticket for ticket, trial in latest(read_trials(study)).items() if trial.seeds == 3]
    check_tests(study, here, kept)
    assert all(torch.equal(before[name], tensor) for name, tensor in loaded(study, here, 0, 0).items())
    study = make_study(training={"seeds": 3, "epochs": 20})
    work(study, here, LeaveRequest())
    longer = [ticket for ticket, trial in latest(read_trials(study)).items() if trial.epochs == 20]
    assert 0 in longer
    assert {name.partition("-seed")[0] for name in files(study, here) if "epochs-20" in name} == {
        f"weights/ticket-{ticket}" for ticket in longer
    }
    assert not [name for name in files(study, here) if "ticket-0-" in name and "epochs-10" in name]


def test_keep_may_be_asked_for_later(make_study, here):
    """It trains nothing again, and holds for the tickets that are completed from then on."""
    study = make_study(training={"keep": "none"}, search={"sampler": "random", "trials": 3})
    work(study, here, LeaveRequest())
    study = make_study(training={"keep": "best"}, search={"sampler": "random", "trials": 4})
    work(study, here, LeaveRequest())
    assert files(study, here) == [f"weights/ticket-3-seed-{seed}-epochs-10-best.pt" for seed in (0, 1)]


class Killed(KeyboardInterrupt):
    """The end of a process: of all that code may raise, a worker lets a Ctrl-C through."""


def test_no_complete_level_lacks_its_weights(make_study, here, monkeypatch):
    """A worker that dies when the curves are written has kept them: the next trains nothing again."""
    study, plain = make_study(), queue.complete
    worker = tables.enter_worker(study.database, study.uuid, host="here", pid=1, device="cpu", versions={})

    def killed(*_, **__):
        raise Killed

    monkeypatch.setattr(queue, "complete", killed)
    heart = Heartbeat(study, worker, here, LeaveRequest())
    [ticket] = queue.take(study, worker)
    from floodsearch.worker.trainers import CohortTrainer

    with pytest.raises(Killed):
        Bracket([ticket], heart, CohortTrainer(CPU), KeptWeights(here.files(study))).end()
    monkeypatch.setattr(queue, "complete", plain)
    queue.release(study, worker, "dead")
    work(study, here, LeaveRequest())
    check_tests(study, here, range(4))


def test_where_there_is_no_room_it_is_said_once(make_study, here, monkeypatch, caplog):
    """The tickets are complete all the same, and there are files up to the bound."""
    caplog.set_level(logging.WARNING, logger="floodsearch")
    monkeypatch.setattr("floodsearch.worker.work.KeptWeights", lambda files: KeptWeights(files, room=9_000))
    study = make_study()
    work(study, here, LeaveRequest())
    assert set(states(study).values()) == {"complete"}
    assert caplog.text.count("would hold more than 9,000 bytes") == 1
    assert 0 < len(files(study, here)) < 8
    assert (
        sum((here.checkpoints / study.folder / name).stat().st_size for name in files(study, here)) <= 9_000
    )


# Loops of the user's own

TRAIN = """
import torch
from torch import nn

def data(seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(60, 4, generator=generator)
    return x, (x.sum(dim=1) + torch.randn(60, generator=generator) > 0).long()

def network():
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))

def accuracy(model, part):
    x, y = part
    with torch.no_grad():
        return (model.eval()(x).argmax(dim=1) == y).float().mean().item()

def train(run):
    x, y = data(run.seed)
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    run.restore(model=model, optimizer=optimizer)
    for epoch in run.epochs():
        model.train()
        for part in range(0, 30, 10):
            loss = run.flood(nn.functional.cross_entropy(model(x[part : part + 10]), y[part : part + 10]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        validation, test = (x[30:45], y[30:45]), (x[45:], y[45:])
        run.report(val_accuracy=accuracy(model, validation), test_accuracy=accuracy(model, test))
        with torch.no_grad():
            model[0].weight.mul_(0.99)  # behind the report: part of the training, not of what was tested
"""
HILL = """
import torch
from torch import nn

def train(run):
    model = nn.Linear(1, 1)
    run.restore({model})
    for epoch in run.epochs():
        run.flood(0 * model(torch.ones(1, 1)).mean())
        nn.init.constant_(model.weight, run.level)
        nn.init.constant_(model.bias, 100 * run.seed + epoch)
        run.report(val_accuracy=0.8 - (run.level - {best}) ** 2 + 0.001 * run.seed - 0.1 * (epoch == 3))
"""
"""Its weights say of which level, seed and epoch they are."""


@pytest.fixture
def make_loops(database, make_spec, tmp_path, monkeypatch):
    """Put a study of a training loop, filled, and give its module too."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    modules = {}

    def make(source=TRAIN, name="tiny", training=None, **changes):
        if source not in modules:
            modules[source] = f"loop_{uuid.uuid4().hex}"
            (tmp_path / f"{modules[source]}.py").write_text(source)
            importlib.invalidate_caches()
        spec = make_spec(
            name=name,
            objective=f"{modules[source]}:train",
            task=None,
            options={"label_noise": None, "depth": None, "width": None},
            training={"epochs": 12, "validate_every": None, "keep": "last", **(training or {})},
            **{"levels": {"high": 0.8, "count": 5}, "search": {"pruner": "halving"}, **changes},
        )
        study = put_study(database, spec)
        queue.fill(study)
        return study

    make.module = lambda source=TRAIN: importlib.import_module(modules[source])
    return make


def check_loops(study, here, module):
    """Check that the weights of each complete ticket come to the test that the loop has reported."""
    complete = [ticket for ticket, state in states(study).items() if state == "complete"]
    names = [Path(name).name.partition("-epochs")[0] for name in files(study, here)]
    assert names == sorted(f"ticket-{ticket}-seed-{seed}" for ticket in complete for seed in (0, 1))
    curves, best_epochs = tables.read_curves(study.database, study.uuid), set()
    for ticket in complete:
        for seed in (0, 1):
            records = [record for record in curves[ticket] if record.seed == seed]
            result = seed_result(records, study.criterion, study.spec.training.epochs)
            best_epochs.add(result.best_epoch)
            model = module.network()
            model.load_state_dict(loaded(study, here, ticket, seed))
            x, y = module.data(seed)
            best = study.spec.training.keep == "best"
            expected = result.best_test_accuracy if best else result.test_accuracy
            assert module.accuracy(model, (x[45:], y[45:])) == pytest.approx(expected, abs=0)
    assert min(best_epochs) < study.spec.training.epochs


@pytest.mark.parametrize("keep", ["last", "best"])
def test_weights_of_a_loop_come_to_the_tests_that_it_reported(make_loops, here, keep):
    """As of the report, where all levels are trained to their end; for halving, see the next test."""
    study = make_loops(training={"keep": keep}, search={"pruner": "none"})
    work(study, here, LeaveRequest())
    check_loops(study, here, make_loops.module())


@pytest.mark.parametrize(("how", "keep"), [("killed", "best"), ("handed back", "last")])
def test_a_loop_that_is_cut_short_keeps_the_same_weights(make_loops, here, how, keep, monkeypatch):
    """Those that come to the tests that it reported, also of a best epoch that lies before a pause.

    Nothing of pruned levels stays.
    """
    whole = make_loops(name="whole", training={"keep": keep})
    work(whole, here, LeaveRequest())
    check_loops(whole, here, make_loops.module())
    expected = {name: (here.checkpoints / whole.folder / name).read_bytes() for name in files(whole, here)}
    plain = Bracket._note
    for cut in (16, 31):
        study = make_loops(name=f"cut-{cut}", training={"keep": keep})
        leave, noted = LeaveRequest(), []
        worker = tables.enter_worker(study.database, study.uuid, host="a", pid=1, device="cpu", versions={})

        def note(self, *arguments, noted=noted, cut=cut, leave=leave):
            noted.append(None)
            if len(noted) == cut:
                if how == "killed":
                    raise Killed
                leave.ask("lunch")
            plain(self, *arguments)

        monkeypatch.setattr(Bracket, "_note", note)
        heart = Heartbeat(study, worker, here, leave)
        kept = KeptWeights(here.files(study))
        bracket = Bracket(
            queue.take(study, worker), heart, Loops(study.trusted, CPU, here, LeaveRequest()), kept
        )
        if how == "killed":
            with pytest.raises(Killed):
                bracket.end()
            queue.release(study, worker, "dead")
        else:
            bracket.end()
        monkeypatch.setattr(Bracket, "_note", plain)
        tables.beat(study.database, worker, epochs_run=0, training=(), leaving=True)
        work(study, here, LeaveRequest())
        found = {name: (here.checkpoints / study.folder / name).read_bytes() for name in files(study, here)}
        assert found == expected


def test_the_best_epoch_is_by_the_metric_of_the_study(make_loops, here):
    """Of equal ones the first, and the lowest where the metric is to fall."""
    source = HILL.format(model="model=model", best=0.2).replace("val_accuracy=", "error=1-")
    study = make_loops(
        source,
        training={"keep": "best"},
        search={"pruner": "none", "metric": "error", "direction": "minimize"},
    )
    work(study, here, LeaveRequest())
    # The error is 1-0.8 - (level-0.2)^2 + ..., by the precedence of Python, and lowest in the third epoch.
    assert loaded(study, here, 2, 1)["bias"].item() == 103


def test_a_loop_that_does_not_name_its_model_is_told_so_once(make_loops, here, caplog):
    caplog.set_level(logging.WARNING, logger="floodsearch")
    study = make_loops(HILL.format(model="network=model", best=0.2))
    work(study, here, LeaveRequest())
    assert caplog.text.count("does not say what they are; write: run.restore(model=model, ...)") == 1
    assert files(study, here) == []
    with pytest.raises(UsageError, match=r"no weights of ticket \d for seeds 0, 1; give --checkpoints"):
        copy_weights(study, answer(study), here.checkpoints, here.checkpoints / "out")


def test_weights_that_no_file_can_hold_are_refused(make_loops, here):
    """As a checkpoint says it, and before the first epoch, not after the last one."""
    source = TRAIN.replace(
        "    run.restore(", "    model.state_dict = lambda: {'x': object()}\n    run.restore("
    )
    study = make_loops(source, search={"pruner": "none"})
    work(study, here, LeaveRequest())
    reasons = [trial.reason for trial in read_trials(study) if trial.reason is not None]
    assert reasons
    assert all("that a checkpoint cannot hold: model['x'], a builtins.object" in one for one in reasons)
    assert tables.read_curves(study.database, study.uuid) == {}


# The answer


@pytest.mark.parametrize("best", [0.0, 0.6])
def test_the_weights_of_the_answer_are_copied(make_loops, here, tmp_path, best):
    """One file a seed: those of level 0 where flooding does not help, and of the best level where it does."""
    study = make_loops(HILL.format(model="model=model", best=best), training={"seeds": [5, 9]})
    work(study, here, LeaveRequest())
    found = answer(study)
    assert found.level == best
    out = tmp_path / "deep" / "models"
    assert copy_weights(study, found, here.checkpoints, out) == [out / f"seed-{n}.pt" for n in (5, 9)]
    for seed in (5, 9):
        weights = torch.load(out / f"seed-{seed}.pt", weights_only=True)
        assert weights["weight"].item() == pytest.approx(best)
        assert weights["bias"].item() == 100 * seed + 12


def test_what_cannot_be_copied_is_one_clear_line(make_loops, here, tmp_path, monkeypatch):
    """It says what is missing and where it would be; nothing is copied."""
    study = make_loops(HILL.format(model="model=model", best=0.6))
    work(study, here, LeaveRequest())
    found, out = answer(study), tmp_path / "out"
    trial = next(one for one in read_trials(study) if one.trial == found.trial)

    def refused(**changes):
        given = {"study": study, "best": found, "checkpoints": here.checkpoints, "out": out, **changes}
        with pytest.raises(UsageError) as caught:
            copy_weights(**given)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    elsewhere = refused(checkpoints=tmp_path / "elsewhere")
    assert f"has no weights of ticket {trial.ticket} for seeds 0, 1; give --checkpoints as its" in elsewhere
    assert f"(on {tables.read_workers(study.database, study.uuid)[0].host})" in elsewhere
    nothing = study.spec.training.model_copy(update={"keep": "none"})
    none = replace(study, spec=study.spec.model_copy(update={"training": nothing}))
    assert 'study \'tiny\' keeps no weights; write keep = "last" or "best" in its [training]' in refused(
        study=none
    )
    (tmp_path / "file").write_text("")
    assert "cannot be copied to" in refused(out=tmp_path / "file")
    assert not out.exists()
    copy_weights(study, found, here.checkpoints, out)
    assert "holds seed-0.pt already" in refused()
    monkeypatch.setattr(Path, "write_bytes", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
    assert refused(out=tmp_path / "disk").endswith("disk: full")
