"""Arguments: code of the user's own sees its own name and what the study file says, wherever it looks."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest
from torch import nn

from floodsearch import queue
from floodsearch.catalog import code_revision, find_loop, known, task_of
from floodsearch.errors import StudyFileError, TaskError
from floodsearch.storage.studies import put_study
from floodsearch.storage.trial_records import read_trials
from floodsearch.study.extend import differences
from floodsearch.study.reader import parse
from floodsearch.study.trust import given
from floodsearch.tasks.task import build_task
from floodsearch.usercode.arguments import lent
from floodsearch.usercode.reference import as_program, file_of
from floodsearch.worker.leave import LeaveRequest
from floodsearch.worker.settings import WorkerSettings
from floodsearch.worker.work import work
from tests.test_loops import Alone

sqlite = pytest.mark.parametrize("storage_url", ["sqlite"], indirect=True)

SEEN = """
import pathlib, sys, threading

def see(where):
    with pathlib.Path(__file__).with_name("seen").open("a") as file:
        file.write(f"{where} {sys.argv[0] == __file__} {' '.join(sys.argv[1:])}\\n")

see("import")
"""
LOOP = (
    SEEN
    + """
import torch

def train(run):
    see("call")
    thread = threading.Thread(target=see, args=["thread"])
    thread.start()
    thread.join()
    sys.argv.clear()  # the next call sees them all the same
    run.restore()
    for _ in run.epochs():
        run.flood(torch.tensor(0.2 + run.seed / 10))
        run.report(val_accuracy=0.5)
"""
)
TASK = (
    SEEN
    + """
import torch
from torch import nn
from floodsearch.tasks.task import Data, Recipe, Split, Task

def task(*, width: int = 2):
    see("task")

    def data(seed):
        see("data")
        x = torch.randn(20, 2, generator=torch.Generator().manual_seed(seed))
        split = Split(x, (x.sum(dim=1) > 0).long())
        return Data(split, split, split)

    def model():
        see("model")
        return nn.Linear(2, width)

    return Task(data=data, model=model, recipe=Recipe(batch_size=10))
"""
)
PARSES = """
import argparse, sys, torch

parser = argparse.ArgumentParser(prog="train.py")
parser.add_argument("--rate", type=float, default=0.1)
parser.add_argument("--data", required=True)

def train(run):
    run.restore()
    rate = {parses}.rate
    for _ in run.epochs():
        run.flood(torch.tensor(0.2 + run.seed / 10))
        run.report(val_accuracy=rate)
