"""The logs of runs: what a training loop prints, a file each, and where none can be written."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest

from floodsearch import queue
from floodsearch.process.diverted import diverted
from floodsearch.queries import status
from floodsearch.storage.notices import warn
from floodsearch.storage.studies import put_study
from floodsearch.worker.leave import LeaveRequest
from floodsearch.worker.settings import WorkerSettings
from floodsearch.worker.work import work

sqlite = pytest.mark.parametrize("storage_url", ["sqlite"], indirect=True)
LOOP = """
import logging, os, subprocess, sys, threading
import torch
logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
print("imported")

def train(run):
    weight = torch.nn.Parameter(torch.ones(1))
    run.restore(optimizer=torch.optim.SGD([weight], lr=0.01))
    for epoch in run.epochs():
        print("epoch", epoch, "of", run.level)
        thread = threading.Thread(target=lambda: print("from a thread", file=sys.stderr))
        thread.start(); thread.join()
        logging.info("seed %d", run.seed)
        if run.level > 0.3:
            raise OSError("no such data")
        os.write(2, b"below Python\\n")
        run.flood((weight * run.seed).sum() + 0.1).backward()
        run.report(val_accuracy=0.5 + 0.01 * run.seed - 0.1 * run.level)
"""
STUDY = {
    "task": None,
    "options": None,
    "levels": {"high": 0.5, "count": 3},
    "training": {"epochs": 2, "seeds": 2, "validate_every": None},
    "search": {"pruner": "none"},
}


@pytest.fixture
def search(database, make_spec, write_code, tmp_path):
    """Search a study of a loop in this process; give it."""

    def run(logs):
        study = put_study(database, make_spec(objective=f"{write_code(LOOP)}:train", **STUDY))
        queue.fill(study)
        settings = WorkerSettings(device="cpu", checkpoints=tmp_path / "checkpoints", logs=logs)
        work(study, settings, LeaveRequest())
        return study.reread()

    return run


@sqlite
def test_a_run_has_a_log_of_all_that_its_function_prints(search, tmp_path, capfd):
    """From any thread, with its error; what is printed below Python stays with the worker."""
    streams = sys.stdout, sys.stderr
    study = search(tmp_path / "logs")
    assert (sys.stdout, sys.stderr) == streams
    logs = tmp_path / "logs" / "tiny"
    expected = {f"ticket-{ticket}-seed-{seed}.log" for ticket in range(2) for seed in range(2)}
    assert {path.name for path in logs.iterdir()} >= expected
    lines = (logs / "ticket-1-seed-1.log").read_text().splitlines()
    assert lines[0] == f"$ {study.spec.objective} level=0.25 seed=1"
    told = ["epoch 1 of 0.25", "from a thread", "epoch 2 of 0.25", "from a thread"]
    assert [line for line in lines[1:] if "seed" not in line] == told
    assert (logs / "ticket-2-seed-0.log").read_text().endswith("\nOSError: no such data\n")
    printed = capfd.readouterr()
    assert "epoch 1" not in printed.out + printed.err
    assert "below Python" in printed.err
    assert "imported" in printed.out


def test_the_logs_of_runs_are_shown_where_they_are_asked_for(command, tmp_path):
    """All seeds of a ticket, or one; without a run those of the workers, as there may be many."""
    logs = tmp_path / "tiny"
    logs.mkdir()
    for name in ("worker-0", "ticket-1-seed-0", "ticket-1-seed-10", "ticket-1-seed-9", "ticket-10-seed-0"):
        (logs / f"{name}.log").write_text(f"of {name}\n")

    def shown(*run):
        status, out, said = command("logs", "tiny", "--logs", tmp_path, *run)
        assert (status, said) == (0, "")
        return [line.partition(": of ")[2] for line in out.splitlines()]

    assert shown() == ["worker-0"]
    assert shown("--run", "ticket-1") == ["ticket-1-seed-0", "ticket-1-seed-9", "ticket-1-seed-10"]
    assert shown("--run", "ticket-10-seed-0") == ["ticket-10-seed-0"]
    status, _, said = command("logs", "tiny", "--logs", tmp_path, "--run", "4")
    assert status == 2
    assert said == (
        f"floodsearch: there is no log of '4' in {logs}: there are ticket-1 to ticket-10; "
        "a run is named ticket-3-seed-0\n"
    )


@sqlite
def test_all_warnings_of_a_study_are_in_its_status(database, storage_url, make_spec, command):
    """Each once, the oldest first, for a person as for a program; what does not fit a line is escaped."""
    study = put_study(database, make_spec())
    for kind, message in (("b", "the second\nline"), ("a", "the first"), ("b", "said already")):
        warn(study, kind, message)
    shown = [
        line.split("warning")[1].strip()
        for line in command("status", "tiny", "--storage", storage_url)[1].splitlines()
        if "warning" in line
    ]
    document = json.loads(command("status", "tiny", "--storage", storage_url, "--json")[1])
    assert document["warnings"] == list(status(study).warnings)
    assert sorted(document["warnings"]) == ["the first", "the second\nline"]
    assert sorted(shown) == ["the first", "the second\\nline"]


@sqlite
def test_without_a_place_for_logs_a_worker_goes_on(search, tmp_path, capfd):
    """It is one warning of the study, and what runs print is in the worker's own log."""
    (tmp_path / "logs").write_text("a file")
    study = search(tmp_path / "logs")
    assert "epoch 2 of 0.25" in capfd.readouterr().out
    assert [one for one in status(study).warnings if "logs of runs" in one] == [
        f"the logs of runs cannot be written to {tmp_path / 'logs'}: Not a directory; what the training "
        "prints is in the worker's own log"
    ]
    assert status(study).trials.complete == 2


