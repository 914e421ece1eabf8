"""Trainers of other libraries: exact in parts, untouched at level 0, flooded in training only, and stopped.

The libraries are the real ones. What both promise is tested on the examples, which have dropout, shuffled
data and a schedule of the learning rate.
"""

from __future__ import annotations

import dataclasses
import gc
import importlib
import math
import sys
import uuid
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch import Trainer as LightningTrainer
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from skorch import NeuralNetRegressor
from skorch.callbacks import Callback as SkorchCallback
from skorch.callbacks import EarlyStopping, LRScheduler
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from transformers import HfArgumentParser, LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from floodsearch import flood, queue
from floodsearch.adapters.hooks import FloodHooks
from floodsearch.adapters.huggingface import FloodTrainer
from floodsearch.adapters.lightning import FloodCallback
from floodsearch.adapters.skorch import FloodCallback as SkorchFloodCallback
from floodsearch.catalog import known
from floodsearch.errors import DivergedError, LoopError
from floodsearch.process.nesting import inside
from floodsearch.queries import answer
from floodsearch.storage.studies import put_study
from floodsearch.storage.trial_records import read_trials
from floodsearch.study.reader import read
from floodsearch.usercode.reference import called_as_program
from floodsearch.worker.leave import LeaveRequest
from floodsearch.worker.settings import WorkerSettings
from floodsearch.worker.work import work
from tests.test_loops import Alone as AnyAlone

EXAMPLES = Path(__file__).parents[1] / "studies" / "examples"
CPU = torch.device("cpu")

# What the libraries say of tiny data and of each other.
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated"),
]


@pytest.fixture(autouse=True, scope="module")
def _without_the_libraries_on_the_heap():
    """Hugging Face's trainer collects garbage each time it begins, which takes half a second of its own."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


class Alone(AnyAlone):
    """One run of a function, which is asked for what it returned."""

    def __init__(self, folder, *, epochs=4, **options):
        super().__init__(folder, epochs=epochs, **options)

    def train(self, function, until=10**9, stop_at=10**9):
        """Train one part; return what the function returned, or raise what was wrong."""
        returned = []
        error = super().train(lambda run: returned.append(function(run)), until, stop_at)
        if error is not None:
            raise error
        return returned[0]


@pytest.fixture
def alone(tmp_path):
    return lambda **options: Alone(tmp_path / uuid.uuid4().hex, **options)


@pytest.fixture(params=["lightning", "huggingface", "skorch"])
def example(request, monkeypatch):
    """Give the example of each library as a module."""
    monkeypatch.syspath_prepend(EXAMPLES)
    return importlib.import_module(f"{request.param}_train")


def equal(one, other):
    """Return whether two models have the same weights, to the bit."""
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def train_untouched(example, monkeypatch, run):
    """Train an example with the library's own trainer."""
    if example.__name__ == "skorch_train":
        monkeypatch.setattr(example, "FloodCallback", lambda run: SkorchCallback())
    elif hasattr(example, "FloodCallback"):
        monkeypatch.setattr(example, "FloodCallback", lambda run: Callback())
    else:
        monkeypatch.setattr(example, "FloodTrainer", lambda run, **options: Trainer(**options))
    return example.train(run)


# What every adapter promises


@pytest.mark.parametrize("level", [0.0, 0.6])
@pytest.mark.parametrize("pauses", [(1,), (2, 3)])
def test_a_run_in_parts_equals_one_that_was_never_paused(alone, example, level, pauses):
    """To the bit: weights, losses and metrics."""
    whole, parts = alone(level=level), alone(level=level)
    expected = whole.train(example.train)
    for until in (*pauses, 4):
        torch.seed()
        found = parts.train(example.train, until=until)
        assert parts.run.epoch == until
    assert equal(found, expected)
    assert [record.epoch for record in parts.records] == [1, 2, 3, 4]
    assert parts.records == whole.records
    assert any(record.flooded > 0 for record in whole.records) == (level > 0)


def test_level_0_trains_what_the_untouched_trainer_trains(alone, example, monkeypatch):
    """Its weights are the same to the bit."""
    one = alone(level=0.0)
    found = one.train(example.train)
    assert equal(train_untouched(example, monkeypatch, one.run), found)


