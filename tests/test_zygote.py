"""Forked commands: what tests see of them is what they would see of one that was started."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.test_cli import FILE
from tests.zygote import CODES, Zygote, program

SHOW = """
import json, os, sys, time
if sys.argv[1:] == ["wait"]:
    print("waits", flush=True)
    time.sleep(60)
print(json.dumps({
    "torch": "torch" in sys.modules, "pid": os.getpid(), "alone": os.getsid(0) == os.getpid(),
    "command": open("/proc/self/cmdline").read().rstrip(chr(0)).split(chr(0)),
    "argv": sys.argv, "cwd": os.getcwd(),
    "environment": dict(os.environ), "zone": time.tzname[0], "input": sys.stdin.read(), "path": sys.path,
    "files": sorted(os.listdir("/proc/self/fd"))[:3],
}))
print("said", file=sys.stderr)
sys.exit(sys.argv[1] if len(sys.argv) == 2 else 7)
"""
COMMAND = [sys.executable, "-m", "floodsearch"]


@pytest.fixture(params=[True, False], ids=["forked", "started"])
def forked(request: pytest.FixtureRequest, zygote: Zygote) -> bool:
    """Run a test with forks, and without."""
    zygote.active = request.param
    CODES.add(SHOW)
    return bool(request.param)


def test_a_command_is_as_it_was_told_to_be(forked: bool, tmp_path: Path) -> None:
    """Its number, session, arguments, folder, environment, time zone, streams and exit status."""
    (tmp_path / "its").mkdir()
    variables = {**os.environ, "TZ": "Asia/Tokyo", "OURS": "a=b\nc", "PYTHONPATH": "its:/some"}
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", SHOW, "one", "two"],
        cwd=tmp_path,
        env=variables,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    out, errors = process.communicate("written", timeout=60)
    found = json.loads(out)
    path = found.pop("path")
    assert [one for one in path if one not in sys.path][:2] == [str(tmp_path / "its"), "/some"]
    assert found == {
        "torch": forked,
        "pid": process.pid,
        "alone": True,
        "command": [sys.executable, "-P", "-c", SHOW, "one", "two"],
        "argv": ["-c", "one", "two"],
        "cwd": str(tmp_path),
        "environment": variables,
        "zone": "JST",
        "input": "written",
        "files": ["0", "1", "2"],
    }
    assert (process.returncode, errors) == (7, "said\n")


def test_a_reason_to_end_is_said_and_is_status_1(forked: bool) -> None:
    """As of `sys.exit` with a text."""
    command = [sys.executable, "-c", SHOW, "no luck"]
    ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (1, "said\nno luck\n")
    assert json.loads(ended.stdout)["torch"] == forked


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_signals_reach_a_command_and_end_it(forked: bool, number: signal.Signals) -> None:
    """Nothing of it is left, and its status tells the signal."""
    command = [sys.executable, "-c", SHOW, "wait"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waits\n"
        assert process.poll() is None
        process.send_signal(number)
        assert process.wait(60) == -number
    assert not Path(f"/proc/{process.pid}").exists()


def test_wrong_use_and_help_are_said_alike(tmp_path: Path, zygote: Zygote) -> None:
    """The same status and the same text on the same stream."""
    for arguments in (["--help"], ["best", "tiny"]):
        ends = []
        for zygote.active in (True, False):
            ended = subprocess.run([*COMMAND, *arguments], cwd=tmp_path, capture_output=True, check=False)
            ends.append((ended.returncode, ended.stdout, ended.stderr))
        assert ends[0] == ends[1]


def test_a_search_of_forks_is_that_of_started_processes_to_the_bit(
    tmp_path: Path,
    zygote: Zygote,
    monkeypatch: pytest.MonkeyPatch,
    command: Callable[..., tuple[int, str, str]],
) -> None:
    """The answer, and every value and curve; a launch that is forked forks its workers."""
    found: dict[bool, list[Any]] = {}
    # One worker: two may both train a start that levels share, or not.
    launch = [*COMMAND, "launch", "tiny.toml", "--workers", "1", "--devices", "cpu"]
    for zygote.active in (True, False):
        folder = tmp_path / str(zygote.active)
        folder.mkdir()
        (folder / "tiny.toml").write_text(FILE)
        answer = subprocess.run(launch, cwd=folder, capture_output=True, check=True).stdout
        monkeypatch.chdir(folder)
        export = ("export", "tiny", "--format", "json")
        read = [command(*one) for one in (("best", "tiny", "--json"), export, (*export, "--curves"))]
        assert [status for status, *_ in read] == [0, 0, 0]
        found[zygote.active] = [answer, *(out for _, out, _ in read)]
    assert found[True] == found[False]


@pytest.mark.parametrize(
    "command",
    [
        ["sh", "-c", "true"],
        [sys.executable],
        [sys.executable, "-S", "-c", SHOW],
        [sys.executable, "-c", "print()"],
        [sys.executable, "-m", "floodsearches"],
        [sys.executable, "train.py", "-m", "floodsearch"],
    ],
)
def test_other_programs_are_started(command: list[str]) -> None:
    assert program(command) is None


@pytest.mark.own_interpreter
def test_a_marked_test_starts_its_commands() -> None:
    CODES.add(SHOW)
    command = [sys.executable, "-c", SHOW, "one", "two"]
    ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    assert not json.loads(ended.stdout)["torch"]