def test_a_file_that_takes_no_more_ends_nothing(capsys):
    """What is still to come goes where it went before, and the reason is told once."""

    class Full(io.StringIO):
        def write(self, text):
            raise OSError(28, "No space left on device")

    told = []
    with diverted(Full(), told.append):
        print("to standard output")
        print("to standard error", file=sys.stderr)
    assert capsys.readouterr() == ("to standard output\n", "to standard error\n")
    assert [str(error) for error in told] == ["[Errno 28] No space left on device"]


def test_what_keeps_a_stream_follows_it_and_outlives_it(capsys):
    """A logger that was made while a run trained writes on when the run is over."""
    file = io.StringIO()
    with diverted(file, pytest.fail):
        kept = sys.stderr
        print("in the run", file=kept)
        with diverted(other := io.StringIO(), pytest.fail):
            print("in another", file=kept)
    file.close()
    print("after it", file=kept)
    assert other.getvalue() == "in another\n"
    assert capsys.readouterr().err == "after it\n"


def test_logging_as_the_users_module_sets_it_up_is_in_the_log_of_the_run(tmp_path):
    """A module's `basicConfig` counts, as no handler of ours stands in its way."""
    (tmp_path / "loop.py").write_text(LOOP)
    (tmp_path / "loop.toml").write_text(
        'name = "tiny"\nobjective = "loop:train"\nlevels = {high = 0.2, count = 2}\n'
        "training = {epochs = 1, seeds = 2}\n"
    )
    command = [sys.executable, "-m", "floodsearch"]
    for words in (("create", "loop.toml"), ("work", "loop.toml", "--device", "cpu")):
        done = subprocess.run([*command, *words], check=True, capture_output=True, text=True, cwd=tmp_path)
    logs = tmp_path / "floodsearch-logs" / "tiny"
    assert "INFO seed 1\n" in Path(logs / "ticket-1-seed-1.log").read_text()
    assert "INFO seed" not in done.stderr
    assert "INFO worker 1 trains study tiny on cpu" in done.stderr
