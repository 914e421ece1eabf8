"""Scripts that are trained as they are: paused, halved, remembered, and told what they print wrong."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import uuid
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from floodsearch import queue
from floodsearch.answer.tickets import latest
from floodsearch.artifacts.checkpoint import Checkpoint
from floodsearch.artifacts.files import Folder, files_at
from floodsearch.artifacts.names import remove_files
from floodsearch.catalog import first_command
from floodsearch.errors import DivergedError, LoopError, StudyFileError, TaskError, UsageError
from floodsearch.queries import answer
from floodsearch.storage import tables
from floodsearch.storage.studies import put_study
from floodsearch.storage.trial_records import read_trials
from floodsearch.study.extend import differences
from floodsearch.study.spec import ScriptSettings
from floodsearch.training import running as running_module
from floodsearch.training.loop import ForScript, LoopRun
from floodsearch.training.progress import RunPlan
from floodsearch.training.script import Script
from floodsearch.usercode.command import filled, placeholders, script_file
from floodsearch.worker.leave import LeaveRequest
from floodsearch.worker.loops import Loops
from floodsearch.worker.settings import WorkerSettings
from floodsearch.worker.work import work

HEAD = """
import argparse, json, os, random, signal, subprocess, sys
parser = argparse.ArgumentParser()
parser.add_argument("--flood", type=float)
parser.add_argument("--seed", type=int)
parser.add_argument("--epochs", type=int)
known, rest = parser.parse_known_args()
level, seed, epochs = known.flood, known.seed, known.epochs

def report(epoch, **numbers):
    print(json.dumps({"epoch": epoch, **numbers}))
"""
BODY = """
random.seed(seed)
print("begins", *rest)
for epoch in range(1, epochs + 1):
    accuracy = 0.9 - (level - 0.4) ** 2 * epoch / epochs + random.gauss(0, 0.001)
    report(epoch, val_accuracy=accuracy, val_loss=1 / epoch + 0.3, lr=0.1)
print("the end", file=sys.stderr)
"""
TRAIN = HEAD + BODY

STUDY = {
    "task": None,
    "options": {"label_noise": None, "depth": None, "width": None},
    "levels": {"high": 0.8, "count": 5},
    "training": {"epochs": 12, "seeds": 2, "validate_every": 1},
    "search": {"pruner": "halving"},
    "halving": {"first": 0.15},
}

sqlite = pytest.mark.parametrize("storage_url", ["sqlite"], indirect=True)


@pytest.fixture
def write_script(tmp_path):
    """Write a script; give the command that runs it."""

    def write(source=TRAIN, arguments=""):
        path = tmp_path / "train.py"
        path.write_text(source)
        return f"{sys.executable} {path} --flood={{level}} --seed {{seed}} --epochs {{epochs}}{arguments}"

    return write


@pytest.fixture
def make_study(database, make_spec, write_script):
    """Put a study of a command, filled."""

    def make(name="tiny", source=TRAIN, arguments="", **changes):
        whole = {key: {**value, **changes.pop(key, {})} for key, value in STUDY.items() if key != "task"}
        if whole["search"]["pruner"] != "halving":
            whole.pop("halving")
        spec = make_spec(name=name, task=None, command=write_script(source, arguments), **whole, **changes)
        study = put_study(database, spec)
        queue.fill(study)
        return study

    return make


@pytest.fixture
def here(tmp_path):
    """Give the settings of a worker that keeps its files here."""
    return WorkerSettings(device="cpu", checkpoints=tmp_path / "checkpoints", logs=tmp_path / "logs")


def curves(study):
    return tables.read_curves(study.database, study.uuid)


def epochs_run(study):
    return sum(worker.epochs_run for worker in tables.read_workers(study.database, study.uuid))


def outputs(settings):
    return {path.stem: path.read_text() for path in settings.logs.rglob("ticket-*.log")}


# One run


class Alone:
    """One run of a script."""

    def __init__(self, folder, command, *, epochs=4, validate_every=1, level=0.3, **settings):
        self.folder, self.command, self.level, self.records = folder, command, level, []
        self.plan = RunPlan(epochs=epochs, validate_every=validate_every)
        self.checkpoint = Checkpoint(Folder(folder), "run.pt", {"study": folder.name})
        self.leave = threading.Event()
        self.settings = ScriptSettings(**settings)
        self.extra = ForScript()
        self.another_worker()

    def another_worker(self):
        """Let the next part be trained by another worker of this machine."""
        self.script = Script(self.command, self.folder, self.leave.is_set, settings=self.settings)

    def train(self, until=10**9, note=lambda record: True):
        """Train one part; return what was wrong, or None."""

        def taken(record):
            self.records.append(record)
            self.trained += not self.run.remembered
            return note(record)

        self.trained = 0

        self.run = LoopRun(
            self.plan,
            name="ticket-3-seed-7",
            level=self.level,
            seed=7,
            device=torch.device("cpu"),
            settings={},
            until=until,
            note=taken,
            checkpoint=self.checkpoint,
            saved=self.checkpoint.load(),
            script=self.extra,
        )
        loops = object.__new__(Loops)
        loops.device = torch.device("cpu")
        loops.loop = self.script
        return loops.call(self.run)

    @property
    def output(self):
        return (self.folder / "ticket-3-seed-7.log").read_text()


@pytest.fixture
def alone(tmp_path, write_script):
    made = []

    def make(source=BODY, **options):
        made.append(Alone(tmp_path / uuid.uuid4().hex, write_script(HEAD + source), **options))
        return made[-1]

    yield make
    for one in made:
        one.script.end_others()


def test_a_script_reports_what_it_prints_and_its_output_is_kept(alone):
    """Each JSON line with an epoch is a report; other numbers, texts and errors are kept in the file."""
    one = alone("""
