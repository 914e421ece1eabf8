"""From a study file to a spec: every problem is found in one pass and said with its fix.

Whoever reads a file hands in the valid names (`Known`), so this module needs no tables and no torch.
"""

from __future__ import annotations

import difflib
import inspect
import math
import tomllib
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from floodsearch.errors import Problem, StudyFileError, TaskError
from floodsearch.study.spec import (
    AUTO,
    DIRECTIONS,
    MOST_SEEDS,
    Arithmetic,
    Budget,
    Choices,
    Levels,
    Range,
    Search,
    Section,
    Spec,
    Training,
)
from floodsearch.usercode.command import PLACEHOLDERS, placeholders

SECTIONS: Mapping[str, type[Section]] = {
    "levels": Levels,
    "training": Training,
    "arithmetic": Arithmetic,
    "search": Search,
    "budget": Budget,
}
TRAINED = ("task", "objective", "command")
"""What a study trains: one of these."""
DEFAULT_TRIALS = 51

NOT_AVAILABLE: Mapping[str, str] = {
    "training.schedule = policy": "use 'constant', 'backward' or 'adaptive'",
    "search.sampler = policy": "use 'heuristic', 'tpe' or 'gp'",
    "policy": "remove the table",
}
"""What the design has and this version has not: refused by name, never ignored."""


@dataclass(frozen=True)
class Field:
    """One setting that a task, sampler, pruner or schedule takes."""

    type: Any
    default: Any


Fields = Mapping[str, Field]


@dataclass(frozen=True)
class TaskFields:
    """What a study file may say about a task."""

    options: Fields
    recipe: Fields
    """With the defaults that belong to the chosen options: augmentation may bring a recipe of its own."""
    metrics: Collection[str]
    """The metrics that its training reports."""
    build: Callable[[Mapping[str, Any]], Iterator[Problem]]
    """Try these recipe values on the task and yield what it says against them."""


@dataclass(frozen=True)
class Known:
    """The valid names, and the settings that belong to each."""

    tasks: Collection[str]
    describe_task: Callable[[str, Mapping[str, Any]], TaskFields]
    """Return what a task takes beside these options; raises TaskError if it cannot be imported or built."""
    rehearse: Callable[[str, Mapping[str, Any], Mapping[str, Any], Sequence[int]], Iterator[Problem]]
    """Try a task of the user's own with options, recipe and seeds; yield what is wrong with it."""
    find_loop: Callable[[str], object]
    """Import a training loop of the user's own; raises TaskError where that fails."""
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
    check_settings: Callable[[Spec], Iterator[Problem]]
    """Try the settings of sampler, pruner and schedule and yield what these say against them."""

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


