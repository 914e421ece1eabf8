"""One run of a training loop of the user's own: what its function is handed, and what is asked of it.

The function is called again for each part of a run. `run.epochs()` ends where the run is to pause; in the
next call it goes on there, from the objects that were given to `run.restore` and the global random states, so
that a run in parts equals one that was never paused.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from floodsearch.answer.values import best_validation
from floodsearch.artifacts.checkpoint import Checkpoint, Pace, rows, strange
from floodsearch.errors import DivergedError, LoopError, MistakeError
from floodsearch.flooding.loss import flood, mean_over_ranks
from floodsearch.records import LARGEST, REPORTED, EpochRecord, field_of
from floodsearch.training import randomness
from floodsearch.training.progress import Plan
from floodsearch.training.run import copied, read

PARTS = ("epoch", "records", "objects", "random", "lowest")
"""What a checkpoint of a run holds at least."""
UNREAD = 1024
"""Losses that are left on their device before they are read in one transfer."""

log = logging.getLogger(__name__)


class LoopRun:
    """One run, as it is handed to the user's function.

    Args:
        plan: how long it is, and when its metric is due.
        name: of the run.
        level: flood level b >= 0, in the unit of the loss.
        seed: fixes all that is random in the run.
        device: where to train.
        settings: what the study file says in [options] and [training], and what is searched beside the level.
        until: pause after this epoch, if the run can be continued.
        note: takes in each epoch; returns whether to go on.
        checkpoint: of the run.
        saved: its content, from an earlier part of the run.
        claim: (name, object) to what is wrong with it as a part of this run's state, or None.

    The weights that the plan keeps are those of the object that is given to `restore` as `model`.

    Attributes:
        name: of the run in files, such as `ticket-3-seed-0`.
        metric: of the study.
        length: epochs of the whole run.
        epoch: the last one that was trained.
        until: the epoch after which it pauses, if it can.
        wanted: whether this run is still asked for; else it ends after the epoch, and keeps no checkpoint.
        repeated: epochs that were trained again, as their records are known.
        goes_on: whether `note` wants more, of this run or of others.
        lowest: the lowest loss of a batch that was given to `flood`; infinite if there was none.
        losses: those of the batches of the last epoch, if they are this process's own.
        interrupted: what was raised while an epoch was noted, which is not the loop's fault.
    """

    def __init__(
        self,
        plan: Plan,
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
        claim: Callable[[str, Any], str | None] = lambda name, one: None,
    ) -> None:
        self.name, self.metric = name, plan.metric
        self.level, self.seed, self.device, self.length = level, seed, device, plan.epochs
        self.settings: Mapping[str, Any] = MappingProxyType(dict(settings))
        self.epoch, self.lowest, self.repeated, self.wanted = 0, math.inf, 0, True
        self.interrupted: BaseException | None = None
        self._plan, self.until, self._note = plan, min(until, plan.epochs), note
        self._checkpoint, self._saved, self._pace, self._claim = checkpoint, saved, Pace(), claim
        self._objects: dict[str, Any] = {}
        self._records: list[EpochRecord] = []
        self._kept: Mapping[str, Any] | None = None
        self._losses = _Losses()
        self.losses: Sequence[float] = ()
        self._error: LoopError | DivergedError | None = None
        # In which state the loop over `epochs` is: begun, in its body, in it before the report, paused.
        self._begun = self._inside = self._open = self._paused = False
        self.goes_on = True

    @property
    def can_pause(self) -> bool:
        """Whether the run can be continued in another call."""
        return bool(self._objects)

    @property
    def has_weights(self) -> bool:
        """Whether it is known what the weights of the training are."""
        return "model" in self._objects

    @property
    def weights(self) -> Mapping[str, Any] | None:
        """The weights that the plan keeps, as of now; None where there are none."""
        return None if self._kept is None else self._kept["weights"]

    @property
    def ends(self) -> bool:
        """Whether `epochs` ends after the epoch that was reported last; for trainers that count theirs."""
        last = self.until if self.can_pause else self.length
        return self.epoch >= last or not (self.goes_on and self.wanted)

    def restore(self, **objects: Any) -> bool:
        """Name what makes up the state of the training, and load it from the last checkpoint if there is one.

        Args:
            objects: anything with `state_dict` and `load_state_dict`, such as the model, the optimizer and a
                scheduler, or a `torch.Generator`. The global random states are kept in any case.

        Returns:
            Whether there was a checkpoint.

        Raises:
            LoopError: if an object has no state or does not fit the checkpoint, or the loop has begun.
        """
        if self._begun:
            raise self._wrong("run.restore() was called after run.epochs(); call it before the loop")
        for name, one in objects.items():
            if not isinstance(one, torch.Generator) and not hasattr(one, "load_state_dict"):
                has = f"a {type(one).__name__}, which has no state_dict and load_state_dict"
                raise self._wrong(f"run.restore() was given {name}, {has}; leave it out or give it these")
            if (mistake := self._claim(name, one)) is not None:
                raise self.refuse(MistakeError(mistake))
        self._objects |= objects
        if self._saved is None:
            return False
        for name, one in objects.items():
            try:
                _set_state(one, self._saved["objects"][name])
            except Exception as error:  # whatever an object says against it
                why = f"{type(error).__name__}: {error}".splitlines()[0]
                raise self._wrong(f"the checkpoint does not fit {name} of run.restore(): {why}") from error
        return True

    def due(self, epoch: int) -> bool:
        """Return whether the study's metric is to be reported at an epoch."""
        return epoch % self._plan.validate_every == 0 or epoch == self.length

    def epochs(self) -> Iterator[int]:
        """Yield the epochs to train, from 1 or from the one after the last checkpoint.

        It ends where the study's epochs do, or earlier, where the run is pruned or pauses: return then.

        Raises:
            LoopError: if an epoch ends without a report.
        """
        self._begin()
        while self.epoch < self.length and not self._paused:
            self._inside = self._open = True
            yield self.epoch + 1
            self._inside = False
            if self._error is not None:  # the loop's own code has caught it
                raise self._error
            if self._open:
                raise self._wrong(
                    f"epoch {self.epoch + 1} ended without run.report(); call it once in each epoch"
                )
            self._end_epoch()

    def _begin(self) -> None:
        if self._begun:
            return
        self._begun = True
        if self._plan.keep != "none" and self.has_weights:
            self._state("model")  # what no file can hold is said now, and not after the last epoch
        if self._saved is None or not self._objects:
            return
        if missing := self._saved["objects"].keys() - self._objects.keys():
            raise self._wrong(
                f"the checkpoint also holds {', '.join(sorted(missing))}; give it to run.restore()"
            )
        self.epoch = self._saved["epoch"]
        self._records = list(self._saved["records"])
        self._kept = read_kept(self._saved, self._plan)
        self.lowest = float(self._saved["lowest"])
        # Whatever the function has drawn until here, it goes on where it paused.
        randomness.set_states(self._saved["random"], self.device)

    def _end_epoch(self) -> None:
        """Save the run if that is due, and pause it if that is asked for."""
        self._paused = self.ends
        done = self.epoch == self.length
        if self.wanted and (done or (self.can_pause and (self._paused or self._pace.due()))):
            self._save(done)

    def _save(self, done: bool) -> None:
        """Save a checkpoint; where that fails the run goes on, and is trained again from the one before."""
        since = time.monotonic()
        content = {
            "epoch": self.epoch,
            "records": rows(self._records),
            "objects": {} if done else {name: self._state(name) for name in self._objects},
            "random": randomness.states(self.device),
            "kept": self._kept,
            "lowest": self.lowest,
        }
        try:
            self._checkpoint.save(content)
        except (OSError, RuntimeError) as error:
            log.warning("no checkpoint: %s", error)
        self._pace.saved(since)

    def _state(self, name: str) -> Any:
        """Return the state of an object, which a file can hold."""
        one = self._objects[name]
        state = one.get_state() if isinstance(one, torch.Generator) else one.state_dict()
        if (found := strange(state, name)) is not None:
            raise self._wrong(
                f"run.restore() was given something that a checkpoint cannot hold: {found}; "
                "a state may be of tensors, numbers, texts and dicts and lists of these"
            )
        return state

    def _keep(self, record: EpochRecord) -> None:
        """Copy the weights as of an epoch, if it is the one whose weights the plan keeps."""
        keep = self._plan.keep
        wanted = self._is_best(record) if keep == "best" else record.epoch == self.length
        if keep == "none" or not wanted or not self.has_weights:
            return
        # The loop may change them before the file is written, as where it swaps in an average to evaluate.
        weights = copied({"model": self._state("model")}, None)["model"]
        self._kept = {"keep": keep, "epoch": record.epoch, "weights": weights}

    def _is_best(self, record: EpochRecord) -> bool:
        """Return whether no earlier epoch is as good, by the study's metric."""
        every = [*self._records, record]
        return best_validation(every, field_of(self.metric), maximize=self._plan.maximize) is record

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
        for earlier in (self.interrupted, self._error):
            if earlier is not None:  # the loop's own code has caught it
                raise earlier
        if not self._open:
            again = f"twice in epoch {self.epoch}; call it once, with all numbers"
            outside = "outside of the loop over run.epochs(); call it once in each epoch"
            raise self._wrong(f"run.report() was called {again if self._inside else outside}")
        record = self._record(metrics)
        self._open = False
        self.epoch += 1
        self.losses = () if self._losses.of_all_ranks else self._losses.known
        self._losses = _Losses()
        self._keep(record)
        self._records.append(record)
        try:
            self.goes_on = self._note(record)
        except BaseException as error:
            self.interrupted = error
            raise

    def _record(self, metrics: Mapping[str, Any]) -> EpochRecord:
        epoch, metric = self.epoch + 1, self.metric
        known = (*REPORTED, metric)
        for name in metrics:
            if name in ("epoch", "step"):
                raise self._wrong(
                    f"run.report() was given {name} = {metrics[name]!r}, but run.epochs() counts them; "
                    "leave it out"
                )
            if name not in known:
                raise self._wrong(
                    f"run.report() was given {name!r}, which this study does not know; it knows "
                    f'{", ".join(dict.fromkeys(known))}; to search by it, write metric = "{name}" in [search]'
                )
        values = {name: self._number(name, value) for name, value in metrics.items()}
        plain, below, lowest = self._losses.summary(self.level)
        self.lowest = min(self.lowest, lowest)
        if plain is not None:
            values.setdefault("train_loss", plain)
        for name, value in values.items():
            if not abs(value) <= LARGEST:
                what = f"the reported {name}" if name in metrics else "the loss"
                self._error = DivergedError(
                    level=self.level, epoch=epoch, step=None, seed=self.seed, what=what
                )
                raise self._error
        if self.due(epoch) and metric not in values:
            every = self._plan.validate_every
            when = "each epoch" if every == 1 else f"every {every} epochs and at the last"
            raise self._wrong(
                f"epoch {epoch} was reported without {metric}, the study's metric; report it at {when}"
            )
        if metric in values and metric not in REPORTED:
            values["metric"] = values.pop(metric)
        known_or_not: dict[str, float | None] = {"train_loss": None, "train_accuracy": None, **values}
        return EpochRecord(seed=self.seed, epoch=epoch, level=self.level, flooded=below, **known_or_not)

    def _number(self, name: str, value: Any) -> float:
        """Return a reported number; one on another device is waited for."""
        if hasattr(value, "__float__") and not isinstance(value, bool) and getattr(value, "shape", ()) == ():
            try:
                return float(value)
            except OverflowError:  # a whole number beyond all others
                return math.inf
        shape = f" of shape {tuple(value.shape)}" if hasattr(value, "shape") else ""
        raise self._wrong(f"run.report({name}=...) was given a {type(value).__name__}{shape}, not a number")

    def refuse(self, error: LoopError) -> LoopError:
        """End the run with an error, whatever its function goes on to do; return it."""
        self._error = error
        return error

    def leave(self) -> None:
        """End the run where it is: its worker is asked to leave."""
        self.goes_on = False

    def outcome(self, raised: BaseException | None) -> BaseException | None:
        """Return what was wrong when the function had ended, or None.

        Args:
            raised: by the function; also what is said here may have been caught in it.
        """
        if self._error is not None or raised is not None:
            return self._error or raised
        asked_to = self._paused or not (self.goes_on and self.wanted)
        if asked_to or self.epoch >= self.length:
            return None
        if not self._begun:
            return LoopError("the loop returned before its first epoch; write: for epoch in run.epochs()")
        return LoopError(
            f"the loop returned after epoch {self.epoch} of {self.length} without being asked to; "
            "return when run.epochs() ends"
        )

    def _wrong(self, message: str) -> LoopError:
        return self.refuse(LoopError(message))  # kept, in case the loop's own code catches it


