"""From a study file to a spec: every problem is found in one pass and said with its fix."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from floodsearch.errors import Problem, StudyFileError
from floodsearch.study.fields import Known
from floodsearch.study.messages import Problems, built, unknown_key
from floodsearch.study.methods import settings_of, with_trials
from floodsearch.study.overrides import named_as_given, override
from floodsearch.study.spec import Spec, Training
from floodsearch.study.tables import (
    SECTIONS,
    Raw,
    arithmetic_of,
    budget_of,
    levels_of,
    log_of,
    script_of,
    search_of,
    seed_count_problems,
    training_of,
    with_metric,
)
from floodsearch.study.trained import TRAINED, trained_of

NOT_AVAILABLE: Mapping[str, str] = {
    "training.schedule = policy": "use 'constant', 'backward' or 'adaptive'",
    "search.sampler = policy": "use 'heuristic', 'tpe' or 'gp'",
    "policy": "remove the table",
}
"""Features that are planned and not there yet: refused by name, never ignored."""


def read(path: Path, known: Known, settings: Sequence[str] = ()) -> Spec:
    """Read a study file.

    Args:
        path: of the file.
        known: valid names.
        settings: of the command line, `KEY=VALUE` each, in the place of what the file says.

    Raises:
        StudyFileError: with all problems, if it cannot be read or used.
    """
    return parse(load(path), known, source=str(path), settings=settings)


def load(path: Path) -> dict[str, Any]:
    """Return the content of a study file, not yet checked.

    Raises:
        StudyFileError: if it cannot be read.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))  # without the mark of some editors
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


def parse(raw: Raw, known: Known, *, source: str = "study", settings: Sequence[str] = ()) -> Spec:
    """Return the spec of a study file's content, with some settings of the command line.

    Raises:
        StudyFileError: with all problems; `source` names the file in the message.
    """
    changed, of_command_line = override(raw, settings)
    spec, problems = _spec(changed, known)
    if spec is not None and not problems:
        problems = list(known.check_settings(spec))
    problems = [*of_command_line, *named_as_given(problems, raw, settings)]
    if spec is None or problems:
        raise StudyFileError(source, problems)
    return spec


def _spec(raw: Raw, known: Known) -> tuple[Spec | None, Problems]:
    """Return the spec, or None if it cannot be built, and all problems in the order in which they are listed.

    A table with a problem hides nothing in the others: what needs it goes on with what is left.
    """
    raw, unavailable = _available(raw)
    levels, of_levels = levels_of(raw, known.highest)
    training, of_training = training_of(raw)
    arithmetic, of_arithmetic = arithmetic_of(raw)
    script, of_script = script_of(raw)
    search, of_search = search_of(raw)
    budget, of_budget = budget_of(raw)
    log, of_log = log_of(raw, known.loggers)
    of_engine = [] if training is None or arithmetic is None else arithmetic.problems(training.engine)
    trained, of_trained = trained_of(raw, known, (training or Training()).seeds)
    if search is not None:
        search = with_metric(search, raw, trained.metrics)
    settings, of_settings = settings_of(raw, known, search, training)
    of_trials: Problems = []
    if training is not None:
        training = training.model_copy(update={"recipe": trained.recipe})
        if search is not None and levels is not None:
            schedule = training.schedule
            by_key = {f"{schedule}.{name}": value for name, value in settings.get(schedule, {}).items()}
            searched = {**trained.options, **trained.recipe}
            search, of_trials = with_trials(search, levels, searched, by_key, known.fixed)
    sections = dict(zip(SECTIONS, (levels, training, arithmetic, script, search, budget, log), strict=True))
    own = {"arguments": trained.arguments, "options": trained.options}
    spec, of_whole = _whole(raw, sections, **own, settings=settings)
    return spec, [
        *unavailable,
        *_unknown_tables(raw, known),
        *seed_count_problems(raw),
        *of_levels,
        *of_training,
        *of_arithmetic,
        *of_script,
        *of_search,
        *of_budget,
        *of_log,
        *of_engine,
        *of_trained,
        *of_settings,
        *of_trials,
        *of_whole,
    ]


def _available(raw: Raw) -> tuple[Raw, Problems]:
    """Return a file without the features of `NOT_AVAILABLE`, and a problem for each that it used."""
    problems: Problems = []
    for entry, remedy in NOT_AVAILABLE.items():
        key, _, value = entry.partition(" = ")
        table, _, name = key.rpartition(".")
        holder = raw.get(table, {}) if table else raw
        if not isinstance(holder, Mapping) or name not in holder or (value and holder[name] != value):
            continue
        problems.append(Problem(key, f"{value or name!r} is not available in this version; {remedy}"))
        rest = {other: holder[other] for other in holder if other != name}
        raw = {**raw, table: rest} if table else rest
    return raw, problems


def _unknown_tables(raw: Raw, known: Known) -> Problems:
    """Return a problem for each table and key of the whole file that is none of the valid ones."""
    valid = {"name", *TRAINED, "arguments", "options", *SECTIONS, *known.with_settings}
    return [unknown_key(key, key, valid) for key in sorted(raw.keys() - valid)]


def _whole(raw: Raw, sections: Mapping[str, Any], **more: Any) -> tuple[Spec | None, Problems]:
    """Return the spec built of its sections, or None, and the problems of its name and its task.

    Args:
        raw: content of the study file.
        sections: by field of the spec; None is one whose problems are listed already.
        more: other fields of the spec, which were checked before.
    """
    keys = {key: raw[key] for key in ("name", *TRAINED) if key in raw}
    given = {key: section for key, section in sections.items() if section is not None}
    spec, problems = built("", Spec, {**keys, **given, **more})
    return spec, [problem for problem in problems if problem.key not in SECTIONS]
