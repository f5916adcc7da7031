"""The manifest: one append-only file of what is done, read back after whatever happened.

A line is a JSON object: `{"writing": [names]}` before files of these names get their place, or a picture
that is on disk, with its key. A line that was cut off is taken off again. Each runner of a job has its own.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from fewstep.batch import points
from fewstep.errors import OutputError

STATE = ".batch"  # folder of fewstep's own files in the output folder
_TAIL = 1 << 16  # bytes read at once from the end


def state_folder(out: Path) -> Path:
    """Return the folder of a batch's own files; raises `OutputError` where it cannot be."""
    folder = out / STATE
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{str(out)!r} cannot be written: {error.strerror or error}") from error
    return folder


class Manifest:
    """Appends records, each on disk before `append` returns. One process at a time: see `JobLock`."""

    def __init__(self, folder: Path, runner: str):
        self._path = folder / f"manifest-{runner}.jsonl"
        try:
            self._file = os.open(
                self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o666
            )
            self._size = _whole_lines(self._file)
            os.ftruncate(self._file, self._size)
        except OSError as error:
            raise _unwritable(self._path, error) from error

    def append(self, records: Sequence[Mapping[str, Any]]) -> None:
        """Write records; raises `OutputError` where that fails, with the file as it was."""
        block = "".join(json.dumps(record, ensure_ascii=True) + "\n" for record in records).encode()
        try:
            written = os.write(self._file, block[: len(block) // 2])
            points.reached("manifest half written")
            while written < len(block):
                written += os.write(self._file, block[written:])
            os.fsync(self._file)
        except OSError as error:
            self._cut_off()
            raise _unwritable(self._path, error) from error
        self._size += len(block)

    def _cut_off(self) -> None:
        with suppress(OSError):  # the next run does it
            os.ftruncate(self._file, self._size)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def read_manifests(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of all runners; what another is just writing, or is damaged, is left out."""
    for path in sorted(folder.glob("manifest-*.jsonl")):
        with path.open("rb") as file:
            for block in file:
                if not block.endswith(b"\n"):
                    break
                try:
                    record = json.loads(block)
                except ValueError:
                    continue
                if isinstance(record, dict):
                    yield record


def read_pictures(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of pictures alone."""
    return (record for record in read_manifests(folder) if "key" in record and "file" in record)


def _whole_lines(file: int) -> int:
    """Return up to where a file has whole lines, in bytes."""
    end = os.lseek(file, 0, os.SEEK_END)
    while end:
        start = max(0, end - _TAIL)
        os.lseek(file, start, os.SEEK_SET)
        newline = os.read(file, end - start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


def _unwritable(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"{str(path)!r} cannot be written: {error.strerror or error}; the same command goes on from here"
    )
