"""How a study searches: the tables of its sampler, pruner and schedule, and how many trials fit them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from floodsearch.errors import Problem
from floodsearch.study.fields import Fields, Known
from floodsearch.study.levels import Levels
from floodsearch.study.messages import Problems, no_table, unknown_name
from floodsearch.study.spec import Choices, Range, Search, Training, combinations, exhaustive
from floodsearch.study.tables import Raw
from floodsearch.study.values import values_of

DEFAULT_TRIALS = 51
Settings = dict[str, dict[str, Any]]
"""The settings of each chosen sampler, pruner and schedule that has any, by its name."""


def settings_of(
    raw: Raw, known: Known, search: Search | None, training: Training | None
) -> tuple[Settings, Problems]:
    """Check the tables of sampler, pruner and schedule, of which one each is chosen.

    Args:
        raw: content of the study file.
        known: valid names.
        search: names sampler and pruner; None if it could not be read, and nothing is checked of them.
        training: names the schedule; the same.
    """
    chosen: list[tuple[str, str, Mapping[str, Fields], Sequence[type[Choices | Range]]]] = []
    if search is not None:
        chosen.append(("search.sampler", search.sampler, known.samplers, ()))
        chosen.append(("search.pruner", search.pruner, known.pruners, ()))
    if training is not None:
        chosen.append(("training.schedule", training.schedule, known.schedules, (Choices, Range)))
    settings: Settings = {}
    problems: Problems = []
    for where, name, named, searchable in chosen:
        of_one, found = _settings_of_one(raw, where, name, named, searchable)
        settings |= {name: of_one} if of_one else {}
        problems += found
    return settings, problems


def _settings_of_one(
    raw: Raw,
    where: str,
    chosen: str,
    named: Mapping[str, Fields],
    searchable: Sequence[type[Choices | Range]],
) -> tuple[dict[str, Any], Problems]:
    """Check the table of the chosen one of several names, and that the others have none.

    Args:
        raw: content of the study file.
        where: key of the choice.
        chosen: the name.
        named: every valid name, with the settings of each.
        searchable: how a setting may be searched instead of given.
    """
    if unknown := unknown_name(where, chosen, named):
        return {}, unknown
    has = f"these settings have no use here: {where} is {chosen!r}; remove the table"
    others = (name for name, fields in named.items() if name != chosen and fields)
    problems = [Problem(name, has) for name in others if raw.get(name, {})]
    table = raw.get(chosen, {})
    if not isinstance(table, dict):
        return {}, [*problems, no_table(chosen, table)]
    values, found = values_of(chosen, table, named[chosen], searchable)
    # None is a default that depends on the study; the rule works it out.
    given = {key: value for key, value in values.items() if value is not None}
    return given, [*problems, *found]


def with_trials(
    search: Search,
    levels: Levels,
    training: Mapping[str, Any],
    settings: Mapping[str, Any],
    fixed: Collection[str],
) -> tuple[Search, Problems]:
    """Return [search] with its number of trials, and the problems of that number with all that is searched.

    Args:
        search: as it was read; the number of trials may be missing.
        levels: to search.
        training: its options and recipe, by name; some may be searched.
        settings: of the schedule, by their keys in the file; some may be searched.
        fixed: the samplers that propose nothing.
    """
    size, baselines = exhaustive(levels, training, settings), combinations(training)
    if search.sampler in fixed:
        return search, [*_grid_problems(search, levels, settings, size)]
    problems: Problems = []
    trials = search.trials
    if trials is None:
        trials = max(2, min(DEFAULT_TRIALS, size or DEFAULT_TRIALS))
    elif size is not None and trials > size:
        problems.append(Problem("search.trials", f"{trials} is more than the {size} levels there are"))
    if trials <= baselines:
        has = f"{trials} leaves nothing beside the {baselines} runs at level 0"
        problems.append(Problem("search.trials", has))
    return search.model_copy(update={"trials": trials}), problems


def _grid_problems(
    search: Search, levels: Levels, settings: Mapping[str, Any], size: int | None
) -> Iterator[Problem]:
    """Yield a problem for each range of levels or settings, and for a number of trials: a grid has none.

    Args:
        search: as it was read.
        levels: to search.
        settings: of the schedule, by their keys in the file.
        size: number of tickets of the grid; None where it is not known.
    """
    for where, value in settings.items():
        if isinstance(value, Range):
            why = "is a range, but a grid needs {choices = [...]}; or take another sampler"
            yield Problem(where, why)
    if levels.continuous:
        yield Problem("levels.count", "missing; a grid needs levels.count or levels.step")
    if size is not None and search.trials is not None:
        yield Problem("search.trials", f"{search.trials}, but this grid has {size} tickets; remove it")
