"""The command line as a user meets it: real processes, real databases."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import socket
import subprocess
import sys
import tomllib
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
import sqlalchemy
import torch

from floodsearch import queue
from floodsearch.catalog import known
from floodsearch.storage import schema, tables
from floodsearch.storage.database import open_database
from floodsearch.storage.studies import StoredStudy, find_study, put_study
from floodsearch.study.reader import parse
from floodsearch.study.spec import Spec
from floodsearch.study.trust import token_of
from floodsearch.tasks.synthetic import two_gaussians
from floodsearch.worker.leave import LeaveRequest
from floodsearch.worker.settings import WorkerSettings
from floodsearch.worker.work import work

FILE = """
name = "tiny"
task = "two_gaussians"
[options]
width = 8
depth = 1
[levels]
high = 0.9
count = 3
[training]
epochs = 10
seeds = 2
validate_every = 2
[search]
pruner = "none"
"""


Ended = subprocess.CompletedProcess[str]
Command = Callable[..., Ended]
Refused = Callable[..., str]


def started(*arguments: str | Path, cwd: Path, **environment: str) -> Ended:
    """Run a command in a folder, as a user would."""
    return subprocess.run(
        [sys.executable, "-m", "floodsearch", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "COLUMNS": "200", **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def as_refused(ended: Ended) -> str:
    """Return the message of wrong use: status 2, nothing on stdout, no traceback."""
    assert (ended.returncode, ended.stdout) == (2, ""), ended
    assert "Traceback" not in ended.stderr
    return ended.stderr


@pytest.fixture
def floodsearch(
    command: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> Command:
    """Run a command in a folder, in this process: what a process adds is asked of some of them."""

    def run(*arguments: str | Path, cwd: Path, **environment: str) -> Ended:
        with monkeypatch.context() as changed:
            changed.chdir(cwd)
            changed.delenv("FLOODSEARCH_STORAGE", raising=False)
            for name, value in {"COLUMNS": "200", **environment}.items():
                changed.setenv(name, value)
            return subprocess.CompletedProcess(arguments, *command(*arguments))

    return run


@pytest.fixture
def refused(floodsearch: Command) -> Refused:
    """Run a command that is wrong use and makes nothing; return the message."""

    def run(*arguments: str | Path, cwd: Path, **environment: str) -> str:
        before = {path.name for path in cwd.iterdir()} | {"__pycache__"}
        message = as_refused(floodsearch(*arguments, cwd=cwd, **environment))
        assert not (created := {path.name for path in cwd.iterdir()} - before), f"{created} was created"
        return message

    return run


def put(folder: Path, content: str = FILE) -> StoredStudy:
    """Write a study file and put its study into the folder's database, as `create` does, but quickly."""
    spec = parse(tomllib.loads(content), known())
    (folder / f"{spec.name}.toml").write_text(content)
    study = put_study(open_database(f"sqlite:///{folder}/floodsearch.db", create=True), spec)
    queue.fill(study)
    return study


def train(folder: Path, content: str = FILE) -> None:
    """Write a study file and train its study, as `launch` does, but quickly."""
    study = put(folder, content)
    settings = WorkerSettings(device="cpu", threads=1, checkpoints=folder / "floodsearch-checkpoints")
    assert work(study, settings, LeaveRequest()) == "all tickets are finished"
    study.database.close()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a folder in which the study `tiny` was launched with two workers and is finished."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "tiny.toml").write_text(FILE)
    ended = started("launch", "tiny.toml", "--workers", "2", "--devices", "cpu", cwd=folder)
    assert ended.returncode == 0, ended.stderr
    assert "tiny: the best flood level is" in ended.stdout
    assert ended.stdout.rstrip().splitlines()[-1].strip().startswith("loss = ")
    assert "logs in floodsearch-logs/tiny" in ended.stderr
    return folder


