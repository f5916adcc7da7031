"""The cells of a comparison: planned all at once, drawn engine by engine, so that each is loaded once."""

from __future__ import annotations

import math
import statistics
from collections.abc import Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from fewstep import api
from fewstep.cancel import CancelToken
from fewstep.comparison.axes import Settings
from fewstep.errors import FewstepError, GenerationCancelledError, RequestError
from fewstep.request import Job
from fewstep.request.engine_choice import (
    EngineChoice,
    choose_engine,
    count_steps,
    only_job,
    resolve_call,
    split_options,
)

if TYPE_CHECKING:
    from PIL.Image import Image

    from fewstep.result import Result


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One picture of a comparison: what it was drawn with, or why it was not."""

    settings: Settings  # axis → its value here
    result: Result | None = field(default=None, repr=False)
    milliseconds: float = math.nan  # prompt to picture, warm, loading apart
    error: FewstepError | None = None

    @property
    def image(self) -> Image | None:
        """The picture, where there is one."""
        return None if self.result is None else self.result[0]


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A cell to be drawn."""

    place: int  # in the grid
    settings: Settings
    choice: EngineChoice
    job: Job


def plan_cells(
    settings: Sequence[Settings], shared: Mapping[str, Any]
) -> tuple[list[Planned], dict[int, Cell]]:
    """Return what can be drawn, and by place the cells that cannot, with the reason.

    Raises the first reason where nothing can.
    """
    planned, refused = list[Planned](), dict[int, Cell]()
    for place, setting in enumerate(settings):
        try:
            planned.append(Planned(place=place, settings=setting, **_plan(dict(shared) | setting)))
        except FewstepError as error:
            refused[place] = Cell(settings=setting, error=error)
    if not planned:
        raise next(cell.error for cell in refused.values() if cell.error is not None)
    return planned, refused


def _plan(options: dict[str, Any]) -> dict[str, Any]:
    prompt, steps, mode = (options.pop(name, None) for name in ("prompt", "steps", "mode"))
    engine_options, picture_options = split_options(options)
    choice = choose_engine(mode, count_steps(steps, picture_options), engine_options)
    commercial = engine_options.get("commercial", False)
    job = only_job(resolve_call(choice, prompt, steps, picture_options, commercial))
    if len(job.prompts) != 1:
        raise RequestError("each cell is one picture: leave count out, and give seeds, seed=[1, 2, 3]")
    return {"choice": choice, "job": job}


def draw_cells(
    planned: Sequence[Planned], repeats: int, cancel: CancelToken | None
) -> Generator[tuple[int, Cell], None, None]:
    """Draw, and yield each cell with its place; those of one engine follow each other."""
    by_engine = dict[Any, list[Planned]]()
    for cell in planned:
        by_engine.setdefault(cell.choice.key, []).append(cell)
    for cells in by_engine.values():
        try:
            engine = api.load_choice(cells[0].choice)
        except FewstepError as error:
            yield from ((c.place, Cell(settings=c.settings, error=error)) for c in cells)
            continue
        with engine:
            _warm_up(engine, cells[0], cancel)
            for cell in cells:
                yield cell.place, _draw(engine, cell, repeats, cancel)


def _warm_up(engine: Any, cell: Planned, cancel: CancelToken | None) -> None:
    """Run the engine's first call, which is slower than all later ones, in as few steps as it has."""
    request = cell.job.request
    recipe = engine.recipe
    with suppress(RequestError):
        plan = engine.plan(
            request.prompts[0], recipe.steps.low, seed=0, width=request.width, height=request.height
        )
        cell = replace(cell, job=replace(cell.job, plan=plan, images=(), masks=(), control=(), reference=()))
    with suppress(FewstepError):
        engine.run(cell.job, cancel=cancel, progress=False)


def _draw(engine: Any, cell: Planned, repeats: int, cancel: CancelToken | None) -> Cell:
    """Return the cell, drawn `repeats` times for the median of its times."""
    try:
        results = [engine.run(cell.job, cancel=cancel, progress=False) for _ in range(repeats)]
    except GenerationCancelledError:
        raise
    except FewstepError as error:
        return Cell(settings=cell.settings, error=error)
    seconds = statistics.median(result.timings["total"] for result in results)
    return Cell(settings=cell.settings, result=results[0], milliseconds=1000 * seconds)