"""


@pytest.fixture
def search(tmp_path, database, make_spec, write_code):
    """Work on a study of a module, and give its trials."""

    def run(source, *arguments, function="train", **changes):
        reference = f"{write_code(source)}:{function}"
        code = {"task": reference} if function == "task" else {"objective": reference, "task": None}
        plan = {"options": None, "levels": {"count": 2}, "training": {"epochs": 2, "validate_every": 1}}
        spec = make_spec(**code, arguments=[*arguments], **{**plan, **changes})
        study = put_study(database, spec)
        queue.fill(study)
        here = WorkerSettings(device="cpu", threads=1, checkpoints=tmp_path / "checkpoints")
        assert work(study, here, LeaveRequest()) == "all tickets are finished"
        return list(read_trials(study))

    return run


def seen(folder):
    """Return where the arguments were seen, and what was."""
    lines = {line for line in (folder / "seen").read_text().splitlines() if line}
    return {line.partition(" ")[0] for line in lines}, {line.partition(" ")[2] for line in lines}


def refused(reference, *arguments, **more):
    """Return the problems of a study file."""
    raw = {"name": "m", "levels": {"high": 0.5, "count": 3}, "arguments": [*arguments]}
    with pytest.raises(StudyFileError) as no:
        parse(raw | {"objective": reference} | more, known())
    return [f"{key}: {message}" for key, message in no.value.problems]


# What is lent


def test_the_process_has_its_own_arguments_again_at_the_end():
    """Also after an error, inside of another, and where the code put another list there."""
    before = sys.argv
    with pytest.raises(ZeroDivisionError), lent("a.py", ["--x"]):  # noqa: PT012
        assert sys.argv == ["a.py", "--x"]
        with lent("b.py", []):
            assert sys.argv == ["b.py"]
            sys.argv = ["of", "its", "own"]
        assert sys.argv == ["a.py", "--x"]
        raise ZeroDivisionError
    assert sys.argv is before


def test_workers_in_several_threads_leave_no_arguments_behind():
    """In whatever order they end."""
    before, first, second = sys.argv, threading.Event(), threading.Event()

    def one():
        with lent("one.py", []):
            first.set()
            second.wait(10)

    thread = threading.Thread(target=one)
    thread.start()
    first.wait(10)
    with lent("two.py", []):
        second.set()
        thread.join()
        assert sys.argv == ["two.py"]
    assert sys.argv is before


def test_the_file_of_a_module_is_found_without_importing_its_packages(tmp_path, monkeypatch):
    """So that the packages, too, see whose arguments these are."""
    monkeypatch.syspath_prepend(tmp_path)
    package = tmp_path / "argued" / "inner"
    package.mkdir(parents=True)
    for folder in (package.parent, package):
        (folder / "__init__.py").write_text("import sys; SEEN = list(sys.argv)")
    (package / "train.py").write_text("import sys; SEEN = list(sys.argv)\ndef train(run): return sys.argv")
    reference, file = "argued.inner.train:train", package / "train.py"
    assert file_of(reference) == file
    assert "argued" not in sys.modules
    assert find_loop(reference, ["-x"])(None) == [str(file), "-x"]
    for name in ("argued", "argued.inner", "argued.inner.train"):
        found = sys.modules[name].SEEN
        assert found == [str(file), "-x"]
    assert file_of("argued.other:train") is None
    assert file_of("argued.inner.train.deeper:train") is None
    with as_program("nowhere.at_all:train", []):
        assert sys.argv == ["nowhere.at_all"]


# Where it is seen


@sqlite
def test_a_loop_sees_its_own_arguments_at_import_and_in_each_call(search, tmp_path):
    """In threads that it starts, too, and whatever an earlier call did to them."""
    trials = search(LOOP, "--rate", "0.5", "a b")
    assert {one.state for one in trials} == {"complete"}
    assert seen(tmp_path) == ({"import", "call", "thread"}, {"True --rate 0.5 a b"})


@sqlite
def test_a_task_sees_its_own_arguments_wherever_it_makes_something(search, tmp_path):
    search(TASK, "--width", "2", function="task")
    assert seen(tmp_path) == ({"import", "task", "data", "model"}, {"True --width 2"})


def test_reading_a_study_file_shows_code_no_other_arguments(write_code, tmp_path, command):
    """Not those of `check`, which rehearses the task, and prints what it is given."""
    module = write_code(TASK)
    (tmp_path / "study.toml").write_text(
        f'name = "m"\ntask = "{module}:task"\narguments = ["--width", "2"]\n'
        "[levels]\nhigh = 0.5\ncount = 3\n[training]\nepochs = 10\nseeds = 1\n"
    )
    status, printed, said = command("check", tmp_path / "study.toml")
    assert (status, "10 or more" in said or not said) == (0, True), said
    assert 'arguments = ["--width", "2"]\n' in printed
    assert seen(tmp_path) == ({"import", "task", "data", "model"}, {"True --width 2"})


def test_a_launch_and_its_worker_show_code_no_other_arguments(tmp_path):
    """`parse_known_args` would take what it knows from a worker's words, and pass over the rest."""
    (tmp_path / "train.py").write_text(LOOP)
    (tmp_path / "study.toml").write_text(
        'name = "m"\nobjective = "train:train"\narguments = ["--storage", "mine"]\n'
        "[levels]\nhigh = 0.5\ncount = 2\n[training]\nepochs = 2\nseeds = 1\n"
    )
    words = [sys.executable, "-m", "floodsearch", "launch", "study.toml", "--devices", "cpu"]
    subprocess.run(words, cwd=tmp_path, check=True, capture_output=True)
    assert seen(tmp_path) == ({"import", "call", "thread"}, {"True --storage mine"})


# What a parser says


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "train.py: error: the following arguments are required: --data"),
        (("--data", "x", "--foo"), "train.py: error: unrecognized arguments: --foo"),
        (("--data", "x", "--rate", "fast"), "train.py: error: argument --rate: invalid float value: 'fast'"),
        (("--help",), "it called sys.exit(0), as a script or --help does"),
    ],
)
def test_what_a_parser_says_at_import_is_a_problem_of_the_study(write_code, capsys, arguments, words):
    """In its own words, with the arguments that it was given; on standard error it has told its usage."""
    source = PARSES.format(parses="args") + "\nargs = parser.parse_args()"
    [problem] = refused(f"{write_code(source)}:train", *arguments)
    listed = ", ".join(f'"{one}"' for one in arguments)
    assert problem.endswith(f"cannot be imported: {words}; the study file gives it arguments = [{listed}]")
    assert "\n" not in problem
    assert "usage: train.py [-h] [--rate RATE] --data DATA" in "".join(capsys.readouterr())


@sqlite
def test_what_a_parser_says_in_the_call_fails_its_ticket(search):
    """In its own words, with the line, and the worker goes on to its end."""
    trials = search(PARSES.format(parses="parser.parse_args()"), "--foo", "--data", "x")
    assert {one.state for one in trials} == {"failed"}
    said = (
        'SystemExit: train.py: error: unrecognized arguments: --foo; the study file gives it arguments = ["'
    )
    assert all(one.reason.startswith(said) and one.reason.endswith("py:10)") for one in trials)