def test_best_json_has_every_field_of_the_answer(floodsearch: Command, finished: Path) -> None:
    """`best --json` is one object with every promised field; what is not known is null."""
    answer = json.loads(floodsearch("best", "tiny", "--json", cwd=finished).stdout)
    assert {
        "study",
        "level",
        "parameters",
        "interval",
        "tied",
        "value",
        "value_se",
        "test_accuracy",
    } <= answer.keys()
    assert {
        "test_loss",
        "train_accuracy",
        "baseline",
        "gain",
        "gain_se",
        "verdict",
        "trials",
    } <= answer.keys()
    assert {"epochs_run", "epochs_exhaustive", "cost", "finished"} <= answer.keys()
    assert answer["baseline"].keys() >= {"value", "test_accuracy", "test_loss"}
    assert answer["trials"] == {"complete": 3, "pruned": 0, "failed": 0, "running": 0, "waiting": 0}
    assert answer["epochs_exhaustive"] == 3 * 2 * 10
    assert 2 * 10 <= answer["epochs_run"] <= 3 * 2 * 10  # a start that levels share is trained once
    assert (answer["cost"], answer["finished"]) == (answer["epochs_run"] / 60, True)
    assert answer["verdict"] in ("helps", "not shown", "hurts")
    assert 0 <= answer["interval"][0] <= answer["level"] <= answer["interval"][1] <= 0.9


def test_best_ends_with_the_line_to_paste(floodsearch: Command, finished: Path) -> None:
    """The last line of `best` is code: it floods at the level, or says that there is none."""
    level = json.loads(floodsearch("best", "tiny", "--json", cwd=finished).stdout)["level"]
    last = floodsearch("best", "tiny", cwd=finished).stdout.rstrip().splitlines()[-1].strip()
    expected = (
        f"loss = (loss - {level:g}).abs() + {level:g}" if level else "loss = loss  # level 0: no flooding"
    )
    assert last == expected


def test_status_shows_all_studies_or_one(floodsearch: Command, finished: Path) -> None:
    """`status` lists every study, `status NAME` one, and `--json` gives the same to scripts."""
    everything = floodsearch("status", cwd=finished).stdout
    one = floodsearch("status", "tiny", cwd=finished).stdout
    for text in (everything, one):
        assert "tiny: finished" in text
        assert "3 complete" in text
    assert "as a single ticket" in everything
    assert "as a single ticket" not in one
    [listed] = json.loads(floodsearch("status", "--json", cwd=finished).stdout)
    named = json.loads(floodsearch("status", "tiny", "--json", cwd=finished).stdout)
    answer = json.loads(floodsearch("best", "tiny", "--json", cwd=finished).stdout)
    assert (named["answer"], named["answer_value"]) == (answer["level"], answer["value"])
    assert {**named, "answer": None, "answer_value": None} == listed
    assert (listed["workers"], listed["notes"]) == (0, [])


def test_launching_a_finished_study_again_trains_nothing(floodsearch: Command, finished: Path) -> None:
    """A second launch prints the same answer and starts no worker."""
    first = floodsearch("best", "tiny", cwd=finished).stdout
    again = floodsearch("launch", "tiny.toml", cwd=finished)
    assert (again.returncode, again.stdout) == (0, first)
    assert "workers on" not in again.stderr


def test_a_changed_file_is_refused_with_its_differences(
    refused: Refused, finished: Path, tmp_path: Path
) -> None:
    """A file of the same name with other settings is refused, each difference with both values."""
    changed = FILE.replace("width = 8", "width = 9").replace("high = 0.9", "high = 0.4")
    (tmp_path / "tiny.toml").write_text(changed)
    url = f"sqlite:///{finished}/floodsearch.db"
    message = refused("launch", "tiny.toml", "--storage", url, cwd=tmp_path)
    assert "options.width: 8 before, 9 now" in message
    assert "levels.high: 0.9 before, 0.4 now" in message


def test_more_seeds_extend_a_finished_study(floodsearch: Command, tmp_path: Path) -> None:
    """Growing `seeds` trains the new seeds only, and the answer covers all of them."""
    train(tmp_path)
    (tmp_path / "tiny.toml").write_text(FILE.replace("seeds = 2", "seeds = 3"))
    launched = floodsearch("launch", "tiny.toml", "--devices", "cpu", "--workers", "1", cwd=tmp_path)
    assert launched.returncode == 0
    answer = json.loads(floodsearch("best", "tiny", "--json", cwd=tmp_path).stdout)
    assert answer["seeds"] == 3
    assert answer["epochs_run"] <= 3 * 3 * 10
    assert answer["trials"]["complete"] == 3


