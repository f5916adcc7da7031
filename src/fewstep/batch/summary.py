"""What lists the pictures of a batch: metadata.jsonl for data sets, timings.csv, failed.jsonl."""

from __future__ import annotations

import csv
import io
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from fewstep.batch import points
from fewstep.batch.lock import lock_summary
from fewstep.batch.manifest import STATE, read_pictures
from fewstep.batch.outcome import Outcome
from fewstep.errors import OutputError

METADATA = "metadata.jsonl"
TIMINGS = "timings.csv"
_COLUMNS = (
    "file", "line", "seconds", "batch", "mode", "model", "steps", "width", "height", "seed", "size",
)  # fmt: skip


def write_summary(out: Path) -> None:
    """List every picture that is recorded and there, in the order of lines; raises `OutputError`.

    metadata.jsonl is as Hugging Face's imagefolder reads it, and may be given as a job file again.
    """
    state = out / STATE
    with lock_summary(state), closing(sqlite3.connect("")) as database:
        database.execute(
            "CREATE TABLE pictures (key PRIMARY KEY, line INT, number INT, record TEXT) WITHOUT ROWID"
        )
        for record in read_pictures(state):
            row = (record["key"], record["line"], record["number"], json.dumps(record))
            database.execute("INSERT OR REPLACE INTO pictures VALUES (?, ?, ?, ?)", row)

        def records() -> Iterator[dict[str, Any]]:
            for (text,) in database.execute("SELECT record FROM pictures ORDER BY line, number, key"):
                record = json.loads(text)
                if os.path.lexists(out / record["file"]):
                    yield record

        _replace(
            out / METADATA, (json.dumps(metadata_of(record), ensure_ascii=False) for record in records())
        )
        points.reached("data set written")
        _replace(out / TIMINGS, _timing_lines(records()))


def metadata_of(record: dict[str, Any]) -> dict[str, Any]:
    """Return a picture's line of metadata.jsonl."""
    return {"file_name": record["file"], "id": record["key"], **record["options"], **record["extra"]}


def _timing_lines(records: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of timings.csv; a text that a spreadsheet would run as a formula is marked as text."""
    yield ",".join(_COLUMNS)
    for record in records:
        cells = {**record["options"], **record}
        line = io.StringIO()
        csv.writer(line, lineterminator="").writerow([_as_cell(cells.get(name, "")) for name in _COLUMNS])
        yield line.getvalue()


def _as_cell(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value[:1] in tuple("=+-@\t\r") else value


def _replace(path: Path, lines: Iterable[str]) -> None:
    """Write a file line by line beside its old self, and put it in its place."""
    scratch = path.parent / STATE / f"{path.name}.partial"
    try:
        with scratch.open("wb") as file:
            _write_lines(file, lines)
            file.flush()
            points.reached("data set half written")
            os.fsync(file.fileno())
        scratch.replace(path)
    except OSError as error:
        raise OutputError(f"{str(path)!r} cannot be written: {error.strerror or error}") from error


def _write_lines(file: BinaryIO, lines: Iterable[str]) -> None:
    for line in lines:
        file.write(line.encode("utf-8", "backslashreplace") + b"\n")


class FailedLines:
    """failed.jsonl: what could not be done in this run, each with its line and the reason."""

    def __init__(self, out: Path, runner: str):
        self._path = out / ("failed.jsonl" if runner == "1-of-1" else f"failed-{runner}.jsonl")
        self._file: BinaryIO | None = None

    def add(self, outcome: Outcome) -> None:
        """Write one down; raises `OutputError`."""
        facts = {"line": outcome.line, "reason": outcome.reason, **outcome.options}
        try:
            if self._file is None:
                self._file = self._path.open("wb")
            self._file.write(json.dumps(facts, default=str).encode() + b"\n")
            self._file.flush()
        except OSError as error:
            raise OutputError(f"{str(self._path)!r} cannot be written: {error.strerror or error}") from error

    def __enter__(self) -> Self:
        try:
            self._path.unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(f"{str(self._path)!r} cannot be written: {error.strerror or error}") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
