"""A try of a study's code: each trap is found in a few short runs, and clean code is told nothing."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from floodsearch.catalog import known
from floodsearch.cost.outlook import look_ahead
from floodsearch.study.reader import parse
from floodsearch.tryout import rehearse
from floodsearch.tryout.folder import Mirror
from floodsearch.tryout.rehearse import try_out
from floodsearch.tryout.result import Finding
from floodsearch.tryout.source import carried, deciding

LOOP = """
import json
import random

import numpy as np
import torch
from torch import nn
#module

class Stopper:
    def __init__(self):
        self.best, self.bad = 0.0, 0

    def stops(self, value):
        if value > self.best:
            self.best, self.bad = value, 0
        else:
            self.bad += 1
        return self.bad > 50


def train(run):
    torch.manual_seed(run.seed)
    x = torch.randn(120, 4)
    y = ((x.sum(dim=1) > 0) ^ (torch.rand(120) < 0.1)).long()
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 30)
    generator = torch.Generator().manual_seed(run.seed)
    history, step, last = [], 0, None
    #before
    run.restore(model=model, optimizer=optimizer, scheduler=scheduler, generator=generator)
    for epoch in run.epochs():
        for batch in torch.randperm(60, generator=generator).split(20):
            loss = nn.functional.cross_entropy(model(x[batch]), y[batch])
            loss = run.flood(loss)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            if step % 10 == 0:
                print(step)
        scheduler.step()
        with torch.no_grad():
            outputs = model(x[60:])
        accuracy = (outputs.argmax(dim=1) == y[60:]).float().mean().item()
        history.append(accuracy)
        #in epoch
        run.report(val_accuracy=accuracy, val_loss=nn.functional.cross_entropy(outputs, y[60:]).item())
    print(history)
"""
STUDY = {
    "name": "tried",
    "objective": "MODULE:train",
    "levels": {"high": 0.6, "count": 4},
    "training": {"epochs": 40, "seeds": 2},
}

WITHOUT = {key: value for key, value in STUDY.items() if key != "objective"}


@pytest.fixture
def tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Finding]]:
    """Return (replacements in the loop, more of the study) to the findings."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))

    def find(*changes: tuple[str, str], **study: object) -> list[Finding]:
        text = LOOP
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        module = f"{tmp_path.name.replace('-', '_')}_loop"
        (tmp_path / f"{module}.py").write_text(text)
        spec = parse({**STUDY, "objective": f"{module}:train", **study}, known())
        return list(try_out(spec, (tmp_path,), look_ahead(spec), lambda text: None).findings)

    return find