def test_only_the_training_loss_is_flooded(alone, example):
    """Far below a level the model ascends; what is reported is the plain loss, in training and evaluation."""
    one = alone(level=100.0)
    model = one.train(example.train)
    losses = [record.train_loss for record in one.records]
    assert [record.flooded for record in one.records] == [1.0] * 4
    assert losses == sorted(losses)
    assert losses[-1] < 50, "else the plain loss and the flooded one are alike"
    _, _, validation = example.build(7)
    model.eval()
    with torch.no_grad():
        if isinstance(validation, DataLoader):
            [(inputs, labels)] = validation
            outputs = model.layers(inputs)
        elif isinstance(validation, tuple):
            inputs, labels = validation
            outputs = model(inputs)
        else:
            labels = torch.stack([row["labels"] for row in validation])
            outputs = model(torch.stack([row["input_ids"] for row in validation])).logits
    last = one.records[-1]
    assert last.val_loss == pytest.approx(nn.functional.cross_entropy(outputs, labels).item(), rel=1e-5)
    assert last.val_accuracy == pytest.approx((outputs.argmax(dim=1) == labels).float().mean().item())
    assert last.val_loss > one.records[0].val_loss


def test_a_run_that_is_pruned_stops_after_its_epoch(alone, example):
    """No batch is trained behind it; one that was only interrupted goes on from there."""
    whole, one = alone(), alone()
    expected = whole.train(example.train)
    one.train(example.train, stop_at=2)
    assert (one.run.epoch, one.run.goes_on, len(one.records)) == (2, False, 2)
    assert len(one.run._losses.unread) == 0
    assert equal(one.train(example.train), expected)
    assert one.records == whole.records


def test_the_weights_of_a_model_that_is_named_are_kept(alone, example, monkeypatch):
    """As of the last epoch, and a run in parts equals one that was never paused all the same."""
    whole, parts, plain = alone(), alone(keep="last"), example.build
    whole.train(example.train)

    def build(seed):
        model, *data = plain(seed)
        parts.run.restore(model=model)
        return model, *data

    monkeypatch.setattr(example, "build", build)
    parts.train(example.train, until=2)
    assert parts.run.memory.weights is None
    expected = parts.train(example.train).state_dict()
    assert parts.records == whole.records
    assert parts.run.memory.weights.keys() == expected.keys()
    assert all(torch.equal(parts.run.memory.weights[name], expected[name]) for name in expected)


def test_a_metric_that_was_not_logged_is_one_clear_line(alone, example):
    """It says what was logged instead."""
    with pytest.raises(
        LoopError, match=r"logged no '(eval_)?f1' in epoch 1, to report as f1; it logged "
    ) as no:
        alone(metric="f1").train(example.train)
    assert "loss, " in str(no.value)
    assert str(no.value).endswith("; log it, or name one of these in metrics={'f1': ...}")
    assert "\n" not in str(no.value)


@pytest.mark.parametrize("library", ["lightning", "huggingface", "skorch"])
def test_a_missing_library_is_one_clear_line(library, monkeypatch):
    """It says what to install."""
    needed = {"huggingface": "transformers"}.get(library, library)
    for name in [name for name in sys.modules if name.split(".")[0] == needed]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, needed, None)
    monkeypatch.delitem(sys.modules, f"floodsearch.adapters.{library}", raising=False)
    with pytest.raises(ModuleNotFoundError, match=rf"; install floodsearch\[{library}\]$"):
        importlib.import_module(f"floodsearch.adapters.{library}")


@pytest.mark.parametrize("storage_url", ["sqlite"], indirect=True)
def test_the_example_finds_a_level(example, database, tmp_path):
    """Its study is searched to an answer: levels are pruned at rungs, others go on from where they paused."""
    spec = read(EXAMPLES / f"{example.__name__.removesuffix('_train')}.toml", known())
    study = put_study(database, spec)
    queue.fill(study)
    settings = WorkerSettings(device="cpu", threads=1, checkpoints=tmp_path / "checkpoints")
    assert work(study, settings, LeaveRequest()) == "all tickets are finished"
    found = answer(study)
    assert found.finished
    assert found.baseline is not None
    assert found.value > 0.5
    ends = {trial.level: trial.state for trial in read_trials(study)}
    assert ends[0.0] == "complete"
    assert set(ends.values()) == {"complete", "pruned"}
    assert not list((tmp_path / "checkpoints").rglob("*.pt"))


# Lightning

QUIET = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "accelerator": "cpu",
    "devices": 1,
}


