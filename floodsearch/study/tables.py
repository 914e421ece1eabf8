"""The tables of a study file that have the same settings in every study: a function for each.

Each takes the content of the whole file and returns the section of the spec, or None if it cannot be had, and
the problems. A section may come with problems that leave it usable.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, TypeVar

from floodsearch.errors import Problem
from floodsearch.study.levels import Levels
from floodsearch.study.messages import Problems, built, no_table, unknown_name
from floodsearch.study.section import Section
from floodsearch.study.spec import (
    DIRECTIONS,
    MOST_SEEDS,
    Arithmetic,
    Budget,
    Log,
    ScriptSettings,
    Search,
    Training,
)

Raw = Mapping[str, Any]
"""The content of a study file, as TOML has it."""
S = TypeVar("S", bound=Section)

SECTIONS = ("levels", "training", "arithmetic", "script", "search", "budget", "log")
OF_TRAINING = Training.model_fields.keys() - {"recipe"}
"""The settings of [training] that are not fields of a recipe, or settings of the user's own."""


def value_in(raw: Raw, table: str, key: str, default: object = None) -> Any:
    """Return a value as the file has it, or a default where the file has no such table or key."""
    found = raw.get(table, {})
    return found.get(key, default) if isinstance(found, dict) else default


def trains_own_code(raw: Raw) -> bool:
    """Return whether the study trains a loop or a command of the user's own instead of a task."""
    return "objective" in raw or "command" in raw


def recipe_in(raw: Raw) -> dict[str, Any]:
    """Return the keys of [training] that are not its own settings: fields of a recipe, or the user's own."""
    table = raw.get("training", {})
    return {key: table[key] for key in table if key not in OF_TRAINING} if isinstance(table, dict) else {}


def levels_of(raw: Raw, highest: Mapping[str, float]) -> tuple[Levels | None, Problems]:
    """Read [levels]; where the schedule finds the level in each run, these are 0 and the highest one.

    Args:
        raw: content of the study file.
        highest: the schedules that do, and up to which level by default.
    """
    table, schedule = raw.get("levels", {}), value_in(raw, "training", "schedule")
    if not isinstance(table, dict) or not isinstance(schedule, str) or schedule not in highest:
        return _section("levels", Levels, table)
    why = f"has no use: the schedule {schedule!r} finds the level in each run; remove it"
    useless = [Problem(f"levels.{key}", why) for key in sorted(table.keys() - {"high"})]
    high = table.get("high", highest[schedule])
    levels, problems = _section("levels", Levels, {"high": high, "count": 2})
    return levels, [*useless, *problems]


def training_of(raw: Raw) -> tuple[Training | None, Problems]:
    """Read the settings of [training] itself; the recipe is left empty.

    A count of seeds out of its bounds is taken as the default; its problem is in `seed_count_problems`.
    """
    table = raw.get("training", {})
    if isinstance(table, dict):
        given = {key: value for key, value in table.items() if key in OF_TRAINING}
        count = _seed_count(raw)
        if count is not None:
            del given["seeds"]
            given |= {"seeds": tuple(range(count))} if 1 <= count <= MOST_SEEDS else {}
        # A loop of the user's own reports as often as it likes.
        table = {"validate_every": 1} | given if trains_own_code(raw) else given
    return _section("training", Training, table)


def seed_count_problems(raw: Raw) -> Problems:
    """Return the problem of seeds given as a count that is out of its bounds; none for other seeds."""
    count = _seed_count(raw)
    if count is None or 1 <= count <= MOST_SEEDS:
        return []
    bound = "above 0; give 1 or more" if count < 1 else f"below {MOST_SEEDS + 1:,}; five are usual"
    return [Problem("training.seeds", f"{count} is not {bound}")]


def _seed_count(raw: Raw) -> int | None:
    """Return the seeds of the file if they are given as a count, else None."""
    seeds = value_in(raw, "training", "seeds")
    return seeds if isinstance(seeds, int) and not isinstance(seeds, bool) else None


def arithmetic_of(raw: Raw) -> tuple[Arithmetic | None, Problems]:
    """Read [arithmetic]."""
    return _section("arithmetic", Arithmetic, raw.get("arithmetic", {}))


