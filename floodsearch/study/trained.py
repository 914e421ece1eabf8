"""The task that a study trains, or instead of it a training loop or a command of the user's own."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from floodsearch.errors import Problem, TaskError
from floodsearch.study.fields import Known, TaskFields
from floodsearch.study.messages import Problems, no_table, unknown_name
from floodsearch.study.spec import DIRECTIONS, Choices, Search
from floodsearch.study.tables import OF_TRAINING, Raw, recipe_in, trains_own_code, value_in
from floodsearch.study.values import ANYTHING, own_values, values_of
from floodsearch.usercode.command import PLACEHOLDERS, placeholders

TRAINED = ("task", "objective", "command")
"""The keys of which a file has one."""


@dataclass(frozen=True)
class Trained:
    """The settings of a task, loop or command; a task's with their defaults, if it could be described."""

    options: dict[str, Any]
    recipe: dict[str, Any]
    metrics: Collection[str] = ()
    """The metrics that a task reports; empty where they are not known, and for code of the user's own."""


def trained_of(raw: Raw, known: Known, seeds: Sequence[int]) -> tuple[Trained, Problems]:
    """Check the task, loop or command of a file with its settings in [options] and [training].

    Args:
        raw: content of the study file.
        known: valid names.
        seeds: of the study, with which a task of the user's own is rehearsed if all else about it is sound.
    """
    return _own_code(raw, known) if trains_own_code(raw) else _task(raw, known, seeds)


def _options(raw: Raw) -> tuple[dict[str, Any], Problems]:
    """Return the table of options; an empty one if it is no table."""
    options = raw.get("options", {})
    return (options, []) if isinstance(options, dict) else ({}, [no_table("options", options)])


# --- a task ----------------------------------------------------------------------------------------------


def _task(raw: Raw, known: Known, seeds: Sequence[int]) -> tuple[Trained, Problems]:
    """Check a task's name, options and recipe fields; rehearse one of the user's own."""
    options, problems = _options(raw)
    task, as_given = raw.get("task"), Trained(options, recipe_in(raw))
    if task is None:
        instead = "or an objective, a training loop of your own, or a command"
        problems.append(Problem("task", f'missing; give it, such as "two_gaussians", {instead}'))
    if not isinstance(task, str):  # of the wrong type: said when the whole is built
        return as_given, problems
    if ":" not in task:
        unknown = unknown_name("task", task, known.tasks, or_else="or 'package.module:name' of your own")
        if unknown:
            return as_given, [*problems, *unknown]
    try:
        fields = known.describe_task(task, {})
    except TaskError as error:
        return as_given, [*problems, Problem("task", str(error))]
    trained, found = _with_fields(task, as_given, fields, known)
    if task not in known.tasks and not found:
        found = [*known.rehearse(task, trained.options, trained.recipe, seeds)]
    return trained, [*problems, *found, *_metric_problems(raw, trained.metrics), *_stopping_problems(raw)]


def _with_fields(task: str, given: Trained, fields: TaskFields, known: Known) -> tuple[Trained, Problems]:
    """Check options and recipe against the fields of a task; return both with their defaults.

    Args:
        task: a name that can be described.
        given: as the file has them.
        fields: of the task without any options.
        known: valid names.
    """
    options, problems = values_of("options", given.options, fields.options)
    try:
        fields = known.describe_task(task, options)
    except TaskError as error:
        problems.append(Problem("options", str(error)))
    # These two tables share their section's name space: an unknown key may be meant for either.
    valid = {**fields.recipe, **dict.fromkeys(OF_TRAINING, ANYTHING)}
    recipe, found = values_of("training", given.recipe, valid, (Choices,))
    problems += found
    recipe = {name: value for name, value in recipe.items() if name in fields.recipe}
    wrong = {problem.key for problem in problems}
    problems += fields.build({name: recipe[name] for name in recipe if f"training.{name}" not in wrong})
    return Trained(options, recipe, fields.metrics), problems


def _metric_problems(raw: Raw, metrics: Collection[str]) -> Iterator[Problem]:
    """Yield the problem of a task that does not report the metric that the file names."""
    metric = value_in(raw, "search", "metric")
    if isinstance(metric, str) and metric in DIRECTIONS and metric not in metrics:
        yield Problem("search.metric", f"this task has no {metric!r}; use {', '.join(metrics)}")


