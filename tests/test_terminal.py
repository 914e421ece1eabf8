"""What is printed: escaped, in any encoding, to readers that leave and to full disks, and nothing else."""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from floodsearch import queue
from floodsearch.catalog import known
from floodsearch.findings import StudyStatus, TicketCounts, TicketNote
from floodsearch.process import terminal
from floodsearch.process.terminal import LogFormatter, escape, indent_lines, one_line
from floodsearch.report.text import failures_text, notes_text, progress_text, status_text
from floodsearch.storage.database import open_database
from floodsearch.storage.studies import put_study
from floodsearch.study.reader import parse
from floodsearch.worker.leave import LeaveRequest
from floodsearch.worker.settings import WorkerSettings
from floodsearch.worker.work import work

HOSTILE = "\x1b[2J\x9b1A\x7f\u202eevil\u200b\ud800\r\nfloodsearch: all is well\x85\u2028"
"""What would clear the screen, turn letters round, end in half a character and look like a line of ours."""
FILE = """
name = "tiny"
task = "two_gaussians"
options = {label_noise = 0.1, width = 8, depth = 1}
levels = {high = 0.5, count = 3}
training = {epochs = 4, seeds = 2, validate_every = 2}
search = {pruner = "none"}
"""


@pytest.fixture
def study(tmp_path, monkeypatch, make_spec):
    """Give a study whose database is the default one of the current folder."""
    monkeypatch.chdir(tmp_path)
    database = open_database("sqlite:///floodsearch.db", create=True)
    study = put_study(database, make_spec())
    queue.fill(study)
    yield study
    database.close()


# --- text that comes from elsewhere


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain, naïve 学習 ± 😀\tand\nlines", "plain, naïve 学習 ± 😀\tand\nlines"),
        ("\x1b[31m", "\\x1b[31m"),
        ("\x9b31m\x85", "\\x9b31m\\x85"),
        ("a\rb\x08\x7f\0", "a\\rb\\x08\\x7f\\x00"),
        ("\u202e\u2066\u200b\u200d\ufeff\u00ad", "\\u202e\\u2066\\u200b\\u200d\\ufeff\\xad"),
        ("\u2028\u2029\U000e0041", "\\u2028\\u2029\\U000e0041"),
        ("\ud800 \udcff", "\\ud800 \\udcff"),
    ],
)
def test_what_cannot_be_seen_is_shown_as_an_escape(text, shown):
    """Control characters, invisible ones and halves of characters are escaped; text of any script is not."""
    assert escape(text) == shown


def test_a_record_is_shown_in_one_line_each_text():
    """Each text of a record, also in its sequences, mappings and records, has no second line."""
    note = TicketNote(ticket=0, level=0.1, state="failed", cause="error", attempts=1, reason="a\nb", epoch=0)
    told = one_line([{"k\n": (note, 1, None)}])
    assert told == [{"k\\n": (dataclasses.replace(note, reason="a\\nb"), 1, None)}]


def test_a_text_of_many_lines_forges_no_message():
    """What goes on in a second line is indented there; what is indented already stays."""
    assert indent_lines("a\nb\n  c\n\nd") == "a\n  b\n  c\n\n  d"


def test_a_record_of_a_log_forges_no_other():
    """Only its first line begins at the margin, and nothing in it moves a cursor."""
    formatter = LogFormatter("%(levelname)s %(message)s")
    record = logging.LogRecord("x", logging.INFO, "", 0, "%s", ("a\x1b[1A\nERROR b\n c",), None)
    assert formatter.format(record) == "INFO a\\x1b[1A\n  ERROR b\n   c"


def test_no_text_of_a_row_writes_over_the_screen(study, command):
    """The reason in a row is shown in one line of escapes, and `--json` holds it exactly, in ASCII."""
    study.stop(HOSTILE)
    code, out, _ = command("status", "tiny")
    assert code == 0
    assert out.isascii()
    assert "\x1b" not in out
    assert [line for line in out.splitlines() if line.startswith("floodsearch:")] == []
    assert "tiny: \\x1b[2J\\x9b1A\\x7f\\u202eevil" in out
    code, out, _ = command("status", "tiny", "--json")
    assert json.loads(out)["stopped"] == HOSTILE
    assert all(one.isprintable() for one in out.splitlines())