class Line(LightningModule):
    """A line through noisy points, with losses whose plain values are kept."""

    def __init__(self):
        super().__init__()
        self.layer, self.losses = nn.Linear(2, 1), []

    def loss(self, batch):
        inputs, targets = batch
        return nn.functional.mse_loss(self.layer(inputs), targets)

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(batch))
        self.log("valid/mean", self.layer(batch[0]).mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def points(batch_size=4, **options):
    generator = torch.Generator().manual_seed(0)
    x, noise = torch.randn(16, 2, generator=generator), torch.randn(16, 1, generator=generator)
    return DataLoader(TensorDataset(x, x.sum(dim=1, keepdim=True) + noise), batch_size, **options)


def fits(make=Line, *, metrics=None, loader=None, **options):
    """Give a function that fits a module with a callback."""

    def function(run):
        module = make(run) if make is ByHand else make()
        callbacks = [FloodCallback(run, metrics=metrics), *options.get("callbacks", [])]
        chosen = {"max_epochs": run.length, **QUIET, **options, "callbacks": callbacks}
        LightningTrainer(**chosen).fit(module, points(**(loader() if loader else {})), points(16))
        return module

    return function


BY_LOSS = {"metric": "val_loss", "maximize": False}


def trained_by_hand(level, *, epochs, accumulate):
    """Return the weight of a line whose micro-batches are flooded before they are averaged."""
    torch.manual_seed(7)
    layer = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    for _ in range(epochs):
        for index, (inputs, targets) in enumerate(points(), start=1):
            loss = nn.functional.mse_loss(layer(inputs), targets)
            (flood(loss, level) / accumulate).backward()
            if index % accumulate == 0:
                optimizer.step()
                optimizer.zero_grad()
    return layer.weight


def shuffled():
    return {"shuffle": True}


def shuffled_by_its_own():
    return {"shuffle": True, "generator": torch.Generator().manual_seed(5)}


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("level", [0.0, 0.9])
def test_lightning_decides_the_sign_for_each_micro_batch(alone, accumulate, level):
    """Of its mean loss, before Lightning divides it; the record has the plain losses."""
    one = alone(level=level, **BY_LOSS)
    module = one.train(fits(accumulate_grad_batches=accumulate))
    expected = trained_by_hand(level, epochs=4, accumulate=accumulate)
    torch.testing.assert_close(module.layer.weight, expected, rtol=1e-6, atol=1e-6)
    assert [record.train_loss for record in one.records] == pytest.approx(
        torch.tensor(module.losses).view(4, 4).mean(dim=1).tolist()
    )
    shares = (torch.tensor(module.losses).view(4, 4) < level).float().mean(dim=1).tolist()
    assert [record.flooded for record in one.records] == shares
    assert (0 < sum(shares) < 4) == (level > 0)


class InADict(Line):
    def training_step(self, batch, batch_idx):
        return {"loss": super().training_step(batch, batch_idx), "more": batch_idx}


def test_lightning_floods_a_loss_in_a_dict_and_keeps_the_rest(alone):
    seen = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            seen.append(outputs["more"])

    module = alone(level=0.9, **BY_LOSS).train(fits(InADict, callbacks=[Watch()]))
    assert seen == [0, 1, 2, 3] * 4
    assert equal(module, alone(level=0.9, **BY_LOSS).train(fits()))


class ByHand(Line):
    """Optimizes by itself, and so floods by itself."""

    def __init__(self, run):
        super().__init__()
        self.run, self.automatic_optimization = run, False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.run.flood(super().training_step(batch, batch_idx)))
        optimizer.step()


def test_lightning_leaves_manual_optimization_to_the_module(alone):
    """It comes to the same end, also in parts."""
    automatic, manual = alone(level=0.9, **BY_LOSS), alone(level=0.9, **BY_LOSS)
    expected = automatic.train(fits())
    manual.train(fits(ByHand), until=2)
    assert torch.equal(manual.train(fits(ByHand)).layer.weight, expected.layer.weight)
    assert manual.records == automatic.records


class Scheduled(Line):
    """Has a schedule that waits for a metric, one of milestones, and a state of its own."""

    def __init__(self):
        super().__init__()
        self.steps = 0

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.steps += 1

    def on_save_checkpoint(self, checkpoint):
        checkpoint["steps"] = self.steps

    def on_load_checkpoint(self, checkpoint):
        self.steps = checkpoint["steps"]

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=0.1)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=0.5)
        milestones = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 9, 9], gamma=0.5)
        return [optimizer], [
            {"scheduler": plateau, "monitor": "val_loss"},
            {"scheduler": milestones, "interval": "step"},
        ]


class Counts(Callback):
    """Keeps the trainer's counters at each epoch, and a state."""

    def __init__(self):
        self.seen = []

    def on_train_epoch_end(self, trainer, pl_module):
        rates = [group["lr"] for group in trainer.optimizers[0].param_groups]
        self.seen.append([trainer.current_epoch, trainer.global_step, pl_module.steps, *rates])

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state_dict):
        self.seen = state_dict["seen"]


