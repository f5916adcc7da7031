"""`Outcome`: what became of one picture. `Totals`: how far a batch is, also for `fewstep batch --status`."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from fewstep.batch.manifest import STATE
from fewstep.files.output import write_file

T = TypeVar("T")
State = Literal["drawn", "kept", "repeated", "failed"]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a picture.

    `drawn`: made by this run, on disk and recorded. `kept`: made by an earlier one. `repeated`: another line
    asks for the same picture. `failed`: `reason` says why; the next run tries it again.
    """

    state: State
    line: int  # in the file, or the place among what was given, from 1
    number: int = 0  # among the pictures of its line, from 0
    key: str = ""  # what it is known by: a hash of all that it is made from, or its id
    file: str = ""  # within the output folder
    reason: str = ""
    seconds: float = 0.0  # its share of the call that drew it
    batch: int = 0  # pictures of that call
    warnings: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)  # what was asked

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data, ready for JSON, without what is empty."""
        data = asdict(self)
        del data["options"]
        return {name: value for name, value in data.items() if value not in ("", (), 0.0) or name == "line"}


@dataclass(kw_only=True)
class Totals:
    """Counts of lines and pictures. `started` and `drawing_since` are of `time.monotonic`."""

    lines: int = 0  # read
    planned: int = 0  # pictures that this run is to draw, as far as lines were read
    counts: dict[State, int] = field(default_factory=dict)
    cost: float = 0.0  # of the planned
    cost_done: float = 0.0
    started: float = field(default_factory=time.monotonic)
    drawing_since: float | None = None
    loading: float = 0.0  # seconds

    def counted(self, lines: Iterable[T]) -> Iterator[T]:
        """Yield lines, and count them."""
        for line in lines:
            self.lines += 1
            yield line

    def add_planned(self, pictures: int, cost: float) -> None:
        """Note what a window needs."""
        self.planned += pictures
        self.cost += cost
        if self.drawing_since is None:
            self.drawing_since = time.monotonic()

    def count(self, outcome: Outcome) -> None:
        """Note what became of a picture."""
        self.counts[outcome.state] = self.counts.get(outcome.state, 0) + 1

    def number(self, state: State) -> int:
        """Return how many pictures, or lines, came to this."""
        return self.counts.get(state, 0)

    @property
    def rate(self) -> float:
        """Return pictures drawn in a second, from the first on; 0 where none is."""
        if self.drawing_since is None:
            return 0.0
        seconds = time.monotonic() - self.drawing_since
        return self.number("drawn") / seconds if seconds > 0 else 0.0

    @property
    def seconds_left(self) -> float | None:
        """Return how long the rest takes at the rate so far; None where that is not known."""
        left = self.planned - self.number("drawn")
        return left / self.rate if self.rate else None


def write_totals(out: Path, runner: str, totals: Totals, *, ended: bool) -> None:
    """Keep how many pictures a runner has to draw; raises `OutputError`."""
    facts = {
        "lines": totals.lines, "planned": totals.planned, "counts": totals.counts, "ended": ended,
        "seconds": round(time.monotonic() - totals.started, 1),
    }  # fmt: skip
    write_file(out / STATE / f"totals-{runner}.json", json.dumps(facts).encode(), overwrite=True)


def read_totals(out: Path) -> dict[str, dict[str, object]]:
    """Return what runners have kept, by runner."""
    kept = {}
    for path in sorted((out / STATE).glob("totals-*.json")):
        kept[path.stem.removeprefix("totals-")] = json.loads(path.read_text())
    return kept