def test_export_gives_the_same_data_in_every_format(floodsearch: Command, finished: Path) -> None:
    """Trials and curves are the same in CSV, JSON and Parquet, one row a trial or a seed and epoch."""
    for flags, rows in (((), 3), (("--curves",), 3 * 2 * 10)):
        from_json = json.loads(floodsearch("export", "tiny", "--format", "json", *flags, cwd=finished).stdout)
        text = floodsearch("export", "tiny", "--format", "csv", *flags, cwd=finished).stdout
        from_csv = list(csv.DictReader(io.StringIO(text)))
        floodsearch("export", "tiny", "--format", "parquet", *flags, "--out", "tiny.parquet", cwd=finished)
        from_parquet = pyarrow.parquet.read_table(finished / "tiny.parquet").to_pylist()
        (finished / "tiny.parquet").unlink()
        assert len(from_json) == len(from_csv) == rows
        assert from_json == from_parquet
        assert [row["level"] for row in from_csv] == [str(row["level"]) for row in from_json]


def test_export_has_a_column_for_each_searched_setting(floodsearch: Command, tmp_path: Path) -> None:
    """What is searched of the recipe and of the schedule has a column each; level 0 has no settings."""
    searched = 'seeds = 2\nschedule = "backward"\nweight_decay = {choices = [0.0, 0.1]}'
    content = FILE.replace("seeds = 2", searched) + "[backward]\nuntil_accuracy = {choices = [0.9, 1.0]}\n"
    put(tmp_path, content).database.close()
    rows = json.loads(floodsearch("export", "tiny", "--format", "json", cwd=tmp_path).stdout)
    assert [list(row)[4:7] for row in rows] == [["level", "weight_decay", "until_accuracy"]] * 10
    found = {(row["weight_decay"], row["until_accuracy"]) for row in rows if row["level"] == 0}
    assert found == {(0.0, None), (0.1, None)}
    assert len({(row["level"], row["weight_decay"], row["until_accuracy"]) for row in rows}) == 10


def test_environment_names_the_storage(floodsearch: Command, finished: Path, tmp_path: Path) -> None:
    """FLOODSEARCH_STORAGE is used where `--storage` is not given."""
    url = f"sqlite:///{finished}/floodsearch.db"
    assert floodsearch("status", cwd=tmp_path, FLOODSEARCH_STORAGE=url).stdout.startswith("tiny: finished")


def test_the_storage_may_be_named_in_a_file(
    floodsearch: Command, refused: Refused, finished: Path, tmp_path: Path
) -> None:
    """A URL that holds a password can be a secret file; one that cannot be read is one line."""
    (tmp_path / "url").write_text(f"sqlite:///{finished}/floodsearch.db\n")
    found = floodsearch("status", cwd=tmp_path, FLOODSEARCH_STORAGE_FILE="url").stdout
    assert found.startswith("tiny: finished")
    message = refused("status", cwd=tmp_path, FLOODSEARCH_STORAGE_FILE="nowhere")
    assert "FLOODSEARCH_STORAGE_FILE is nowhere, which cannot be read: No such file" in message


@pytest.mark.own_interpreter
def test_create_fills_the_queue_and_trains_nothing(floodsearch: Command, tmp_path: Path) -> None:
    """Where workers are started by others, a study is created first; again changes nothing."""
    (tmp_path / "tiny.toml").write_text(FILE)
    for create in (started, floodsearch):
        created = create("create", "tiny.toml", cwd=tmp_path)
        assert created.stdout.startswith("tiny: 0 workers alive\n  tickets   3 waiting\n"), created
    assert floodsearch("work", "tiny", "--device", "cpu", cwd=tmp_path).returncode == 0
    assert floodsearch("best", "tiny", cwd=tmp_path).returncode == 0


def test_check_shows_every_default_and_the_cost(floodsearch: Command, tmp_path: Path) -> None:
    """`check` resolves the whole study, creates nothing, and says what it would cost at most."""
    (tmp_path / "tiny.toml").write_text(FILE)
    shown = floodsearch("check", "tiny.toml", cwd=tmp_path).stdout
    assert 'search.sampler = "grid"' in shown
    assert "training.recipe.learning_rate = 0.001" in shown
    assert "3 tickets x 2 seeds x 10 epochs = 60 epochs, all to their ends; about " in shown
    content = json.loads(floodsearch("check", "tiny.toml", "--json", cwd=tmp_path).stdout)
    assert (content["tickets"], content["epochs_exhaustive"]) == (3, 60)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.toml"]


