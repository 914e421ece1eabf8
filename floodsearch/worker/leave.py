"""What makes a worker leave: a signal, the study, its own code, or the end of whoever started it."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from queue import SimpleQueue
from typing import IO

from floodsearch.errors import HANDED_BACK, INTERRUPTED, FloodsearchError
from floodsearch.process.signals import listen

log = logging.getLogger(__name__)

SECONDS_TO_END = 2.0
"""For a worker without tickets to leave after a signal, and for one that is overdue to hand them back."""


class LeaveRequest:
    """A reason to leave, given by a signal, the study, or the end of `launch`; the first one stays.

    Attributes:
        reason: why the worker is to leave; None until it is.
        wanted: set from then on.
        signal: the number of the first one that came.
        abandoned: whether the process that started this worker is gone.
        error: why nothing can be trained any more, if that is the reason.
        overdue: called when the grace after a signal is over; None while there is nothing to hand back.
    """

    def __init__(self) -> None:
        self.reason: str | None = None
        self.wanted = threading.Event()
        self.signal: int | None = None
        self.abandoned = False
        self.error: FloodsearchError | None = None
        self.overdue: Callable[[], None] | None = None

    @property
    def status(self) -> int:
        """The exit status of a worker that leaves because of a signal."""
        return INTERRUPTED if self.signal == signal.SIGINT else HANDED_BACK

    def ask(self, reason: str) -> None:
        """Ask the worker to hand its tickets back and leave."""
        if not self.wanted.is_set():
            self.reason = reason
            self.wanted.set()

    def fail(self, error: FloodsearchError) -> None:
        """Ask the worker to leave, as nothing can be trained any more."""
        self.error = error
        self.ask(str(error))

    def on_signals(self, *numbers: int, grace: float) -> None:
        """Leave on these signals; a second one ends the process at once.

        Whatever the process does then: a thread hears them, as a call into C may last longer than the grace.

        Args:
            numbers: of the signals.
            grace: seconds to leave in, to the end of the epoch; then `overdue` is called, if it is set, and
                the process ended.
        """
        # Each comes in two ways, or, where code of the user's own listens too, in the first only. Neither a
        # handler, which interrupts whatever the main thread does, nor its thread may wait for a lock.
        arrivals: SimpleQueue[tuple[str, int]] = SimpleQueue()

        def handle(number: int, frame: object) -> None:
            del frame
            signal.signal(number, signal.SIG_DFL)  # the system ends us at the second one
            arrivals.put(("by Python", number))

        for number in numbers:
            signal.signal(number, handle)
        listen(lambda number: arrivals.put(("at once", number)))
        threading.Thread(target=self._obey, args=[arrivals, grace], name="leave", daemon=True).start()

    def _obey(self, arrivals: SimpleQueue[tuple[str, int]], grace: float) -> None:
        """Ask to leave at the first signal, and end the process at the second; never returns.

        Args:
            arrivals: the way in which each signal came, and its number.
            grace: seconds to leave in.
        """
        heard: Counter[str] = Counter()
        while True:
            way, number = arrivals.get()
            heard[way] += 1
            if heard[way] > 1:
                os._exit(128 + number)
            if self.signal is None:
                self.signal = number
                self.ask(f"signal {signal.Signals(number).name}")
                # By a thread, as a log has a lock.
                threading.Thread(
                    target=log.info, args=["asked to leave: %s", self.reason], daemon=True
                ).start()
                threading.Thread(target=self._end_after, args=[grace], daemon=True).start()

    def _end_after(self, grace: float) -> None:
        """End the process after a grace, or soon if it has nothing to hand back."""
        soon = min(grace, SECONDS_TO_END)
        time.sleep(soon)
        if self.overdue is not None:
            time.sleep(grace - soon)
        if self.overdue is not None:
            threading.Thread(target=self.overdue, daemon=True).start()
            time.sleep(SECONDS_TO_END)  # the database may be what holds us up
        os._exit(self.status)

    def on_end_of(self, stream: IO[bytes]) -> None:
        """Leave when a stream ends: its other end was held by a process that is gone."""

        def wait() -> None:
            while os.read(stream.fileno(), 4096):
                pass
            self.abandoned = True
            self.ask("whoever started this worker is gone")

        threading.Thread(target=wait, name="lifeline", daemon=True).start()
