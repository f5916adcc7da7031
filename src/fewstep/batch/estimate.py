"""`plan`: what a job would draw, how long and how large, and which lines are wrong. Nothing is written."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

from fewstep.batch.drawing import Artist, prepare
from fewstep.batch.index import Index, Outline
from fewstep.batch.manifest import STATE, read_manifests, read_pictures
from fewstep.batch.outcome import Outcome, Totals
from fewstep.batch.planning import Planner, group_pictures, share_groups
from fewstep.batch.settings import BatchOptions, Settings, make_settings
from fewstep.batch.sources import Jobs, Source, open_source
from fewstep.batch.writer import encode
from fewstep.errors import OutputError

MAX_FAULTS = 1000  # wrong lines that are told of one by one
BYTES_PER_PIXEL = 2.0  # of a PNG, where none of the job's is there to be measured


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a batch would do."""

    lines: int
    pictures: int  # of this runner, those that are there already left out
    kept: int  # there already
    repeated: int
    failed: int  # lines, or pictures of them, that cannot be drawn
    faults: tuple[Outcome, ...]  # the first of those
    calls: int
    engines: tuple[str, ...]  # "model, mode" of each that is loaded, in order
    bytes: int  # of the pictures' files, about
    seconds: float | None  # of drawing, by what was measured; None: nothing was
    measured: int  # pictures that tell sizes and seconds
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data, ready for JSON."""
        data = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "faults"}
        return data | {"faults": [fault.to_dict() for fault in self.faults]}


@dataclass(kw_only=True)
class _Measured:
    """What pictures of a job have taken."""

    pictures: int = 0
    seconds: float = 0.0
    cost: float = 0.0
    bytes: int = 0
    pixels: float = 0.0

    def add(self, seconds: float, cost: float, size: int, pixels: float) -> None:
        """Take one picture in."""
        self.pictures += 1
        self.seconds += seconds
        self.cost += cost
        self.bytes += size
        self.pixels += pixels


def plan(
    jobs: Jobs,
    out: str | os.PathLike[str] | None = None,
    *,
    measure: int = 0,
    **options: Unpack[BatchOptions],
) -> Estimate:
    """Return what `run` would do, checked as far as names and files here tell. No torch, unless it measures.

    out: the folder, where it is there already: what is done is left out, and tells how long the rest takes.
    measure: calls that are drawn to see how long they take; their pictures are thrown away.
    """
    settings = make_settings(**options)
    source = open_source(jobs, settings.read_as, tuple(settings.keep))
    return estimate(source, None if out is None else Path(out), settings, measure=measure)


def estimate(source: Source, out: Path | None, settings: Settings, *, measure: int = 0) -> Estimate:
    """As `plan`, of what is open already."""
    totals, faults = Totals(), list[Outcome]()
    state = None if out is None else out / STATE
    with closing(Index()) as index:
        if state is not None and state.is_dir():
            index.remember(read_manifests(state))
        planner = Planner(settings, index)
        for outcome in planner.add(totals.counted(source.lines())):
            totals.count(outcome)
            if outcome.state == "failed" and len(faults) < MAX_FAULTS:
                faults.append(outcome)
        calls, kept, pixels = _arrange(index, settings, out)
        pictures, cost = index.left()
        measured = _measure_calls(index, planner, measure) if measure else _measure_records(state)
        engines = [planner.engines[number].choice.key for number in calls]
        seconds_per_cost = measured.seconds / measured.cost if measured.cost else None
        per_pixel = measured.bytes / measured.pixels if measured.pixels else BYTES_PER_PIXEL
        return Estimate(
            lines=totals.lines, pictures=pictures, kept=kept, repeated=totals.number("repeated"),
            failed=totals.number("failed"), faults=tuple(faults), calls=sum(calls.values()),
            engines=tuple(f"{key.file('model')}, {key.mode}" for key in engines),
            bytes=round(per_pixel * pixels),
            seconds=None if seconds_per_cost is None else seconds_per_cost * cost,
            measured=measured.pictures, notes=tuple(source.notes),
        )  # fmt: skip


def _arrange(index: Index, settings: Settings, out: Path | None) -> tuple[Counter[int], int, float]:
    """Put this runner's pictures into calls; returns calls by engine, pictures there, and pixels needed."""
    calls, kept, pixels = Counter[int](), 0, 0.0
    groups: Iterable[list[Outline]] = group_pictures(index.outline(), settings.batch)
    for number, (_, group) in enumerate(share_groups(groups, index.total_cost(), settings)):
        needed = [picture for picture in group if out is None or not _is_there(index, picture, out)]
        for picture in group:
            index.assign(picture.position, number, needed=picture in needed)
        calls[group[0].engine] += bool(needed)
        kept += len(group) - len(needed)
        pixels += sum(picture.pixels for picture in needed)
    return calls, kept, pixels


def _is_there(index: Index, picture: Outline, out: Path) -> bool:
    record = index.record(picture.key)
    return record is not None and os.path.lexists(out / record.file)


def _measure_records(state: Path | None) -> _Measured:
    """Return what earlier runs have taken."""
    measured = _Measured()
    if state is not None and state.is_dir():
        for record in read_pictures(state):
            options = record["options"]
            pixels = options["width"] * options["height"]
            measured.add(record["seconds"], record["cost"], record["size"], pixels)
    return measured


def _measure_calls(index: Index, planner: Planner, calls: int) -> _Measured:
    """Draw the first calls that are needed, and return what they took; loading is not counted."""
    measured, artist = _Measured(), Artist()
    pending = index.pending_calls()
    try:
        for _, (pictures, _needed) in zip(range(calls), pending, strict=False):
            engine = planner.engines[pictures[0].engine]
            for picture, made, _, _ in artist.draw(pictures, engine, prepare(pictures, engine)):
                if isinstance(made, Exception):
                    continue
                started = time.perf_counter()
                try:
                    size = len(encode(*made, picture.name, 0))
                except OutputError:
                    continue
                encoding = time.perf_counter() - started
                seconds = made[0].timings["total"] / len(made[0]) + encoding
                measured.add(seconds, picture.cost, size, picture.pixels)
    finally:
        artist.close()
    return measured
