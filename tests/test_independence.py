"""Runs that should differ and do not, or should not and do: found at the first pair that shows it."""

from __future__ import annotations

import gc
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from floodsearch import queue
from floodsearch.catalog import known
from floodsearch.errors import NoAnswerError
from floodsearch.launchers import local
from floodsearch.launchers.crew import Crew
from floodsearch.launchers.local import Launch
from floodsearch.queries import answer, status
from floodsearch.records import EpochRecord
from floodsearch.report.text import best_text, status_text
from floodsearch.storage import tables
from floodsearch.storage.database import open_database
from floodsearch.storage.studies import put_study
from floodsearch.storage.trial_records import read_trials
from floodsearch.study.reader import parse
from floodsearch.training.independence import Comparison, Owners, RunKey, Shown
from floodsearch.worker.leave import LeaveRequest
from floodsearch.worker.settings import WorkerSettings
from floodsearch.worker.work import work

CPU, CUDA = torch.device("cpu"), torch.device("cuda")

pytestmark = pytest.mark.usefixtures("one_thread")


def run(level=0.0, seed=0, epochs=4, beside=()):
    return RunKey(beside, epochs, level, seed)


def shown(key, epoch, losses=(), flooded=0.0, **numbers):
    plain = {"train_loss": None, "train_accuracy": None, **numbers}
    record = EpochRecord(seed=key.seed, epoch=epoch, level=key.level, flooded=flooded, **plain)
    return Shown(record, losses)


def compared(first, second, device=CPU):
    """Note two runs, each a key and what it shows by epoch; return what the second shows."""
    comparison, found = Comparison(device), []
    for key, epochs in (first, second):
        found = [comparison.note(key, one) for one in epochs]
    return next((one for one in found if one is not None), None)


def losses_of(seed, epochs=4, batches=3):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(epochs, batches, generator=generator).add(0.5).tolist()


def told(key, losses, flooded=0.0, **numbers):
    return key, [shown(key, epoch, each, flooded, **numbers) for epoch, each in enumerate(losses, start=1)]


# Two runs of one seed


def test_a_flooded_loss_that_is_not_trained_moves_nothing():
    """A run that floods in its first epoch is another one in its second; else what floods is not used."""
    plain, level = losses_of(0), run(9.0)
    for its, unmoved in ((plain, True), ([plain[0], [0.1, 0.2, 0.3]], False)):
        comparison = Comparison(CPU)
        for key, epochs in (told(run(), plain), told(level, its[:2], flooded=1.0)):
            for one in epochs:
                comparison.note(key, one)
        assert comparison.is_unmoved(level) == unmoved


def test_runs_of_one_seed_are_equal_until_one_floods():
    """From the first batch below the level of either on they may part; the share of those tells too."""
    plain = [[0.9, 0.8], [0.7, 0.6], [0.5, 0.4]]
    parts_there = [[0.9, 0.8], [0.7, 0.6], [0.3, 0.2]]
    assert compared(told(run(), plain), told(run(0.65), parts_there)) is None
    assert compared(told(run(), plain), told(run(0.1), plain)) is None
    assert compared(told(run(), [[0.9]] * 2), told(run(0.1), [[0.9]] * 2, flooded=0.5, val_loss=1.0)) is None


@pytest.mark.parametrize("device", [CPU, CUDA], ids=str)
def test_a_batch_that_differs_before_anything_floods_is_found(device):
    found = compared(told(run(), [[0.9, 0.8]]), told(run(0.1), [[0.9, 0.7]]), device)
    assert (found.kind, found.other) == ("not independent", run())
    assert found.where == "the loss of batch 2, 0.8 and 0.7"


@pytest.mark.parametrize(("device", "rounding"), [(CPU, 1e-6), (CUDA, 1e-6), (CUDA, 4e-3)], ids=str)
def test_runs_that_part_by_rounding_are_no_proof_however_far_they_come_apart(device, rounding):
    """As with atomics on a GPU: what was a rounding once is anything soon."""
    apart = [[0.9, 0.8 * (1 + rounding)], [0.3, 5.0]]
    assert compared(told(run(), [[0.9, 0.8], [0.7, 0.6]]), told(run(0.1), apart), device) is None


def test_near_0_rounding_is_that_of_the_losses_before():
    """A loss of differences may be 1e-9 or -1e-9."""
    assert compared(told(run(), [[2.0, 1e-9]]), told(run(0.0, beside=()), [[2.0, -1e-9]])) is None
    assert compared(told(run(0.2), [[2.0, 0.5]]), told(run(0.1), [[2.0, 0.5 + 1e-9]])) is None


