"""A try of a study's code: each trap is found in a few short runs, and clean code is told nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from floodsearch.catalog import known
from floodsearch.cost.outlook import look_ahead
from floodsearch.study.reader import parse
from floodsearch.tryout.rehearse import try_out
from floodsearch.tryout.result import Finding

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
