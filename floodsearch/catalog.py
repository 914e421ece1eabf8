"""All tables together: the names that a study file may use, and the objects that a spec names."""

from __future__ import annotations

import functools
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from floodsearch.artifacts.names import RUNS, name_of, run_folder
from floodsearch.errors import Problem, TaskError, UsageError
from floodsearch.flooding.schedules import SCHEDULES
from floodsearch.loggers.table import LOGGERS
from floodsearch.records import EpochRecord, Parameter, Setting
from floodsearch.search.judge import Judge
from floodsearch.search.pruners import PRUNERS
from floodsearch.search.samplers import SAMPLERS, Rule
from floodsearch.search.space import Space
from floodsearch.study.fields import Field, Fields, Known, TaskFields, fields_of
from floodsearch.study.spec import Choices, Range, Spec, Training, with_chosen
from floodsearch.study.trust import TrustedSpec
from floodsearch.tasks import TASKS
from floodsearch.tasks.options import METRICS
from floodsearch.tasks.recipe import Recipe
from floodsearch.usercode.command import filled, located, missing_script, script_file
from floodsearch.usercode.reference import called_as_program, file_of, find_code
from floodsearch.usercode.revision import revision_of

if TYPE_CHECKING:
    from floodsearch.tasks.task import Task


def known(folders: Sequence[Path] = ()) -> Known:
    """Return the valid names, and what there is to know of each. Tasks are imported when one is described.

    Args:
        folders: where files of a command are looked for before the current folder.
    """
    return Known(
        tasks=TASKS,
        describe_task=describe_task,
        rehearse=rehearse,
        find_loop=find_loop,
        find_program=functools.partial(find_program, folders=folders),
        samplers={name: {} if one.rule is None else fields_of(one.rule) for name, one in SAMPLERS.items()},
        fixed=[name for name, one in SAMPLERS.items() if one.fixed],
        pruners={name: fields_of(make) for name, make in PRUNERS.items()},
        at_each_report=[name for name, make in PRUNERS.items() if _stops_at_each_report(make(Training()))],
        schedules={name: fields_of(one.step) for name, one in SCHEDULES.items()},
        steady=[name for name, one in SCHEDULES.items() if one.forks],
        highest={name: one.highest for name, one in SCHEDULES.items() if one.highest is not None},
        loggers={name: one.missing for name, one in LOGGERS.items()},
        check_settings=check_settings,
    )


def _stops_at_each_report(judge: Judge) -> bool:
    return bool(judge.rungs) and not judge.together


def check_settings(spec: Spec) -> Iterator[Problem]:
    """Try the sampler, the pruner and the schedule; yield what they say against their settings."""
    spec = spec.stand_in()
    try:
        if (rule := rule_of(spec)) is not None:
            rule(Space.of(spec), [], np.random.default_rng(0))
    except ValueError as error:
        yield Problem(spec.search.sampler, str(error))
    try:
        judge_of(spec)
    except ValueError as error:
        yield Problem(spec.search.pruner, str(error))
    yield from _check_schedule(spec)


def _check_schedule(spec: Spec) -> Iterator[Problem]:
    """Let the schedule see an epoch of the task, with each choice of its settings and each end of a range."""
    if spec.task is None:
        return  # a loop of the user's own keeps its level
    name = spec.training.schedule
    first = {key: _extremes(values)[0] for key, values in spec.searched_settings.items()}
    variants = [first] + [
        {**first, key: value}
        for key, values in spec.searched_settings.items()
        for value in _extremes(values)[1:]
    ]
    accuracy = (
        0.0 if "val_accuracy" in describe_task(spec.task, spec.options, spec.arguments).metrics else None
    )
    record = EpochRecord(
        seed=0,
        epoch=1,
        level=0.0,
        train_loss=0.0,
        train_accuracy=accuracy,
        flooded=0.0,
        val_loss=0.0,
        val_accuracy=accuracy,
    )
    schedule = SCHEDULES[name]
    for beside in variants:
        try:
            schedule.step(schedule.start(1.0, samples=1), record, **schedule_settings(spec, beside))
        except ValueError as error:
            yield Problem(name, str(error))


