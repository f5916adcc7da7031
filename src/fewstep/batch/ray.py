"""Batches on many machines with Ray Data (extra: fewstep[ray]).

`run` is `fewstep.batch.run` with workers: the driver plans, writes and records, so keys, calls, manifest and
outcomes are those of one process; workers draw and encode. A worker that is killed is replaced and its call
drawn again; a driver that is killed goes on when it is started again. `Draw` is for pipelines of one's own:

    table = ray.data.read_csv("prompts.csv").map_batches(
        fewstep.batch.ray.Draw, compute=ray.data.ActorPoolStrategy(size=2), num_gpus=1, batch_size=16)
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Unpack

from fewstep.batch.drawing import Artist, prepare
from fewstep.batch.expand import expand_row
from fewstep.batch.index import Index, Picture
from fewstep.batch.outcome import Outcome
from fewstep.batch.planning import Planner, group_pictures
from fewstep.batch.rows import NAMES, OTHER_NAMES, BadLine, make_row
from fewstep.batch.runner import Batch, Parts
from fewstep.batch.settings import BatchOptions, Settings, make_settings
from fewstep.batch.sources import Jobs, Source, open_source
from fewstep.batch.writer import Drawn, Finished, Group, encode, failure, finish
from fewstep.errors import FewstepError, RequestError

CALLS = 10_000  # handed to Ray at once: a million lines need no more memory than these
_PICTURE = ("position", "line", "number", "engine", "call", "key", "request", "name", "pixels", "cost")


def run(
    jobs: Jobs,
    out: str | os.PathLike[str],
    *,
    address: str = "",
    workers: int = 1,
    num_gpus: float = 0,
    **options: Unpack[BatchOptions],
) -> Iterator[Outcome]:
    """Draw jobs into a folder by the workers of a Ray cluster; yields what became of each picture.

    jobs, out, options: as in `fewstep.batch.run`; files that jobs name must be where every worker sees them.
    address: of the cluster, "auto" for the one that this machine belongs to; "" starts one here, on loopback
        and without a dashboard, and ends it. One that the program is connected to already is used as it is.
    workers: how many draw at once, each with an engine of its own. num_gpus: of each.
    """
    settings = make_settings(**options)
    source = open_source(jobs, settings.read_as, tuple(settings.keep))
    return iter(RayBatch(source, Path(out), settings, Cluster(address, workers, num_gpus)))


class Cluster:
    """Where a batch is drawn."""

    def __init__(self, address: str = "", workers: int = 1, num_gpus: float = 0):
        if type(workers) is not int or not 1 <= workers <= 10_000:
            raise RequestError(f"workers={workers!r}: give how many draw at once")
        self.address, self.workers, self.num_gpus = address, workers, num_gpus

    @contextmanager
    def connected(self) -> Iterator[Any]:
        """Give Ray, connected; what was started here is ended. Raises `FewstepError` where it is missing."""
        try:
            import ray
            import ray.data
        except ModuleNotFoundError as error:
            raise FewstepError(f"--ray needs {error.name}: pip install 'fewstep[ray]'") from error
        if ray.is_initialized():
            yield ray
            return
        if self.address:
            ray.init(self.address, log_to_driver=False)
        else:
            ray.init(include_dashboard=False, log_to_driver=False, _node_ip_address="127.0.0.1")
        try:
            yield ray
        finally:
            ray.shutdown()


class RayBatch(Batch):
    """A batch whose calls are drawn by Ray's workers."""

    def __init__(self, source: Source, out: Path, settings: Settings, cluster: Cluster):
        super().__init__(source, out, settings)
        self._cluster = cluster

    def __iter__(self) -> Generator[Outcome, None, None]:
        with self._cluster.connected() as self._ray:
            yield from super().__iter__()

    def _draw_calls(self, parts: Parts, shard: int, ahead: ThreadPoolExecutor) -> Iterator[Outcome]:  # noqa: ARG002
        pending = parts.index.pending_calls(shard)
        while calls := list(itertools.islice(pending, CALLS)):
            pictures = {picture.position: picture for group, _ in calls for picture in group}
            for row in self._drawn_rows([_call_row(group, needed) for group, needed in calls]):
                finished, failed = list[Finished](), list[Outcome]()
                for facts in _read_rows(row):
                    picture = pictures[facts.pop("position")]
                    if "reason" in facts:
                        failed.append(failure(picture, facts["reason"]))
                        continue
                    replace = parts.index.was_started(picture.name)
                    finished.append(_read_finished(picture, facts, replace=replace))
                parts.writer.put(Group(drawn=finished, failed=failed))
                yield from parts.writer.take()

    def _drawn_rows(self, rows: list[dict[str, str]]) -> Iterable[dict[str, Any]]:
        """Yield what workers made of calls, in whatever order."""
        data, cluster = self._ray.data, self._cluster
        context = data.DataContext.get_current()
        context.enable_progress_bars = False
        table = data.from_items(rows, override_num_blocks=min(len(rows), 1000)).map_batches(
            CallDrawer,
            fn_constructor_kwargs={"quality": self.settings.quality},
            compute=data.ActorPoolStrategy(size=cluster.workers),
            num_gpus=cluster.num_gpus or None,
            batch_size=1,
        )
        drawn: Iterable[dict[str, Any]] = table.iter_rows()
        return drawn


