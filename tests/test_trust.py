"""trust: nothing that only the database names is imported, started or looked for, whatever happens when."""

from __future__ import annotations

import ast
import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from floodsearch import queue
from floodsearch.catalog import known
from floodsearch.errors import StudyChangedError, StudyFileError, UntrustedError, UsageError
from floodsearch.storage.database import Database, open_database
from floodsearch.storage.studies import SPEC, StoredStudy, find_study, find_study_of, put_study
from floodsearch.study.reader import parse
from floodsearch.study.spec import Choices, Spec
from floodsearch.study.trust import DIGITS, given, token_of, trust_by, trust_in
from floodsearch.worker.leave import LeaveRequest
from floodsearch.worker.settings import WorkerSettings
from floodsearch.worker.work import work
from tests.conftest import TINY, merged

RACES = int(os.environ.get("FLOODSEARCH_RACES", "48"))
"""How many schedules of a race are tried; 270 are all of them."""
HERE = WorkerSettings(device="cpu", threads=1)
LOOP: Mapping[str, Any] = {"name": "tiny", "objective": "my_code:train", "levels": {"high": 0.5, "count": 2}}

CODE = """
import pathlib, sys
from floodsearch.tasks.synthetic import two_gaussians
from floodsearch.tasks.task import build_optimizer, Recipe
from dataclasses import replace

SAID = pathlib.Path(__file__).with_name("said")

def say(what):
    with SAID.open("a") as file:
        file.write(f"{what}\\n")

def optimizer(parameters, recipe):
    say(f"batches of {recipe.batch_size}")
    return build_optimizer(parameters, recipe)

def task(*, width: int = 4):
    say(f"width {width}{' stolen' if '--steal' in sys.argv else ''}")
    return replace(two_gaussians(width=width, depth=1), optimizer=optimizer)

def steal(**options):
    say("stolen")
    return task()

def train(run):
    say("stolen")
"""


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Database]:
    database = open_database(f"sqlite:///{tmp_path}/floodsearch.db", create=True)
    yield database
    database.close()


def spec_of(**changes: Any) -> Spec:
    """Return a spec as one that is stored: its code is not looked for."""
    return Spec.model_validate({"name": "tiny", "task": "my_code:task", "levels": {"high": 0.5}} | changes)


def store(study: StoredStudy, spec: Spec) -> None:
    """Change what a study asks, as anyone may who can write to the database."""
    study.database.optuna.set_study_user_attr(study.id, SPEC, spec.model_dump_json())


def test_a_token_is_of_one_function_and_its_arguments() -> None:
    """Every part that decides what is run with what gives another token; a study that grew has the same."""
    plain = spec_of(options={"width": 4}, training={"recipe": {"batch_size": 10}})
    others = [
        spec_of(task="my_code:other", options={"width": 4}, training={"recipe": {"batch_size": 10}}),
        spec_of(options={"width": 5}, training={"recipe": {"batch_size": 10}}),
        spec_of(options={"width": 4}, training={"recipe": {"batch_size": 11}}),
        spec_of(options={"width": 4}, training={"recipe": {"batch_size": Choices(choices=(10, 11))}}),
        spec_of(options={"width": 4}, training={"recipe": {"batch_size": 10}}, arguments=["--fast"]),
        spec_of(options={"width": 4}, training={"recipe": {"batch_size": 10}}, arguments=["--fast", ""]),
        spec_of(task=None, objective="my_code:task", options={"width": 4}),
        spec_of(task=None, command="train {level} {seed}"),
        spec_of(task=None, command="train {level} {seed} --fast"),
    ]
    tokens = [token_of(one) for one in (plain, *others)]
    assert len(set(tokens)) == len(tokens)
    assert str(tokens[0]).startswith("my_code:task@")
    assert str(tokens[-1]).startswith("command@")
    grown = plain.model_copy(update={"training": plain.training.model_copy(update={"epochs": 900})})
    assert token_of(grown) == tokens[0]
    assert token_of(Spec.model_validate_json(plain.model_dump_json())) == tokens[0]


