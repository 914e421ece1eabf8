"""Runs of the scripts of this suite, trained in this process, in one part or in several."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple
from unittest import mock

import torch

from floodsearch.artifacts.checkpoint import Checkpoint
from floodsearch.artifacts.files import Folder
from floodsearch.records import EpochRecord
from floodsearch.training.loop import LoopRun
from floodsearch.training.progress import RunPlan
from floodsearch.training.randomness import borrowed, seed_everything
from tests.wild.kinds import Kind

EPOCHS = 8
UNLIKE = re.compile(
    r"\d+(\.\d+)?s\b|time:? +[\d.]+|'\w*(runtime|per_second)': '[^']*'|(?<=\[Epoch )\d+|^(epoch|STEP:) \d+",
    re.MULTILINE,
)
"""What scripts print of the clock, and their numbers of epochs, which some count from 0."""
CPU = torch.device("cpu")


class Trained(NamedTuple):
    """What a run has come to."""

    records: list[EpochRecord]
    printed: str


def load(path: Path) -> ModuleType:
    """Import a file anew, by no name that others know."""
    spec = importlib.util.spec_from_file_location(f"wild_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def captured(*arguments: str) -> Iterator[io.StringIO]:
    """Take in what a script prints that is given these arguments; global random states are lent to it."""
    with (
        borrowed(CPU),
        mock.patch.object(sys, "argv", ["train.py", *arguments]),
        contextlib.redirect_stdout(io.StringIO()) as output,
    ):
        yield output


def run_before(kind: Kind) -> str:
    """Run an original; return what it prints, but for what is `UNLIKE`."""
    with captured() as output:
        source = compile(kind.before.read_text(), str(kind.before), "exec")
        exec(source, {"__name__": "__main__"})
    return UNLIKE.sub("", output.getvalue())


def train(kind: Kind, folder: Path, *, level: float, seed: int, parts: Sequence[int] = (EPOCHS,)) -> Trained:
    """Train a run of a kind.

    Args:
        kind: that lies in `folder`.
        folder: for its checkpoint, too, which is removed at the end.
        level: flood level.
        seed: of the run.
        parts: the epochs after which it pauses; its function is called once for each.
    """
    asked = tomllib.loads((folder / kind.study.name).read_text()).get("search", {})
    metric = asked.get("metric", "val_accuracy")
    plan = RunPlan(epochs=EPOCHS, metric=metric, maximize=asked.get("direction") == "maximize")
    function = getattr(load(folder / kind.module.name), kind.entry)
    checkpoint = Checkpoint(Folder(folder), "run.pt", {})
    records: list[EpochRecord] = []

    def note(record: EpochRecord) -> bool:
        records.append(record)
        return True

    with captured() as output:
        seed_everything(seed, CPU)
        for until in parts:
            settings: dict[str, Any] = {}
            run = LoopRun(
                plan,
                name="run",
                level=level,
                seed=seed,
                device=CPU,
                settings=settings,
                until=until,
                note=note,
                checkpoint=checkpoint,
                saved=checkpoint.load(),
            )
            function(run)
            assert run.epoch == until
    for left in folder.glob("run.pt*"):
        left.unlink()
    return Trained(records, UNLIKE.sub("", output.getvalue()))