def test_no_text_of_a_record_has_a_line_of_its_own():
    """Names, metrics, causes, reasons and revisions stay within their lines of each text."""
    note = TicketNote(ticket=3, level=0.1, state="failed", cause="error", attempts=2, reason=HOSTILE, epoch=0)
    again = dataclasses.replace(note, state="waiting")
    counts = TicketCounts(complete=1, pruned=0, failed=1, running=0, waiting=1)
    known = {field.name: None for field in dataclasses.fields(StudyStatus)}
    changes = {"name": HOSTILE, "metric": HOSTILE, "stopped": HOSTILE, "trials": counts, "workers": 1}
    changes |= {"revisions": (HOSTILE, "b"), "interruptions": {HOSTILE: 2}, "notes": (note, again)}
    changes |= {"warnings": (HOSTILE,), "changed": HOSTILE}
    changes |= {"best_level": 0.1, "best_value": 0.5, "epochs_run": 4, "finished": False, "piloting": False}
    status = StudyStatus(**(known | changes))
    for text, lines in (
        (status_text(status), 9),
        (progress_text(status), 1),
        (notes_text(status), 1),
        (failures_text(status), 1),
    ):
        assert len(text.splitlines()) == lines, ascii(text)  # which a failure can be sent with
        assert all(line.isprintable() for line in text.splitlines())


def test_logs_are_shown_escaped(study, command, tmp_path):
    """What a script or a user's code wrote into a log moves no cursor, and each line says whose it is."""
    folder = tmp_path / "elsewhere" / "tiny"
    folder.mkdir(parents=True)
    (folder / "worker-0.log").write_bytes(b"\x1b]0;title\x07 10 %\r20 %\r\xff\nfloodsearch: \xe2\x80\xae\n")
    code, out, _ = command("logs", "tiny", "--logs", tmp_path / "elsewhere")
    assert code == 0
    assert "\x1b" not in out
    assert "\u202e" not in out
    assert all(line.startswith("worker-0: ") for line in out.splitlines())


def test_a_table_on_a_terminal_is_escaped_and_in_a_file_exact(study, command, monkeypatch, tmp_path):
    """`export` gives data as they are, but to a terminal."""
    trial = study.database.optuna.get_all_trials(study.id)[0]
    study.database.optuna.set_trial_user_attr(trial._trial_id, "reason", "\x1b[2J\nx")
    assert command("export", "tiny", "--out", "rows.csv")[0] == 0
    exact = (tmp_path / "rows.csv").read_text()
    monkeypatch.setattr(terminal.stdout(), "isatty", lambda: True, raising=False)
    _, out, _ = command("export", "tiny")
    assert "\x1b" not in out
    assert len(out.splitlines()) == 4
    assert "\x1b[2J\nx" in exact
    assert "\\x1b[2J\\nx" in out


@pytest.mark.parametrize("form", ["csv", "json", "parquet"])
def test_half_a_character_can_be_exported(study, command, tmp_path, form):
    """JSON in the database may hold what no file in UTF-8 can; it is exported as its escape."""
    trial = study.database.optuna.get_all_trials(study.id)[0]
    study.database.optuna.set_trial_user_attr(trial._trial_id, "reason", "half \ud800")
    assert command("export", "tiny", "--format", form, "--out", "rows")[0] == 0
    assert b"half \\ud800" in (tmp_path / "rows").read_bytes()


# --- streams


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Give the folder of a finished study with its file and a log."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "tiny.toml").write_text(FILE)
    (folder / "floodsearch-logs" / "tiny").mkdir(parents=True)
    (folder / "floodsearch-logs" / "tiny" / "worker-0.log").write_text("a line\n" * 20)
    study = put_study(
        open_database(f"sqlite:///{folder}/floodsearch.db", create=True), parse(tomllib.loads(FILE), known())
    )
    queue.fill(study)
    assert work(study, WorkerSettings(device="cpu", threads=1), LeaveRequest()) == "all tickets are finished"
    study.database.close()
    return folder


@pytest.fixture
def complete(finished, tmp_path, monkeypatch):
    """Let the current folder be one of a finished study."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "latin-1", "cp437", "utf-8"])
def test_an_answer_is_printed_in_any_encoding(complete, command, monkeypatch, encoding):
    """A terminal without our signs gets plain ones, and escapes for the rest."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
    monkeypatch.setattr(sys, "stdout", stream)
    code, _, errors = command("best", "tiny")
    printed = stream.buffer.getvalue().decode(encoding)
    assert (code, errors) == (0, "")
    assert ("±" if encoding != "ascii" else "+-") in printed


def test_signs_that_a_terminal_has_not():
    """Known signs have plain twins; others are told by their numbers."""
    assert "a ± b · c … 学".encode("ascii", terminal.TOLERANT) == b"a +- b | c ... \\u5b66"
    assert "\ud800".encode("utf-8", terminal.TOLERANT) == b"\\ud800"