def read_kept(saved: Mapping[str, Any], plan: Plan) -> Mapping[str, Any] | None:
    """Return the weights that a checkpoint holds, with their epoch; None if it has none that a plan keeps."""
    kept = saved.get("kept")
    return kept if isinstance(kept, Mapping) and kept.get("keep") == plan.keep else None


def _set_state(one: Any, state: Any) -> None:
    if isinstance(one, torch.Generator):
        one.set_state(state)
    else:
        one.load_state_dict(state)


class _Losses:
    """The plain losses of an epoch's batches, left on their device: to look at one would wait for it."""

    def __init__(self) -> None:
        self.known: list[float] = []
        self.of_all_ranks = False
        self.unread: list[Tensor] = []

    def add(self, loss: Tensor) -> None:
        """Add the loss of a batch, ()."""
        if loss.device.type == "cpu":
            self.known.append(loss.item())
            return
        # A copy: at level 0 the user has the very same tensor, and may change it in place.
        self.unread.append(loss.detach().clone())
        if len(self.unread) == UNREAD:
            self._read()

    def summary(self, level: float) -> tuple[float | None, float | None, float]:
        """Return the mean loss, the share of batches below a level, and the lowest loss.

        Without a batch the mean is not known, nor is the share, but at level 0, which floods nothing.
        """
        self._read()
        if not self.known:
            return None, None if level > 0 else 0.0, math.inf
        # Level 0 floods nothing also where a loss can be negative.
        below = sum(loss < level for loss in self.known) if level > 0 else 0
        return sum(self.known) / len(self.known), below / len(self.known), min(self.known)

    def _read(self) -> None:
        self.known += read(self.unread)
        self.unread.clear()
