"""A forecast is near to what the search runs, where it was told from unflooded runs; else it has a range."""

from __future__ import annotations

import sys

import pytest

from floodsearch import queue
from floodsearch.cost import throughput
from floodsearch.cost.outlook import forecast, look_ahead
from floodsearch.queries import answer
from floodsearch.storage.studies import put_study
from floodsearch.worker.leave import LeaveRequest
from floodsearch.worker.settings import WorkerSettings
from floodsearch.worker.work import work

LOOP = """
import torch

def train(run):
    torch.manual_seed(run.seed)
    weight = torch.nn.Parameter(1 + 0.2 * torch.rand(4))
    optimizer = torch.optim.SGD([weight], lr=0.02)
    RESTORE
    print("a line of the user's own")
    for epoch in run.epochs():
        for _ in range(3):
            optimizer.zero_grad()
            run.flood(weight.square().mean()).backward()
            optimizer.step()
        loss = float(weight.detach().square().mean())
        run.report(val_accuracy=1 - abs(loss - 0.4), val_loss=loss + 0.3)
"""
RESTORE = "run.restore(weight=torch.nn.ParameterList([weight]), optimizer=optimizer)"
SCRIPT = """
import json, random, sys
level, seed, epochs = float(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
random.seed(seed)
for epoch in range(1, epochs + 1):
    accuracy = 0.9 - (level - 0.3) ** 2 * epoch / epochs + random.gauss(0, 0.001)
    losses = {"train_loss": 0.05, "val_loss": 1 / epoch + 0.3}
    print(json.dumps({"epoch": epoch, "val_accuracy": accuracy, **losses}))
"""
SIZE = {"epochs": 16, "seeds": 2, "validate_every": 1}
OF_A_TASK = {"levels": {"count": 6}, "training": {"epochs": 20, "validate_every": 1, "learning_rate": 0.05}}
HALVING = {"search": {"pruner": "halving"}}
AUTO = {"levels": {"high": "auto", "count": 6}}
TPE = {"levels": {"count": None}, "search": {"pruner": "halving", "sampler": "tpe", "trials": 12}}
# Each kind of code, halved; and each way of searching, of that kind which trains it in the shortest time.
STUDIES = {
    "task, halved": ("task", {**OF_A_TASK, **HALVING}),
    "task, sampled": ("task", {**OF_A_TASK, **TPE}),
    "task, two learning rates": (
        "task",
        {**OF_A_TASK, **HALVING, "training": {"epochs": 20, "learning_rate": {"choices": [0.05, 0.02]}}},
    ),
    "task, two brackets": ("task", {**OF_A_TASK, **HALVING, "halving": {"brackets": 2}}),
    "loop, halved": ("loop", HALVING),
    "loop, not pruned": ("loop", {}),
    "loop, range from the pilot": ("loop", {**HALVING, **AUTO}),
    "loop without a state": ("stateless loop", HALVING),
    "command, halved": ("command", HALVING),
}

sqlite = pytest.mark.parametrize("storage_url", ["sqlite"], indirect=True)


@pytest.fixture
def make(make_spec, write_code, tmp_path):
    """Make the spec of a study of some kind: a task, a loop or a command."""

    def make(kind, **changes):
        if kind == "task":
            return make_spec(**changes)
        (tmp_path / "script.py").write_text(SCRIPT)
        loop = LOOP.replace("RESTORE", RESTORE if kind == "loop" else "pass")
        code = (
            {"command": f"{sys.executable} {tmp_path / 'script.py'} {{level}} {{seed}} {{epochs}}"}
            if kind == "command"
            else {"objective": f"{write_code(loop)}:train"}
        )
        none = {"task": None, "options": dict.fromkeys(["label_noise", "width", "depth"])}
        whole = {"levels": {"high": 0.8, "count": 6}, "training": SIZE, **none, **code}
        levels = {"levels": {**whole["levels"], **changes.pop("levels", {})}}
        return make_spec(**{**whole, **levels, **changes})

    return make


@sqlite
@pytest.mark.parametrize(("kind", "changes"), STUDIES.values(), ids=STUDIES)
def test_a_forecast_is_within_15_percent_of_what_the_search_runs(
    kind, changes, make, database, tmp_path, monkeypatch, one_thread
):
    """Told from the unflooded runs; and the search is in the range that is told without them."""
    monkeypatch.setattr(throughput, "SECONDS", 0.01)
    spec = make(kind, **changes)
    before, told = forecast(spec), look_ahead(spec, measure="cpu")
    study = put_study(database, spec)
    queue.fill(study)
    settings = WorkerSettings(device="cpu", checkpoints=tmp_path / "checkpoints", logs=tmp_path / "logs")
    work(study, settings, LeaveRequest())
    run = answer(study.reread()).epochs_run
    assert told.epochs_expected == pytest.approx(run, rel=0.15)
    assert told.epochs_tried > 0
    assert told.seconds > 0
    assert before.epochs_least <= 1.15 * run
    assert run <= 1.15 * before.epochs_most
