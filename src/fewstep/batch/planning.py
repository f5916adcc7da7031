"""Lines → planned pictures in an index: each checked, keyed, named, before anything is loaded."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from fewstep.batch import keys, names
from fewstep.batch.expand import PromptMaker, expand_row
from fewstep.batch.index import Index, Outline, Picture
from fewstep.batch.outcome import Outcome
from fewstep.batch.rows import BadLine, Line, Row
from fewstep.batch.settings import Settings
from fewstep.batch.tars import member_name
from fewstep.errors import FewstepError, RequestError, describe_error
from fewstep.request import Job
from fewstep.request.engine_choice import (
    EngineChoice,
    choose_engine,
    count_steps,
    only_job,
    resolve_call,
    split_options,
)
from fewstep.request.options import OPTIONS

P = TypeVar("P", Outline, Picture)
MAX_EXPANDED = 100_000  # pictures of one line
DECODE = 2  # steps that decoding a picture takes the time of, about
_CACHED = 512  # ways to name an engine that are remembered


@dataclass(frozen=True, kw_only=True)
class Engine:
    """An engine that pictures of a job need."""

    number: int
    choice: EngineChoice
    description: Mapping[str, Any]  # what of it changes its pictures


class Planner:
    """Plans lines into an index, and says what becomes of those that ask for nothing that can be drawn."""

    def __init__(self, settings: Settings, index: Index):
        self.engines: list[Engine] = []  # by number
        self._settings, self._index = settings, index
        self._engine_numbers: dict[str, int] = {}
        self._prompts = PromptMaker(settings.dynamic, settings.wildcards) if settings.dynamic else None

    def add(self, lines: Iterable[Line]) -> Iterator[Outcome]:
        """Plan lines; yields an outcome for each that has none to draw, or a second time."""
        for line in lines:
            if isinstance(line, BadLine):
                yield Outcome(state="failed", line=line.line, reason=line.reason)
                continue
            try:
                yield from self._add_row(line)
            except Exception as error:  # whatever a line holds, the others are drawn
                yield Outcome(state="failed", line=line.line, reason=_reason(error), options=line.values)

    def _add_row(self, row: Row) -> Iterator[Outcome]:
        values = {name: value for name, value in row.values.items() if name not in self._settings.keep}
        extra = {name: value for name, value in row.values.items() if name in self._settings.keep}
        name, file_name = values.pop("id", None), values.pop("file_name", None)
        if name is not None and not (isinstance(name, str | int) and 0 < len(str(name)) <= 200):
            raise RequestError(f"id={name!r:.80}: give a short text")
        if "prompt" not in {**values, **self._settings.set, **self._settings.sweep}:
            raise RequestError("it has no prompt")
        identified = values if name is None else {**values, "id": str(name)}
        expanded = expand_row(identified, self._settings.set, self._settings.sweep, self._prompts)
        pictures = list(itertools.islice(expanded, MAX_EXPANDED + 1))
        if len(pictures) > MAX_EXPANDED:
            raise RequestError(f"it makes over {MAX_EXPANDED} pictures: write several lines")
        for number, options in enumerate(pictures):
            options.pop("id", None)
            labels = _Labels(row.line, number, len(pictures), name, file_name, extra)
            try:
                repeated = self._add_picture(options, labels)
            except Exception as error:
                reason = _reason(error)
                yield Outcome(state="failed", line=row.line, number=number, reason=reason, options=options)
            else:
                if repeated is not None:
                    yield repeated

    def _add_picture(self, options: dict[str, Any], labels: _Labels) -> Outcome | None:
        """Plan one picture; returns an outcome where another line asks for the same."""
        planned = self._plan(options, labels.identity, self._index.repeat)
        key = planned.key
        taken = self._index.claim_key(key, planned.request, labels.line)
        if taken is not None:
            if taken[1] != planned.request:
                raise RequestError(f"id={key!r} is that of line {taken[0]} too: give each its own")
            reason = f"the same picture as that of line {taken[0]}"
            return Outcome(state="repeated", line=labels.line, number=labels.number, key=key, reason=reason)
        try:
            name = self._name(labels, planned.job, key, planned.options["seed"])
        except RequestError:
            self._index.release_key(key)
            raise
        self._index.add(planned.picture(self._index.count, labels, name))
        return None

    def plan_alone(self, options: dict[str, Any], place: int) -> Picture:
        """Return one picture planned, of no file; equal ones without a seed are the same."""
        planned = self._plan(options, "", lambda _: 0)
        return planned.picture(place, _Labels(place + 1, 0, 1, None, None, {}), "")

    def _plan(self, options: dict[str, Any], identity: str, repeat: Callable[[str], int]) -> _Planned:
        """Return what a picture is made from, its seed filled in; raises what `fewstep.plan` would."""
        engine = self.engine(options)
        seedless = options.get("seed") is None
        job = resolve_picture(engine.choice, {**options, "seed": 0} if seedless else options)
        if len(job.request.seeds) != 1:
            raise RequestError("it asks for several pictures at once: write a line, or count, for them")
        call = keys.digest_of(keys.describe_call(job, engine.description))
        content = keys.digest_of([call, keys.describe_prompt(job)])
        seed = job.request.seeds[0]
        if seedless:
            seed = keys.derive_seed(content, identity or repeat(content))
        request = keys.digest_of([content, seed])
        filled = {**options, "seed": seed}
        bundle = keys.digest_of([call, bool(job.request.prompts_2), job.plan.warnings])
        return _Planned(engine.number, job, bundle, request, identity or request, filled)

    def _name(self, labels: _Labels, job: Job, key: str, seed: int) -> str:
        """Return the picture's file name, safe and its own; raises `RequestError`."""
        if labels.file_name is not None:
            name = names.check_name(labels.file_name)
            if labels.count > 1:
                stem, dot, ending = name.rpartition(".")
                name = f"{stem}-{labels.number}{dot}{ending}"
        else:
            request = job.request
            fields = {
                **labels.extra, "id": labels.identity or key[: keys.SHORT_DIGITS], "key": key, "seed": seed,
                "prompt": request.prompts[0], "mode": request.mode, "model": request.model,
                "steps": request.steps, "guidance": f"{request.guidance:g}", "width": request.width,
                "height": request.height, "line": labels.line, "number": labels.number,
            }  # fmt: skip
            name = names.fill_template(self._settings.name, fields)
        if self._settings.tars:
            name = member_name(name)
        names.check_name(name)
        line = self._index.claim_name(names.fold_name(name), labels.line)
        if line is not None:
            raise RequestError(
                f"its file {name!r} is that of line {line}: put {{id}}, {{seed}} or {{key}} in the name"
            )
        return name

    def engine(self, options: Mapping[str, Any]) -> Engine:
        """Return the engine that these options need; raises what `fewstep.load` would for bad names."""
        engine_options, picture_options = split_options(options)
        if engine_options.get("budget_ms") is not None:
            raise RequestError("budget_ms chooses by this machine's costs, which change: say mode and steps")
        steps = count_steps(options.get("steps"), picture_options)
        typed = repr((options.get("mode"), steps, sorted(engine_options.items())))
        number = self._engine_numbers.get(typed)
        if number is None:
            choice = choose_engine(options.get("mode"), steps, engine_options)
            described = keys.describe_engine(choice)
            same = [e.number for e in self.engines if e.choice.key == choice.key]
            number = same[0] if same else len(self.engines)
            if not same:
                self.engines.append(Engine(number=number, choice=choice, description=described))
            if len(self._engine_numbers) >= _CACHED:
                self._engine_numbers.clear()
            self._engine_numbers[typed] = number
        return self.engines[number]