def test_lightning_goes_on_with_every_counter_schedule_and_state(alone):
    """Those of the module, of other callbacks and of schedules that wait for a metric."""
    whole, parts, seen = alone(epochs=6, **BY_LOSS), alone(epochs=6, **BY_LOSS), []
    for one, pauses in ((whole, (6,)), (parts, (1, 3, 4, 6))):
        for until in pauses:
            counts = Counts()
            module = one.train(fits(Scheduled, loader=shuffled, callbacks=[counts]), until=until)
        seen.append((counts.seen, module))
    assert seen[0][0] == seen[1][0]
    assert [epoch for epoch, *_ in seen[0][0]] == [0, 1, 2, 3, 4, 5]
    assert len({rate for *_, rate in seen[0][0]}) > 3
    assert equal(seen[0][1], seen[1][1])
    assert parts.records == whole.records


@pytest.mark.parametrize("loader", [shuffled, shuffled_by_its_own])
def test_lightning_goes_on_with_the_order_of_the_data(alone, loader):
    """Also where a loader draws from a generator of its own."""
    whole, parts = alone(level=0.9, **BY_LOSS), alone(level=0.9, **BY_LOSS)
    expected = whole.train(fits(loader=loader))
    for until in (1, 3, 4):
        found = parts.train(fits(loader=loader), until=until)
    assert equal(found, expected)
    assert parts.records == whole.records


class Insides(Callback):
    """Look at those of Lightning's insides that have no public equal."""

    def on_train_epoch_end(self, trainer, pl_module):
        loop = trainer.fit_loop
        assert loop.epoch_loop._batches_that_stepped == trainer.global_step > 0
        assert loop._combined_loader.flattened == [trainer.train_dataloader]
        self.seen = True


def test_lightning_has_the_insides_that_its_state_is_made_of(alone):
    """A version that moves them fails here, and not in the second part of somebody's run."""
    insides = Insides()
    alone(epochs=1, **BY_LOSS).train(fits(callbacks=[insides]))
    assert insides.seen


def test_lightning_reports_when_it_has_validated(alone):
    """Not in the sanity check, not in epochs between; by names that the user gives."""
    one = alone(metric="height", validate_every=2)
    one.train(fits(check_val_every_n_epoch=2, metrics={"height": "valid/mean"}))
    assert [record.val_loss is None for record in one.records] == [True, False, True, False]
    assert [record.metric is None for record in one.records] == [True, False, True, False]
    assert one.records[1].val_loss != one.records[3].val_loss
    with pytest.raises(
        LoopError, match="logged no 'accuracy' in epoch 1, to report as val_accuracy; it logged"
    ):
        alone(**BY_LOSS).train(fits(metrics={"val_accuracy": "accuracy"}))


def test_lightning_that_diverges_is_told_so(alone):
    class Breaks(Line):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) * math.nan

    with pytest.raises(DivergedError, match=r"not finite at level 0\.3, epoch 1, seed 7; a lower"):
        alone(**BY_LOSS).train(fits(Breaks))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_epochs": 5}, "max_epochs=5, max_steps=-1, the run after 4 epochs; write Trainer(max_epochs="),
        ({"max_steps": 3}, "max_epochs=4, max_steps=3, the run after 4 epochs"),
        ({"min_epochs": 3}, "Trainer(min_epochs=3, min_steps=None) would train on after the run was pruned"),
    ],
)
def test_a_lightning_trainer_that_does_not_fit_the_run_is_refused(alone, options, message):
    with pytest.raises(LoopError) as error:
        alone(**BY_LOSS).train(fits(**options))
    assert message in str(error.value)


@pytest.mark.parametrize("strategy", ["ddp", "ddp_spawn", "ddp_notebook"])
@pytest.mark.parametrize("method", ["fit", "validate"])
def test_a_lightning_trainer_that_would_start_processes_is_refused(alone, strategy, method):
    """Before it starts one: a rank would be a second worker, for which the first one waits."""

    def function(run):
        options = {"accelerator": "cpu", "devices": 2, "strategy": strategy, "logger": False}
        trainer = LightningTrainer(max_epochs=run.length, callbacks=[FloodCallback(run)], **options)
        getattr(trainer, method)(Line())

    with pytest.raises(LoopError) as error:
        alone(**BY_LOSS).train(function)
    assert "would start processes of its own" in str(error.value)
    assert "write Trainer(devices=1), and leave strategy and num_nodes out" in str(error.value)


def test_inside_of_a_worker_no_lightning_trainer_starts_processes(monkeypatch):
    """Nor one without a run, as for a last test of the model; elsewhere it is none of our business."""
    options = {"accelerator": "cpu", "devices": 2, "strategy": "ddp_spawn", "logger": False}
    trainer = LightningTrainer(max_epochs=1, **options)
    monkeypatch.setattr(trainer.strategy.launcher, "launch", lambda *arguments, **named: "launched")
    assert trainer.test(Line(), verbose=False) == "launched"
    with inside("a worker"), pytest.raises(LoopError, match="would start processes of its own"):
        trainer.test(Line(), verbose=False)


