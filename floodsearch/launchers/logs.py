"""The logs of a study: one file a worker, and one a run, in a folder of the study's name."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from floodsearch.artifacts.files import Folder
from floodsearch.defaults import LOGS
from floodsearch.errors import UsageError

RUN = re.compile(r"ticket-(\d+)-seed-\d+$", re.ASCII)
"""The name of a run, as its log has it."""


def open_log(logs: Path, study: str, name: str) -> IO[bytes]:
    """Open a log of a study to add to it.

    Raises:
        UsageError: if it cannot be written, or is a link.
    """
    try:
        return Folder(logs.absolute()).within(study).append(name)
    except OSError as error:
        path = logs.absolute() / study / name
        raise UsageError(
            f"the log {path} cannot be written: {error.strerror}; remove what is in its way"
        ) from None


def log_size(path: Path) -> int:
    """Return the bytes of a log; 0 while there is none."""
    return path.stat().st_size if path.is_file() else 0


def log_lines(name: str, last: int, logs: Path = LOGS, run: str | None = None) -> Iterator[str]:
    """Yield the last lines of each log of a study, then what is added, as it is; an empty line if nothing is.

    Args:
        name: of the study.
        last: lines of each log.
        logs: the folder of all logs.
        run: `ticket-3` or `ticket-3-seed-0`: its runs; None for the logs of workers and of the launch.

    Raises:
        UsageError: if there are none.
    """
    if not (logs / name).is_dir():
        raise UsageError(
            f"there are no logs of {name!r} in {logs.absolute()}; ask where it was launched, or give --logs"
        )
    if run is not None and not _logs_of(logs / name, run):
        raise UsageError(_no_run(logs / name, run))
    read: dict[Path, int] = {}
    while True:
        for path in _logs_of(logs / name, run):
            new = path.read_bytes()[read.get(path, 0) :]
            whole = new[: new.rfind(b"\n") + 1]  # what is being written comes the next time
            lines = whole.decode("utf-8", errors="replace").splitlines()
            for line in lines if path in read else lines[-last:]:
                yield f"{path.stem}: {line}"
            read[path] = read.get(path, 0) + len(whole)
        yield ""


def _logs_of(folder: Path, run: str | None) -> list[Path]:
    """Return the logs of runs in a folder, or of those that are no runs, in the order of their numbers."""
    every = [one for one in folder.glob("*.log") if not one.is_symlink()]
    if run is None:
        return sorted(one for one in every if not RUN.match(one.stem))
    found = [one for one in every if one.stem == run or one.stem.startswith(f"{run}-seed-")]
    return sorted(found, key=lambda one: [int(number) for number in re.findall(r"\d+", one.stem)])


def _no_run(folder: Path, run: str) -> str:
    """Return that there is no log of a run, and which there are."""
    tickets = {int(found[1]) for one in folder.glob("*.log") if (found := RUN.match(one.stem))}
    there = f"there are ticket-{min(tickets)} to ticket-{max(tickets)}" if tickets else "no run has one here"
    return f"there is no log of {run!r} in {folder.absolute()}: {there}; a run is named ticket-3-seed-0"
