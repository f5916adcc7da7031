"""How far pictures are apart, and from what: another cell for each, or one picture."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from fewstep.comparison.axes import SUBJECTS, Settings, agree, describe
from fewstep.comparison.cells import Cell, Planned
from fewstep.errors import RequestError
from fewstep.images import open_image
from fewstep.request.options import Picture

SIDE = 128  # pixels: the height at which pictures are compared, as `fewstep eval` does

Distance: TypeAlias = Callable[[Image.Image, Image.Image], float]
Against: TypeAlias = Mapping[str, Any] | Picture | None


def rmse(picture: Image.Image, reference: Image.Image) -> float:
    """Return the root mean square difference of colours in [0, 1], at most 128 pixels high.

    It is that of `fewstep eval`. It sees where things are and in which colours, and not whether they are
    well drawn.
    """
    height = min(SIDE, reference.height)
    size = (max(1, reference.width * height // reference.height), height)
    first, second = (
        np.asarray(image.convert("RGB").resize(size, Image.Resampling.BOX), dtype=np.float64) / 255
        for image in (picture, reference)
    )
    return float(np.sqrt(np.mean((first - second) ** 2)))


def find_references(
    cells: Sequence[Cell], planned: Sequence[Planned], against: Against
) -> list[Image.Image | None]:
    """Return the picture that each cell is compared with; None where there is none.

    against: see `Comparison.table`. Raises `RequestError`.
    """
    if against is not None and not isinstance(against, Mapping):
        picture = open_image(against, "against").image
        return [picture] * len(cells)
    named = _costliest(planned) if against is None else dict(against)
    by_settings = {_key(cell.settings): cell.image for cell in cells}
    axes = cells[0].settings if cells else {}
    unknown = [name for name in named if name not in axes]
    if unknown:
        raise RequestError(f"against has {unknown[0]}: choose from the axes, {', '.join(axes)}")
    if against is not None and not any(agree(cell.settings, named) for cell in cells):
        raise RequestError(f"against={named} is no cell of this comparison: add it to the lists")
    return [by_settings.get(_key(cell.settings | named)) if named else None for cell in cells]


def _costliest(planned: Sequence[Planned]) -> Settings:
    """Return the settings, subjects apart, of the cell that evaluates the network most often."""
    cell = max(planned, key=evaluations)
    return {name: value for name, value in cell.settings.items() if name not in SUBJECTS}


def evaluations(cell: Planned) -> int:
    """Return how often the network is evaluated: twice a step with classifier-free guidance."""
    request = cell.job.request
    guided = cell.choice.recipe.guidance.kind == "cfg" and request.guidance > 1
    return request.steps * (2 if guided else 1)


def _key(settings: Settings) -> tuple[str, ...]:
    return tuple(describe(name, value) for name, value in settings.items())
