"""What tests share: real databases, tiny studies, and a device that does not take all cores."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import importlib
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy

from floodsearch.catalog import known
from floodsearch.defaults import REPRODUCIBLE
from floodsearch.storage.database import Database, open_database
from floodsearch.study.reader import parse
from floodsearch.study.spec import Spec
from tests.zygote import CODES, Zygote

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: tests run side by side
os.environ.setdefault(*REPRODUCIBLE)  # as workers do
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's background: commands would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

TINY: Mapping[str, Any] = {
    "name": "tiny",
    "task": "two_gaussians",
    "options": {"label_noise": 0.1, "width": 8, "depth": 1},
    "levels": {"high": 0.5, "count": 3},
    "training": {"epochs": 10, "seeds": 2, "validate_every": 2},
    "search": {"pruner": "none"},
}
"""A study file of three levels, two seeds and ten epochs of a model of eight units: a fifth of a second."""


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a study file's content with some tables changed; a None removes its key."""
    result = copy.deepcopy(dict(base))
    for key, value in changes.items():
        if isinstance(value, Mapping):
            result[key] = merged(result.get(key, {}), value)
        elif value is None:
            result.pop(key, None)
        else:
            result[key] = value
    return result


def pytest_xdist_auto_num_workers() -> int:
    """Return how many processes run the tests: one more than there are cores, as tests wait for others."""
    return 1 + (os.cpu_count() or 1)


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Let nothing that a command sets outlast its test: commands run in this process.

    That is variables of ours, handlers of signals, and from which level on our loggers speak.
    """
    variables, numbers = set(os.environ), (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    handlers = {number: signal.getsignal(number) for number in numbers}
    ours, level = logging.getLogger("floodsearch"), logging.getLogger("floodsearch").level
    yield
    ours.setLevel(level)
    for name in set(os.environ) - variables:
        if name.startswith("FLOODSEARCH_"):
            del os.environ[name]
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session", autouse=True)
def zygote() -> Iterator[Zygote]:
    """Let commands of ours be forks of a process that has imported everything."""
    one = Zygote()
    CODES.add(CROWD)
    one.install()
    yield one
    one.end()


@pytest.fixture(autouse=True)
def own_interpreter(request: pytest.FixtureRequest, zygote: Zygote) -> Iterator[None]:
    """Let commands of a test that is marked so start as users' do, with an interpreter of their own."""
    zygote.active = request.node.get_closest_marker("own_interpreter") is None
    yield
    zygote.active = True


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Let torch compute in one thread, also where a worker that is called here has chosen more."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def write_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Write a module of the user's own, importable here and by workers; give its name."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)

    def write(source: str, prefix: str = "users") -> str:
        module = f"{prefix}_{uuid.uuid4().hex}"
        (tmp_path / f"{module}.py").write_text(source)
        importlib.invalidate_caches()
        return module

    return write


@pytest.fixture
def make_spec() -> Callable[..., Spec]:
    """Make a spec from the tiny study, with some tables changed.

    Tasks are not rehearsed: those of tests of workers fail, or wait, on purpose.
    """
    names = dataclasses.replace(known(), rehearse=lambda *_: iter(()))

    def make(**changes: Any) -> Spec:
        return parse(merged(TINY, changes), names)

    return make


def postgres_binaries() -> Path | None:
    """Return the folder of PostgreSQL's server binaries, the newest if there are several."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: float(path.parts[-3]))
    if found:
        return found[-1].parent
    on_path = shutil.which("initdb")
    return Path(on_path).parent if on_path else None


@contextlib.contextmanager
def private_postgres() -> Iterator[tuple[str, Callable[[str], None]]]:
    """Give a PostgreSQL server of our own on loopback: its URL, and what is told to `stop` or `start` it."""
    binaries = postgres_binaries()
    if binaries is None:
        pytest.skip("no PostgreSQL: set FLOODSEARCH_TEST_POSTGRES, or install Debian's package postgresql")
    # Not below pytest's own folder: another session of pytest would close that to the server's user.
    folder = Path(tempfile.mkdtemp(prefix="floodsearch-postgres-"))
    as_user: list[str] = []
    if os.getuid() == 0:  # the server refuses to run as root
        shutil.chown(folder, "postgres", "postgres")
        as_user = ["runuser", "-u", "postgres", "--"]

    def run(program: str, *arguments: str | Path) -> None:
        command = [*as_user, binaries / program, "-D", folder / "data", *arguments]
        subprocess.run(command, check=True, capture_output=True, cwd="/")

    run("initdb", "-A", "trust", "--no-sync", "-U", "floodsearch", "-E", "UTF8", "--locale=C")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off"

    def control(action: str) -> None:
        if action == "start":
            run("pg_ctl", "-w", "-s", "-l", folder / "log", "-o", options, "start")
        else:
            run("pg_ctl", "-m", "immediate", "-s", "stop")

    try:
        control("start")
        yield f"postgresql://floodsearch@127.0.0.1:{port}/postgres", control
    finally:
        control("stop")
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    """Give the URL of a PostgreSQL server: one that is named, or a private one."""
    if named := os.environ.get("FLOODSEARCH_TEST_POSTGRES"):
        yield named
        return
    with private_postgres() as (url, _):
        yield url


@pytest.fixture
def postgres_url(postgres_server: str) -> Iterator[str]:
    """Give the URL of a new, empty PostgreSQL database."""
    name = f"test_{uuid.uuid4().hex}"
    server = sqlalchemy.make_url(postgres_server).set(drivername="postgresql+psycopg")
    engine = sqlalchemy.create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    yield server.set(drivername="postgresql", database=name).render_as_string(hide_password=False)
    with engine.connect() as connection:
        connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")
    engine.dispose()


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def storage_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Give the URL of a new, empty database, once of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/floodsearch.db"
    return str(request.getfixturevalue("postgres_url"))


@pytest.fixture(scope="session")
def made_tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give an SQLite file with all tables and no study: to copy it is cheaper than to make them."""
    path = tmp_path_factory.mktemp("tables") / "floodsearch.db"
    open_database(f"sqlite:///{path}", create=True).close()
    return path


