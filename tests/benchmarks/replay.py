"""Searches replayed on recorded curves: what each strategy chooses, and at what cost.

    python -m tests.benchmarks.replay TABLE.npz [TABLE.npz ...] [--json] [--repeats 1] [--only STRATEGY ...]

No training: floodsearch runs as it is, through its queue, worker, pruner and analysis, on a temporary SQLite
file, and the epochs come from the table. Beside it stand Optuna's own searches on the same curves. Each seed
is a study of its own, and each block of five seeds that follow one another (in a ring) is one.

Test accuracy is that of the chosen level at the last epoch, mean over the seeds of a study. Regret is against
the level with the best mean test accuracy of those seeds. Cost is a share of all epochs of all levels. The
standard error counts only studies that share no seed.

Of several tables a pooled one follows: by how much a strategy's test accuracy differs from that of
`exhaustive, smoothed` on the same seeds, as a mean over tables, each of which counts alike. Its standard
error comes from the differences between the studies of a table; a table of one study is left out.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import optuna

from floodsearch import queue
from floodsearch.answer.smoothing import smooth
from floodsearch.catalog import known
from floodsearch.queries import answer
from floodsearch.records import BestLevel
from floodsearch.storage.database import open_database
from floodsearch.storage.studies import put_study
from floodsearch.study.reader import parse
from floodsearch.worker.leave import LeaveRequest
from floodsearch.worker.settings import WorkerSettings
from floodsearch.worker.work import work
from tests.benchmarks.table import Recorded, Table

WINDOW = 0.2
GROUP = 5


@dataclass(frozen=True)
class Choice:
    """What one search came to: the place of its level in the table, and its share of all epochs."""

    level: int
    cost: float


Strategy = Callable[[Table, Sequence[int], int], Choice]
"""(table, places of the study's seeds, number of the repetition) to its choice."""


def search(table: Table, seeds: Sequence[int], **changes: object) -> BestLevel:
    """Search a table with floodsearch, with default settings but for some tables of the study file."""
    high, count = float(table.levels[-1]), len(table.levels)
    content = {
        "name": "replay",
        "task": "two_gaussians",  # which is not trained
        "levels": {"high": high, "count": count},
        "training": {
            "epochs": table.length,
            "seeds": [int(table.seeds[seed]) for seed in seeds],
            "validate_every": int(table.epochs[0]),
        },
        **changes,
    }
    with tempfile.TemporaryDirectory() as folder:
        database = open_database(f"sqlite:///{folder}/replay.db", create=True)
        study = put_study(database, parse(content, known()))
        queue.fill(study)
        work(
            study,
            WorkerSettings(device="cpu"),
            LeaveRequest(),
            partial(Recorded, table),
        )
        found = answer(study)
        database.close()
    return found


def floodsearch(
    table: Table, seeds: Sequence[int], repeat: int, *, sampler: str = "grid", trials: int | None = None
) -> Choice:
    """Search with floodsearch's default settings, or with another sampler and so many trials."""
    sampled = {} if trials is None else {"trials": trials}
    found = search(table, seeds, search={"seed": repeat, "sampler": sampler, **sampled})
    return Choice(
        place(table, found.level), found.epochs_run / (len(table.levels) * len(seeds) * table.length)
    )


def place(table: Table, level: float) -> int:
    """Return the place of a level in a table."""
    return int(np.abs(table.levels - level).argmin())


def exhaustive(table: Table, seeds: Sequence[int], repeat: int, *, smoothed: bool) -> Choice:
    """Train every level to its end; take the highest value, or the maximum of the smoothed curve."""
    del repeat
    values = table.values(WINDOW)[list(seeds)]
    curve = smooth(table.levels, values).mean if smoothed else values.mean(axis=0)
    return Choice(int(np.argmax(curve)), 1.0)


def no_flooding(table: Table, seeds: Sequence[int], repeat: int) -> Choice:
    """Train without flooding."""
    del seeds, repeat
    return Choice(0, 1 / len(table.levels))


def with_optuna(
    table: Table,
    seeds: Sequence[int],
    repeat: int,
    *,
    sampler: Callable[[Table, int], optuna.samplers.BaseSampler],
    pruner: Callable[[Table], optuna.pruners.BasePruner],
    share: float = 1.0,
) -> Choice:
    """Search as a user of Optuna would: as many trials as levels, each reporting its mean over the seeds."""
    curves = table.val_accuracy[list(seeds)].mean(axis=0)  # (L, V)
    values = table.values(WINDOW)[list(seeds)].mean(axis=0)  # (L,)
    step = float(table.levels[1] - table.levels[0])
    spent = 0

    def objective(trial: optuna.Trial) -> float:
        nonlocal spent
        level = trial.suggest_float("level", 0.0, float(table.levels[-1]), step=step)
        index, before = place(table, level), 0
        trial.set_user_attr("place", index)
        for epoch, value in zip(table.epochs.tolist(), curves[index].tolist(), strict=True):
            spent += epoch - before
            before = epoch
            trial.report(value, epoch)
            if trial.should_prune():
                raise optuna.TrialPruned
        return float(values[index])

    study = optuna.create_study(
        direction="maximize", sampler=sampler(table, repeat), pruner=pruner(table), study_name="s"
    )
    study.optimize(objective, n_trials=max(1, round(share * len(table.levels))))
    return Choice(study.best_trial.user_attrs["place"], spent / (len(table.levels) * table.length))


def _grid(table: Table, seed: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.GridSampler({"level": table.levels.tolist()}, seed=seed)


def _tpe(table: Table, seed: int) -> optuna.samplers.BaseSampler:
    del table
    return optuna.samplers.TPESampler(seed=seed)


def _gp(table: Table, seed: int) -> optuna.samplers.BaseSampler:
    del table
    return optuna.samplers.GPSampler(seed=seed, deterministic_objective=False)


def _random(table: Table, seed: int) -> optuna.samplers.BaseSampler:
    del table
    return optuna.samplers.RandomSampler(seed=seed)


def _none(table: Table) -> optuna.pruners.BasePruner:
    del table
    return optuna.pruners.NopPruner()


def _median(table: Table) -> optuna.pruners.BasePruner:
    del table
    return optuna.pruners.MedianPruner()


def _hyperband(table: Table) -> optuna.pruners.BasePruner:
    return optuna.pruners.HyperbandPruner(min_resource=int(table.epochs[0]), max_resource=table.length)


def _successive_halving(table: Table) -> optuna.pruners.BasePruner:
    first = max(int(table.epochs[0]), round(0.04 * table.length))
    return optuna.pruners.SuccessiveHalvingPruner(min_resource=first, reduction_factor=3)


TRIALS = 10
"""Of the samplers of floodsearch: as many as the default search tries levels, level 0 included."""
REFERENCE = "exhaustive, smoothed"

STRATEGIES: dict[str, Strategy] = {
    "floodsearch": floodsearch,
    **{
        f"floodsearch {sampler}": partial(floodsearch, sampler=sampler, trials=TRIALS)
        for sampler in ("heuristic", "tpe", "gp", "random")
    },
    REFERENCE: partial(exhaustive, smoothed=True),
    "exhaustive, highest": partial(exhaustive, smoothed=False),
    "optuna tpe + median": partial(with_optuna, sampler=_tpe, pruner=_median),
    "optuna tpe + hyperband": partial(with_optuna, sampler=_tpe, pruner=_hyperband),
    "optuna gp, a third": partial(with_optuna, sampler=_gp, pruner=_none, share=1 / 3),
    "optuna grid + halving": partial(with_optuna, sampler=_grid, pruner=_successive_halving),
    "optuna random, a third": partial(with_optuna, sampler=_random, pruner=_none, share=1 / 3),
    "no flooding": no_flooding,
}


def studies_of(table: Table, size: int) -> list[list[int]]:
    """Return the places of the seeds of each study: blocks of `size` in a ring, or all seeds once."""
    total = len(table.seeds)
    starts = range(1 if size == total else total)
    return [[(start + offset) % total for offset in range(size)] for start in starts]


def sizes(table: Table) -> list[int]:
    """Return how many seeds a study has, for all that a table has enough for."""
    return [size for size in (1, GROUP) if size <= len(table.seeds)]


@dataclass(frozen=True)
class Outcome:
    """What a strategy came to on the studies of one table and number of seeds, one value a study."""

    table: Path
    strategy: str
    seeds_per_study: int
    independent: int
    """How many of the studies share no seed."""
    accuracies: tuple[float, ...]
    regrets: tuple[float, ...]
    costs: tuple[float, ...]

    def error(self, values: Sequence[float]) -> float | None:
        """Return the standard error of a mean over the studies."""
        if self.independent < 2:
            return None
        return float(np.std(values, ddof=1)) / math.sqrt(self.independent)

    def shown(self) -> dict[str, object]:
        """Return the means."""
        return {
            "strategy": self.strategy,
            "seeds_per_study": self.seeds_per_study,
            "test_accuracy": float(np.mean(self.accuracies)),
            "se": self.error(self.accuracies),
            "regret": float(np.mean(self.regrets)),
            "cost": float(np.mean(self.costs)),
        }


def pooled(outcomes: Sequence[Outcome]) -> list[dict[str, object]]:
    """Return each strategy's difference to the reference over all tables, by number of seeds."""
    reference = {
        (one.table, one.seeds_per_study): one.accuracies for one in outcomes if one.strategy == REFERENCE
    }
    groups: dict[tuple[int, str], list[Outcome]] = {}
    for one in outcomes:
        if (one.table, one.seeds_per_study) in reference and one.independent > 1:
            groups.setdefault((one.seeds_per_study, one.strategy), []).append(one)
    rows = []
    for (size, strategy), group in groups.items():
        differences = [
            np.subtract(one.accuracies, reference[one.table, one.seeds_per_study]) for one in group
        ]
        errors = [one.error(found.tolist()) or 0.0 for one, found in zip(group, differences, strict=True)]
        rows.append(
            {
                "strategy": strategy,
                "seeds_per_study": size,
                "tables": len(group),
                "difference": float(np.mean([found.mean() for found in differences])),
                "se": math.hypot(*errors) / len(group),
                "cost": float(np.mean([np.mean(one.costs) for one in group])),
                "highest_cost": max(float(np.mean(one.costs)) for one in group),
            }
        )
    return rows


def _run(path: Path, name: str, size: int, repeats: int) -> Outcome:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    table = Table.load(path)
    studies = studies_of(table, size)
    accuracies, regrets, costs = [], [], []
    for seeds in studies:
        test = table.test_final[list(seeds)].mean(axis=0)
        found = [STRATEGIES[name](table, seeds, repeat) for repeat in range(repeats)]
        accuracies.append(np.mean([test[choice.level] for choice in found]))
        regrets.append(np.mean([test.max() - test[choice.level] for choice in found]))
        costs.append(np.mean([choice.cost for choice in found]))
    return Outcome(
        path, name, size, len(table.seeds) // size, tuple(accuracies), tuple(regrets), tuple(costs)
    )


def main() -> None:
    """Replay all strategies and print a table each, or JSON: a list, of several tables by their names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tables", type=Path, nargs="+", metavar="TABLE.npz")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--repeats", type=int, default=1, help="of each search, with another seed")
    parser.add_argument("--only", choices=STRATEGIES, nargs="+", help="these strategies", metavar="STRATEGY")
    parser.add_argument("--processes", type=int, help="by default one a core")
    arguments = parser.parse_args()
    jobs = [
        (path, name, size, arguments.repeats)
        for path in arguments.tables
        for size in sizes(Table.load(path))
        for name in arguments.only or STRATEGIES
    ]
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with ProcessPoolExecutor(arguments.processes) as pool:
        outcomes = list(pool.map(_run, *zip(*jobs, strict=True)))
    by_table = {
        path.stem: [one.shown() for one in found]
        for path, found in itertools.groupby(outcomes, key=lambda one: one.table)
    }
    if arguments.json:
        several = {**by_table, "pooled": pooled(outcomes)}
        print(json.dumps(several if len(by_table) > 1 else next(iter(by_table.values())), indent=2))
        return
    for name, rows in by_table.items():
        print(f"{name:<24} {'seeds':>5}  {'test accuracy':>16}  {'regret':>7}  {'cost':>6}")
        for one in rows:
            error = "       " if one["se"] is None else f"± {one['se']:.4f}"
            print(
                f"{one['strategy']:<24} {one['seeds_per_study']:>5}  {one['test_accuracy']:>8.4f} {error}"
                f"  {one['regret']:>7.4f}  {one['cost']:>6.3f}"
            )
        print()
    if len(by_table) == 1:
        return
    print(f"{'pooled':<24} {'seeds':>5} {'tables':>6}  {'difference':>17}  {'cost':>6}  {'highest':>7}")
    for one in pooled(outcomes):
        print(
            f"{one['strategy']:<24} {one['seeds_per_study']:>5} {one['tables']:>6}"
            f"  {one['difference']:>+8.4f} ± {one['se']:.4f}"
            f"  {one['cost']:>6.3f}  {one['highest_cost']:>7.3f}"
        )


if __name__ == "__main__":
    main()
