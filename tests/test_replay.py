"""The benchmarks' own code: tables made from exported curves, and searches replayed on them."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from floodsearch import queue
from floodsearch.catalog import known
from floodsearch.queries import answer
from floodsearch.records import BestLevel, EpochRecord
from floodsearch.report.export import as_csv, curve_rows
from floodsearch.storage.database import open_database
from floodsearch.storage.studies import put_study
from floodsearch.study.reader import parse
from floodsearch.worker.leave import LeaveRequest
from floodsearch.worker.settings import WorkerSettings
from floodsearch.worker.work import work
from tests.benchmarks import coverage, replay, table
from tests.benchmarks.table import Table, read_csv, save_records
from tests.conftest import TINY, merged

SEEDS = (3, 7)
SMALL = merged(
    TINY,
    {
        "options": {"width": 16, "depth": 2},
        "levels": {"high": 0.72, "count": 13},
        "training": {"epochs": 20, "seeds": list(SEEDS), "learning_rate": 0.02},
    },
)
"""Thirteen levels, of which some flood at once, some later and some never."""


def train(folder: Path, seeds: Sequence[int], pruner: str) -> tuple[BestLevel, bytes]:
    """Train a study; return its answer and its exported curves."""
    changes = {"training": {"seeds": list(seeds)}, "search": {"pruner": pruner}}
    database = open_database(f"sqlite:///{folder}/{pruner}-{len(seeds)}.db", create=True)
    study = put_study(database, parse(merged(SMALL, changes), known()))
    queue.fill(study)
    work(study, WorkerSettings(device="cpu", threads=1), LeaveRequest())
    found = answer(study), as_csv(*curve_rows(study))
    database.close()
    return found


@pytest.fixture(scope="module")
def curves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the exported curves of an exhaustive study."""
    folder = tmp_path_factory.mktemp("exhaustive")
    path = folder / "curves.csv"
    path.write_bytes(train(folder, SEEDS, "none")[1])
    return path


@pytest.fixture(scope="module")
def recorded(curves: Path) -> Path:
    """Give the table of an exhaustive study."""
    path = curves.with_name("table.npz")
    save_records(read_csv(curves), path)
    return path


@pytest.mark.parametrize("places", [(0,), (1,), (0, 1)])
def test_a_replay_answers_as_the_training_does(recorded, tmp_path, places):
    """Level, interval, values, gain and the count of epochs are those of the study that is really trained."""
    loaded = Table.load(recorded)
    forks = loaded.forks[list(places)]
    assert {1, loaded.length + 1} < {*forks.flat}  # else the epochs that runs share would not be tried
    trained, _ = train(tmp_path, [SEEDS[place] for place in places], "halving")
    replayed = replay.search(loaded, places)
    not_recorded = {"study", "test_loss", "test_accuracy_clean", "train_accuracy"}
    not_recorded |= {"best_epoch_test_accuracy", "best_epoch_test_loss", "early_stopping"}
    single_precision = {"test_accuracy", "baseline"}
    for field in {one.name for one in dataclasses.fields(BestLevel)} - not_recorded - single_precision:
        assert getattr(replayed, field) == getattr(trained, field), field
    assert replayed.test_accuracy == pytest.approx(trained.test_accuracy)
    assert replayed.baseline.value == trained.baseline.value
    assert replayed.epochs_run < replayed.epochs_exhaustive


def test_a_replay_is_scored_by_the_level_of_the_answer(recorded, monkeypatch):
    """The choice of a strategy is the place of the answer's level, its cost the share of epochs trained."""
    monkeypatch.setattr(replay, "search", lambda *_, **__: SimpleNamespace(level=0.3, epochs_run=130))
    assert replay.floodsearch(Table.load(recorded), (0, 1), 0) == replay.Choice(5, 130 / (13 * 2 * 20))


def test_studies_are_blocks_of_seeds_in_a_ring(recorded):
    """Each seed begins one block; all seeds of a table are one study, not one for each that may begin."""
    loaded = Table.load(recorded)
    five = dataclasses.replace(loaded, seeds=np.arange(5))
    assert replay.studies_of(five, 1) == [[0], [1], [2], [3], [4]]
    assert replay.studies_of(five, 3) == [[0, 1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 0], [4, 0, 1]]
    assert replay.studies_of(five, 5) == [[0, 1, 2, 3, 4]]
    assert (replay.sizes(loaded), replay.sizes(five)) == ([1], [1, 5])


