"""How often the intervals of an answer hold the truth: both promise 90 %, the goal is 85 to 97 %.

    python -m tests.benchmarks.coverage [TABLE.npz ...] [--json]

floodsearch searches recorded tables with its default settings; the studies are those of the replay: each seed
by itself, and blocks of five seeds in a ring. Blocks share seeds, so they are not independent, and the tables
are few: the shares are rough.

*Level*: whether the interval holds the level with the best mean test accuracy over all seeds of the table,
and how wide it is, as a share of the range: an interval that holds everything says nothing. That level is
itself an estimate from ten seeds, on curves that are flat around the maximum.

*Gain*: whether the interval holds the mean, over all seeds, of the value at the chosen level less that at
level 0; one seed has no such interval, nor has level 0. The seeds of a study are among those of the truth,
which brings the two together. *Corrected* undoes that: of n seeds out of N, the distance is divided by the
square root of 1 - n/N, as in sampling without replacement.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from tests.benchmarks.replay import WINDOW, place, search, sizes, studies_of
from tests.benchmarks.table import Table

TABLES = Path(__file__).with_name("tables")


@dataclass(frozen=True, kw_only=True)
class Verified:
    """One study: whether an interval holds the truth; None where there is no interval, or no truth."""

    level: bool | None
    width: float | None
    """Of the interval of the level, as a share of the range."""
    gain: bool | None
    gain_corrected: bool | None


@dataclass(frozen=True, kw_only=True)
class Coverage:
    """Shares of the studies of one table and number of seeds; None where nothing was counted."""

    table: str
    seeds_per_study: int
    studies: int
    level_intervals: int
    level: float | None
    level_width: float | None
    gain_intervals: int
    gain: float | None
    gain_corrected: float | None


def verify(table: Table, seeds: Sequence[int]) -> Verified:
    """Search with some seeds of a table and compare the intervals with what all seeds say."""
    found = search(table, seeds)
    truth = float(table.levels[np.argmax(table.test_final.mean(axis=0))])
    level = width = gain = corrected = None
    if found.interval is not None:
        low, high = found.interval
        level, width = low <= truth <= high, (high - low) / float(table.levels[-1])
    others = 1 - len(seeds) / len(table.seeds)
    if found.gain is not None and found.gain_interval is not None and others > 0:
        low, high = found.gain_interval
        values = table.values(WINDOW)
        off = float((values[:, place(table, found.level)] - values[:, 0]).mean()) - found.gain
        gain, corrected = (low <= found.gain + far <= high for far in (off, off / math.sqrt(others)))
    return Verified(level=level, width=width, gain=gain, gain_corrected=corrected)


def verify_all(path: Path, size: int) -> list[Verified]:
    """Verify all studies of one size of a table."""
    table = Table.load(path)
    return [verify(table, seeds) for seeds in studies_of(table, size)]


def coverage(name: str, size: int, verified: Sequence[Verified]) -> Coverage:
    """Count how often the truth is held."""
    levels = [one.level for one in verified if one.level is not None]
    gains = [one.gain for one in verified if one.gain is not None]
    return Coverage(
        table=name,
        seeds_per_study=size,
        studies=len(verified),
        level_intervals=len(levels),
        level=_mean(levels),
        level_width=_mean(one.width for one in verified if one.width is not None),
        gain_intervals=len(gains),
        gain=_mean(gains),
        gain_corrected=_mean(one.gain_corrected for one in verified if one.gain_corrected is not None),
    )


def _mean(values: Iterable[float]) -> float | None:
    known = [*values]
    return math.fsum(known) / len(known) if known else None


def main() -> None:
    """Verify all tables and print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "tables", type=Path, nargs="*", metavar="TABLE.npz", help="by default all recorded ones"
    )
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    jobs = [
        (path, size)
        for path in arguments.tables or sorted(TABLES.glob("*.npz"))
        for size in sizes(Table.load(path))
    ]
    with ProcessPoolExecutor() as pool:
        verified = list(pool.map(verify_all, *zip(*jobs, strict=True)))
    results = [coverage(path.stem, size, found) for (path, size), found in zip(jobs, verified, strict=True)]
    for size in sorted({size for _, size in jobs}) if len({path for path, _ in jobs}) > 1 else ():
        same = [one for (_, own), found in zip(jobs, verified, strict=True) if own == size for one in found]
        results.append(coverage("all", size, same))
    if arguments.json:
        print(json.dumps([asdict(one) for one in results], indent=2))
        return
    print(f"{'table':<18} seeds studies   level (of)  width    gain (of)  corrected")
    for one in results:
        print(
            f"{one.table:<18} {one.seeds_per_study:>5} {one.studies:>7}"
            f"   {_shown(one.level)} ({one.level_intervals:>2})  {_shown(one.level_width)}"
            f"    {_shown(one.gain)} ({one.gain_intervals:>2})  {_shown(one.gain_corrected)}"
        )


def _shown(share: float | None) -> str:
    return "   -" if share is None else f"{share:.2f}"


if __name__ == "__main__":
    main()
