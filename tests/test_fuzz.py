"""Whatever lies in the database or in a checkpoint, only our own errors come out, and they say what is wrong.

`FLOODSEARCH_FUZZ=10000 pytest tests/test_fuzz.py` tries that many inputs for each reader.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from optuna.storages._cached_storage import _CachedStorage

from floodsearch import queue
from floodsearch.artifacts.checkpoint import KIND, Checkpoint, Checkpoints, rows
from floodsearch.artifacts.files import Files, Folder
from floodsearch.artifacts.names import name_of
from floodsearch.catalog import known
from floodsearch.cost.forecast import plan
from floodsearch.errors import FloodsearchError, UsageError
from floodsearch.queries import answer, status
from floodsearch.records import Attribute
from floodsearch.report.export import curve_rows, trial_rows
from floodsearch.report.text import best_text, notes_text, status_text
from floodsearch.search.tickets import ticket_count
from floodsearch.storage.database import open_database
from floodsearch.storage.studies import find_study, put_study
from floodsearch.study.reader import parse, read
from floodsearch.tasks.synthetic import two_gaussians
from floodsearch.training.cohort import Cohort
from floodsearch.training.engine import Loop
from floodsearch.training.progress import Plan
from floodsearch.training.trunk import Trunks
from floodsearch.worker.leave import LeaveRequest
from floodsearch.worker.settings import WorkerSettings
from floodsearch.worker.work import work
from tests.conftest import TINY, merged

EXAMPLES = int(os.environ.get("FLOODSEARCH_FUZZ", "25"))
EXAMPLE = Path(__file__).parents[1] / "studies" / "two_gaussians_10.toml"
STUDY = merged(
    TINY,
    {
        "levels": {"low": 0.1, "high": 0.9, "count": 5},
        "training": {"schedule": "adaptive", "weight_decay": {"choices": [0.0, 1e-4]}},
        "adaptive": {"alpha": {"low": 0.01, "high": 0.02}},
        "search": {"sampler": "tpe", "trials": 4, "pruner": "halving", "metric": "val_loss"},
        "halving": {"levels": 4},
        "budget": {"epochs": 100, "hours": 1.5},
        "arithmetic": {"precision": "bf16"},
    },
)
fuzzed = settings(
    max_examples=EXAMPLES,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.generate],  # the first input that fails says enough
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
numbers = st.one_of(st.integers(), st.floats(), st.sampled_from([0, -1, 10**30, 1e400]))
plain = st.one_of(st.none(), st.booleans(), numbers, st.text(max_size=20))
values = st.recursive(plain, lambda inner: st.lists(inner) | st.dictionaries(st.text(max_size=8), inner))
texts = st.one_of(values.map(json.dumps), st.text(max_size=30))
"""What may stand in a column of JSON: mostly JSON of anything."""


class Trained:
    """A finished study in a file, which is changed by hand and put back as it was."""

    def __init__(self, folder: Path) -> None:
        self.url = f"sqlite:///{folder}/floodsearch.db"
        database = open_database(self.url, create=True)
        content = merged(TINY, {"levels": {"high": "auto", "count": 4}, "training": {"epochs": 6}})
        study = put_study(database, parse(content, known()))
        queue.fill(study)
        work(study, WorkerSettings(device="cpu", threads=1, checkpoints=folder), LeaveRequest())
        self.database = database
        self.engine = sqlalchemy.create_engine(self.url)

    def change(self, statement: str, **values: Any) -> Any:
        """Change rows; return what puts the whole table back."""
        table = statement.split()[1]
        with self.engine.begin() as connection:
            before = [
                dict(row) for row in connection.execute(sqlalchemy.text(f"SELECT * FROM {table}")).mappings()
            ]
            connection.execute(sqlalchemy.text(statement), values)

        def put_back() -> None:
            with self.engine.begin() as connection:
                connection.execute(sqlalchemy.text(f"DELETE FROM {table}"))
                names = ", ".join(f'"{name}"' for name in before[0])
                places = ", ".join(f":{name}" for name in before[0])
                connection.execute(
                    sqlalchemy.text(f"INSERT INTO {table} ({names}) VALUES ({places})"), before
                )

        return put_back

    def ask(self) -> None:
        """Ask all that anyone may ask."""
        # As a new process that has cached nothing, without its look at the tables, which takes the most time.
        database = replace(self.database, optuna=_CachedStorage(self.database.optuna._backend))
        try:
            study = find_study(database, "tiny")
            now = status(study, with_answer=True)
            status_text(now), notes_text(now)
            trial_rows(study), curve_rows(study)
            best_text(answer(study))
        except FloodsearchError as error:
            message = str(error)  # which must not fail either
            if not message:
                raise


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    one = Trained(tmp_path_factory.mktemp("fuzz"))
    yield one
    one.engine.dispose()
    one.database.close()


@fuzzed
@given(key=st.sampled_from(list(Attribute)), trial=st.integers(1, 4), text=texts)
def test_user_attributes_of_a_trial(trained: Trained, key: Attribute, trial: int, text: str) -> None:
    """Edited with a dashboard or a script: the study is read, or one line says which attribute is wrong."""
    put_back = trained.change(
        "UPDATE trial_user_attributes SET value_json = :text WHERE key = :key AND trial_id = :trial",
        text=text,
        key=key.value,
        trial=trial,
    )
    try:
        trained.ask()
    finally:
        put_back()


@fuzzed
@given(key=st.sampled_from(["spec", "uuid", "versions", "stopped", "pilot", "engine"]), text=texts)
def test_attributes_of_a_study(trained: Trained, key: str, text: str) -> None:
    put_back = trained.change(
        "UPDATE study_user_attributes SET value_json = :text WHERE key = :key",
        text=text,
        key=f"floodsearch:{key}",
    )
    try:
        trained.ask()
    finally:
        put_back()


COLUMNS = (
    "level",
    "train_loss",
    "train_accuracy",
    "flooded",
    "val_loss",
    "val_accuracy",
    "test_loss",
    "epoch",
)


@fuzzed
@given(
    column=st.sampled_from(COLUMNS),
    value=st.one_of(st.none(), st.floats(), st.integers(-(2**60), 2**60), st.text(max_size=5)),
    ticket=st.integers(0, 3),
)
def test_rows_of_the_curves(trained: Trained, column: str, value: Any, ticket: int) -> None:
    try:
        put_back = trained.change(
            f"UPDATE floodsearch_curves SET {column} = :value "
            "WHERE ticket = :ticket AND seed = 0 AND epoch = 6",
            value=value,
            ticket=ticket,
        )
    except sqlalchemy.exc.IntegrityError:
        return  # the table itself refuses it
    try:
        trained.ask()
    finally:
        put_back()


@fuzzed
@given(column=st.sampled_from(["training", "versions", "epochs_run", "last_beat"]), value=texts)
def test_rows_of_the_workers(trained: Trained, column: str, value: str) -> None:
    put_back = trained.change(f"UPDATE floodsearch_workers SET {column} = :value", value=value)
    try:
        trained.ask()
    finally:
        put_back()


def inner_keys(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the way to each part of nested containers."""
    parts = content.items() if isinstance(content, dict) else enumerate(content)
    for key, part in parts:
        yield (*path, key)
        if isinstance(part, dict | list | tuple):
            yield from inner_keys(part, (*path, key))


