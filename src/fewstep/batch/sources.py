"""Where jobs come from: files, standard input, dicts, tables → lines with their numbers.

Files are not trusted: a line has at most `MAX_LINE` bytes, and what is wrong with one is said of that one.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from fewstep.batch import a1111, tables
from fewstep.batch.rows import BadLine, Line, Notify, Row, make_row, parse_json
from fewstep.errors import RequestError

MAX_LINE = 1 << 20  # bytes of a line
MAX_JSON = 1 << 26  # bytes of a JSON file that is one list
STDIN = "-"
KINDS: Mapping[str, str] = {
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json", ".csv": "csv", ".tsv": "csv", ".txt": "txt",
}  # fmt: skip

Jobs: TypeAlias = str | Path | Iterable[Mapping[str, Any]] | Any  # or a table of pandas, polars or Arrow


@dataclass(frozen=True, kw_only=True)
class Source:
    """Lines that can be read, once."""

    name: str
    lines: Callable[[], Iterator[Line]]
    streamed: bool = False  # whether its end may be far: lines are drawn before it
    notes: dict[str, None] = field(default_factory=dict)  # what is to be said of it, once


def open_source(jobs: Jobs, read_as: str = "", keep: tuple[str, ...] = ()) -> Source:
    """Return where the lines of `jobs` come from; raises `RequestError` where it can be told already.

    read_as: "jsonl", "json", "csv" or "txt", where a file's ending does not say it.
    """
    notes: dict[str, None] = {}
    notify = notes.setdefault
    if not isinstance(jobs, str | os.PathLike):
        streamed = not isinstance(jobs, Sized)
        return Source(
            name="the given jobs",
            lines=lambda: _given_lines(jobs, keep, notify),
            streamed=streamed,
            notes=notes,
        )
    name = os.fspath(jobs)
    if name == STDIN:
        return Source(
            name="standard input", notes=notes, streamed=True,
            lines=lambda: _file_lines(sys.stdin.buffer, read_as, keep, notify),
        )  # fmt: skip
    path = Path(name)
    if not path.is_file():
        raise RequestError(f"there is no file {name!r}: give a .jsonl, .json, .csv, .tsv or .txt, or -")
    kind = read_as or KINDS.get(path.suffix.lower(), "")
    if not kind:
        raise RequestError(f"{name!r}: what is in it? Type --read-as jsonl, json, csv or txt")

    def lines() -> Iterator[Line]:
        with path.open("rb") as file:
            yield from _file_lines(file, kind, keep, notify)

    return Source(name=path.name, lines=lines, notes=notes)


def _file_lines(file: BinaryIO, kind: str, keep: tuple[str, ...], notify: Notify) -> Iterator[Line]:
    """Yield the lines of an open file; without a kind, its first character tells JSON from prompts."""
    numbered = _text_lines(file)
    if not kind:
        first = next(numbered, None)
        if first is None:
            return
        kind = "jsonl" if first[1] is not None and first[1].lstrip().startswith("{") else "txt"
        numbered = _chain(first, numbered)
    if kind == "csv":
        yield from tables.csv_lines(numbered, keep, notify)
    elif kind == "json":
        yield from _json_lines(numbered, keep, notify)
    else:
        read = _jsonl_line if kind == "jsonl" else _text_line
        for line, text in numbered:
            if text is None:
                yield BadLine(line=line, reason=f"it has more than {MAX_LINE} bytes")
            elif _has_surrogates(text):
                yield BadLine(line=line, reason="it is not in UTF-8: save the file as UTF-8")
            elif text.strip():
                yield read(line, text, keep, notify)


def _chain(first: tuple[int, str | None], rest: Iterator[tuple[int, str | None]]) -> Iterator[Any]:
    yield first
    yield from rest


def _text_lines(file: BinaryIO) -> Iterator[tuple[int, str | None]]:
    """Yield line numbers and lines with their ends, bytes that are not UTF-8 as half characters.

    None stands for a line that is too long. Raises `RequestError` for UTF-16.
    """
    number = 0
    while block := file.readline(MAX_LINE + 1):
        number += 1
        if number == 1:
            if block.startswith((b"\xff\xfe", b"\xfe\xff")):
                raise RequestError("the jobs are in UTF-16: save them as UTF-8")
            block = block.removeprefix(b"\xef\xbb\xbf")
        if len(block) > MAX_LINE:
            while block and not block.endswith(b"\n"):
                block = file.readline(MAX_LINE)
            yield number, None
        else:
            yield number, block.decode("utf-8", "surrogateescape")


def _has_surrogates(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _jsonl_line(line: int, text: str, keep: tuple[str, ...], notify: Notify) -> Line:
    try:
        content = parse_json(text)
    except ValueError as error:
        return BadLine(line=line, reason=f"it is no JSON: {error}")
    return _object_line(line, content, keep, notify)


def _object_line(line: int, content: Any, keep: tuple[str, ...], notify: Notify) -> Line:
    if isinstance(content, str):
        content = {"prompt": content}
    if not isinstance(content, Mapping):
        return BadLine(line=line, reason='it is no object: write {"prompt": "a fox", "seed": 1}')
    return make_row(line, content, keep, notify)


def _text_line(line: int, text: str, keep: tuple[str, ...], notify: Notify) -> Line:
    """Return a line of plain text: a prompt, or A1111's options."""
    prompt = text.strip()
    if prompt.startswith("--"):
        return a1111.option_line(line, prompt, keep, notify)
    return Row(line=line, values={"prompt": prompt})


def _json_lines(
    numbered: Iterator[tuple[int, str | None]], keep: tuple[str, ...], notify: Notify
) -> Iterator[Line]:
    """Yield the entries of a file that is one JSON list; their numbers are places in it."""
    parts, size = list[str](), 0
    for _, text in numbered:
        size += MAX_JSON if text is None else len(text)
        if size >= MAX_JSON:
            raise RequestError(
                f"a JSON list of over {MAX_JSON >> 20} MiB: write JSONL, an object on each line"
            )
        parts.append(text or "")
    try:
        entries = parse_json("".join(parts))
    except ValueError as error:
        raise RequestError(f"the jobs are no JSON: {error}") from None
    if not isinstance(entries, list):
        raise RequestError('the jobs are no JSON list: write [{"prompt": "a fox"}, {"prompt": "an owl"}]')
    for place, entry in enumerate(entries, 1):
        yield _object_line(place, entry, keep, notify)


def _given_lines(jobs: Any, keep: tuple[str, ...], notify: Notify) -> Iterator[Line]:
    """Yield what a caller gave: dicts, prompts, or the rows of a table."""
    rows = tables.table_rows(jobs)
    try:
        rows = iter(jobs) if rows is None else rows
    except TypeError:
        raise RequestError(f"jobs={jobs!r:.80}: give a file, dicts, or a table") from None
    for place, content in enumerate(rows, 1):
        yield _object_line(place, content, keep, notify)