print("hello")
print('{"not": "an epoch"}')
print("{broken")
for epoch in range(1, epochs + 1):
    report(epoch, val_accuracy=0.5, val_loss=None, train_loss=0.25, lr=0.1)
print("bye", file=sys.stderr)
""")
    assert one.train() is None
    assert [(one.epoch, one.val_accuracy, one.val_loss, one.train_loss) for one in one.records] == [
        (epoch, 0.5, None, 0.25) for epoch in (1, 2, 3, 4)
    ]
    assert {record.flooded for record in one.records} == {None}, "nobody has seen its batches"
    lines = one.output.splitlines()
    assert lines[0].startswith(f"$ {sys.executable} ")
    assert re.search(r"train.py --flood=0\.3 --seed 7 --epochs 4  # run [0-9a-f]{16}$", lines[0])
    assert {"hello", "bye", "{broken"} < set(lines)


@pytest.mark.parametrize("pause", ["keep", "restart"])
def test_epochs_may_be_counted_from_0(alone, pause):
    """The first line tells, and what it told is kept while the run pauses."""
    one = alone("for epoch in range(epochs): report(epoch, val_accuracy=epoch / 10)", pause=pause)
    assert one.train(until=2) is None
    assert one.train() is None
    assert [(record.epoch, record.val_accuracy) for record in one.records] == [
        (1, 0.0), (2, 0.1), (3, 0.2), (4, 0.3)
    ]  # fmt: skip


def test_a_script_is_stopped_where_it_pauses_and_goes_on(alone, eventually):
    """One process trains the whole run, and trains nothing while it is stopped."""
    one = alone(GATED)
    assert one.train(until=2) is None
    assert (one.run.epoch, one.run.repeated) == (2, 0)
    pid = pid_in(one.output)
    eventually(lambda: state_of(pid) == "T", "the stop of the script")
    (one.folder / "gate").touch()
    assert one.train() is None
    assert (one.run.epoch, one.run.repeated) == (4, 0)
    assert one.output.count("$ ") == 1
    assert not running(pid)


GATED = """
import time, pathlib
gate = pathlib.Path(sys.argv[0]).parent
for epoch in range(1, epochs + 1):
    report(epoch, val_accuracy=0.5, pid=os.getpid())
    while epoch == 2 and not list(gate.rglob("gate")): time.sleep(0.01)
"""


@pytest.mark.parametrize("settings", [{"pause": "restart"}, {"stopped": 0}])
def test_a_script_may_start_again_where_it_goes_on(alone, settings):
    """Its known epochs are not reported twice, but counted: they were trained."""
    one = alone(**settings)
    assert one.train(until=2) is None
    assert (one.run.epoch, one.run.repeated) == (2, 0)
    assert one.train() is None
    assert (one.run.epoch, one.run.repeated) == (4, 2)
    assert [record.epoch for record in one.records] == [1, 2, 3, 4]
    assert one.output.count("$ ") == 2


def test_a_script_with_checkpoints_of_its_own_goes_on(alone, tmp_path):
    """It is asked to end by SIGTERM, and what it does not print again was not trained again."""
    one = alone(
        f"""
from pathlib import Path
path = Path({str(tmp_path / "own")!r})
epoch = int(path.read_text()) if path.exists() else 0

def save(*_):
    path.write_text(str(epoch))
    sys.exit(0)

signal.signal(signal.SIGTERM, save)
while epoch < epochs:
    epoch += 1
    report(epoch, val_accuracy=0.5)
    if epoch == 2 and not path.exists():
        signal.pause()
