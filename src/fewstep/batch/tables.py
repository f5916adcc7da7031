"""Tables of jobs: CSV as spreadsheets write it, and those of pandas, polars and Arrow in memory."""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterator, Mapping
from typing import Any, get_args

from fewstep.batch.rows import BadLine, Line, Notify, make_row, name_columns
from fewstep.errors import RequestError
from fewstep.request.options import OPTIONS

DELIMITERS = (",", ";", "\t")


def csv_lines(
    numbered: Iterator[tuple[int, str | None]], keep: Collection[str], notify: Notify
) -> Iterator[Line]:
    """Yield the rows of a CSV file, whose first line names the columns; raises `RequestError` there."""
    physical = _PhysicalLines(numbered)
    header, delimiter = _read_header(physical, keep, notify)
    reader = csv.reader(physical, delimiter=delimiter, strict=True)
    while True:
        line = physical.line + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            unclosed = "; a quote is never closed" if "end of data" in str(error) else ""
            yield BadLine(line=line, reason=f"it is no CSV: {error}{unclosed}")
            continue
        if physical.fault:
            yield BadLine(line=line, reason=physical.take_fault())
        elif not any(cell.strip() for cell in cells):
            continue
        elif len(cells) > len(header):
            reason = (
                f"it has {len(cells)} cells, and line 1 has {len(header)}: put cells with commas in quotes"
            )
            yield BadLine(line=line, reason=reason)
        else:
            yield make_row(line, dict(zip(header, cells, strict=False)), keep, notify, text=True)


class _PhysicalLines:
    """The lines of a file for `csv.reader`, with the number of the last one read, and what was wrong."""

    def __init__(self, numbered: Iterator[tuple[int, str | None]]):
        self._numbered, self.line, self.fault = numbered, 0, ""

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        self.line, text = next(self._numbered)
        if text is None:
            self.fault = "it is too long"
            return "\n"
        if any("\udc80" <= letter <= "\udcff" for letter in text):
            self.fault = "it is not in UTF-8: save the file as UTF-8"
        return text

    def take_fault(self) -> str:
        """Return what was wrong, and forget it."""
        fault, self.fault = self.fault, ""
        return fault


def _read_header(physical: _PhysicalLines, keep: Collection[str], notify: Notify) -> tuple[list[str], str]:
    """Return the columns' names and what stands between cells; raises `RequestError`."""
    text = next(physical, "")
    if physical.fault or not text.strip():
        raise RequestError(f"line 1 names no columns: {physical.fault or 'write prompt,seed,steps'}")
    error: RequestError | None = None
    for delimiter in DELIMITERS:
        try:
            header = [cell.strip() for cell in next(csv.reader([text], delimiter=delimiter))]
            if "prompt" in name_columns(header, keep, notify).values() or len(header) > 1:
                return header, delimiter
        except csv.Error as failure:
            error = error or RequestError(str(failure))
        except RequestError as failure:
            error = error or failure
    raise RequestError(f"line 1: {error or 'no column is called prompt'}")


def table_rows(table: Any) -> Iterator[Mapping[str, Any]] | None:
    """Yield the rows of a pandas, polars or Arrow table as dicts, without missing cells; None: it is none."""
    if hasattr(table, "to_batches"):  # pyarrow.Table
        return (row for batch in table.to_batches() for row in batch.to_pylist())
    if hasattr(table, "iter_rows"):  # polars
        rows: Iterator[Mapping[str, Any]] = table.iter_rows(named=True)
        return rows
    if hasattr(table, "iloc") and hasattr(table, "columns"):  # pandas
        return _pandas_rows(table)
    return None


def _pandas_rows(table: Any) -> Iterator[Mapping[str, Any]]:
    """Yield rows; a column of whole numbers with gaps, which pandas holds as floats, is one again."""
    names = list(table.columns)
    gaps = {name for name in names if _counts(name) and str(table[name].dtype).startswith("float")}
    for cells in table.itertuples(index=False, name=None):
        yield {
            name: int(cell) if name in gaps and float(cell).is_integer() else cell
            for name, cell in zip(names, cells, strict=True)
            if not _is_missing(cell)
        }


def _counts(name: Any) -> bool:
    """Return whether an option is a whole number."""
    option = OPTIONS.get(name) if isinstance(name, str) else None
    return name == "steps" or (option is not None and int in (option.type, *get_args(option.type)))


def _is_missing(cell: Any) -> bool:
    """Return whether it is None, NaN, NaT or pandas' NA."""
    if cell is None or type(cell).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(cell, float) and cell != cell
