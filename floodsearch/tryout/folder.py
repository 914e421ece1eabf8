"""A folder in the place of the current one, so that what is trained to know more leaves a user's files alone.

It has what the current folder has: small files and saved models as copies, other large ones and what nobody
writes to as links. What is new or changed in it afterwards is what a run has written.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

ENTRIES = 4000
"""So many files and folders are made, at most; what is deeper is a link to its folder."""
COPIED = 2**24
"""Bytes of a file that is copied, at most."""
COPIED_IN_ALL = 2**28
SAVED = (".ckpt", ".h5", ".joblib", ".keras", ".onnx", ".pkl", ".pt", ".pth", ".safetensors")
"""Endings of files that trainings write over: copied, however large, and left out where the disk is full."""
LINKED = (".git", ".hg", ".venv", "venv", "node_modules", "__pycache__", "site-packages")
"""Folders that are links."""
OURS = ("floodsearch.db", "floodsearch-checkpoints", "floodsearch-logs")
"""What a search of ours writes in the current folder, which a try has nothing to do with."""
UNCOUNTED = (".lock", ".pyc", ".tmp", ".db-wal", ".db-shm", ".db-journal")
"""Endings of files that several processes may write to."""
DATABASE = b"SQLite format 3\0"


@contextlib.contextmanager
def mirrored(at: Path, prepared: Mapping[str, Path] = MappingProxyType({})) -> Iterator[Mirror]:
    """Let the current folder be a mirror of it for as long as this lasts.

    Args:
        at: where the mirror is made.
        prepared: as `Mirror` takes it.
    """
    here = Path.cwd()
    mirror = Mirror(here, at / here.name, prepared)
    os.chdir(mirror.at)
    try:
        yield mirror
    finally:
        os.chdir(here)


class Mirror:
    """A folder that stands for another one.

    Args:
        of: the folder that it stands for.
        at: where it is made.
        prepared: files that an earlier run has made before it trained, by their paths in the folder: later
            runs find them, as they would in a search.
    """

    def __init__(self, of: Path, at: Path, prepared: Mapping[str, Path]) -> None:
        self.of, self.at = of, at
        self._room, self._entries = COPIED_IN_ALL, ENTRIES
        at.mkdir(parents=True)
        self._fill(of, at, depth=0)
        for name, file in prepared.items():
            if not (at / name).exists():
                (at / name).parent.mkdir(parents=True, exist_ok=True)
                with contextlib.suppress(OSError):  # a link of that name may lead to nothing
                    (at / name).symlink_to(file)
        self._before = dict(self._files())

    def _fill(self, source: Path, target: Path, depth: int) -> None:
        """Give a folder what another one has, nearest first."""
        try:
            entries = sorted(os.scandir(source), key=lambda one: (one.is_dir(), one.name))
        except OSError:
            return
        for one in entries:
            if one.name in OURS:
                continue
            self._entries -= 1
            there = target / one.name
            linked = self._entries <= 0 or one.is_symlink() or one.name in LINKED
            with contextlib.suppress(OSError):  # as of a socket, or a file that is gone
                if one.is_dir(follow_symlinks=False) and not linked:
                    there.mkdir()
                    self._fill(Path(one.path), there, depth + 1)
                elif one.is_file() and one.name.lower().endswith(SAVED):
                    if one.stat().st_size < shutil.disk_usage(target).free / 2:
                        shutil.copy2(one.path, there)
                elif not linked and self._may_copy(one):
                    shutil.copy2(one.path, there)
                else:
                    there.symlink_to(one.path)

    def _may_copy(self, one: os.DirEntry[str]) -> bool:
        found = one.stat()
        if not stat.S_ISREG(found.st_mode) or found.st_size > min(COPIED, self._room):
            return False
        self._room -= found.st_size
        return True

    def _files(self) -> Iterator[tuple[str, tuple[int, int]]]:
        """Yield the path of each file in the folder, with what changes when it is written to."""
        for folder, _, names in os.walk(self.at):
            for name in names:
                path = Path(folder, name)
                with contextlib.suppress(OSError):
                    found = path.stat()
                    yield str(path.relative_to(self.at)), (found.st_mtime_ns, found.st_size)

    def written(self) -> frozenset[str]:
        """Return the files that were written to since it was made, by their paths in the folder."""
        return frozenset(
            name
            for name, now in self._files()
            if self._before.get(name) != now and not name.endswith(UNCOUNTED) and not self._is_database(name)
        )

    def prepared(self, before: float) -> dict[str, Path]:
        """Return the new files that nobody has written to since a time, in seconds since 1970."""
        return {
            name: self.at / name
            for name, (changed, _) in self._files()
            if name not in self._before and changed / 1e9 < before
        }

    def _is_database(self, name: str) -> bool:
        """Return whether a file is a database, which several processes may write to."""
        try:
            with (self.at / name).open("rb") as file:
                return file.read(len(DATABASE)) == DATABASE
        except OSError:
            return False
