"""Why a worker's process ended, and whether and when another takes its place.

As good supervisors do it: at once, as long as each does something before it dies; after growing pauses where
it does nothing; and no more after too many that did nothing in a row. Those that something else killed are
forgiven more often than those that fell by themselves: what killed them may end, as a wave of preemptions.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from floodsearch.errors import HANDED_BACK

CRASHES = 4
"""A place is given up after so many workers in a row that ended by themselves and had done nothing."""
KILLS = 60
"""The same, of workers that something else has killed: about a quarter of an hour, with the pauses."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 10.0
"""Seconds before another takes the place of a worker that did nothing; twice as long each time."""
INTERRUPTED = 128 + signal.SIGINT
FROM_OUTSIDE = {-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP, HANDED_BACK, INTERRUPTED}
"""Exit statuses, or minus the signal, of workers that something else has ended."""
TAIL_BYTES = 65536


@dataclass(frozen=True)
class Death:
    """The end of a worker that nobody asked for.

    Args:
        status: its exit status, or minus the signal that killed it.
        out_of_memory: whether the kernel has killed it, or another process beside it, for want of memory.
        progress: whether it has trained anything that nobody had trained before.
        said: the last line of its log.
    """

    status: int
    out_of_memory: bool
    progress: bool
    said: str

    @property
    def from_outside(self) -> bool:
        """Whether something outside of it ended it, as far as can be told."""
        return self.status in FROM_OUTSIDE and not self.out_of_memory

    @property
    def cause(self) -> str:
        """The cause of the death, as the rest of a sentence."""
        if self.status >= 0:
            asked = " (it was asked to leave)" if self.status in FROM_OUTSIDE else ""
            return f"ended with exit status {self.status}{asked}"
        try:
            name = signal.Signals(-self.status).name
        except ValueError:  # one of the many real-time signals
            name = f"signal {-self.status}"
        if self.status != -signal.SIGKILL:
            return f"was killed by {name}"
        return f"was killed by {name}, {'' if self.out_of_memory else 'perhaps '}for want of memory"


@dataclass
class Patience:
    """Counts deaths of workers in one place, until no other may take it.

    Attributes:
        deaths: in a row of workers that had done nothing.
        crashes: those of them that ended by themselves.
    """

    deaths: int = 0
    crashes: int = 0

    def pause(self, death: Death) -> float | None:
        """Return for how many seconds the place is to stay empty after a death; None to give it up."""
        if death.progress:
            self.deaths = self.crashes = 0
            return 0.0
        self.deaths += 1
        self.crashes += not death.from_outside
        if self.crashes >= CRASHES or self.deaths >= KILLS:
            return None
        # The exponent is bounded, as a float is.
        return float(min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(self.deaths - 1, 10)))


def last_line(log: Path, since: int = 0) -> str:
    """Return the last line of a log that is not empty, without our own name before it.

    Args:
        log: its file.
        since: the byte at which it begins to be of interest.
    """
    try:
        with log.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(min(since, size), size - TAIL_BYTES))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return "nothing"
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip().removeprefix("floodsearch: ") if lines else "nothing"


def memory_kills(proc: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the number of processes of our control group that the kernel has killed for want of memory.

    0 where it does not count them.

    Args:
        proc: the kernel's table of the groups that this process is in.
        root: where they are mounted, of either version.
    """
    counts = [
        int(number)
        for path in _memory_files(proc, root)
        if path.is_file()
        for key, _, number in (line.partition(" ") for line in path.read_text(encoding="utf-8").splitlines())
        if key == "oom_kill" and number.isdigit()
    ]
    return max(counts, default=0)


def _memory_files(proc: Path, root: Path) -> Iterator[Path]:
    """Yield the files that may hold that count; in a container a group's own path is that of its root."""
    try:
        lines = proc.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", maxsplit=2)
        for group in dict.fromkeys((path.strip("/"), "")):
            if not controllers:
                yield root / group / "memory.events"
            elif "memory" in controllers.split(","):
                yield root / "memory" / group / "memory.oom_control"