def test_check_tells_the_time_at_a_speed(floodsearch: Command, refused: Refused, tmp_path: Path) -> None:
    """At a given speed `check` prints each stage with its samples, speed and time, and their sum."""
    (tmp_path / "tiny.toml").write_text(FILE)
    shown = floodsearch("check", "tiny.toml", "--speed", "50", cwd=tmp_path).stdout
    assert "about 36 with the pruner 'none', 20 to 60 by when levels begin to flood; 1 min 12 s" in shown
    assert "      6         36            3,600           50  1 min 12 s" in shown
    content = json.loads(floodsearch("check", "tiny.toml", "--speed", "50", "--json", cwd=tmp_path).stdout)
    assert content["seconds_expected"] == 72
    assert content["stages"] == [
        {"after": 0, "until": 10, "runs": 6, "epochs": 36, "samples": 3600, "samples_a_second": 50.0}
    ]
    assert "give training samples a second" in refused("check", "tiny.toml", "--speed", "x", cwd=tmp_path)
    both = refused("check", "tiny.toml", "--speed", "1", "--measure", "cpu", cwd=tmp_path)
    assert "--speed and --measure are both given" in both


PRINTS = """
import torch

def train(run):
    print("a line of the user's own")
    weight = torch.nn.Parameter(torch.rand(3))
    for epoch in run.epochs():
        run.flood(weight.square().mean()).backward()
        run.report(val_accuracy=0.5 + float(weight[0].detach()) / 2)
"""


def test_check_measures_a_training_loop(refused: Refused, tmp_path: Path) -> None:
    """It trains the unflooded runs, sees that they cannot pause, prints JSON only, leaves nothing behind."""
    (tmp_path / "train.py").write_text(PRINTS)
    (tmp_path / "own.toml").write_text(
        'name = "own"\nobjective = "train:train"\n'
        "[levels]\nhigh = 0.9\ncount = 4\n[training]\nepochs = 12\nseeds = 2\n"
    )
    printed = started("check", "own.toml", "--measure", "cpu", "--json", cwd=tmp_path).stdout
    content = json.loads(printed)
    assert content["epochs_expected"] == content["epochs_exhaustive"] == 4 * 2 * 12
    assert content["epochs_tried"] == 2 * 12
    assert content["seconds_expected"] > 0
    assert {path.name for path in tmp_path.iterdir()} <= {"train.py", "own.toml", "__pycache__"}
    message = refused("check", "own.toml", "--speed", "50", cwd=tmp_path)
    sys.modules.pop("train", None)
    assert "samples a second say nothing of a training of your own; use --measure instead" in message
    (tmp_path / "train.py").write_text(PRINTS.replace("weight.square()", "nothing"))
    message = as_refused(started("check", "own.toml", "--measure", "cpu", cwd=tmp_path))
    assert (
        "the unflooded run of seed 0 failed in its first epoch: NameError: name 'nothing' is not" in message
    )


def test_a_file_with_many_problems_shows_all_of_them(refused: Refused, tmp_path: Path) -> None:
    """Every problem of a study file is one line with its key, the value and the fix."""
    wrong = FILE.replace("width = 8", "widht = 8").replace("epochs = 10", "epochs = 0").replace("0.9", "-0.5")
    (tmp_path / "wrong.toml").write_text(wrong)
    for command in ("launch", "check", "work"):
        message = refused(command, "wrong.toml", cwd=tmp_path)
        assert "wrong.toml has 3 problems" in message
        assert "options.widht: unknown key, did you mean 'width'?" in message
        assert "training.epochs: 0 should be greater than or equal to 1" in message
        assert "levels.high: -0.5 should be a finite number greater than 0" in message


