"""fewstep's own cache on disk: what can be made again, by kind, as large as is allowed and no larger.

An entry is a folder, complete or not there: it is written under another name and then renamed. That
it is used is noted in the time of its folder; the one longest unused leaves first.
"""

from __future__ import annotations

import os
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from fewstep.errors import OutputError, RequestError

PLACE = "FEWSTEP_CACHE"  # the environment variable of another place
LIMIT = "FEWSTEP_CACHE_GB"  # and of another size
DEFAULT_LIMIT = 20.0  # GB: SDXL in OpenVINO's form has 10
UNFINISHED = ".unfinished-"
BOUNDED = ("openvino",)  # kinds that are counted: others are a few lines, or were asked for by name


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A folder of the cache."""

    kind: str
    name: str
    path: Path
    size: int  # bytes
    used: float  # seconds since the epoch


def cache_root() -> Path:
    """Return where the cache is: `FEWSTEP_CACHE`, or the system's place for caches."""
    place = os.environ.get(PLACE, "")
    if place:
        return Path(place)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "fewstep"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", str(Path.home()))) / "fewstep" / "cache"
    return Path(os.environ.get("XDG_CACHE_HOME", "") or Path.home() / ".cache") / "fewstep"


def cache_folder(kind: str) -> Path:
    """Return the folder of one kind of entries; it need not be there."""
    return cache_root() / kind


def cache_limit() -> int:
    """Return the most bytes that entries may have: `FEWSTEP_CACHE_GB`, or 20 GB."""
    text = os.environ.get(LIMIT, "")
    try:
        limit = float(text) if text else DEFAULT_LIMIT
    except ValueError:
        raise RequestError(f"{LIMIT}={text!r}: give a number of gigabytes, such as 20") from None
    return int(limit * 1e9)


def entries() -> list[Entry]:
    """Return what is in the cache, that used last first."""
    found = [
        Entry(kind=kind.name, name=folder.name, path=folder, size=_folder_size(folder), used=_used(folder))
        for kind in _folders(cache_root())
        for folder in _folders(kind)
        if not folder.name.startswith(UNFINISHED)
    ]
    return sorted(found, key=lambda entry: -entry.used)


def find_entry(kind: str, name: str) -> Path | None:
    """Return the folder of a complete entry, and note that it is used; None where it is not there."""
    path = cache_folder(kind) / name
    if not path.is_dir():
        return None
    with suppress(OSError):  # a cache that one may read only
        os.utime(path)
    return path


def make_entry(kind: str, name: str, write: Callable[[Path], object]) -> Path:
    """Return the folder of an entry, which `write` fills where it is not there; older ones make room.

    Raises `OutputError` where the disk does not take it.
    """
    path = find_entry(kind, name)
    if path is not None:
        return path
    target = cache_folder(kind) / name
    unfinished = target.with_name(f"{UNFINISHED}{uuid.uuid4().hex}")
    try:
        unfinished.mkdir(parents=True)
        write(unfinished)
        with suppress(OSError):  # another process was first: its entry is as good
            unfinished.rename(target)
    except OSError as error:
        raise OutputError(f"the cache at {target} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    trim(keep=target)
    return target


def trim(keep: Path | None = None) -> None:
    """Remove the entries longest unused until the rest are within the limit; `keep` stays."""
    total, limit = 0, cache_limit()
    counted = [entry for entry in entries() if entry.kind in BOUNDED]
    for entry in sorted(counted, key=lambda entry: entry.path != keep):
        total += entry.size
        if total > limit and entry.path != keep:
            shutil.rmtree(entry.path, ignore_errors=True)


def clear(kind: str = "") -> int:
    """Remove all entries, or those of one kind, and what was left unfinished; returns the bytes freed."""
    folders = [folder for folder in _folders(cache_root()) if kind in ("", folder.name)]
    freed = sum(_folder_size(folder) for folder in folders)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    return freed - sum(_folder_size(folder) for folder in folders)


def _folders(path: Path) -> Iterator[Path]:
    if path.is_dir():
        yield from sorted(child for child in path.iterdir() if child.is_dir())


def _used(path: Path) -> float:
    with suppress(OSError):
        return path.stat().st_mtime
    return 0.0


def _folder_size(path: Path) -> int:
    """Return the bytes of all files in a folder; what goes away meanwhile counts nothing."""
    size = 0
    for folder, _, names in os.walk(path):
        for name in names:
            with suppress(OSError):
                size += os.stat(os.path.join(folder, name)).st_size
    return size
