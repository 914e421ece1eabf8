"""Loggers of other libraries: each run once and whole, whoever trains it, and no run depends on one."""

from __future__ import annotations

import dataclasses
import json
import random
import struct
from collections import defaultdict
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch

from floodsearch import queue
from floodsearch.artifacts.files import Folder
from floodsearch.catalog import known
from floodsearch.errors import StudyFileError
from floodsearch.loggers import table
from floodsearch.loggers.run_log import LoggedRun
from floodsearch.loggers.table import LOGGERS, Logger
from floodsearch.queries import status
from floodsearch.storage import tables
from floodsearch.storage.studies import put_study
from floodsearch.storage.trial_records import read_trials
from floodsearch.study.extend import differences
from floodsearch.study.reader import parse
from floodsearch.worker import logged
from floodsearch.worker.leave import LeaveRequest
from floodsearch.worker.settings import WorkerSettings
from floodsearch.worker.work import work
from tests.conftest import TINY, merged

sqlite = pytest.mark.parametrize("storage_url", ["sqlite"], indirect=True)
LOOP = """
import torch

def train(run):
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    run.restore(optimizer=optimizer)
    for epoch in run.epochs():
        loss = run.flood(weight.square().sum() + torch.rand(()) / 10)
        optimizer.zero_grad(); loss.backward(); optimizer.step()
        run.report(score=run.level + run.seed / 100 + 0.001 * epoch)
"""
COMMAND = """
import json, sys
for epoch in range(1, 4):
    print(json.dumps({"epoch": epoch, "val_accuracy": float(sys.argv[1]) + float(sys.argv[2]) / 100}))
"""


class Memory:
    """A logger that keeps what it is given for the whole test, and draws from all global generators."""

    runs: ClassVar[dict] = {}

    def __init__(self, run: LoggedRun) -> None:
        random.random(), np.random.random(), torch.rand(1)
        self.run = run
        self.steps, self.endings = self.runs.setdefault(run.name, (defaultdict(list), []))

    def last(self, metric):
        return max((epoch for epoch, _ in self.steps[metric]), default=0)

    def write(self, epochs):
        random.random(), np.random.random(), torch.rand(1)
        for epoch, numbers in epochs.items():
            for name, value in numbers.items():
                self.steps[name].append((epoch, value))

    def close(self, ending):
        self.endings.append(ending)


@pytest.fixture
def memory(monkeypatch):
    """The logger `memory`, and what it was given: by run, by number, each epoch with its value."""
    monkeypatch.setattr(Memory, "runs", {})
    monkeypatch.setattr(table, "LOGGERS", {**LOGGERS, "memory": Logger("json", Memory)})
    monkeypatch.setattr(logged, "LOGGERS", table.LOGGERS)
    return Memory.runs


@pytest.fixture
def search(database, tmp_path, one_thread):
    """Search a study in this process; give it."""

    def run(to, *, name="tiny", leave=None, **changes):
        names = dataclasses.replace(known(), loggers={one: lambda: None for one in (*LOGGERS, "memory")})
        names = dataclasses.replace(names, rehearse=lambda *_: iter(()))
        spec = parse(merged(TINY, {"name": name, "log": {"to": to}, **changes}), names)
        study = put_study(database, spec)
        queue.fill(study)
        where = {"checkpoints": tmp_path / "checkpoints", "logs": tmp_path / "logs"}
        work(study, WorkerSettings(device="cpu", threads=1, **where), leave or LeaveRequest())
        return study.reread()

    return run


def curves(study):
    """Return all that the database has of the runs of a study."""
    return tables.read_curves(study.database, study.uuid)


def epochs_of(run, metric):
    return [epoch for epoch, _ in run[0][metric]]


