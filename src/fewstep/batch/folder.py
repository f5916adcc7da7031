"""`OutputFolder`: pictures' files, each whole or not at all, and none outside whatever links are laid.

Folders are opened one below the other and never through a link; a file gets its name when it is on disk.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fewstep.batch import points
from fewstep.batch.manifest import STATE
from fewstep.errors import OutputError

# What is wrong with one name alone; every other error is the disk's, or the folder's.
_OF_ONE_FILE = {
    errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ,
    errno.ENOTEMPTY,
}  # fmt: skip
_FOLDER = getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0)
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
_BY_FOLDER = os.open in os.supports_dir_fd  # not on Windows


class NameTakenError(OutputError):
    """One file's name cannot be used; others can."""


class OutputFolder:
    """The folder that pictures go to."""

    def __init__(self, out: Path, runner: str):
        self.path = out
        self._scratch = out / STATE / f"partial-{runner}"
        try:
            self._scratch.mkdir(parents=True, exist_ok=True)
            for left_over in self._scratch.iterdir():  # of a run that was killed
                left_over.unlink()
        except OSError as error:
            raise _unwritable(out, error) from error

    def write(self, name: str, content: bytes, *, replace: bool) -> None:
        """Write one file, on disk when this returns; its folder is not, before `sync`.

        Raises `NameTakenError` where the name is taken, unless `replace`; `OutputError` where nothing can be
        written.
        """
        scratch = self._scratch / secrets.token_hex(8)
        *folders, file_name = name.split("/")
        try:
            _write_new(scratch, content)
            points.reached("file written")
            if _BY_FOLDER:
                with self._opened(folders) as folder:
                    _place(scratch, folder, file_name, replace=replace)
            else:
                self._place_by_path(scratch, name, replace=replace)
            points.reached("file in place")
        except OSError as error:
            if isinstance(error, OutputError):
                raise
            raise _unwritable(self.path / name, error) from error
        finally:
            with suppress(OSError):
                scratch.unlink()

    def sync(self, names: list[str]) -> None:
        """Have the names of these files on disk."""
        if not _BY_FOLDER:
            return
        for folder_name in {name.rpartition("/")[0] for name in names}:
            with self._opened(folder_name.split("/") if folder_name else []) as folder:
                os.fsync(folder)

    def size(self, name: str) -> int:
        """Return a file's bytes; -1 where there is none."""
        try:
            status = os.lstat(self.path / name)
        except OSError:
            return -1
        return status.st_size

    def _place_by_path(self, scratch: Path, name: str, *, replace: bool) -> None:
        """Give a finished file its name where folders cannot be opened, as on Windows."""
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if not Path(os.path.realpath(target.parent)).is_relative_to(os.path.realpath(self.path)):
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        if replace:
            scratch.replace(target)
        else:
            scratch.rename(target)  # on Windows it fails where there is one

    @contextmanager
    def _opened(self, folders: list[str]) -> Iterator[int]:
        """Open a folder below this one, made where it is not there; never through a link."""
        current = os.open(self.path, os.O_RDONLY | getattr(os, "O_DIRECTORY", 0))
        try:
            for name in folders:
                with suppress(FileExistsError):
                    os.mkdir(name, dir_fd=current)
                inner = os.open(name, os.O_RDONLY | _FOLDER, dir_fd=current)
                os.close(current)
                current = inner
            yield current
        finally:
            os.close(current)


def _write_new(path: Path, content: bytes) -> None:
    file = os.open(path, _NEW, 0o666)
    try:
        written = os.write(file, content[: len(content) // 2])
        points.reached("file half written")
        while written < len(content):
            written += os.write(file, content[written:])
        os.fsync(file)
    finally:
        os.close(file)


def _place(scratch: Path, folder: int, name: str, *, replace: bool) -> None:
    """Give a finished file its name; `FileExistsError` where that is taken."""
    if replace:
        os.replace(scratch, name, dst_dir_fd=folder)
        return
    try:
        os.link(scratch, name, dst_dir_fd=folder)
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV):
            raise
        os.close(os.open(name, _NEW, dir_fd=folder))  # a file system without hard links: take the name first
        os.replace(scratch, name, dst_dir_fd=folder)


def _unwritable(path: Path, error: OSError) -> OutputError:
    if error.errno == errno.EEXIST:
        return NameTakenError(f"{str(path)!r} is there already: move it away, or choose another name")
    if error.errno in (errno.ELOOP, errno.ENOTDIR):
        return NameTakenError(f"{str(path)!r} leads through a link or a file: choose another name")
    if error.errno in _OF_ONE_FILE:
        return NameTakenError(f"{str(path)!r} cannot be written: {error.strerror or error}")
    return OutputError(
        f"{str(path)!r} cannot be written: {error.strerror or error}; the same command goes on from here"
    )
