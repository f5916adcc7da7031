"""What the browser is shown of modes, steps and results, as plain data and small pictures."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from PIL import Image

from fewstep import api, modes
from fewstep.errors import BackendError, FewstepError

if TYPE_CHECKING:
    from fewstep.notebook.story import Move
    from fewstep.result import Result

Plain: TypeAlias = dict[str, Any]

CELL_SIDE, PREVIEW_SIDE, TRAIL_SIDE = 384, 256, 72  # pixels, at most


def list_modes(options: Mapping[str, Any]) -> list[Plain]:
    """Return the modes that fit these options of `generate`, each with its legal and usual steps."""
    fitting = []
    for name in modes.mode_names():
        try:
            recipe = modes.find_recipe(name)
            plan = api.plan("", recipe.steps.default, name, **options)
            family = modes.choose_mode(options.get("model", "tiny"), name, plan.request.steps)[0].family
            recipe = recipe.on(family)
        except (FewstepError, BackendError):
            continue
        fitting.append(
            {
                "name": name,
                "title": recipe.title,
                "steps": list(recipe.counts()),
                "usual": recipe.steps.default,
            }
        )
    return fitting


def picture_bytes(image: Image.Image, side: int, quality: int = 88) -> bytes:
    """Return a picture as WebP, no side longer than `side` pixels."""
    small = image.convert("RGB")
    small.thumbnail((side, side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    small.save(file, "WEBP", quality=quality, method=0)
    return file.getvalue()


def result_cells(result: Result) -> list[Plain]:
    """Return a result's pictures as the gallery shows them; the first is number 0, as `pick` counts."""
    return [
        {
            "number": number,
            "seed": result.seeds[number],
            "prompt": result.prompts[number],
            "width": image.width,
            "height": image.height,
            "picture": picture_bytes(image, CELL_SIDE),
        }
        for number, image in enumerate(result.images)
    ]


def preview_cells(step: Any, pictures: int) -> list[Plain]:
    """Return the pictures of a `Step` as predicted so far."""
    cells = []
    for number in range(pictures):
        image = step.preview(number)
        picture = picture_bytes(image, PREVIEW_SIDE, quality=70)
        cells.append({"number": number, "width": image.width, "height": image.height, "picture": picture})
    return cells


def full_picture(result: Result, number: int) -> Plain:
    """Return one picture as PNG, every pixel of it, with how it was made."""
    return {"number": number, "png": result.png(number), "name": f"{result.seeds[number]}.png"}


def trail_entry(number: int, move: Move, result: Result) -> Plain:
    """Return a thing done, as the trail shows it: what it was, and its first picture."""
    count = len(result)
    return {
        "number": number,
        "label": f"{count} {move.noun}" if count > 1 else move.noun,
        "prompt": result.prompts[0],
        "mode": result.plan.request.mode,
        "picture": picture_bytes(result.images[0], TRAIL_SIDE, quality=75),
    }
