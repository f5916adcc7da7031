"""`run`: jobs → pictures, each exactly once. Killed at any point and started again, it goes on."""

from __future__ import annotations

import itertools
import os
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

from fewstep.batch import points
from fewstep.batch.drawing import Artist, prepare, sort_attempts
from fewstep.batch.folder import OutputFolder
from fewstep.batch.index import Index, Outline, Picture
from fewstep.batch.lock import lock_job
from fewstep.batch.manifest import Manifest, read_manifests, state_folder
from fewstep.batch.outcome import Outcome, State, Totals, write_totals
from fewstep.batch.page import check_sheet
from fewstep.batch.planning import Planner, group_pictures, share_groups
from fewstep.batch.settings import STREAM_WINDOW, BatchOptions, Settings, make_settings
from fewstep.batch.sources import Jobs, Source, open_source
from fewstep.batch.summary import FailedLines, write_sheet_of, write_summary
from fewstep.batch.tars import Member, Shard, has_part, remove_part
from fewstep.batch.writer import Writer
from fewstep.cancel import CancelToken
from fewstep.errors import FewstepError, OutputError
from fewstep.request import Job


def run(
    jobs: Jobs,
    out: str | os.PathLike[str],
    *,
    cancel: CancelToken | None = None,
    **options: Unpack[BatchOptions],
) -> Iterator[Outcome]:
    """Draw jobs into a folder; yields what became of each picture, when it is on disk and recorded.

    jobs: a file (.jsonl, .json, .csv, .tsv, .txt), "-", dicts, or a table of pandas, polars or Arrow.
        Relative paths in it are looked for in the working folder.
    out: the folder; what is in it already is kept, and drawn no more.
    cancel: stops it at the next step.
    options: as `fewstep.batch.settings.Settings` has them.

    Nothing happens before the first outcome is asked for; leaving the loop stops it, and starting it again
    goes on. Raises `RequestError` for jobs that cannot be read at all, `JobLockedError`, `OutputError`,
    `GenerationCancelledError`; what is wrong with one line is that line's outcome.
    """
    settings = make_settings(**options)
    return iter(Batch(open_source(jobs, settings.read_as, tuple(settings.keep)), Path(out), settings, cancel))


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a batch under way works with."""

    index: Index
    planner: Planner
    folder: OutputFolder
    writer: Writer
    artist: Artist


class Batch:
    """A batch; iterate to run it. `totals` say how far it is."""

    def __init__(self, source: Source, out: Path, settings: Settings, cancel: CancelToken | None = None):
        self.source, self.out, self.settings = source, out, settings
        self.totals = Totals()
        self._cancel = cancel
        self._shards = 0  # tars of the windows so far
        if settings.sheet:
            check_sheet(settings.sheet, out)

    def __iter__(self) -> Generator[Outcome, None, None]:
        state = state_folder(self.out)
        with ExitStack() as stack:
            stack.enter_context(lock_job(state, self.settings.shard))
            manifest = stack.enter_context(closing(Manifest(state, self.settings.runner)))
            index = stack.enter_context(closing(Index()))
            index.remember(read_manifests(state))
            folder = OutputFolder(self.out, self.settings.runner)
            writer = Writer(
                folder=folder, manifest=manifest, quality=self.settings.quality, tars=bool(self.settings.tars)
            )
            artist = Artist(self._cancel)
            stack.callback(artist.close)
            planner = Planner(self.settings, index)
            parts = Parts(index=index, planner=planner, folder=folder, writer=writer, artist=artist)
            with FailedLines(self.out, self.settings.runner) as failed:
                for outcome in self._summed_up(parts):
                    self.totals.count(outcome)
                    if outcome.state == "failed":
                        failed.add(outcome)
                        if self.settings.strict:
                            raise FewstepError(f"line {outcome.line}: {outcome.reason}")
                    yield outcome

    def _summed_up(self, parts: Parts) -> Iterator[Outcome]:
        """Run, and list what is there however it ends."""
        try:
            yield from self._run(parts)
        except BaseException:
            parts.writer.finish()
            with suppress(OutputError):  # a full disk stopped it already
                self._sum_up(ended=False)
            raise
        self._sum_up(ended=True)

    def _sum_up(self, *, ended: bool) -> None:
        write_totals(self.out, self.settings.runner, self.totals, ended=ended)
        write_summary(self.out, self.source.name, pages=not self.settings.tars)
        if ended and self.settings.sheet:
            write_sheet_of(self.out, self.settings.sheet)

    def _run(self, parts: Parts) -> Iterator[Outcome]:
        """Plan and draw, window after window."""
        lines = self.source.lines()
        window = self.settings.window or (STREAM_WINDOW if self.source.streamed else None)
        while True:
            read = self.totals.lines
            yield from parts.planner.add(self.totals.counted(itertools.islice(lines, window)))
            points.reached("planned")
            yield from self._draw_window(parts)
            if window is None or self.totals.lines == read:
                break
        yield from parts.writer.finish()
        parts.writer.check()

    def _draw_window(self, parts: Parts) -> Iterator[Outcome]:
        """Draw what was planned and is not there; the next call is prepared while one is drawn."""
        yield from self._arrange(parts)
        self.totals.add_planned(*parts.index.left())
        write_totals(self.out, self.settings.runner, self.totals, ended=False)
        with ThreadPoolExecutor(1, "fewstep batch") as ahead:
            for shard in parts.index.open_shards():
                yield from self._draw_calls(parts, shard, ahead)
                if self.settings.tars:
                    members = [Member(*member) for member in parts.index.members(shard)]
                    parts.writer.put(Shard(shard - 1, members))
        parts.index.forget_pictures()

    def _draw_calls(self, parts: Parts, shard: int, ahead: ThreadPoolExecutor) -> Iterator[Outcome]:
        """Draw the pictures of a folder, or of one shard."""
        current: tuple[list[Picture], set[int], Future[Job | Exception]] | None = None
        for pictures, needed in parts.index.pending_calls(shard):
            engine = parts.planner.engines[pictures[0].engine]
            following = (pictures, needed, ahead.submit(prepare, pictures, engine))
            if current is not None:
                yield from self._draw(parts, *current)
            current = following
        if current is not None:
            yield from self._draw(parts, *current)

    def _arrange(self, parts: Parts) -> Iterator[Outcome]:
        """Put this runner's pictures into calls; yields an outcome for each that is there already."""
        groups = group_pictures(parts.index.outline(), self.settings.batch)
        total = parts.index.total_cost()
        shares = share_groups(groups, total, self.settings, self._shards + 1)
        for number, (shard, group) in enumerate(shares):
            for picture in group:
                outcome = self._earlier(parts, picture)
                kept = outcome is not None
                waits = bool(shard) and not kept and has_part(parts.folder, picture.key, picture.request)
                needed = not kept and not waits
                parts.index.assign(picture.position, number, shard, needed=needed, kept=kept)
                if outcome is not None:
                    if shard:  # a run may have been killed before it did
                        remove_part(parts.folder, picture.key, picture.request)
                    yield outcome
            self._shards = max(self._shards, shard)

    def _earlier(self, parts: Parts, picture: Outline) -> Outcome | None:
        """Return the outcome of a picture that an earlier run has drawn, if it is still there."""
        record = parts.index.record(picture.key)
        if record is None or parts.folder.size(record.file) < 0:
            return None
        state: State = "kept"
        reason = ""
        if record.request != picture.request:
            state = "failed"
            reason = (
                f"id={picture.key!r} was drawn before from other options, into {record.file!r}: give it "
                "another id, or delete that file"
            )
        return Outcome(
            state=state, line=picture.line, number=picture.number, key=picture.key, file=record.file,
            reason=reason,
        )  # fmt: skip

    def _draw(
        self, parts: Parts, pictures: list[Picture], needed: set[int], job: Future[Job | Exception]
    ) -> Iterator[Outcome]:
        """Draw the pictures of a call, hand those that are needed over, and yield what is recorded by now."""
        engine = parts.planner.engines[pictures[0].engine]
        attempts = parts.artist.draw(pictures, engine, job.result())
        points.reached("group drawn")
        started = {picture.name for picture in pictures if parts.index.was_started(picture.name)}
        parts.writer.put(sort_attempts(attempts, needed, started))
        yield from parts.writer.take()
