"""The examples: how little a loop changes, that nothing else does, that it survives a kill."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import functools
import importlib
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from optuna.trial import TrialState

from floodsearch import queue
from floodsearch.artifacts.checkpoint import Checkpoint
from floodsearch.artifacts.files import Folder
from floodsearch.catalog import known
from floodsearch.errors import FloodsearchError
from floodsearch.launchers.crew import available_cores
from floodsearch.queries import answer as best
from floodsearch.storage import tables
from floodsearch.storage.database import open_database
from floodsearch.storage.studies import find_study, put_study
from floodsearch.storage.trial_records import read_trials
from floodsearch.study.reader import read
from floodsearch.training.loop import LoopRun
from floodsearch.training.progress import RunPlan
from floodsearch.usercode.reference import beside
from floodsearch.worker.leave import LeaveRequest
from floodsearch.worker.settings import WorkerSettings
from floodsearch.worker.work import work

EXAMPLES = Path(__file__).parents[1] / "studies" / "examples"
sqlite = pytest.mark.parametrize("storage_url", ["sqlite"], indirect=True)
BEFORE, AFTER = EXAMPLES / "plain_before.py", EXAMPLES / "plain_after.py"


def test_a_loop_needs_ten_changed_lines_at_most():
    """Lines that are taken out and lines that are put in, counted together."""
    before, after = (path.read_text().splitlines() for path in (BEFORE, AFTER))
    changed = [line for line in difflib.ndiff(before, after) if line[:2] in ("- ", "+ ") and line[2:].strip()]
    assert 0 < len(changed) <= 10, changed


def test_level_0_trains_what_the_untouched_script_trains(tmp_path, monkeypatch, capsys):
    """Its weights are the same to the bit, also where the run was paused twice."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    script = runpy.run_path(str(BEFORE), run_name="__main__")
    loop = runpy.run_path(str(AFTER))
    expected = script["train"](seed=3).state_dict()
    assert "train" not in capsys.readouterr().err
    checkpoint = Checkpoint(Folder(tmp_path), "run.pt", {})
    for until in (4, 17, 30):
        run = LoopRun(
            RunPlan(epochs=30),
            name="run",
            level=0.0,
            seed=3,
            device=torch.device("cpu"),
            settings={},
            until=until,
            note=lambda record: True,
            checkpoint=checkpoint,
            saved=checkpoint.load(),
        )
        model = loop["train"](run)
        assert run.epoch == until
    found = model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def smaller(study, **sizes):
    """Return a study file's text with some of its numbers changed: fewer epochs, levels or seeds."""
    for name, value in sizes.items():
        study, found = re.subn(rf"^{name} = \d+", f"{name} = {value}", study, flags=re.MULTILINE)
        assert found == 1
    return study


