"""Whatever code of the user's own raises, wherever: its ticket fails with it, and its worker goes on."""

from __future__ import annotations

import signal

import pytest
import torch

from floodsearch import queue
from floodsearch.errors import TaskError, first_line, named
from floodsearch.queries import status
from floodsearch.storage import tables
from floodsearch.storage.studies import put_study
from floodsearch.storage.trial_records import read_trials
from floodsearch.usercode.reference import file_of, find_code
from floodsearch.worker.heartbeat import Heartbeat
from floodsearch.worker.leave import LeaveRequest
from floodsearch.worker.settings import WorkerSettings
from floodsearch.worker.trainers import default_engine
from floodsearch.worker.work import work

pytestmark = pytest.mark.parametrize("storage_url", ["sqlite"], indirect=True)

LOOP = """
import sys
import torch

class Broken(Exception):
    def __str__(self):
        raise ValueError("no text either")

def deep(n):
    return deep(n + 1)

def train(run):
    for _ in run.epochs():
        if run.level == 0.25:
            {raises}
        run.flood(torch.tensor(0.2 + run.seed / 10))
        run.report(val_accuracy=0.5)
"""
TASK = """
import torch
from torch import nn
from floodsearch.tasks.task import Data, Recipe, Split, Task

class Model(nn.Linear):
    '''One that cannot be copied, and says so in its own words.'''
    def get_extra_state(self):
        {raises}
        return torch.zeros(1)
    def set_extra_state(self, state):
        pass

def task():
    def data(seed):
        x = torch.randn(20, 2, generator=torch.Generator().manual_seed(seed))
        split = Split(x, (x.sum(dim=1) > 0).long())
        return Data(split, split, split)

    return Task(data=data, model=lambda: Model(2, 2), recipe=Recipe(batch_size=10))
"""


@pytest.fixture
def leave():
    """Give a reason to leave that handles SIGINT, as the worker of the command line does."""
    before = signal.getsignal(signal.SIGINT)
    one = LeaveRequest()
    one.on_signals(signal.SIGINT, grace=20)
    yield one
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def here(tmp_path):
    return WorkerSettings(device="cpu", threads=1, checkpoints=tmp_path / "checkpoints")


@pytest.fixture
def make_study(database, make_spec, write_code):
    """Put a study of a module's `train` or `task`, filled."""

    def make(source, function="train", **changes):
        reference = f"{write_code(source)}:{function}"
        code = {"task": reference} if function == "task" else {"task": None, "objective": reference}
        study = put_study(database, make_spec(options=None, **code, **changes))
        queue.fill(study)
        return study

    return make


def of_level(study, level):
    return [one for one in read_trials(study) if one.level == level]


@pytest.mark.parametrize(
    ("raises", "reason"),
    [
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("raise GeneratorExit('none')", "GeneratorExit: none"),
        ("raise BaseException('anything')", "BaseException: anything"),
        ("sys.exit('bad option')", "SystemExit: bad option"),
        ("raise MemoryError", "MemoryError"),
        ("deep(0)", "RecursionError: maximum recursion depth exceeded"),
        ("raise Broken", "Broken"),
        ("raise ValueError('\\n\\n  of several\\nlines')", "ValueError: of several"),
    ],
)
def test_an_error_of_any_kind_fails_its_ticket(make_study, here, leave, raises, reason):
    """As an attempt of three, in its own words and with its line; other tickets are trained to their ends."""
    study = make_study(LOOP.format(raises=raises))
    assert work(study, here, leave) == "all tickets are finished"
    attempts = of_level(study, 0.25)
    assert [(one.state, one.cause) for one in attempts] == [("failed", "error")] * 3
    assert all(one.reason.startswith(f"{reason} (users_") for one in attempts)
    assert {one.state for one in read_trials(study) if one.level != 0.25} == {"complete"}


def test_a_ctrl_c_ends_the_worker_with_nothing_in_its_hands(make_study, here):
    """Where nobody else handles it, a KeyboardInterrupt may be one: the ticket is handed back, uncounted."""
    study = make_study(LOOP.format(raises="raise KeyboardInterrupt"))
    with pytest.raises(KeyboardInterrupt):
        work(study, here, LeaveRequest())
    [one] = of_level(study, 0.25)
    assert (one.state, one.handed_back) == ("waiting", 1)
    [worker] = tables.read_workers(study.database, study.uuid)
    assert (worker.left is not None, worker.training) == (True, ())


def test_a_model_that_cannot_be_copied_fails_its_tickets(make_study, here):
    """A state is copied before an epoch, from which levels fork: outside of any run."""
    study = make_study(TASK.format(raises='raise RuntimeError("not to be copied")'), "task")
    assert work(study, here, LeaveRequest()).startswith(
        "3 tickets in a row failed, the last with RuntimeError: not"
    )
    assert all(one.reason.startswith("RuntimeError: not to be copied (users_") for one in read_trials(study))


def test_what_a_trainer_raises_outside_of_its_runs_fails_its_tickets(make_study, here):
    """Whoever's fault it is: a worker that died of it would only come to it again."""

    class Members:
        def train(self, until, note):
            raise GeneratorExit

    study = make_study(LOOP.format(raises="pass"))
    work(study, here, LeaveRequest(), lambda group: Members())
    assert {(one.state, one.cause) for one in read_trials(study)} == {("failed", "error")}
    assert all(one.reason.startswith("GeneratorExit (") for one in read_trials(study))


def test_a_model_that_cannot_be_made_chooses_no_engine(make_study):
    """On a GPU one is looked at before there are tickets: these fail with its error, not the worker."""
    study = make_study(TASK.format(raises="pass").replace("Model(2, 2)", "1 / 0"), "task")
    assert default_engine(study.trusted, torch.device("cuda")) == "loop"


def test_a_pilot_that_is_interrupted_by_its_loop_stops_the_study(make_study, here, leave):
    """With the loop's own error as the reason."""
    source = LOOP.replace("run.level == 0.25", "True").format(raises="raise KeyboardInterrupt")
    study = make_study(source, levels={"high": "auto", "count": 3})
    assert work(study, here, leave).startswith("the pilot failed: KeyboardInterrupt (users_")
    assert status(study).stopped.startswith("the pilot failed: KeyboardInterrupt (users_")


def test_whatever_ends_a_heartbeat_hands_back(make_study, here):
    """Nobody has to wait until the worker is missed."""
    study = make_study(LOOP.format(raises="pass"))
    worker = tables.enter_worker(study.database, study.uuid, host="h", pid=1, device="cpu", versions={})
    with pytest.raises(ZeroDivisionError), Heartbeat(study, worker, here, LeaveRequest()):  # noqa: PT012
        queue.take(study, worker)
        raise ZeroDivisionError
    assert {one.state for one in read_trials(study)} == {"waiting"}


@pytest.mark.usefixtures("database")
def test_a_module_that_raises_anything_is_no_task(write_code):
    """And looking for its file raises nothing, as nothing is imported for that."""
    module = write_code("raise GeneratorExit('no')")
    with pytest.raises(TaskError, match="cannot be imported: GeneratorExit: no; run it in Python"):
        find_code(f"{module}:train", "a training loop")
    assert file_of(f"{module}.inner:train") is None


def test_an_error_is_named_in_one_line(storage_url):
    """The first one with a word in it; its name alone where it says nothing."""
    del storage_url
    assert named(ValueError("\n a \n b")) == "ValueError: a"
    assert first_line(ValueError("\n")) == named(ValueError()) == "ValueError"