def test_the_command_makes_a_table_from_exported_curves(curves, recorded, tmp_path, monkeypatch):
    """`python -m tests.benchmarks.table CURVES.csv TABLE.npz` writes all that the curves hold."""
    made = tmp_path / "made.npz"
    monkeypatch.setattr(sys, "argv", ["table", str(curves), str(made)])
    table.main()
    assert made.read_bytes() == recorded.read_bytes()
    loaded = Table.load(made)
    assert loaded.seeds.tolist() == list(SEEDS)
    assert loaded.levels.tolist() == [round(0.06 * index, 2) for index in range(13)]
    assert loaded.length == 20
    records = [one for one in read_csv(curves) if (one.seed, one.level) == (7, 0.3)]
    assert loaded.val_accuracy[1, 5].tolist() == [one.val_accuracy for one in records if one.val_loss]
    assert loaded.train_loss[1, 5] == pytest.approx([one.train_loss for one in records])
    assert loaded.test_final[1, 5] == pytest.approx(records[-1].test_accuracy)
    flooded = [one.epoch for one in records if one.flooded > 0]
    assert loaded.forks[1, 5] == flooded[0]


def test_without_flooded_a_fork_is_the_first_loss_below_the_level(recorded, tmp_path):
    """Older tables hold no share of flooded batches; with one batch an epoch the loss says the same."""
    with np.load(recorded) as file:
        content = {name: file[name] for name in file.files if name != "flooded"}
    older = tmp_path / "older.npz"
    np.savez(older, **content)
    np.testing.assert_array_equal(Table.load(older).forks, Table.load(recorded).forks)


def make_records(**changes: object) -> list[EpochRecord]:
    """Return two epochs of two levels with one seed; the last record with some fields changed."""
    records = [
        EpochRecord(
            seed=0,
            epoch=epoch,
            level=level,
            train_loss=0.5,
            train_accuracy=0.8,
            flooded=0.0,
            val_loss=0.6,
            val_accuracy=0.7,
            test_loss=0.6 if epoch == 2 else None,
            test_accuracy=0.7 if epoch == 2 else None,
        )
        for level in (0.0, 0.1)
        for epoch in (1, 2)
    ]
    return [*records[:-1], dataclasses.replace(records[-1], **changes)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("records", "gaps"),
    [
        (make_records()[:-1], "val_accuracy, val_loss, train_loss, flooded, test_final"),
        (make_records(test_accuracy=None), "test_final"),
        (make_records(seed=1), "val_accuracy, val_loss, train_loss, flooded, test_final"),
        (make_records(val_accuracy=None), "val_accuracy"),
    ],
    ids=["an epoch", "a test", "a seed", "an accuracy"],
)
def test_a_table_with_gaps_is_refused(records, gaps, tmp_path):
    """Where a level, seed, epoch or test is missing nothing is written, and the gaps are named."""
    path = tmp_path / "table.npz"
    with pytest.raises(ValueError, match=f"gaps in {gaps}$"):
        save_records(records, path)
    assert not path.exists()
    save_records(make_records(), path)
    assert Table.load(path).val_accuracy.tolist() == [[[0.7, 0.7], [0.7, 0.7]]]


def test_curves_of_several_tickets_a_level_are_refused(curves, tmp_path):
    """A table has no place for what is searched beside the level."""
    text = curves.read_text()
    twice = tmp_path / "twice.csv"
    twice.write_text(text + "99,3,1,0.3" + "," * 8 + "\n")
    with pytest.raises(ValueError, match="several tickets of one level"):
        read_csv(twice)