TRAPS = {
    "scheduler": ("pause", "scheduler", (", scheduler=scheduler", "")),
    "optimizer": ("pause", "optimizer", (", optimizer=optimizer", "")),
    "scaler": (
        "pause",
        "scaler",
        ("#before", "scaler = torch.amp.GradScaler('cpu')"),
        ("loss.backward()", "scaler.scale(loss).backward()"),
        ("optimizer.step()", "scaler.step(optimizer); scaler.update()"),
    ),
    "generator": ("pause", "generator", (", generator=generator)\n    for", ")\n    for")),
    "numpy generator": (
        "pause",
        "rng",
        ("#before", "rng = np.random.default_rng(run.seed)"),
        ("loss = run.flood(loss)", "loss = run.flood(loss * (1 + rng.random()))"),
    ),
    "counter": (
        "pause",
        "stopper.best",
        ("#before", "stopper = Stopper()"),
        ("#in epoch", "stopper.stops(accuracy)"),
    ),
    "best": (
        "pause",
        "best",
        ("#before", "best = 0.0"),
        ("#in epoch", "if accuracy > best:\n            best = accuracy"),
    ),
    "global list": (
        "global state",
        "SEEN",
        ("#module", "SEEN = []"),
        ("#in epoch", "SEEN.append(accuracy)\n        if max(SEEN) > accuracy: print('worse')"),
    ),
    "global model": (
        "global state",
        "model of another run",
        ("#module", "MODEL = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))"),
        ("model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))", "model = MODEL"),
    ),
    "global generator": (
        "global state",
        "generator of another run",
        ("#module", "ORDER = torch.Generator().manual_seed(0)"),
        ("generator = torch.Generator().manual_seed(run.seed)", "generator = ORDER"),
    ),
    "unseeded": (
        "unseeded",
        "x",
        ("#before", "x = x + torch.tensor(np.random.default_rng().normal(size=4)).float()"),
    ),
    "unseeded evaluation": (
        "unseeded",
        "val_loss",
        ("outputs = model(x[60:])", "outputs = model(x[60:] + random.SystemRandom().random())"),
    ),
    "seed": ("seed not used", "run.seed", ("manual_seed(run.seed)", "manual_seed(42)")),
    "no flood": ("level not used", "run.flood() was not called", ("loss = run.flood(loss)", "pass")),
    "flood dropped": ("level not used", "although", ("loss = run.flood(loss)", "run.flood(loss)")),
    "level in the rate": (
        "not only flooded",
        "first batch",
        ("#before", "model[0].weight.data *= 1 + run.level"),
    ),
    "evaluation": (
        "evaluation flooded",
        "val_loss",
        (
            "val_loss=nn.functional.cross_entropy(outputs, y[60:]).item()",
            "val_loss=((nn.functional.cross_entropy(outputs, y[60:]) - run.level).abs() + run.level).item()",
        ),
    ),
    "metric missing": ("fails", "val_accuracy", ("val_accuracy=accuracy, ", "")),
    "metric name": ("fails", "'accuracy'", ("val_accuracy=accuracy", "accuracy=accuracy")),
    "percentage": ("percentage", "/ 100", ("val_accuracy=accuracy", "val_accuracy=100 * accuracy")),
    "constant": ("constant", "val_accuracy", ("val_accuracy=accuracy", "val_accuracy=0.5")),
    "file": ("same file", "model.pt", ("#in epoch", "torch.save(model.state_dict(), 'model.pt')")),
    "no restore": (
        "no restore",
        "run.restore",
        ("run.restore(model=model, optimizer=optimizer, scheduler=scheduler, generator=generator)", ""),
    ),
    "arguments": (
        "fails",
        "",
        ("#before", "import argparse; argparse.ArgumentParser().parse_args(['--no'])"),
    ),
}


@pytest.mark.parametrize("name", TRAPS)
def test_a_trap_is_found(name: str, tried: Callable[..., list[Finding]]) -> None:
    """It is the only finding, of its kind, and names what is to be changed."""
    kind, word, *changes = TRAPS[name]
    found = tried(*changes)
    assert [one.kind for one in found] == [kind], found
    assert word in found[0].text


CLEAN = {
    "plain": (),
    "own file": (("#in epoch", "torch.save(model.state_dict(), f'{run.name}.pt')"),),
    "cache": (
        ("#module", "CACHE = {}"),
        (
            "#before",
            "if run.seed not in CACHE:\n        CACHE[run.seed] = x.clone()\n    x = CACHE[run.seed]",
        ),
    ),
    "printed": (("#before", "total = 0.0"), ("#in epoch", "total += accuracy\n        print(total)")),
    "reset": (
        ("#before", "total = 0"),
        ("#in epoch", "total = accuracy\n        if total > 0.5: print(total)"),
    ),
    "warm-up": (("loss = run.flood(loss)", "loss = run.flood(loss) if epoch > 1 else loss"),),
    "global counter": (("#module", "COUNT = [0]"), ("#before", "COUNT[0] += 1; print(COUNT)")),
}


@pytest.mark.parametrize("name", CLEAN)
def test_clean_code_is_told_nothing(name: str, tried: Callable[..., list[Finding]]) -> None:
    """Nor is code that keeps what does no harm."""
    assert tried(*CLEAN[name]) == []


