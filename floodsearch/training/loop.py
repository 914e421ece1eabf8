"""One run of a training loop of the user's own: what its function is handed, and what is asked of it.

The function is called again for each part of a run. `run.epochs()` ends where the run is to pause; in the
next call it goes on there, from the objects that were given to `run.restore` and the global random states, so
that a run in parts equals one that was never paused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from floodsearch.artifacts.checkpoint import Checkpoint
from floodsearch.artifacts.files import Folder
from floodsearch.errors import LoopError
from floodsearch.flooding.loss import flood, mean_over_ranks
from floodsearch.records import EpochRecord
from floodsearch.training.batch_losses import BatchLosses
from floodsearch.training.call_order import CallOrder
from floodsearch.training.loop_state import Claim, LoopState
from floodsearch.training.progress import RunPlan
from floodsearch.training.report import check_finite, read_report


@dataclass(frozen=True, kw_only=True)
class ForScript:
    """What only a script has to know of a run.

    Args:
        ticket: whose run it is.
        recorded: returns what the database has of its epochs, by epoch.
        restart_pays: whether it may begin again after a pause, where its process cannot be kept; else it is
            trained to its end at once.
        folder: of its own, for what the script keeps; it may be to make.
    """

    ticket: int = 0
    recorded: Callable[[], Mapping[int, Mapping[str, float]]] = dict
    restart_pays: bool = True
    folder: Folder | None = None


class LoopRun:
    """One run, as it is handed to the user's function.

    Args:
        plan: how long it is, and when its metric is due.
        name: of the run in files, such as `ticket-3-seed-0`.
        level: flood level b >= 0, in the unit of the loss.
        seed: fixes all that is random in the run.
        device: where to train.
        settings: what the study file says in [options] and [training], and what is searched beside the level.
        until: pause after this epoch, if the run can be continued.
        note: takes in each epoch; returns whether to go on.
        checkpoint: of the run.
        saved: its content, from an earlier part of the run.
        claim: looks whether an object may be a part of this run's state.
        script: what a script has to know beside that.

    Attributes:
        metric: of the study.
        length: epochs of the whole run.
        epoch: the last one that was trained; 0 before the first, or before `restore`.
        until: the epoch after which it pauses, if it can.
        wanted: whether this run is still asked for; else it ends after the epoch, and keeps no checkpoint.
        repeated: epochs that were trained again, as their records are known.
        remembered: whether the epoch that is reported was trained before this part began.
        goes_on: whether `note` wants more, of this run or of others.
        lowest: the lowest loss of a batch that was given to `flood`; infinite if there was none.
        losses: those of the batches of the last epoch, if they are this process's own.
        state: a dict of the run's own, for plain values; saved where it pauses, and there when it goes on.
        ended: whether it has ended before its last epoch, as the study lets runs do.
        memory: what is saved of it.
        interrupted: what was raised while an epoch was noted, which is not the loop's fault.
    """

    def __init__(
        self,
        plan: RunPlan,
        *,
        name: str,
        level: float,
        seed: int,
        device: torch.device,
        settings: Mapping[str, Any],
        until: int,
        note: Callable[[EpochRecord], bool],
        checkpoint: Checkpoint,
        saved: Mapping[str, Any] | None = None,
        claim: Claim = lambda name, one: None,
        script: ForScript = ForScript(),
    ) -> None:
        self.name, self.metric = name, plan.metric
        self.level, self.seed, self.device, self.length = level, seed, device, plan.epochs
        self.settings: Mapping[str, Any] = MappingProxyType(dict(settings))
        self.epoch, self.lowest, self.repeated = 0, math.inf, 0
        self.goes_on, self.wanted, self.ended = True, True, False
        self.remembered, self.script = False, script
        self.losses: Sequence[float] = ()
        self.interrupted: BaseException | None = None
        self._plan, self.until, self._note = plan, min(until, plan.epochs), note
        self.memory = LoopState(plan, device, checkpoint, saved, claim)
        self.state = self.memory.own
        self._losses = BatchLosses()
        self._calls = CallOrder()

    @property
    def can_pause(self) -> bool:
        """Whether the run can be continued in another call."""
        return bool(self.memory.objects)

    @property
    def may_end(self) -> bool:
        """Whether the study lets runs end before their last epoch."""
        return self._plan.may_end

    @property
    def ends(self) -> bool:
        """Whether `epochs` ends after the epoch that was reported last; for trainers that count theirs."""
        last = self.until if self.can_pause else self.length
        return self.epoch >= last or not (self.goes_on and self.wanted)

    def restore(self, **objects: Any) -> bool:
        """Name what makes up the state of the training, and load it from the last checkpoint if there is one.

        Args:
            objects: anything with `state_dict` and `load_state_dict`, such as the model, the optimizer and a
                scheduler, a `torch.Generator`, or a dict or list of plain values, which is filled in place.
                The global random states are kept in any case. `model` is the one whose weights are kept,
                where the study asks for that.

        Returns:
            Whether there was a checkpoint.

        Raises:
            LoopError: if an object has no state or does not fit the checkpoint, or the loop has begun.
        """
        with self._calls.remembering():
            self._calls.check_restore()
            restored = self.memory.restore(objects)
            self.epoch = self.memory.epoch
            return restored

    def due(self, epoch: int) -> bool:
        """Return whether the study's metric is to be reported at an epoch."""
        return self._plan.due(epoch)

    def epochs(self) -> Generator[int]:
        """Yield the epochs to train, from 1 or from the one after the last checkpoint.

        It ends where the study's epochs do, or earlier, where the run is pruned or pauses: return then. To
        leave it, by `break` or `close()`, ends the run for good, if the study lets it.

        Raises:
            LoopError: if an epoch ends without a report.
        """
        if not self._calls.begun:
            self._calls.begin()
            with self._calls.remembering():
                self.epoch, self.lowest = self.memory.begin() or (self.epoch, self.lowest)
        while self.epoch < self.length and not self._calls.paused:
            self._calls.enter_epoch()
            yield self.epoch + 1
            if self._calls.error is not None:  # the loop's own code has caught it
                raise self._calls.error
            with self._calls.remembering():
                self._calls.end_epoch(self.epoch, pauses=self.ends)
                self.memory.check(self.state)
                due = self.can_pause and (self._calls.paused or self.memory.due)
                if self.wanted and (due or self.epoch == self.length):
                    self.memory.save(self.epoch, self.lowest, self.state)

    def flood(self, loss: Tensor, *, across_ranks: bool = False) -> Tensor:
        """Flood the mean loss of a batch at the run's level: `(loss - level).abs() + level`.

        Call it once for each `backward()`: under gradient accumulation the sign is decided for each
        micro-batch, of the loss before it is divided by their number; to decide it for the accumulated batch,
        call it once, with the mean of the micro-batches' losses. Under mixed precision flood first, then
        scale: `scaler.scale(run.flood(loss)).backward()`. Add penalties to the result. Where gradients are
        off, as in an evaluation, the loss is returned as it is and not counted.

        Args:
            loss: (), the mean loss of one mini-batch, without penalty terms.
            across_ranks: decide the sign for the mean over all ranks of `torch.distributed`, whose value is
                returned; the gradient is that of the local loss (see `mean_over_ranks`). All ranks must call
                it, and one of them reports.

        Returns:
            (), the very same tensor at level 0.

        Raises:
            ValueError: if `loss` is not a scalar.
        """
        if across_ranks and self.level > 0:
            loss = mean_over_ranks(loss)
            self._losses.of_all_ranks = True
        flooded = flood(loss, self.level)
        if not torch.is_grad_enabled():
            return loss
        self._losses.add(loss)
        return flooded

    def report(self, **metrics: Any) -> None:
        """Report an epoch, once, at its end: this is where runs are compared, pruned and saved.

        Args:
            metrics: numbers, also as tensors of one number: `val_accuracy`, `val_loss`, `test_accuracy`,
                `test_loss`, `train_accuracy`, `train_loss` (by default the mean of what was flooded), and the
                study's metric. That one is needed every `validate_every` epochs and at the last.

        Raises:
            LoopError: if it is called at another time, or with what the study does not know.
            DivergedError: if a number is NaN or infinite.
        """
        for earlier in (self.interrupted, self._calls.error):
            if earlier is not None:  # the loop's own code has caught it
                raise earlier
        with self._calls.remembering():
            self._calls.check_report(self.epoch)
            mean, below, lowest = self._losses.summary(self.level)
            self.lowest = min(self.lowest, lowest)
            record = read_report(
                self._plan,
                metrics,
                seed=self.seed,
                epoch=self.epoch + 1,
                level=self.level,
                train_loss=mean,
                flooded=below,
            )
            self._calls.report()
            self.epoch += 1
            self.losses = () if self._losses.of_all_ranks else self._losses.known
            self._losses = BatchLosses()
            self.memory.add(record)
        try:
            self.goes_on = self._note(record)
        except BaseException as error:
            self.interrupted = error
            raise

    def add_tests(self, **tests: float) -> None:
        """Take in what the last epoch came to on the test, where the run has ended and told it behind that.

        Args:
            tests: `test_accuracy` and `test_loss`.

        Raises:
            DivergedError: if a number is NaN or infinite.
        """
        check_finite(tests, tests, level=self.level, epoch=self.epoch, seed=self.seed)
        self.memory.add_tests(tests)

    def refuse(self, error: LoopError) -> None:
        """End the run with an error, whatever its function goes on to do."""
        self._calls.error = error

    def leave(self) -> None:
        """End the run where it is: its worker is asked to leave."""
        self.goes_on = False

    def outcome(self, raised: BaseException | None) -> BaseException | None:
        """Return the error of a function that ended, `raised` by it or caught in it; None if it did well."""
        if self._calls.error is not None or raised is not None:
            return self._calls.error or raised
        if self._calls.paused or not (self.goes_on and self.wanted) or self.epoch >= self.length:
            return None
        trains = bool(self._losses)
        error = self._calls.early_return(self.epoch, self.length, may_end=self.may_end, trains=trains)
        if error is None and not self.memory.validated:
            error = LoopError(
                f"the loop ended after epoch {self.epoch}, before it had reported {self.metric}"
            )
        if error is None:
            self.memory.save(self.epoch, self.lowest, {}, ended=True)
            self.ended = True
        return error