def _call_row(group: Sequence[Picture], needed: set[int]) -> dict[str, str]:
    """Return a call as plain text; raises `RequestError` for what is only in this process."""
    try:
        pictures = [
            {name: getattr(picture, name) for name in (*_PICTURE, "options", "extra")} for picture in group
        ]
        return {"call": json.dumps({"pictures": pictures, "needed": sorted(needed)})}
    except TypeError as error:
        raise RequestError(f"line {group[0].line}: give pictures as paths for workers to open") from error


def _read_rows(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what a worker made of a call: facts of each picture, with its file under "content"."""
    facts: list[dict[str, Any]] = json.loads(row["facts"])
    return [{**fact, "content": content} for fact, content in zip(facts, row["contents"], strict=True)]


def _read_finished(picture: Picture, facts: dict[str, Any], *, replace: bool) -> Finished:
    outcome = Outcome(
        state="drawn", line=picture.line, number=picture.number, key=picture.key, file=picture.name,
        seconds=facts["seconds"], batch=facts["batch"], warnings=tuple(facts["warnings"]),
        options=picture.options,
    )  # fmt: skip
    return Finished(
        name=picture.name,
        content=bytes(facts["content"]),
        record=facts["record"],
        outcome=outcome,
        replace=replace,
    )


class CallDrawer:
    """Draws calls that `RayBatch` has planned: one worker."""

    def __init__(self, quality: int = 0):
        self._planner = Planner(Settings(), Index())
        self._artist, self._quality = Artist(), quality

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[Any]]:
        """Return facts and files for a batch of calls."""
        drawn = [self._draw(json.loads(call)) for call in batch["call"]]
        return {"facts": [json.dumps(facts) for facts, _ in drawn], "contents": [files for _, files in drawn]}

    def _draw(self, call: dict[str, Any]) -> tuple[list[dict[str, Any]], list[bytes]]:
        group = [Picture(**picture) for picture in call["pictures"]]
        engine = self._planner.engine(group[0].options)
        needed, facts, files = set(call["needed"]), list[dict[str, Any]](), list[bytes]()
        for picture, outcome, seconds, count in self._artist.draw(group, engine, prepare(group, engine)):
            if picture.position not in needed:
                continue
            if isinstance(outcome, Exception):
                facts.append({"position": picture.position, "reason": failure(picture, outcome).reason})
                files.append(b"")
                continue
            result, index = outcome
            drawn = Drawn(
                picture=picture, result=result, index=index, replace=False, seconds=seconds, batch=count
            )
            done = finish(drawn, self._quality)
            facts.append({
                "position": picture.position, "record": done.record, "seconds": seconds, "batch": count,
                "warnings": done.outcome.warnings,
            })  # fmt: skip
            files.append(done.content)
        return facts, files


class Draw:
    """Draws the rows of a Ray data set: columns are options, as in a job file; a row is a picture.

    Adds the columns `image` (a file's bytes, empty where it failed), `key`, `error` ("" where it did not),
    `seed` and `seconds`. One row that cannot be drawn fails alone. Columns that are no options are kept.
    """

    def __init__(self, format: str = "png", batch: int = 0, **options: Any):
        """format: "png", "jpeg" or "webp". batch: as in `fewstep.batch.run`. options: of every row."""
        self._name = f"x.{format}"
        self._batch, self._options = batch, options
        self._planner, self._artist = Planner(Settings(name=self._name), Index()), Artist()

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Return the batch, a mapping of columns, with the columns of what was drawn."""
        rows = [dict(zip(batch, cells, strict=True)) for cells in zip(*batch.values(), strict=True)]
        nothing = {"image": b"", "key": "", "error": "", "seed": 0, "seconds": 0.0}
        answers: list[dict[str, Any]] = [{**nothing} for _ in rows]
        pictures = [
            picture for place, row in enumerate(rows) if (picture := self._plan(place, row, answers[place]))
        ]
        pictures.sort(key=lambda picture: (picture.engine, picture.call, picture.position))
        for group in group_pictures(pictures, self._batch):
            engine = self._planner.engines[group[0].engine]
            for picture, drawn, seconds, _ in self._artist.draw(group, engine, prepare(group, engine)):
                place = picture.position
                if isinstance(drawn, Exception):
                    answers[place]["error"] = failure(picture, drawn).reason
                else:
                    content = encode(*drawn, self._name, 0)
                    answers[place] |= {"image": content, "key": picture.key, "seconds": seconds}
        columns = {name: [row[name] for row in answers] for name in answers[0]} if answers else {}
        return {**{name: list(column) for name, column in batch.items()}, **columns}

    def _plan(self, place: int, row: Mapping[str, Any], answer: dict[str, Any]) -> Picture | None:
        """Return a row planned; None where it cannot be, with the reason in `answer`."""
        columns = {name: value.item() if hasattr(value, "item") else value for name, value in row.items()}
        keep = [name for name in columns if name not in NAMES and name not in OTHER_NAMES]
        line = make_row(place + 1, columns, keep, str)
        try:
            if isinstance(line, BadLine):
                raise RequestError(line.reason)
            typed = {name: value for name, value in line.values.items() if name not in keep}
            options, *others = expand_row(typed, self._options, {})
            if others:
                raise RequestError("count: a row is one picture")
            picture = self._planner.plan_alone(options, place)
        except Exception as error:
            answer["error"] = str(error)
            return None
        answer["seed"] = picture.options["seed"]
        return picture