def script_of(raw: Raw) -> tuple[ScriptSettings | None, Problems]:
    """Read [script], which only a command has."""
    if "command" in raw:
        return _section("script", ScriptSettings, raw.get("script", {}))
    useless = Problem("script", "says how a command is run, and there is none; remove it")
    return None, [useless] if "script" in raw else []


def budget_of(raw: Raw) -> tuple[Budget | None, Problems]:
    """Read [budget]."""
    return _section("budget", Budget, raw.get("budget", {}))


def log_of(raw: Raw, loggers: Mapping[str, Callable[[], str | None]]) -> tuple[Log | None, Problems]:
    """Read [log], whose loggers have to be installed.

    Args:
        raw: content of the study file.
        loggers: by name, what is missing here of each; None if nothing is.
    """
    table = raw.get("log", {})
    if isinstance(table, dict) and isinstance(table.get("to"), str):
        table = {**table, "to": [table["to"]]}
    log, problems = _section("log", Log, table)
    for name in () if log is None else log.to:
        if unknown := unknown_name("log.to", name, loggers):
            problems += unknown
        elif (missing := loggers[name]()) is not None:
            problems.append(Problem("log.to", f"{name!r} {missing}"))
    if log is not None and len(set(log.to)) < len(log.to):
        problems.append(Problem("log.to", f"{list(log.to)} holds a logger twice"))
    return log, problems


def search_of(raw: Raw) -> tuple[Search | None, Problems]:
    """Read [search], with the direction of the metric."""
    table = raw.get("search", {})
    if not isinstance(table, dict):
        return _section("search", Search, table)
    metric = table.get("metric", Search.model_fields["metric"].default)
    if isinstance(metric, str) and metric in DIRECTIONS:
        problems = _direction_problems(metric, table)
        table = {**table, "direction": DIRECTIONS[metric]}
    elif isinstance(metric, str) and trains_own_code(raw):
        problems = list(_own_metric_problems(metric, table))
        table = {"direction": "maximize", **table}
    else:
        problems = unknown_name("search.metric", metric, DIRECTIONS)
        table = {key: value for key, value in table.items() if key != "metric"}
    search, found = _section("search", Search, table)
    return search, [*problems, *found]


def _direction_problems(metric: str, table: Raw) -> Problems:
    """Return the problem of a given direction that is not the one of a metric of `DIRECTIONS`."""
    right = DIRECTIONS[metric]
    wanted = table.get("direction", right)
    if wanted == right:
        return []
    return [Problem("search.direction", f"{wanted!r}, but {metric} is to {right}; remove it")]


def _own_metric_problems(metric: str, table: Raw) -> Iterator[Problem]:
    """Yield the problems of a metric of the user's own: of its name, and of a missing direction."""
    if not metric.isidentifier():
        has = f"{metric!r} cannot be reported: write a name as in run.report(name=...)"
        yield Problem("search.metric", has)
    if "direction" not in table:
        say = f"missing; say whether {metric} is to 'maximize' or to 'minimize'"
        yield Problem("search.direction", say)


def with_metric(search: Search, raw: Raw, metrics: Collection[str]) -> Search:
    """Return [search] with the task's first metric, if the file gives none and the task lacks the default.

    Args:
        search: as it was read.
        raw: the file; with a metric or a direction that it gives, nothing is changed.
        metrics: that the task reports: a loss, and before it an accuracy, if it has one; empty if not known.
    """
    given = raw.get("search", {}).keys() & {"metric", "direction"}
    if given or not metrics or search.metric in metrics:
        return search
    metric = next(iter(metrics))
    return search.model_copy(update={"metric": metric, "direction": DIRECTIONS[metric]})


def _section(key: str, model: type[S], table: object) -> tuple[S | None, Problems]:
    """Return a section with the settings of a table; None if one is wrong, or two do not go together."""
    if not isinstance(table, dict):
        return None, [no_table(key, table)]
    section, problems = built(key, model, table)
    if section is None:
        return None, problems
    between = list(section.problems()) if isinstance(section, Levels | Training) else []
    return (None if between else section), between