@sqlite
@pytest.mark.parametrize("engine", ["loop", "stack"])
def test_a_task_logs_each_epoch_of_each_run_once(search, memory, engine):
    """By one engine as by the other, also of levels that share their start; with the test at the end."""
    study = search("memory", training={"engine": engine}, levels={"high": 0.8})
    assert sorted(memory) == [
        f"level-{level}-ticket-{ticket}-seed-{seed}"
        for ticket, level in ((0, "0"), (1, "0.4"), (2, "0.8"))
        for seed in (0, 1)
    ]
    for numbers, endings in memory.values():
        assert endings == ["complete"]
        assert [epoch for epoch, _ in numbers["train_loss"]] == list(range(1, 11))
        assert [epoch for epoch, _ in numbers["flooded"]] == list(range(1, 11))
        assert [epoch for epoch, _ in numbers["val_accuracy"]] == [2, 4, 6, 8, 10]
        assert numbers["test_accuracy"][-1][0] == 10
    written = {
        (name.partition("-ticket-")[2], epoch, loss)
        for name, (numbers, _) in memory.items()
        for epoch, loss in numbers["val_loss"]
    }
    stored = {
        (f"{ticket}-seed-{one.seed}", one.epoch, one.val_loss)
        for ticket, records in curves(study).items()
        for one in records
        if one.val_loss is not None
    }
    assert written == stored


@sqlite
def test_a_loop_that_pauses_and_a_script_log_each_epoch_once(search, memory, write_code, tmp_path):
    """Under halving, with a metric of the user's own; those that were pruned too, up to where they came."""
    loop = {"task": None, "options": None, "objective": f"{write_code(LOOP)}:train"}
    halving = {"pruner": "halving", "metric": "score", "direction": "maximize"}
    training = {"epochs": 25, "validate_every": None}
    study = search("memory", levels={"high": 0.8, "count": 9}, search=halving, training=training, **loop)
    ended = {trial.ticket: (trial.state, trial.epoch) for trial in read_trials(study)}
    assert {state for state, _ in ended.values()} == {"complete", "pruned"}
    for name, run in memory.items():
        state, epoch = ended[int(name.split("-")[3])]
        assert run[1] == [state]
        assert epochs_of(run, "score") == epochs_of(run, "train_loss") == list(range(1, epoch + 1))
    memory.clear()
    (tmp_path / "script.py").write_text(COMMAND)
    command = f"python {tmp_path / 'script.py'} {{level}} {{seed}}"
    loop = {"task": None, "options": None, "command": command, "training": {**training, "epochs": 3}}
    search("memory", name="script", **loop)
    assert len(memory) == 6
    for run in memory.values():
        assert epochs_of(run, "val_accuracy") == [1, 2, 3]
        assert run[1] == ["complete"]


@sqlite
def test_a_run_that_is_handed_back_goes_on_with_its_log(search, memory, write_code, monkeypatch):
    """By another worker, which is given all that is in the checkpoint again."""
    source = LOOP + "        if epoch == 2 and run.seed == 1 and leave: leave.pop().ask('now')\n"
    module = write_code("leave = []\n" + source)
    loop = {"task": None, "options": None, "objective": f"{module}:train"}
    loop |= {"search": {"metric": "score", "direction": "maximize"}, "training": {"validate_every": None}}
    leave = LeaveRequest()
    __import__(module).leave.append(leave)
    search("memory", leave=leave, **loop)
    assert any("handed back" in endings for _, endings in memory.values())
    search("memory", **loop)
    assert len(memory) == 6
    for run in memory.values():
        assert epochs_of(run, "score") == list(range(1, 11))
        assert run[1][-1] == "complete"


@sqlite
def test_no_number_depends_on_a_logger(search, memory, write_code):
    """Although it draws from the generators that a loop draws from."""
    loop = {"task": None, "options": None, "objective": f"{write_code(LOOP)}:train"}
    loop |= {"search": {"metric": "score", "direction": "maximize"}, "training": {"validate_every": None}}
    with_logger, without = search("memory", **loop), search([], name="other", **loop)
    assert memory
    assert curves(with_logger) == curves(without)