def _stopping_problems(raw: Raw) -> Iterator[Problem]:
    """Yield the problem of a task whose runs are to end early."""
    if (given := value_in(raw, "training", "early_stopping", "none")) in (True, "last", "best"):
        has = "is for a loop or a command of your own: a task is trained to its last epoch; remove it"
        yield Problem("training.early_stopping", f"{given!r} {has}")


# --- code of the user's own ------------------------------------------------------------------------------


def _own_code(raw: Raw, known: Known) -> tuple[Trained, Problems]:
    """Check a training loop or command of the user's own; options and recipe may have any names.

    A loop is handed both as its settings; a command has a placeholder for each.
    """
    options, no_options = _options(raw)
    recipe = recipe_in(raw)
    own_options, of_options = own_values("options", options)
    own_recipe, of_recipe = own_values("training", recipe)
    return Trained(own_options, own_recipe), [
        *_code_problems(raw, known, options.keys() | recipe.keys()),
        *_problems_of_tasks_settings(raw, known),
        *no_options,
        *_name_problems(options, recipe),
        *of_options,
        *of_recipe,
    ]


def _code_problems(raw: Raw, known: Known, settings: Collection[str]) -> Iterator[Problem]:
    """Yield the problems of the loop or the command itself."""
    given = [key for key in TRAINED if key in raw]
    if len(given) > 1:
        yield Problem(given[-1], f"given together with {given[0]}; keep one of them")
    elif given == ["objective"]:
        yield from _objective_problems(raw["objective"], known)
    else:
        yield from _command_problems(raw, known, settings)


def _objective_problems(reference: object, known: Known) -> Iterator[Problem]:
    """Yield the problem of a training loop that is no reference, or cannot be imported."""
    if not isinstance(reference, str):
        return  # said when the whole is built
    if not all(reference.partition(":")):
        yield Problem("objective", f"{reference!r} is not a 'package.module:function'")
        return
    try:
        known.find_loop(reference)
    except TaskError as error:
        yield Problem("objective", str(error))


def _command_problems(raw: Raw, known: Known, settings: Collection[str]) -> Iterator[Problem]:
    """Yield the problems of a command that lacks a needed placeholder or program, or has another placeholder.

    Args:
        raw: content of the study file.
        known: valid names.
        settings: names of the study's own.
    """
    command = raw["command"]
    if not isinstance(command, str):
        return  # said when the whole is built
    try:
        found = placeholders(command)
        known.find_program(command)
    except (ValueError, TaskError) as error:
        yield Problem("command", str(error))
        return
    for name in dict.fromkeys(found):
        yield from unknown_name("command", name, (*PLACEHOLDERS, *settings), "or a setting in [options]")
    one_seed = value_in(raw, "training", "seeds") in (1, [0])
    for name in ("level", *(() if one_seed else ("seed",)), *sorted(settings)):
        if name not in found:
            yield Problem("command", f"{command!r} does not say where {{{name}}} goes; add it")
    if (keep := value_in(raw, "training", "keep")) in ("last", "best"):
        has = f"{keep!r}, but only the command has its weights; remove it, and let the command save them"
        yield Problem("training.keep", has)
    if (
        pruner := value_in(raw, "search", "pruner", Search.model_fields["pruner"].default)
    ) in known.at_each_report:
        has = f"{pruner!r} would start a command again at each of about 25 rungs; use 'halving'"
        yield Problem("search.pruner", has)


def _problems_of_tasks_settings(raw: Raw, known: Known) -> Iterator[Problem]:
    """Yield a problem for each setting that only a task has, given for code of the user's own."""
    schedule = value_in(raw, "training", "schedule")
    if schedule is not None and schedule not in known.steady:
        has = f"{schedule!r}, but in a loop of your own the level is constant in this version; remove it"
        yield Problem("training.schedule", has)
    useless = {"training.engine": value_in(raw, "training", "engine"), "arithmetic": raw.get("arithmetic")}
    for where, given in useless.items():
        if given:
            yield Problem(where, "is for tasks: your own code computes as it says; remove it")


def _name_problems(options: Mapping[str, Any], recipe: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield a problem for each name of the user's own that looks misspelt, or is in both tables."""
    for name in recipe:
        if close := difflib.get_close_matches(name, OF_TRAINING, n=1, cutoff=0.8):
            has = f"unknown key, did you mean {close[0]!r}? A setting of your own goes into [options]"
            yield Problem(f"training.{name}", has)
    for name in sorted(recipe.keys() & options.keys()):
        yield Problem(f"options.{name}", f"given together with training.{name}; keep one")