COMMAND = """
import json, random, sys
level, seed, epochs = float(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
draw = random.Random(seed).random
weight = draw()
for epoch in range(1, epochs + 1):
    loss = (1 - weight) ** 2 + 0.1 * draw()
    weight += (0.1 + draw()) * (1 - weight) * (1 if loss > level else -1)
    accuracy = max(0.0, min(1.0, weight / 2))
    print(json.dumps({"epoch": epoch, "val_accuracy": accuracy, "val_loss": (1 - weight) ** 2}), flush=True)
"""
COMMANDS = {
    "clean": (None, ""),
    "seed": ("seed not used", "{seed}", ("random.Random(seed)", "random.Random(42)")),
    "level": ("level not used", "{level}", ("loss > level", "loss > 0")),
    "draws": ("unseeded", "{seed}", ("random.Random(seed)", "random.Random()")),
    "percentage": ("percentage", "/ 100", ('"val_accuracy": accuracy', '"val_accuracy": 100 * accuracy')),
    "evaluation": (
        "evaluation flooded",
        "val_loss",
        ('"val_loss": (1 - weight) ** 2', '"val_loss": abs((1 - weight) ** 2 - level) + level'),
    ),
    "file": ("same file", "out.txt", ("draw =", "open('out.txt', 'w').write(str(level + seed)); draw =")),
    "arguments": ("fails", "exit status 2", ("draw =", "sys.exit(2); draw =")),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_tried(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By what it prints, in a folder of the try's own: what it writes there is gone afterwards."""
    kind, word, *changes = COMMANDS[name]
    text = COMMAND
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "script.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    command = f"{sys.executable} script.py {{level}} {{seed}} {{epochs}}"
    spec = parse({**WITHOUT, "command": command}, known())
    report = try_out(spec, (tmp_path,), look_ahead(spec), lambda text: None)
    assert [one.kind for one in report.findings] == ([] if kind is None else [kind]), report.findings
    assert all(word in one.text for one in report.findings)
    assert [one.name for one in tmp_path.iterdir()] == ["script.py"]


KEEPS = """
import json, os, random, sys
level, seed, epochs, folder = float(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
os.makedirs(folder, exist_ok=True)
draw, begun, weight, checkpoint = random.Random(seed).random, 0, 0.5, os.path.join(folder, "checkpoint")
if os.path.exists(checkpoint):
    begun, weight = json.load(open(checkpoint))
for epoch in range(begun + 1, epochs + 1):
    loss = (1 - weight) ** 2 + 0.1 * draw()
    weight += (0.1 + draw()) * (1 - weight) * (1 if loss > level else -1)
    with open(checkpoint + ".new", "w") as file:
        json.dump([epoch, weight], file)
    os.replace(checkpoint + ".new", checkpoint)
    print(json.dumps({"epoch": epoch, "val_accuracy": max(0.0, min(1.0, weight / 2))}), flush=True)
    if epoch == 1:
        import time
        time.sleep(0.5)  # it is ended here, where a run is to pause
"""


@pytest.mark.parametrize("out", ["{folder}", "out/{ticket}-{seed}"])
def test_a_command_that_keeps_checkpoints_is_paused(
    out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever it keeps them; a file with the ticket in its name is written by one level only."""
    (tmp_path / "script.py").write_text(KEEPS)
    monkeypatch.chdir(tmp_path)
    command = f"{sys.executable} script.py {{level}} {{seed}} {{epochs}} {out}"
    spec = parse({**WITHOUT, "command": command}, known())
    report = try_out(spec, (tmp_path,), look_ahead(spec), lambda text: None)
    assert [one.kind for one in report.findings] == ["pause"], report.findings


def test_a_measurement_leaves_no_checkpoint_of_a_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Callable[..., tuple[int, str, str]]
) -> None:
    """The search would go on from it, and nobody would have what was printed before."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "script.py").write_text(KEEPS)
    words = f"{sys.executable} script.py {{level}} {{seed}} {{epochs}} out/{{level}}-{{seed}}"
    (tmp_path / "study.toml").write_text(
        f'name = "measured"\ncommand = "{words}"\n[levels]\nhigh = 0.6\ncount = 4\n[training]\nepochs = 3\n'
    )
    status, out, said = command("check", "study.toml", "--measure", "cpu")
    assert (status, said) == (0, "")
    assert "told from" in out
    assert {one.name for one in tmp_path.iterdir()} == {"script.py", "study.toml"}


TASK = """
import torch
from torch import nn
from floodsearch.tasks.task import Data, Recipe, Split, Task
CALLS = []

def task():
    def data(seed):
        x = torch.randn(90, 4, generator=torch.Generator().manual_seed(seed))
        return Data(*(Split(x[i : i + 30], (x[i : i + 30].sum(dim=1) > 0).long()) for i in (0, 30, 60)))

    def loss(outputs, labels):
        CALLS.append(len(labels))
        return nn.functional.cross_entropy(outputs, labels)

    model = lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    return Task(data=data, model=model, loss=loss, recipe=Recipe(batch_size=10))
"""


@pytest.mark.parametrize(
    ("change", "kinds"),
    [
        (("", ""), []),
        (
            ("cross_entropy(outputs, labels)", "cross_entropy(outputs, labels) * (1 + len(CALLS) / 50)"),
            ["global state"],
        ),
    ],
)
def test_a_task_is_tried(
    change: tuple[str, str], kinds: list[str], write_code: Callable[..., str], tmp_path: Path
) -> None:
    """What its functions keep from run to run is named; what they count for themselves is not."""
    module = write_code(TASK.replace(*change))
    spec = parse({**WITHOUT, "task": f"{module}:task"}, known())
    report = try_out(spec, (tmp_path,), look_ahead(spec), lambda text: None)
    assert [one.kind for one in report.findings] == kinds, report.findings


def test_the_command_line_tells_a_finding_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Callable[..., tuple[int, str, str]]
) -> None:
    """It exits with 1 where something is wrong; --json has the same findings; no database is made."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "script.py").write_text(COMMAND.replace("loss > level", "loss > 0"))
    study = tmp_path / "study.toml"
    study.write_text(
        f'name = "tried"\ncommand = "{sys.executable} script.py {{level}} {{seed}} {{epochs}}"\n'
        "[levels]\nhigh = 0.6\ncount = 4\n[training]\nepochs = 40\nseeds = 2\n"
    )
    status, out, _ = command("check", study, "--try")
    assert status == 1
    lines = [line for line in out.splitlines() if line.startswith("wrong: ")]
    assert len(lines) == 1
    assert "{level}" in lines[0]
    assert "without pauses" in out.splitlines()[-1]
    status, out, _ = command("check", study, "--try", "--json")
    assert status == 1
    assert [f"wrong: {one['text']}" for one in json.loads(out)["try"]["findings"]] == lines
    assert {one.name for one in tmp_path.iterdir()} == {"script.py", "study.toml"}


@pytest.mark.parametrize(
    ("body", "names"),
    [
        ("if x > best: best = x", {"x", "best"}),
        ("x = 0\n        if x > 1: pass", set()),
        ("total += 1", {"total"}),
        ("if a: b = 1\n        print(b)", {"a", "print", "b"}),
        ("if a: b = 1\n        else: b = 2\n        print(b)", {"a", "print"}),
        ("for i in xs: ys = i", {"xs"}),
    ],
)
def test_what_an_epoch_takes_from_the_one_before(body: str, names: set[str]) -> None:
    """Those names that the loop over the epochs reads before it sets them."""
    assert carried(f"def f(run):\n    for e in run.epochs():\n        {body}\n") == names


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("if a > b: pass", {"a", "b"}),
        ("if step % 10 == 0: pass", set()),
        ("c = max(c, a)\nif c: pass", {"a", "c", "max"}),
        ("run.report(f1=best)", {"best"}),
        ("print(best)", set()),
        ("if (", set()),
    ],
)
def test_by_what_a_text_decides(text: str, names: set[str]) -> None:
    """Those names that it tests or reports, and those from which they come; a remainder tells when."""
    assert deciding(text) == names


def test_a_long_epoch_is_stopped_between_batches(
    tried: Callable[..., list[Finding]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first batches still tell that the flooded loss was dropped."""
    monkeypatch.setattr(rehearse, "SECONDS", 0.0)
    monkeypatch.setattr(rehearse, "LEAST_SECONDS", 0.0)
    found = tried(
        ("loss = run.flood(loss)", "run.flood(loss)"),
        (".split(20)", ".split(2)"),
    )
    assert [one.kind for one in found] == ["level not used"]


def test_large_files_and_their_folders_stay_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that stands for another one has its files; what is written there is not written here.

    A saved model is a copy whatever its size; other large files are links.
    """
    monkeypatch.setattr("floodsearch.tryout.folder.COPIED", 10)
    here = tmp_path / "here"
    (here / "data").mkdir(parents=True)
    (here / "model.pt").write_text("trained long ago")
    (here / "data" / "x.csv").write_text("1")
    (here / "data" / "many.csv").write_text("1" * 11)
    (here / "floodsearch.db").write_text("a search")
    mirror = Mirror(here, tmp_path / "there", {})
    assert (mirror.at / "data" / "x.csv").read_text() == "1"
    assert (mirror.at / "data" / "many.csv").is_symlink()
    assert not (mirror.at / "floodsearch.db").exists()
    (mirror.at / "model.pt").write_text("tried")
    (mirror.at / "data" / "new.txt").write_text("new")
    assert mirror.written() == {"model.pt", "data/new.txt"}
    assert (here / "model.pt").read_text() == "trained long ago"
    assert sorted(one.name for one in (here / "data").iterdir()) == ["many.csv", "x.csv"]
