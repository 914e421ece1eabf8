"""The exceptions of floodsearch, one tree.

FloodsearchError
├── UsageError               bad input: nothing was created, exit status 2
│   ├── StudyFileError       a study file with one or more problems
│   ├── StudyChangedError    a study file that differs from the stored study of that name
│   ├── UnknownStudyError    no study of that name in the storage
│   ├── TaskError            a task or a training loop that cannot be imported or built
│   ├── StorageError         a storage URL that cannot be used
│   └── DamagedError         a row of the database that floodsearch has not written so
├── NoAnswerError            nothing has finished yet, so there is no best level
├── WorkersFailedError       the local workers of a launch kept dying
├── DivergedError            a training whose loss is no longer finite
├── LoopError                a training loop of the user's own that does not do what it must
│   └── MistakeError         one that makes every result of its study worthless
└── TicketLostError          a trial that was taken from this worker while it trained

Every message says what is wrong, with what value, and what to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

HANDED_BACK = 75
"""The exit status of a worker that was asked to leave, `EX_TEMPFAIL` of sysexits.h: start me again."""


class FloodsearchError(Exception):
    """Base of all errors that floodsearch raises on purpose."""


class UsageError(FloodsearchError):
    """Input that cannot be used; nothing was created or changed."""


class Problem(NamedTuple):
    """One thing that is wrong in a study file."""

    key: str
    """Dotted key, such as `levels.step`; the file's own name for problems of the whole file."""
    message: str
    """What is wrong, with what value, and what to write instead."""


class StudyFileError(UsageError):
    """A study file that cannot be used; `problems` holds all that is wrong with it."""

    def __init__(self, source: str, problems: Sequence[Problem]) -> None:
        self.source = source
        self.problems = tuple(problems)
        count = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        lines = [f"{source} has {count}"] + [f"  {key}: {message}" for key, message in self.problems]
        super().__init__("\n".join(lines))


class StudyChangedError(UsageError):
    """A study file whose name is taken by a study with other settings."""

    def __init__(self, name: str, differences: Sequence[str]) -> None:
        self.differences = tuple(differences)
        changed = "\n".join(f"  {difference}" for difference in self.differences)
        super().__init__(
            f"study {name!r} exists with other settings; undo the changes or choose another name\n{changed}"
        )


class UnknownStudyError(UsageError):
    """A study name that the storage does not hold."""

    def __init__(self, name: str, known: Sequence[str], storage: str) -> None:
        listed = ", ".join(sorted(known)) or "none"
        super().__init__(f"no study named {name!r} in {storage}; studies there: {listed}")


class TaskError(UsageError):
    """A task that cannot be imported or built with the given options, or a loop that cannot be imported."""


class StorageError(UsageError):
    """A storage URL that cannot be opened; messages never hold the password."""


class DamagedError(UsageError):
    """A row of the database that floodsearch has not written so: changed by hand, or by another program."""

    def __init__(self, where: str, value: object, wanted: str) -> None:
        shown = repr(value)
        shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
        super().__init__(f"{where} is {shown}, not {wanted}; it was changed by hand, so set it right again")


class NoAnswerError(FloodsearchError):
    """A study in which no ticket has finished."""


class WorkersFailedError(FloodsearchError):
    """The local workers of a launch died more often than they are restarted."""


class DivergedError(FloodsearchError):
    """A training whose loss became NaN or infinite.

    Args:
        level: the flood level in force, in the unit of the loss.
        epoch: the epoch in which it happened, from 1.
        step: the step within that epoch, from 1; None where only the epoch is known.
        seed: the seed of the run.
        what: is not finite.
    """

    def __init__(
        self, *, level: float, epoch: int, step: int | None, seed: int, what: str = "the loss"
    ) -> None:
        self.level, self.epoch, self.step, self.seed = level, epoch, step, seed
        at = f"epoch {epoch}" if step is None else f"epoch {epoch}, step {step}"
        super().__init__(
            f"{what} is not finite at level {level:g}, {at}, seed {seed}; a lower learning rate usually helps"
        )


class LoopError(FloodsearchError):
    """A training loop of the user's own that does not do what it must, such as to report an epoch."""


class MistakeError(LoopError):
    """A mistake in a user's code that makes every result of its study worthless, so that the study ends."""


class TicketLostError(FloodsearchError):
    """The trial of a ticket was finished by someone else while this worker trained it."""
