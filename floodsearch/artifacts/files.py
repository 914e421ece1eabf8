"""The files of a study, in a folder that this machine sees or in a bucket that many reach by its URL.

Both write a file whole or not at all. The files only save time, or are copies: the database holds the study.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import IO, Any, Protocol

from floodsearch.errors import UsageError

ROOM = 16 * 2**30
"""Bytes that the files of a study may have in one folder, beside those in other folders."""
PRIVATE_FILE, PRIVATE_FOLDER = 0o600, 0o700
"""Permissions of new files and folders: weights, logs and databases are for their owner only."""
HEAD = 128
"""Bytes that `head` returns at most."""


class Files(Protocol):
    """Named files beside each other. What fails raises OSError; what is not there FileNotFoundError."""

    def within(self, name: str) -> Files:
        """Return the files of a folder in this one."""

    def read(self, name: str) -> bytes:
        """Return the content of a file."""

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
        """Remove files that may be gone already, and the folder that is empty then."""

    def entries(self) -> list[str]:
        """Return the names of all that is here, also of folders and of links, sorted."""

    def check(self) -> None:
        """Raise OSError if nothing can be written here."""


def files_at(where: Path | str) -> Files:
    """Return the files of a folder, or of a URL such as `s3://BUCKET/PREFIX`.

    Raises:
        UsageError: if a URL cannot be used here, or a folder is in the home of nobody.
    """
    if not str(where).strip():
        raise UsageError("the place of the checkpoints is empty; give a folder, or leave it out")
    return Bucket(str(where)) if is_url(where) else Folder(expanded(Path(where)).absolute())


def check_place(where: Path | str, use: str = "checkpoints") -> None:
    """Raise if nothing can be written at a place, which later would only be a warning in each worker's log.

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
        why = hushed(str(error.strerror or error), str(where))
        raise UsageError(f"{shown(str(where))} cannot be used for {use}: {why}") from None


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


def shown(where: str) -> str:
    """Return a place for messages: of a URL without what may be a user, a password, a key or a token."""
    if not is_url(where):
        return where
    kind, _, rest = where.partition("://")
    return f"{kind}://{'***@' if '@' in rest else ''}{rest.rpartition('@')[2].partition('?')[0]}"


def hushed(words: str, where: str) -> str:
    """Return a text about a place, such as an error of a library, with the secrets of its URL masked."""
    before, _, after = where.partition("://")[2].rpartition("@")
    for secret in filter(None, (before, after.partition("?")[2])):
        words = words.replace(secret, "***")
    return words