WRONG_USE: dict[str, tuple[list[str], str]] = {
    "unknown command": (["lanch", "tiny.toml"], "lanch"),
    "unknown option": (["status", "--jsn"], "--jsn"),
    "missing argument": (["best"], "STUDY|NAME"),
    "missing file": (["launch", "nothing.toml"], "does not exist"),
    "folder as file": (["launch", "."], "cannot be read"),
    "no workers": (["launch", "tiny.toml", "--workers", "0"], "--workers is 0; give 1 or more"),
    "unknown device": (["launch", "tiny.toml", "--devices", "tpu:7"], "this machine has"),
    "absent device": (["launch", "tiny.toml", "--devices", "cuda:99"], "this machine has"),
    "unknown scheme": (
        ["launch", "tiny.toml", "--storage", "mysql://u:secret@h/d"],
        "not supported; use sqlite",
    ),
    "garbage URL": (["status", "--storage", "nonsense"], "cannot be read; write sqlite:///PATH"),
    "no database": (["best", "tiny"], "does not exist; launch a study first"),
    "no folder": (
        ["launch", "tiny.toml", "--storage", "sqlite:////nowhere/x.db"],
        "folder /nowhere does not exist",
    ),
    "unknown format": (["export", "tiny", "--format", "xls"], "use csv, json, parquet"),
    "unreachable": (
        ["status", "--storage", "postgresql://u:secret@127.0.0.1:1/d"],
        "u:***@127.0.0.1:1/d cannot be opened",
    ),
}


@pytest.mark.parametrize("case", WRONG_USE)
def test_wrong_use_is_one_clear_line(refused: Refused, case: str, tmp_path: Path) -> None:
    """Wrong use ends with status 2 and one line that says what to do; nothing is created, no secret shown."""
    (tmp_path / "tiny.toml").write_text(FILE)
    arguments, expected = WRONG_USE[case]
    message = refused(*arguments, cwd=tmp_path)
    assert any(part in message for part in expected.split("|")), message
    assert "secret" not in message


def test_an_unknown_study_lists_those_that_exist(refused: Refused, finished: Path) -> None:
    """A name that is not there is answered with those that are."""
    for command in ("best", "status", "export", "stop", "work"):
        assert "no study named 'other'" in (message := refused(command, "other", cwd=finished))
        assert "studies there: tiny" in message


@pytest.mark.own_interpreter
def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    """A traceback appears with `--debug` only."""
    ended = started("--debug", "best", "tiny", cwd=tmp_path)
    assert "Traceback" in ended.stderr


@pytest.fixture
def own_task(tmp_path: Path) -> Iterator[Path]:
    """Give a folder with a task of the user's own and its study file."""
    (tmp_path / "my_task.py").write_text(
        "from floodsearch.tasks.synthetic import two_gaussians\n"
        "def task(*, width: int = 8):\n    return two_gaussians(width=width, depth=1)\n"
    )
    content = FILE.replace('"two_gaussians"', '"my_task:task"').replace("depth = 1", "")
    (tmp_path / "mine.toml").write_text(content)
    yield tmp_path
    sys.modules.pop("my_task", None)


