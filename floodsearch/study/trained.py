"""The task that a study trains, or instead of it a training loop or a command of the user's own."""

from __future__ import annotations

import difflib
import json
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
OF_A_RUN: Mapping[str, str] = {
    "{level}": "run.level",
    "{seed}": "run.seed",
    "{epochs}": "run.length",
    "{device}": "run.device",
}
"""Placeholders of a command, and what a loop has instead."""


@dataclass(frozen=True)
class Trained:
    """The settings of a task, loop or command; a task's with their defaults, if it could be described."""

    options: dict[str, Any]
    recipe: dict[str, Any]
    arguments: tuple[str, ...] = ()
    """What code of the user's own finds in `sys.argv`."""
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


def _arguments(raw: Raw) -> tuple[tuple[str, ...], Problems]:
    """Return what code of the user's own finds in `sys.argv`; nothing if something is wrong with it."""
    found = raw.get("arguments", [])
    task = raw.get("task")
    if "command" in raw or (isinstance(task, str) and ":" not in task and "objective" not in raw):
        where = "a command has them in itself" if "command" in raw else "a built-in task has [options]"
        return (), [Problem("arguments", f"are for code of your own: {where}; remove them")] if found else []
    problems = list(_argument_problems(found))
    return ((), problems) if problems else (tuple(found), [])


def _argument_problems(found: object) -> Iterator[Problem]:
    """Yield the problems of arguments that are no list of texts, or want what differs from run to run."""
    if not isinstance(found, list | tuple):
        words = found.split() if isinstance(found, str) else [str(found)]
        yield Problem("arguments", f"{found!r} is not a list; write {json.dumps(words)}")
        return
    for word in found:
        if not isinstance(word, str):
            yield Problem("arguments", f"{word!r} is not a text; write {json.dumps(str(word))}")
            continue
        for placeholder, instead in OF_A_RUN.items():
            if placeholder in word:
                has = f"{word!r} has {placeholder}, but all runs have the same arguments; take {instead}"
                yield Problem("arguments", has)


# --- a task ----------------------------------------------------------------------------------------------


def _task(raw: Raw, known: Known, seeds: Sequence[int]) -> tuple[Trained, Problems]:
    """Check a task's name, options and recipe fields; rehearse one of the user's own."""
    options, problems = _options(raw)
    arguments, of_arguments = _arguments(raw)
    task, as_given = raw.get("task"), Trained(options, recipe_in(raw), arguments)
    problems += of_arguments
    if task is None:
        instead = "or an objective, a training loop of your own, or a command"
        problems.append(Problem("task", f'missing; give it, such as "two_gaussians", {instead}'))
    if not isinstance(task, str):  # of the wrong type: said when the whole is built
        return as_given, problems
    if ":" not in task:
        unknown = unknown_name("task", task, known.tasks, or_else="or 'package.module:name' of your own")
        if unknown:
            return as_given, [*problems, *unknown]
    elif of_arguments:  # without them it may say what is not so
        return as_given, problems
    try:
        fields = known.describe_task(task, {}, arguments)
    except TaskError as error:
        return as_given, [*problems, Problem("task", str(error))]
    trained, found = _with_fields(task, as_given, fields, known)
    if task not in known.tasks and not found:
        found = [*known.rehearse(task, trained.options, trained.recipe, seeds, arguments)]
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
        fields = known.describe_task(task, options, given.arguments)
    except TaskError as error:
        problems.append(Problem("options", str(error)))
    # These two tables share their section's name space: an unknown key may be meant for either.
    valid = {**fields.recipe, **dict.fromkeys(OF_TRAINING, ANYTHING)}
    recipe, found = values_of("training", given.recipe, valid, (Choices,))
    problems += found
    recipe = {name: value for name, value in recipe.items() if name in fields.recipe}
    wrong = {problem.key for problem in problems}
    problems += fields.build({name: recipe[name] for name in recipe if f"training.{name}" not in wrong})
    return Trained(options, recipe, given.arguments, fields.metrics), problems


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
    arguments, of_arguments = _arguments(raw)
    recipe = recipe_in(raw)
    own_options, of_options = own_values("options", options)
    own_recipe, of_recipe = own_values("training", recipe)
    return Trained(own_options, own_recipe, arguments), [
        *(of_arguments or _code_problems(raw, known, options.keys() | recipe.keys(), arguments)),
        *_problems_of_tasks_settings(raw, known),
        *no_options,
        *_name_problems(options, recipe),
        *of_options,
        *of_recipe,
    ]


def _code_problems(
    raw: Raw, known: Known, settings: Collection[str], arguments: Sequence[str]
) -> Iterator[Problem]:
    """Yield the problems of the loop or the command itself."""
    given = [key for key in TRAINED if key in raw]
    if len(given) > 1:
        yield Problem(given[-1], f"given together with {given[0]}; keep one of them")
    elif given == ["objective"]:
        yield from _objective_problems(raw["objective"], known, arguments)
    else:
        yield from _command_problems(raw, known, settings)


def _objective_problems(reference: object, known: Known, arguments: Sequence[str]) -> Iterator[Problem]:
    """Yield the problem of a training loop that is no reference, or cannot be imported."""
    if not isinstance(reference, str):
        return  # said when the whole is built
    if not all(reference.partition(":")):
        yield Problem("objective", f"{reference!r} is not a 'package.module:function'")
        return
    try:
        known.find_loop(reference, arguments)
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
    for name in sorted(set(PLACEHOLDERS).intersection(settings)):
        has = f"a setting {name!r} of yours, but {{{name}}} is what floodsearch says; give it another name"
        yield Problem("command", has)
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
        has = f"{pruner!r} looks at each level by itself, and a command pauses to be compared; use 'halving'"
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
