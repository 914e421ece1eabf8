"""Where things lie: homes, links, odd folders, the user's code and its surroundings, logs."""

from __future__ import annotations

import codecs
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from floodsearch import queue
from floodsearch.artifacts.files import Folder, expanded, files_at
from floodsearch.errors import TaskError, UsageError
from floodsearch.launchers import local
from floodsearch.launchers.crew import Crew
from floodsearch.storage.database import open_database
from floodsearch.storage.studies import put_study
from floodsearch.usercode import reference as imports
from floodsearch.usercode.command import located, missing_script, script_file
from floodsearch.usercode.reference import beside, find_code, own_folders, search_in
from floodsearch.worker.leave import LeaveRequest
from floodsearch.worker.settings import WorkerSettings
from floodsearch.worker.work import work

STUDY = """
name = "mine"
objective = "{module}:train"
[levels]
high = 0.5
count = 3
[training]
epochs = 2
seeds = 1
[search]
pruner = "none"
"""
LOOP = """
def train(run):
    run.restore()
    for epoch in run.epochs():
        run.report(val_accuracy=0.5 + run.level / 10)
"""
SCRIPT = """
import json, os, sys
print(os.getcwd(), *sys.argv)
for epoch in (1, 2):
    print(json.dumps({"epoch": epoch, "val_accuracy": 0.5}))
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Give a home folder, and another one that is the current folder."""
    (tmp_path / "home").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "home"


def write(folder, module="users_loop", name="mine.toml"):
    """Write a study file with its loop beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{module}.py").write_text(LOOP)
    (folder / name).write_text(STUDY.format(module=module))
    return folder / name


# --- homes, the current folder, odd folders


def test_a_home_is_found_in_every_path(home, command, monkeypatch):
    """Of study files, checkpoints, logs and what is written; also in the environment's."""
    write(home / "studies")
    for name in ("CHECKPOINTS", "LOGS"):
        monkeypatch.setenv(f"FLOODSEARCH_{name}", f"~/{name.lower()}")
    (home / "logs" / "mine").mkdir(parents=True)
    (home / "logs" / "mine" / "worker-0.log").write_text("a line\n")
    assert command("create", "~/studies/mine.toml")[0] == 0
    assert command("logs", "mine")[1] == "worker-0: a line\n"
    assert command("logs", "mine", "--logs=~/logs")[1] == "worker-0: a line\n"
    assert command("export", "mine", "--out=~/rows.csv")[0] == 0
    assert (home / "rows.csv").exists()
    files = files_at("~/checkpoints").within("mine")
    files.write("x", b"", room=1)
    assert (home / "checkpoints" / "mine" / "x").exists()
    assert [path.name for path in Path.cwd().iterdir()] == ["floodsearch.db"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "~nobody-of-that-name/x.toml"],
        ["work", "~nobody-of-that-name/x.toml"],
        ["launch", "mine.toml", "--checkpoints=~nobody-of-that-name/x"],
        ["launch", "mine.toml", "--logs=~nobody-of-that-name/x"],
        ["export", "mine", "--out", "~nobody-of-that-name/x"],
    ],
    ids=" ".join,
)
def test_the_home_of_nobody_is_one_line(home, command, arguments):
    """Nothing is made in a folder that is called `~nobody`."""
    write(Path.cwd())
    code, out, errors = command(*arguments)
    assert (code, out) == (2, "")
    assert "the home ~nobody-of-that-name is not known; write it out" in errors
    assert len(errors.splitlines()) == 1
    assert not list(Path.cwd().glob("~*"))


def test_a_task_says_that_its_data_are_in_the_home_of_nobody(home, make_spec):
    """`data_dir` is looked at before anything is trained."""
    with pytest.raises(UsageError, match="the home ~nobody-of-that-name is not known"):
        make_spec(task="mnist", options={"data_dir": "~nobody-of-that-name/x", "width": None, "depth": None})


def test_paths_need_no_home(monkeypatch):
    """Where HOME is not set, it is the one that the system knows."""
    monkeypatch.delenv("HOME")
    assert expanded(Path("~/x")).is_absolute()
    assert expanded(Path("x/~")) == Path("x/~")