def changed(content: Any, path: tuple[Any, ...], value: Any) -> Any:
    """Return nested containers with one part replaced, or taken out if the value is `...`."""
    key, *rest = path
    items = dict(content) if isinstance(content, dict) else dict(enumerate(content))
    if not rest and value is ...:
        del items[key]
    else:
        items[key] = changed(items[key], tuple(rest), value) if rest else value
    return items if isinstance(content, dict) else type(content)(items.values())


TASK = two_gaussians(label_noise=0.1, width=4, depth=1)
DRAWN = TASK.drawn(0, torch.device("cpu"))


def cohort(files: Files) -> Cohort:
    """Return a cohort with checkpoints, as of a new process: one level that has forked, and one trunk."""
    every, task = Checkpoints(files), replace(TASK, data=lambda seed: DRAWN)
    plan = Plan(epochs=4, validate_every=1)
    trunks = Trunks(
        Loop(task, plan, torch.device("cpu")),
        kept=lambda seed, epoch: every.of(f"trunk-{seed}-{epoch}", {}),
        room=10**6,
    )
    return Cohort(
        task,
        plan,
        levels={0: 0.0, 1: 5.0},
        seeds={0: (0,), 1: (0,)},
        device=torch.device("cpu"),
        trunks=trunks,
        last=False,
        checkpoint=lambda member, seed: every.of(name_of(member, seed), {}),
    )