@sqlite
def test_a_logger_that_fails_ends_nothing(search, monkeypatch, memory):
    """It is one warning, and not tried again for a while; the others are written."""
    tried = []

    def broken(run):
        tried.append(run.name)
        raise OSError("no route to host\nand more")

    monkeypatch.setattr(logged, "LOGGERS", {**table.LOGGERS, "wandb": Logger("json", broken)})
    study = search(["wandb", "memory"])
    assert "wandb has failed, so that its logs of runs have gaps: no route to host" in status(study).warnings
    assert len(tried) == 1
    assert len(memory) == 6
    assert status(study).trials.complete == 3


@sqlite
def test_what_a_logger_missed_is_written_when_it_is_back(search, monkeypatch, memory):
    """The pause over, all epochs are there."""
    failures = iter([True, True])

    class Shaky(Memory):
        def write(self, epochs):
            if next(failures, False):
                raise ConnectionError("away")
            super().write(epochs)

    monkeypatch.setattr(logged, "PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(logged, "LOGGERS", {"memory": Logger("json", Shaky)})
    study = search("memory", search={"pruner": "median"})  # judged often, and so written often
    complete = [one.ticket for one in read_trials(study) if one.state == "complete"]
    assert complete
    for name, run in memory.items():
        if int(name.split("-")[3]) in complete:
            assert epochs_of(run, "train_loss") == list(range(1, 11))


def test_a_logger_that_is_not_installed_is_told_beforehand(monkeypatch):
    """In one line, with the command that installs it; a name that there is not with the valid ones."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(StudyFileError) as raised:
        parse(merged(TINY, {"log": {"to": ["wandb", "tensorbord"], "project": "/etc"}}), known())
    with pytest.raises(StudyFileError) as also:
        parse(merged(TINY, {"log": {"to": ["wandb", "tensorbord", "wandb"]}}), known())
    assert [problem.key for problem in raised.value.problems] == ["log.project"]
    assert [problem.message for problem in also.value.problems] == [
        "'wandb' needs wandb, which is not installed; pip install 'floodsearch[wandb]'",
        "'tensorbord' is not known, did you mean 'tensorboard'?; valid: mlflow, tensorboard, wandb",
        "'wandb' needs wandb, which is not installed; pip install 'floodsearch[wandb]'",
        "['wandb', 'tensorbord', 'wandb'] holds a logger twice",
    ]


def test_a_folder_with_the_name_of_a_logger_is_not_it(tmp_path, monkeypatch):
    """W&B and people name the folder of their runs so, where Python then finds a package without content."""
    (tmp_path / "runs_of_mine").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    missing = Logger("runs_of_mine", LOGGERS["wandb"].open).missing()
    assert missing == "needs runs_of_mine, which is not installed; pip install 'floodsearch[runs_of_mine]'"


@sqlite
def test_where_a_worker_lacks_a_logger_it_says_so_and_trains(search, monkeypatch):
    """The study was launched where it is installed."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    study = search("wandb")
    [warning] = (one for one in status(study).warnings if "wandb" in one)
    assert warning.endswith("it needs wandb, which is not installed; pip install 'floodsearch[wandb]'")


def test_loggers_may_be_changed_at_any_time(make_spec):
    """They change no result."""
    assert differences(make_spec(), make_spec(log={"project": "other"})) == []


# --- the real ones ---------------------------------------------------------------------------------------


@sqlite
@pytest.mark.filterwarnings("ignore")
def test_tensorboard_reads_back_what_was_trained(search, tmp_path):
    """By its own reader: a folder a run, with its curves and hyper-parameters."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    study = search("tensorboard")
    folder = tmp_path / "logs" / study.folder / "tensorboard"
    assert len(list(folder.iterdir())) == 6
    events = EventAccumulator(str(folder / "level-0.25-ticket-1-seed-1"))
    events.Reload()
    assert {"train_loss", "val_accuracy", "flooded", "test_accuracy"} <= set(events.Tags()["scalars"])
    stored = [one for one in curves(study)[1] if one.seed == 1]
    found = {(event.step, event.value) for event in events.Scalars("train_loss")}
    assert found == {(one.epoch, float(np.float32(one.train_loss))) for one in stored}
    assert len(events.Scalars("train_loss")) == 10
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    assert b"learning_rate" in content
    assert b"two_gaussians" in content


@pytest.mark.filterwarnings("ignore")
def test_event_files_of_a_killed_worker_are_gone_on_with(tmp_path):
    """Also where the last one was cut off; no step comes twice, and none is missing."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from floodsearch.loggers.tensorboard import TensorBoardLog

    run = LoggedRun(
        id="1", name="run", study="tiny", project="tiny", parameters={"level": 0.1}, folder=Folder(tmp_path)
    )
    first = TensorBoardLog(run)
    first.write({epoch: {"loss": 1 / epoch} for epoch in range(1, 6)})
    file, *_ = sorted((tmp_path / "tensorboard" / "run").iterdir())  # the other holds the hyper-parameters
    file.write_bytes(file.read_bytes()[:-3])
    again = TensorBoardLog(run)
    assert again.last("loss") == 4
    assert again.last("other") == 0
    again.write({epoch: {"loss": 1 / epoch} for epoch in range(5, 8)})
    again.close("complete")
    events = EventAccumulator(str(tmp_path / "tensorboard" / "run"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == list(range(1, 8))


@sqlite
@pytest.mark.filterwarnings("ignore")
def test_mlflow_finds_each_run_with_its_history(search, tmp_path, monkeypatch):
    """In a store of files; a worker that goes on finds the run again."""
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    from mlflow import MlflowClient

    from floodsearch.loggers.mlflow import MlflowLog

    study = search("mlflow", log={"to": "mlflow", "project": "my project"})
    client = MlflowClient()
    experiment = client.get_experiment_by_name("my project")
    runs = {one.info.run_name: one for one in client.search_runs([experiment.experiment_id])}
    assert len(runs) == 6
    one = runs["level-0.25-ticket-1-seed-1"]
    assert (one.info.status, one.data.tags["floodsearch.ending"]) == ("FINISHED", "complete")
    assert (one.data.params["level"], one.data.params["seed"]) == ("0.25", "1")
    stored = {(record.epoch, record.train_loss) for record in curves(study)[1] if record.seed == 1}
    history = client.get_metric_history(one.info.run_id, "train_loss")
    assert {(metric.step, metric.value) for metric in history} == stored
    again = MlflowLog(
        LoggedRun(
            id=one.data.tags["floodsearch.run"],
            name="run",
            study="tiny",
            project="my project",
            parameters={},
            folder=Folder(tmp_path),
        )
    )
    assert (again.id, again.last("train_loss"), again.last("other")) == (one.info.run_id, 10, 0)
    again.close("handed back")
    assert client.get_run(again.id).info.status == "RUNNING"


def wandb_records(content):
    """Yield the records of a file of W&B: a log of LevelDB in blocks of 32 KB, behind a header of 7 bytes."""
    at, parts = 7, b""
    while at + 7 <= len(content):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        size, kind = struct.unpack("<HB", content[at + 4 : at + 7])
        parts += content[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or the last part of one
            yield parts
            parts = b""


@sqlite
@pytest.mark.filterwarnings("ignore")
def test_wandb_keeps_each_run_offline(search, tmp_path, monkeypatch):
    """Its own reader finds what was trained."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    from wandb.proto import wandb_internal_pb2

    study = search("wandb", training={"seeds": 1}, levels={"count": 2})
    folder = tmp_path / "logs" / study.folder / "wandb"
    name = f"{study.uuid[:16]}-ticket-1-seed-0"
    [file] = folder.glob(f"offline-run-*-{name}/run-{name}.wandb")
    losses, config = {}, {}
    for content in wandb_records(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(content)
        if record.HasField("run"):
            config = {one.key: json.loads(one.value_json) for one in record.run.config.update}
        if record.HasField("history"):
            row = {
                (item.key or item.nested_key[0]): json.loads(item.value_json) for item in record.history.item
            }
            losses[row["epoch"]] = row["train_loss"]
    assert losses == {one.epoch: one.train_loss for one in curves(study)[1]}
    assert (config["level"], config["seed"]) == (0.5, 0)
    assert not Path("wandb").exists()
