"""training: a cohort goes on from its checkpoints as if nothing had happened, at worst from none of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from floodsearch import queue
from floodsearch.artifacts import checkpoint as checkpoint_module
from floodsearch.artifacts.checkpoint import Checkpoint, Checkpoints
from floodsearch.artifacts.files import Folder
from floodsearch.artifacts.names import name_of
from floodsearch.records import EpochRecord
from floodsearch.storage.studies import put_study
from floodsearch.tasks.streams import stream
from floodsearch.tasks.synthetic import two_gaussians
from floodsearch.tasks.task import Data, Recipe, Split, Task
from floodsearch.training.cohort import Cohort, EpochOutcome
from floodsearch.training.progress import RunPlan
from floodsearch.training.sequential import Sequential
from floodsearch.training.stack import Stack
from floodsearch.training.trunk import TrunkPool
from floodsearch.worker.leave import LeaveRequest
from floodsearch.worker.settings import WorkerSettings
from floodsearch.worker.work import work
from tests.device import DEVICE

EPOCHS, SEEDS = 6, (0, 1)
LEVELS = {0: 0.0, 1: 1e-4, 2: 0.45, 3: 0.62, 4: 5.0}
"""By member: the baseline, one that never floods, two that begin to on the way, one that does at once."""


def gaussians() -> Task:
    """Return several batches an epoch, a falling learning rate, and Adam."""
    recipe = Recipe(batch_size=40, learning_rate=0.02, milestones=(3,))
    return replace(two_gaussians(label_noise=0.1, width=8, depth=2), recipe=recipe)


def dropout() -> Task:
    """Return all that a run could forget: BatchNorm, dropout, momentum, and augmentation by batch."""

    def data(seed: int) -> Data:
        labels = torch.arange(50) % 2
        inputs = torch.randn(50, 5, generator=stream(seed, "test_checkpoint")) + labels[:, None]
        return Data(*(Split(inputs, labels) for _ in range(3)))

    def prepare(inputs: Tensor, generator: torch.Generator | None) -> Tensor:
        if generator is None:
            return inputs
        return inputs + 0.1 * torch.randn(inputs.shape, generator=generator, device=inputs.device)

    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2))

    recipe = Recipe(batch_size=16, optimizer="sgd", learning_rate=0.1, momentum=0.9)
    return Task(data=data, model=model, recipe=recipe, prepare=prepare)


@dataclass
class Trained:
    """What a cohort came to: all records by member, how many epochs it trained, and its tests."""

    records: dict[int, list[EpochRecord]]
    epochs: int
    tested: dict[int, list[EpochRecord]]


class Study:
    """Cohorts that have nothing in common but the folder of their checkpoints."""

    def __init__(self, task: Task, engine: type[Sequential | Stack], schedule: str, folder: Path) -> None:
        self.plan = RunPlan(epochs=EPOCHS, validate_every=2, schedule=schedule)
        self.task, self.engine, self.folder = task, engine, folder

    def cohort(self, levels: dict[int, float] | None = None, *, last: bool = True, room: int = 0) -> Cohort:
        """Return a cohort as of a new process."""
        levels, every = levels or LEVELS, Checkpoints(Folder(self.folder))
        kept = lambda seed, epoch: every.of(f"trunk-{seed}-{epoch}", {"epoch": epoch})  # noqa: E731
        return Cohort(
            self.task,
            self.plan,
            levels=levels,
            seeds=dict.fromkeys(levels, SEEDS),
            device=DEVICE,
            trunks=TrunkPool(self.engine(self.task, self.plan, DEVICE), checkpoint_of=kept, room=room),
            last=last,
            checkpoint=lambda member, seed: every.of(name_of(member, seed), {"level": levels[member]}),
        )

    def train(self, until: int = EPOCHS, **cohort: Any) -> Trained:
        """Train a new cohort up to an epoch, at which it is asked to leave."""
        members = self.cohort(**cohort)
        steps: list[EpochOutcome] = []

        def note(step: EpochOutcome) -> bool:
            steps.append(step)
            assert not step.failed
            return len(steps) < until

        members.train(EPOCHS, note)
        names = list(members.levels)
        records = {name: [one for step in steps for one in step.records[name]] for name in names}
        tested = {name: members.tested(name) for name in names} if until == EPOCHS else {}
        return Trained(records, sum(step.trained for step in steps), tested)


KINDS: Sequence[tuple[Callable[[], Task], type[Sequential | Stack], str]] = [
    (gaussians, Sequential, "constant"),
    (gaussians, Sequential, "backward"),
    (gaussians, Sequential, "adaptive"),
    (gaussians, Stack, "constant"),
    (gaussians, Stack, "adaptive"),
    (dropout, Sequential, "constant"),
    (dropout, Sequential, "adaptive"),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Train the first kind without an interruption."""
    return Study(gaussians(), Sequential, "constant", tmp_path_factory.mktemp("whole")).train()


