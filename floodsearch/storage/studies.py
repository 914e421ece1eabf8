"""Studies in a database: made, found, extended and deleted."""

from __future__ import annotations

import json
import platform
import shlex
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import optuna

from floodsearch.answer.values import Criterion
from floodsearch.errors import (
    DamagedError,
    Problem,
    StudyChangedError,
    StudyDeletedError,
    StudyFileError,
    UnknownStudyError,
    UsageError,
)
from floodsearch.flooding.schedules import SCHEDULES
from floodsearch.records import Pilot
from floodsearch.search.pruners import PRUNERS
from floodsearch.search.samplers import SAMPLERS
from floodsearch.storage import schema, tables, trials
from floodsearch.storage.database import Database
from floodsearch.storage.rows import number, parsed, read_by_optuna, text, uuid_of, whole
from floodsearch.study.extend import differences
from floodsearch.study.fields import fields_of
from floodsearch.study.section import AUTO
from floodsearch.study.spec import Spec, from_json
from floodsearch.study.trust import NOTHING, TrustedSpec, Trusts, trust_in

SPEC, UUID, VERSIONS, STOPPED, PILOT, ENGINE = (
    f"floodsearch:{name}" for name in ("spec", "uuid", "versions", "stopped", "pilot", "engine")
)


@dataclass(frozen=True)
class StoredStudy:
    """A study in an open database.

    Args:
        database: where it lies.
        name: its name.
        id: Optuna's id, which SQLite may give out again after a deletion.
        uuid: ours, which nobody gets again.
        spec: what was asked, as of when it was read, with the highest level that the pilot found.
        pilot: what the pilot found; None before, and where the highest level was given.
        engine: how its runs are trained, `loop` or `stack`; None where a worker has yet to settle it.
        trusts: what of the user's own it may run in this process; the database cannot add to it.
    """

    database: Database
    name: str
    id: int
    uuid: str
    spec: Spec
    pilot: Pilot | None = None
    engine: str | None = None
    trusts: Trusts = NOTHING

    @property
    def trusted(self) -> TrustedSpec:
        """The spec as one whose code may be run.

        Raises:
            UntrustedError: if nobody has trusted here what it names.
        """
        return self.trusts.allow(self.spec)

    @property
    def criterion(self) -> Criterion:
        """The metric, its direction and window, by which the records of this study are compared."""
        search = self.spec.search
        return Criterion(
            study=self.name,
            metric=search.metric,
            maximize=self.spec.maximize,
            window=search.window,
            scale=None if self.pilot is None else self.pilot.bound,
            finds_level=SCHEDULES[self.spec.training.schedule].finds_level,
            early_stopping=self.spec.training.early_stopping,
        )

    @property
    def folder(self) -> str:
        """The path of its files below the folder of all studies; another database may have its name, too."""
        return f"{self.spec.name}/{self.uuid[:8]}"

    def reread(self) -> StoredStudy:
        """Return the study with its spec as it is now: someone may have extended it.

        Raises:
            StudyChangedError: if it is another one now than that it has grown.
            StudyDeletedError: if it is gone, or its id is another's by now.
        """
        now = _study(self.database, self.name, self.id, self.trusts)
        if now.uuid != self.uuid:
            raise StudyDeletedError(self.name, self.database.name)
        found = now.spec
        if self.spec.levels.high == AUTO:  # until the pilot has found it
            found = found.model_copy(update={"levels": self.spec.levels})
        if changed := differences(self.spec, found):
            raise StudyChangedError(self.name, changed, by_hand=True)
        return now

    def others(self) -> list[str]:
        """Return the names of other studies that say they had its data: copies that were made by hand."""
        with self.database.read() as connection:
            return [
                name for one, name in trials.sharing(connection, UUID, self.uuid).items() if one != self.id
            ]

    def changed(self) -> str | None:
        """Return a sentence on how somebody changed the study by hand, and the repair; None if nobody did.

        It may have been copied, renamed or turned round, so that its direction is another one.
        """
        others, made = self.others(), self.spec.name
        if others:
            copy = others[0] if self.name == made else self.name
            shared = f"and {', '.join(map(repr, others))} would share its data"
            fix = f"delete the copy: floodsearch delete {shlex.quote(copy)}"
            return f"study {self.name!r} was copied by hand, {shared}; {fix}"
        if self.name != made:
            return (
                f"study {self.name!r} was made as {made!r} and renamed by hand; name it {made!r} again "
                f"(optuna-dashboard does that), or delete it: floodsearch delete {shlex.quote(self.name)}"
            )
        wanted = [optuna.study.StudyDirection[self.spec.search.direction.upper()]]
        if (stored := self.database.optuna.get_study_directions(self.id)) != wanted:
            told = ", ".join(one.name.lower() for one in stored)
            return (
                f"the direction of study {self.name!r} was changed by hand to {told}; set it to "
                f"{self.spec.search.direction} again"
            )
        return None

    def require_unchanged(self) -> None:
        """Raise if somebody renamed, copied or turned round the study, so that it must not be written to.

        Raises:
            UsageError: with the sentence of `changed`.
        """
        if (changed := self.changed()) is not None:
            raise UsageError(changed)

    def settle(self, pilot: Pilot) -> None:
        """Store what the pilot found, for all workers."""
        self.database.optuna.set_study_user_attr(self.id, PILOT, json.dumps(asdict(pilot)))

    def settle_engine(self, engine: str) -> StoredStudy:
        """Return the study with its engine; where it has none yet, this one becomes that of all its workers.

        Args:
            engine: `loop` or `stack`.
        """
        with tables.lease(self.database, self.uuid, "engine"):
            now = self.reread()
            if now.engine is None:
                self.database.optuna.set_study_user_attr(self.id, ENGINE, engine)
        return self.reread()

    def stopped(self) -> str | None:
        """Return the reason for which the study was stopped; None while it hands out tickets."""
        reason = _attributes(self.database, self.name, self.id).get(STOPPED)
        return text(reason, f"{STOPPED} of study {self.name!r}") if reason else None

    def stop(self, reason: str | None) -> None:
        """Stop the study for a reason, so that it hands out no more tickets; with None, let it go on."""
        self.database.optuna.set_study_user_attr(self.id, STOPPED, reason or "")

    def optuna(self, pruner: optuna.pruners.BasePruner | None = None) -> optuna.Study:
        """Return Optuna's object for this study."""
        return optuna.load_study(study_name=self.name, storage=self.database.optuna, pruner=pruner)