def test_whole_epochs_are_compared_on_a_cpu_only():
    """Where no batch is known, as where level 0 calls no flood; elsewhere an epoch amplifies rounding."""
    first, second = told(run(), [[]], val_loss=0.5), told(run(0.1), [[0.9]], val_loss=0.6)
    assert compared(first, second).where == "val_loss, 0.5 and 0.6"
    assert compared(first, second, CUDA) is None


def test_other_numbers_of_the_same_weights_are_the_evaluations():
    """Then levels are compared with more noise, and are no other runs."""
    found = compared(told(run(), [[0.9]], val_loss=0.5), told(run(0.1), [[0.9]], val_loss=0.6))
    assert found.kind == "evaluation"


def test_other_settings_lengths_and_holes_are_not_compared():
    """A run that was trained on elsewhere in between is another process's."""
    first = told(run(), [[0.9]])
    for other in (run(0.1, beside=("decay", 0.1)), run(0.1, epochs=5), run(0.1, seed=1)):
        assert compared(first, told(other, [[0.7]])) is None
    key, epochs = told(run(0.1), [[0.9], [0.8], [0.1]])
    assert compared(told(run(), [[0.9], [0.8], [0.7]]), (key, [epochs[0], epochs[2]])) is None
    assert compared(told(run(), [[0.9], [0.8], [0.7]]), (key, epochs)) is not None


def test_a_level_that_changes_nothing_is_found_at_the_end_of_its_run():
    """Of a script, whose batches nobody sees; until its end a level may still flood."""
    curve = [{"val_loss": math.sqrt(1 / epoch + 0.1), "val_accuracy": 0.5} for epoch in (1, 2, 3, 4)]

    def script(key, numbers, flooded):
        return key, [shown(key, n, (), flooded, **each) for n, each in enumerate(numbers, start=1)]

    first = script(run(), curve, 0.0)
    assert compared(first, script(run(0.5), curve, None)).kind == "level not used"
    assert compared(first, script(run(0.5), curve[:3], None)) is None
    assert compared(first, script(run(0.5), [*curve[:3], {"val_loss": 0.1}], None)) is None


# Two runs of one level


def test_seeds_that_give_one_run_are_found_in_the_second_epoch():
    found = compared(told(run(), losses_of(1)), told(run(seed=1), losses_of(1)[:2]))
    assert (found.kind, found.other) == ("seed not used", run())
    assert compared(told(run(), losses_of(1)), told(run(seed=1), losses_of(1)[:1])) is None
    assert compared(told(run(), losses_of(1)), told(run(seed=1), losses_of(2))) is None
    assert compared(told(run(epochs=1), losses_of(1, 1)), told(run(seed=1, epochs=1), losses_of(1, 1)))


@pytest.mark.parametrize(
    "curve", [[0.5] * 30, [0.9, 0.95, 1.0, 1.0, 1.0], [0.1 * n for n in range(1, 6)]], ids=str
)
def test_few_coarse_numbers_that_seeds_share_are_no_proof(curve):
    """An accuracy that stays at chance, or soon is 1, says nothing of what was drawn."""
    epochs = len(curve)

    def accuracies(key):
        return key, [shown(key, n, val_accuracy=value) for n, value in enumerate(curve, start=1)]

    assert compared(accuracies(run(epochs=epochs)), accuracies(run(seed=1, epochs=epochs))) is None


def test_many_coarse_numbers_that_seeds_share_are_proof():
    """Of a command that prints nothing but an accuracy of 100 samples."""
    curve = [0.51, 0.58, 0.66, 0.71, 0.73, 0.73, 0.78, 0.8]

    def accuracies(key):
        return key, [shown(key, n, val_accuracy=value) for n, value in enumerate(curve, start=1)]

    assert compared(accuracies(run(epochs=8)), accuracies(run(seed=1, epochs=8))).kind == "seed not used"


def test_a_run_that_is_trained_again_is_not_compared_with_itself():
    key, epochs = told(run(), losses_of(1))
    assert compared((key, epochs), told(run(), losses_of(2))) is None


# What is trained in a run is trained in no other


def test_an_object_is_one_runs_as_long_as_it_lives():
    owners, model = Owners(), nn.Linear(2, 2)
    assert owners.claim(model, run()) is None
    assert owners.claim(model, run()) is None, "a later part of the same run"
    assert owners.claim(model, run(seed=1)) == run()
    for _ in range(200):  # others get the memory of those that are gone
        for seed, one in enumerate((nn.Linear(2, 2), torch.Generator(), torch.optim.SGD([nn.Parameter()]))):
            assert owners.claim(one, run(seed=seed)) is None
        del one
        gc.collect(0)
    assert len(owners._owners) < 100, "nothing is kept alive, nor remembered"