@pytest.mark.parametrize(
    "arguments", [["status"], ["launch", "x.toml"], ["work", "mine"], ["--help"]], ids=" ".join
)
def test_a_deleted_current_folder_is_one_line(tmp_path, command, monkeypatch, arguments):
    """Every command says so before anything else fails on it."""
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    code, out, errors = command(*arguments)
    monkeypatch.chdir(tmp_path)
    assert (code, out) == (2, "")
    said = "floodsearch: the current folder cannot be used (No such file or directory); cd to another one\n"
    assert errors == said


@pytest.mark.parametrize(
    "name", ["two words", "a:b#c", "-dash", "quo'te\"s 100%20", "~ naïve 学習 {level} $HOME"]
)
def test_a_folder_may_have_any_name(tmp_path, command, monkeypatch, name):
    """A study in it is created with its code, seen from it, and its files lie in it."""
    path = write(tmp_path / name, module=f"users_loop_{abs(hash(name))}")
    monkeypatch.chdir(path.parent)
    assert command("create", "mine.toml")[0] == 0
    assert command("check", path)[0] == 0
    assert "3 waiting" in command("status", "mine")[1]
    assert {one.name for one in path.parent.iterdir()} >= {"floodsearch.db", "mine.toml"}


# --- study files


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_a_study_file_may_begin_with_the_mark_of_an_editor(home, command, ending):
    """A byte order mark is no part of it, nor of a file with the storage's URL."""
    path = write(Path.cwd())
    path.write_bytes(codecs.BOM_UTF8 + path.read_text().replace("\n", ending).encode())
    assert command("check", "mine.toml")[0] == 0


def test_a_secret_file_may_begin_with_the_mark_of_an_editor(home, command, monkeypatch):
    """The URL in it is read without the mark."""
    Path("url").write_bytes(codecs.BOM_UTF8 + b"sqlite:///nowhere.db\n")
    monkeypatch.delenv("FLOODSEARCH_STORAGE", raising=False)
    monkeypatch.setenv("FLOODSEARCH_STORAGE_FILE", "url")
    code, _, errors = command("status")
    monkeypatch.delenv("FLOODSEARCH_STORAGE", raising=False)
    assert code == 2
    assert "sqlite:///nowhere.db does not exist" in errors


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "latin-1"])
def test_a_study_file_in_another_encoding_is_one_line(home, command, encoding):
    """It says to save the file as UTF-8."""
    Path("mine.toml").write_bytes('name = "naïve"'.encode(encoding))
    code, _, errors = command("check", "mine.toml")
    assert code == 2
    assert "is not UTF-8; save it as UTF-8" in errors


@pytest.mark.parametrize("where", ["link", "target"])
def test_a_link_to_a_study_file_finds_code_beside_both(home, command, where):
    """Beside the link first, then beside the file that it links to."""
    module = f"users_{where}"
    path = write(home / "studies", module)
    Path("links").mkdir()
    Path("links/mine.toml").symlink_to(path)
    if where == "link":
        (home / "studies" / f"{module}.py").rename(f"links/{module}.py")
    assert command("check", "links/mine.toml")[0] == 0
    assert beside(Path("links/mine.toml")) == (Path("links").absolute(), home / "studies", Path.cwd())


# --- the surroundings of user code


def test_python_has_its_own_modules_first(tmp_path, monkeypatch):
    """A file of the user's may be called like a module of Python's, and comes before installed packages."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("secrets", "users_own", "typer"):
        (tmp_path / f"{name}.py").write_text("")
    search_in([tmp_path])
    found = {
        name: imports.importlib.machinery.PathFinder.find_spec(name)
        for name in ("secrets", "users_own", "typer")
    }
    assert found["secrets"].origin == str(Path(os.__file__).with_name("secrets.py"))
    assert found["users_own"].origin == str(tmp_path / "users_own.py")
    assert found["typer"].origin == str(tmp_path / "typer.py")
    assert tmp_path in own_folders()
    assert not {Path(os.__file__).parent, Path(pytest.__file__).parents[1]} & set(own_folders())


@pytest.mark.parametrize("reference", ["secrets:train", "json.decoder:train", "os:system", "test:train"])
def test_code_named_like_a_module_of_pythons_is_one_line(reference):
    """An objective in such a file cannot be found, and the line says to rename it."""
    with pytest.raises(TaskError, match="comes first; give yours another name"):
        find_code(reference, "a function")


@pytest.mark.own_interpreter
def test_workers_are_at_home_in_any_folder(tmp_path, monkeypatch):
    """A folder with a colon, and files in it that are named like Python's modules, harm no worker."""
    folder = tmp_path / 'a:b "c" 100%'
    path = write(folder)
    for name in ("secrets", "types", "random", "json", "token", "enum", "queue", "typing", "logging", "copy"):
        (folder / f"{name}.py").write_text("raise RuntimeError('not the one of Python')")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    command = [*local.FLOODSEARCH, "launch", path, "--workers", "1", "--devices", "cpu"]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "3 complete" in ended.stdout
    said = (folder / "floodsearch-logs" / "mine" / "worker-0.log").read_text()
    assert "leaving: all tickets are finished" in said