def versions() -> dict[str, str]:
    """Return the versions of floodsearch, Optuna, torch and Python, by name: a result may depend on them."""
    packages = {name: version(name) for name in ("floodsearch", "optuna", "torch")}
    return packages | {"python": platform.python_version()}


def study_names(database: Database) -> list[str]:
    """Return the names of all studies that floodsearch made, oldest first."""
    studies = database.optuna.get_all_studies()
    return [study.study_name for study in studies if UUID in study.user_attrs]


def find_study(database: Database, name: str, trusts: Trusts = NOTHING) -> StoredStudy:
    """Return a study by its name.

    Args:
        database: where it lies.
        name: of the study.
        trusts: what of the user's own it may run in this process.

    Raises:
        UnknownStudyError: if there is none, naming those that are there.
    """
    try:
        study_id = database.optuna.get_study_id_from_name(name)
    except KeyError:
        raise UnknownStudyError(name, study_names(database), database.name) from None
    return _study(database, name, study_id, trusts)


def find_study_of(database: Database, spec: Spec) -> StoredStudy:
    """Return the study that a study file has made, which either of the two may have outgrown.

    It may run what the file names, with the arguments that the file gives.

    Raises:
        UnknownStudyError: if there is none.
        StudyChangedError: if the stored study has other settings, listed.
    """
    study = find_study(database, spec.name, trust_in(spec))
    stored = _asked(_attributes(database, study.name, study.id), study.name)
    if (changed := differences(stored, spec)) and differences(spec, stored):
        raise StudyChangedError(spec.name, changed)
    return study


def _attributes(database: Database, name: str, study_id: int) -> dict[str, Any]:
    try:
        with read_by_optuna(f"study {name!r}"):
            return database.optuna.get_study_user_attrs(study_id)
    except KeyError:
        raise StudyDeletedError(name, database.name) from None


def _study(database: Database, name: str, study_id: int, trusts: Trusts) -> StoredStudy:
    attributes = _attributes(database, name, study_id)
    if SPEC not in attributes or UUID not in attributes:
        raise UnknownStudyError(name, study_names(database), database.name)
    of = f"of study {name!r}"
    spec, our_uuid = _asked(attributes, name), uuid_of(attributes[UUID], f"{UUID} {of}")
    pilot = None
    if spec.levels.high == AUTO and PILOT in attributes:
        pilot = _pilot(attributes[PILOT], f"{PILOT} {of}")
        try:
            spec = spec.up_to(pilot.bound)
        except ValueError:
            raise DamagedError(f"{PILOT} {of}", attributes[PILOT], "a bound above levels.low") from None
    engine = spec.training.engine
    if engine == AUTO and (settled := attributes.get(ENGINE)) is not None:
        if settled not in ("loop", "stack"):
            raise DamagedError(f"{ENGINE} {of}", settled, "loop or stack")
        engine = settled
    settled = None if engine == AUTO else engine
    return StoredStudy(database, name, study_id, our_uuid, spec, pilot, settled, trusts)


def _pilot(stored: object, where: str) -> Pilot:
    found = parsed(stored, where, dict)
    minima = found.get("minima")
    if not isinstance(minima, list):
        raise DamagedError(where, stored, "what the pilot found")
    return Pilot(
        epochs=whole(found.get("epochs"), where),
        minima=tuple(number(one, where) for one in minima),
        bound=number(found.get("bound"), where),
        high=number(found.get("high"), where),
        seconds_per_epoch=number(found.get("seconds_per_epoch"), where),
        device=text(found.get("device"), where),
    )


