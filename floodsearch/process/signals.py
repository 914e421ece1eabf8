"""Signals, heard at once.

Python calls its own handlers between two of its instructions, so that they wait while the process is in a
call into C, such as one that waits a minute for SQLite's lock, or for a name server. Here a thread hears of a
signal in the moment in which it comes.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable


def listen(call: Callable[[int], None]) -> Callable[[], None]:
    """Let a thread call something with the number of each signal that has a handler in Python.

    Who listens last hears alone. Only the main thread may listen.

    Returns:
        What ends it.
    """
    hears, tells = os.pipe()
    os.set_blocking(tells, False)
    signal.set_wakeup_fd(tells, warn_on_full_buffer=False)

    def hear() -> None:
        while numbers := os.read(hears, 64):
            for number in numbers:
                call(number)
        os.close(hears)

    def end() -> None:
        if (last := signal.set_wakeup_fd(-1)) != tells:
            signal.set_wakeup_fd(last)  # of someone who came later
        os.close(tells)

    threading.Thread(target=hear, name="signals", daemon=True).start()
    return end