def searched(
    name, database, tmp_path, monkeypatch, source=None, ends="all tickets are finished", threads=1, **sizes
):
    """Search an example here, of other sizes and with other source if they are given; return the study."""
    folder = tmp_path / "examples"
    folder.mkdir()
    for path in EXAMPLES.glob(f"{name}*.*"):
        shutil.copy(path, folder)
    (folder / f"{name}.toml").write_text(smaller((EXAMPLES / f"{name}.toml").read_text(), **sizes))
    if source is not None:
        (folder / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.chdir(folder)
    # The interpreter of the tests is the `python` of a command.
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    monkeypatch.delitem(sys.modules, name, raising=False)
    study = put_study(database, read(folder / f"{name}.toml", known()))
    queue.fill(study)
    settings = WorkerSettings(
        device="cpu", threads=threads, checkpoints=tmp_path / "checkpoints", logs=tmp_path / "logs"
    )
    assert work(study, settings, LeaveRequest()).startswith(ends)
    return study.reread()


@pytest.fixture
def search(database, tmp_path, monkeypatch):
    return functools.partial(searched, database=database, tmp_path=tmp_path, monkeypatch=monkeypatch)


@sqlite
def test_levels_are_in_the_unit_of_the_loss(search):
    """A regression of prices is searched up to hundreds, as its validation losses say."""
    study = search("regression", count=3, epochs=30, seeds=1)
    assert study.spec.levels.highest > 500
    found = best(study)
    assert found.finished
    assert found.metric == "val_loss"
    curves = tables.read_curves(study.database, study.uuid)
    assert any(record.flooded > 0 for records in curves.values() for record in records)


@sqlite
def test_the_mean_of_a_summed_loss_is_flooded(search, database):
    """Its example floods, and nothing is to be warned of."""
    study = search("words", count=3, seeds=1)
    assert tables.read_warnings(database, study.uuid) == ()
    curves = tables.read_curves(study.database, study.uuid)
    assert any(record.flooded > 0 for records in curves.values() for record in records)


@sqlite
def test_a_sum_that_is_flooded_as_it_is_is_found_out(search):
    """A level means nothing to a sum: the study ends when level 0 is trained, with the likely mistake."""
    source = (EXAMPLES / "words.py").read_text()
    wrong = source.replace("run.flood(total / len(batch)) * len(batch)", "run.flood(total)")
    assert wrong != source
    study = search(
        "words", source=wrong, ends="no level floods anything: the lowest loss of a batch is", seeds=1
    )
    assert "; if the loss is a sum, make it the mean over the batch, else raise" in study.stopped()
    assert [one.level for one in read_trials(study) if one.state == "complete"] == [0]


@sqlite
def test_a_script_is_searched_as_it_is(search, tmp_path):
    study = search("command", count=3, epochs=8)
    assert best(study).finished
    kept = sorted(path.name for path in (tmp_path / "logs" / "command").iterdir())
    assert kept[:3] == ["ticket-0-seed-0.log", "ticket-0-seed-1.log", "ticket-0-seed-2.log"]


def test_every_study_file_of_the_examples_is_valid(monkeypatch):
    """Those of libraries of trainers are read, and searched, by the tests of their adapters."""
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    plain = [path for path in EXAMPLES.glob("*.toml") if not (EXAMPLES / f"{path.stem}_train.py").exists()]
    assert len(plain) == 4
    for path in plain:
        assert read(path, known(beside(path))).code


def test_plain_optuna_floods_samples_and_prunes(monkeypatch):
    """Levels are new, poor ones stop early, and neither level 0 nor one that has not flooded is judged."""
    monkeypatch.syspath_prepend(EXAMPLES)
    trials = importlib.import_module("optuna_study").search(12).trials
    levels = [trial.params["level"] for trial in trials]
    assert levels[0] == 0.0
    assert len(set(levels)) == 12
    unflooded = trials[0].intermediate_values
    assert list(unflooded) == list(range(1, 31))
    pruned = [trial for trial in trials if trial.state == TrialState.PRUNED]
    assert 0 < len(pruned) < 11
    for trial in pruned:
        assert trial.intermediate_values != dict(list(unflooded.items())[: len(trial.intermediate_values)])


def test_killed_workers_change_no_answer(tmp_path, monkeypatch, eventually, one_thread):
    """Of two workers one is killed after an epoch, and one after 20: the answer is that of a quiet search."""
    sizes = {"count": 4, "epochs": 20, "seeds": 2}
    folder = tmp_path / "killed"
    folder.mkdir()
    shutil.copy(EXAMPLES / "plain_after.py", folder)
    (folder / "plain.toml").write_text(smaller((EXAMPLES / "plain.toml").read_text(), **sizes))
    command = [sys.executable, "-m", "tests.quick", "launch", "plain.toml", "--workers", "2"]
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    process = subprocess.Popen(
        [*command, "--devices", "cpu"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        stdout=subprocess.PIPE,
    )
    url = f"sqlite:///{folder}/floodsearch.db"
    database = eventually(lambda: opened(url), "the database")
    dead = []

    def trained(epochs):
        try:
            study = find_study(database, "plain")
        except FloodsearchError:
            return None
        workers = tables.read_workers(database, study.uuid)
        known = tables.read_curves(database, study.uuid) if workers else {}
        if sum(map(len, known.values())) < epochs:
            return None
        return next((one.pid for one in workers if one.training and one.pid not in dead), None)

    for when in (1, 20):
        dead.append(eventually(functools.partial(trained, when), "the training"))
        os.kill(dead[-1], signal.SIGKILL)
    process.communicate(timeout=120)
    assert process.returncode == 0
    found = answer(find_study(database, "plain"))
    database.close()
    logs = "".join(path.read_text() for path in folder.rglob("worker-*.log"))
    assert logs.count("trains study plain") == 4, "the killed workers were started again"
    assert not list((folder / "floodsearch-checkpoints").rglob("*.pt"))
    with contextlib.closing(open_database(f"sqlite:///{tmp_path}/quiet.db", create=True)) as quiet:
        threads = max(1, available_cores() // 2)  # as each of two workers has
        assert found == answer(searched("plain", quiet, tmp_path, monkeypatch, threads=threads, **sizes))


def opened(url):
    """Return a database, or None as long as there is none."""
    try:
        return open_database(url)
    except FloodsearchError:
        return None


def answer(study):
    """Return the answer; what was lost is trained again as another trial."""
    found = dataclasses.asdict(best(study))
    return {name: value for name, value in found.items() if name not in ("epochs_run", "cost", "trial")}
