"""The revision of the user's own code: a result belongs to it as it does to a seed."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

SECONDS = 10.0
"""How long git may take, in seconds; after that only the file itself is hashed."""
DIGITS = 12


def revision_of(file: Path) -> str:
    """Return the revision of a file, a text that differs between any two versions of it.

    Args:
        file: the module or script that is trained.

    Returns:
        In a git repository that knows the file its commit, with "dirty" and a hash of all differences if its
        files differ from it; else a hash of the file. Modules imported from elsewhere are not covered.
    """
    head = _git(file, "rev-parse", "HEAD")
    known = head is not None and _git(file, "ls-files", "--error-unmatch", file.name) is not None
    changed = _git(file, "diff", "HEAD", "--binary", "--no-ext-diff", "--no-textconv") if known else None
    if head is None or changed is None:
        return f"sha256 {hash_of(file.read_bytes())}"
    commit = head.decode().strip()[:DIGITS]
    return f"{commit} dirty {hash_of(changed)}" if changed else commit


def hash_of(content: bytes) -> str:
    """Return the first digits of the SHA-256 of some bytes."""
    return hashlib.sha256(content).hexdigest()[:DIGITS]


def _git(file: Path, *arguments: str) -> bytes | None:
    """Return the output of git in a file's folder; None if git fails or is not installed."""
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
