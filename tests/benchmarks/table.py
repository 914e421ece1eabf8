"""Recorded curves of an exhaustive search, from which searches can be replayed without training.

    floodsearch export NAME --format csv --curves > CURVES.csv
    python -m tests.benchmarks.table CURVES.csv TABLE.npz

The study is a grid with the pruner `none`, so that every level is trained to the end with every seed.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from floodsearch.records import EpochRecord
from floodsearch.training.cohort import EpochOutcome, OnEpoch, in_lockstep
from floodsearch.worker.trainers import Group

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Table:
    """All levels, trained to the end with all seeds.

    Notation: S seeds, L levels ascending from 0, V validations, E epochs.
    """

    levels: Array  # (L,)
    seeds: Array  # (S,)
    epochs: Array  # (V,), the epochs of the validations, ascending; the last is the length of a run
    val_accuracy: Array  # (S, L, V)
    val_loss: Array  # (S, L, V)
    train_loss: Array  # (S, L, E)
    test_final: Array  # (S, L)
    forks: Array  # (S, L), the epoch in which a run first floods; above E if it never does

    @property
    def length(self) -> int:
        """Epochs of a run."""
        return int(self.epochs[-1])

    @classmethod
    def load(cls, path: Path) -> Table:
        """Read an .npz; where it holds no `flooded`, a loss below the level is taken for flooding."""
        with np.load(path) as file:
            content = {name: file[name] for name in file.files}
        levels = content["levels"]
        below = content["train_loss"] < levels[None, :, None]
        flooded = content.pop("flooded") > 0 if "flooded" in content else below
        never = flooded.shape[2] + 1
        forks = np.where(flooded.any(axis=2), flooded.argmax(axis=2) + 1, never)
        forks[:, levels == 0] = never
        return cls(forks=forks, **content)

    def values(self, window: float) -> Array:
        """Return (S, L) mean validation accuracies over the last share of the epochs."""
        inside = self.epochs > self.length * (1 - window) + 1e-9
        return np.asarray(self.val_accuracy[:, :, inside].mean(axis=2))


def read_csv(path: Path) -> list[EpochRecord]:
    """Read what `floodsearch export NAME --format csv --curves` writes.

    Raises:
        ValueError: if two tickets share a level: a table has no room for what was searched beside it.
    """
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    tickets = {row["level"]: row["ticket"] for row in rows}
    if any(row["ticket"] != tickets[row["level"]] for row in rows):
        raise ValueError(f"{path} holds several tickets of one level; only levels may differ")
    names = [field.name for field in fields(EpochRecord)]
    return [EpochRecord(**{name: _number(name, row[name]) for name in names}) for row in rows]


def _number(name: str, text: str) -> Any:
    if text == "":
        return None
    return int(text) if name in ("seed", "epoch") else float(text)


def save_records(records: Sequence[EpochRecord], path: Path) -> None:
    """Write the epoch records of all levels and seeds to an .npz.

    Accuracies in full, since half the digits would split ties; the rest in half, since curves are noisy.

    Raises:
        ValueError: if a level was not trained to the end with every seed.
    """
    levels = sorted({record.level for record in records})
    seeds = sorted({record.seed for record in records})
    length = max(record.epoch for record in records)
    epochs = sorted({record.epoch for record in records if record.val_loss is not None})
    shape = (len(seeds), len(levels))
    arrays = {
        "val_accuracy": np.full((*shape, len(epochs)), np.nan),
        "val_loss": np.full((*shape, len(epochs)), np.nan, np.float32),
        "train_loss": np.full((*shape, length), np.nan, np.float32),
        "flooded": np.full((*shape, length), np.nan, np.float16),
        "test_final": np.full(shape, np.nan, np.float32),
    }
    place = {epoch: index for index, epoch in enumerate(epochs)}
    for record in records:
        at = seeds.index(record.seed), levels.index(record.level)
        for name in ("train_loss", "flooded"):
            arrays[name][(*at, record.epoch - 1)] = getattr(record, name)
        if record.epoch in place:
            for name in ("val_accuracy", "val_loss"):
                arrays[name][(*at, place[record.epoch])] = getattr(record, name)
        if record.epoch == length and record.test_accuracy is not None:
            arrays["test_final"][at] = record.test_accuracy
    if missing := [name for name, array in arrays.items() if np.isnan(array).any()]:
        raise ValueError(
            f"not every level was trained to the end with every seed: gaps in {', '.join(missing)}"
        )
    np.savez_compressed(path, levels=levels, seeds=seeds, epochs=epochs, **arrays)


class Recorded:
    """Members of a cohort whose epochs are read from a table, at the cost of training them.

    Args:
        table: where from; the group's levels and seeds are in it.
        group: whose epochs are given back.
    """

    def __init__(self, table: Table, group: Group) -> None:
        self.table, self.epoch = table, 0
        self.places = {
            ticket: [
                (int(np.flatnonzero(table.seeds == seed)[0]), int(np.abs(table.levels - level).argmin()))
                for seed in group.seeds[ticket]
            ]
            for ticket, level in group.levels.items()
        }

    def forked(self, member: int) -> bool:
        """Return whether a member's level has begun to matter."""
        return any(self.table.forks[place] <= self.epoch for place in self.places[member])

    def drop(self, member: int) -> None:
        """Train a member no further."""
        self.places.pop(member, None)

    def train(self, until: int, note: OnEpoch) -> bool:
        """Read the epochs of all members up to one."""
        return in_lockstep(self, until, note)

    def advance(self) -> EpochOutcome:
        """Read the next epoch of all members; a trunk counts once for all that have not left it."""
        before = self.epoch
        self.epoch += 1
        step = EpochOutcome()
        trunks = set()
        for member, places in self.places.items():
            step.records[member] = [self._record(place) for place in places]
            for seed, level in places:
                step.trained += int(self.table.forks[seed, level] <= self.epoch)
                if self.table.forks[seed, level] > before:
                    trunks.add(seed)
        step.trained += len(trunks)
        return step

    def _record(self, place: tuple[int, int]) -> EpochRecord:
        table = self.table
        record = EpochRecord(
            seed=int(table.seeds[place[0]]),
            epoch=self.epoch,
            level=float(table.levels[place[1]]),
            train_loss=float(table.train_loss[place][self.epoch - 1]),
            train_accuracy=None,
            flooded=float(table.forks[place] <= self.epoch),
        )
        found = np.flatnonzero(table.epochs == self.epoch)
        if not len(found):
            return record
        return replace(
            record,
            val_loss=float(table.val_loss[place][found[0]]),
            val_accuracy=float(table.val_accuracy[place][found[0]]),
        )

    def lowest(self, member: int, seed: int) -> float | None:
        """Return None: no batch losses were recorded."""
        return None

    def tested(self, member: int) -> list[EpochRecord]:
        """Return the last records with the test accuracy; the best validation epoch was not recorded."""
        return [
            replace(
                self._record(place),
                test_loss=0.0,  # marks the record as tested; the loss was not recorded
                test_accuracy=float(self.table.test_final[place]),
            )
            for place in self.places[member]
        ]


def main() -> None:
    """Turn exported curves into a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("curves", type=Path, metavar="CURVES.csv")
    parser.add_argument("table", type=Path, metavar="TABLE.npz")
    arguments = parser.parse_args()
    try:
        save_records(read_csv(arguments.curves), arguments.table)
    except (OSError, ValueError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