@pytest.mark.parametrize("make", [FloodCallback, FloodTrainer])
def test_a_worker_that_is_one_of_several_ranks_is_refused(alone, monkeypatch, make):
    """As under torchrun and accelerate: each of them is a worker of its own."""
    monkeypatch.setenv("WORLD_SIZE", "1")
    FloodCallback(None)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(LoopError, match="one of 2 processes that torchrun or accelerate has started"):
        alone(**BY_LOSS).train(make)


def test_lightning_on_another_device_is_refused(alone):
    def function(run):
        run.device = torch.device("cuda", 1)
        fits()(run)

    with pytest.raises(
        LoopError, match=r'the run on cuda:1; write Trainer\(accelerator="cuda", devices=\[1\]\)'
    ):
        alone(**BY_LOSS).train(function)


# Hugging Face


def sentences():
    """Return rows of 3 to 6 tokens that count, of 6."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for index in range(16):
        tokens = torch.randint(0, 11, (6,), generator=generator)
        labels = torch.where(torch.arange(6) < 3 + index % 4, tokens, -100)
        rows.append({"input_ids": tokens, "labels": labels})
    return rows


def language_model():
    """Return a model whose loss is a sum, divided by what the trainer says; without dropout."""
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=11,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=6,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return LlamaForCausalLM(config)


def unshuffled(kind):
    """Return a kind of trainer that takes its rows in order."""

    class Unshuffled(kind):
        def _get_train_sampler(self, *_):
            return torch.utils.data.SequentialSampler(self.train_dataset)

    return Unshuffled


def trains(kind=FloodTrainer, rows=None, options=None, rate=0.1, **arguments):
    """Give a function that trains the language model by plain gradient descent."""

    def function(run):
        model = language_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=rate)
        schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
        chosen = {
            "num_train_epochs": run.length,
            "seed": run.seed,
            "eval_strategy": "epoch",
            "use_cpu": True,
            "per_device_train_batch_size": 4,
            "max_grad_norm": 0.0,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            **arguments,
        }
        rows_of = {"train_dataset": sentences(), "eval_dataset": rows or sentences()}
        given = (run,) if issubclass(kind, FloodTrainer) else ()
        trainer = unshuffled(kind)(
            *given,
            model=model,
            args=TrainingArguments(**chosen),
            optimizers=(optimizer, schedule),
            **rows_of,
            **(options or {}),
        )
        trainer.train()
        return trainer

    return function


def stack(rows):
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def step_by_hand(level, *, accumulate, smoothing=0.0):
    """Return a language model after one epoch, and the plain mean losses of its micro-batches."""
    model, losses = language_model(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batches = [stack(sentences()[start : start + 4]) for start in range(0, 16, 4)]
    for start in range(0, 4, accumulate):
        together = batches[start : start + accumulate]
        counts = [batch["labels"][:, 1:].ne(-100).sum() for batch in together]
        for batch, count in zip(together, counts, strict=True):
            logits = model(batch["input_ids"]).logits[:, :-1].flatten(0, 1)
            labels = batch["labels"][:, 1:].flatten()
            loss = nn.functional.cross_entropy(logits, labels, label_smoothing=smoothing)
            losses.append(loss.item())
            (flood(loss, level) * count / sum(counts)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, losses


@pytest.mark.parametrize(
    ("accumulate", "level"), [(1, 0.0), (1, 2.402), (1, 5.0), (2, 0.0), (2, 2.38), (2, 5.0)]
)
def test_hugging_face_decides_the_sign_for_each_micro_batch(alone, accumulate, level):
    """Of the mean over its tokens, although the trainer divides by those of the accumulated batch."""
    one = alone(level=level, epochs=1, **BY_LOSS)
    trainer = one.train(trains(gradient_accumulation_steps=accumulate))
    model, losses = step_by_hand(level, accumulate=accumulate)
    for found, expected in zip(trainer.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    [record] = one.records
    assert record.train_loss == pytest.approx(sum(losses) / 4, rel=1e-5)
    assert record.flooded == sum(loss < level for loss in losses) / 4
    assert (0 < record.flooded < 1) == (0 < level < 5)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_hugging_face_at_level_0_is_the_trainer_itself(alone, accumulate):
    """To the bit, also where it divides the loss by itself; the record has means all the same."""
    one = alone(level=0.0, **BY_LOSS)
    found = one.train(trains(gradient_accumulation_steps=accumulate))
    untouched = trains(Trainer, gradient_accumulation_steps=accumulate)(one.run)
    assert equal(found.model, untouched.model)
    assert one.records[0].train_loss == pytest.approx(math.log(11), rel=0.05)


def summed(outputs, labels, num_items_in_batch=None):
    """Return a loss of the user's own, divided as the trainer expects."""
    logits, labels = outputs.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    return nn.functional.cross_entropy(logits, labels, reduction="sum") / num_items_in_batch