@pytest.mark.parametrize(
    ("task", "engine", "schedule"), KINDS, ids=[f"{a.__name__}-{b.__name__}-{c}" for a, b, c in KINDS]
)
def test_a_cohort_goes_on_from_every_epoch(task, engine, schedule, tmp_path) -> None:
    """Interrupted after any epoch, a new process comes to the same records, and trains none of them twice.

    Of the unusual kinds, after every second one.
    """
    whole = Study(task(), engine, schedule, tmp_path / "whole").train()
    assert whole.epochs > EPOCHS * len(SEEDS), "some have left their trunks"
    usual = engine is Sequential and schedule == "constant"
    for epoch in range(1, EPOCHS, 1 if usual else 2):
        study = Study(task(), engine, schedule, tmp_path / f"{epoch}")
        first = study.train(until=epoch)
        assert first.records == {name: known[: len(SEEDS) * epoch] for name, known in whole.records.items()}
        second = study.train()
        assert (second.records, second.tested) == (whole.records, whole.tested)
        assert first.epochs + second.epochs == whole.epochs


def test_a_cohort_goes_on_after_every_epoch_in_turn(tmp_path, whole) -> None:
    """As many interruptions as there are epochs."""
    study = Study(gaussians(), Sequential, "constant", tmp_path / "parts")
    parts = [study.train(until=epoch) for epoch in range(1, EPOCHS + 1)]
    assert (parts[-1].records, parts[-1].tested) == (whole.records, whole.tested)
    assert sum(part.epochs for part in parts) == whole.epochs


def lost(path: Path) -> None:
    path.unlink()


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("harm", [lost, truncated, flipped, empty])
def test_any_checkpoint_may_be_lost_or_damaged(harm, tmp_path, caplog, whole) -> None:
    """The one before is taken, or the run starts again: the records are the same, and a damage is said."""
    study = Study(gaussians(), Sequential, "constant", tmp_path / "study")
    study.train(until=3)
    files = sorted(study.folder.iterdir())
    kept = {path: path.read_bytes() for path in files}
    each = files if harm in (lost, flipped) else [files[0], files[-1]]  # of a run, of a trunk
    assert (each[0].name[:6], each[-1].name[:6]) == ("ticket", "trunk-")
    for chosen in [*([path] for path in each), files]:
        for path, content in kept.items():
            path.write_bytes(content)
        for path in set(study.folder.iterdir()) - set(files):
            path.unlink()
        for path in chosen:
            harm(path)
        caplog.clear()
        again = study.train()
        assert (again.records, again.tested) == (whole.records, whole.tested)
        assert all(path.name in caplog.text for path in chosen if harm is not lost)


def test_the_one_before_is_taken_where_the_last_is_damaged(tmp_path) -> None:
    one, path = Checkpoint(Folder(tmp_path).within("study"), "run.pt", {}), tmp_path / "study" / "run.pt"
    one.save({"epoch": 1})
    one.save({"epoch": 2})
    one.save({"epoch": 3})
    assert one.load() == {"epoch": 3}
    truncated(path)
    assert one.load() == {"epoch": 2}
    lost(path)  # as if killed between taking away the last and putting the new one there
    assert one.load() == {"epoch": 2}
    one.remove()
    assert not path.parent.exists()


def test_any_flipped_byte_is_noticed(tmp_path) -> None:
    """Each byte of a file counts: of a weight too, which torch alone would load as another weight."""
    one = Checkpoint(Folder(tmp_path), "run.pt", {})
    one.save({"weight": torch.arange(4.0)})
    whole = (tmp_path / one.name).read_bytes()
    for index in range(len(whole)):
        (tmp_path / one.name).write_bytes(whole[:index] + bytes([whole[index] ^ 255]) + whole[index + 1 :])
        assert one.load() is None
    (tmp_path / one.name).write_bytes(whole)
    loaded = one.load()
    assert loaded is not None
    assert torch.equal(loaded["weight"], torch.arange(4.0))


