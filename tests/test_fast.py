"""tests/fast.py: which tests `make fast` runs."""

from __future__ import annotations

import subprocess
import sys
from functools import partial

import pytest

import floodsearch.cli
from floodsearch.errors import UsageError
from tests.fast import ROOT, is_slow, reaches


def starts():
    subprocess.run([sys.executable, "--version"], check=True)


def through_another():
    return starts()


def imports_inside():
    from floodsearch import cli

    return cli


class Holder:
    def method(self):
        return [starts() for _ in range(2)]


def harmless():
    return UsageError("nothing")


@pytest.mark.parametrize(
    "thing",
    [
        starts,
        through_another,
        imports_inside,
        Holder,
        lambda *_: [through_another()],
        partial(through_another),
        {"key": [starts]},
        floodsearch.cli.main,
    ],
)
def test_what_starts_a_process_is_found_by_its_names(thing):
    """It may be started by another function or method, of the tests or of the package."""
    assert reaches(thing)


@pytest.mark.parametrize(
    "thing", [harmless, partial(harmless), {"key": harmless}, (1, None, "text"), UsageError]
)
def test_what_starts_none_is_not_left_out(thing):
    """A function that names only pure modules is fast."""
    assert not reaches(thing)


def test_a_module_is_as_slow_as_what_it_imports():
    """The command line opens databases, through others; what happened and what fails is plain."""
    assert is_slow("floodsearch.cli")
    assert not is_slow("floodsearch.records")
    assert not is_slow("floodsearch.errors")


def test_a_fast_run_starts_no_process(tmp_path):
    """A test whose names do not tell that it starts one is skipped when it does, whatever catches that."""
    (tmp_path / "test_sly.py").write_text(
        "import importlib\n"
        "def test_sly():\n"
        "    importlib.import_module('sub' + 'process').run(['true'])\n"
        "def test_sly_and_careful():\n"
        "    try:\n"
        "        importlib.import_module('sub' + 'process').run(['true'])\n"
        "    except BaseException as error:\n"
        "        raise RuntimeError('caught') from error\n"
        "def test_plain():\n"
        "    assert True\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.fast", "-p", "no:cacheprovider"]
    ran = subprocess.run([*command, tmp_path], capture_output=True, text=True, check=False)
    assert "1 passed, 2 skipped" in ran.stdout, ran.stdout


def test_pure_tests_are_chosen() -> None:
    """What every test has, such as the place where commands would be started, makes none of them slow."""
    command = [sys.executable, "-m", "pytest", "-p", "tests.fast", "--collect-only", "-q"]
    found = subprocess.run(
        [*command, "tests/test_smoothing.py"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stdout
    assert "tests/test_smoothing.py::" in found.stdout