def test_a_built_in_task_needs_no_trust_but_for_a_folder() -> None:
    """A row that names `data_dir` would have a worker read there, or download to it."""
    assert token_of(spec_of(task="mnist")) is None
    assert (
        token_of(parse({"name": "m", "task": "mnist", "levels": {"high": 0.5, "count": 3}}, known())) is None
    )
    elsewhere = spec_of(task="mnist", options={"data_dir": "/etc", "download": True})
    assert str(token_of(elsewhere)).startswith("mnist@")


@pytest.mark.parametrize("token", ["my_code", "my_code:task", "command", "echo {level}", "my_code:task@1234"])
def test_a_token_without_arguments_is_refused_with_what_to_write(token: str) -> None:
    with pytest.raises(UsageError, match="write --trust MODULE:FUNCTION@DIGEST"):
        trust_by([token])


def test_the_refusal_shows_all_that_is_asked_for_in_a_line_that_no_terminal_obeys() -> None:
    """The reference, every argument, and the token that would trust exactly these."""
    spec = spec_of(options={"args": "\x1b[2Jrm -rf ~\x7f\u202e\n'", "shell": True})
    with pytest.raises(UntrustedError) as refused:
        trust_by([]).allow(spec)
    message = str(refused.value)
    assert message.isascii()
    assert message.isprintable()
    for part in ('"my_code:task"', '"args": "\\u001b[2Jrm -rf ~\\u007f\\u202e\\n\'"', '"shell": true'):
        assert part in message
    token = message.partition("--trust ")[2].partition(",")[0]
    assert trust_by([token]).allow(spec).spec is spec
    assert len(token.partition("@")[2]) == DIGITS


CHANGES: Mapping[str, Mapping[str, Any]] = {
    "another function": {"task": "MODULE:steal", "options": {"args": "id", "shell": True}},
    "another module": {"task": "os:system", "options": {"command": "touch stolen"}},
    "a package": {"task": "evil.inner:task"},
    "other options": {"options": {"width": 6}},
    "other arguments": {"arguments": ["--steal"]},
    "another recipe": {"training": {"recipe": {"batch_size": 7}}},
    "a loop": {"task": None, "objective": "MODULE:train"},
    "a command": {"task": None, "command": "touch stolen"},
    "a task and a command": {"command": "touch stolen"},
}
READS = 15
"""A worker reads its study about so often on this schedule."""
SCHEDULES = [
    (change, read, stays) for read, change, stays in itertools.product(range(READS), CHANGES, (True, False))
]


@pytest.fixture
def module(write_code: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Write the user's code, and a package that says when it is imported."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil" / "__init__.py").write_text(
        "import pathlib; (pathlib.Path(__file__).parent.parent / 'stolen').touch()"
    )
    return write_code(CODE)