@dataclass(frozen=True)
class _Labels:
    """What a picture is called, and where it comes from."""

    line: int
    number: int
    count: int  # pictures of the line
    id: str | int | None
    file_name: Any
    extra: Mapping[str, Any]

    @property
    def identity(self) -> str:
        """Return the user's id of the picture; "" where there is none."""
        if self.id is None:
            return ""
        return str(self.id) if self.count == 1 else f"{self.id}-{self.number}"


class _Planned(NamedTuple):
    """A picture before it has a place and a name."""

    engine: int
    job: Job
    call: str
    request: str
    key: str
    options: dict[str, Any]

    def picture(self, position: int, labels: _Labels, name: str) -> Picture:
        """Return it with both."""
        width, height = self.job.canvas.size
        return Picture(
            position=position, line=labels.line, number=labels.number, engine=self.engine, call=self.call,
            key=self.key, request=self.request, name=name, pixels=width * height, cost=_cost(self.job),
            options=self.options, extra=labels.extra,
        )  # fmt: skip


def resolve_picture(choice: EngineChoice, options: Mapping[str, Any], commercial: bool | None = None) -> Job:
    """Return the job of options that may hold lists of prompts and seeds; raises `RequestError`."""
    names_here = {"prompt", "steps", "mode"}
    unknown = [name for name in options if name not in OPTIONS and name not in names_here]
    if unknown:
        raise RequestError(f"{unknown[0]!r:.80} is not an option")
    _, picture_options = split_options({k: v for k, v in options.items() if k not in names_here})
    commercial_only = options.get("commercial", False) if commercial is None else commercial
    return only_job(
        resolve_call(choice, options["prompt"], options.get("steps"), picture_options, bool(commercial_only))
    )