@pytest.mark.parametrize(
    "options",
    [
        {"label_smoothing_factor": 0.2},
        {"options": {"compute_loss_func": summed}},
        {"label_smoothing_factor": 0.2, "gradient_accumulation_steps": 2},
        {"options": {"compute_loss_func": summed}, "gradient_accumulation_steps": 2},
    ],
)
def test_hugging_face_floods_whatever_loss_is_trained(alone, options):
    """Of a label smoother and of a function of the user's own; far below the level the model ascends."""
    below, above = alone(level=100.0, **BY_LOSS), alone(level=0.001, **BY_LOSS)
    below.train(trains(rate=0.01, **options))
    above.train(trains(rate=0.01, **options))
    assert [record.flooded for record in below.records + above.records] == [1.0] * 4 + [0.0] * 4
    assert below.records[0].train_loss == pytest.approx(math.log(11), rel=0.05)
    for one, rises in ((below, True), (above, False)):
        losses = [record.val_loss for record in one.records]
        assert losses == sorted(losses, reverse=not rises)


def test_hugging_face_reports_every_evaluation_set_at_once(alone):
    """Also with an evaluation before the training, which is none of an epoch, and another one behind it."""
    one = alone(metric="b_loss", maximize=False)
    sets = {"a": sentences()[:8], "b": sentences()[8:]}
    run = trains(rows=sets, eval_on_start=True, options={"metrics": {"val_loss": "eval_a_loss"}})
    trainer = one.train(run)
    trainer.evaluate()
    assert len(one.records) == 4
    for record in one.records:
        assert record.val_loss != record.metric
        assert record.metric is not None


def test_a_trainer_of_the_users_own_is_flooded(alone):
    """One that computes its loss by itself, a mean that the trainer divides."""

    class Own(Trainer):
        loss_is_scaled_for_ga = False

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            outputs = model(**inputs)
            return (outputs.loss, outputs) if return_outputs else outputs.loss

    class Flooded(FloodTrainer, Own):
        pass

    one = alone(level=100.0, epochs=1, **BY_LOSS)
    one.train(trains(Flooded, gradient_accumulation_steps=2))
    [record] = one.records
    assert record.flooded == 1.0
    assert record.train_loss == pytest.approx(math.log(11), rel=0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"num_train_epochs": 5},
            "num_train_epochs=5, but the run needs 4; write num_train_epochs=run.length",
        ),
        ({"max_steps": 3}, "TrainingArguments have max_steps=3, but the run needs -1; write max_steps=-1"),
        ({"seed": 42}, "TrainingArguments have seed=42, but the run needs 7; write seed=run.seed"),
        (
            {"eval_strategy": "no"},
            "eval_strategy='no', but the run needs 'epoch'; write eval_strategy=\"epoch\"",
        ),
        ({"load_best_model_at_end": True, "save_strategy": "epoch"}, "load_best_model_at_end=True"),
    ],
)
def test_training_arguments_that_do_not_fit_the_run_are_refused(alone, arguments, message):
    with pytest.raises(LoopError) as error:
        alone(**BY_LOSS).train(trains(**arguments))
    assert message in str(error.value)


def test_hugging_face_on_another_device_is_refused(alone):
    def function(run):
        run.device = torch.device("cuda", 1)
        trains()(run)

    with pytest.raises(
        LoopError, match=r"trains on cpu \(1 of them\), the run on cuda:1; write use_cpu=True"
    ):
        alone(**BY_LOSS).train(function)


def test_hugging_face_takes_no_other_checkpoint(alone):
    def function(run):
        FloodTrainer(run, model=language_model()).train(resume_from_checkpoint="folder")

    with pytest.raises(LoopError, match="leave resume_from_checkpoint out"):
        alone(**BY_LOSS).train(function)


@pytest.mark.filterwarnings("ignore")  # those of TensorBoard's own libraries, at whatever call imports them
@pytest.mark.parametrize("kind", [CSVLogger, TensorBoardLogger])
def test_loggers_that_lightning_has_by_default_are_named_by_their_run(alone, monkeypatch, tmp_path, kind):
    """By its level and seed, also where it goes on, and nothing of it is lost; other loggers stay."""
    if kind is TensorBoardLogger:
        pytest.importorskip("tensorboard")
    monkeypatch.syspath_prepend(EXAMPLES)
    example = importlib.import_module("lightning_train")
    loggers = [kind(tmp_path, version="mine")]

    def with_default(*, logger, **options):
        return LightningTrainer(logger=[kind(tmp_path), *loggers], **options)

    monkeypatch.setattr(example, "Trainer", with_default)
    one = alone(level=0.25)
    one.train(example.train, until=2)
    one.train(example.train, until=4)
    title = f"level-0.25-{one.run.name}"
    parts = {title, f"{title}-part-2"} if kind is CSVLogger else {title}
    assert {path.name for path in (tmp_path / "lightning_logs").iterdir()} == {*parts, "mine"}
    written = [path.name for name in parts for path in (tmp_path / "lightning_logs" / name).iterdir()]
    assert sum(name.startswith(("metrics", "events")) for name in written) == 2