""",
        pause="restart",
    )
    assert one.train(until=2) is None
    assert one.train() is None
    assert one.run.repeated == 0
    assert [record.epoch for record in one.records] == [1, 2, 3, 4]


OWN_CHECKPOINTS = """
from pathlib import Path
path = Path(sys.argv[0]).parent / "own"
start = int(path.read_text()) if path.exists() else 0
for epoch in range(start + 1, epochs + 1):
    path.write_text(str(epoch))
    report(epoch - {counts}, val_accuracy=epoch / 10)
    if epoch == 2 and start == 0: signal.pause()
"""


def lost(one):
    """Let the worker of a run go at the second line, and its checkpoint with it."""
    at_the_second = lambda record: one.leave.set() if record.epoch == 2 else True  # noqa: E731
    assert one.train(note=at_the_second) is None
    assert one.run.epoch == 2
    one.checkpoint.remove()
    one.leave.clear()
    one.another_worker()
    one.records.clear()


@pytest.mark.parametrize("counts", [0, 1])
def test_what_a_script_has_printed_is_remembered_from_its_log(alone, counts):
    """A worker that dies saves nothing; the script goes on from its own checkpoint, and prints what is left.

    Those epochs were counted by whoever trained them. Whether epochs are counted from 0 the log tells, too.
    """
    one = alone(OWN_CHECKPOINTS.format(counts=counts))
    lost(one)
    assert one.train() is None
    assert [(record.epoch, record.val_accuracy) for record in one.records] == [
        (1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4)
    ]  # fmt: skip
    assert (one.trained, one.run.repeated) == (2, 0)


def test_a_script_at_its_end_prints_nothing_more(alone):
    """All is known when its worker dies behind the last line."""
    one = alone(OWN_CHECKPOINTS.format(counts=0).replace("signal.pause()", "pass"))
    assert one.train(note=lambda record: True) is None
    one.checkpoint.remove()
    one.records.clear()
    assert one.train() is None
    assert [record.epoch for record in one.records] == [1, 2, 3, 4]
    assert one.trained == 0


def test_what_the_log_lacks_the_database_may_have(alone):
    """As where another machine began the run; what is in neither is asked for in one line."""
    one = alone(OWN_CHECKPOINTS.format(counts=0))
    lost(one)
    (one.folder / "ticket-3-seed-7.log").unlink()
    error = one.train()
    assert "printed nothing of epoch 1, at which val_accuracy is due, but then of epoch 3" in str(error)
    assert "nobody has what it printed before: let it print those lines again, or delete that ch" in str(
        error
    )
    (one.folder.parent / "own").write_text("2")
    (one.folder / "ticket-3-seed-7.log").unlink()
    one.extra = ForScript(recorded=lambda: {1: {"val_accuracy": 0.75}, 2: {"val_accuracy": 0.5}})
    assert one.train() is None
    assert [record.val_accuracy for record in one.records] == [0.75, 0.5, 0.3, 0.4]


def test_a_log_is_trusted_no_more_than_any_file(alone):
    """What does not parse, or is of another run of this name, tells nothing; no line is evaluated."""
    one = alone(OWN_CHECKPOINTS.format(counts=0))
    lost(one)
    path = one.folder / "ticket-3-seed-7.log"
    whole = path.read_bytes()
    foreign = (
        b'$ x  # run 0123456789abcdef\n{"epoch": 1, "val_accuracy": 0.9}\n{"epoch": 2, "val_accuracy": 0.9}\n'
    )
    path.write_bytes(foreign)
    assert "nobody has what it printed before" in str(one.train())
    (one.folder.parent / "own").write_text("2")
    noise = b'{"epoch": 2, "val_accuracy": "0.9", "x": 1}\n{"epoch": [2], "val_accuracy": 0.9}\n'
    noise += (
        b'{"epoch": 1, "val_accuracy": \n\xff\xfe{"epoch": "__import__(\'os\')"}\n' + b"x" * 3_000_000 + b"\n"
    )
    path.write_bytes(foreign + whole + noise)
    assert one.train() is None
    assert [record.val_accuracy for record in one.records] == [0.1, 0.2, 0.3, 0.4]


def test_a_study_may_say_from_where_epochs_are_counted(alone):
    """Where the first line may be lost, as on another machine."""
    source = "for epoch in range(1, epochs): report(epoch, val_accuracy=epoch / 10)"
    one = alone(source, first_epoch=0)
    one.extra = ForScript(recorded=lambda: {1: {"val_accuracy": 0.0}})
    assert one.train() is None
    assert [record.val_accuracy for record in one.records] == [0.0, 0.1, 0.2, 0.3]
    one = alone(source.replace("1, epochs", "2, epochs"))
    one.extra = ForScript(recorded=lambda: {1: {"val_accuracy": 0.0}, 2: {"val_accuracy": 0.1}})
    assert "ended after epoch 3 of 4; give it {epochs}, say first_epoch = 0 in [script]" in str(one.train())
    error = alone("report(0, val_accuracy=0.5)", first_epoch=1).train()
    assert "printed epoch 0; epochs are counted from 0 or from 1, in this run from 1" in str(error)


LAST_WORDS = {
    "in its last line": ("", "test_accuracy=0.7, test_loss=1.5"),
    "in a line of its own": ("print(json.dumps({'test_accuracy': 0.7, 'test_loss': 1.5}))", ""),
    "behind a logger": ("print('INFO', json.dumps({'test_accuracy': 0.7, 'test_loss': 1.5}))", ""),
    "of the last epoch again": ("report(4, test_accuracy=0.7, test_loss=1.5, val_accuracy=0.9)", ""),
    "in two lines": ("report(4, test_accuracy=0.7); print('{\"test_loss\": 1.5}')", ""),
}


@pytest.mark.parametrize("case", LAST_WORDS)
def test_last_words_may_be_of_the_test(alone, case):
    behind, in_it = LAST_WORDS[case]
    one = alone(f"""
