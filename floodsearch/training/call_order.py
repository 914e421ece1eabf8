"""In which order a training loop of the user's own calls its run, and what is wrong with it."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from contextlib import contextmanager

from floodsearch.errors import DivergedError, LoopError

ALLOW = 'let runs end early by early_stopping = "best" (or "last") in [training]'
"""What to do where a run has ended before its last epoch and must not."""


class _At(enum.Enum):
    """The place that the user's function has come to, by its calls."""

    BEFORE = enum.auto()  # `epochs` has not been asked for the first epoch
    IN_EPOCH = enum.auto()  # in the body of the loop, before the report
    REPORTED = enum.auto()  # in the body of the loop, behind the report
    BETWEEN = enum.auto()  # `epochs` was asked for another epoch
    PAUSED = enum.auto()  # `epochs` has ended: no more of the run is wanted now


class CallOrder:
    """Follows the calls of one part of a run: `restore`, then in each epoch one `report`, then a return.

    Attributes:
        error: what is wrong with the function, by these calls or otherwise.
    """

    def __init__(self) -> None:
        self._at = _At.BEFORE
        self.error: LoopError | DivergedError | None = None

    @contextmanager
    def remembering(self) -> Iterator[None]:
        """Keep an error that is raised against the function, in case its own code catches it."""
        try:
            yield
        except (LoopError, DivergedError) as error:
            self.error = error
            raise

    @property
    def begun(self) -> bool:
        """Whether the loop over the epochs has begun."""
        return self._at is not _At.BEFORE

    @property
    def paused(self) -> bool:
        """Whether it has ended as it was asked to."""
        return self._at is _At.PAUSED

    def check_restore(self) -> None:
        """Raise a LoopError if the loop has begun."""
        if self.begun:
            raise LoopError("run.restore() was called after run.epochs(); call it before the loop")

    def begin(self) -> None:
        """Let the loop over the epochs begin."""
        self._at = _At.BETWEEN

    def enter_epoch(self) -> None:
        """Let the next epoch be trained."""
        self._at = _At.IN_EPOCH

    def check_report(self, epoch: int) -> None:
        """Raise a LoopError unless an epoch is trained and not reported; `epoch` is the last that was."""
        if self._at is not _At.IN_EPOCH:
            again = f"twice in epoch {epoch}; call it once, with all numbers"
            outside = "outside of the loop over run.epochs(); call it once in each epoch"
            raise LoopError(f"run.report() was called {again if self._at is _At.REPORTED else outside}")

    def report(self) -> None:
        """Note that the epoch was reported."""
        self._at = _At.REPORTED

    def end_epoch(self, epoch: int, *, pauses: bool) -> None:
        """Let an epoch end, and the loop with it if it pauses.

        Raises:
            LoopError: if the epoch was not reported; `epoch` is the last that was.
        """
        if self._at is _At.IN_EPOCH:
            raise LoopError(f"epoch {epoch + 1} ended without run.report(); call it once in each epoch")
        self._at = _At.PAUSED if pauses else _At.BETWEEN

    def early_return(self, epoch: int, length: int, *, may_end: bool, trains: bool) -> LoopError | None:
        """Return the error of a function that returned by itself; None where its run has ended so.

        Args:
            epoch: the last that was reported.
            length: of the run, in epochs.
            may_end: whether a run may end before its last epoch.
            trains: whether batches of another epoch were trained.
        """
        if not self.begun:
            return LoopError("the loop returned before its first epoch; write: for epoch in run.epochs()")
        if not may_end:
            return LoopError(
                f"the loop returned after epoch {epoch} of {length} without being asked to; return when "
                f"run.epochs() ends, or {ALLOW}"
            )
        if trains or epoch == 0:
            return LoopError(
                f"the loop ended in epoch {epoch + 1} without run.report(); break behind the report"
            )
        return None