# skorch


def nets(kept=None, *, callbacks=(), **options):
    """Give a function that fits a net with a line through noisy points, in the order of a generator."""

    def function(run):
        x, y = points().dataset.tensors
        chosen = {"max_epochs": run.length, "train_split": None, "verbose": 0, "lr": 0.1, **options}
        every = [
            SkorchFloodCallback(run, metrics={"val_loss": "train_loss"}),
            *(make() for make in callbacks),
        ]
        net = NeuralNetRegressor(
            nn.Linear, module__in_features=2, module__out_features=1, batch_size=4, **chosen
        )
        net.set_params(
            callbacks=every,
            iterator_train__shuffle=True,
            iterator_train__generator=torch.Generator().manual_seed(5),
        )
        net.fit(x, y)
        if kept is not None:
            kept.append(net)
        return net.module_

    return function


class CountsEpochs(SkorchCallback):
    """A callback with a state of its own, which changes what is trained."""

    def initialize(self):
        self.epochs_ = 0
        return self

    def on_epoch_end(self, net, **kwargs):
        self.epochs_ += 1
        net.optimizer_.param_groups[0]["lr"] = 0.1 / self.epochs_


@pytest.mark.parametrize("make", [CountsEpochs, lambda: LRScheduler("StepLR", step_size=1, gamma=0.5)])
def test_a_net_goes_on_with_its_callbacks_history_and_generators(alone, make):
    """To the bit, whether a callback stands before ours or behind it."""
    of_whole, of_parts = [], []
    whole, parts = alone(level=0.9, **BY_LOSS), alone(level=0.9, **BY_LOSS)
    expected = whole.train(nets(of_whole, callbacks=[make]))
    for until in (1, 3, 4):
        found = parts.train(nets(of_parts, callbacks=[make]), until)
    assert equal(found, expected)
    assert parts.records == whole.records
    assert of_parts[-1].history[:, "train_loss"] == of_whole[0].history[:, "train_loss"]
    assert of_parts[-1].history[:, "epoch"] == [1, 2, 3, 4]


def test_a_net_is_as_it_was_when_its_training_has_ended(alone):
    """Nothing of ours is left in it, which would flood another fit."""
    kept = []
    alone(level=100.0, **BY_LOSS).train(nets(kept))
    [net] = kept
    assert "get_loss" not in vars(net)
    assert [name for name, _ in net.callbacks_ if name == "flooding"] == []


class StopsInAnEpoch(SkorchCallback):
    """Stops its net in its third epoch."""

    def on_batch_end(self, net, **kwargs):
        if len(net.history) == 3:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    "stop",
    [lambda: EarlyStopping("train_loss", patience=1, threshold=10.0, sink=len), StopsInAnEpoch],
)
def test_a_net_that_stops_early_has_reported_each_epoch_that_it_has_trained(alone, stop):
    """So that whoever asks why it ended knows them all."""
    one = alone(**BY_LOSS)
    with pytest.raises(LoopError, match="returned after epoch 2 of 4 without being asked to"):
        one.train(nets(callbacks=[stop]))
    assert [record.epoch for record in one.records] == [1, 2]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"max_epochs": 3}, "the net has max_epochs=3, the run 4; write max_epochs=run.length"),
        ({"device": "meta"}, "the net trains on meta, the run on cpu; write device=run.device"),
    ],
)
def test_a_net_that_does_not_fit_its_run_is_one_clear_line(alone, options, says):
    with pytest.raises(LoopError) as no:
        alone(**BY_LOSS).train(nets(**options))
    assert str(no.value) == says


# Any other trainer


class Keras:
    """A trainer as there are many: it owns its loop, and calls hooks."""

    def __init__(self, model, optimizer, epochs, hooks):
        self.model, self.optimizer, self.epochs, self.hooks = model, optimizer, epochs, hooks
        self.stops = True

    def fit(self, loader, first_epoch=0):
        for _ in range(first_epoch, self.epochs):
            self.hooks.on_epoch_begin()
            losses = []
            for x, y in loader:
                loss = self.hooks.on_batch_loss(nn.functional.mse_loss(self.model(x), y))
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
                losses.append(loss.item())
            if self.hooks.on_epoch_end({"valid": losses[-1], "step": 3}) and self.stops:
                break