# --- the files of a command


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Give two folders of a user's code, the second of which is the current one."""
    first, here = tmp_path / "first", tmp_path / "here"
    for folder in (first, here):
        folder.mkdir()
        (folder / "train.py").write_text(SCRIPT)
    (first / "run.sh").write_text("")
    (first / "base.toml").write_text("")
    (here / "other.toml").write_text("")
    monkeypatch.chdir(here)
    return first, here


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["python", "train.py"], ["python", "FIRST/train.py"]),
        (["python", "-u", "./train.py", "base.toml"], ["python", "-u", "FIRST/train.py", "FIRST/base.toml"]),
        (
            ["python", "--conf=base.toml", "--conf=other.toml"],
            ["python", "--conf=FIRST/base.toml", "--conf=other.toml"],
        ),
        (["./run.sh", "0.1", "", "--", "-"], ["FIRST/run.sh", "0.1", "", "--", "-"]),
        (["run.sh", "nothing.py"], ["run.sh", "nothing.py"]),
        (["python", "/usr/train.py", "x" * 5000, "\0"], ["python", "/usr/train.py", "x" * 5000, "\0"]),
    ],
)
def test_files_of_a_command_lie_beside_the_study_file(folders, words, found):
    """A relative path is that of the first folder that has the file; all else stays as it is."""
    first, here = folders
    assert located(words, folders) == [word.replace("FIRST", str(first)) for word in found]
    assert located(words, ()) == words
    assert located(words, (here,)) == words


def test_the_revision_is_that_of_the_file_that_runs(folders):
    """It is of the script beside the study file, as that is what is trained."""
    assert script_file("python train.py {level}", folders) == folders[0] / "train.py"
    assert script_file("python train.py {level}") == Path("train.py")
    assert script_file(f"{sys.executable} -u train.py {{level}}", folders) == folders[0] / "train.py"
    assert script_file("./run.sh base.toml", folders) == folders[0] / "run.sh"


@pytest.mark.parametrize(
    ("words", "script"),
    [
        (["python", "trian.py", "--flood", "{level}"], "trian.py"),
        (["/usr/bin/python3.11", "-u", "-W", "ignore", "no/train.py"], "no/train.py"),
        (["bash", "nothing.sh"], "nothing.sh"),
        (["torchrun", "--nproc-per-node=2", "trian.py"], "trian.py"),
        (["python", "train.py", "trian.py"], None),
        (["python", "-m", "package.train", "{level}"], None),
        (["python", "-c", "print()", "x.py"], None),
        (["python", "{script}.py"], None),
        (["docker", "run", "image", "python", "/app/train.py"], None),
        (["./run.sh"], None),
    ],
)
def test_a_script_that_is_nowhere_is_found_out(folders, words, script):
    """What an interpreter of this machine is given must be there; what others read is theirs."""
    assert missing_script(words) == script


def test_check_says_that_a_script_is_nowhere(folders, command):
    """In one line with the folders where it was looked for."""
    study = STUDY.replace("objective", "command").replace("{module}:train", "python trian.py {level}")
    Path("mine.toml").write_text(study)
    code, _, errors = command("check", "mine.toml")
    assert code == 2
    assert f"command: 'trian.py' is in none of the folders {Path.cwd()}; give its path" in errors


