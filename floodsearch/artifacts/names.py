"""The names of a study's files. A file with another name is not ours, and never removed."""

from __future__ import annotations

import re
from collections.abc import Iterator

from floodsearch.artifacts.files import Files, Folder
from floodsearch.records import Keep

WEIGHTS = "weights"
"""The folder of kept weights, among a study's files."""
RUNS = "runs"
"""The folder of those folders that a command has for each of its runs, among a study's files."""
_UNFINISHED = r"(\.\d+\.unfinished)?"
"""The end of a name of a file whose worker was killed while it wrote."""
CHECKPOINT = re.compile(
    r"(ticket-\d+|trunk-[0-9a-f]{8})-seed-\d+(-epoch-\d+)?\.pt(\.before)?" + _UNFINISHED, re.ASCII
)
KEPT = re.compile(r"ticket-\d+-seed-\d+-epochs-\d+-(last|best)\.pt" + _UNFINISHED, re.ASCII)
RUN = re.compile(r"ticket-\d+-seed-\d+-epochs-\d+", re.ASCII)


def name_of(ticket: int, seed: int) -> str:
    """Return the name of a run in files."""
    return f"ticket-{ticket}-seed-{seed}"


def run_folder(ticket_and_seed: str, epochs: int) -> str:
    """Return the folder of a command's run: of its length, too, as a longer run is another one."""
    return f"{ticket_and_seed}-epochs-{epochs}"


def titled(level: float, run: str) -> str:
    """Return the name of a run with its level, for people who look at folders and plots of runs."""
    return f"level-{level:g}-{run}"


def log_name(run: str) -> str:
    """Return the name of the file of what a run prints, by the run's name."""
    return f"{run}.log"


def trunk_name(digest: str, seed: int, epoch: int | None) -> str:
    """Return the name of an unflooded run, by eight digits of its recipe; or of its past at an epoch."""
    return f"trunk-{digest}-seed-{seed}" + ("" if epoch is None else f"-epoch-{epoch}")


def weights_name(ticket: int, seed: int, epochs: int | str, keep: Keep) -> str:
    """Return the file of a run's weights, which says which: a study may grow, and ask for others."""
    return f"{name_of(ticket, seed)}-epochs-{epochs}-{keep}.pt"


def remove_files(files: Files) -> list[str]:
    """Remove all files of a study; return the names of those that stay because they are not ours.

    Raises:
        OSError: if they cannot be removed.
    """
    kept, runs = files.within(WEIGHTS), files.within(RUNS)
    if isinstance(runs, Folder):
        for name in filter(RUN.fullmatch, runs.entries()):
            runs.remove_folder(name)
        runs.remove()
    for place, ours in ((kept, KEPT), (files, CHECKPOINT)):
        place.remove(*(name for name in place.names("*") if ours.fullmatch(name)))
    return sorted(_left(files))


def _left(files: Files) -> Iterator[str]:
    for folder in (WEIGHTS, RUNS):
        yield from (f"{folder}/{name}" for name in files.within(folder).entries())
    yield from (name for name in files.entries() if name not in (WEIGHTS, RUNS))