def test_json_has_the_agreed_keys(recorded):
    """One object a strategy and number of seeds, and one strategy is floodsearch."""
    command = [sys.executable, "-m", "tests.benchmarks.replay", str(recorded), "--only", "floodsearch"]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    keys = ["strategy", "seeds_per_study", "test_accuracy", "se", "regret", "cost"]
    (found,) = json.loads(done.stdout)
    assert list(found) == keys
    assert found["strategy"] == "floodsearch"
    assert "floodsearch" in replay.STRATEGIES
    assert found["seeds_per_study"] == 1
    assert 0 < found["cost"] < 1
    assert found["regret"] >= 0


def test_tables_are_pooled_by_their_differences_to_the_reference():
    """Each table counts alike; one without independent studies, or without the reference, does not."""

    def outcome(table, strategy, *accuracies, size=1, independent=2):
        zeros = (0.0,) * len(accuracies)
        return replay.Outcome(Path(table), strategy, size, independent, accuracies, zeros, (0.1, 0.3))

    found = replay.pooled(
        [
            outcome("a", replay.REFERENCE, 0.8, 0.6),
            outcome("a", "mine", 0.9, 0.6),
            outcome("b", replay.REFERENCE, 0.5, 0.5),
            outcome("b", "mine", 0.6, 0.6),
            outcome("c", replay.REFERENCE, 0.5, 0.5, independent=1),
            outcome("c", "mine", 0.1, 0.1, independent=1),
            outcome("d", "mine", 0.1, 0.1),
        ]
    )
    reference, mine = found
    assert (reference["difference"], reference["se"], reference["tables"]) == (0.0, 0.0, 2)
    assert (mine["strategy"], mine["seeds_per_study"], mine["tables"]) == ("mine", 1, 2)
    assert mine["difference"] == pytest.approx((0.05 + 0.1) / 2)
    assert mine["se"] == pytest.approx(0.05 / 2)
    assert (mine["cost"], mine["highest_cost"]) == pytest.approx((0.2, 0.2))


# --- coverage --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("interval", "gain_interval", "expected"),
    [
        # The second level has the best test accuracy; at the third the gain is 0.3 over all seeds.
        ((0.1, 0.2), (0.05, 0.35), (True, 0.5, True, True)),
        ((0.2, 0.2), (0.05, 0.32), (False, 0.0, True, False)),  # off by 0.1, and by 0.14 if corrected
        (None, (-0.1, 0.25), (None, None, False, False)),
        ((0.0, 0.2), None, (True, 1.0, None, None)),
    ],
)
def test_an_interval_is_verified_against_all_seeds(interval, gain_interval, expected, monkeypatch):
    """A study of one of two seeds is compared with what both say; where there is no interval, nothing is."""
    recorded = Table(
        levels=np.array([0.0, 0.1, 0.2]),
        seeds=np.array([0, 1]),
        epochs=np.array([5, 10]),
        val_accuracy=np.array([[[0.1, 0.5], [0, 0.6], [0, 0.7]], [[0.1, 0.3], [0, 0.4], [0, 0.7]]]),
        val_loss=np.zeros((2, 3, 2)),
        train_loss=np.zeros((2, 3, 10)),
        test_final=np.array([[0.5, 0.6, 0.7], [0.5, 0.8, 0.6]]),
        forks=np.zeros((2, 3)),
    )
    found = SimpleNamespace(level=0.2, interval=interval, gain=0.2, gain_interval=gain_interval)
    monkeypatch.setattr(coverage, "search", lambda *_: found)
    assert dataclasses.astuple(coverage.verify(recorded, [0])) == expected
    with_all = coverage.verify(recorded, [0, 1])
    assert (with_all.gain, with_all.gain_corrected) == (None, None)  # the truth would be the study's own


def test_coverage_counts_only_what_there_is():
    """Shares are of the intervals that exist, and unknown where none does."""
    held = coverage.Verified(level=True, width=0.4, gain=None, gain_corrected=None)
    missed = dataclasses.replace(held, level=False, width=0.2)
    unknown = dataclasses.replace(held, level=None, width=None)
    found = coverage.coverage("table", 1, [held, missed, unknown, held])
    assert (found.studies, found.level_intervals, found.gain_intervals) == (4, 3, 0)
    assert found.level == pytest.approx(2 / 3)
    assert found.level_width == pytest.approx(1 / 3)
    assert (found.gain, found.gain_corrected) == (None, None)
