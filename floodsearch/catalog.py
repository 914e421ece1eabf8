"""All tables together: the names that a study file may use, and the objects that a spec names."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler

from floodsearch.errors import Problem, TaskError
from floodsearch.schedules import SCHEDULES
from floodsearch.search.pruners import PRUNERS
from floodsearch.search.samplers import RULES, SAMPLERS, Rule, RuleSampler
from floodsearch.search.space import Space
from floodsearch.spec import Spec
from floodsearch.studyfile import Field, Fields, Known, TaskFields, fields_of
from floodsearch.tasks import TASKS

if TYPE_CHECKING:
    from floodsearch.tasks.task import Task


def known() -> Known:
    """Return the valid names. Tasks are imported, and torch with them, only when one is described."""
    return Known(
        tasks=TASKS,
        describe_task=describe_task,
        samplers={name: {} if rule is None else fields_of(rule) for name, rule in SAMPLERS.items()},
        pruners={name: fields_of(factory) for name, factory in PRUNERS.items()},
        schedules=SCHEDULES,
        check_settings=check_settings,
    )


def check_settings(spec: Spec) -> Iterator[Problem]:
    """Make the sampler's first proposal and the pruner; yield what they say against their settings."""
    try:
        _rule_of(spec)(Space.of(spec), [], np.random.default_rng(0))
    except ValueError as error:
        yield Problem(spec.search.sampler, str(error))
    try:
        pruner_of(spec)
    except ValueError as error:
        yield Problem(spec.search.pruner, str(error))


def describe_task(reference: str) -> TaskFields:
    """Return the options and recipe fields of a task, with the defaults of that task.

    Raises:
        TaskError: if it cannot be imported or built.
    """
    from floodsearch.tasks.task import Recipe, build_task, find_task

    factory = find_task(reference)
    try:
        options: Fields = fields_of(factory)
    except Exception as error:  # annotations are code of the user's, evaluated here
        raise TaskError(f"the parameters of {reference!r} cannot be read: {error}") from error
    task = build_task(reference, {}, {})
    defaults = task.recipe
    recipe = {name: Field(field.type, getattr(defaults, name)) for name, field in fields_of(Recipe).items()}

    def build(chosen: Mapping[str, Any], values: Mapping[str, Any]) -> Iterator[Problem]:
        try:
            build_task(reference, chosen, {})
        except TaskError as error:
            yield Problem("options", str(error))
            return
        for name, value in values.items():
            for choice in getattr(value, "choices", (value,)):
                try:
                    build_task(reference, chosen, {name: choice})
                except TaskError as error:
                    yield Problem(f"training.{name}", str(error))

    metrics = ("val_loss",) if task.correct is None else ("val_accuracy", "val_loss")
    return TaskFields(options, recipe, metrics, build)


def task_of(spec: Spec, beside: Mapping[str, Any]) -> Task:
    """Return the task of a study with the parameters that a ticket searches beside the level."""
    from floodsearch.tasks.task import build_task

    fixed = {
        name: value for name, value in spec.training.recipe.items() if name not in spec.training.searched
    }
    return build_task(spec.task, spec.options, {**fixed, **beside})


def sampler_of(spec: Spec) -> BaseSampler:
    """Return the sampler of a study; that of a grid is never asked, as its tickets are fixed."""
    return RuleSampler(_rule_of(spec), Space.of(spec), seed=spec.search.seed, maximize=spec.maximize)


def _rule_of(spec: Spec) -> Rule:
    name = spec.search.sampler
    return functools.partial(SAMPLERS[name] or RULES["random"], **spec.settings.get(name, {}))


def pruner_of(spec: Spec) -> BasePruner:
    """Return the pruner of a study."""
    name = spec.search.pruner
    settings = spec.settings.get(name, {})
    return PRUNERS[name](spec.training.epochs, spec.training.report_epochs(), **settings)
