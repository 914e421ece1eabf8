"""Where the files of a study lie: a folder that this machine sees, or a bucket that many reach by its URL.

Both write a file whole or not at all. What lies there only saves time, or is a copy: the database holds the
study.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from floodsearch.errors import UsageError

ROOM = 16 * 2**30
"""Bytes that the files of a study may have in one folder, beside those in other folders."""
HEAD = 128
"""Bytes that `head` returns at most."""


class Files(Protocol):
    """Named files beside each other. What fails raises OSError; what is not there FileNotFoundError."""

    def within(self, name: str) -> Files:
        """Return the files of a folder in this one."""

    def read(self, name: str) -> bytes:
        """Return what a file holds."""

    def head(self, name: str) -> bytes:
        """Return the first bytes of a file."""

    def write(self, name: str, *parts: bytes | memoryview, room: int, before: str | None = None) -> None:
        """Write a file in the place of an earlier one.

        Args:
            name: of the file.
            parts: of its content.
            room: bytes that all files here may have.
            before: the name under which the earlier file is kept.
        """

    def names(self, pattern: str) -> list[str]:
        """Return the names of the files that fit a pattern, such as `ticket-3-*`, sorted."""

    def remove(self, *names: str) -> None:
        """Remove files that may be gone already; with the last one goes what held them."""

    def clear(self) -> None:
        """Remove all files, also those of folders in this one."""

    def check(self) -> None:
        """Raise OSError if nothing can be written here."""


def files_at(where: Path | str) -> Files:
    """Return the files of a folder, or of a URL such as `s3://BUCKET/PREFIX`.

    Raises:
        UsageError: if a URL cannot be used here, or a folder is in the home of nobody.
    """
    return Bucket(str(where)) if is_url(where) else Folder(expanded(Path(where)).absolute())


def check_place(where: Path | str, use: str = "checkpoints") -> None:
    """Say now what would be a warning in the log of each worker: that nothing can be kept at a place.

    Args:
        where: a folder or a URL.
        use: what is to be kept there.

    Raises:
        UsageError: if nothing can be written there.
    """
    files = files_at(where)
    try:
        files.check()
    except OSError as error:
        raise UsageError(f"{where} cannot be used for {use}: {error.strerror or error}") from None


def expanded(path: Path) -> Path:
    """Return a path with the home of a user in the place of `~` or `~NAME`.

    Raises:
        UsageError: if that home is not known.
    """
    try:
        return path.expanduser()
    except RuntimeError:
        raise UsageError(
            f"{path} cannot be found: the home {path.parts[0]} is not known; write it out"
        ) from None


def is_url(where: Path | str) -> bool:
    """Return whether a place is no folder of this machine."""
    return isinstance(where, str) and "://" in where


class Folder:
    """The files of a folder, which is made when the first is written."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def within(self, name: str) -> Folder:
        """Return the files of a folder in this one."""
        return Folder(self.path / name)

    def read(self, name: str) -> bytes:
        """Return what a file holds."""
        return (self.path / name).read_bytes()

    def head(self, name: str) -> bytes:
        """Return the first bytes of a file."""
        with (self.path / name).open("rb") as file:
            return file.read(HEAD)

    def write(self, name: str, *parts: bytes | memoryview, room: int, before: str | None = None) -> None:
        """Write a file; whoever reads it finds this content or the one before, also after a power cut."""
        self.path.mkdir(parents=True, exist_ok=True)
        _check_room(self, self._bytes_beside(before or name), parts, room)
        path = self.path / name
        unfinished = path.with_name(f"{name}.{os.getpid()}.unfinished")
        try:
            with unfinished.open("wb") as file:
                for part in parts:
                    file.write(part)
                file.flush()
                os.fsync(file.fileno())
            if before is not None and path.exists():
                path.replace(self.path / before)
            unfinished.replace(path)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise

    def names(self, pattern: str) -> list[str]:
        """Return the names of the files that fit a pattern, sorted."""
        return sorted(path.name for path in self.path.glob(pattern) if path.is_file())

    def remove(self, *names: str) -> None:
        """Remove files that may be gone already, and the folder and the one around it if they are empty."""
        for name in names:
            (self.path / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # there are others in them, or they were never made
            self.path.rmdir()
            self.path.parent.rmdir()

    def clear(self) -> None:
        """Remove all files, also those of folders in this one."""
        shutil.rmtree(self.path, ignore_errors=True)
        self.remove()

    def check(self) -> None:
        """Raise OSError if the folder is none or may not be written, or could not be made."""
        there = next(path for path in (self.path, *self.path.parents) if path.exists() or path.is_symlink())
        if not there.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, f"{there} is no folder")
        if not os.access(there, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, f"{there} may not be written")

    def _bytes_beside(self, replaced: str) -> int:
        """Return the bytes of this folder without a file that is replaced."""
        total = 0
        for path in self.path.iterdir():
            with contextlib.suppress(FileNotFoundError):  # others replace and remove theirs
                total += path.stat().st_size if path.name != replaced else 0
        return total