def test_a_task_of_the_users_own_is_searched(
    own_task: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A module beside the study file is found from any folder, and launch trusts it for its workers."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    ended = started("launch", own_task / "mine.toml", "--devices", "cpu", "--workers", "1", cwd=elsewhere)
    assert ended.returncode == 0, ended.stderr
    assert "3 complete" in ended.stdout


@pytest.mark.parametrize("what", ["task", "objective"])
def test_work_refuses_code_that_only_the_database_names(refused: Refused, own_task: Path, what: str) -> None:
    """Without `--trust` or the study file a worker imports nothing that the database names."""
    (own_task / "evil.py").write_text("open('executed', 'w').close()\n")
    url = f"sqlite:///{own_task}/floodsearch.db"
    database = open_database(url, create=True)
    content = {"name": "tiny", what: "evil:code", "levels": {"high": 0.5, "count": 3}}
    queue.fill(put_study(database, Spec.model_validate(content)))
    database.close()
    message = refused("work", "tiny", "--device", "cpu", cwd=own_task)
    token = token_of(Spec.model_validate(content))
    assert f'{what} "evil:code"; if you trust exactly that, add --trust {token}, or give the study' in message
    assert not (own_task / "executed").exists()


def test_work_runs_no_command_that_only_the_database_names(
    floodsearch: Command, refused: Refused, tmp_path: Path
) -> None:
    """Without `--trust` or the study file; the message shows the whole command, and what to add."""
    command = f"{sys.executable} -c \"open('executed', 'w')\" {{level}} {{seed}}"
    database = open_database(f"sqlite:///{tmp_path}/floodsearch.db", create=True)
    content = {"name": "tiny", "command": command, "levels": {"high": 0.5, "count": 3}}
    queue.fill(put_study(database, Spec.model_validate(content)))
    database.close()
    message = refused("work", "tiny", "--device", "cpu", cwd=tmp_path)
    token = token_of(Spec.model_validate(content))
    assert f"command {json.dumps(command)}; if you trust exactly that, add --trust {token}" in message
    other = refused("work", "tiny", "--device", "cpu", "--trust", "command", cwd=tmp_path)
    assert "--trust command does not say which function with which arguments" in other
    assert not (tmp_path / "executed").exists()
    floodsearch("work", "tiny", "--device", "cpu", "--trust", str(token), cwd=tmp_path)
    assert (tmp_path / "executed").exists()


def test_work_by_name_with_trust_and_by_file(floodsearch: Command, own_task: Path) -> None:
    """`work NAME --trust TOKEN`, as `check` tells it, and `work STUDY.toml` train code of the user's own."""
    checked = json.loads(floodsearch("check", "mine.toml", "--json", cwd=own_task).stdout)
    content: dict[str, Any] = {key: value for key, value in checked.items() if key in Spec.model_fields}
    database = open_database(f"sqlite:///{own_task}/floodsearch.db", create=True)
    study = put_study(database, Spec.model_validate_json(json.dumps(content)))
    queue.fill(study)
    by_name = started("work", "tiny", "--trust", checked["trust"], "--device", "cpu", cwd=own_task)
    assert by_name.returncode == 0, by_name.stderr
    assert "leaving: all tickets are finished" in by_name.stderr
    assert floodsearch("work", "mine.toml", "--device", "cpu", cwd=own_task).returncode == 0
    assert {worker.left is not None for worker in tables.read_workers(database, study.uuid)} == {True}
    database.close()


def test_stop_keeps_the_queue_and_launch_goes_on(floodsearch: Command, tmp_path: Path) -> None:
    """A stopped study hands out no ticket and says so; launching it again finishes it."""
    study = put(tmp_path)
    assert floodsearch("stop", "tiny", cwd=tmp_path).returncode == 0
    assert work(study, WorkerSettings(device="cpu"), LeaveRequest()) == "stopped by floodsearch stop"
    assert "stopped by floodsearch stop" in floodsearch("status", cwd=tmp_path).stdout
    asked = floodsearch("best", "tiny", cwd=tmp_path)
    assert asked.returncode == 1
    assert "no complete ticket yet: 0 running, 3 waiting" in asked.stderr
    launched = floodsearch("launch", "tiny.toml", "--devices", "cpu", "--workers", "1", cwd=tmp_path)
    assert launched.returncode == 0
    study.database.close()


def test_weights_of_the_answer_are_fetched_by_one_command(
    floodsearch: Command, refused: Refused, tmp_path: Path, finished: Path
) -> None:
    """One file a seed, which torch alone loads; what is kept goes with the study; with none, it is said."""
    train(tmp_path, FILE.replace("[training]", '[training]\nkeep = "best"'))
    level = json.loads(floodsearch("best", "tiny", "--json", cwd=tmp_path).stdout)["level"]
    fetched = floodsearch("weights", "tiny", "--out", "models", cwd=tmp_path)
    said = f"tiny: weights of level {level:g}{' (no flooding)' * (level == 0)}, best validation of each seed"
    assert fetched.stdout.splitlines() == [said, "  models/seed-0.pt", "  models/seed-1.pt"]
    for seed in (0, 1):
        weights = torch.load(tmp_path / "models" / f"seed-{seed}.pt", weights_only=True)
        assert two_gaussians(width=8, depth=1).model().load_state_dict(weights)
    message = refused("weights", "tiny", "--out", "new", "--checkpoints", "elsewhere", cwd=tmp_path)
    assert f"give --checkpoints as its workers had it (on {socket.gethostname()})" in message
    assert "'tiny' keeps no weights; write keep = " in refused(
        "weights", "tiny", "--out", "new", cwd=finished
    )
    assert list((tmp_path / "floodsearch-checkpoints").rglob("*.pt"))
    assert floodsearch("delete", "tiny", "--yes", cwd=tmp_path).returncode == 0
    assert not list((tmp_path / "floodsearch-checkpoints").rglob("*.pt"))


def test_delete_leaves_nothing_of_a_study(floodsearch: Command, refused: Refused, tmp_path: Path) -> None:
    """Trials, curves, workers and checkpoints are gone, other studies stay, and the name is free again."""
    for name in ("tiny", "other"):
        train(tmp_path, FILE.replace('"tiny"', f'"{name}"'))
    database = open_database(f"sqlite:///{tmp_path}/floodsearch.db")
    folder = tmp_path / "floodsearch-checkpoints" / find_study(database, "tiny").folder
    folder.mkdir(parents=True)
    assert "delete study tiny (3 tickets, " in as_refused(started("delete", "tiny", cwd=tmp_path))
    assert floodsearch("delete", "tiny", "--yes", cwd=tmp_path).stdout == "tiny: deleted\n"
    assert not folder.exists()
    assert floodsearch("best", "other", cwd=tmp_path).returncode == 0
    assert "no study named 'tiny'" in refused("best", "tiny", cwd=tmp_path)
    other = find_study(database, "other")
    with database.read() as connection:
        for table in (schema.curves, schema.workers):
            found = connection.execute(sqlalchemy.select(table.c.study).distinct()).scalars().all()
            assert found == [other.uuid]
    database.close()
    assert floodsearch("create", "tiny.toml", cwd=tmp_path).returncode == 0


def test_a_study_that_is_trained_is_not_deleted(refused: Refused, tmp_path: Path) -> None:
    """While a worker lives the data stay, and the answer says how to end it."""
    study = put(tmp_path)
    database = study.database
    worker = tables.enter_worker(database, study.uuid, host="here", pid=1, device="cpu", versions={})
    tables.beat(database, worker, epochs_run=0, training=())
    message = refused("delete", "tiny", "--yes", cwd=tmp_path)
    assert "study 'tiny' is trained by 1 worker now; end that with floodsearch stop tiny" in message
    assert find_study(database, "tiny").uuid == study.uuid
    database.close()


def test_logs_of_a_detached_launch(
    floodsearch: Command, refused: Refused, tmp_path: Path, eventually: Callable[..., Any]
) -> None:
    """`launch --detach` returns while workers train; `logs` shows what they and the launch said."""
    (tmp_path / "tiny.toml").write_text(FILE)
    assert "there are no logs of 'tiny'" in refused("logs", "tiny", cwd=tmp_path)
    launched = started("launch", "tiny.toml", "--detach", "--devices", "cpu", "--workers", "2", cwd=tmp_path)
    assert launched.returncode == 0, launched.stderr
    assert "tiny: launched in the background as process" in launched.stdout
    said = tmp_path / "floodsearch-logs" / "tiny" / "launch.log"
    eventually(lambda: "the best flood level is" in said.read_text())
    shown = floodsearch("logs", "tiny", "--lines", "100", cwd=tmp_path).stdout
    assert "worker-0: " in shown
    assert "leaving: all tickets are finished" in shown
    assert "launch: tiny: the best flood level is" in shown
    assert len(floodsearch("logs", "tiny", "--lines", "1", cwd=tmp_path).stdout.splitlines()) == 3


@pytest.fixture
def serving(eventually: Callable[..., Any]) -> Iterator[Callable[..., int]]:
    """Start a server command on a free loopback port and wait until it answers; end it afterwards."""
    servers: list[subprocess.Popen[bytes]] = []

    def start(*command: str, cwd: Path) -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        servers.append(subprocess.Popen([*command, "--port", str(port)], cwd=cwd, stderr=subprocess.DEVNULL))

        def answers() -> bool:
            assert servers[-1].poll() is None, f"{command} ended"
            with socket.socket() as client:
                return client.connect_ex(("127.0.0.1", port)) == 0

        eventually(answers, f"{command}")
        return port

    yield start
    for process in servers:
        process.send_signal(signal.SIGINT)
        process.wait(30)


def test_serve_and_plain_optuna_dashboard_show_the_study(finished: Path, serving: Callable[..., int]) -> None:
    """The study is in our dashboard, and in Optuna's own started on the plain URL."""
    ours = (sys.executable, "-m", "floodsearch", "serve")
    plain = (str(Path(sys.executable).with_name("optuna-dashboard")), "sqlite:///floodsearch.db")
    for command in (ours, plain):
        port = serving(*command, cwd=finished)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/studies") as response:
            names = [study["study_name"] for study in json.load(response)["study_summaries"]]
        assert names == ["tiny"]


def test_serve_on_a_taken_port_is_one_line(finished: Path) -> None:
    """A port that is taken is answered with another to choose."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ended = started("serve", "--port", str(taken.getsockname()[1]), cwd=finished)
    assert ended.returncode == 2
    assert "choose another --port" in ended.stderr