@pytest.fixture
def database(storage_url: str, made_tables: Path) -> Iterator[Database]:
    """Give an open database with all tables and no study."""
    if storage_url.startswith("sqlite"):
        shutil.copy(made_tables, storage_url.removeprefix("sqlite:///"))
    opened = open_database(storage_url, create=True)
    yield opened
    opened.close()


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., tuple[int, str, str]]]:
    """Run the command line in this process; give its exit status, and what it printed to both streams."""
    from floodsearch import cli

    loggers = [logging.getLogger(name) for name in ("floodsearch", "optuna.storages")]
    levels = [logger.level for logger in loggers]
    path = list(sys.path)

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["floodsearch", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0), *capsys.readouterr()

    yield run
    sys.path[:] = path
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


CROWD = """
import json, os, sys, traceback
source, count, arguments = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
names = {}
exec(compile(source, "<crowd>", "exec"), names)
start, go = os.pipe()
pids, answers = [], []
for index in range(count):
    answer, to_parent = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(go)
        os.read(start, 1)
        status = 1
        try:
            with os.fdopen(to_parent, "w") as stream:
                json.dump(names["main"](index, *arguments), stream)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    os.close(to_parent)
    pids.append(pid)
    answers.append(os.fdopen(answer))
print(json.dumps(pids), flush=True)
os.close(go)
texts = [stream.read() for stream in answers]
statuses = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
print(json.dumps([json.loads(text) if text else None for text in texts]))
sys.exit(any(status > 0 for status in statuses))
"""


class Crowd:
    """Several processes that begin at the same moment; each answers what its `main(index, ...)` returns."""

    def __init__(self, code: str, count: int, *arguments: str, **environment: str) -> None:
        # The imports of `code` are done once, before the processes part, which saves a second for each.
        self.process = subprocess.Popen(
            [sys.executable, "-c", CROWD, code, str(count), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        assert self.process.stdout is not None
        first = self.process.stdout.readline()
        assert first, self.process.communicate()[1]
        self.pids: list[int] = json.loads(first)

    def answers(self, seconds: float = 120) -> list[Any]:
        """Wait for all; the answer of a process that was killed is None. Fails if one of them raised."""
        out, errors = self.process.communicate(timeout=seconds)
        assert self.process.returncode == 0, errors
        answers: list[Any] = json.loads(out)
        return answers

    def end(self) -> None:
        """Kill what is left."""
        if self.process.poll() is None:
            for pid in self.pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.communicate(timeout=30)


@pytest.fixture
def crowd() -> Iterator[Callable[..., Crowd]]:
    """Start processes at once: `crowd(code, count, *arguments)`, where `code` defines `main(index, ...)`."""
    started: list[Crowd] = []

    def start(code: str, count: int, *arguments: str, **environment: str) -> Crowd:
        started.append(Crowd(code, count, *arguments, **environment))
        return started[-1]

    yield start
    for one in started:
        one.end()


@pytest.fixture
def eventually() -> Callable[..., Any]:
    """Wait until a condition holds and return its value; the test fails if it takes longer than a minute."""

    def wait(condition: Callable[[], Any], what: str = "the condition", seconds: float = 60) -> Any:
        deadline = time.monotonic() + seconds
        while not (value := condition()):
            assert time.monotonic() < deadline, f"{what} did not come true within {seconds} s"
            time.sleep(0.02)
        return value

    return wait