class Bucket:
    """The files below a URL that fsspec knows; a file is put there in one piece.

    Raises:
        UsageError: if the URL's kind is not known, or the package for it is not installed.
    """

    def __init__(self, url: str) -> None:
        import fsspec

        kind = url.partition("://")[0]
        try:
            # What others write there is to be seen: no listing is kept.
            self.system, root = fsspec.url_to_fs(url, use_listings_cache=False)
        except ImportError:
            fix = "pip install 'floodsearch[s3]'" if kind == "s3" else "install what fsspec needs for it"
            raise UsageError(f"{url} cannot be used: a package for {kind}:// is missing; {fix}") from None
        except Exception as error:  # of whatever package is behind the URL
            raise UsageError(f"{url} cannot be used: {error}") from None
        self.url, self.root = url.rstrip("/"), PurePosixPath(root)

    def __str__(self) -> str:
        return self.url

    def within(self, name: str) -> Bucket:
        """Return the files of a folder in this one."""
        return Bucket(f"{self.url}/{name}")

    def read(self, name: str) -> bytes:
        """Return what a file holds."""
        with self._told():
            found: bytes = self.system.cat_file(self._path(name))
            return found

    def head(self, name: str) -> bytes:
        """Return the first bytes of a file."""
        with self._told():
            found: bytes = self.system.cat_file(self._path(name), start=0, end=HEAD)
            return found

    def write(self, name: str, *parts: bytes | memoryview, room: int, before: str | None = None) -> None:
        """Write a file; whoever reads it finds this content or the one before."""
        sizes = self._sizes()
        _check_room(self, sum(sizes.values()) - sizes.get(before or name, 0), parts, room)
        with self._told():
            if before is not None and name in sizes:
                self.system.mv(self._path(name), self._path(before))
            self.system.pipe_file(self._path(name), b"".join(parts))

    def names(self, pattern: str) -> list[str]:
        """Return the names of the files that fit a pattern, sorted."""
        return sorted(name for name in self._sizes() if fnmatch(name, pattern))

    def remove(self, *names: str) -> None:
        """Remove files that may be gone already."""
        there = self._sizes()
        with self._told():
            for name in there.keys() & set(names):
                with contextlib.suppress(FileNotFoundError):  # others remove them too
                    self.system.rm_file(self._path(name))

    def clear(self) -> None:
        """Remove all files, also those of folders in this one."""
        with self._told(), contextlib.suppress(FileNotFoundError):
            self.system.rm(str(self.root), recursive=True)

    def check(self) -> None:
        """Raise OSError if nothing can be written here, by writing something."""
        name = f"try-{uuid.uuid4().hex}"
        self.write(name, b"", room=ROOM)
        self.remove(name)

    def _path(self, name: str) -> str:
        return str(self.root / name)

    def _sizes(self) -> dict[str, int]:
        """Return the bytes of each file here, without those of folders in this one."""
        with self._told():
            self.system.invalidate_cache()
            found: dict[str, Any] = self.system.find(str(self.root), maxdepth=1, detail=True)
            return {PurePosixPath(path).name: int(one["size"]) for path, one in found.items()}

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Raise what a package of its own kind raises, such as a server that does not answer, as OSError."""
        try:
            yield
        except OSError:
            raise
        except Exception as error:
            raise OSError(f"{self.url}: {type(error).__name__}: {error}") from error


def _check_room(files: Files, beside: int, parts: tuple[bytes | memoryview, ...], room: int) -> None:
    if beside + sum(map(len, parts)) > room:
        raise OSError(f"{files} would hold more than {room:,} bytes")
