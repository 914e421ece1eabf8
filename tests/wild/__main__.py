"""Every script searched as users do, in peace and with a worker killed in the middle.

    python -m tests.wild [KIND ...] [--pruner none|halving]

For each kind two searches with two workers; under halving, whose one bracket feeds one, with one. In the
second a worker is killed with SIGKILL when some of the epochs are known. Then:

- each has an answer, of levels of which some flooded;
- both answers are the same, to the last digit;
- the undisturbed search costs no more epochs than its grid, under halving too.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from tests.wild.kinds import KINDS, Kind
from tests.wild.searches import Search, without_costs

PRUNERS = ("none", "halving")


def compare(kind: Kind, pruner: str, folder: Path) -> str:
    """Search a kind twice; return what came of it, in a line."""
    began = time.monotonic()
    workers = 2 if pruner == "none" else 1
    quiet = Search(kind, folder / "quiet", pruner, workers).answer()
    search = Search(kind, folder / "killed", pruner, workers)
    killed = search.kill_one(quiet["epochs_exhaustive"] // 3 if pruner == "none" else 2)
    disturbed = search.answer()
    problems = []
    if not (quiet["finished"] and quiet["baseline"] and quiet["tried"]):
        problems.append("no answer")
    if quiet["epochs_run"] > quiet["epochs_exhaustive"]:
        problems.append(f"{quiet['epochs_run']} epochs instead of {quiet['epochs_exhaustive']}")
    if not killed:
        problems.append("no worker was killed")
    one, other = without_costs(quiet), without_costs(disturbed)
    if differs := [name for name in one if one[name] != other[name]]:
        problems.append("; ".join(f"{name}: {one[name]} and {other[name]}" for name in differs))
    return (
        f"{kind.name:16} {pruner:8} level {quiet['level']:<8.4g} {quiet['epochs_run']:3} of "
        f"{quiet['epochs_exhaustive']} epochs, {disturbed['epochs_run']:3} with a kill, "
        f"{time.monotonic() - began:4.0f} s: {', '.join(problems) or 'well'}"
    )


def main() -> None:
    """Search and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kinds", nargs="*", default=[*KINDS], metavar="KIND", help=", ".join(KINDS))
    parser.add_argument("--pruner", choices=PRUNERS, action="append")
    asked = parser.parse_args()
    lines = []
    for name in asked.kinds:
        for pruner in asked.pruner or PRUNERS:
            with tempfile.TemporaryDirectory() as folder:
                try:
                    lines.append(compare(KINDS[name], pruner, Path(folder)))
                except RuntimeError as error:
                    lines.append(f"{name:16} {pruner:8} {error}")
                print(lines[-1], flush=True)
    raise SystemExit(any(not line.endswith(": well") for line in lines))


if __name__ == "__main__":
    main()
