"""Studies in a database: made, found, extended and read back as records."""

from __future__ import annotations

import json
import math
import platform
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from floodsearch.analysis import RUNG_VALIDATIONS, Question, recent_mean, seed_result, window_start
from floodsearch.errors import DamagedError, StudyChangedError, UnknownStudyError, UsageError
from floodsearch.records import Attribute, EpochRecord, Pilot, TicketState, TrialRecord
from floodsearch.spec import AUTO, Spec, differences, from_json
from floodsearch.storage import tables, trials
from floodsearch.storage.database import Database
from floodsearch.storage.rows import flag, number, parsed, read_by_optuna, text, whole
from floodsearch.studyfile import ONE_LEVEL

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
    """

    database: Database
    name: str
    id: int
    uuid: str
    spec: Spec
    pilot: Pilot | None = None
    engine: str | None = None

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
            finds_level=self.spec.training.schedule in ONE_LEVEL,
        )

    @property
    def folder(self) -> str:
        """Where its files lie below a folder for those of all studies; a name may come again elsewhere."""
        return f"{self.name}/{self.uuid[:8]}"

    def reread(self) -> StoredStudy:
        """Return the study with its spec as it is now: someone may have extended it."""
        return _study(self.database, self.name, self.id)

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


def find_study(database: Database, name: str) -> StoredStudy:
    """Return a study by its name.

    Raises:
        UnknownStudyError: if there is none, naming those that are there.
    """
    try:
        study_id = database.optuna.get_study_id_from_name(name)
    except KeyError:
        raise UnknownStudyError(name, study_names(database), database.name) from None
    return _study(database, name, study_id)


def _attributes(database: Database, name: str, study_id: int) -> dict[str, Any]:
    with read_by_optuna(f"study {name!r}"):
        return database.optuna.get_study_user_attrs(study_id)


def _study(database: Database, name: str, study_id: int) -> StoredStudy:
    attributes = _attributes(database, name, study_id)
    if SPEC not in attributes or UUID not in attributes:
        raise UnknownStudyError(name, study_names(database), database.name)
    of = f"of study {name!r}"
    spec, uuid_of = _asked(attributes, name), text(attributes[UUID], f"{UUID} {of}")
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
    return StoredStudy(database, name, study_id, uuid_of, spec, pilot, None if engine == AUTO else engine)


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
    return from_json(text(attributes[SPEC], where), where)


def put_study(database: Database, spec: Spec) -> StoredStudy:
    """Create a study, or continue the one of that name: as it is, or extended where only its budget grew.

    Any number of processes may do so at once. A study that was stopped goes on.

    Raises:
        StudyChangedError: if the stored study has other settings, listed.
        UsageError: if the name belongs to a study that floodsearch did not make.
    """
    storage = database.optuna
    with lease(database, spec.name, "create"):
        direction = optuna.study.StudyDirection[spec.search.direction.upper()]
        try:
            study_id = storage.get_study_id_from_name(spec.name)
        except KeyError:
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
        study = find_study(database, spec.name)
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


def delete_study(study: StoredStudy) -> None:
    """Remove a study with all its trials and curves.

    Nobody may have it open: SQLite gives its ids to the next study, and a process with the old one in its
    cache would mix them up.
    """
    with study.database.write() as connection:
        tables.forget(connection, study.uuid)
    study.database.optuna.delete_study(study.id)


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
    records = [record for trial in found if (record := _record(trial, study.name)) is not None]
    if not results:
        return records
    return _with_results(study, records)


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
    epoch = max(reported, default=0)
    value = trial.value if trial.state.is_finished() else reported.get(epoch)
    return TrialRecord(
        number=trial.number,
        ticket=count(Attribute.TICKET, 0),
        state=STATES[trial.state],
        parameters=dict(trial.params),
        epochs=count(Attribute.EPOCHS, 1),
        seeds=count(Attribute.SEEDS, 1),
        epoch=epoch,
        value=value if value is not None and math.isfinite(value) else None,
        attempt=count(Attribute.ATTEMPT, 1, 1),
        worker=None if attributes.get(Attribute.WORKER) is None else count(Attribute.WORKER, 0),
        revision=told(Attribute.REVISION),
        cause=told(Attribute.CAUSE),
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
        where = f"attribute 'epochs' of trial {trial.number}"
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
