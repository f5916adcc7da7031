"""What `fewstep batch` prints: a bar at a terminal, plain lines elsewhere, or JSON events."""

from __future__ import annotations

import json
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from fewstep.catalog.hub import format_size
from fewstep.cli.streams import tell

if TYPE_CHECKING:
    from fewstep.batch import Estimate, Outcome, Status
    from fewstep.batch.outcome import Totals

INTERVAL = 10.0  # seconds between plain lines
MAX_FAULTS = 100  # lines of what failed, before they are only counted


class BatchReport:
    """Prints what becomes of each picture."""

    def __init__(self, totals: Totals, *, as_json: bool, quiet: bool):
        self._totals, self._as_json, self._quiet = totals, as_json, quiet
        self._said = dict[str, None]()
        self._faults, self._last = 0, time.monotonic()
        self._bar: Any = None

    def __enter__(self) -> Self:
        if not self._as_json and not self._quiet and sys.stderr is not None and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(unit=" pictures", file=sys.stderr, desc="fewstep", smoothing=0.05)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def add(self, outcome: Outcome, notes: tuple[str, ...]) -> None:
        """Report one outcome."""
        for sentence in (*notes, *outcome.warnings):
            if sentence not in self._said:
                self._said[sentence] = None
                self._event({"event": "warning", "text": sentence}, f"fewstep: warning: {sentence}")
        if outcome.state == "failed":
            self._faults += 1
            line = f"fewstep: line {outcome.line}: {outcome.reason}"
            self._event({"event": "picture", **outcome.to_dict()}, line if self._faults <= MAX_FAULTS else "")
        elif self._as_json:
            print(json.dumps({"event": "picture", **outcome.to_dict()}), flush=True)
        self._show_progress(outcome)

    def end(self, out: str) -> None:
        """Print what came of all."""
        totals = self._totals
        counts = {state: totals.number(state) for state in ("drawn", "kept", "repeated", "failed")}
        if self._as_json:
            print(json.dumps({"event": "end", "out": out, **counts, "lines": totals.lines}), flush=True)
        elif not self._quiet:
            words = ", ".join(
                f"{count} {state}" for state, count in counts.items() if count or state == "drawn"
            )
            more = f"; what failed is in {out}/failed.jsonl" if counts["failed"] else ""
            print(f"{out}  {words}{more}")

    def _event(self, event: dict[str, Any], line: str) -> None:
        if self._as_json:
            print(json.dumps(event), flush=True)
        elif line and self._bar is not None:
            self._bar.write(line, file=sys.stderr)
        elif line:
            tell(line)

    def _show_progress(self, outcome: Outcome) -> None:
        totals = self._totals
        if self._bar is not None:
            self._bar.total = totals.planned or None
            self._bar.update(outcome.state == "drawn")
        elif not self._as_json and not self._quiet and time.monotonic() - self._last > INTERVAL:
            self._last = time.monotonic()
            left = "" if totals.seconds_left is None else f", {describe_seconds(totals.seconds_left)} left"
            tell(f"{totals.number('drawn')} of {totals.planned} pictures, {totals.rate:.2f}/s{left}")


def describe_seconds(seconds: float) -> str:
    """Return a time in words: `40 s`, `12 min`, `3 h 20 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def describe_estimate(planned: Estimate) -> str:
    """Return what a batch would do, in lines."""
    loads = len(planned.engines)
    lines = [f"pictures   {planned.pictures} in {planned.calls} calls, of {planned.lines} lines"]
    if planned.kept or planned.repeated:
        lines.append(f"others     {planned.kept} are there already, {planned.repeated} asked for twice")
    lines += [f"engine     {name}" for name in planned.engines] if loads else []
    if planned.seconds is None:
        lines.append("time       not measured: add --measure 3 to draw three calls and throw them away")
    else:
        seconds = describe_seconds(planned.seconds)
        lines.append(f"time       {seconds} by {planned.measured} pictures, loading not counted")
    if planned.bytes:
        lines.append(f"size       about {format_size(planned.bytes)}")
    lines += [f"warning    {note}" for note in planned.notes]
    if planned.failed:
        lines.append(f"wrong      {planned.failed}")
        lines += [f"line {fault.line}: {fault.reason}" for fault in planned.faults[:MAX_FAULTS]]
    return "\n".join(lines)


def describe_status(state: Status) -> str:
    """Return how far a batch is, in lines."""
    lines = [f"pictures   {state.pictures}, {format_size(state.bytes)}"]
    if state.missing:
        lines.append(f"missing    {state.missing}: recorded, and no longer there; the next run draws them")
    for runner in state.runners:
        now = "running" if runner.running else "ended" if runner.ended else "stopped before its end"
        lines.append(
            f"{runner.runner:10} {now}; {runner.planned} planned, {runner.failed} failed, of {runner.lines}"
        )
    return "\n".join(lines)
