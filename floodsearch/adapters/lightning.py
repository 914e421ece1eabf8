"""Lightning: a callback with which a `Trainer` trains a run of a study.

    def train(run):
        trainer = Trainer(max_epochs=run.length, callbacks=[FloodCallback(run)], ...)
        trainer.fit(build(run), ...)

It floods what `training_step` returns, reports each epoch, and stops where the run is pruned or pauses. Where
the trainer stops by itself, as by its `EarlyStopping`, the run has ended, if the study lets it. A run that
pauses goes on from its own checkpoint, to the bit: model, optimizers, schedulers, scaler, callbacks, the
trainer's counters and the global random states.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from floodsearch.adapters.metrics import pick
from floodsearch.adapters.ranks import check_alone
from floodsearch.artifacts.names import titled
from floodsearch.errors import LoopError
from floodsearch.process.nesting import MARK
from floodsearch.training.loop import LoopRun

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.callbacks import Checkpoint
    from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"floodsearch.adapters.lightning needs Lightning ({error}); install floodsearch[lightning]"
    ) from error


class FloodCallback(Callback):
    """Trains a run of a study with a Lightning `Trainer`, on one device.

    The trainer counts the epochs and `run.epochs()` beside it; a checkpoint is saved where the next epoch
    begins, when also the schedulers of the last one have stepped.

    What `training_step` returns is flooded, and what it logs is the plain loss. Under gradient accumulation
    the sign is decided for each micro-batch, of its mean loss: Lightning divides afterwards. With manual
    optimization nothing is flooded here: call `run.flood(loss)` before `self.manual_backward`.

    Args:
        run: as the study hands it to the training function.
        metrics: name of the study to name that the module logs, such as `{"val_accuracy": "valid/acc"}`, for
            those that differ. They are taken from `trainer.callback_metrics` after an epoch that was
            validated; `val_accuracy`, `val_loss`, `test_accuracy`, `test_loss` and the study's metric are
            reported where they were logged.

    Raises (when `fit` begins or reports):
        LoopError: if the trainer has another number of epochs or another device than the run, would start
            processes of its own, or the study's metric is due and was not logged.
        DivergedError: if a number is NaN or infinite.
    """

    def __init__(self, run: LoopRun, *, metrics: Mapping[str, str] | None = None) -> None:
        check_alone()
        self.run = run
        self.metrics = dict(metrics or {})
        self._epochs: Generator[int]
        self._validated = self._stopped = False
        self._last = _Last(self._end_epoch)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Load the run's checkpoint if there is one, and begin to flood."""
        _check(trainer, self.run)
        self.run.restore(trainer=_State(trainer))
        self._epochs = self.run.epochs()
        trainer.callbacks = [*trainer.callbacks, self._last]
        if pl_module.automatic_optimization:
            # `on_before_backward` is given the loss, but cannot replace it, and `backward` has it divided by
            # the micro-batches and scaled for mixed precision. What the strategy returns is the loss as the
            # module computed it; the module itself, which others look into, stays as it is. The method is
            # public, and replaced on this one strategy until the training ends.
            trainer.strategy.training_step = self._flooded(trainer.strategy.training_step)

    def _flooded(self, training_step: Any) -> Any:
        @functools.wraps(training_step)
        def step(*args: Any, **kwargs: Any) -> Any:
            output = training_step(*args, **kwargs)
            if isinstance(output, Mapping) and "loss" in output:
                return {**output, "loss": self.run.flood(output["loss"])}
            # Without a loss the batch is skipped, or Lightning says what is wrong.
            return self.run.flood(output) if isinstance(output, Tensor) else output

        return step

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the run if that is due: all of the last epoch has ended."""
        del trainer, pl_module
        self._validated = False
        next(self._epochs, None)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Note that there are metrics of this epoch; a sanity check before the first one is none."""
        del pl_module
        self._validated = not trainer.sanity_checking

    def _end_epoch(self, trainer: Trainer) -> None:
        """Report the epoch, and stop where the run ends or pauses, or the trainer has stopped by itself."""
        logged = trainer.callback_metrics
        self.run.report(**(pick(self.run, logged, str, self.metrics) if self._validated else {}))
        self._stopped = trainer.should_stop and self.run.epoch < self.run.length
        trainer.should_stop = trainer.should_stop or self.run.ends

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the run where it ended, and flood no more."""
        if self._stopped:  # by somebody else than the run
            self._epochs.close()
        next(self._epochs, None)
        trainer.callbacks = [one for one in trainer.callbacks if one is not self._last]
        if pl_module.automatic_optimization:
            del trainer.strategy.training_step


class _Last(Checkpoint):
    """Stands behind all other callbacks, and so knows what each of them, and the module, has decided.

    At the end of an epoch Lightning asks the callbacks that watch a metric last: those of two classes.
    """

    def __init__(self, end_epoch: Callable[[Trainer], None]) -> None:
        self.end_epoch = end_epoch

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the epoch be reported."""
        del pl_module
        self.end_epoch(trainer)


