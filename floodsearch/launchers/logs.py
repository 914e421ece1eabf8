"""The logs of a study: one file a worker, in a folder of the study's name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import IO

from floodsearch.artifacts.files import Folder
from floodsearch.defaults import LOGS
from floodsearch.errors import UsageError


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


def log_lines(name: str, last: int, logs: Path = LOGS) -> Iterator[str]:
    """Yield the last lines of each log of a study, then what is added, as it is; an empty line if nothing is.

    Args:
        name: of the study.
        last: lines of each log.
        logs: the folder of all logs.

    Raises:
        UsageError: if there are none.
    """
    if not (logs / name).is_dir():
        raise UsageError(
            f"there are no logs of {name!r} in {logs.absolute()}; ask where it was launched, or give --logs"
        )
    read: dict[Path, int] = {}
    while True:
        for path in sorted(one for one in (logs / name).rglob("*.log") if not one.is_symlink()):
            new = path.read_bytes()[read.get(path, 0) :]
            whole = new[: new.rfind(b"\n") + 1]  # what is being written comes the next time
            lines = whole.decode("utf-8", errors="replace").splitlines()
            for line in lines if path in read else lines[-last:]:
                yield f"{path.stem}: {line}"
            read[path] = read.get(path, 0) + len(whole)
        yield ""