def by_hand(run, **changes):
    """Train a line as a user of such a trainer would."""
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    hooks = FloodHooks(run, metrics={"val_loss": "valid"})
    trainer = Keras(model, optimizer, run.length, hooks)
    vars(trainer).update(changes)
    hooks.on_train_begin(model=model, optimizer=optimizer)
    trainer.fit(points(shuffle=True), first_epoch=run.epoch)
    hooks.on_train_end()
    return model


def test_any_trainer_with_hooks_trains_a_run_in_parts(alone):
    """To the bit, flooded while it trains, and stopped where the run is pruned."""
    whole, parts, pruned = (alone(level=0.9, **BY_LOSS) for _ in range(3))
    expected = whole.train(by_hand)
    for until in (1, 3, 4):
        found = parts.train(by_hand, until)
    assert equal(found, expected)
    assert parts.records == whole.records
    assert any(0 < record.flooded < 1 for record in whole.records)
    pruned.train(by_hand, stop_at=2)
    assert [record.epoch for record in pruned.records] == [1, 2]
    assert whole.records[:2] == pruned.records


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"stops": False},
            "the trainer goes on after epoch 2, where the run ends or pauses; let it stop where "
            "on_epoch_end() returns True",
        ),
        ({"epochs": 1}, "the loop returned after epoch 1 of 4 without being asked to; return when"),
    ],
)
def test_a_trainer_that_does_not_keep_to_its_hooks_is_one_clear_line(alone, changes, says):
    with pytest.raises(LoopError) as no:
        alone(**BY_LOSS).train(lambda run: by_hand(run, **changes), until=2)
    assert str(no.value).startswith(says)


def test_an_epoch_that_has_not_begun_is_not_reported(alone):
    def train(run):
        FloodHooks(run).on_epoch_end({"val_loss": 0.5})

    with pytest.raises(LoopError, match=r"without on_epoch_begin\(\); call both once in each epoch"):
        alone(**BY_LOSS).train(train)


# Their parsers


class Points(LightningDataModule):
    def __init__(self, size: int = 4):
        super().__init__()
        self.size = size

    def train_dataloader(self):
        return points(self.size)

    def val_dataloader(self):
        return points(16)


class LineAt(Line):
    def __init__(self, rate: float = 0.1):
        super().__init__()
        self.rate = rate

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.rate)


def by_command_line(run):
    """Train as LightningCLI reads it from `sys.argv`."""
    options = {"max_epochs": run.length, "callbacks": [FloodCallback(run)], **QUIET}
    cli = LightningCLI(
        LineAt,
        Points,
        run=False,
        seed_everything_default=run.seed,
        save_config_callback=None,
        trainer_defaults=options,
    )
    cli.trainer.fit(cli.model, cli.datamodule)
    return cli.model


@dataclasses.dataclass
class Settings:
    """What HfArgumentParser reads from `sys.argv`."""

    rate: float = 0.1
    names: list[str] = dataclasses.field(default_factory=list)


def by_dataclass(run):
    """Report what HfArgumentParser reads."""
    (found,) = HfArgumentParser(Settings).parse_args_into_dataclasses()
    for _ in run.epochs():
        run.report(val_accuracy=found.rate)
    return found


def test_lightnings_command_line_reads_the_study_files_arguments(alone, monkeypatch):
    """And a run in parts equals one that was never paused."""
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # Lightning's of jsonargparse
    function = called_as_program(by_command_line, "train:train", ["--model.rate", "0.3", "--data.size=8"])
    whole, parts = alone(**BY_LOSS), alone(**BY_LOSS)
    model = whole.train(function)
    assert model.rate == 0.3
    for until in (2, 4):
        found = parts.train(function, until)
    assert equal(found, model)
    assert parts.records == whole.records


def test_hugging_faces_parser_reads_the_study_files_arguments(alone):
    function = called_as_program(by_dataclass, "train:train", ["--rate", "0.3", "--names", "a", "b"])
    assert alone().train(function) == Settings(rate=0.3, names=["a", "b"])


@pytest.mark.parametrize(
    ("function", "arguments", "says"),
    [
        (by_command_line, ["--model.rate", "fast"], "'Parser key \"model.rate\": Expected a <class 'float'>"),
        (by_dataclass, ["--rate", "fast"], "train: error: argument --rate: invalid float value: 'fast'"),
        (by_dataclass, ["--fast"], "Some specified arguments are not used by the HfArgumentParser: "),
    ],
)
def test_what_the_parser_of_a_library_says_is_told_in_its_own_words(alone, capsys, function, arguments, says):
    with pytest.raises((SystemExit, ValueError)) as ended:
        alone().train(called_as_program(function, "train:train", arguments))
    assert says.strip("'") in str(ended.value)
    assert "\n" not in str(ended.value)