def test_no_more_than_there_is_room_for_is_saved(tmp_path) -> None:
    """A bound on the bytes of a folder holds."""
    small = Checkpoint(Folder(tmp_path), "a.pt", {}, room=3000)
    small.save({"weight": torch.zeros(100)})
    with pytest.raises(OSError, match="would hold more than 3,000 bytes"):
        Checkpoint(Folder(tmp_path), "b.pt", {}, room=3000).save({"weight": torch.zeros(400)})
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


def test_later_levels_fork_from_trunks_on_disk(tmp_path) -> None:
    """Another process with other levels trains the shared start no second time, and comes to the same."""
    study = Study(gaussians(), Sequential, "constant", tmp_path / "shared")
    first = study.train(last=False, room=2**30, levels={0: 0.0, 1: 1e-4})
    later = {2: 0.45, 3: 0.62}
    members = study.cohort(levels={0: 0.0, 1: 1e-4}, last=False, room=2**30)
    members.train(EPOCHS - 1, lambda _: True)
    members.save()
    second = study.train(last=False, room=2**30, levels=later)
    alone = Study(gaussians(), Sequential, "constant", tmp_path / "alone").train(levels=later)
    assert (second.records, second.tested) == (alone.records, alone.tested)
    assert second.epochs < alone.epochs
    assert first.epochs == EPOCHS * len(SEEDS)


def test_a_trunk_on_disk_is_never_replaced_by_a_shorter_one(tmp_path) -> None:
    """Of two workers that train the same trunk the one that is behind leaves the file as it is."""
    study = Study(gaussians(), Sequential, "constant", tmp_path)
    ahead, behind = study.cohort(levels={0: 0.0}), study.cohort(levels={0: 0.0})
    ahead.train(4, lambda _: True)
    behind.train(2, lambda _: True)
    ahead.save()
    behind.save()
    third = study.train(levels={0: 0.0})
    assert third.epochs == (EPOCHS - 4) * len(SEEDS)


def test_a_checkpoint_of_other_code_is_left_out(tmp_path, caplog) -> None:
    """Weights that do not fit the model any more start the run again, and it is said."""
    study = Study(gaussians(), Sequential, "constant", tmp_path)
    study.train(until=3)
    study.task = replace(gaussians(), model=two_gaussians(width=9, depth=2).model)
    again = study.train()
    other = Study(study.task, Sequential, "constant", tmp_path / "other").train()
    assert (again.records, again.tested) == (other.records, other.tested)
    assert "starts again" in caplog.text


def test_checkpoints_are_saved_by_the_clock_and_cost_little(tmp_path, monkeypatch) -> None:
    """They are due after a time, and later where saving takes long: at most a share of the time."""
    monkeypatch.setattr(checkpoint_module, "SECONDS", 10.0)
    now = [100.0]
    monkeypatch.setattr(checkpoint_module.time, "monotonic", lambda: now[0])
    pace = checkpoint_module.Pace()
    assert not pace.due()
    now[0] = 110.0
    assert pace.due()
    now[0] = 112.0
    pace.note_save(since=110.0)  # it took 2 seconds
    now[0] = 112.0 + 2 / checkpoint_module.SHARE - 0.1
    assert not pace.due()
    now[0] += 0.2
    assert pace.due()


@pytest.mark.parametrize("storage_url", ["sqlite"], indirect=True)
def test_a_worker_leaves_no_checkpoint_behind(database, make_spec, tmp_path, monkeypatch) -> None:
    """They are there while a study is trained, and gone when it is finished."""
    monkeypatch.setattr(checkpoint_module, "SECONDS", 0.0)
    monkeypatch.setattr(checkpoint_module, "SHARE", 1e9)
    seen: set[str] = set()
    plain = Checkpoint.save

    def save(self: Checkpoint, content: Any) -> None:
        plain(self, content)
        seen.add(self.name)

    monkeypatch.setattr(Checkpoint, "save", save)
    study = put_study(database, make_spec(levels={"high": 5.0}))
    queue.fill(study)
    work(study, WorkerSettings(device="cpu", checkpoints=tmp_path / "checkpoints"), LeaveRequest())
    assert any(name.startswith("ticket-") for name in seen)
    assert any(name.startswith("trunk-") for name in seen)
    assert not (tmp_path / "checkpoints" / study.name).exists()