def _asked(attributes: Mapping[str, Any], name: str) -> Spec:
    where = f"the stored spec of {name!r}"
    spec = from_json(text(attributes[SPEC], where), where)
    if problems := list(_unknown(spec)):
        raise StudyFileError(where, problems)
    return spec


def _unknown(spec: Spec) -> Iterator[Problem]:
    """Yield a problem for each name in a stored spec that floodsearch does not know.

    Nothing may be looked up by such a name: whoever can write to the database would choose what is called.
    """
    if sum(one is not None for one in (spec.task, spec.objective, spec.command)) != 1:
        yield Problem("task", "is to be given, or an objective, or a command, and only one of them")
    schedules = {name: one.step for name, one in SCHEDULES.items()}
    samplers = {name: one.rule for name, one in SAMPLERS.items()}
    tables: dict[str, tuple[str, Mapping[str, Callable[..., Any] | None]]] = {
        "training.schedule": (spec.training.schedule, schedules),
        "search.sampler": (spec.search.sampler, samplers),
        "search.pruner": (spec.search.pruner, PRUNERS),
    }
    for key, (name, table) in tables.items():
        if name not in table:
            yield Problem(key, f"{name!r} is not known; known: {', '.join(table)}")
            continue
        of = table[name]
        strange = spec.settings.get(name, {}).keys() - ({} if of is None else fields_of(of)).keys()
        if strange:
            yield Problem(key, f"{name} has no {', '.join(sorted(strange))}")


def put_study(database: Database, spec: Spec) -> StoredStudy:
    """Create a study, or continue the one of that name: as it is, or extended where only its budget grew.

    Any number of processes may do so at once. A study that was stopped goes on.

    Raises:
        StudyChangedError: if the stored study has other settings, listed.
        UsageError: if the name belongs to a study that floodsearch did not make, or that somebody renamed or
            copied by hand.
    """
    storage = database.optuna
    with tables.lease(database, spec.name, "create"):
        direction = optuna.study.StudyDirection[spec.search.direction.upper()]
        try:
            study_id = storage.get_study_id_from_name(spec.name)
        except KeyError:
            _refuse_renamed(database, spec.name)
            study_id = storage.create_new_study([direction], spec.name)
        attributes = storage.get_study_user_attrs(study_id)
        if SPEC not in attributes:
            if storage.get_n_trials(study_id) > 0 or storage.get_study_directions(study_id) != [direction]:
                raise UsageError(
                    f"study {spec.name!r} in {database.name} was not made by floodsearch; choose another name"
                )
            # The spec is written last: a creation that was cut short is simply made again.
            storage.set_study_system_attr(study_id, "study:metric_names", [spec.search.metric])
            storage.set_study_user_attr(study_id, UUID, attributes.get(UUID) or uuid.uuid4().hex)
            storage.set_study_user_attr(study_id, VERSIONS, json.dumps(versions()))
            storage.set_study_user_attr(study_id, SPEC, spec.model_dump_json())
        study = find_study(database, spec.name, trust_in(spec))
        study.require_unchanged()
        stored = _asked(storage.get_study_user_attrs(study_id), spec.name)
        if changed := differences(stored, spec):
            raise StudyChangedError(spec.name, changed)
        if stored != spec:
            storage.set_study_user_attr(study_id, SPEC, spec.model_dump_json())
        if study.stopped():
            study.stop(None)
        with database.write() as connection:
            trials.forgive(connection, study_id)  # whoever launches again has mended what failed
    return study.reread()


def _refuse_renamed(database: Database, name: str) -> None:
    """Raise if a study was made under a name and has another one now, because somebody renamed it.

    Without this its file would make a second study, and train all of it again.

    Raises:
        UsageError: that says how to name it as before.
    """
    with read_by_optuna("a study"):
        others = database.optuna.get_all_studies()
    for one in others:
        made = None
        with suppress(UsageError, DamagedError):  # of one that was changed by hand
            made = _asked(one.user_attrs, one.study_name).name if SPEC in one.user_attrs else None
        if made == name:
            find_study(database, one.study_name).require_unchanged()


def delete_study(study: StoredStudy) -> list[str]:
    """Remove a study with all its trials and curves.

    Nobody may have it open: SQLite gives its ids to the next study, and a process with the old one in its
    cache would mix them up.

    Returns:
        The names of other studies that have its data too, because somebody copied it. As long as there are
        any, only the trials go: the curves, workers and files stay for them.
    """
    with study.database.write() as connection:
        others = trials.sharing(connection, UUID, study.uuid)
        others.pop(study.id, None)
        if not others:
            schema.forget(connection, study.uuid)
    study.database.optuna.delete_study(study.id)
    return list(others.values())