for epoch in range(1, epochs): report(epoch, val_accuracy=0.5)
report(epochs, val_accuracy=0.5, {in_it})
{behind}
""")
    assert one.train() is None
    last = one.records[-1]
    assert (last.epoch, last.val_accuracy, last.test_accuracy, last.test_loss) == (4, 0.5, 0.7, 1.5)
    assert {record.test_accuracy for record in one.records[:-1]} == {None}


def test_validations_may_be_seldom(alone):
    """Epochs without a line lie between validations; the file says how often these are."""
    source = "for epoch in range(2, epochs + 1, 2): report(epoch, val_accuracy=0.5)"
    one = alone(source, validate_every=2)
    assert one.train() is None
    assert [record.val_accuracy for record in one.records] == [None, 0.5, None, 0.5]
    error = alone(source).train()
    assert "the command printed nothing of epoch 1, at which val_accuracy is due, but then of epoch 2" in str(
        error
    )
    assert "validate_every in [training]" in str(error)


def test_a_script_that_trains_on_is_ended(alone):
    """It need not be told for how long it trains."""
    one = alone("""
import itertools
for epoch in itertools.count(1): report(epoch, val_accuracy=0.5)
""")
    assert one.train() is None
    assert one.run.epoch == 4


WRONG = {
    "no report": ("", "the command ended without a report; let it print a line of JSON an epoch, such as"),
    "no metric": ("report(1, val_loss=1)", "epoch 1 was reported without val_accuracy, the study's metric"),
    "unknown": ("report(1, acc=0.5, lr=1)", "printed acc, lr of epoch 1, of which this study knows nothing"),
    "text": ("report(1, val_accuracy='0.5')", 'printed val_accuracy = "0.5" of epoch 1, not a number; print'),
    "ends early": ("report(1, val_accuracy=1)", "the command ended after epoch 1 of 4; give it {epochs}"),
    "twice": ("report(1, val_accuracy=1); report(1, val_loss=1)", "printed epoch 1 after epoch 1; let it"),
    "backwards": ("report(3, val_accuracy=1); report(2, val_accuracy=1)", "printed epoch 2 after epoch 3"),
    "no number": ("report('one', val_accuracy=1)", "printed epoch 'one'; epochs are counted from 0 or from"),
    "negative": ("report(-1, val_accuracy=1)", "the command printed epoch -1; epochs are counted from 0 or"),
    "fails": (
        "print('x', file=sys.stderr); sys.exit('no such file: data.csv')",
        "the command failed with exit status 1: x / no such file: data.csv",
    ),
    "is killed": ("os.kill(os.getpid(), signal.SIGKILL)", "the command was killed by SIGKILL: it printed no"),
    "fails at last": (
        "for epoch in range(1, 5): report(epoch, val_accuracy=1)\nsys.exit(3)",
        "the command failed with exit status 3: it printed no error",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_a_script_does_wrong_is_one_clear_line(alone, case):
    source, message = WRONG[case]
    error = alone(source, validate_every=4 if case == "backwards" else 1).train()
    assert isinstance(error, LoopError), error
    assert message in str(error)
    assert "\n" not in str(error)


LINES = {
    "behind a progress bar": r"' 3%|#| 1/9\r99%|##| 9/9\r' + line",
    "behind one that has not ended its line": "'Epoch 1: 100%|##| 9/9 [00:01<00:00, loss=0.3]' + line",
    "in colours": r"'\x1b[32m' + line + '\x1b[0m'",
    "of a logger": "'2026-11-26 10:00:00,123 INFO train [x.py:3]: ' + line",
    "with more behind": "line + ' # done'",
    "with Windows' ends": r"line + '\r'",
    "beside what is no UTF-8": r"'\udcff\udcfe ' + line",
    "behind a line of 3 MB": r"'{' * 3_000_000 + '\n' + line",
    "with an epoch as a float": "line.replace(f'\"epoch\": {epoch}', f'\"epoch\": {epoch}.0')",
}
"""How a line of JSON is printed in practice."""


@pytest.mark.parametrize("case", LINES)
def test_a_report_is_found_however_it_is_printed(alone, case):
    one = alone(f"""