def _named_by_run(logger: Logger, run: LoopRun) -> Logger:
    """Return a logger as trainers have it by default with a folder of the run's name; any other as it is.

    What `CSVLogger` finds in its folder it removes: a run that goes on has another one there.
    """
    default = type(logger) in (TensorBoardLogger, CSVLogger) and logger.name == "lightning_logs"
    if not default or getattr(logger, "_version", 0) is not None:
        return logger
    name, around = titled(run.level, run.name), Path(logger.save_dir or ".") / "lightning_logs"
    if isinstance(logger, CSVLogger) and (around / name).exists():
        parts = (f"{name}-part-{number}" for number in itertools.count(2))
        name = next(part for part in parts if not (around / part).exists())
    return type(logger)(logger.save_dir, version=name)


def _in_one_process(method: Callable[..., Any]) -> Callable[..., Any]:
    """Let a method of `Trainer` look first whether it would start processes of its own, inside of a worker.

    And let the loggers of a run of a study write where its name is.

    No callback is asked before it does: ranks would run the worker's command line again, and wait for each
    other.
    """

    @functools.wraps(method)
    def checked(self: Trainer, *args: Any, **kwargs: Any) -> Any:
        if MARK in os.environ or any(isinstance(one, FloodCallback) for one in self.callbacks):
            _check_alone(self)
        for one in self.callbacks:
            if isinstance(one, FloodCallback):  # before the logger makes its folder
                self.loggers = [_named_by_run(logger, one.run) for logger in self.loggers]
        return method(self, *args, **kwargs)

    return checked


for _name in ("fit", "validate", "test", "predict"):
    setattr(Trainer, _name, _in_one_process(getattr(Trainer, _name)))


def _check_alone(trainer: Trainer) -> None:
    """Raise a LoopError if a trainer does not train in this process alone, on one device."""
    count = trainer.num_devices * trainer.num_nodes
    if trainer.strategy.launcher is None and count == 1:
        return
    raise LoopError(
        f"the trainer would start processes of its own ({type(trainer.strategy).__name__}, {count} of them), "
        "but a run is trained in one; write Trainer(devices=1), and leave strategy and num_nodes out"
    )


def _check(trainer: Trainer, run: LoopRun) -> None:
    """Raise a LoopError if a trainer does not fit a run."""
    if trainer.max_epochs != run.length or trainer.max_steps != -1:
        raise LoopError(
            f"the trainer ends after max_epochs={trainer.max_epochs}, max_steps={trainer.max_steps}, the run "
            f"after {run.length} epochs; write Trainer(max_epochs=run.length) and leave max_steps out"
        )
    if (trainer.min_epochs or 0) > 1 or (trainer.min_steps or 0) > 1:
        raise LoopError(
            f"Trainer(min_epochs={trainer.min_epochs}, min_steps={trainer.min_steps}) would train on after "
            "the run was pruned; leave them out"
        )
    device = trainer.strategy.root_device
    if (device.type, device.index or 0) != (run.device.type, run.device.index or 0):
        devices = 1 if run.device.type == "cpu" else [run.device.index or 0]
        raise LoopError(
            f"the trainer trains on {device}, the run on {run.device}; "
            f'write Trainer(accelerator="{run.device.type}", devices={devices})'
        )


