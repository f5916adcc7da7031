"""`Writer`: encodes, writes and records pictures in a thread of its own, while the next ones are drawn."""

from __future__ import annotations

import hashlib
import json
import queue
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fewstep.batch import points
from fewstep.batch.folder import NameTakenError, OutputFolder
from fewstep.batch.index import Picture
from fewstep.batch.manifest import Manifest
from fewstep.batch.names import format_of
from fewstep.batch.outcome import Outcome
from fewstep.batch.tars import Shard, pack_shard, remove_parts, write_part
from fewstep.errors import FewstepError, describe_error
from fewstep.result import Result

QUEUED = 2  # groups drawn that wait to be written: memory stays flat where the disk is slow
SHOWN = ("negative_prompt", "mode", "model", "steps", "guidance", "width", "height")  # in metadata.jsonl


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """One picture that is to be written."""

    picture: Picture
    result: Result
    index: int  # of the picture in the result
    replace: bool  # whether a file of its name may be one that was cut off from its record
    seconds: float
    batch: int


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A picture's file, ready to be written and recorded."""

    name: str
    content: bytes
    record: Mapping[str, Any]
    outcome: Outcome
    replace: bool


@dataclass(frozen=True, kw_only=True)
class Group:
    """What became of pictures of one call."""

    drawn: Sequence[Drawn | Finished] = ()
    failed: Sequence[Outcome] = ()


@dataclass(kw_only=True)
class Writer:
    """Writes groups in the order they come, and has an outcome for each picture when it is recorded."""

    folder: OutputFolder
    manifest: Manifest
    quality: int
    tars: bool = False  # whether pictures are kept as parts, and packed when a `Shard` comes
    _work_queue: queue.Queue[Group | Shard | None] = field(default_factory=lambda: queue.Queue(QUEUED))
    _outcomes: deque[Outcome] = field(default_factory=deque)
    _error: BaseException | None = None

    def __post_init__(self) -> None:
        self._thread = threading.Thread(target=self._work, name="fewstep batch writer", daemon=True)
        self._thread.start()

    def put(self, group: Group | Shard) -> None:
        """Hand over a group, or a shard to pack; raises `OutputError` where one before failed."""
        while True:
            self._check()
            try:
                self._work_queue.put(group, timeout=0.2)
                return
            except queue.Full:
                continue

    def take(self) -> list[Outcome]:
        """Return the outcomes since the last time; raises as `put`."""
        outcomes = [self._outcomes.popleft() for _ in range(len(self._outcomes))]
        if not outcomes:
            self._check()
        return outcomes

    def finish(self) -> list[Outcome]:
        """Wait until all is written; returns the last outcomes. Call `check` afterwards."""
        while self._thread.is_alive():
            try:
                self._work_queue.put(None, timeout=0.2)
                break
            except queue.Full:
                continue
        self._thread.join()
        return [self._outcomes.popleft() for _ in range(len(self._outcomes))]

    def check(self) -> None:
        """Raise what stopped the writing."""
        self._check()

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        while (group := self._work_queue.get()) is not None:
            try:
                if isinstance(group, Shard):
                    self._pack(group)
                else:
                    self._outcomes.extend(self._keep(group) if self.tars else self._write(group))
            except BaseException as error:
                self._error = error
                return

    def _write(self, group: Group) -> list[Outcome]:
        """Return the outcomes of a group that is on disk and recorded."""
        outcomes, records = list(group.failed), list[Mapping[str, Any]]()
        finished = [finish(drawn, self.quality) for drawn in group.drawn]
        if finished:
            self.manifest.append([{"writing": [picture.name for picture in finished]}])
            points.reached("names recorded")
        for picture in finished:
            try:
                self.folder.write(picture.name, picture.content, replace=picture.replace)
            except NameTakenError as error:
                outcomes.append(replace(picture.outcome, state="failed", file="", reason=str(error)))
                continue
            records.append(picture.record)
            outcomes.append(picture.outcome)
        if records:
            self.folder.sync([record["file"] for record in records])
            points.reached("files in place")
            self.manifest.append(records)
            points.reached("group recorded")
        return outcomes

    def _keep(self, group: Group) -> list[Outcome]:
        """Return the outcomes of a group whose pictures are on disk, as parts of a shard."""
        outcomes = list(group.failed)
        for drawn in group.drawn:
            picture = finish(drawn, self.quality)
            write_part(self.folder, picture.record, picture.content)
            outcomes.append(picture.outcome)
        return outcomes

    def _pack(self, shard: Shard) -> None:
        """Write a shard, record its pictures, and remove their parts."""
        records = pack_shard(self.folder, shard)
        self.manifest.append(records)
        points.reached("tar recorded")
        remove_parts(self.folder, shard)


def encode(result: Result, index: int, name: str, quality: int) -> bytes:
    """Return a picture as a file of the format that its name says; nothing of the run is in it."""
    return result.bytes(
        index, format_of(name), quality=quality if quality and format_of(name) != "png" else None
    )


def finish(drawn: Drawn | Finished, quality: int) -> Finished:
    """Return a picture encoded."""
    if isinstance(drawn, Finished):
        return drawn
    content = encode(drawn.result, drawn.index, drawn.picture.name, quality)
    return Finished(
        name=drawn.picture.name, content=content, record=make_record(drawn, content), outcome=success(drawn),
        replace=drawn.replace,
    )  # fmt: skip


def make_record(drawn: Drawn, content: bytes) -> dict[str, Any]:
    """Return what the manifest keeps of a picture."""
    picture = drawn.picture
    return {
        "key": picture.key,
        "request": picture.request,
        "file": picture.name,
        "size": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "line": picture.line,
        "number": picture.number,
        "seconds": round(drawn.seconds, 4),
        "batch": drawn.batch,
        "cost": picture.cost,
        "options": describe_picture(picture, drawn.result, drawn.index),
        "extra": dict(picture.extra),
    }


def describe_picture(picture: Picture, result: Result, index: int) -> dict[str, Any]:
    """Return what a picture shows and how it was made, flat: lists as JSON text, as data sets need it."""
    request = result.job_of(index).request
    described: dict[str, Any] = {"prompt": request.prompts[0], "seed": request.seeds[0]}
    described |= {name: getattr(request, name) for name in SHOWN}
    for name, value in picture.options.items():
        if name in described:
            continue
        if isinstance(value, str | int | float):
            described[name] = value
        elif isinstance(value, list | tuple):
            described[name] = _as_json(value)
    return described


def _as_json(value: Any) -> str:
    try:
        return json.dumps(value)
    except TypeError:  # pictures in memory
        return ""


def success(drawn: Drawn) -> Outcome:
    """Return the outcome of a picture that is on disk and recorded."""
    picture = drawn.picture
    return Outcome(
        state="drawn", line=picture.line, number=picture.number, key=picture.key, file=picture.name,
        seconds=drawn.seconds, batch=drawn.batch, warnings=drawn.result.warnings, options=picture.options,
    )  # fmt: skip


def failure(picture: Picture, error: BaseException | str) -> Outcome:
    """Return the outcome of a picture that could not be made or written."""
    if isinstance(error, str):
        reason = error
    else:
        reason = str(error) if isinstance(error, FewstepError) else describe_error(error)
    return Outcome(
        state="failed", line=picture.line, number=picture.number, key=picture.key, reason=reason,
        options=picture.options,
    )  # fmt: skip
