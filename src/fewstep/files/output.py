"""Files that are written whole or not at all, places that are tried before the work, and our own cache's.

Every error is an `OutputError` that names the path.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from fewstep.errors import OutputError

CACHE = "FEWSTEP_CACHE"  # the environment variable of another place for what can be made again
_CHUNK = 1 << 20  # bytes written at once


def cache_root() -> Path:
    """Return where what can be made again is kept: `FEWSTEP_CACHE`, or the system's place for caches."""
    place = os.environ.get(CACHE, "")
    if place:
        return Path(place)
    from platformdirs import user_cache_path

    return user_cache_path("fewstep", appauthor=False)


def write_file(path: Path, content: bytes, *, overwrite: bool) -> None:
    """Write a file: it appears whole or not at all; one that exists stays unless `overwrite`."""
    with _scratch_file(path) as scratch:
        try:
            with scratch.open("xb") as file:
                file.write(content)
            if overwrite:
                scratch.replace(path)
            else:
                _give_final_name(scratch, path)
        except FileExistsError:
            raise OutputError(f"{str(path)!r} exists: choose another name, or overwrite=True") from None
        except OSError as error:
            raise _unwritable(path, error) from error


def try_writing(paths: Sequence[Path], size: int) -> None:
    """Check that files of these names can be written, `size` bytes in all; leaves nothing behind.

    All are in one folder.
    """
    for path in paths:
        try:
            if path.is_dir():
                raise OutputError(f"{str(path)!r} cannot be written: it is a folder")
            path.lstat()  # asks for every byte of the name
        except FileNotFoundError:
            pass
        except OutputError:
            raise
        except OSError as error:
            raise _unwritable(path, error) from error
    with _scratch_file(paths[0]) as scratch:
        try:
            with scratch.open("xb") as file:
                for start in range(0, size, _CHUNK):
                    file.write(bytes(min(_CHUNK, size - start)))
        except OSError as error:
            raise _unwritable(paths[0], error) from error


@contextmanager
def _scratch_file(path: Path) -> Iterator[Path]:
    """A name beside `path` that nobody has, short because `path`'s own may be as long as names can be."""
    scratch = path.with_name(f".{secrets.token_hex(8)}.partial")
    try:
        yield scratch
    finally:
        with suppress(OSError):  # it may never have been, or have its final name
            scratch.unlink()


def _give_final_name(scratch: Path, path: Path) -> None:
    """Give the finished file its name; unlike a rename, `FileExistsError` where that is taken."""
    try:
        os.link(scratch, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links: take the name first
        path.open("xb").close()
        scratch.replace(path)


def _unwritable(path: Path, error: OSError) -> OutputError:
    return OutputError(f"{str(path)!r} cannot be written: {error.strerror or error}")
