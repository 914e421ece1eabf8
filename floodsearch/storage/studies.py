"""Studies in a database: made, found, extended and read back as records."""

from __future__ import annotations

import json
import math
import platform
import shlex
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from floodsearch.answer.best import RUNG_VALIDATIONS, Question, recent_mean, seed_result, window_start
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
from floodsearch.records import (
    BY_HAND,
    ENDINGS,
    Attribute,
    EpochRecord,
    Parameter,
    Pilot,
    TicketState,
    TrialRecord,
    ended_by_us,
)
from floodsearch.search.pruners import PRUNERS
from floodsearch.search.samplers import SAMPLERS
from floodsearch.search.space import Space
from floodsearch.search.tickets import tickets
from floodsearch.storage import schema, tables, trials
from floodsearch.storage.database import Database
from floodsearch.storage.rows import flag, number, parsed, read_by_optuna, text, uuid_of, whole
from floodsearch.study.reader import fields_of
from floodsearch.study.spec import AUTO, Spec, differences, from_json
from floodsearch.study.trust import NOTHING, TrustedSpec, Trusts, trust_in

SPEC, UUID, VERSIONS, STOPPED, PILOT, ENGINE = (
    f"floodsearch:{name}" for name in ("spec", "uuid", "versions", "stopped", "pilot", "engine")
)
LEASE_SECONDS = 60

STATES: Mapping[TrialState, TicketState] = {
    TrialState.WAITING: "waiting",
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}


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
    def question(self) -> Question:
        """What the records of this study are asked."""
        search = self.spec.search
        return Question(
            study=self.name,
            metric=search.metric,
            maximize=self.spec.maximize,
            window=search.window,
            scale=None if self.pilot is None else self.pilot.bound,
            finds_level=SCHEDULES[self.spec.training.schedule].finds_level,
        )

    @property
    def folder(self) -> str:
        """Where its files lie below a folder for those of all studies; a name may come again elsewhere."""
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
        """Return what somebody changed of the study as a whole, and how to set it right; None if nothing."""
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
        """Refuse to write to a study that somebody renamed, copied or turned round.

        Raises:
            UsageError: that says what was changed, and how to set it right.
        """
        if (changed := self.changed()) is not None:
            raise UsageError(changed)

    def settle(self, pilot: Pilot) -> None:
        """Store what the pilot found."""
        self.database.optuna.set_study_user_attr(self.id, PILOT, json.dumps(asdict(pilot)))

    def settle_engine(self, engine: str) -> StoredStudy:
        """Return the study with an engine: the one it has, or else this one, from now on for all workers."""
        with lease(self.database, self.uuid, "engine"):
            now = self.reread()
            if now.engine is None:
                self.database.optuna.set_study_user_attr(self.id, ENGINE, engine)
        return self.reread()

    def stopped(self) -> str | None:
        """Return why no ticket is handed out any more, or None."""
        reason = _attributes(self.database, self.name, self.id).get(STOPPED)
        return text(reason, f"{STOPPED} of study {self.name!r}") if reason else None

    def stop(self, reason: str | None) -> None:
        """Hand out no more tickets, for a reason; with None, go on."""
        self.database.optuna.set_study_user_attr(self.id, STOPPED, reason or "")

    def optuna(
        self,
        sampler: optuna.samplers.BaseSampler | None = None,
        pruner: optuna.pruners.BasePruner | None = None,
    ) -> optuna.Study:
        """Return Optuna's object for this study."""
        return optuna.load_study(
            study_name=self.name, storage=self.database.optuna, sampler=sampler, pruner=pruner
        )


def versions() -> dict[str, str]:
    """Return the versions that decide what a result is."""
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
    """Yield what names of a stored spec are none, of which nothing may be looked up."""
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
    with lease(database, spec.name, "create"):
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
    """Refuse to make a study anew under the name that another had before it was renamed by hand."""
    with read_by_optuna("a study"):
        others = database.optuna.get_all_studies()
    for one in others:
        made = None
        with suppress(UsageError):  # of one that is damaged
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


