"""From Python: a function is searched with, the answer is printed and drawn, the data are DataFrames."""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import matplotlib
import nbclient
import nbformat
import pytest

import floodsearch
from floodsearch.errors import StudyChangedError, TaskError, UsageError
from floodsearch.findings import BestLevel
from floodsearch.launchers import api
from floodsearch.report.export import CURVE_COLUMNS
from floodsearch.report.text import best_text
from floodsearch.storage.database import open_database
from floodsearch.storage.studies import find_study
from floodsearch.storage.trial_records import read_trials
from floodsearch.study.trust import trust_by
from floodsearch.usercode.function import Function

matplotlib.use("Agg")

NOTEBOOK = Path(__file__).parents[1] / "studies" / "examples" / "notebook.ipynb"
STUDY: dict[str, Any] = {
    "name": "mine",
    "levels": {"high": 0.6, "count": 4},
    "training": {"epochs": 6, "seeds": 2},
}
SMALL: dict[str, Any] = {"levels": {"high": 0.6, "count": 2}, "training": {"epochs": 3, "seeds": 2}}
"""For a study of which only matters that it is trained, or that it is not."""
LOOP = '''
import torch
from torch import nn

def train(run, each_epoch=lambda run, epoch: None):
    """Twenty points and two weights."""
    torch.manual_seed(run.seed)
    inputs = torch.randn(20, 2)
    labels = (inputs.sum(dim=1) > 0).long()
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    run.restore(model=model, optimizer=optimizer)
    for epoch in run.epochs():
        each_epoch(run, epoch)
        loss = run.flood(nn.functional.cross_entropy(model(inputs), labels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            run.report(val_accuracy=(model(inputs).argmax(dim=1) == labels).float().mean())
'''
space: dict[str, Any] = {}
exec(LOOP, space)
train = space["train"]


@pytest.fixture
def launch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., floodsearch.Answer]:
    """Launch a study with a function, in a folder of its own, which is the current one."""
    monkeypatch.chdir(tmp_path)

    def launch(objective: Callable[..., object], **changes: Any) -> floodsearch.Answer:
        options = {name: changes.pop(name) for name in ("progress", "workers", "logs") if name in changes}
        return floodsearch.launch({**STUDY, **changes}, objective=objective, devices="cpu", **options)

    return launch


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> tuple[floodsearch.Answer, str]:
    """Give the answer of a finished study, and the storage that it is in."""
    folder = tmp_path_factory.mktemp("mine")
    storage = f"sqlite:///{folder}/floodsearch.db"
    places = {"storage": storage, "checkpoints": folder / "checkpoints", "logs": folder / "logs"}
    return floodsearch.launch(STUDY, objective=version("none"), devices="cpu", **places), storage


def on_epoch(call: Callable[[Any, int], None]) -> Callable[[Any], None]:
    """Return a loop that no other process can import, and that calls something in each of its epochs."""

    def loop(run: Any) -> None:
        train(run, call)

    return loop


RATE = 0.5


def used() -> float:
    return RATE


def version(change: str) -> Callable[[Any], None]:
    """Return one of three loops of one name; two of them differ in a comment only."""
    if change == "comment":

        def loop(run: Any) -> None:
            train(run)  # as before

            used()
    elif change == "code":

        def loop(run: Any) -> None:
            used()
            train(run)
    else:

        def loop(run: Any) -> None:
            train(run)
            used()

    return loop


def states() -> list[str]:
    with open_database("sqlite:///floodsearch.db", read_only=True) as database:
        return sorted(one.state for one in read_trials(find_study(database, "mine")))


# How a function gets to whoever calls it


def test_a_function_that_others_can_import_is_named_to_them(write_code):
    """A function of a module is its reference; one that no name leads to is of this process, and why."""
    module = write_code(LOOP)
    own = Function.of(__import__(module).train)
    assert (own.reference, own.why_here, own.name) == (f"{module}:train", None, "train")
    sys.modules[module].train = lambda run: None
    replaced = Function.of(own.call)
    assert (replaced.reference, replaced.why_here) == (
        "<function>:train",
        "is no function that its module has by that name",
    )
    reasons = {
        "is a lambda": lambda run: None,
        "is defined inside of another function": version("none"),
        "is defined in a notebook, or in the program itself": _in_main(),
        "is no function that its module has by that name": functools.partial(train),
    }
    assert {Function.of(one).why_here: one for one in reasons.values()} == reasons
    with pytest.raises(UsageError, match="objective is 3, which cannot be called"):
        Function.of(3)


