"""The guard of a command of the user's own: a process between it and the worker, which outlives neither.

It is run as a file, by Python alone: `guard.py LOG RUN GRACE PROGRAM ARGUMENT...`. LOG is the number of an
open file, which takes in all that the command prints; standard output and errors are passed on to the worker
as well. Standard input is a socket whose other end the worker holds: it tells the guard to stop the command,
to let it go on or to end it, and when the worker is gone, however that was killed, it closes, which ends the
command too. What a command had printed by then is in the log.

A command ends with all that it has started: on Linux also with what has left its group, as the guard takes
up its orphans. A guard that is killed itself takes the command with it. It ends as the command did.

One guard at a time has a run: a lock on the log says so. One that finds another asks it to end and waits.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import resource
import selectors
import signal
import struct
import sys
import time
from collections.abc import Iterator

PAUSE, GO_ON, END = b"p", b"g", b"e"
"""What a worker tells a guard."""
QUIET_SECONDS = 0.5
"""How long what a command has left behind may print nothing before it is ended."""
LOOK_SECONDS = 0.05
MOST = 2**20
"""Bytes that wait for a worker; a command that prints more has to wait too."""
LINUX = sys.platform == "linux"
DIES_WITH_PARENT, TAKES_UP_ORPHANS = 1, 36
"""PR_SET_PDEATHSIG and PR_SET_CHILD_SUBREAPER of Linux."""
LOCK = struct.Struct("hhqqi4x")
"""The lock of a part of a file, as 64 bits of Linux have it: kind, from where, first byte, bytes, process."""
FIRST_LOCK = 2**40
"""The first byte that is locked, behind all that a log may hold; a run has its own."""


def tree(root: int) -> list[int]:
    """Return the living processes below one, each behind the one that started it; none but on Linux."""
    children = dict[int, list[int]]()
    for pid, parent in _parents():
        children.setdefault(parent, []).append(pid)
    found, left = list[int](), [root]
    while left:
        below = children.get(left.pop(), [])
        found += below
        left += below
    return found


def _parents() -> Iterator[tuple[int, int]]:
    """Yield each process that is no zombie, with its parent."""
    for name in os.listdir("/proc") if LINUX else ():  # noqa: PTH208 - names, not paths
        if name.isdigit():
            with contextlib.suppress(OSError):
                told = _content(f"/proc/{name}/stat").rpartition(b")")[2].split()
                if told[0] != b"Z":
                    yield int(name), int(told[1])


def _content(path: str) -> bytes:
    """Return a short file; `pathlib` would take longer to import than a guard to start."""
    number = os.open(path, os.O_RDONLY)
    try:
        return os.read(number, 2**16)
    finally:
        os.close(number)


class Stream:
    """What a command prints in one way, on its way to the log and to the worker.

    Args:
        source: where it comes from.
        target: where it goes to beside the log.
        log: takes in all.
    """

    def __init__(self, source: int, target: int, log: int) -> None:
        self.source, self.target, self.log = source, target, log
        self.waiting = bytearray()
        self.ended = self.unread = False
        os.set_blocking(target, False)

    @property
    def full(self) -> bool:
        """Whether the worker has to read first."""
        return len(self.waiting) > MOST

    def take(self) -> bool:
        """Take in what there is; return whether it was anything."""
        content = os.read(self.source, 2**16)
        self.ended = not content
        with contextlib.suppress(OSError):  # a full disk ends no training
            os.write(self.log, content)
        if not self.unread:
            self.waiting += content
        self.give()
        return bool(content)

    def give(self) -> None:
        """Pass on what the worker takes at once."""
        try:
            while self.waiting:
                del self.waiting[: os.write(self.target, self.waiting)]
        except BlockingIOError:
            pass
        except OSError:  # nobody reads it any more
            self.unread = True
            self.waiting.clear()


class Guard:
    """Watches over one command until it has ended, and all that it has started.

    Args:
        words: the program and its arguments.
        log: number of the open file for all that it prints.
        grace: seconds between SIGTERM and SIGKILL.

    Raises:
        OSError: if the command cannot be started.
    """

    def __init__(self, words: list[str], log: int, grace: float) -> None:
        self.grace = grace
        self.libc = ctypes.CDLL(None) if LINUX else None
        if self.libc is not None:
            self.libc.prctl(TAKES_UP_ORPHANS, 1, 0, 0, 0)
        self.selector = selectors.DefaultSelector()
        self.status: int | None = None  # as `wait` tells it
        self.kill_at = self.quiet_at = float("inf")
        self.asked = False  # to end
        self.wakes = self._wake_at(signal.SIGCHLD, signal.SIGTERM)
        (out, into_out), (err, into_err) = os.pipe(), os.pipe()
        self.pid = self._start(words, into_out, into_err)
        os.close(into_out)
        os.close(into_err)
        self.streams = [Stream(out, 1, log), Stream(err, 2, log)]
        self.selector.register(0, selectors.EVENT_READ)
        self.selector.register(self.wakes, selectors.EVENT_READ)

    def _wake_at(self, *numbers: int) -> int:
        """Return what can be read when one of these signals has come: their numbers."""
        wakes, tells = os.pipe()
        for end in (wakes, tells):
            os.set_blocking(end, False)
        for number in numbers:
            signal.signal(number, lambda *_: None)
        signal.set_wakeup_fd(tells)
        return wakes

    def _start(self, words: list[str], out: int, err: int) -> int:
        """Start the command in a session of its own; return its number."""
        tells_why, why = os.pipe()
        if pid := os.fork():
            os.close(why)
            told = os.read(tells_why, 2**10)
            os.close(tells_why)
            if told:
                os.waitpid(pid, 0)
                raise OSError(int(told), os.strerror(int(told)))
            return pid
        try:
            os.setsid()
            if self.libc is not None:
                self.libc.prctl(DIES_WITH_PARENT, signal.SIGKILL, 0, 0, 0)
            for ignored in (signal.SIGPIPE, signal.SIGXFSZ):  # by Python
                signal.signal(ignored, signal.SIG_DFL)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(out, 1)
            os.dup2(err, 2)
            os.execvp(words[0], words)  # noqa: S606 - what the study file names, without a shell
        except OSError as error:
            os.write(why, str(error.errno).encode())
        finally:
            os._exit(127)

    def watch(self) -> int:
        """Return how the command ended, as `wait` tells it, when nothing of it is left."""
        for stream in self.streams:
            self.selector.register(stream.source, selectors.EVENT_READ, stream)
        while not self._over():
            for key, _ in self.selector.select(self._seconds()):
                if key.fileobj == 0:
                    self._obey()
                elif key.fileobj == self.wakes:
                    if signal.SIGTERM in os.read(self.wakes, 2**10):
                        self._end()
                elif key.data.take():
                    self.quiet_at = self._quiet()
            self._reap()
            self._turn_streams()
        self._kill()
        for stream in self.streams:
            while not stream.ended and selectable(stream.source):
                stream.take()
            os.set_blocking(stream.target, True)
            stream.give()
        return self.status or 0

    def _quiet(self) -> float:
        return float("inf") if self.status is None else time.monotonic() + QUIET_SECONDS

    def _over(self) -> bool:
        """Return whether what is left is to be killed: the grace is over, or only what nobody waits for."""
        now = time.monotonic()
        silent = self.status is not None and (now >= self.quiet_at or all(one.ended for one in self.streams))
        return silent or now >= self.kill_at

    def _seconds(self) -> float | None:
        """Return how long nothing has to be looked at."""
        if any(one.waiting for one in self.streams):
            return LOOK_SECONDS
        until = min(self.kill_at, self.quiet_at)
        return None if until == float("inf") else max(0.0, until - time.monotonic())

    def _obey(self) -> None:
        """Do what the worker says; without a worker the command ends."""
        try:
            told = os.read(0, 2**10)
        except OSError:
            told = b""
        if not told:
            self.selector.unregister(0)
        for one in (told[at : at + 1] for at in range(len(told))):
            if one == PAUSE:
                self._signal_all(signal.SIGSTOP)
            elif one == GO_ON:
                self._signal_all(signal.SIGCONT)
        if not told or END in told:
            self._end()

    def _end(self) -> None:
        """Ask all to end, once; what is stopped goes on, to hear it."""
        if not self.asked:
            self.asked = True
            self.kill_at = min(self.kill_at, time.monotonic() + self.grace)
            self._signal_all(signal.SIGTERM)  # it waits for what is stopped, which trains no step more
            self._signal_all(signal.SIGCONT)

    def _signal_all(self, number: int) -> None:
        """Send a signal to the command and all that it has started, each once, in whatever group that is."""
        reached = set[int]()
        while new := [pid for pid in tree(os.getpid()) if pid not in reached]:
            reached.update(new)
            for pid in new:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            if number == signal.SIGTERM:  # what is started because of it is to save something
                break
        if not reached:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    def _kill(self) -> None:
        """Kill all, until nothing is left."""
        while True:
            self._signal_all(signal.SIGKILL)
            if self._reap():
                return
            time.sleep(LOOK_SECONDS)

    def _reap(self) -> bool:
        """Take note of processes that have ended; return whether there is none left."""
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == self.pid:
                    self.status = status
                    self.kill_at = min(self.kill_at, time.monotonic() + self.grace)
                    self.quiet_at = self._quiet()
                elif pid == 0:
                    return False
        return True

    def _turn_streams(self) -> None:
        """Read what the worker takes, and pass on what waits for it."""
        for stream in self.streams:
            stream.give()
            registered = stream.source in self.selector.get_map()
            if registered and (stream.ended or stream.full):
                self.selector.unregister(stream.source)
            elif not registered and not stream.ended and not stream.full:
                self.selector.register(stream.source, selectors.EVENT_READ, stream)


def selectable(source: int) -> bool:
    """Return whether something can be read at once."""
    with selectors.DefaultSelector() as selector:
        selector.register(source, selectors.EVENT_READ)
        return bool(selector.select(0))


def take_turn(log: int, run: str, seconds: float) -> str | None:
    """Wait for the guard that has this run, which is asked to end; return what is wrong if it does not.

    Args:
        log: of the run.
        run: hex digits, which are among the arguments of each guard of this run.
        seconds: to wait.
    """
    byte, asked, until = FIRST_LOCK + int(run[:8], 16), set[int](), time.monotonic() + seconds
    while True:
        try:
            fcntl.lockf(log, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                return None  # a file system without locks
        else:
            return None
        holder = _holder(log, byte)
        if holder not in asked and _is_guard(holder, run):
            asked.add(holder)
            os.kill(holder, signal.SIGTERM)
        if time.monotonic() > until:
            return f"an earlier process of this run goes on (its guard is process {holder}); end it"
        if selectable(0):  # the worker is gone, or wants no more
            return "nobody waits for it"
        time.sleep(LOOK_SECONDS)


def _holder(log: int, byte: int) -> int:
    """Return the process that has a lock; 0 if that is not known."""
    if not LINUX:
        return 0
    asked = LOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
    with contextlib.suppress(OSError):
        return int(LOCK.unpack(fcntl.fcntl(log, fcntl.F_GETLK, asked))[4])
    return 0


def _is_guard(pid: int, run: str) -> bool:
    """Return whether a process of this machine is a guard of a run: a lock may be another machine's."""
    try:
        return pid > 0 and run.encode() in _content(f"/proc/{pid}/cmdline").split(b"\0")
    except OSError:
        return False


def end_as(status: int) -> None:
    """End this process as another one did."""
    if os.WIFSIGNALED(status):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        number = os.WTERMSIG(status)
        with contextlib.suppress(OSError):  # of SIGKILL, which has no handler
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    sys.exit(os.waitstatus_to_exitcode(status))


def main(log: int, run: str, grace: float, words: list[str]) -> None:
    """Run a command under guard; what cannot be started is told to the worker in words."""
    os.set_inheritable(log, False)
    problem = take_turn(log, run, grace + 5)
    if problem is None:
        try:
            guard = Guard(words, log, grace)
        except OSError as error:
            problem = f"the command cannot be started: {words[0]!r}: {error.strerror}"
    if problem is not None:
        with contextlib.suppress(OSError):
            os.write(0, problem.encode(errors="surrogateescape"))
        sys.exit(127)
    import shlex  # while the command starts, of which nothing is read yet

    with contextlib.suppress(OSError):
        before = b"\n" if os.fstat(log).st_size else b""
        os.write(log, before + f"$ {shlex.join(words)}  # run {run}\n".encode(errors="surrogateescape"))
    end_as(guard.watch())


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], float(sys.argv[3]), sys.argv[4:])