@contextmanager
def lease(database: Database, study: str, name: str, *, seconds: float = LEASE_SECONDS) -> Iterator[None]:
    """Hold a lease, waiting for it; if its holder dies it runs out.

    Args:
        database: where the lease lies.
        study: our uuid of the study, or its name while it is being created.
        name: what must not be done by two at once.
        seconds: longer than the work under it takes.
    """
    holder = uuid.uuid4().hex
    while not tables.acquire_lease(database, study, name, holder, seconds):
        time.sleep(0.05)
    try:
        yield
    finally:
        tables.release_lease(database, study, name, holder)


def read_trials(study: StoredStudy, *, results: bool = True) -> list[TrialRecord]:
    """Return all trials of a study, in the order of their numbers.

    Args:
        study: which study.
        results: with what each seed came to, which reads the ends of the curves.
    """
    with read_by_optuna(f"a trial of study {study.name!r}"):
        found = study.database.optuna.get_all_trials(study.id, deepcopy=False)
    wanted = Wanted.of(study.spec)
    records = [record for trial in found if (record := record_of(trial, study, wanted)) is not None]
    if not results:
        return records
    return _with_results(study, records)


@dataclass(frozen=True)
class Wanted:
    """What the trials of a study may be: whatever else is in a row was changed by hand.

    Args:
        spec: of the study.
        tickets: what each evaluates; none while the pilot has to tell which there are.
        space: that open tickets are of; None as long.
    """

    spec: Spec
    tickets: Sequence[Mapping[str, Parameter] | None]
    space: Space | None

    @classmethod
    def of(cls, spec: Spec) -> Wanted:
        """Return what the trials of a study may be."""
        if spec.levels.high == AUTO:
            return cls(spec, (), None)
        return cls(spec, tickets(spec), Space.of(spec))

    def parameters_of(self, ticket: int) -> Mapping[str, Parameter]:
        """Return what a ticket evaluates; nothing where it is open, or is none."""
        return (self.tickets[ticket] if ticket < len(self.tickets) else None) or {}

    def wrong(self, record: TrialRecord) -> str | None:
        """Return what was changed by hand of a trial, or None."""
        if record.ticket >= len(self.tickets):
            there = len(self.tickets)
            return f"trial {record.trial} has ticket {record.ticket}, but there are {there} in this study"
        if record.epochs > self.spec.training.epochs or record.seeds > len(self.spec.training.seeds):
            asks = f"{record.epochs} epochs of {record.seeds} seeds"
            return f"trial {record.trial} asks for {asks}, which is more than the study does"
        given, fixed = dict(record.parameters), self.tickets[record.ticket]
        sound = given == fixed if fixed is not None else not given or self._holds(given)
        return None if sound else f"trial {record.trial} has parameters that are not its ticket's: {given}"

    def _holds(self, parameters: Mapping[str, Parameter]) -> bool:
        level = parameters.get("level")
        if self.space is None or isinstance(level, bool) or not isinstance(level, int | float):
            return False
        beside = {name: value for name, value in parameters.items() if name != "level"}
        return 0 <= level <= self.space.high and self.space.holds(beside)


def record_of(trial: FrozenTrial, study: StoredStudy, wanted: Wanted) -> TrialRecord | None:
    """Return one of Optuna's trials of a study; None if it is none of our tickets.

    One that somebody else ended, or changed so that it is not its ticket any more, has failed by hand.

    Raises:
        DamagedError: if an attribute of it cannot be what we wrote.
    """
    record = _record(trial, study.name)
    if record is None:
        return None
    if (why := wanted.wrong(record)) is None:
        if record.state not in ENDINGS or ended_by_us(record.state, trial.user_attrs.get(Attribute.CAUSE)):
            return record
        value = "" if trial.value is None else f", with the value {trial.value:g}"
        why = f"trial {record.trial} was told {record.state} by hand{value}"
    else:
        record = replace(record, parameters=wanted.parameters_of(record.ticket))
    return replace(record, state="failed", cause=BY_HAND, reason=why, value=None)