def test_a_model_that_shares_what_it_trains_is_another_runs():
    """Also by its memory only; what is frozen may be shared, and so may torch's own generator."""
    trained, frozen = nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(requires_grad=False)
    owners = Owners()
    assert owners.claim(nn.Sequential(frozen, trained), run()) is None
    assert owners.claim(nn.Sequential(frozen, nn.Linear(2, 2)), run(seed=1)) is None
    assert owners.claim(nn.Sequential(nn.ReLU(), trained), run(seed=2)) == run()
    twin = nn.Linear(2, 2)
    twin.weight.data = trained.weight.data
    assert owners.claim(twin, run(seed=3)) == run()
    for seed in range(3):
        assert owners.claim(torch.default_generator, run(seed=seed)) is None


# Whole studies

HEAD = """
import torch
from torch import nn

def data(seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(60, 4, generator=generator)
    return x[:30], (x.sum(1) > 0).long()[:30], x[30:], (x.sum(1) > 0).long()[30:]

def trained(run, model, optimizer, order=None, shift=0.0):
    x, y, vx, vy = data(run.seed)
    for _ in run.epochs():
        for part in torch.randperm(30, generator=order).split(10):
            loss = run.flood(shift + nn.functional.cross_entropy(model(x[part]), y[part]))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            outputs = model(vx)
        accuracy = (outputs.argmax(1) == vy).float().mean()
        run.report(val_loss=nn.functional.cross_entropy(outputs, vy), val_accuracy=accuracy)

def new():
    model = nn.Linear(4, 2)
    return model, torch.optim.SGD(model.parameters(), 0.1)
"""
RIGHT = """
def train(run):
    model, optimizer = new()
    run.restore(model=model, optimizer=optimizer)
    trained(run, model, optimizer)
"""
WRONG = {
    "a model for all runs": (
        "model, optimizer = new()\ndef train(run):\n    run.restore(model=model, optimizer=optimizer)\n"
        "    trained(run, model, optimizer)",
        "run.restore() was given model of another run, seed 0 at level 0: make it inside of the function",
    ),
    "a model for all runs, without restore": (
        "model, optimizer = new()\ndef train(run):\n    trained(run, model, optimizer)",
        "make model and optimizer inside of the function, they go on from run to run",
    ),
    "an optimizer for all models": (
        "optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], 0.1)\ndef train(run):\n"
        "    model, own = new()\n    run.restore(optimizer=optimizer)\n    trained(run, model, own)",
        "run.restore() was given optimizer of another run",
    ),
    "an order for all runs": (
        "import random\nrandom.seed(1)\ndraws = random.Random(0)\ndef train(run):\n"
        "    trained(run, *new(), torch.Generator().manual_seed(draws.randrange(1000)))",
        "something goes on from run to run, or is drawn without run.seed",
    ),
    "a seed of its own": (
        "def train(run):\n    torch.manual_seed(42)\n    run = Fixed(run)\n    trained(run, *new())\n"
        "class Fixed:\n    def __init__(self, run): self.run = run\n"
        "    seed = 0\n    def __getattr__(self, name): return getattr(self.run, name)",
        "seed 0 and seed 1 gave the same run, to the last digit: seed what the loop draws by run.seed",
    ),
    "no flood": (
        RIGHT.replace("trained(run", "run.flood = lambda loss: loss\n    trained(run"),
        "nothing is flooded: the loop has not called run.flood() in 2 epochs at level 0.1; write: loss = run",
    ),
    "a sum": (
        RIGHT.replace("model, optimizer)\n", "model, optimizer, shift=30.0)\n"),
        "no level floods anything: the lowest loss of a batch is ",
    ),
}  # fmt: skip


@pytest.fixture
def search(tmp_path, write_code):
    """Search with a loop in this process; give the study and why the worker left."""
    opened = []

    def run_it(source, name="study", **tables_of):
        content = {
            "name": name,
            "objective": f"{write_code(HEAD + source, 'loop')}:train",
            "levels": {"high": 0.2, "count": 3},
            "training": {"epochs": 12, "seeds": 2},
            "halving": {"first": 0.15},
            **tables_of,
        }
        if content.get("search", {}).get("pruner") == "none":
            del content["halving"]
        opened.append(open_database(f"sqlite:///{tmp_path}/{name}.db", create=True))
        study = put_study(opened[-1], parse(content, known()))
        queue.fill(study)
        settings = WorkerSettings(
            device="cpu", threads=1, checkpoints=tmp_path / "kept", logs=tmp_path / "logs"
        )
        return study, work(study, settings, LeaveRequest())

    yield run_it
    for database in opened:
        database.close()


def epochs_run(study):
    return sum(worker.epochs_run for worker in tables.read_workers(study.database, study.uuid))