def group_pictures(pictures: Iterable[P], batch: int) -> Iterator[list[P]]:
    """Yield pictures that are drawn in one call, in order: same engine and options, as many as `batch`.

    batch: 0 is as many as have 16 times 512 x 512 pixels, at most 16. Which pictures are together depends
    on the job alone, never on what is done already.
    """
    group = list[P]()
    for picture in pictures:
        if group and (picture.call != group[0].call or len(group) >= (batch or _usual_batch(picture.pixels))):
            yield group
            group = []
        group.append(picture)
    if group:
        yield group


def share_groups(
    groups: Iterable[list[Outline]], total: float, settings: Settings, first_shard: int = 1
) -> Iterator[tuple[int, list[Outline]]]:
    """Yield the groups of runner i of n, each with the number of the tar it goes to; 0 is a folder.

    A runner has neighbours, so that it loads few engines, of about equal cost; a tar is never split.
    """
    index, count = settings.shard
    begun, shard = 0.0, first_shard if settings.tars else 0
    for unit in _units(groups, settings.tars):
        cost = sum(picture.cost for group in unit for picture in group)
        runner = min(count, 1 + int(count * (begun + cost / 2) / total)) if total else 1
        begun += cost
        if runner == index:
            yield from ((shard, group) for group in unit)
        shard += bool(settings.tars)


def _units(groups: Iterable[list[Outline]], least: int) -> Iterator[list[list[Outline]]]:
    """Yield groups together that have at least so many pictures, whole ones; 0: each group alone."""
    unit, pictures = list[list[Outline]](), 0
    for group in groups:
        unit.append(group)
        pictures += len(group)
        if pictures >= least:
            yield unit
            unit, pictures = [], 0
    if unit:
        yield unit


def _usual_batch(pixels: int) -> int:
    return max(1, min(16, 16 * 512 * 512 // pixels))


def _cost(job: Job) -> float:
    """Return how much networks have to do, in pixels."""
    request = job.request
    evaluations = 2 if job.plan.guidance.startswith("classifier-free") else 1
    return job.canvas.size[0] * job.canvas.size[1] * (request.steps * evaluations + DECODE)


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, FewstepError) else describe_error(error)
