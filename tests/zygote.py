"""Commands of ours as forks of one process that has imported everything: real, and two seconds sooner.

`Zygote.fork_exec` takes the place of what `subprocess` starts programs with. Where the program is the command
line, the zygote is asked to fork; any other program, and any unusual start, is left to Python. The fork is
a child of the caller like any other: its number, signals, session, folder, environment, streams, exit status
and `/proc/PID/cmdline` are its own. A launch gets a zygote of its own, for its workers.

A zygote forks a process that forks the command and ends: the command then belongs to the next process above
that takes up orphans, which is the caller.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).parents[1]
PRELOADED = (
    "alembic.command",
    "floodsearch.cli",
    "floodsearch.launchers.local",
    "floodsearch.service.dashboard",
    "floodsearch.tasks.synthetic",
    "floodsearch.worker.work",
    "sqlalchemy.dialects.postgresql.psycopg",
    "sqlalchemy.dialects.sqlite",
    "torch._dynamo",  # which the first optimizer imports: more than a second in each fork
    "torch.optim",
)
FILES = {str(ROOT / "floodsearch" / "__main__.py"), str(ROOT / "tests" / "quick.py")}
MODULES = {"floodsearch", "tests.quick"}
"""The command line, as it is started by its file and by its name, and with a quick clock."""
CODES: set[str] = set()
"""Programs given with `-c` that are forked, too."""
SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER
ROOM = "-" * 4000
"""An argument of the zygote, in whose place the arguments of its forks are shown."""
SETTLED = ("PYTHON", "LANG", "LC_", "LD_")
"""Beginnings of names of variables that Python or the system reads once, at the start."""
USUAL = (None, None, None, -1, None)
"""Group, groups, user, umask, and what the child is to call first: as the caller's, and nothing."""


def program(arguments: Sequence[str]) -> list[str] | None:
    """Return what `run` can run of a command: how, what, its arguments; None if not ours."""
    if not arguments or arguments[0] != sys.executable:
        return None
    words = list(arguments[2:] if arguments[1:2] == ["-P"] else arguments[1:])
    if words[:1] == ["-m"] and words[1:2] and words[1] in MODULES:
        return words
    if words[:1] and words[0] in FILES:
        return ["file", *words]
    if words[:1] == ["-c"] and words[1:2] and words[1] in CODES:
        return words
    return None


class Zygote:
    """The caller's end of a zygote."""

    def __init__(self, connection: socket.socket | None = None) -> None:
        self.connection, self.owner, self.lock = connection, os.getpid(), threading.Lock()
        self.settled = settled(os.environ)
        self.active = True
        self.start_program = subprocess._fork_exec  # type: ignore[attr-defined]

    def install(self) -> None:
        """Let `subprocess` start our commands by this zygote, and take up its forks."""
        ctypes.CDLL(None).prctl(SUBREAPER, 1, 0, 0, 0)
        subprocess._fork_exec = self.fork_exec  # type: ignore[attr-defined]

    def end(self) -> None:
        """Let `subprocess` start all commands by itself again; the zygote ends."""
        subprocess._fork_exec = self.start_program  # type: ignore[attr-defined]
        if self.connection is not None:
            self.connection.close()
            self.process.communicate(timeout=30)

    def fork_exec(self, *given: Any) -> int:
        """Start a program; the arguments are those of `_posixsubprocess.fork_exec`."""
        arguments, _, close, kept, cwd, listed, stdin, _, _, stdout, _, stderr = given[:12]
        _, _, _, new_session, process_group = given[12:17]
        words = [os.fsdecode(word) for word in arguments]
        variables = os.environ if listed is None else dict(os.fsdecode(one).split("=", 1) for one in listed)
        folder = os.fsdecode(cwd or Path.cwd())
        ordinary = close and len(kept) == 1 and given[17:22] == USUAL and Path(folder).is_dir()
        ours = program(words) if self.active and self.owner == os.getpid() else None
        if ours is None or not ordinary or settled(variables) != self.settled:
            pid: int = self.start_program(*given)
            return pid
        order = {
            "program": ours,
            "arguments": words,
            "cwd": folder,
            "environment": dict(variables),
            "new_session": bool(new_session),
            "process_group": process_group,
        }
        streams = [own if theirs == -1 else theirs for own, theirs in enumerate((stdin, stdout, stderr))]
        return self.ask(order, streams)

    def ask(self, order: Mapping[str, Any], streams: Sequence[int]) -> int:
        """Let the zygote fork a command; return the number of the process, which is a child of this one."""
        with self.lock:
            if self.connection is None:
                self.connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                command = [sys.executable, "-P", __file__, str(theirs.fileno()), ROOM]
                # Of pipes: Python would later seek in streams that once were files.
                pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
                self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()], **pipes)
                theirs.close()
            socket.send_fds(self.connection, [json.dumps(order).encode()], streams)
            if not (number := self.connection.recv(100)):
                raise RuntimeError(f"the zygote ended: {self.process.communicate()}")
            return int(number)


