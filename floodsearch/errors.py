"""The exceptions of floodsearch, one tree.

FloodsearchError
├── UsageError               bad input: nothing was created, exit status 2
│   ├── StudyFileError       a study file with one or more problems
│   ├── StudyChangedError    a study file that differs from the stored study of that name
│   ├── UnknownStudyError    no study of that name in the storage
│   ├── StudyDeletedError    a study that was deleted while it was used
│   ├── TaskError            a task or a training loop that cannot be imported or built
│   ├── UntrustedError       a stored study whose code nobody has trusted here
│   ├── StorageError         a storage URL that cannot be used
│   └── NestedError          a search or worker that a worker, or an import that it does, would start
├── DamagedError             a row of the database that floodsearch has not written so, exit status 2
├── NoAnswerError            nothing has finished yet, so there is no best level
├── StorageFailedError       a database that failed: it is away, locked or full, or its file is gone
├── WorkersFailedError       the local workers of a launch kept dying, or said that they can never work
├── DivergedError            a training whose loss is no longer finite
├── LoopError                a training loop of the user's own that does not do what it must
│   └── MistakeError         one that makes every result of its study worthless
├── FirstCallError           a function handed over in Python that raised before it had trained anything
└── TicketLostError          a trial that was taken from this worker while it trained

Every message says what is wrong, with what value, and what to do.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence
from typing import NamedTuple

DONE, FAILED, WRONG_USE = 0, 1, 2
"""The exit statuses of a command that did what it was asked, could not, or was asked what cannot be."""
HANDED_BACK = 75
"""The exit status of a worker that was asked to leave, `EX_TEMPFAIL` of sysexits.h: start me again."""
INTERRUPTED = 130
"""The exit status after Ctrl-C, as of a shell."""


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
    """A study file whose name is taken by a study with other settings, or a study that got others by hand."""

    def __init__(self, name: str, differences: Sequence[str], *, by_hand: bool = False) -> None:
        self.differences = tuple(differences)
        if by_hand:
            changed = "; ".join(self.differences)
            super().__init__(
                f"study {name!r} was changed by hand in the database: {changed}; set it right again"
            )
            return
        changed = "\n".join(f"  {difference}" for difference in self.differences)
        super().__init__(
            f"study {name!r} exists with other settings; undo the changes or choose another name\n{changed}"
        )


class UnknownStudyError(UsageError):
    """A study name that the storage does not hold."""

    def __init__(self, name: str, known: Sequence[str], storage: str) -> None:
        listed = ", ".join(sorted(known)) or "none"
        super().__init__(f"no study named {name!r} in {storage}; studies there: {listed}")


class StudyDeletedError(UsageError):
    """A study that somebody deleted while it was used here."""

    def __init__(self, name: str, storage: str) -> None:
        super().__init__(
            f"study {name!r} was deleted from {storage} while it was used, or is another one now; "
            "launch its file again"
        )


class TaskError(UsageError):
    """A task that cannot be imported or built with the given options, or a loop that cannot be imported."""


class UntrustedError(UsageError):
    """A study in a database that names code, or a folder, which nobody has trusted on this machine.

    Args:
        name: of the study.
        asks: what it names, with the arguments.
        token: that would trust it, as a shell takes it.
    """

    def __init__(self, name: str, asks: str, token: str) -> None:
        super().__init__(
            f"study {name!r} asks for what only the database names: {asks}; if you trust exactly that, add "
            f"--trust {token}, or give the study file instead of the name"
        )


class StorageError(UsageError):
    """A storage that cannot be used, now or later; messages never hold the password."""


class NestedError(UsageError):
    """A search or a worker that code of a study's own would start, which some worker or launch runs."""


class DamagedError(FloodsearchError):
    """A row of the database that floodsearch has not written so: changed by hand, or by another program.

    It is no fault of whoever gave the command, but comes again as long as the row is so: the exit status is
    that of wrong use, with which a launch starts no worker again.
    """

    def __init__(self, where: str, value: object, wanted: str) -> None:
        shown = repr(value)
        shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
        super().__init__(f"{where} is {shown}, not {wanted}; it was changed by hand, so set it right again")


class NoAnswerError(FloodsearchError):
    """A study in which no ticket has finished."""


class StorageFailedError(FloodsearchError):
    """A storage that failed while it was used; the same may work another time."""


class WorkersFailedError(FloodsearchError):
    """The local workers of a launch died more often than they are restarted, or can never work."""


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


class FirstCallError(FloodsearchError):
    """The error of a function that was handed over in Python, and has not trained one ticket yet.

    Whoever handed it over is there to read that error at once. It is the cause of this one.
    """


class TicketLostError(FloodsearchError):
    """The trial of a ticket was finished by someone else while this worker trained it."""


def pass_on_ctrl_c(error: BaseException) -> None:
    """Raise an error again that may be a Ctrl-C, and no word of the user's code.

    A worker handles SIGINT itself: there a KeyboardInterrupt is the code's own, like any other error.
    """
    handled = signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    main = threading.current_thread() is threading.main_thread()
    if isinstance(error, KeyboardInterrupt) and main and not handled:
        raise error


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, or its name if it says nothing."""
    try:
        lines = [line for line in str(error).splitlines() if line.strip()]
    except Exception:  # a user's error may fail even at this
        lines = []
    return lines[0].strip() if lines else type(error).__name__


def named(error: BaseException) -> str:
    """Return an error's name, and the first line of what it says."""
    name, said = type(error).__name__, first_line(error)
    return name if said == name else f"{name}: {said}"
