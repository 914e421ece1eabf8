"""Hugging Face: a `transformers.Trainer` that trains a run of a study.

    def train(run):
        args = TrainingArguments(num_train_epochs=run.length, seed=run.seed, eval_strategy="epoch", ...)
        FloodTrainer(run, model=..., args=args, train_dataset=..., eval_dataset=...).train()

It floods the loss that is trained, reports after each epoch's evaluation, and stops where the run is pruned
or pauses. Where the trainer stops by itself, as by its `EarlyStoppingCallback`, the run has ended, if the
study lets it. A run that pauses goes on from its own checkpoint, to the bit: model, optimizer, scheduler,
scaler, callbacks, the trainer's state and the global random states.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Generator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from floodsearch.adapters.metrics import pick
from floodsearch.adapters.ranks import check_alone
from floodsearch.errors import LoopError
from floodsearch.process.nesting import MARK
from floodsearch.training.loop import LoopRun

try:
    from transformers import Trainer, TrainerCallback
    from transformers.trainer import OPTIMIZER_NAME, SCALER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
    from transformers.trainer_callback import ExportableState
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"floodsearch.adapters.huggingface needs transformers ({error}); install floodsearch[huggingface]"
    ) from error
RESTORED = "restore_callback_states_from_checkpoint"

if MARK in os.environ:  # TrainingArguments already wait for the other processes
    check_alone()


class FloodTrainer(Trainer):
    """A `transformers.Trainer` that trains a run of a study, on one device.

    In the place of a subclass of `Trainer`, stand before it: `class Mine(FloodTrainer, Seq2SeqTrainer)`.

    What `compute_loss` returns while training is flooded, whoever computes it: the model, a label smoother or
    `compute_loss_func`; the loss of an evaluation is plain. Under gradient accumulation the sign is decided
    for each micro-batch, of its mean loss as the trainer counts its items. Where the trainer divides the sum
    over a micro-batch by the items of the accumulated batch, that mean is found from the items of both: a
    `compute_loss_func` has to divide by `num_items_in_batch`, as the trainer expects of it. The `loss` of the
    trainer's log is the flooded one; the study's curves hold the plain one.

    Args:
        run: as the study hands it to the training function.
        args: of the trainer, by position or name; the `TrainingArguments` among them say `num_train_epochs`,
            `seed` and `eval_strategy` as the run has them.
        metrics: name of the study to the trainer's name of a metric, such as `{"val_accuracy": "eval_acc"}`,
            for those that differ: `val_x` is `eval_x` unless you say otherwise, and other names, such as `f1`
            and `test_loss`, `eval_f1` and `eval_test_loss`. `val_accuracy`, `val_loss`, `test_accuracy`,
            `test_loss` and the study's metric are reported where they were evaluated.

    Raises (when `train` begins or reports):
        LoopError: if the `TrainingArguments` do not fit the run, or the study's metric is due and was not
            evaluated.
        DivergedError: if a number is NaN or infinite.
    """

    def __init__(
        self, run: LoopRun, *args: Any, metrics: Mapping[str, str] | None = None, **kwargs: Any
    ) -> None:
        check_alone()
        super().__init__(*args, **kwargs)
        self.run = run
        self._resumed: dict[str, Any] | None = None
        self._epochs = _Epochs(run, self, dict(metrics or {}))
        self.add_callback(self._epochs)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Return the loss, (), flooded where it is trained, and the outputs if they are asked for."""
        if not torch.is_grad_enabled():  # an evaluation
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        share = self._share(inputs, num_items_in_batch)  # first: the labels may be taken out of the inputs
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        mean = loss if share is None else loss / share
        flooded = self.run.flood(mean)
        if flooded is not mean:  # else it stays the trainer's own, to the bit
            loss = flooded if share is None else flooded * share
        return (loss, outputs) if return_outputs else loss

    def _share(self, inputs: dict[str, Any], num_items: Tensor | int | None) -> Tensor | None:
        """Return the factor by which the trainer scales the mean loss of a micro-batch; None if by none."""
        scaled = getattr(self, "loss_is_scaled_for_ga", None)  # older versions have it not
        if scaled is None:  # as `training_step` decides it
            scaled = self.model_accepts_loss_kwargs or self.compute_loss_func is not None
        if num_items is None or not scaled or self.args.gradient_accumulation_steps == 1:
            return None
        _, items = self.get_batch_samples(iter([inputs]), 1, self.args.device)
        share: Tensor = items.clamp(min=1) / num_items
        return share

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train the run, from its last checkpoint if there is one, until it ends or pauses.

        Args:
            args: as `Trainer.train` takes them, but for a checkpoint.
            kwargs: the same.

        Returns:
            What `Trainer.train` returns.
        """
        if args or kwargs.pop("resume_from_checkpoint", None):
            raise LoopError("the run goes on from its own checkpoint; leave resume_from_checkpoint out")
        _check(self.args, self.run)
        # Behind all others: it has to know what they decide.
        self.remove_callback(self._epochs)
        self.add_callback(self._epochs)
        self.run.restore(trainer=self)
        if self._resumed is None:
            return super().train(**kwargs)
        # Which epoch it begins with, a trainer takes from a folder only.
        with TemporaryDirectory() as folder:
            self._write(Path(folder), self._resumed)
            return super().train(resume_from_checkpoint=folder, **kwargs)

    def state_dict(self) -> dict[str, Any]:
        """Return all that changes while the trainer trains, but for the global random states."""
        scaler = self.accelerator.scaler
        return {
            "model": self.accelerator.unwrap_model(self.model).state_dict(),
            OPTIMIZER_NAME: self.optimizer.state_dict(),
            SCHEDULER_NAME: self.lr_scheduler.state_dict(),
            SCALER_NAME: None if scaler is None else scaler.state_dict(),
            TRAINER_STATE_NAME: json.dumps(dataclasses.asdict(self.state)),
            "callbacks": [one.state()["attributes"] for one in self._with_state()],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next `train` go on from what `state_dict` returned."""
        self.model.load_state_dict(state["model"])
        for callback, attributes in zip(self._with_state(), state["callbacks"], strict=True):
            for name, value in attributes.items():
                setattr(callback, name, value)
        self._resumed = state

    def _with_state(self) -> list[Any]:
        """Return the callbacks that say what their state is, such as `EarlyStoppingCallback`."""
        return [one for one in self.callback_handler.callbacks if isinstance(one, ExportableState)]

    def _write(self, folder: Path, state: Mapping[str, Any]) -> None:
        """Write a state as a checkpoint of `transformers`, without random states: those are the run's."""
        self.save_model(str(folder), _internal_call=True)
        for name in (OPTIMIZER_NAME, SCHEDULER_NAME, SCALER_NAME):
            if state[name] is not None:
                torch.save(state[name], folder / name)
        (folder / TRAINER_STATE_NAME).write_text(state[TRAINER_STATE_NAME], encoding="utf-8")


