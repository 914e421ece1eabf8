"""`floodsearch check --try` of a script with a trap, in this process; and the table of what it tells of all.

python -m tests.wild.trying [KIND ...]
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from unittest import mock

from tests.wild.kinds import KINDS
from tests.wild.traps import CLEAN, TRAPS, planted


class Tried(NamedTuple):
    """What a try has told."""

    kinds: frozenset[str]
    """Of its findings."""
    said: str
    """A line for each finding; or why the study file was refused."""


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Be in a folder whose modules are imported anew, by this process and by commands that it starts."""
    before, path = set(sys.modules), list(sys.path)
    search = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    importlib.invalidate_caches()
    try:
        with contextlib.chdir(folder), mock.patch.dict(os.environ, {"PATH": search}):
            yield
    finally:
        sys.path[:] = path
        for own in folder.glob("*.py"):
            if own.stem not in before:
                sys.modules.pop(own.stem, None)


def try_out(study: Path) -> Tried:
    """Try a study file as the command line does; return what it has told."""
    from floodsearch import cli

    out, errors = io.StringIO(), io.StringIO()
    arguments = ["floodsearch", "check", study.name, "--try", "--json"]
    with (
        inside(study.parent),
        mock.patch.object(sys, "argv", arguments),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(errors),
        contextlib.suppress(SystemExit),
    ):
        cli.main()
    try:
        findings = json.loads(out.getvalue())["try"]["findings"]
    except ValueError:  # refused before it was tried
        return Tried(frozenset({"refused"}), errors.getvalue())
    texts = "\n".join(one["text"] for one in findings)
    return Tried(frozenset(one["kind"] for one in findings), texts)


def main() -> None:
    """Try all and print a line for each; the exit status is 1 if a trap is not told, or a clean script is."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kinds", nargs="*", default=[*KINDS], metavar="KIND", help=", ".join(KINDS))
    wrong = 0
    asked = parser.parse_args()
    for name in asked.kinds:
        for trap in (CLEAN, *(trap for trap, kind in planted() if kind == name)):
            with tempfile.TemporaryDirectory() as folder:
                patch = () if trap == CLEAN else TRAPS[trap].planted[name]
                tried = try_out(KINDS[name].put(Path(folder), patch))
            well = not tried.kinds if trap == CLEAN else not TRAPS[trap].findings.isdisjoint(tried.kinds)
            wrong += not well
            print(
                f"{name:16} {trap:28} {'well ' if well else 'WRONG'} {', '.join(sorted(tried.kinds))}",
                flush=True,
            )
            if not well:
                print(tried.said, flush=True)
    raise SystemExit(wrong > 0)


if __name__ == "__main__":
    main()