sys.stdout.reconfigure(errors="surrogateescape", newline="")
for epoch in range(1, epochs + 1):
    line = json.dumps({{"epoch": epoch, "val_accuracy": epoch / 10}})
    print({LINES[case]})
""")
    assert one.train() is None
    assert [(one.epoch, one.val_accuracy) for one in one.records] == [(n, n / 10) for n in (1, 2, 3, 4)]


def test_two_reports_may_be_in_one_line_and_settings_are_none(alone):
    """Behind other text only an object with a number of the study is a report."""
    one = alone("""
print('settings: {"epoch": 100, "rate": 0.1}', "{'epoch': 7}")
for epoch in (1, 3):
    print(*(json.dumps({"epoch": n, "val_accuracy": 0.5}) for n in (epoch, epoch + 1)))
""")
    assert one.train() is None
    assert [record.epoch for record in one.records] == [1, 2, 3, 4]


def test_a_child_that_goes_on_to_print_is_waited_for_a_little_only(alone, monkeypatch):
    monkeypatch.setattr(running_module, "GRACE_SECONDS", 0.3)
    one = alone("""
for epoch in range(1, epochs + 1): report(epoch, val_accuracy=0.5)
subprocess.Popen(["sh", "-c", "while :; do echo here; sleep 0.02; done"])
""")
    assert one.train() is None
    assert one.run.epoch == 4


@pytest.mark.parametrize("value", ["float('nan')", "float('-inf')", "10 ** 400"])
def test_a_number_beyond_all_others_has_diverged(alone, value):
    assert isinstance(alone(f"report(1, val_accuracy={value})").train(), DivergedError)


@pytest.mark.parametrize("value", ["nan", "-nan", "inf", "-Inf"])
def test_a_number_that_is_no_json_has_diverged(alone, value):
    """As C and a plain format print it."""
    source = f'print(\'{{"epoch": 1, "val_accuracy": 0.5, "train_loss": {value}}}\')'
    assert isinstance(alone(source).train(), DivergedError)


def test_a_number_that_is_not_finite_has_diverged(alone):
    error = alone("report(1, val_accuracy=0.5, train_loss=float('nan'))").train()
    assert isinstance(error, DivergedError)
    assert str(error).startswith("the reported train_loss is not finite at level 0.3, epoch 1, seed 7")


def test_a_program_that_is_not_there_is_one_clear_line(tmp_path):
    error = Alone(tmp_path, "no-such-program {level}").train()
    assert str(error) == "the command cannot be started: 'no-such-program': No such file or directory"


BLOCKS = """
child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
report(1, val_accuracy=0.5, pid=os.getpid(), child=child.pid)
{ignores}
signal.pause()
signal.pause()
"""


@pytest.mark.parametrize("ignores", ["", "signal.signal(signal.SIGTERM, lambda *_: None)"])
def test_a_worker_that_is_asked_to_leave_waits_for_no_epoch(alone, ignores, eventually, monkeypatch):
    """The script and its children are ended, by force where they do not end by themselves."""
    monkeypatch.setattr(running_module, "GRACE_SECONDS", 0.3)
    one = alone(BLOCKS.format(ignores=ignores))
    assert one.train(note=lambda record: one.leave.set() or True) is None
    assert (one.run.epoch, one.run.goes_on) == (1, False)
    line = next(line for line in one.output.splitlines() if line.startswith("{"))
    for pid in (int(part.rpartition(" ")[2].rstrip("}")) for part in line.split(",")[2:]):
        eventually(lambda pid=pid: not running(pid), "the end of the process")


def state_of(pid):
    """Return the state of a process, as `ps` shows it; Z where it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "Z"


def running(pid):
    return state_of(pid) != "Z"


def pid_in(output):
    return int(re.search(r'"pid": (\d+)', output)[1])


def test_what_is_raised_while_an_epoch_is_noted_ends_the_script(alone, eventually):
    """As when the storage is gone for good: no process is left behind."""

    def note(record):
        raise KeyboardInterrupt

    one = alone(BLOCKS.format(ignores=""))
    with pytest.raises(KeyboardInterrupt):
        one.train(note=note)
    pid = int(one.output.partition('"pid": ')[2].partition(",")[0])
    eventually(lambda: not running(pid), "the end of the process")