class _Epochs(TrainerCallback):
    """Counts the epochs of a run beside its trainer, reports them, and stops where the run ends or pauses."""

    def __init__(self, run: LoopRun, trainer: Trainer, metrics: Mapping[str, str]) -> None:
        self.run, self.trainer, self.metrics = run, trainer, metrics
        self._epochs: Generator[int]
        self._stopped = False
        self._logged: dict[str, Any] = {}
        self._awaited = 0  # evaluations of the epoch that has been trained

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin the loop over the run's epochs."""
        self._epochs = self.run.epochs()

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save the run if that is due: all of the last epoch has ended, schedulers included."""
        next(self._epochs, None)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Await the evaluations of this epoch: one, or one for each set of a dict of them."""
        sets = self.trainer.eval_dataset
        self._awaited, self._logged = len(sets) if isinstance(sets, dict) else 1, {}

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: Mapping[str, Any], **kwargs: Any
    ) -> None:
        """Report the epoch after its last evaluation; others, such as one before the training, are none."""
        if not self._awaited:
            return
        self._awaited -= 1
        self._logged |= metrics
        if not self._awaited:
            self.run.report(**pick(self.run, self._logged, _eval, self.metrics))
            self._stopped = control.should_training_stop and self.run.epoch < self.run.length
            control.should_training_stop = control.should_training_stop or self.run.ends

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save the run where it ended."""
        if self._stopped:  # by somebody else than the run
            self._epochs.close()
        next(self._epochs, None)


def _eval(name: str) -> str:
    """Return the trainer's name of a metric of the study."""
    return f"eval_{name.removeprefix('val_')}"


def _check(args: Any, run: LoopRun) -> None:
    """Raise a LoopError if TrainingArguments do not fit a run."""
    wanted = {
        "num_train_epochs": (args.num_train_epochs, run.length, "run.length"),
        "max_steps": (args.max_steps, -1, "-1"),
        "seed": (args.seed, run.seed, "run.seed"),
        "eval_strategy": (str(getattr(args.eval_strategy, "value", args.eval_strategy)), "epoch", '"epoch"'),
        # It would make callbacks anew that the run has brought back.
        RESTORED: (getattr(args, RESTORED), False, "False"),
    }
    if args.load_best_model_at_end:
        raise LoopError(
            "load_best_model_at_end=True would put the best weights in the place of the last, from which the "
            'run goes on; leave it out, and write early_stopping = "best" in [training], so that a run is '
            'worth its best validation; keep = "best" keeps those weights'
        )
    for name, (found, expected, written) in wanted.items():
        if found != expected:
            raise LoopError(
                f"TrainingArguments have {name}={found!r}, but the run needs {expected!r}; "
                f"write {name}={written}"
            )
    one = args.n_gpu <= 1 and args.world_size == 1 and args.device.type == run.device.type
    if not one or (args.device.index or 0) != (run.device.index or 0):
        raise LoopError(
            f"the trainer trains on {args.device} ({max(args.n_gpu, args.world_size)} of them), the run on "
            f"{run.device}; write use_cpu=True for a CPU, and start a worker for each GPU with "
            "CUDA_VISIBLE_DEVICES set to that one"
        )
