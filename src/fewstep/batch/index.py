"""All pictures of a job in a temporary database on disk, so that memory stays flat over a million lines."""

from __future__ import annotations

import itertools
import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, NamedTuple

_TABLES = """
CREATE TABLE pictures (position INTEGER PRIMARY KEY, line INT, number INT, engine INT, call TEXT, key TEXT,
                       request TEXT, name TEXT, pixels INT, cost REAL, options TEXT, extra TEXT);
CREATE TABLE plan (position INTEGER PRIMARY KEY, call_number INT, shard INT, needed INT, kept INT);
CREATE TABLE keys (key TEXT PRIMARY KEY, request TEXT, line INT) WITHOUT ROWID;
CREATE TABLE names (folded TEXT PRIMARY KEY, line INT) WITHOUT ROWID;
CREATE TABLE repeats (content TEXT PRIMARY KEY, count INT) WITHOUT ROWID;
CREATE TABLE records (key TEXT PRIMARY KEY, request TEXT, file TEXT, size INT) WITHOUT ROWID;
CREATE TABLE started (name TEXT PRIMARY KEY) WITHOUT ROWID;
"""
# As they are drawn: by engine, by call, by place, engines and calls as they first come.
_OUTLINE = """
SELECT position, line, number, engine, call, key, request, name, pixels, cost,
       MIN(position) OVER (PARTITION BY engine) AS first_of_engine,
       MIN(position) OVER (PARTITION BY engine, call) AS first_of_call
FROM pictures ORDER BY first_of_engine, engine, first_of_call, call, position
"""
_PENDING = """
SELECT pictures.*, call_number, needed FROM plan JOIN pictures USING (position)
WHERE call_number IN (SELECT call_number FROM plan WHERE needed AND shard = ?)
ORDER BY call_number, position
"""
_MEMBERS = """
SELECT key, request, name FROM plan JOIN pictures USING (position) WHERE shard = ?
ORDER BY call_number, position
"""
_LEFT = "SELECT COUNT(*), TOTAL(cost) FROM plan JOIN pictures USING (position) WHERE needed"


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One picture that is to be, planned."""

    position: int  # among all of the job, from 0
    line: int
    number: int  # among those of its line, from 0
    engine: int
    call: str  # hash of what it shares with those that it may be drawn together with
    key: str
    request: str  # hash of all that it is made from
    name: str  # of its file
    pixels: int
    cost: float  # pixels that networks work on, for telling how long the rest takes
    options: Mapping[str, Any]
    extra: Mapping[str, Any] = field(default_factory=dict)  # columns taken along


class Outline(NamedTuple):
    """What tells where a picture stands in the order of drawing, and whether it is done."""

    position: int
    line: int
    number: int
    engine: int
    call: str
    key: str
    request: str
    name: str
    pixels: int
    cost: float


@dataclass(frozen=True, kw_only=True)
class Record:
    """A picture that the manifest says is done."""

    request: str
    file: str
    size: int  # bytes


class Index:
    """The pictures of a job, in the order of its lines and in that of drawing."""

    def __init__(self) -> None:
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)  # "": on disk
        self._database.executescript(_TABLES)
        self._database.row_factory = sqlite3.Row
        self._database.execute("BEGIN")
        self._objects: dict[
            int, Mapping[str, Any]
        ] = {}  # options that JSON does not hold: pictures, embeddings
        self.count = 0  # positions given

    def add(self, picture: Picture) -> None:
        """Add a picture, at the next position."""
        try:
            options = json.dumps(picture.options)
        except TypeError:
            self._objects[picture.position] = picture.options
            options = ""
        self._database.execute(
            "INSERT INTO pictures VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                picture.position, picture.line, picture.number, picture.engine, picture.call, picture.key,
                picture.request, picture.name, picture.pixels, picture.cost, options, _plain(picture.extra),
            ),
        )  # fmt: skip
        self.count += 1

    def outline(self) -> Iterator[Outline]:
        """Yield the pictures in the order of drawing, without their options."""
        for row in self._rows(_OUTLINE):
            yield Outline(*tuple(row)[: len(Outline._fields)])

    def total_cost(self) -> float:
        """Return the cost of all pictures."""
        return float(self._database.execute("SELECT TOTAL(cost) FROM pictures").fetchone()[0])

    def assign(self, position: int, call: int, shard: int = 0, *, needed: bool, kept: bool = False) -> None:
        """Say in which call a picture is drawn, for which tar, whether it is to be drawn, or recorded."""
        row = (position, call, shard, needed, kept)
        self._database.execute("INSERT INTO plan VALUES (?, ?, ?, ?, ?)", row)

    def open_shards(self) -> list[int]:
        """Return the numbers of shards with pictures that are not recorded; of a folder it is 0."""
        return [row[0] for row in self._rows("SELECT DISTINCT shard FROM plan WHERE NOT kept ORDER BY shard")]

    def members(self, shard: int) -> list[tuple[str, str, str]]:
        """Return key, request and name of all pictures of a shard."""
        return [tuple(row) for row in self._rows(_MEMBERS, shard)]

    def left(self) -> tuple[int, float]:
        """Return how many pictures are needed, and their cost."""
        count, cost = self._database.execute(_LEFT).fetchone()
        return count, cost

    def pending_calls(self, shard: int = 0) -> Iterator[tuple[list[Picture], set[int]]]:
        """Yield the pictures of each call of which any is needed, and the positions of those that are."""
        rows_of_shard = self._rows(_PENDING, shard)
        for _, rows in itertools.groupby(rows_of_shard, key=lambda row: row["call_number"]):
            pictures, needed = list[Picture](), set[int]()
            for row in rows:
                pictures.append(self._picture(row))
                needed |= {row["position"]} if row["needed"] else set()
            yield pictures, needed

    def _rows(self, query: str, *values: int) -> Iterator[sqlite3.Row]:
        with closing(self._database.cursor()) as cursor:
            yield from cursor.execute(query, values)

    def _picture(self, row: sqlite3.Row) -> Picture:
        position = row["position"]
        options = json.loads(row["options"]) if row["options"] else self._objects[position]
        names = ("line", "number", "engine", "call", "key", "request", "name", "pixels", "cost")
        plain = {name: row[name] for name in names}
        return Picture(position=position, options=options, extra=json.loads(row["extra"]), **plain)

    def forget_pictures(self) -> None:
        """Let go of the pictures of a window that is drawn; keys, names and repeats stay."""
        self._database.execute("DELETE FROM pictures")
        self._database.execute("DELETE FROM plan")
        self._objects.clear()

    def repeat(self, content: str) -> int:
        """Return how often this was asked before."""
        row = self._database.execute(
            "INSERT INTO repeats VALUES (?, 0) ON CONFLICT DO UPDATE SET count = count + 1 RETURNING count",
            (content,),
        ).fetchone()
        return int(row[0])

    def claim_key(self, key: str, request: str, line: int) -> tuple[int, str] | None:
        """Take a key; returns the line that has it already, and what that asks."""
        return self._claim("keys", key, (request, line))

    def claim_name(self, folded: str, line: int) -> int | None:
        """Take a file's name; returns the line that has it already."""
        taken = self._claim("names", folded, (line,))
        return None if taken is None else taken[0]

    def release_key(self, key: str) -> None:
        """Give a key back, of a picture that will not be."""
        self._database.execute("DELETE FROM keys WHERE key = ?", (key,))

    def _claim(self, table: str, value: str, rest: tuple[Any, ...]) -> tuple[int, str] | None:
        marks = ", ".join("?" * (1 + len(rest)))
        added = self._database.execute(f"INSERT OR IGNORE INTO {table} VALUES ({marks})", (value, *rest))
        if added.rowcount:
            return None
        column = "key" if table == "keys" else "folded"
        row = self._database.execute(f"SELECT * FROM {table} WHERE {column} = ?", (value,)).fetchone()
        return row["line"], row["request"] if table == "keys" else ""

    def remember(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Take in what a manifest says: pictures done, and names that were about to be written."""
        for record in records:
            if "key" in record:
                self._database.execute(
                    "INSERT OR REPLACE INTO records VALUES (?, ?, ?, ?)",
                    (record["key"], record["request"], record["file"], record["size"]),
                )
            for name in record.get("writing", ()):
                self._database.execute("INSERT OR IGNORE INTO started VALUES (?)", (name,))

    def record(self, key: str) -> Record | None:
        """Return what was done under a key."""
        row = self._database.execute("SELECT * FROM records WHERE key = ?", (key,)).fetchone()
        return None if row is None else Record(request=row["request"], file=row["file"], size=row["size"])

    def was_started(self, name: str) -> bool:
        """Return whether a file of this name is one that an earlier run may have left without a record."""
        answer = self._database.execute("SELECT 1 FROM started WHERE name = ?", (name,))
        return answer.fetchone() is not None

    def close(self) -> None:
        """Delete the database."""
        self._database.close()


def _plain(extra: Mapping[str, Any]) -> str:
    """Return columns taken along as JSON; what it does not hold, as text."""
    return json.dumps(extra, default=str)
