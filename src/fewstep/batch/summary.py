"""What lists the pictures of a batch: metadata.jsonl for data sets, index.html, timings.csv, failed.jsonl."""

from __future__ import annotations

import csv
import io
import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from fewstep.batch import points
from fewstep.batch.lock import lock_summary
from fewstep.batch.manifest import STATE, read_pictures
from fewstep.batch.outcome import Outcome
from fewstep.batch.page import render_pages, write_sheets
from fewstep.errors import OutputError

METADATA = "metadata.jsonl"
TIMINGS = "timings.csv"
_TABLE = "CREATE TABLE pictures (key PRIMARY KEY, line INT, number INT, record TEXT) WITHOUT ROWID"
_COLUMNS = (
    "file", "line", "seconds", "batch", "mode", "model", "steps", "width", "height", "seed", "size",
)  # fmt: skip


def write_summary(out: Path, title: str, *, pages: bool) -> None:
    """List every picture that is recorded and there, in the order of lines; raises `OutputError`.

    metadata.jsonl is as Hugging Face's imagefolder reads it, and may be given as a job file again.
    pages: whether it and index.html are written, as for a folder of pictures.
    """
    with lock_summary(out / STATE), _sorted_records(out) as (records, count):
        if pages:
            lines = (json.dumps(metadata_of(record), ensure_ascii=False) + "\n" for record in records())
            _replace(out / METADATA, lines)
            points.reached("data set written")
            for name, text in render_pages(title, records(), count):
                _replace(out / name, text)
        _replace(out / TIMINGS, _timing_lines(records()))


def write_sheet_of(out: Path, sheet: str | Path) -> list[Path]:
    """Write contact sheets of all pictures that are recorded and there; returns their paths."""
    with _sorted_records(out) as (records, _):
        return write_sheets(sheet, out, records())


@contextmanager
def _sorted_records(out: Path) -> Iterator[tuple[Callable[[], Iterator[dict[str, Any]]], int]]:
    """Give what yields the records of pictures that are there, by line, and how many they are."""
    with closing(sqlite3.connect("")) as database:
        database.execute(_TABLE)
        for record in read_pictures(out / STATE):
            if os.path.lexists(out / record["file"]):
                row = (record["key"], record["line"], record["number"], json.dumps(record))
                database.execute("INSERT OR REPLACE INTO pictures VALUES (?, ?, ?, ?)", row)

        def records() -> Iterator[dict[str, Any]]:
            for (text,) in database.execute("SELECT record FROM pictures ORDER BY line, number, key"):
                yield json.loads(text)

        yield records, database.execute("SELECT COUNT(*) FROM pictures").fetchone()[0]


def metadata_of(record: dict[str, Any]) -> dict[str, Any]:
    """Return a picture's line of metadata.jsonl."""
    return {"file_name": record["file"], "id": record["key"], **record["options"], **record["extra"]}


def _timing_lines(records: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Yield the lines of timings.csv; a text that a spreadsheet would run as a formula is marked as text."""
    yield ",".join(_COLUMNS) + "\n"
    for record in records:
        cells = {**record["options"], **record}
        line = io.StringIO()
        csv.writer(line, lineterminator="\n").writerow([_as_cell(cells.get(name, "")) for name in _COLUMNS])
        yield line.getvalue()


def _as_cell(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value[:1] in tuple("=+-@\t\r") else value


def _replace(path: Path, lines: Iterable[str]) -> None:
    """Write a file piece by piece beside its old self, and put it in its place."""
    scratch = path.parent / STATE / f"{path.name}.partial"
    try:
        with scratch.open("wb") as file:
            for line in lines:
                file.write(line.encode("utf-8", "backslashreplace"))
            file.flush()
            points.reached("data set half written")
            os.fsync(file.fileno())
        scratch.replace(path)
    except OSError as error:
        raise OutputError(f"{str(path)!r} cannot be written: {error.strerror or error}") from error


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
