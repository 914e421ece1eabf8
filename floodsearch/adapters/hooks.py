"""Any trainer that owns its loop: a run of a study as the hooks that all such trainers have.

    def train(run):
        hooks = FloodHooks(run)
        hooks.on_train_begin(model=model, optimizer=optimizer)
        trainer.fit(first_epoch=run.epoch, epochs=run.length, callbacks=[...])
        hooks.on_train_end()

A callback of the trainer calls the three in between: when an epoch begins, when a batch has its loss, and
when an epoch ends. A run that pauses goes on from its own checkpoint, to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from floodsearch.adapters.metrics import pick
from floodsearch.adapters.ranks import check_alone
from floodsearch.errors import LoopError
from floodsearch.training.loop import LoopRun


class FloodHooks:
    """What a trainer calls, from the start of a run, or of a part of it, to its end.

    Args:
        run: as the study hands it to the training function.
        metrics: name of the study to the trainer's name of a metric, such as `{"val_accuracy": "val_acc"}`,
            for those that differ. `val_accuracy`, `val_loss`, `test_accuracy`, `test_loss` and the study's
            metric are reported where the trainer gives them.
        name_of: from a name of the study to the trainer's, for those that are not in `metrics`.

    Attributes:
        in_epoch: whether an epoch has begun that is not reported.

    Raises (in a hook):
        LoopError: if a hook is called out of order, or the study's metric is due and was not given.
        DivergedError: if a number is NaN or infinite.
    """

    def __init__(
        self,
        run: LoopRun,
        *,
        metrics: Mapping[str, str] | None = None,
        name_of: Callable[[str], str] = str,
    ) -> None:
        check_alone()
        self.run, self.metrics, self.name_of = run, dict(metrics or {}), name_of
        self._epochs = run.epochs()
        self.in_epoch = self._ends = False

    def on_train_begin(self, **objects: Any) -> bool:
        """Load the run's checkpoint if there is one, after which `run.epoch` epochs are trained already.

        Args:
            objects: as of `run.restore`: all that changes while the trainer trains.

        Returns:
            Whether there was a checkpoint.
        """
        return self.run.restore(**objects)

    def on_epoch_begin(self) -> None:
        """Begin an epoch, before its batches are drawn. All of the last one has ended: it is saved now."""
        if next(self._epochs, None) is None:
            raise LoopError(
                f"the trainer goes on after epoch {self.run.epoch}, where the run ends or pauses; "
                "let it stop where on_epoch_end() returns True"
            )
        self.in_epoch = True

    def on_batch_loss(self, loss: Tensor) -> Tensor:
        """Return the mean loss of a batch, (), flooded where gradients are on: call `backward` on that."""
        return self.run.flood(loss)

    def on_epoch_end(self, metrics: Mapping[str, Any]) -> bool:
        """Report an epoch by the trainer's metrics of it; return whether the trainer is to stop here."""
        if not self.in_epoch:
            raise LoopError(
                "on_epoch_end() was called without on_epoch_begin(); call both once in each epoch"
            )
        self.in_epoch = False
        self.run.report(**pick(self.run, metrics, self.name_of, self.metrics))
        self._ends = self.run.ends
        return self._ends

    def on_train_end(self) -> None:
        """Save the run where it ends or pauses; a trainer that has stopped by itself has left its loop."""
        if not self._ends:
            self._epochs.close()
        next(self._epochs, None)
