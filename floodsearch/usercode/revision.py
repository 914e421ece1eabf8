"""Which version of the user's own code trains: a result belongs to it as it does to a seed."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

SECONDS = 10.0
"""How long git may take; a repository that is slower is told by the file alone."""
DIGITS = 12


def revision_of(file: Path) -> str:
    """Return what tells the code of a file from other versions of it.

    Args:
        file: the module or script that is trained.

    Returns:
        In a git repository that knows the file its commit, and "dirty" with a hash of all differences where
        its files differ from it; else a hash of the file. Of what is imported from elsewhere it says nothing.
    """
    head = _git(file, "rev-parse", "HEAD")
    if head is None or _git(file, "ls-files", "--error-unmatch", file.name) is None:
        return f"sha256 {_hash(file.read_bytes())}"
    changed = _git(file, "diff", "HEAD", "--binary", "--no-ext-diff", "--no-textconv")
    commit = head.decode().strip()[:DIGITS]
    return f"{commit} dirty {_hash(changed)}" if changed else commit


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:DIGITS]


def _git(file: Path, *arguments: str) -> bytes | None:
    """Return what git prints in a file's folder; None where it fails, or is not there."""
    try:
        done = subprocess.run(  # noqa: S603 - fixed arguments and no shell
            ["git", *arguments],  # noqa: S607 - whichever git its user has
            cwd=file.absolute().parent,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