def _in_main() -> Callable[..., object]:
    def loop(run: Any) -> None:
        del run

    loop.__module__, loop.__qualname__ = "__main__", "loop"
    return loop


def test_a_function_of_this_process_is_searched_as_one_that_workers_import(launch, write_code):
    """A closure is called here by one worker; the answer is that of workers that import the same function."""
    seen: list[int] = []
    loop = on_epoch(lambda run, epoch: seen.append(os.getpid()))
    here = launch(loop)
    assert set(seen) == {os.getpid()}
    trained = len(seen)
    assert launch(loop) == here
    assert len(seen) == trained
    module = write_code(LOOP)
    other = launch(__import__(module).train, name="theirs", workers=1)
    differ = {
        field.name for field in fields(BestLevel) if getattr(here, field.name) != getattr(other, field.name)
    }
    assert differ == {"study"}


def test_only_one_worker_calls_a_function_of_this_process(launch):
    """More workers are refused with the reason and what to do, before anything is made."""
    with pytest.raises(UsageError, match=r"workers is 2, but '.*loop' is defined inside of another function"):
        launch(version("none"), workers=2)
    assert not list(Path().iterdir())


def test_a_study_has_one_objective(launch):
    """A function beside an objective, a task or in a spec is refused."""
    with pytest.raises(UsageError, match="names an objective, 'a:b', and a function was given"):
        floodsearch.launch({**STUDY, "objective": "a:b"}, objective=train)
    with pytest.raises(UsageError, match="given together with task"):
        launch(version("none"), task="two_gaussians")


def test_another_version_of_a_function_is_found_out(launch, monkeypatch):
    """A study goes on with its function, whatever the comments in it; one that changed is refused.

    Also where another function that it calls has changed, or a number.
    """
    answer = launch(version("none"), **SMALL)
    assert launch(version("comment"), **SMALL) == answer
    refused = r"trained by another version of 'version.<locals>.loop': choose another name"
    with pytest.raises(UsageError, match=refused):
        launch(version("code"), **SMALL)
    for name, other in (("RATE", 0.25), ("used", lambda: 0.5)):
        if name == "used":
            other.__module__ = __name__
        with monkeypatch.context() as patch:
            patch.setattr(sys.modules[__name__], name, other)
            with pytest.raises(UsageError, match=refused):
                launch(version("none"), **SMALL)
    with pytest.raises(StudyChangedError, match="objective: "):
        launch(train, **SMALL)


def test_no_other_process_trains_a_study_of_a_function(launch):
    """`work NAME`, with trust or without, says in one line where the function is."""
    launch(version("none"), **SMALL)
    with open_database("sqlite:///floodsearch.db") as database:
        for tokens in ([], ["<function>:loop@" + "0" * 32]):
            with pytest.raises(TaskError, match="only the process that has it can train it"):
                _ = find_study(database, "mine", trust_by(tokens)).trusted


# Errors and Ctrl-C


def test_the_first_error_of_a_function_is_raised_as_it_is(launch):
    """An error before any level is at its end reaches the caller; mended, the same study goes on."""

    def broken(run: Any, epoch: int) -> None:
        if epoch == 2:
            raise LookupError("no such column")

    with pytest.raises(LookupError, match="no such column"):
        launch(on_epoch(broken), **SMALL)
    assert set(states()) == {"waiting"}
    assert launch(on_epoch(lambda run, epoch: None), **SMALL).finished


def test_a_function_that_trained_before_fails_single_levels(launch):
    """After a level is at its end an error is of the level, as in other workers."""

    def broken(run: Any, epoch: int) -> None:
        if run.level > 0.3:
            raise LookupError("no such column")

    answer = launch(on_epoch(broken), search={"pruner": "none"}, training=SMALL["training"])
    assert (answer.trials.complete, answer.trials.failed) == (2, 2)


