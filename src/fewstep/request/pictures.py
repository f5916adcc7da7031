"""The pictures of a call: opened, checked, and brought to the size that is drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Set
from dataclasses import dataclass, field, replace
from typing import Any

from PIL.Image import Image

from fewstep.errors import RequestError
from fewstep.images import OpenedImage, open_image, open_mask
from fewstep.images.canvas import Canvas, Size, fit_image, same_shape
from fewstep.request import inputs
from fewstep.request.inputs import ScaledSource
from fewstep.request.limits import describe_sizes, size_fits
from fewstep.request.schema import Job

PICTURE_OPTIONS = frozenset({"image", "mask", "control", "reference"})
LEAST, MOST = 8, 8192  # pixels of a side, as the options width and height have them
_GRID = 8  # pixels of a latent's side
_SHRINK = 0.995  # of a side, until a picture fits


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """What a call was given to look at, and what that says of its size."""

    image: Image | None = None
    mask: Image | None = None
    control: tuple[Image, ...] = ()
    control_scales: tuple[ScaledSource, ...] = ()
    reference: tuple[Image, ...] = ()
    reference_scales: tuple[ScaledSource, ...] = ()
    free_size: Size | None = None  # that need not be one of the model's: of a picture with a mask
    sides: Mapping[str, int] = field(default_factory=dict)  # width and height where they are not given
    notes: tuple[str, ...] = ()  # what has to be said of them

    def add_to(self, job: Job, model_size: int, typed: Set[str]) -> Job:
        """Return a job with these pictures, at its size, and what has to be said of them.

        typed: which of width and height the caller gave, for errors. Raises `RequestError`.
        """
        size = (job.request.width, job.request.height)
        canvas = find_canvas(size, model_size) if size == self.free_size else job.canvas
        scaled = (f"image {canvas.note}",) if canvas.note else ()
        return replace(
            job,
            plan=replace(job.plan, warnings=(*job.plan.warnings, *self.notes, *scaled)),
            canvas=canvas,
            reference=self.reference,
            **self._fitted(job, model_size, typed),
        )

    def _fitted(self, job: Job, model_size: int, typed: Set[str]) -> dict[str, Any]:
        """Return images, masks and control at the call's size; raises `RequestError` for other shapes."""
        size = (job.request.width, job.request.height)
        if typed:
            size_name = ", ".join(
                f"{name}={side}" for name, side in zip(("width", "height"), size, strict=True)
            )
        elif self.image is not None:
            size_name = f"image, which is {size[0]}x{size[1]}"
        else:
            size_name = f"the picture that is drawn, {size[0]}x{size[1]}"

        def fit(image: Image, name: str) -> Image:
            sized = name == "image" or (name == "control" and self.image is None)  # it may choose the size
            legal = nearest_size(image.size, model_size) if sized and image.size != size else None
            advice = "" if legal is None else f", or type width={legal[0]}, height={legal[1]}"
            return fit_image(image, size, name, size_name, advice)

        pictures = len(job.prompts)
        return {
            "images": () if self.image is None else (fit(self.image, "image"),) * pictures,
            "masks": () if self.mask is None else (fit(self.mask, "mask"),) * pictures,
            "control": tuple(fit(image, "control") for image in self.control),
        }


NO_PICTURES = Pictures()


def open_pictures(options: dict[str, Any], model_size: int) -> Pictures:
    """Take all pictures out of what was given, and check the size of `image`; raises `RequestError`."""
    notes: list[str] = []

    def keep(picture: OpenedImage, name: str) -> Image:
        notes.extend(f"{name} {note}" for note in picture.notes)
        return picture.image

    image = keep(open_image(options.pop("image"), "image"), "image") if "image" in options else None
    mask = keep(open_mask(options.pop("mask"), "mask"), "mask") if "mask" in options else None
    guides: dict[str, tuple[tuple[ScaledSource, ...], tuple[Image, ...]]] = {}
    for name in ("control", "reference"):
        entries = options.pop(name, ())
        empty = isinstance(entries, tuple) and not entries
        scales, pictures = ((), ()) if empty else inputs.parse_guides(entries, name)
        guides[name] = scales, tuple(keep(picture, name) for picture in pictures)
    if image is not None and not {"width", "height"} & options.keys():
        _check_image_size(image, model_size, any_size=mask is not None)
    return Pictures(
        image=image,
        mask=mask,
        control=guides["control"][1],
        control_scales=guides["control"][0],
        reference=guides["reference"][1],
        reference_scales=guides["reference"][0],
        free_size=None if image is None or mask is None else image.size,
        sides={} if image is None else _default_sides(image.size, options),
        notes=tuple(dict.fromkeys(notes)),
    )


def find_canvas(picture: Size, model_size: int) -> Canvas:
    """Return how a picture of any size is drawn by a model of this trained side.

    One that is too large is made smaller, one too small larger, and what is left to a legal size is
    filled up.
    """
    width, height = picture
    if size_fits(width, height, model_size):
        return Canvas(size=picture, inner=picture, outer=picture)
    scale = max(1.0, model_size // 2 / min(picture))
    while True:
        inner = (max(1, round(width * scale)), max(1, round(height * scale)))
        canvas_size = (_next_side(inner[0], model_size), _next_side(inner[1], model_size))
        if size_fits(*canvas_size, model_size):
            return Canvas(size=canvas_size, inner=inner, outer=picture)
        scale = min(scale * _SHRINK, 2 * model_size / max(picture))


def _next_side(side: int, model_size: int) -> int:
    """Return the next multiple of 8 that is half the trained side or more."""
    return math.ceil(max(model_size // 2, side) / _GRID) * _GRID


def nearest_size(picture: Size, model_size: int) -> Size | None:
    """Return the legal size nearest to a picture's, of its shape; None where its shape has none."""
    width, height = picture
    sides = range(math.ceil(model_size / 2 / _GRID) * _GRID, 2 * model_size + 1, _GRID)
    legal = [
        (w, h) for w in sides for h in sides if same_shape(picture, (w, h)) and size_fits(w, h, model_size)
    ]

    def distance(candidate: Size) -> float:
        w, h = candidate
        return 4 * abs(math.log(w / h * height / width)) + abs(math.log(w * h / (width * height)))

    return min(legal, key=distance, default=None)


def _check_image_size(image: Image, model_size: int, *, any_size: bool) -> None:
    """Check that a picture can be drawn at its own size; raises `RequestError`.

    any_size: whether it is laid on a canvas, as for inpainting.
    """
    size = f"{image.width}x{image.height}"
    if any_size:
        if not all(LEAST <= side <= MOST for side in image.size):
            raise RequestError(
                f"image is {size}: give one with sides from {LEAST} to {MOST} pixels; crop or resize it first"
            )
    elif not size_fits(*image.size, model_size):
        legal = nearest_size(image.size, model_size)
        advice = "crop it to a shape from 1:4 to 4:1 first"
        if legal is not None:
            advice = f"type width={legal[0]}, height={legal[1]}, to which it is scaled, or crop it first"
        raise RequestError(f"image is {size}: this model draws {describe_sizes(model_size)}; {advice}")


def _default_sides(picture: Size, options: Mapping[str, Any]) -> dict[str, int]:
    """Return width and height where they are not given: the picture's, or what keeps its shape."""
    sides = dict(zip(("width", "height"), picture, strict=True))
    typed = [name for name in sides if name in options]
    if len(typed) == 1 and type(options[typed[0]]) is int:
        scale = options[typed[0]] / sides[typed[0]]
        return {name: max(_GRID, round(side * scale / _GRID) * _GRID) for name, side in sides.items()}
    return sides
