"""`init` writes files that work as they are, and overwrites none."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

KINDS = ("loop", "task", "lightning", "huggingface", "command")
TINY = ("training.epochs=2", "training.seeds=1", "levels.high=1.0", "levels.count=2")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """The current folder, in which `python` is the interpreter of the tests."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    before = set(sys.modules)
    yield tmp_path
    for path in tmp_path.glob("*.py"):
        if path.stem not in before:
            sys.modules.pop(path.stem, None)


@pytest.mark.filterwarnings("ignore:The '.*_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated")
@pytest.mark.parametrize("kind", KINDS)
def test_a_study_is_checked_and_searched_as_it_is_written(command, one_thread, kind):
    """With its script, under a name of its own: only how much is searched is less here."""
    if kind in ("lightning", "huggingface"):
        pytest.importorskip({"lightning": "lightning", "huggingface": "transformers"}[kind])
    status, out, said = command("init", f"a-{kind}", f"--{kind}")
    assert (status, said) == (0, "")
    assert out.startswith(f"wrote a_{kind}.toml and a_{kind}.py; ")
    assert sorted(path.name for path in Path().iterdir()) == [f"a_{kind}.py", f"a_{kind}.toml"]
    tries = ["--try"] if kind in ("loop", "task") else []  # of the others that takes long
    status, out, said = command("check", f"a_{kind}.toml", *tries)
    assert status == 0, out
    assert not said or tries
    assert f'name = "a-{kind}"' in out
    settings = [word for setting in TINY for word in ("--set", setting)]
    for words in (("create",), ("work", "--device", "cpu")):
        status, _, said = command(words[0], f"a_{kind}.toml", *words[1:], *settings)
        assert status == 0, said
    assert '"finished": true' in command("best", f"a-{kind}", "--json")[1]


def test_without_an_option_it_is_a_task_of_ours(command):
    status, out, _ = command("init")
    assert status == 0
    assert "floodsearch launch my_study.toml" in out
    assert [path.name for path in Path().iterdir()] == ["my_study.toml"]
    status, out, said = command("check", "my_study.toml")
    assert (status, said) == (0, "")
    assert 'name = "my-study"' in out


@pytest.mark.parametrize("there", ["my_loop.toml", "my_loop.py"])
def test_no_file_is_overwritten(command, there):
    """Nor is the other one written."""
    Path(there).write_text("mine")
    status, _, said = command("init", "--loop")
    assert status == 2
    assert said == f"floodsearch: {there} is there already, and nothing was written; choose another NAME\n"
    assert [(path.name, path.read_text()) for path in Path().iterdir()] == [(there, "mine")]


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("My_Study",), "'My_Study' may hold only a-z, 0-9 and -, and not begin with -; such as my-study"),
        (("../up",), "'../up' may hold only a-z, 0-9 and -, and not begin with -; such as my-study"),
        (("torch", "--task"), "a script torch.py cannot be imported, or hides the module torch"),
        (("1st", "--loop"), "a script 1st.py cannot be imported, or hides the module 1st"),
        (("--loop", "--command"), "--loop and --command are both given; keep one of them"),
    ],
)
def test_what_cannot_be_written_is_one_line(command, words, problem):
    status, _, said = command("init", *words)
    assert status == 2
    assert said.startswith(f"floodsearch: {problem}")
    assert said.count("\n") == 1
    assert not list(Path().iterdir())
