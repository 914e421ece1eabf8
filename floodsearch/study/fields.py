"""The names that a study file may use, and the settings that come with each.

Whoever reads a file hands them in as a `Known`, so that reading one imports no tasks and no torch.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from floodsearch.errors import Problem
from floodsearch.study.spec import Spec


@dataclass(frozen=True)
class Field:
    """One setting that a task, sampler, pruner or schedule takes."""

    type: Any
    default: Any


Fields = Mapping[str, Field]


@dataclass(frozen=True)
class TaskFields:
    """The settings that a study file may give a task, and the metrics that its training reports."""

    options: Fields
    recipe: Fields
    """With the defaults that belong to the chosen options: augmentation may bring a recipe of its own."""
    metrics: Collection[str]
    """The metrics that its training reports."""
    build: Callable[[Mapping[str, Any]], Iterator[Problem]]
    """Build the task with each of these recipe values; yield a problem for each that it refuses."""


@dataclass(frozen=True)
class Known:
    """The valid names, and the settings that belong to each."""

    tasks: Collection[str]
    describe_task: Callable[[str, Mapping[str, Any], Sequence[str]], TaskFields]
    """Describe a task of some name, built with these options and arguments; else raises TaskError."""
    rehearse: Callable[
        [str, Mapping[str, Any], Mapping[str, Any], Sequence[int], Sequence[str]], Iterator[Problem]
    ]
    """Train a little of a task of the user's own, given options, recipe, seeds and arguments; yield its
    problems."""
    find_loop: Callable[[str, Sequence[str]], object]
    """Import a training loop of the user's own, given its arguments; raises TaskError where that fails."""
    find_program: Callable[[str], object]
    """Look for the program of a command of the user's own; raises TaskError if it is not there."""
    samplers: Mapping[str, Fields]
    fixed: Collection[str]
    """The samplers that propose nothing: each level of a grid is a ticket from the start."""
    pruners: Mapping[str, Fields]
    at_each_report: Collection[str]
    """The pruners that may stop a trial wherever it reports, which is at about 25 epochs."""
    schedules: Mapping[str, Fields]
    steady: Collection[str]
    """The schedules whose level stays what it is from the first epoch to the last."""
    highest: Mapping[str, float]
    """The schedules that find the level in each run, and up to which one by default: `levels.high`, which is
    all that such a study has of [levels]."""
    loggers: Mapping[str, Callable[[], str | None]]
    """By name, what is missing here of a logger, with the command that installs it; None if nothing is."""
    check_settings: Callable[[Spec], Iterator[Problem]]
    """Call sampler, pruner and schedule with their settings; yield a problem for each that they refuse."""

    @property
    def with_settings(self) -> dict[str, Fields]:
        """The samplers, pruners and schedules that have settings, each a table of the study file."""
        every = {**self.samplers, **self.pruners, **self.schedules}
        return {name: fields for name, fields in every.items() if fields}


def fields_of(function: Callable[..., Any], *, keyword_only: bool = True) -> dict[str, Field]:
    """Return the settings of a function: its parameters that have a name, a type and a default."""
    hints = typing.get_type_hints(function.__init__ if inspect.isclass(function) else function)
    return {
        name: Field(hints.get(name, Any), parameter.default)
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.default is not parameter.empty
        and (parameter.kind is parameter.KEYWORD_ONLY or not keyword_only)
    }
