"""Trainers of other libraries that stop by themselves: a run ends there, in parts as in one, to the bit.

The libraries are the real ones, and so are their callbacks.
"""

from __future__ import annotations

import uuid

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from transformers import EarlyStoppingCallback, TrainerCallback

from floodsearch.errors import LoopError
from tests.test_adapters import BY_LOSS, Alone, Line, fits, trains

# What the libraries say of tiny data, and of what they saved before.
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated"),
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def alone(tmp_path):
    chosen = {"may_end": True, "epochs": 30, **BY_LOSS}
    return lambda **options: Alone(tmp_path / uuid.uuid4().hex, **{**chosen, **options})


def watches_loss(folder, *, patience=2, **options):
    """Give Lightning's callbacks: one that stops where the loss rises, one that keeps the best two."""
    stopping = EarlyStopping("val_loss", patience=patience, min_delta=0.003, **options)
    return [stopping, ModelCheckpoint(folder, monitor="val_loss", save_top_k=2)]


def contents(folder):
    """Return the names and the weights of the files of a folder."""
    return {
        path.name: torch.load(path, weights_only=False)["state_dict"]["layer.weight"].tolist()
        for path in folder.iterdir()
    }


def state_of(callbacks):
    stopping, best = (dict(one.state_dict()) for one in callbacks)
    names = ("best_model_score", "current_score", "kth_value")
    return stopping, {name: best[name] for name in names}, len(best["best_k_models"])


@pytest.mark.parametrize("at_epoch_end", [True, False])
def test_lightning_ends_where_it_stops_early_wherever_it_pauses(alone, tmp_path, at_epoch_end):
    """What `EarlyStopping` has counted and what `ModelCheckpoint` has kept are those of an unbroken run."""
    made = []

    def train(run, folder):
        callbacks = watches_loss(folder, check_on_train_epoch_end=at_epoch_end)
        made.append(callbacks)
        return fits(callbacks=callbacks, enable_checkpointing=True)(run)

    whole = alone()
    expected = whole.train(lambda run: train(run, tmp_path / "whole"))
    expected_state, end = state_of(made[-1]), whole.run.epoch
    assert whole.run.ended
    assert 3 < end < 30
    for number, pauses in enumerate(((1,), (2, end - 1), (end,))):
        parts, folder = alone(), tmp_path / f"parts-{number}"
        for until in (*pauses, 30):
            found = parts.train(lambda run, folder=folder: train(run, folder), until=until)
            if parts.run.ended:
                break
            assert parts.run.epoch == until
        assert parts.records == whole.records
        assert torch.equal(found.layer.weight, expected.layer.weight)
        assert state_of(made[-1]) == expected_state
        assert contents(folder) == contents(tmp_path / "whole")


class StopsItself(Line):
    """A module that stops its trainer behind all callbacks but those that watch a metric."""

    def on_train_epoch_end(self):
        self.trainer.should_stop = self.trainer.should_stop or self.current_epoch == 3


@pytest.mark.parametrize("until", [4, 30])
def test_lightning_ends_where_its_module_stops_it(alone, until):
    """Also in the epoch of a rung: that is no pause."""
    one = alone()
    one.train(fits(StopsItself), until=until)
    assert (one.run.ended, one.run.epoch) == (True, 4)


def test_a_trainer_that_must_not_stop_says_how_to_let_it(alone, tmp_path):
    with pytest.raises(LoopError, match=r'let runs end early by early_stopping = "best" \(or "last"\) in'):
        alone(may_end=False).train(fits(StopsItself))


def test_lightning_that_stops_with_the_last_epoch_has_not_ended_early(alone):
    one = alone(epochs=4, may_end=False)
    one.train(fits(StopsItself))
    assert (one.run.ended, one.run.epoch) == (False, 4)


class StopsAt(TrainerCallback):
    """One of the user's own, which stops behind an epoch's evaluation."""

    def on_evaluate(self, args, state, control, **kwargs):
        control.should_training_stop = round(state.epoch) == 3


BEST = {"metric_for_best_model": "loss", "greater_is_better": False}


@pytest.mark.filterwarnings("ignore:Using EarlyStoppingCallback without load_best_model_at_end")
def test_hugging_face_ends_where_it_stops_early_wherever_it_pauses(alone):
    """What `EarlyStoppingCallback` has counted is that of an unbroken run."""
    made = []

    def train(run):
        stopping = EarlyStoppingCallback(early_stopping_patience=2, early_stopping_threshold=0.02)
        made.append(stopping)
        return trains(rate=1.0, options={"callbacks": [stopping]}, **BEST)(run)

    whole = alone(level=0.0)
    expected = whole.train(train)
    end = whole.run.epoch
    assert whole.run.ended
    assert 2 < end < 30
    for pauses in ((2, end - 1), (end,)):
        parts = alone(level=0.0)
        for until in (*pauses, 30):
            found = parts.train(train, until=until)
            if parts.run.ended:
                break
            assert parts.run.epoch == until
        assert parts.records == whole.records
        assert made[-1].state() == made[0].state()
        pairs = zip(found.model.parameters(), expected.model.parameters(), strict=True)
        assert all(torch.equal(*pair) for pair in pairs)


@pytest.mark.parametrize("until", [3, 30])
def test_hugging_face_ends_where_a_callback_of_the_users_own_stops_it(alone, until):
    """Also in the epoch of a rung: that is no pause."""
    one = alone()
    one.train(trains(options={"callbacks": [StopsAt()]}), until=until)
    assert (one.run.ended, one.run.epoch) == (True, 3)


def test_the_best_model_at_the_end_is_refused_with_what_to_write(alone):
    with pytest.raises(
        LoopError, match=r"load_best_model_at_end=True would put .* leave it out, and write "
    ) as no:
        alone().train(trains(load_best_model_at_end=True, save_strategy="epoch"))
    assert 'early_stopping = "best" in [training]' in str(no.value)
    assert "\n" not in str(no.value)