def test_a_script_is_not_told_where_the_storage_is(alone, monkeypatch):
    """Its URL may hold a password, and scripts print their environment when they fail."""
    monkeypatch.setenv("FLOODSEARCH_STORAGE", "postgresql://me:secret@host/db")
    one = alone("print(sorted(os.environ)); report(1, val_accuracy='FLOODSEARCH_STORAGE' in os.environ)")
    one.train()
    assert '"val_accuracy": false' in one.output


# Its words


def test_placeholders_are_filled_and_no_shell_sees_them():
    """A value stays one word, whatever is in it."""
    command = "python 'my train.py' --flood={level} {{x}} {name} --sizes {sizes} {on}"
    assert placeholders(command) == ["level", "name", "sizes", "on"]
    values = {"level": 0.30000000000000004, "name": "a b; rm *", "sizes": (1, 2.5), "on": True, "ticket": 3}
    assert filled(command, values) == [
        "python", "my train.py", "--flood=0.3", "{x}", "a b; rm *", "--sizes", "1,2.5", "true"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("value", "word"),
    [
        (0.0, "0.0"), (1.0, "1.0"), (0.05, "0.05"), (1e-5, "0.00001"), (0.1 + 0.2, "0.3"), (-2.5, "-2.5"),
        (1e16, "10000000000000000.0"), (3, "3"), ("0", "0"),
    ],
)  # fmt: skip
def test_a_number_with_a_point_is_a_number_to_every_parser(value, word):
    """Parsers that look at the type take 0 for a whole number, and YAML takes 1e-05 for a text."""
    assert filled("{x}", {"x": value}) == [word]
    assert type(value)(word) == pytest.approx(value) if isinstance(value, float) else word == str(value)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("", "is empty"),
        ("x 'y", "No closing quotation"),
        ("x {level", "expected '}'"),
        ("x {level:.2f}", "is not a plain name"),
        ("x {level!r}", "is not a plain name"),
        ("x {}", "{} in '{}' is not a plain name"),
        ("x {a.b}", "is not a plain name"),
    ],
)
def test_a_command_that_cannot_be_filled_is_refused(command, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        placeholders(command)


def test_the_script_of_a_command_is_its_first_file(tmp_path):
    path = tmp_path / "train.py"
    path.touch()
    assert script_file(f"python -u {path} {{level}}") == path
    assert script_file("python -m train {level}") is None


# Whole studies


@sqlite
def test_a_command_is_halved_and_answered(make_study, here):
    """Verdicts are those of a quiet search, and no epoch is trained twice: what pauses is stopped, or ended.

    That is cheaper than the grid either way. Level 0 and the last level alive are not paused for nothing.
    """
    whole = make_study("whole", search={"pruner": "none"})
    work(whole, here, LeaveRequest())
    assert epochs_run(whole) == 5 * 2 * 12
    for pause in ("keep", "restart"):
        study = make_study(pause, script={"pause": pause})
        assert work(study, here, LeaveRequest()) == "all tickets are finished"
        found = latest(read_trials(study))
        assert {one.state for one in found.values()} == {"complete", "pruned"}
        for ticket, records in curves(study).items():
            assert records == [one for one in curves(whole)[ticket] if one.epoch <= found[ticket].epoch]
        [best] = [one for one in found.values() if one.state == "complete" and one.level > 0]
        assert answer(study).level == best.level == 0.4
        again = epochs_run(study) - sum(map(len, curves(study).values()))
        assert epochs_run(study) < epochs_run(whole)
        assert 0 < again < 2 * 12 if pause == "restart" else again == 0
        kept = {path.name: path.read_text() for path in (here.logs / pause).iterdir()}
        assert kept.keys() == {f"ticket-{ticket}-seed-{seed}.log" for ticket in found for seed in (0, 1)}
        assert kept["ticket-0-seed-0.log"].count("$ ") == 1
        starts = 3 if pause == "restart" else 1
        assert kept[f"ticket-{best.ticket}-seed-0.log"].count("$ ") == starts, "two rungs had rivals"
    assert not list(here.checkpoints.rglob("*.pt"))


@sqlite
def test_a_restart_that_does_not_pay_is_none(make_study, here):
    """Two levels, judged behind their middle: to go on with one of them would cost more than both."""
    study = make_study(levels={"count": 3}, halving={"first": 0.6}, script={"pause": "restart"})
    work(study, here, LeaveRequest())
    assert epochs_run(study) == 3 * 2 * 12
    assert {text.count("$ ") for text in outputs(here).values()} == {1}


@sqlite
def test_the_range_of_a_command_comes_from_its_validation_losses(make_study, here):
    """The epochs of the pilot are not trained again: its processes are those of level 0."""
    study = make_study(levels={"high": "auto", "count": 3}, search={"pruner": "none"})
    assert work(study, here, LeaveRequest()) == "all tickets are finished"
    assert min(study.reread().pilot.minima) > 0.3
    assert epochs_run(study) == 3 * 2 * 12
    assert {text.count("$ ") for text in outputs(here).values()} == {1}
    without = make_study("without", TRAIN.replace("val_loss", "loss"), levels={"high": "auto", "count": 3})
    assert 'levels.high = "auto" needs a validation loss' in work(without, here, LeaveRequest())


@sqlite
def test_settings_are_words_of_the_command_and_may_be_searched(make_study, here):
    study = make_study(
        arguments=" --rate {rate} --kind {kind}",
        options={"kind": "a b"},
        training={"rate": {"choices": [0.1, 0.2]}},
        levels={"count": 2},
        search={"pruner": "none"},
    )
    work(study, here, LeaveRequest())
    begun = [text.splitlines()[1] for _, text in sorted(outputs(here).items())]
    assert sorted(set(begun)) == ["begins --rate 0.1 --kind a b", "begins --rate 0.2 --kind a b"]
    assert len(begun) == 2 * 2 * 2


@sqlite
def test_a_run_has_a_name_and_a_folder_of_its_own(make_study, here):
    """The folder is there when the command begins, stays over attempts, and goes with the study's files."""
    study = make_study(
        source=HEAD
        + """
from pathlib import Path
ticket, run, folder = rest
print(ticket, run)
tries = Path(folder) / "tries"
tries.write_text((tries.read_text() if tries.exists() else "") + "x")
if level == 0 and seed == 0 and tries.read_text() == "x": sys.exit("once")
for epoch in range(1, epochs + 1): report(epoch, val_accuracy=0.5 + level + seed / 10)
""",
        arguments=" {ticket} {run} {folder}",
        levels={"count": 2},
        search={"pruner": "none"},
    )
    fast = replace(here, beat_seconds=0.1)
    assert work(study, fast, LeaveRequest()) == "all tickets are finished"
    folders = here.checkpoints / study.folder / "runs"
    runs = {f"ticket-{ticket}-seed-{seed}" for ticket in (0, 1) for seed in (0, 1)}
    assert {path.name for path in folders.iterdir()} == {f"{run}-epochs-12" for run in runs}
    assert (folders / "ticket-0-seed-0-epochs-12" / "tries").read_text() == "xx"
    for run, text in outputs(here).items():
        assert f"\n{run.split('-')[1]} {run}\n" in text
    (folders / "mine").mkdir()
    (folders / "ticket-9-seed-0-epochs-1").symlink_to(here.logs)
    files = files_at(here.checkpoints).within(study.folder)
    assert remove_files(files) == ["runs/mine", "runs/ticket-9-seed-0-epochs-1"]
    assert list(here.logs.rglob("*.log"))


def test_check_shows_the_command_of_the_first_run(make_spec, write_script):
    """As it will be called, so that a parser's complaint can be tried by hand."""
    spec = make_spec(
        task=None,
        name="tiny",
        command=write_script(arguments=" --rate {rate} --out {folder} --as {run}-{ticket} --on {device}"),
        options={**STUDY["options"], "rate": {"choices": [0.0, 0.1]}},
        training={"epochs": 12, "seeds": [7]},
    )
    assert str(first_command(spec)).endswith(
        "train.py --flood=0.0 --seed 7 --epochs 12 --rate 0.0 --out "
        "'{checkpoints}/tiny/.../runs/ticket-0-seed-7-epochs-12' --as ticket-0-seed-7-0 --on '{device}'"
    )


@sqlite
def test_a_folder_of_a_run_needs_a_folder_for_checkpoints(make_study, here):
    study = make_study(arguments=" {folder}")
    away = replace(here, checkpoints="memory://bucket")
    with pytest.raises(
        UsageError, match="those are at memory://bucket; give a folder with --checkpoints, or"
    ):
        work(study, away, LeaveRequest())


@sqlite
def test_stopped_processes_end_with_their_worker(make_study, here, eventually):
    """A worker that is asked to leave hands its tickets back, and nothing of them goes on."""
    leave = LeaveRequest()
    study = make_study(source=HEAD + GATED.replace("epoch == 2", "epoch == 2 and level > 0"))
    stopped = []

    def look():
        stopped[:] = [pid_in(text) for text in outputs(here).values() if '"epoch": 2' in text]
        if len(stopped) == 4 and sum(state_of(pid) == "T" for pid in stopped) > 1:
            leave.ask("enough")
            return True
        return False

    watcher = threading.Thread(target=eventually, args=(look, "two stopped processes"))
    watcher.start()
    assert work(study, here, leave) == "enough"
    watcher.join()
    assert not any(map(running, stopped))


def test_script_settings_are_checked(make_spec, write_script):
    """Each with what is wrong and what to write."""
    with pytest.raises(StudyFileError) as error:
        make_spec(
            task=None,
            command=write_script(arguments=" --run {run}"),
            options={**STUDY["options"], "run": 1},
            script={"pause": "never", "first_epoch": 2},
        )
    told = str(error.value)
    assert "a setting 'run' of yours, but {run} is what floodsearch says; give it another name" in told
    assert "script.pause" in told
    assert "script.first_epoch" in told
    spec = make_spec(task=None, command=write_script(), options=STUDY["options"], script={"pause": "keep"})
    other = spec.model_copy(update={"script": ScriptSettings(pause="restart", stopped=3)})
    assert differences(spec, other) == [], "it changes no result"
    with pytest.raises(StudyFileError, match="script: says how a command is run, and there is none; remove"):
        make_spec(script={"pause": "keep"})


@sqlite
@pytest.mark.parametrize("pruner", ["halving", "none"])
@pytest.mark.parametrize(
    ("unused", "message"),
    [
        (
            "seed",
            "seed 0 and seed 1 gave the same run, to the last digit: let the command seed by {seed} all",
        ),
        ("level", "level 0.8 gave the runs of level 0, to the last digit: let the command flood its loss at"),
    ],
)
def test_a_placeholder_that_changes_nothing_stops_the_study(make_study, here, unused, message, pruner):
    """Seeds at their second run; levels by the highest, trained first under halving where none matters."""
    study = make_study(source=HEAD + f"{unused} = 0\n" + BODY, search={"pruner": pruner})
    assert message in work(study, here, LeaveRequest())
    most = 2 * 12 if unused == "seed" else 5 * 2 * 2 + 4 * 12 if pruner == "halving" else 5 * 2 * 12
    assert epochs_run(study) <= most


@sqlite
def test_a_command_that_fails_stops_the_study(make_study, here):
    """Each ticket says why, with the last lines of its errors."""
    study = make_study(source=HEAD + "sys.exit('disk full')")
    fast = WorkerSettings(device="cpu", checkpoints=here.checkpoints, logs=here.logs, beat_seconds=0.1)
    reason = work(study, fast, LeaveRequest())
    assert reason.startswith("3 tickets in a row failed, the last with LoopError: the command failed with")
    assert "disk full" in reason
    assert {one.cause for one in read_trials(study) if one.state == "failed"} == {"error"}


@sqlite
def test_a_program_that_is_not_here_is_refused_before_the_worker_enters(make_study, here, monkeypatch):
    study = make_study()
    monkeypatch.setattr("shutil.which", lambda _: None)
    with pytest.raises(TaskError, match="is no program that can be found from here"):
        work(study, here, LeaveRequest())
    assert tables.read_workers(study.database, study.uuid) == []


@sqlite
def test_a_killed_worker_takes_its_script_with_it(storage_url, make_study, crowd, eventually, tmp_path):
    """By kill -9, with a child that has left its group and is deaf; its last words are in the log."""
    study = make_study(
        source=HEAD
        + """
deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); signal.pause()"
child = subprocess.Popen([sys.executable, "-c", deaf], start_new_session=True, stdout=subprocess.PIPE)
child.stdout.readline()

def last_words(*_):
    report(2, val_accuracy=0.5)
    os._exit(0)

signal.signal(signal.SIGTERM, last_words)
report(1, val_accuracy=0.5, child=child.pid, pid=os.getpid())
while True: signal.pause()
"""
    )
    workers = crowd(WORKER, 1, storage_url, str(tmp_path))
    kept = tmp_path / "logs" / "tiny" / "ticket-0-seed-0.log"
    eventually(lambda: kept.exists() and '"pid"' in kept.read_text(), "the first epoch")
    os.kill(workers.pids[0], signal.SIGKILL)
    assert workers.answers() == [None]
    child = int(re.search(r'"child": (\d+)', kept.read_text())[1])
    eventually(lambda: not running(pid_in(kept.read_text())), "the end of the script")
    eventually(lambda: not running(child), "the end of its child")
    assert '"epoch": 2' in kept.read_text()
    assert study.name == "tiny"


WORKER = """
from dataclasses import replace
from pathlib import Path
from floodsearch.worker.leave import LeaveRequest
from floodsearch.worker.settings import WorkerSettings
from floodsearch.storage.database import open_database
from floodsearch.storage.studies import find_study
from floodsearch.study.trust import trust_in
from floodsearch.worker.work import work

def main(index, url, folder):
    folder = Path(folder)
    settings = WorkerSettings(device="cpu", checkpoints=folder / "checkpoints", logs=folder / "logs")
    study = find_study(open_database(url), "tiny")
    work(replace(study, trusts=trust_in(study.spec)), settings, LeaveRequest())
"""