def _extremes(values: Choices | Range) -> tuple[Parameter, ...]:
    return values.choices if isinstance(values, Choices) else (values.low, values.high)


def describe_task(reference: str, chosen: Mapping[str, Any], arguments: Sequence[str] = ()) -> TaskFields:
    """Return a task's options, and its recipe fields with the defaults that come with the chosen options.

    Args:
        reference: names the task.
        chosen: options.
        arguments: of code of the user's own.

    Raises:
        TaskError: if it cannot be imported or built.
    """
    if reference in TASKS:
        return _describe_built_in(reference, chosen)
    return _describe_own(reference, chosen, arguments)


def _describe_built_in(reference: str, chosen: Mapping[str, Any]) -> TaskFields:
    """Describe a task of ours by its options, without building it: that would import torch."""
    kind = TASKS[reference].options
    try:
        recipe = kind(**chosen).recipe
    except (ValueError, TypeError, UsageError) as error:  # says itself what it does not like
        raise TaskError(f"{reference!r} cannot be built: {error}") from error

    def build(values: Mapping[str, Any]) -> Iterator[Problem]:
        return _unfit(lambda one: replace(recipe, **one), values)

    return TaskFields(fields_of(kind), _recipe_fields(recipe), METRICS, build)


def _describe_own(reference: str, chosen: Mapping[str, Any], arguments: Sequence[str]) -> TaskFields:
    """Describe a task of the user's own, which has to be built for that."""
    from floodsearch.tasks.task import build_task, find_task

    factory = find_task(reference, arguments)
    try:
        options: Fields = fields_of(factory)
    except Exception as error:  # annotations are code of the user's, evaluated here
        raise TaskError(f"the parameters of {reference!r} cannot be read: {error}") from error
    task = build_task(reference, chosen, {}, arguments)
    metrics = METRICS if task.correct is not None else ("val_loss",)

    def build(values: Mapping[str, Any]) -> Iterator[Problem]:
        return _unfit(lambda one: build_task(reference, chosen, one, arguments), values)

    return TaskFields(options, _recipe_fields(task.recipe), metrics, build)


def _recipe_fields(defaults: Recipe) -> Fields:
    return {name: Field(field.type, getattr(defaults, name)) for name, field in fields_of(Recipe).items()}