def test_a_race_with_any_read_of_the_study_runs_nothing(
    opened: Database, module: str, tmp_path: Path
) -> None:
    """The trust race: whenever the study is read, what it names has just been changed, for good or for once.

    `FLOODSEARCH_RACES=270 pytest tests/test_trust.py -k race` tries all schedules.
    """
    content = merged(
        TINY,
        {
            "task": f"{module}:task",
            "options": {"width": 4, "label_noise": None, "depth": None},
            "levels": {"count": 2},
            "training": {"epochs": 1, "seeds": 1, "validate_every": 1, "batch_size": 50},
        },
    )
    storage: Any = opened.optuna
    plain = storage.get_study_user_attrs
    stride = max(1, len(SCHEDULES) // RACES)
    met, reads = 0, []
    for number, (change, at, stays) in enumerate(SCHEDULES[::stride]):
        spec = parse(merged(content, {"name": f"race-{number}"}), known())
        queue.fill(put_study(opened, spec))
        changed = json.loads(json.dumps(CHANGES[change]).replace("MODULE", module))
        bad = Spec.model_validate(
            merged(spec.model_dump(), changed) | {"options": changed.get("options", {})}
        )
        seen = itertools.count()

        def read(study_id: int, good: Spec = spec, bad: Spec = bad, at: int = at, stays: bool = stays) -> Any:
            now = next(seen)  # noqa: B023 - called in this round
            if now == at or (now == at + 1 and not stays):
                text = (bad if now == at else good).model_dump_json()
                storage.set_study_user_attr(study_id, SPEC, text)
            return plain(study_id)

        storage.get_study_user_attrs = read
        try:
            work(find_study(opened, spec.name, trust_in(spec)), HERE, LeaveRequest())
        except UsageError:
            met += 1
        finally:
            storage.get_study_user_attrs = plain
        reads.append(next(seen))
    assert set((tmp_path / "said").read_text().split("\n")) == {"width 4", "batches of 50", ""}
    assert not (tmp_path / "stolen").exists()
    assert met > len(reads) / 2  # most of them met a worker that was still reading


@pytest.mark.parametrize("change", CHANGES)
def test_without_trust_nothing_is_looked_for(
    opened: Database, module: str, tmp_path: Path, change: str
) -> None:
    """Not even the packages around a module: to find a file in them imports them."""
    changed = json.loads(json.dumps(CHANGES[change]).replace("MODULE", module))
    spec = Spec.model_validate(merged(spec_of(task=f"{module}:task").model_dump(), changed))
    put_study(opened, spec_of())
    store(find_study(opened, "tiny"), spec)
    both = change == "a task and a command"
    with pytest.raises(StudyFileError if both else UntrustedError):
        work(find_study(opened, "tiny"), HERE, LeaveRequest())
    assert not (tmp_path / "stolen").exists()
    assert not (tmp_path / "said").exists()


def test_a_folder_that_only_a_row_names_is_not_read(opened: Database, tmp_path: Path) -> None:
    spec = spec_of(task="mnist", options={"data_dir": str(tmp_path / "data")}, training={"epochs": 5})
    queue.fill(put_study(opened, spec))
    with pytest.raises(UntrustedError, match="mnist@"):
        work(find_study(opened, "tiny"), HERE, LeaveRequest())
    assert not (tmp_path / "data").exists()


def test_a_study_file_trusts_the_study_that_it_made(opened: Database) -> None:
    """Also one that has grown, and the file of one that has not; any other is refused with what differs."""
    small, large = (spec_of(training={"epochs": epochs}) for epochs in (10, 20))
    for stored, file in ((small, large), (large, small)):
        queue.fill(study := put_study(opened, stored))
        assert find_study_of(opened, file).trusted.spec == stored
        store(study, spec_of(task="my_code:steal", training={"epochs": 20}))
        with pytest.raises(StudyChangedError, match='task: "my_code:steal" before, "my_code:task" now'):
            find_study_of(opened, file)
        store(study, stored)


def test_workers_are_started_with_the_trust_of_the_study_file(opened: Database) -> None:
    """A launch hands on what the person gave, not what the database says by then."""
    spec = spec_of()
    study = put_study(opened, spec)
    store(study, spec_of(task="my_code:steal"))
    assert study.trusts == trust_in(spec)
    with pytest.raises(StudyChangedError, match="changed by hand"):
        study.reread()


def test_only_one_module_makes_what_code_is_resolved_by() -> None:
    """No other can forget to ask: what imports takes a `TrustedSpec`, or what a person has given here.

    That is a reference of a study file, or a function that is here already.
    """
    package = Path(__file__).parents[1] / "floodsearch"
    allowed = {
        "TrustedSpec": {"study/trust.py"},
        "find_code": {"catalog.py", "tasks/task.py"},
        "file_of": {"catalog.py", "usercode/function.py", "usercode/reference.py"},
        "find_spec": {"cli/init.py", "loggers/table.py", "usercode/reference.py"},
        "import_module": {"usercode/reference.py", "__init__.py", "search/__init__.py"},
        "build_task": {"catalog.py"},
        "find_task": {"catalog.py", "tasks/task.py"},
        "describe_task": {"catalog.py", "study/trained.py"},
        "find_loop": {"catalog.py", "study/trained.py"},
        "Script": {"worker/loops.py"},
        "given": {"cost/throughput.py", "cost/unflooded.py", "tryout/rehearse.py"},
    }
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "id", getattr(node.func, "attr", ""))
                where = str(path.relative_to(package))
                assert where in allowed.get(name, {where}), f"{where} calls {name}"


def test_what_a_person_gave_is_trusted() -> None:
    assert given(spec_of()).spec == spec_of()
    assert LOOP["objective"] in str(token_of(Spec.model_validate(LOOP)))