@pytest.mark.parametrize("case", WRONG)
def test_a_mistake_ends_the_search_with_one_line(search, tmp_path, case):
    """Before it has cost the search; nothing that was trained so is gone on from."""
    source, message = WRONG[case]
    study, reason = search(source)
    assert message in reason
    assert "\n" not in reason
    assert study.stopped() == reason
    assert status_text(status(study)).startswith(f"study: {reason}")
    assert epochs_run(study) <= 3 * 2 * 12 / 2
    assert case == "a sum" or not list(tmp_path.rglob("*.pt"))
    if case == "a model for all runs":  # which ended before any ticket was complete
        with pytest.raises(NoAnswerError):
            answer(study)


def test_what_is_right_is_searched_to_its_end(search):
    """Also with a pilot, added seeds, without a pruner, without restore; no warning is made."""
    for number, source in enumerate((RIGHT, RIGHT.replace("    run.restore(", "    dict("))):
        study, reason = search(source, f"auto-{number}", levels={"high": "auto", "count": 3})
        assert reason == "all tickets are finished"
        assert status(study).stopped is None
    study, reason = search(RIGHT, "plain", levels={"high": 0.8, "count": 3}, search={"pruner": "none"})
    assert reason == "all tickets are finished"
    assert status(study).warnings == ()
    assert answer(study).warnings == ()


def test_level_0_tells_first_whether_a_level_will_ever_flood(search):
    """Where nothing has flooded at a rung: one that floods late is judged as if all had gone on together."""
    late = RIGHT.replace(
        "trained(run", "run.flood = lambda loss, flood=run.flood: flood(loss - 0.3)\n    trained(run"
    )
    study, reason = search(late, levels={"high": 0.4, "count": 5}, training={"epochs": 16, "seeds": 1})
    assert reason == "all tickets are finished"
    [level_0] = [one for one in read_trials(study) if one.level == 0]
    assert level_0.state == "complete"
    whole, _ = search(
        late, "whole", levels={"high": 0.4, "count": 5}, training={"epochs": 16, "seeds": 1},
        search={"pruner": "none"},
    )  # fmt: skip
    curves = [tables.read_curves(one.database, one.uuid) for one in (study, whole)]
    for ticket, records in curves[0].items():
        assert records == curves[1][ticket][: len(records)]


def test_other_settings_may_flood_where_these_do_not(search):
    """So a combination in which nothing can flood is a warning."""
    source = RIGHT.replace(
        "    trained(run, model, optimizer)",
        "    trained(run, model, optimizer, shift=run.settings['shift'])",
    )
    study, reason = search(
        source,
        levels={"high": 0.5, "count": 2},
        options={"shift": {"choices": [0.0, 30.0]}},
        search={"pruner": "none"},
    )
    assert reason == "all tickets are finished"
    [warning] = [one for one in status(study).warnings if one.startswith("no level floods anything")]
    assert ", shift = 30.0, the highest level 0.5; if the loss is a sum" in warning
    assert f"warning            {warning}" in best_text(answer(study))
    assert f"  warning   {warning}" in status_text(status(study)).splitlines()


def test_a_launch_says_each_warning_as_soon_as_it_is_there(search, monkeypatch):
    study, _ = search(RIGHT, levels={"high": 0.8, "count": 2}, search={"pruner": "none"})
    looks = [replace(status(study), warnings=("one", "two")[:count]) for count in (0, 1, 1, 2, 2)]
    launch = Launch(study, "", Crew(devices=(), threads=1))
    launch.slots = [place := SimpleNamespace(closed=False, given_up=None)]
    shown = iter(looks)
    monkeypatch.setattr(local, "POLL_SECONDS", 0)
    monkeypatch.setattr(launch, "_status", lambda: next(shown))
    monkeypatch.setattr(launch, "_look_after", lambda slot, over: None)
    watched = launch.watch()
    said = [next(watched).said for _ in looks]
    place.closed = True
    assert said == [(), ("warning: one",), (), ("warning: two",), ()]


@pytest.mark.parametrize(("high", "ends"), [(1e-3, True), (0.6, False)])
def test_a_task_in_which_nothing_can_flood_is_told_so(tmp_path, make_spec, high, ends):
    """It ends with its level 0 where the levels are far from any loss; else its levels cost nothing."""
    study = put_study(
        open_database(f"sqlite:///{tmp_path}/x.db", create=True),
        make_spec(levels={"high": high, "count": 3}, training={"epochs": 2}),
    )
    queue.fill(study)
    reason = work(
        study, WorkerSettings(device="cpu", threads=1, checkpoints=tmp_path / "kept"), LeaveRequest()
    )
    [told] = [study.stopped()] if ends else status(study).warnings
    assert told.startswith("no level floods anything: the lowest loss of a batch is ")
    assert reason == (told if ends else "all tickets are finished")
    states = ["complete", "waiting", "waiting"] if ends else ["complete"] * 3
    assert [one.state for one in read_trials(study)] == states
    study.database.close()