@pytest.mark.parametrize("signals", [1, 2])
def test_ctrl_c_hands_back_and_the_same_call_goes_on(launch, mine, signals):
    """One Ctrl-C ends the epoch, two the function at once; launching again gives the answer of peace."""
    peace, _ = mine
    epochs: list[tuple[int, float, int]] = []

    def interrupting(run: Any, epoch: int) -> None:
        epochs.append((run.seed, run.level, epoch))
        if len(epochs) == 9:
            for _ in range(signals):
                os.kill(os.getpid(), signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="'mine' is handed back; the same call goes on"):
        launch(on_epoch(interrupting))
    assert signal.getsignal(signal.SIGINT) is handler
    assert "running" not in states()
    answer = launch(on_epoch(interrupting))
    unlike = {"study", "epochs_run", "cost"}
    for name in {field.name for field in fields(BestLevel)} - unlike:
        assert getattr(answer, name) == getattr(peace, name), name
    again = len(epochs) - len(set(epochs))
    assert again <= (0 if signals == 1 else 3)


# What is shown


def test_progress_is_shown_where_somebody_sees_it(launch, capsys, monkeypatch):
    """Nothing without a terminal or a notebook, nor with `progress=False`; else where the study stands."""
    launch(version("none"))
    monkeypatch.setattr(api, "seen", lambda: True)
    launch(version("none"), name="silent", progress=False)
    assert "epochs" not in capsys.readouterr().err
    launch(version("none"), name="told")
    assert "floodsearch: epochs" in capsys.readouterr().err


def test_the_answer_can_be_printed_drawn_and_tabled(mine):
    """Its text is that of the command line; the axes show curve, band and level 0; the table is the curve."""
    answer, storage = mine
    assert answer == floodsearch.best("mine", storage=storage)
    assert str(answer) == best_text(answer)
    table = answer.curve()
    assert list(table["level"]) == [0.0, *answer.tried]
    assert (table["low"] <= table["mean"]).all()
    assert (table["mean"] <= table["high"]).all()
    axes = answer.plot()
    assert "training loss" in axes.get_xlabel()
    assert axes.get_ylabel() == "val_accuracy, mean of 2 seeds"
    told = " ".join(text.get_text() for text in axes.get_legend().get_texts())
    for part in ("smooth curve", "90 % band", "level 0, no flooding", f"best level, {answer.level:g}"):
        assert part in told
    assert answer.plot(axes) is axes
    matplotlib.pyplot.close("all")


def test_the_data_are_those_of_the_export(mine):
    """`trials` has a row a trial, `curves` one for each ticket, seed and epoch."""
    answer, storage = mine
    trials, curves = (of("mine", storage=storage) for of in (floodsearch.trials, floodsearch.curves))
    assert list(trials["level"].sort_values()) == pytest.approx([0.0, 0.2, 0.4, 0.6])
    assert (trials["state"] == "complete").sum() == answer.trials.complete
    assert tuple(curves.columns) == CURVE_COLUMNS
    assert not curves.duplicated(["ticket", "seed", "epoch"]).any()


def test_what_is_not_installed_is_said(mine, monkeypatch):
    """Without pandas or matplotlib, one line says what to install."""
    answer, _ = mine
    monkeypatch.setitem(sys.modules, "pandas", None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UsageError, match="needs pandas: pip install pandas"):
        answer.curve()
    with pytest.raises(UsageError, match="needs matplotlib: pip install matplotlib"):
        answer.plot()


def test_an_answer_without_a_curve_is_not_drawn(launch):
    """Where no level above 0 was compared, `plot` says so."""
    answer = launch(on_epoch(lambda run, epoch: None), levels={"high": 1e-6, "count": 2})
    with pytest.raises(UsageError, match="'mine' has no curve to draw"):
        answer.plot()


def test_the_notebook_runs(tmp_path):
    """The example runs from its first cell to its last in a kernel, and shows progress, answer and plots."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    client = nbclient.NotebookClient(notebook, timeout=200, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    data = [json.dumps(one.get("data", {})) for one in shown]
    assert any("text/html" in one and "4 complete" in one for one in data)  # the progress, changed in place
    assert any("the best flood level is" in one for one in data)
    assert sum("image/png" in one for one in data) == 2


def test_its_loggers_write_into_the_folder_of_the_logs_that_was_given(launch, tmp_path):
    """As those of workers do."""
    pytest.importorskip("tensorboard")
    launch(version("none"), log={"to": "tensorboard"}, logs=tmp_path / "said")
    assert len([*tmp_path.glob("said/mine/*/tensorboard/level-0-ticket-0-seed-0/events*")]) > 0
    assert not (tmp_path / "floodsearch-logs").exists()