COMMANDS = {
    "status": ["status"],
    "status of one": ["status", "tiny", "--json"],
    "best": ["best", "tiny"],
    "csv": ["export", "tiny"],
    "parquet": ["export", "tiny", "--format", "parquet"],
    "check": ["check", "tiny.toml"],
    "create": ["create", "tiny.toml"],
    "stop": ["stop", "tiny"],
    "logs": ["logs", "tiny", "--follow"],
    "help": ["--help"],
    "help of a command": ["launch", "--help"],
}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full disk to write to")
def test_a_full_disk_behind_the_output_is_one_line(complete, command, monkeypatch):
    """Every command that cannot print says so, with status 1."""
    for case, arguments in COMMANDS.items():
        with Path("/dev/full").open("w") as full:
            monkeypatch.setattr(sys, "stdout", full)
            code, _, errors = command(*arguments)
        said = "floodsearch: standard output cannot be written: No space left on device\n"
        assert (code, errors) == (1, said), case


def test_a_reader_that_has_left_is_no_failure(complete, command, monkeypatch):
    """`floodsearch ... | head` ends quietly with status 0, also where it would follow for ever."""
    for case, arguments in COMMANDS.items():
        reader, writer = os.pipe()
        os.close(reader)
        with os.fdopen(writer, "w") as gone:
            monkeypatch.setattr(sys, "stdout", gone)
            code, _, errors = command(*arguments)
        assert (code, errors) == (0, ""), case


def test_nobody_who_listens_is_no_reason_to_end(command, monkeypatch, tmp_path):
    """A message that cannot be written to standard error changes no exit status."""
    monkeypatch.chdir(tmp_path)
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as gone:
        monkeypatch.setattr(sys, "stderr", gone)
        assert command("best", "tiny")[0] == 2


LOUD = """
import atexit, ctypes, os, subprocess, sys
print("from Python")
os.write(1, b"from below\\n")
subprocess.run(["echo", "from a process"])
ctypes.CDLL(None).puts(b"from C")
atexit.register(print, "from the end")

def train(run):
    pass
"""


@pytest.mark.own_interpreter
def test_only_our_own_output_is_on_standard_output(tmp_path):
    """What a user's module prints, by whatever way and whenever, goes to standard error."""
    (tmp_path / "loud.py").write_text(LOUD)
    (tmp_path / "loud.toml").write_text(
        'name = "loud"\nobjective = "loud:train"\nlevels.high = 1\nlevels.count = 3'
    )
    command = [sys.executable, "-m", "floodsearch", "check", "loud.toml", "--json"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(ended.stdout)["objective"] == "loud:train"
    for source in ("Python", "below", "a process", "C", "the end"):
        assert f"from {source}\n" in ended.stderr


def test_streams_may_be_closed(tmp_path):
    """Without standard output an answer is a failure with one line, and no file takes its number."""
    open_database(f"sqlite:///{tmp_path}/floodsearch.db", create=True).close()
    closed = ["sh", "-c", 'exec "$@" <&- >&-', "sh", sys.executable, "-m", "floodsearch", "status"]
    ended = subprocess.run(closed, cwd=tmp_path, stderr=subprocess.PIPE, text=True, check=False)
    said = "floodsearch: standard output cannot be written: Bad file descriptor\n"
    assert (ended.returncode, ended.stderr) == (1, said)


# --- the question before a study is deleted


class Keyboard(io.StringIO):
    """What a person types on a terminal."""

    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("typed", "code", "said"),
    [
        (io.StringIO(""), 2, "there is no terminal to ask on; add --yes"),
        (Keyboard(""), 1, "nothing was deleted"),
        (Keyboard("n\n"), 1, "nothing was deleted"),
        (Keyboard("\n"), 1, "nothing was deleted"),
        (Keyboard("y\n"), 0, None),
        (io.StringIO("y\n"), 0, None),
    ],
    ids=["no terminal", "Ctrl-D", "no", "nothing", "yes", "yes from a pipe"],
)
def test_a_study_is_deleted_by_a_yes_only(study, command, monkeypatch, typed, code, said):
    """Anything else leaves it there, with one line that says so."""
    monkeypatch.setattr(sys, "stdin", typed)
    ended, out, errors = command("delete", "tiny")
    assert ended == code
    assert out == ("tiny: deleted\n" if said is None else "")
    assert command("status", "tiny")[0] == (0 if said else 2)
    if said is not None:
        assert "floodsearch: nothing was deleted" in (last := errors.splitlines()[-1])
        assert said in last