def _unfit(build: Callable[[dict[str, Any]], object], values: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield a problem for each recipe value that `build` refuses; of several choices, each is tried."""
    for name, value in values.items():
        for choice in getattr(value, "choices", (value,)):
            try:
                build({name: choice})
            except (TaskError, ValueError) as error:
                yield Problem(f"training.{name}", str(error))


def rehearse(
    reference: str,
    options: Mapping[str, Any],
    recipe: Mapping[str, Any],
    seeds: Sequence[int],
    arguments: Sequence[str],
) -> Iterator[Problem]:
    """Train a batch of a task of the user's own on the CPU, and yield what is wrong with it.

    Args:
        reference: names the task.
        options: of the task.
        recipe: of its training; the first of several choices is rehearsed, but each batch size tried.
        seeds: of its runs.
        arguments: of the task.
    """
    from floodsearch.tasks.task import build_task
    from floodsearch.training.rehearsal import findings

    choices = {name: getattr(value, "choices", (value,)) for name, value in recipe.items()}
    task = build_task(reference, options, {name: values[0] for name, values in choices.items()}, arguments)
    yield from (Problem("task", one) for one in findings(task, seeds, choices["batch_size"]))


def task_of(trusted: TrustedSpec, beside: Mapping[str, Any]) -> Task:
    """Return the task of a study with the recipe fields that a ticket searches beside the level."""
    from floodsearch.tasks.task import build_task

    spec = trusted.spec
    if spec.task is None:
        raise ValueError(f"study {spec.name!r} trains the loop {spec.objective!r}, which has no task")
    return build_task(spec.task, spec.options, with_chosen(spec.training.recipe, beside), spec.arguments)


def find_loop(reference: str, arguments: Sequence[str] = ()) -> Callable[..., object]:
    """Return the training loop of the user's own behind `package.module:name`, which has these arguments.

    Raises:
        TaskError: if it cannot be imported, saying which import failed, or is not callable.
    """
    found = find_code(reference, "a training loop, a function of one argument", arguments)
    return called_as_program(found, reference, arguments)


def loop_of(trusted: TrustedSpec) -> Callable[..., object]:
    """Return the training loop of the user's own that a study names.

    Raises:
        TaskError: if it cannot be imported, saying which import failed, or is not callable.
    """
    spec = trusted.spec
    if spec.objective is None:
        raise ValueError(f"study {spec.name!r} trains the task {spec.task!r}, not a loop")
    return find_loop(spec.objective, spec.arguments)


def command_of(trusted: TrustedSpec, folders: Sequence[Path] = ()) -> str:
    """Return the command of the user's own that a study runs, whose files lie in these folders or here.

    Raises:
        TaskError: if its program is not there.
    """
    spec = trusted.spec
    if spec.command is None:
        raise ValueError(f"study {spec.name!r} runs no command")
    find_program(spec.command, folders)
    return spec.command


def first_command(spec: Spec) -> str | None:
    """Return the command of a study as it is called for its first run; None where there is none."""
    if spec.command is None:
        return None
    choices = {name: values[0] for name, values in spec.searched.items()}
    run, training = name_of(0, spec.training.seeds[0]), spec.training
    own: dict[str, Setting | None] = {
        "level": 0.0,
        "seed": training.seeds[0],
        "epochs": training.epochs,
        "device": "{device}",
        "ticket": 0,
        "run": run,
        "folder": f"{{checkpoints}}/{spec.name}/.../{RUNS}/{run_folder(run, training.epochs)}",
    }
    return shlex.join(filled(spec.command, {**with_chosen(spec.training_settings, choices), **own}))


def find_program(command: str, folders: Sequence[Path] = ()) -> None:
    """Look for the program of a command of the user's own, and for the script that it is given.

    Args:
        command: with placeholders.
        folders: where its files are looked for before the current folder.

    Raises:
        TaskError: if one of them is not there.
    """
    words = located(shlex.split(command), folders)
    if shutil.which(words[0]) is None:
        raise TaskError(f"{words[0]!r} is no program that can be found from here; give its path")
    if (script := missing_script(words)) is not None:
        where = ", ".join(map(str, dict.fromkeys((*folders, Path.cwd()))))
        raise TaskError(f"{script!r} is in none of the folders {where}; give its path")


def code_revision(trusted: TrustedSpec, folders: Sequence[Path] = ()) -> str | None:
    """Return the revision of the user's own code that a study trains; None where it has no file.

    Args:
        trusted: spec of the study.
        folders: where files of a command are looked for before the current folder.
    """
    spec = trusted.spec
    if spec.command is not None:
        file = script_file(spec.command, folders)
    else:
        file = None if spec.code is None else file_of(spec.code)
    return None if file is None else revision_of(file)


def loop_settings(trusted: TrustedSpec, beside: Mapping[str, Parameter]) -> dict[str, Setting | None]:
    """Return all settings that a loop of the user's own is handed, searched ones too, by name."""
    return with_chosen(trusted.spec.training_settings, beside)


def schedule_settings(spec: Spec, beside: Mapping[str, Parameter]) -> dict[str, Setting]:
    """Return the settings of a study's schedule with those that a ticket searches beside the level.

    A baseline searches none of them; its schedule has the defaults, which change nothing at level 0.
    """
    return with_chosen(spec.schedule_settings, beside)


def rule_of(spec: Spec) -> Rule | None:
    """Return the rule that proposes the levels of a study, with its settings; None where all are fixed."""
    name = spec.search.sampler
    rule = SAMPLERS[name].rule
    return None if rule is None else functools.partial(rule, **spec.settings.get(name, {}))


def judge_of(spec: Spec) -> Judge:
    """Return the judge of a study: its pruner, with its settings, for the epochs of the study."""
    name = spec.search.pruner
    return PRUNERS[name](spec.training, **spec.settings.get(name, {}))
