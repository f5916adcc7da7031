"""Which files a picture's weights came from, and their SHA-256: hashed once, and only when somebody asks.

A hash is kept in the process by path, size and time of writing; that of a large file in the user's cache
folder too, since ten gigabytes take ten seconds. Files in the hub's cache need no hashing: the hub names
them by it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewstep.errors import OutputError
from fewstep.files.output import cache_root, write_file

LARGE = 2**26  # bytes: hashes of larger files are kept on disk
MAX_KEPT = 4096  # hashes on disk
_BLOB = re.compile(r"[0-9a-f]{64}")  # the hub's name for a large file: its SHA-256
_CHUNK = 2**20
_known: dict[tuple[str, int, int], str] = {}  # (path, bytes, when it was written) → SHA-256


@dataclass(frozen=True, kw_only=True)
class UsedFile:
    """A file as it was when it was read."""

    name: str  # inside its model's folder, or its own
    path: Path
    bytes: int
    written: int  # nanoseconds

    @property
    def sha256(self) -> str:
        """Return its SHA-256; "" where it is gone or is another now."""
        return sha256_of(self) if self.unchanged else ""

    @property
    def unchanged(self) -> bool:
        """Return whether the file there is still the one that was read."""
        with suppress(OSError):
            stat = self.path.stat()
            return (stat.st_size, stat.st_mtime_ns) == (self.bytes, self.written)
        return False


@dataclass(frozen=True, kw_only=True)
class UsedWeights:
    """Files that one option of a call brought in."""

    option: str  # model, accelerator, vae, embeddings, loras, control, reference
    source: str  # as it was given: a name, a path, a hub id
    files: tuple[UsedFile, ...]
    weight: float | None = None  # of a mode's own LoRA

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data, the files with their hashes; of a LoRA what web UIs know it by too."""
        facts: dict[str, Any] = {
            "option": self.option,
            "source": self.source,
            "files": {file.name: file.sha256 for file in self.files},
        }
        if self.weight is not None:
            facts["weight"] = self.weight
        if self.option == "loras" or self.weight is not None:
            facts["tensors"] = tensors_hash(self.files[0])
        return facts


def used_file(path: Path, name: str = "") -> UsedFile:
    """Return a file as it is now; raises `OSError` where there is none."""
    stat = path.stat()
    return UsedFile(name=name or path.name, path=path, bytes=stat.st_size, written=stat.st_mtime_ns)


def used_files(paths: Sequence[Path], root: Path | None = None) -> tuple[UsedFile, ...]:
    """Return those of these files that are there, named by their places in `root`."""
    names = ((path, path.relative_to(root).as_posix() if root is not None else "") for path in paths)
    return tuple(used_file(path, name) for path, name in names if path.is_file())


def sha256_of(file: UsedFile) -> str:
    """Return the SHA-256 of a file, from what is known or by reading it."""
    real = os.path.realpath(file.path)
    if _BLOB.fullmatch(os.path.basename(real)):
        return os.path.basename(real)
    key = (real, file.bytes, file.written)
    if key not in _known and file.bytes > LARGE:
        _known.update(_read_kept())
    if key not in _known:
        with open(file.path, "rb") as opened:
            remember(file, hashlib.file_digest(opened, "sha256").hexdigest())
    return _known[key]


def remember(file: UsedFile, digest: str) -> None:
    """Keep a hash that was just computed."""
    key = (os.path.realpath(file.path), file.bytes, file.written)
    _known[key] = digest
    if file.bytes > LARGE:
        _keep({**_read_kept(), key: digest})


def tensors_hash(file: UsedFile) -> str:
    """Return the SHA-256 of what follows a safetensors file's header, by which web UIs know a LoRA.

    "" where the file is no longer the one that was read. (kohya's sd-scripts, library/train_util.py.)
    """
    if not file.unchanged:
        return ""
    key = (f"{os.path.realpath(file.path)}#tensors", file.bytes, file.written)
    if key not in _known:
        digest = hashlib.sha256()
        with open(file.path, "rb") as opened:
            opened.seek(8 + int.from_bytes(opened.read(8), "little"))
            while chunk := opened.read(_CHUNK):
                digest.update(chunk)
        _known[key] = digest.hexdigest()
    return _known[key]


def combined_hash(files: Mapping[str, str]) -> str:
    """Return one hash for several files by their names; of one file its own, "" where one is not known."""
    if not files or not all(files.values()):
        return ""
    if len(files) == 1:
        return next(iter(files.values()))
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(files.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def _cache_file() -> Path:
    return cache_root() / "hashes" / "sha256.json"


def _read_kept() -> dict[tuple[str, int, int], str]:
    """Return the hashes on disk; none where the file is missing or broken."""
    with suppress(OSError, ValueError, TypeError, RecursionError):
        rows = json.loads(_cache_file().read_text(encoding="utf-8"))
        return {
            (path, size, written): digest
            for path, size, written, digest in rows
            if isinstance(path, str) and _BLOB.fullmatch(digest)
        }
    return {}


def _keep(hashes: Mapping[tuple[str, int, int], str]) -> None:
    """Write the hashes to disk, the newest; where that cannot be, they are computed again."""
    rows = [[*key, digest] for key, digest in hashes.items()][-MAX_KEPT:]
    with suppress(OSError, OutputError):
        _cache_file().parent.mkdir(parents=True, exist_ok=True)
        write_file(_cache_file(), json.dumps(rows).encode(), overwrite=True)