class Folder:
    """The files of a folder, which is made when the first is written, for its owner only.

    Args:
        root: a folder of the user's choice, which may be a link.
        inside: the way from there. No link is followed on it, nor one in the place of a file: others may have
            put it there.
    """

    def __init__(self, root: Path, inside: tuple[str, ...] = ()) -> None:
        if any(part in ("", ".", "..") or "/" in part for part in inside):
            raise ValueError(f"{inside} leaves {root}")
        self.root, self.inside, self.path = root, inside, root.joinpath(*inside)

    def __str__(self) -> str:
        return str(self.path)

    def within(self, name: str) -> Folder:
        """Return the files of a folder in this one."""
        return Folder(self.root, (*self.inside, *name.split("/")))

    def read(self, name: str) -> bytes:
        """Return the content of a file."""
        with self.open(name) as file:
            return file.read()

    def head(self, name: str) -> bytes:
        """Return the first bytes of a file."""
        with self.open(name) as file:
            return file.read(HEAD)

    def open(self, name: str) -> IO[bytes]:
        """Open a file to read it."""
        return self._file(name, os.O_RDONLY)

    def append(self, name: str) -> IO[bytes]:
        """Open a file to add to its end."""
        self.make()
        return self._file(name, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def write(self, name: str, *parts: bytes | memoryview, room: int, before: str | None = None) -> None:
        """Write a file; whoever reads it finds this content or the one before, also after a power cut."""
        self.make()
        _check_room(self, self._bytes_beside(before or name), parts, room)
        unfinished = f"{name}.{os.getpid()}.unfinished"
        with self._opened() as here:
            try:
                with self._file(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as file:
                    for part in parts:
                        file.write(part)
                    file.flush()
                    os.fsync(file.fileno())
                    if (earlier := _mode_of(name, here)) is not None:
                        os.fchmod(file.fileno(), earlier)
                if before is not None and earlier is not None:
                    os.replace(name, before, src_dir_fd=here, dst_dir_fd=here)
                os.replace(unfinished, name, src_dir_fd=here, dst_dir_fd=here)
            except BaseException:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(unfinished, dir_fd=here)
                raise

    def names(self, pattern: str) -> list[str]:
        """Return the names of the files that fit a pattern, sorted."""
        files = self._listed(lambda entry: entry.is_file(follow_symlinks=False))
        return sorted(name for name in files if fnmatch(name, pattern))

    def entries(self) -> list[str]:
        """Return the names of all that is here, also of folders and of links, sorted."""
        return sorted(self._listed(lambda entry: True))

    def remove(self, *names: str) -> None:
        """Remove files that may be gone already, and those folders below the root that are empty then."""
        with contextlib.suppress(FileNotFoundError), self._opened() as here:
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=here)
        around = Folder(self.root, self.inside[:-1])
        with contextlib.suppress(OSError), around._opened() as outside:  # others in it, or never made
            if self.inside:
                os.rmdir(self.inside[-1], dir_fd=outside)
                around.remove()

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
        with self._opened() as here:
            for name in os.listdir(here):  # noqa: PTH208 - a number, not a path
                with contextlib.suppress(FileNotFoundError):  # others replace and remove theirs
                    size = os.stat(name, dir_fd=here, follow_symlinks=False).st_size
                    total += size if name != replaced else 0
        return total

    def remove_folder(self, name: str) -> None:
        """Remove a folder in this one with all that is in it, as far as that can be, and through no link."""
        with contextlib.suppress(OSError), self._opened() as here:
            shutil.rmtree(name, dir_fd=here)

    def make(self) -> Path:
        """Make what is missing of the folder and those around it, for their owner only; return its path.

        Raises:
            OSError: if it cannot be made, or a link is in its place.
        """
        for path in reversed([one for one in (self.root, *self.root.parents) if not one.exists()]):
            _make_private(path)
        for depth in range(len(self.inside)):
            with Folder(self.root, self.inside[:depth])._opened() as around:
                _make_private(self.inside[depth], around)
        with self._opened():
            return self.path

    @contextlib.contextmanager
    def _opened(self) -> Iterator[int]:
        """Give a descriptor of the folder; files are named relative to it, and no link leads out of it."""
        here = os.open(self.root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            for part in self.inside:
                inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=here)
                os.close(here)
                here = inner
            yield here
        finally:
            os.close(here)

    def _file(self, name: str, flags: int) -> IO[bytes]:
        """Open a file, which is made for its owner only, whatever the umask."""
        with self._opened() as here:
            new = _mode_of(name, here) is None
            number = os.open(name, flags | os.O_NOFOLLOW, PRIVATE_FILE, dir_fd=here)
        if new:
            os.fchmod(number, PRIVATE_FILE)
        return os.fdopen(number, "rb" if flags == os.O_RDONLY else "wb")

    def _listed(self, wanted: Callable[[os.DirEntry[str]], bool]) -> list[str]:
        with contextlib.suppress(FileNotFoundError), self._opened() as here, os.scandir(here) as found:
            return [entry.name for entry in found if wanted(entry)]
        return []


def _make_private(path: Path | str, around: int | None = None) -> None:
    """Make a folder for its owner only, whatever the umask; one that is there stays as it is."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, PRIVATE_FOLDER, dir_fd=around)
        os.chmod(path, PRIVATE_FOLDER, dir_fd=around)


def _mode_of(name: str, here: int) -> int | None:
    """Return the permissions of a file; None if it is not there."""
    try:
        return stat.S_IMODE(os.stat(name, dir_fd=here, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return None


def make_private(path: Path) -> None:
    """Make an empty file for its owner only, whatever the umask, unless there is one; as far as possible."""
    with contextlib.suppress(OSError):
        number = os.open(path.resolve(), os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE_FILE)
        os.fchmod(number, PRIVATE_FILE)
        os.close(number)


class Bucket:
    """The files below a URL that fsspec knows; a file is put there in one piece.

    Raises:
        UsageError: if the URL's kind is not known, or the package for it is not installed.
    """

    def __init__(self, url: str) -> None:
        import fsspec

        kind, name = url.partition("://")[0], shown(url)
        if kind in ("s3", "s3a") and ":" in url.partition("://")[2].rpartition("@")[0]:
            raise UsageError(
                f"{name} holds a key; put it where AWS's own tools have theirs, and write s3://BUCKET/PREFIX"
            )
        try:
            # What others write there is to be seen: no listing is kept.
            self.system, root = fsspec.url_to_fs(url, use_listings_cache=False)
        except ImportError:
            fix = "pip install 'floodsearch[s3]'" if kind == "s3" else "install what fsspec needs for it"
            raise UsageError(f"{name} cannot be used: a package for {kind}:// is missing; {fix}") from None
        except Exception as error:  # of whatever package is behind the URL
            raise UsageError(f"{name} cannot be used: {hushed(str(error), url)}") from None
        self.url, self.root = url.rstrip("/"), PurePosixPath(root)

    def __str__(self) -> str:
        return shown(self.url)

    def within(self, name: str) -> Bucket:
        """Return the files of a folder in this one."""
        return Bucket(f"{self.url}/{name}")

    def read(self, name: str) -> bytes:
        """Return the content of a file."""
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

    def entries(self) -> list[str]:
        """Return the names of all that is here, also of folders, sorted."""
        with self._told(), contextlib.suppress(FileNotFoundError):
            self.system.invalidate_cache()
            return sorted(PurePosixPath(path).name for path in self.system.ls(str(self.root), detail=False))
        return []

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
        """Raise errors within this as OSError, whatever class the package behind the URL gives them."""
        try:
            yield
        except OSError:
            raise
        except Exception as error:
            raise OSError(f"{self}: {type(error).__name__}: {hushed(str(error), self.url)}") from error


def _check_room(files: Files, beside: int, parts: tuple[bytes | memoryview, ...], room: int) -> None:
    if beside + sum(map(len, parts)) > room:
        raise OSError(f"{files} would hold more than {room:,} bytes")