class _State:
    """The state of a training between two epochs.

    Two of Lightning's insides have no public equal: `_batches_that_stepped`, which loggers count by, and
    `_combined_loader`, which holds the loaders of `fit`. Both are as in Lightning 2.6; a test says when they
    move.

    Lightning's own checkpoints are made before schedulers that wait for a metric have stepped, and are named
    before `fit`. This one is loaded where the training starts, so that the trainer goes on as if it had never
    stopped.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer

    @property
    def model(self) -> LightningModule:
        """What is trained."""
        return self.trainer.lightning_module

    def state_dict(self) -> dict[str, Any]:
        """Return all that changes while a trainer trains, but for the global random states."""
        trainer = self.trainer
        state: dict[str, Any] = {
            "state_dict": trainer.lightning_module.state_dict(),
            "optimizer_states": [optimizer.state_dict() for optimizer in trainer.optimizers],
            "lr_schedulers": [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs],
            "precision": trainer.precision_plugin.state_dict(),
            "callbacks": {one.state_key: one.state_dict() for one in trainer.callbacks},
            "metrics": dict(trainer.callback_metrics),
            "progress": [progress.state_dict() for progress in self._progress()],
            "steps": trainer.fit_loop.epoch_loop._batches_that_stepped,
            "generators": [generator.get_state() for generator in self._generators()],
        }
        trainer.lightning_module.on_save_checkpoint(state)
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Set a trainer that is about to begin its first epoch to what `state_dict` returned."""
        trainer = self.trainer
        trainer.lightning_module.on_load_checkpoint(state)
        trainer.lightning_module.load_state_dict(state["state_dict"])
        for optimizer, one in zip(trainer.optimizers, state["optimizer_states"], strict=True):
            optimizer.load_state_dict(one)
        for config, one in zip(trainer.lr_scheduler_configs, state["lr_schedulers"], strict=True):
            config.scheduler.load_state_dict(one)
        trainer.precision_plugin.load_state_dict(state["precision"])
        for callback in trainer.callbacks:
            if one := state["callbacks"].get(callback.state_key):  # as Lightning does: most have none
                callback.load_state_dict(one)
        trainer.callback_metrics.update(state["metrics"])
        for progress, one in zip(self._progress(), state["progress"], strict=True):
            progress.load_state_dict(one)
        # It was saved when the next epoch had been announced, which is now announced again.
        epochs = trainer.fit_loop.epoch_progress
        epochs.current.ready, epochs.total.ready = epochs.current.completed, epochs.total.completed
        trainer.fit_loop.epoch_loop._batches_that_stepped = state["steps"]
        # Only now: the trainer has already asked its loaders for an iterator, which draws from these.
        for generator, one in zip(self._generators(), state["generators"], strict=True):
            generator.set_state(one)

    def _generators(self) -> list[torch.Generator]:
        """Return the generators of their own that training loaders and their samplers were given."""
        loaders = self.trainer.fit_loop._combined_loader.flattened
        owners = [owner for loader in loaders for owner in (loader, getattr(loader, "sampler", None))]
        found = [getattr(owner, "generator", None) for owner in owners]
        return [one for one in found if isinstance(one, torch.Generator)]

    def _progress(self) -> list[Any]:
        """Return the counters behind `current_epoch`, `global_step` and the steps of schedulers."""
        loop = self.trainer.fit_loop.epoch_loop
        return [
            self.trainer.fit_loop.epoch_progress,
            loop.batch_progress,
            loop.scheduler_progress,
            loop.automatic_optimization.optim_progress,
            loop.manual_optimization.optim_step_progress,
        ]