def test_a_command_runs_the_script_beside_its_study_in_the_current_folder(folders, make_spec, tmp_path):
    """Its relative paths are those of the study file's folder, and it runs where its worker does."""
    first, here = folders
    spec = make_spec(
        task=None,
        command=f"{sys.executable} train.py base.toml {{level}}",
        options={"label_noise": None, "depth": None, "width": None},
        training={"epochs": 2, "seeds": 1, "validate_every": 1},
    )
    database = open_database(f"sqlite:///{tmp_path}/floodsearch.db", create=True)
    study = put_study(database, spec)
    queue.fill(study)
    settings = WorkerSettings(device="cpu", logs=tmp_path / "logs", folders=folders)
    assert work(study, settings, LeaveRequest()) == "all tickets are finished"
    database.close()
    said = (tmp_path / "logs" / "tiny" / "ticket-1-seed-0.log").read_text().splitlines()[1]
    assert said == f"{here} {first}/train.py {first}/base.toml 0.25"


# --- logs


@pytest.mark.parametrize("in_the_way", ["file", "link", "file of the study"])
@pytest.mark.parametrize("detach", [[], ["--detach"]])
def test_logs_that_cannot_be_written_are_one_line(home, command, in_the_way, detach):
    """Before the study is created, as for checkpoints."""
    write(Path.cwd())
    if in_the_way == "file":
        Path("logs").write_text("")
    elif in_the_way == "link":
        Path("logs").symlink_to("nowhere")
    else:
        Path("logs").mkdir()
        Path("logs/mine").write_text("")
    code, out, errors = command("launch", "mine.toml", "--devices", "cpu", "--logs", "logs", *detach)
    assert (code, out) == (2, "")
    assert "cannot be used for logs: " in errors
    assert len(errors.splitlines()) == 1
    assert not Path("floodsearch.db").exists()


def test_a_link_to_nowhere_is_no_place(tmp_path):
    """A folder cannot be made behind it."""
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(NotADirectoryError):
        Folder(tmp_path / "link" / "deep").check()


@pytest.fixture
def started(monkeypatch):
    """Start no process; give what one would have been started with."""
    found = {}

    class Process:
        pid = 1

        def __init__(self, command, *, env, stdout, **other):
            found.update(command=command, env=env, log=Path(f"/proc/self/fd/{stdout.fileno()}").readlink())

    monkeypatch.setattr(local.subprocess, "Popen", Process)
    return found


def test_a_launch_hands_on_where_things_lie(make_spec, tmp_path, monkeypatch, started):
    """Its workers are told the folders of code as they are, and keep the user's own PYTHONPATH."""
    monkeypatch.setenv("PYTHONPATH", "as:it:is")
    database = open_database(f"sqlite:///{tmp_path}/floodsearch.db", create=True)
    study = put_study(database, make_spec())
    folders = (Path("/a:b"), Path("/c d"))
    crew = Crew(devices=("cpu",), threads=1)
    local.Launch(study, "sqlite:///x.db", crew, logs=tmp_path, folders=folders).__enter__()
    database.close()
    assert json.loads(started["env"][imports.FOLDERS]) == ["/a:b", "/c d"]
    assert started["env"]["PYTHONPATH"] == "as:it:is"
    assert started["log"] == tmp_path / "tiny" / "worker-0.log"
    where = started["command"].index("--logs") + 1
    assert started["command"][where] == str(tmp_path)


def test_a_detached_launch_has_the_same_places(home, command, started):
    """It reads the same file, also one whose name begins with a dash, and keeps logs in the same folder."""
    path = write(Path.cwd() / "-dash")
    code, out, _ = command(
        "launch", path, "--devices", "cpu", "--detach", "--logs=~/logs", "--checkpoints=~/x"
    )
    assert code == 0
    assert f"see floodsearch logs mine --logs {home}/logs, end it with" in out
    arguments = list(map(str, started["command"]))
    assert str(path) in arguments
    assert arguments[arguments.index("--logs") + 1] == str(home / "logs")
    assert started["env"]["FLOODSEARCH_CHECKPOINTS"] == str(home / "x")
    assert started["log"] == home / "logs" / "mine" / "launch.log"