@pytest.mark.parametrize(
    ("raises", "words"),
    [
        ('sys.exit("no data")', "no data"),
        ("sys.exit(3)", "exit status 3; the study file gives it arguments = []"),
        (
            "\n    try: open('nowhere.txt')\n    except OSError: sys.exit(1)",
            "exit status 1 after FileNotFoundError: [Errno 2] No such file or directory: 'nowhere.txt'; the",
        ),
    ],
)
def test_an_exit_is_told_with_what_led_to_it(write_code, raises, words):
    """Its own text, or else the error that the code had caught."""
    with pytest.raises(TaskError) as no:
        find_loop(write_code("import sys\nif True: " + raises) + ":train")
    assert f"cannot be imported: {words}" in str(no.value)


@pytest.mark.parametrize("status", [None, 0, 4])
def test_a_loop_may_end_as_a_script_does(tmp_path, status):
    """`sys.exit(0)` where the run pauses or ends is a return; any other exit is an error."""

    def train(run):
        run.restore(model=nn.Linear(1, 1))
        for _ in run.epochs():
            run.report(val_accuracy=0.5)
        sys.exit(status)

    run = Alone(tmp_path, epochs=4)
    for until in (2, 4):
        error = run.train(train, until)
        assert isinstance(error, SystemExit) if status else error is None
        assert run.run.epoch == until


@sqlite
def test_a_loop_that_exits_before_its_first_epoch_has_failed(search):
    """As with --help, whatever its exit status."""
    trials = search(PARSES.format(parses="parser.parse_args()"), "--help")
    assert {one.state for one in trials} == {"failed"}
    assert all("it called sys.exit(0), as a script or --help does" in one.reason for one in trials)


# In the study file


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("--rate 0.1", """'--rate 0.1' is not a list; write ["--rate", "0.1"]"""),
        (3, '3 is not a list; write ["3"]'),
        (["--rate", 0.1], '0.1 is not a text; write "0.1"'),
        (
            ["--seed={seed}"],
            "'--seed={seed}' has {seed}, but all runs have the same arguments; take run.seed",
        ),
        (["{epochs}"], "'{epochs}' has {epochs}, but all runs have the same arguments; take run.length"),
    ],
)
@pytest.mark.parametrize("kind", ["objective", "task"])
def test_arguments_that_cannot_be_given_are_one_clear_line(arguments, says, kind):
    """And the code, which would complain of what it lacks, is not asked."""
    raw = {"name": "m", "levels": {"high": 0.5, "count": 3}, kind: "no_such:code", "arguments": arguments}
    with pytest.raises(StudyFileError) as no:
        parse(raw, known())
    assert no.value.problems == (("arguments", says),)


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ({"command": "sleep {level} {seed}"}, "a command has them in itself; remove them"),
        ({"task": "two_gaussians"}, "a built-in task has [options]; remove them"),
    ],
)
def test_arguments_that_nobody_would_see_are_refused(code, says):
    raw = {"name": "m", "levels": {"high": 0.5, "count": 3}, "arguments": ["--fast"]} | code
    with pytest.raises(StudyFileError) as no:
        parse(raw, known())
    assert no.value.problems == (("arguments", f"are for code of your own: {says}"),)


def test_braces_that_are_no_placeholder_are_the_users_own(write_code):
    """Such as JSON, which Hugging Face's and Lightning's parsers take."""
    raw = {"name": "m", "levels": {"high": 0.5, "count": 3}, "arguments": ["--model", '{"depth": 2}', "{x}"]}
    module = write_code(
        "import sys\nassert sys.argv[1:] == ['--model', '{\"depth\": 2}', '{x}']\ndef train(run): 0"
    )
    assert parse(raw | {"objective": f"{module}:train"}, known()).arguments == (
        "--model",
        '{"depth": 2}',
        "{x}",
    )


def test_arguments_are_no_budget(write_code):
    """A study is not continued with others."""
    raw = {
        "name": "m",
        "objective": f"{write_code('def train(run): 0')}:train",
        "levels": {"high": 0.5, "count": 3},
    }
    one, other = (parse(raw | {"arguments": words}, known()) for words in (["--fast"], ["--slow"]))
    assert differences(one, other) == ['arguments: ["--fast"] before, ["--slow"] now']
    assert differences(one, one) == []


def test_whatever_resolves_trusted_code_gives_it_its_arguments(write_code):
    """A task as a worker builds it; and asking for the revision imports nothing."""
    module = write_code(TASK)
    raw = {"name": "m", "task": f"{module}:task", "levels": {"high": 0.5, "count": 3}, "arguments": ["-v"]}
    spec = parse(raw | {"training": {"epochs": 1, "batch_size": 10}}, known())
    seen_at = Path(sys.modules[module].__file__).with_name("seen")
    seen_at.unlink()
    assert code_revision(given(spec)) is not None
    assert not seen_at.exists()
    task_of(given(spec), {}).data(0)
    assert build_task(f"{module}:task", {}, {}).model()
    assert seen_at.read_text().splitlines() == ["task True -v", "data True -v", "task True ", "model True "]