def forge(one: Checkpoint, content: Any) -> None:
    """Write the file of a checkpoint with any content, and the sum that goes with it."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    written = b"2\n" + buffer.getvalue()
    one.remove()
    digest = hashlib.sha256(written).hexdigest().encode()
    one.files.write(one.name, KIND, digest, b"\n", written, room=10**9)


@fuzzed
@given(data=st.data())
def test_content_of_a_checkpoint(tmp_path: Path, data: st.DataObject) -> None:
    """Whatever is in a file whose sum is right, runs are trained or fail: nothing else comes out."""
    files = Folder(tmp_path / "checkpoints")
    files.remove(*files.names("*"))  # of the input before
    first = cohort(files)
    first.train(2, lambda _: True)
    first.save()
    names = files.names("*.pt")
    assert len(names) > 1
    one = Checkpoint(files, data.draw(st.sampled_from(names)), {})
    content = one.load()
    assert content is not None
    if "records" in content:
        content["records"] = [list(row) for row in rows(content["records"])]
    path = data.draw(st.sampled_from(sorted(inner_keys(content), key=repr)))
    value = data.draw(st.one_of(values, st.just(...), st.builds(torch.zeros, st.integers(0, 3))))
    forge(one, changed({"of": {}, **content}, path, value))
    again = cohort(files)
    again.train(4, lambda _: True)
    for member in again.levels:
        with contextlib.suppress(Exception):  # of torch; a worker calls that the ticket's error
            again.tested(member)


@fuzzed
@given(data=st.data())
def test_content_of_a_study_file(tmp_path: Path, data: st.DataObject) -> None:
    """A file with anything in any place is a study, or has problems that are told."""
    path = data.draw(st.sampled_from(sorted(inner_keys(STUDY), key=repr)))
    content = changed(STUDY, path, data.draw(st.one_of(values, st.just(...))))
    if data.draw(st.booleans()):
        content[data.draw(st.text(max_size=8))] = data.draw(values)
    with contextlib.suppress(UsageError):
        spec = parse(content, known())
        ticket_count(spec), plan(spec)


@fuzzed
@given(data=st.data())
def test_bytes_of_a_study_file(tmp_path: Path, data: st.DataObject) -> None:
    whole = EXAMPLE.read_bytes()
    start, end = sorted(data.draw(st.tuples(st.integers(0, len(whole)), st.integers(0, len(whole)))))
    path = tmp_path / "study.toml"
    path.write_bytes(whole[:start] + data.draw(st.binary(max_size=20)) + whole[end:])
    with contextlib.suppress(UsageError):
        read(path, known())


@fuzzed
@given(data=st.data())
def test_bytes_of_a_checkpoint(tmp_path: Path, data: st.DataObject) -> None:
    """Anything in its file is as no checkpoint; so is what begins like one."""
    one = Checkpoint(Folder(tmp_path), "run.pt", {})
    one.remove()
    one.save({"weight": torch.zeros(3)})
    whole = (tmp_path / one.name).read_bytes()
    start, end = sorted(data.draw(st.tuples(st.integers(0, len(whole)), st.integers(0, len(whole)))))
    written = whole[:start] + data.draw(st.binary(max_size=50)) + whole[end:]
    (tmp_path / one.name).write_bytes(written)
    loaded = one.load()
    assert (loaded is None) == (written != whole)