def _record(trial: FrozenTrial, study: str) -> TrialRecord | None:
    attributes = trial.user_attrs
    if Attribute.TICKET not in attributes:  # added by hand, with a dashboard or a script: not of our budget
        return None

    def where(key: Attribute) -> str:
        return f"{key.value} of trial {trial.number} of study {study!r}"

    def count(key: Attribute, least: int, missing: int | None = None) -> int:
        return whole(attributes.get(key, missing), where(key), least=least)

    def told(key: Attribute) -> str | None:
        return None if attributes.get(key) is None else text(attributes[key], where(key))

    reported = trial.intermediate_values
    epoch, state = max(reported, default=0), STATES[trial.state]
    value = trial.value if trial.state.is_finished() else reported.get(epoch)
    return TrialRecord(
        trial=trial.number,
        ticket=count(Attribute.TICKET, 0),
        state=state,
        parameters=dict(trial.params),
        epochs=count(Attribute.EPOCHS, 1),
        seeds=count(Attribute.SEEDS, 1),
        epoch=epoch,
        value=value if value is not None and math.isfinite(value) else None,
        attempt=count(Attribute.ATTEMPT, 1, 1),
        worker=None if attributes.get(Attribute.WORKER) is None else count(Attribute.WORKER, 0),
        revision=told(Attribute.REVISION),
        cause=None if state == "complete" else told(Attribute.CAUSE),
        reason=told(Attribute.REASON),
        handed_back=count(Attribute.HANDED_BACK, 0, 0),
        out_of_memory=count(Attribute.OUT_OF_MEMORY, 0, 0),
        flooded=None
        if (flooded := attributes.get(Attribute.FLOODED)) is None
        else flag(flooded, where(Attribute.FLOODED)),
    )


def _with_results(study: StoredStudy, records: list[TrialRecord]) -> list[TrialRecord]:
    """Add what each seed came to: at the end of the complete trials, and at the rungs where some ended."""
    ended = [record for record in records if _has_ended(record)]
    if not ended:
        return records
    rungs = sorted({record.epoch for record in ended})
    # Without pruning only the ends of the curves matter, which are a fifth of them, and the best epochs: a
    # task was tested there, but a loop of the user's own need not be.
    ends = len(rungs) == 1 and study.spec.task is not None
    curves = tables.read_curves(
        study.database,
        study.uuid,
        {record.ticket for record in ended},
        after=window_start(rungs[0], study.spec.search.window) if ends else 0,
        having=study.question.field,
    )
    by_seed: dict[tuple[int, int], list[EpochRecord]] = {}
    for ticket, curve in curves.items():
        for epoch_record in curve:
            by_seed.setdefault((ticket, epoch_record.seed), []).append(epoch_record)
    by_length = {
        length: sorted({record.epoch for record in ended if record.epochs == length})
        for length in {record.epochs for record in ended}
    }
    return [
        _with_seeds(study, record, by_length[record.epochs], by_seed) if _has_ended(record) else record
        for record in records
    ]


def _has_ended(record: TrialRecord) -> bool:
    """Return whether a trial has values at a rung that stay."""
    return record.state in ("complete", "pruned") and record.epoch > 0


def _with_seeds(
    study: StoredStudy,
    trial: TrialRecord,
    rungs: Sequence[int],
    by_seed: Mapping[tuple[int, int], Sequence[EpochRecord]],
) -> TrialRecord:
    """Add to an ended trial what its seeds came to; a curve that was deleted by hand leaves its seed out."""
    question, complete = study.question, trial.state == "complete"
    if complete and trial.epoch != trial.epochs:
        where = f"attribute 'epochs' of trial {trial.trial}"
        raise DamagedError(where, trial.epochs, f"{trial.epoch}, which is the last epoch that it reported")
    curves = [by_seed.get((trial.ticket, seed), []) for seed in study.spec.training.seeds[: trial.seeds]]
    whole = [curve for curve in curves if any(record.epoch == trial.epoch for record in curve)]
    reached = [rung for rung in rungs if rung <= trial.epoch] if len(whole) == trial.seeds else []
    return replace(
        trial,
        results=tuple(seed_result(curve, question, trial.epochs) for curve in whole) if complete else (),
        rungs={
            rung: tuple(
                recent_mean(curve, question, rung, at_least=1 if rung == trial.epochs else RUNG_VALIDATIONS)
                for curve in whole
            )
            for rung in reached
        },
    )