def settled(variables: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that a fork cannot change any more."""
    return {
        name: value for name, value in variables.items() if name.startswith(SETTLED) and name != "PYTHONPATH"
    }


# The other end


def own_folders() -> list[str]:
    """Return the folders of the user's own modules, as Python reads them from `PYTHONPATH`."""
    return [str(Path(one).absolute()) for one in os.environ.get("PYTHONPATH", "").split(os.pathsep) if one]


def serve(connection: socket.socket) -> dict[str, Any]:
    """Fork for each order; returns the order in the fork, and ends the process when nobody is left to ask."""
    while True:
        message, streams, _, _ = socket.recv_fds(connection, 2**20, 3)
        if not message:
            os._exit(0)
        number, tell = os.pipe()
        middle = os.fork()
        if middle == 0:
            if (pid := os.fork()) != 0:
                os.write(tell, str(pid).encode())
                os._exit(0)
            connection.close()
            for wanted, stream in enumerate(streams):
                os.dup2(stream, wanted)
            for other in (number, tell, *streams):
                os.close(other)
            found: dict[str, Any] = json.loads(message)
            return found
        os.close(tell)
        os.waitpid(middle, 0)  # from here on the fork is a child of the caller
        connection.send(os.read(number, 100))
        for other in (number, *streams):
            os.close(other)


def become(order: Mapping[str, Any], path: Sequence[str]) -> None:
    """Be the process that was ordered, but for its program."""
    if order["new_session"]:
        os.setsid()
    if order["process_group"] >= 0:
        os.setpgid(0, order["process_group"])
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["environment"])
    time.tzset()
    sys.path[:] = [*own_folders(), *path]
    importlib.invalidate_caches()
    sys.stdout.reconfigure(line_buffering=os.isatty(1))  # type: ignore[union-attr]
    sys.orig_argv = order["arguments"]
    show(order["arguments"])


def show(arguments: Sequence[str]) -> None:
    """Let `/proc/PID/cmdline` be that of the command; it is read from the memory where arguments lie."""
    begin, end = map(int, Path("/proc/self/stat").read_text().rpartition(")")[2].split()[45:47])
    text = "\0".join(arguments).encode(errors="surrogateescape")[: end - begin - 1]
    ctypes.memmove(begin, text.ljust(end - begin, b"\0"), end - begin)


def attach() -> socket.socket | None:
    """Give this process a zygote of its own; returns its connection there, and None here."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if os.fork() == 0:
        ours.close()
        nothing = os.open(os.devnull, os.O_RDWR)
        for stream in range(3):
            os.dup2(nothing, stream)
        os.close(nothing)
        return theirs
    theirs.close()
    Zygote(ours).install()
    return None


def run(words: Sequence[str]) -> None:
    """Run a program as `__main__`."""
    how, what, *_ = words
    sys.argv = list(words[1:])
    if how == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    elif how == "file":
        runpy.run_path(what, run_name="__main__")
    else:
        sys.argv[0] = "-c"
        exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})


def leave(code: int | str | None) -> NoReturn:
    """End as Python does, but leave what lies in memory: to take that apart costs more than most commands."""
    if isinstance(code, str):
        print(code, file=sys.stderr)
        code = 1
    finish()
    os._exit(code or 0)


def finish() -> None:
    """Do what Python does at the end of a program."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()


def main(connection: socket.socket) -> None:
    """Serve, and be what was ordered in each fork."""
    path = [one for one in sys.path if one not in own_folders()]
    for name in PRELOADED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # collections in forks would copy all of it
    order = serve(connection)
    become(order, path)
    while "launch" in order["arguments"] and (connection := attach()) is not None:
        order = serve(connection)
        become(order, path)
    try:
        run(order["program"])
    except SystemExit as ended:
        leave(ended.code)
    except KeyboardInterrupt:  # of which Python knows nothing any more at the end, if torch._dynamo is there
        sys.excepthook(*sys.exc_info())
        finish()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.raise_signal(signal.SIGINT)
    leave(None)


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])))