def read(path: Path, known: Known) -> Spec:
    """Read a study file.

    Raises:
        StudyFileError: with all problems, if it cannot be read or used.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8-sig"))  # without the mark of some editors
    except FileNotFoundError:
        raise StudyFileError(
            str(path), [Problem("file", "does not exist; give the path of a .toml file")]
        ) from None
    except OSError as error:
        raise StudyFileError(str(path), [Problem("file", f"cannot be read: {error.strerror}")]) from None
    except UnicodeDecodeError as error:
        has = f"cannot be read: byte {error.start + 1} is not UTF-8; save it as UTF-8"
        raise StudyFileError(str(path), [Problem("file", has)]) from None
    except (ValueError, RecursionError) as error:  # also numbers and nesting beyond all bounds
        raise StudyFileError(str(path), [Problem("file", f"is not valid TOML: {error}")]) from None
    return parse(raw, known, source=str(path))


def parse(raw: Mapping[str, Any], known: Known, *, source: str = "study") -> Spec:
    """Return the spec of a study file's content.

    Raises:
        StudyFileError: with all problems; `source` names the file in the message.
    """
    reader = _Reader(raw, known)
    spec = reader.spec()
    if spec is not None and not reader.problems:
        reader.problems.extend(known.check_settings(spec))
    if spec is None or reader.problems:
        raise StudyFileError(source, reader.problems)
    return spec


class _Reader:
    """One pass over a study file that collects problems instead of stopping at the first."""

    def __init__(self, raw: Mapping[str, Any], known: Known) -> None:
        self.raw, self.known = dict(raw), known
        self.problems: list[Problem] = []
        self.metrics: Collection[str] = ()  # that the task reports, once that is known
        self.said: set[str] = set(SECTIONS)  # parts of the whole whose problems were reported already

    def spec(self) -> Spec | None:
        self._refuse_unavailable()
        valid = {"name", *TRAINED, "options", *SECTIONS, *self.known.with_settings}
        for key in sorted(self.raw.keys() - valid):
            self._unknown(key, key, valid)
        training, recipe = self._split_training()
        sections: dict[str, Any] = {
            "levels": self._section("levels", self._levels(training)),
            "training": self._section("training", training),
            "arithmetic": self._section("arithmetic", self.raw.get("arithmetic", {})),
            "search": self._section("search", self._with_direction()),
            "budget": self._section("budget", self.raw.get("budget", {})),
        }
        if sections["training"] is not None and sections["arithmetic"] is not None:
            self.problems.extend(sections["arithmetic"].problems(sections["training"].engine))
        seeds = (sections["training"] or Training()).seeds
        options, recipe = self._loop(recipe) if self._has_loop else self._task(recipe, seeds)
        if sections["search"] is not None:
            sections["search"] = self._with_metric(sections["search"])
        settings: dict[str, Any] = {}
        if sections["search"] is not None:
            settings |= self._settings("search.sampler", sections["search"].sampler, self.known.samplers)
            settings |= self._settings("search.pruner", sections["search"].pruner, self.known.pruners)
        if sections["training"] is not None:
            schedule = sections["training"].schedule
            settings |= self._settings("training.schedule", schedule, self.known.schedules)
            sections["training"] = sections["training"].model_copy(update={"recipe": recipe})
            if sections["search"] is not None and sections["levels"] is not None:
                of_schedule = {
                    f"{schedule}.{name}": value for name, value in settings.get(schedule, {}).items()
                }
                sections["search"] = self._trials(sections["search"], sections["levels"], recipe, of_schedule)
        whole = {key: self.raw[key] for key in ("name", *TRAINED) if key in self.raw} | {
            key: section for key, section in sections.items() if section is not None
        }
        spec: Spec | None = self._build("", Spec, whole | {"options": options, "settings": settings})
        return spec

    def _refuse_unavailable(self) -> None:
        for entry, remedy in NOT_AVAILABLE.items():
            key, _, value = entry.partition(" = ")
            table, _, name = key.rpartition(".")
            holder = self.raw.get(table, {}) if table else self.raw
            if not isinstance(holder, dict) or name not in holder or (value and holder[name] != value):
                continue
            self.problems.append(
                Problem(key, f"{value or name!r} is not available in this version; {remedy}")
            )
            # Take it out, so that the rest can be checked without saying the same again.
            if table:
                self.raw[table] = {k: v for k, v in holder.items() if k != name}
                self.said.add(key)
            else:
                del self.raw[name]

    @property
    def _has_loop(self) -> bool:
        return "objective" in self.raw or "command" in self.raw

    def _split_training(self) -> tuple[Any, dict[str, Any]]:
        table = self.raw.get("training", {})
        if not isinstance(table, dict):
            return table, {}
        own = Training.model_fields.keys() - {"recipe"}
        training = {key: value for key, value in table.items() if key in own}
        if self._has_loop:
            training = {"validate_every": 1} | training
        if isinstance(seeds := training.get("seeds"), int) and not isinstance(seeds, bool):
            if not 1 <= seeds <= MOST_SEEDS:
                bound = (
                    "above 0; give 1 or more" if seeds < 1 else f"below {MOST_SEEDS + 1:,}; five are usual"
                )
                self.problems.append(Problem("training.seeds", f"{seeds} is not {bound}"))
                del training["seeds"]
            else:
                training["seeds"] = tuple(range(seeds))
        return training, {key: value for key, value in table.items() if key not in own}

    def _levels(self, training: Any) -> Any:
        """Return the table of levels; a schedule that finds the level in each run has one, the highest."""
        table = self.raw.get("levels", {})
        schedule = training.get("schedule") if isinstance(training, dict) else None
        highest = self.known.highest.get(schedule) if isinstance(schedule, str) else None
        if highest is None or not isinstance(table, dict):
            return table
        for key in sorted(table.keys() - {"high"}):
            why = f"has no use: the schedule {schedule!r} finds the level in each run; remove it"
            self.problems.append(Problem(f"levels.{key}", why))
        return {"high": table.get("high", highest), "count": 2}  # this one and level 0

    def _with_direction(self) -> Any:
        table = self.raw.get("search", {})
        if not isinstance(table, dict):
            return table
        metric = table.get("metric", Search.model_fields["metric"].default)
        if self._has_loop and isinstance(metric, str) and metric not in DIRECTIONS:
            return self._with_own_metric(metric, table)
        if not isinstance(metric, str) or metric not in DIRECTIONS:
            self._name("search.metric", metric, DIRECTIONS)
            return {key: value for key, value in table.items() if key != "metric"}
        wanted = table.get("direction", DIRECTIONS[metric])
        if wanted != DIRECTIONS[metric]:
            self.problems.append(
                Problem("search.direction", f"{wanted!r}, but {metric} is to {DIRECTIONS[metric]}; remove it")
            )
        return {**table, "direction": DIRECTIONS[metric]}

    def _with_metric(self, search: Search) -> Search:
        """Return the table with the default metric of the task: one without an accuracy has its loss."""
        said = self.raw.get("search", {}).keys() & {"metric", "direction"}
        if said or not self.metrics or search.metric in self.metrics:
            return search
        metric = next(iter(self.metrics))
        return search.model_copy(update={"metric": metric, "direction": DIRECTIONS[metric]})

    def _with_own_metric(self, metric: str, table: dict[str, Any]) -> dict[str, Any]:
        """Return the table with a metric that the user's own loop reports under any name."""
        if not metric.isidentifier():
            has = f"{metric!r} cannot be reported: write a name as in run.report(name=...)"
            self.problems.append(Problem("search.metric", has))
        if "direction" not in table:
            say = f"missing; say whether {metric} is to 'maximize' or to 'minimize'"
            self.problems.append(Problem("search.direction", say))
        return {"direction": "maximize", **table}

    def _section(self, key: str, table: Any) -> Any:
        if not isinstance(table, dict):
            self.problems.append(Problem(key, f"{table!r} is not a table; write it as [{key}]"))
            return None
        section = self._build(key, SECTIONS[key], table)
        found = list(section.problems()) if isinstance(section, Levels | Training) else []
        self.problems.extend(found)
        return None if found else section

    def _task(self, recipe: dict[str, Any], seeds: Sequence[int]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Check the task's name, options and recipe fields; return both with their defaults.

        One of the user's own is rehearsed, if these are sound.
        """
        task, options = self.raw.get("task"), self.raw.get("options", {})
        if not isinstance(options, dict):
            self.problems.append(Problem("options", f"{options!r} is not a table; write it as [options]"))
            options = {}
        if task is None and "task" not in self.said:
            instead = "or an objective, a training loop of your own, or a command"
            self.problems.append(Problem("task", f'missing; give it, such as "two_gaussians", {instead}'))
        if not isinstance(task, str):  # of the wrong type: said when the whole is built
            return options, recipe
        try:
            if ":" not in task and task not in self.known.tasks:
                self._name("task", task, self.known.tasks, or_else="or 'package.module:name' of your own")
                return options, recipe
            fields = self.known.describe_task(task, {})
        except TaskError as error:
            self.problems.append(Problem("task", str(error)))
            return options, recipe
        before = len(self.problems)
        checked_options = self._values("options", options, fields.options)
        try:
            fields = self.known.describe_task(task, checked_options)
        except TaskError as error:
            self.problems.append(Problem("options", str(error)))
        # These two tables share their section's name space: an unknown key may be meant for either.
        known = {
            **fields.recipe,
            **{name: Field(Any, None) for name in Training.model_fields if name != "recipe"},
        }
        checked_recipe = self._values("training", recipe, known, (Choices,))
        checked_recipe = {name: value for name, value in checked_recipe.items() if name in fields.recipe}
        wrong = {problem.key for problem in self.problems[before:]}
        sound = {name: value for name, value in checked_recipe.items() if f"training.{name}" not in wrong}
        self.problems.extend(fields.build(sound))
        self.metrics = fields.metrics
        if task not in self.known.tasks and len(self.problems) == before:
            self.problems.extend(self.known.rehearse(task, checked_options, checked_recipe, seeds))
        search = self.raw.get("search", {})
        metric = search.get("metric") if isinstance(search, dict) else None
        if isinstance(metric, str) and metric in DIRECTIONS and metric not in fields.metrics:
            listed = ", ".join(fields.metrics)
            self.problems.append(Problem("search.metric", f"this task has no {metric!r}; use {listed}"))
        return checked_options, checked_recipe

    def _loop(self, recipe: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Check a training loop or command of the user's own; return its options and recipe, of any names.

        Both are what the loop is handed as its settings, or what the command has placeholders for.
        """
        options = self.raw.get("options", {})
        given = [key for key in TRAINED if key in self.raw]
        if len(given) > 1:
            self.problems.append(Problem(given[-1], f"given together with {given[0]}; keep one of them"))
        elif given == ["objective"]:
            self._objective(self.raw["objective"])
        else:
            names = recipe.keys() | (options.keys() if isinstance(options, dict) else set())
            self._command(self.raw["command"], names)
        schedule = self._training_value("schedule")
        if schedule is not None and schedule not in self.known.steady:
            has = f"{schedule!r}, but in a loop of your own the level is constant in this version; remove it"
            self.problems.append(Problem("training.schedule", has))
        for where in ("training.engine", "arithmetic"):
            table, _, name = where.partition(".")
            if self._training_value(name) if name else self.raw.get(table):
                has = "is for tasks: your own code computes as it says; remove it"
                self.problems.append(Problem(where, has))
        if not isinstance(options, dict):
            self.problems.append(Problem("options", f"{options!r} is not a table; write it as [options]"))
            options = {}
        own = Training.model_fields.keys() - {"recipe"}
        for name in recipe:
            if close := difflib.get_close_matches(name, own, n=1, cutoff=0.8):
                has = f"unknown key, did you mean {close[0]!r}? A setting of your own goes into [options]"
                self.problems.append(Problem(f"training.{name}", has))
        for name in sorted(recipe.keys() & options.keys()):
            self.problems.append(Problem(f"options.{name}", f"given together with training.{name}; keep one"))
        return self._own("options", options), self._own("training", recipe)

    def _objective(self, reference: Any) -> None:
        """Check the reference of a training loop of the user's own."""
        if not isinstance(reference, str):
            return  # said when the whole is built
        if not all(reference.partition(":")):
            self.problems.append(Problem("objective", f"{reference!r} is not a 'package.module:function'"))
            return
        try:
            self.known.find_loop(reference)
        except TaskError as error:
            self.problems.append(Problem("objective", str(error)))

    def _command(self, command: Any, settings: Collection[str]) -> None:
        """Check that a command has a place for all that it must be told, and for nothing else."""
        if not isinstance(command, str):
            return  # said when the whole is built
        try:
            found = placeholders(command)
            self.known.find_program(command)
        except (ValueError, TaskError) as error:
            self.problems.append(Problem("command", str(error)))
            return
        for name in dict.fromkeys(found):
            self._name("command", name, (*PLACEHOLDERS, *settings), or_else="or a setting in [options]")
        seeds = self._training_value("seeds")
        for name in ("level", *(("seed",) if seeds not in (1, [0]) else ()), *sorted(settings)):
            if name not in found:
                self.problems.append(
                    Problem("command", f"{command!r} does not say where {{{name}}} goes; add it")
                )
        if (keep := self._training_value("keep")) in ("last", "best"):
            has = f"{keep!r}, but only the command has its weights; remove it, and let the command save them"
            self.problems.append(Problem("training.keep", has))
        search = self.raw.get("search", {})
        default = Search.model_fields["pruner"].default
        pruner = search.get("pruner", default) if isinstance(search, dict) else None
        if pruner in self.known.at_each_report:
            has = f"{pruner!r} would start a command again at each of about 25 rungs; use 'halving'"
            self.problems.append(Problem("search.pruner", has))

    def _training_value(self, key: str) -> Any:
        table = self.raw.get("training", {})
        return table.get(key) if isinstance(table, dict) else None

    def _own(self, key: str, table: Mapping[str, Any]) -> dict[str, Any]:
        """Check settings of the user's own loop, which may have any name."""
        values = {}
        for name, value in table.items():
            where = f"{key}.{name}"
            if name in PLACEHOLDERS:
                self.problems.append(Problem(where, f"{name!r} is told by each run; choose another name"))
            elif isinstance(value, dict):
                values[name] = self._choices(where, value, Field(Any, None))
            elif all(_is_scalar(one) for one in (value if isinstance(value, list) else [value])):
                values[name] = tuple(value) if isinstance(value, list) else value
            else:
                has = f"{value!r} is neither a finite number, text, true or false nor a list of these"
                self.problems.append(Problem(where, f"{has}; or search it with {{choices = [...]}}"))
        return values

    def _settings(self, where: str, chosen: str, named: Mapping[str, Fields]) -> dict[str, dict[str, Any]]:
        """Check the table of the chosen one of several names, and that the others have none."""
        if not self._name(where, chosen, named):
            return {}
        for name, fields in named.items():
            if name != chosen and fields and self.raw.get(name, {}):
                has = f"these settings have no use here: {where} is {chosen!r}"
                self.problems.append(Problem(name, f"{has}; remove the table"))
        table = self.raw.get(chosen, {})
        if not isinstance(table, dict):
            self.problems.append(Problem(chosen, f"{table!r} is not a table; write it as [{chosen}]"))
            return {}
        searchable = (Choices, Range) if where == "training.schedule" else ()
        values = self._values(chosen, table, named[chosen], searchable)
        # None is a default that depends on the study; the rule works it out.
        given = {key: value for key, value in values.items() if value is not None}
        return {chosen: given} if given else {}

    def _trials(
        self, search: Search, levels: Levels, recipe: Mapping[str, Any], settings: Mapping[str, Any]
    ) -> Search:
        """Check that the sampler, what is searched and the number of trials fit each other."""
        counted = levels.high != AUTO or levels.count is not None
        grid = levels.stand_in().grid()
        baselines = _combinations(recipe)
        ranges = [where for where, value in settings.items() if isinstance(value, Range)]
        if search.sampler in self.known.fixed:
            for where in ranges:
                why = "is a range, but a grid needs {choices = [...]}; or take another sampler"
                self.problems.append(Problem(where, why))
            if grid is None:
                self.problems.append(
                    Problem("levels.count", "missing; a grid needs levels.count or levels.step")
                )
        size = None
        if (
            counted and grid is not None and not ranges
        ):  # at level 0 the settings of the schedule mean nothing
            size = baselines * (1 + (len(grid) - 1) * _combinations(settings))
        trials = search.trials
        if search.sampler in self.known.fixed:
            if size is not None and trials is not None:
                has = f"this grid has {size} tickets"
                self.problems.append(Problem("search.trials", f"{trials}, but {has}; remove it"))
            return search
        if trials is None:
            trials = max(2, min(DEFAULT_TRIALS, size or DEFAULT_TRIALS))
        elif size is not None and trials > size:
            self.problems.append(
                Problem("search.trials", f"{trials} is more than the {size} levels there are")
            )
        if trials <= baselines:
            self.problems.append(
                Problem("search.trials", f"{trials} leaves nothing beside the {baselines} runs at level 0")
            )
        return search.model_copy(update={"trials": trials})

    def _values(
        self,
        key: str,
        table: Mapping[str, Any],
        fields: Fields,
        searchable: Sequence[type[Choices | Range]] = (),
    ) -> dict[str, Any]:
        """Check a table of settings against the fields there are; return it with the defaults.

        Args:
            key: of the table.
            table: of the study file.
            fields: that may be set.
            searchable: how a value may be searched instead of given.
        """
        values = {name: field.default for name, field in fields.items()}
        for name, value in table.items():
            where = f"{key}.{name}"
            if name not in fields:
                self._unknown(where, name, fields)
            elif Range in searchable and isinstance(value, dict) and "choices" not in value:
                values[name] = self._range(where, value, fields[name])
            elif Choices in searchable and isinstance(value, dict):
                values[name] = self._choices(where, value, fields[name])
            else:
                values[name] = self._typed(where, value, fields[name])
        return values

    def _choices(self, where: str, table: Mapping[str, Any], field: Field) -> Any:
        searched: Choices | None = self._build(where, Choices, table)
        if searched is None:
            return field.default
        for choice in searched.choices:
            self._typed(where, choice, field)
        if len(set(searched.choices)) < len(searched.choices):
            self.problems.append(
                Problem(f"{where}.choices", f"{list(searched.choices)} holds a choice twice")
            )
        return searched

    def _range(self, where: str, table: Mapping[str, Any], field: Field) -> Any:
        searched: Range | None = self._build(where, Range, table)
        if searched is None:
            return field.default
        try:
            _adapter(field).validate_python(0.5)
        except ValidationError:
            problem: str | None = "takes no fractions, so no range; write {choices = [...]}"
        else:
            problem = searched.problem()
        if problem is None:
            return searched
        self.problems.append(Problem(where, problem))
        return field.default

    def _typed(self, where: str, value: Any, field: Field) -> Any:
        try:
            # TOML knows lists only; JSON mode reads them as the tuples that settings are.
            return _adapter(field).validate_python(tuple(value) if isinstance(value, list) else value)
        except ValidationError as error:
            self.problems.append(Problem(where, _refusal(value, error.errors()[0]["msg"])))
            return field.default

    def _build(self, prefix: str, model: type[Section], table: Any) -> Any:
        try:
            return model.model_validate(table)
        except ValidationError as error:
            for entry in error.errors():
                self._explain(prefix, model, entry)
            return None

    def _explain(self, prefix: str, model: type[Section], entry: Any) -> None:
        where = ".".join(str(part) for part in (prefix, *entry["loc"]) if part != "")
        if where in self.said or entry["type"] == "default_factory_not_called":
            return  # said already, as is the field that this default follows
        if entry["type"] == "extra_forbidden":
            self._unknown(where, str(entry["loc"][-1]), model.model_fields)
        elif entry["type"] == "missing":
            hints = {
                "levels.high": 'such as 0.5, or "auto"',
                "name": 'such as "my-study"',
            }
            self.problems.append(Problem(where, f"missing; give it, {hints.get(where, 'it has no default')}"))
        elif entry["type"] == "string_pattern_mismatch":
            rule = "may hold only a-z, 0-9 and -, and not begin with -"
            self.problems.append(Problem(where, f"{entry['input']!r} {rule}"))
        else:
            self.problems.append(Problem(where, _refusal(entry["input"], entry["msg"])))

    def _name(self, where: str, name: Any, valid: Collection[str], or_else: str = "") -> bool:
        """Check a name against the valid ones."""
        if isinstance(name, str) and name in valid:
            return True
        listed = ", ".join(sorted(valid)) + (f", {or_else}" if or_else else "")
        self.problems.append(Problem(where, f"{name!r} is not known{_close(name, valid)}; valid: {listed}"))
        return False

    def _unknown(self, where: str, name: str, valid: Collection[str]) -> None:
        listed = f"valid: {', '.join(sorted(valid))}" if valid else "nothing can be set here"
        self.problems.append(Problem(where, f"unknown key{_close(name, valid)}; {listed}"))


def _is_scalar(value: Any) -> bool:
    return isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value))


def _adapter(field: Field) -> TypeAdapter[Any]:
    return TypeAdapter(field.type, config=ConfigDict(strict=True, allow_inf_nan=False))


def _combinations(values: Mapping[str, Any]) -> int:
    """Return how many combinations of choices there are."""
    return math.prod(len(value.choices) for value in values.values() if isinstance(value, Choices))


def _close(name: Any, valid: Collection[str]) -> str:
    close = difflib.get_close_matches(str(name), sorted(valid), n=1)
    return f", did you mean {close[0]!r}?" if close else ""


def _refusal(value: Any, message: str) -> str:
    """Turn pydantic's "Input should be X" into "VALUE should be X"."""
    return f"{value!r} {message.removeprefix('Input ')}"
