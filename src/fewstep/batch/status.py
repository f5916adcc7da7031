"""`status`: how far a batch is, told from its folder: by another process, or after the end."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fewstep.batch.lock import is_locked
from fewstep.batch.manifest import STATE, read_pictures
from fewstep.batch.outcome import read_totals
from fewstep.errors import OutputError


@dataclass(frozen=True, kw_only=True)
class RunnerStatus:
    """What is known of one runner of a batch."""

    runner: str  # "1-of-1", or i-of-n
    running: bool
    ended: bool  # whether its last run came to its end
    lines: int  # read in its last run
    planned: int  # pictures that run was to draw
    failed: int  # of its last run, as far as it has told


@dataclass(frozen=True, kw_only=True)
class Status:
    """How far a batch is."""

    out: str
    pictures: int  # recorded and there
    missing: int  # recorded, and no longer there
    bytes: int
    runners: tuple[RunnerStatus, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data, ready for JSON."""
        return asdict(self)


def status(out: str | os.PathLike[str]) -> Status:
    """Return how far the batch in a folder is; raises `OutputError` where there is none."""
    folder = Path(out)
    if not (folder / STATE).is_dir():
        raise OutputError(f"{str(folder)!r} has no batch in it: type fewstep batch JOBS -o {folder}")
    keys = dict[str, int]()
    for record in read_pictures(folder / STATE):
        there = os.path.lexists(folder / record["file"])
        keys[record["key"]] = record["size"] if there else -1
    sizes = [size for size in keys.values() if size >= 0]
    runners = tuple(_runner_status(folder, runner, facts) for runner, facts in read_totals(folder).items())
    return Status(
        out=str(folder),
        pictures=len(sizes),
        missing=len(keys) - len(sizes),
        bytes=sum(sizes),
        runners=runners,
    )


def _runner_status(folder: Path, runner: str, facts: dict[str, Any]) -> RunnerStatus:
    return RunnerStatus(
        runner=runner,
        running=is_locked(folder / STATE / f"lock-{runner}"),
        ended=facts["ended"],
        lines=facts["lines"],
        planned=facts["planned"],
        failed=facts["counts"].get("failed", 0),
    )
