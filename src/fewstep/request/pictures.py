"""The pictures of a call: opened, checked, and brought to the size that is drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from typing import Any

from PIL.Image import Image

from fewstep.errors import RequestError
from fewstep.images import open_image, open_mask
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
class Given:
    """What was given as one option, opened: a picture for all that are drawn, or one for each."""

    images: tuple[Image, ...]
    notes: tuple[str, ...] = ()
    parents: tuple[Any, ...] = ()  # the `Result` that each is of, or None


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """What a call was given to look at, and what that says of its size."""

    images: tuple[Image, ...] = ()  # of one size
    parents: tuple[Any, ...] = ()
    masks: tuple[Image, ...] = ()
    control: tuple[Image, ...] = ()
    control_scales: tuple[ScaledSource, ...] = ()
    reference: tuple[Image, ...] = ()
    reference_scales: tuple[ScaledSource, ...] = ()
    free_size: Size | None = (
        None  # that need not be one of the model's: of a picture with a mask, or in tiles
    )
    sides: Mapping[str, int] = field(default_factory=dict)  # width and height where they are not given
    notes: tuple[str, ...] = ()  # what has to be said of them

    def add_to(self, job: Job, model_size: int, typed: Set[str]) -> Job:
        """Return a job with these pictures, at its size, and what has to be said of them.

        typed: which of width and height the caller gave, for errors. Raises `RequestError`.
        """
        fitted = self._fitted(job, model_size, typed)
        canvas = self._canvas(job, model_size, fitted["masks"])
        scaled = (f"image {canvas.note}",) if canvas.note else ()
        if canvas.tile and self.control:
            raise RequestError(
                "control cannot act in tiles: leave tiles out, and draw at the model's own size"
            )
        return replace(
            job,
            plan=replace(job.plan, warnings=(*job.plan.warnings, *self.notes, *scaled)),
            canvas=canvas,
            reference=self.reference,
            **fitted,
        )

    def _canvas(self, job: Job, model_size: int, masks: Sequence[Image]) -> Canvas:
        """Return what is drawn for pictures of the call's size."""
        size = (job.request.width, job.request.height)
        if job.request.only_masked:
            return masked_canvas(masks[0], job.request.padding, model_size)
        if job.request.tiles:
            return tiled_canvas(size, model_size)
        return find_canvas(size, model_size) if size == self.free_size else job.canvas

    def _fitted(self, job: Job, model_size: int, typed: Set[str]) -> dict[str, Any]:
        """Return images, masks and control at the call's size; raises `RequestError` for other shapes."""
        size = (job.request.width, job.request.height)
        if typed:
            size_name = ", ".join(
                f"{name}={side}" for name, side in zip(("width", "height"), size, strict=True)
            )
        elif self.images:
            size_name = f"image, which is {size[0]}x{size[1]}"
        else:
            size_name = f"the picture that is drawn, {size[0]}x{size[1]}"

        def fit(image: Image, name: str) -> Image:
            sized = name == "image" or (name == "control" and not self.images)  # it may choose the size
            legal = nearest_size(image.size, model_size) if sized and image.size != size else None
            advice = "" if legal is None else f", or type width={legal[0]}, height={legal[1]}"
            return fit_image(image, size, name, size_name, advice)

        pictures = len(job.prompts)
        return {
            "images": _for_each(tuple(fit(image, "image") for image in self.images), pictures),
            "masks": _for_each(tuple(fit(mask, "mask") for mask in self.masks), pictures),
            "parents": _for_each(self.parents, pictures),
            "control": tuple(fit(image, "control") for image in self.control),
        }


def _for_each(items: tuple[Any, ...], pictures: int) -> tuple[Any, ...]:
    """Return one of these for each picture; one alone is for all of them."""
    return items * pictures if len(items) == 1 else items


NO_PICTURES = Pictures()


def open_pictures(options: dict[str, Any], model_size: int) -> Pictures:
    """Take all pictures out of what was given, and check the size of `image`; raises `RequestError`."""
    image, mask = (
        open_given(options.pop(name), name) if name in options else Given(images=())
        for name in ("image", "mask")
    )
    notes = [*image.notes, *mask.notes]
    guides: dict[str, tuple[tuple[ScaledSource, ...], tuple[Image, ...]]] = {}
    for name in ("control", "reference"):
        entries = options.pop(name, ())
        empty = isinstance(entries, tuple) and not entries
        scales, pictures = ((), ()) if empty else inputs.parse_guides(entries, name)
        guides[name] = scales, tuple(picture.image for picture in pictures)
        notes += [f"{name} {note}" for picture in pictures for note in picture.notes]
    size = image.images[0].size if image.images else None
    any_size = bool(mask.images) or options.get("tiles") is True
    if size is not None and not {"width", "height"} & options.keys():
        _check_image_size(size, model_size, any_size=any_size)
    return Pictures(
        images=image.images,
        parents=image.parents,
        masks=mask.images,
        control=guides["control"][1],
        control_scales=guides["control"][0],
        reference=guides["reference"][1],
        reference_scales=guides["reference"][0],
        free_size=size if any_size else None,
        sides={} if size is None else _default_sides(size, options),
        notes=tuple(dict.fromkeys(notes)),
    )


def open_given(source: object, name: str, parent: Any = None) -> Given:
    """Return what was given as "image" or "mask", opened; `parent` is the `Result` that it is of."""
    if isinstance(source, Given):
        return source
    opened = open_mask(source, name) if name == "mask" else open_image(source, name)
    notes = tuple(f"{name} {note}" for note in opened.notes)
    return Given(images=(opened.image,), notes=notes, parents=() if parent is None else (parent,))


def masked_canvas(mask: Image, padding: int, model_size: int) -> Canvas:
    """Return the masked area with `padding` pixels around it, drawn as large as the model's own pictures.

    It is widened to a shape that the model draws, as far as the picture reaches.
    """
    left, top, right, bottom = mask.getbbox() or (0, 0, *mask.size)
    least = max(right - left, bottom - top) // 4 + 1  # of a side: 1:4 is as far as models go
    across, down = (max(padding, (least - side + 1) // 2) for side in (right - left, bottom - top))
    box = (
        max(0, left - across), max(0, top - down),
        min(mask.width, right + across), min(mask.height, bottom + down),
    )  # fmt: skip
    outer = (box[2] - box[0], box[3] - box[1])
    scale = model_size / math.sqrt(outer[0] * outer[1])
    return replace(_scaled_canvas(outer, scale, model_size), box=box)


def tiled_canvas(picture: Size, model_size: int) -> Canvas:
    """Return a picture of any size at its own, in tiles of the model's size where it draws none so large."""
    size = (_next_side(picture[0], model_size), _next_side(picture[1], model_size))
    tile = (min(size[0], model_size), min(size[1], model_size))
    fits = size_fits(*size, model_size)
    return Canvas(size=size, inner=picture, outer=picture, tile=None if fits else tile)


def find_canvas(picture: Size, model_size: int) -> Canvas:
    """Return how a picture of any size is drawn by a model of this trained side.

    One that is too large is made smaller, one too small larger, and what is left to a legal size is
    filled up.
    """
    if size_fits(*picture, model_size):
        return Canvas(size=picture, inner=picture, outer=picture)
    return _scaled_canvas(picture, max(1.0, model_size // 2 / min(picture)), model_size)


def _scaled_canvas(picture: Size, scale: float, model_size: int) -> Canvas:
    """Return a picture times `scale`, or less where that is too large, on the next legal size."""
    width, height = picture
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


def _check_image_size(picture: Size, model_size: int, *, any_size: bool) -> None:
    """Check that a picture can be drawn at its own size; raises `RequestError`.

    any_size: whether it is laid on a canvas, as for inpainting.
    """
    size = f"{picture[0]}x{picture[1]}"
    if any_size:
        if not all(LEAST <= side <= MOST for side in picture):
            raise RequestError(
                f"image is {size}: give one with sides from {LEAST} to {MOST} pixels; crop or resize it first"
            )
    elif not size_fits(*picture, model_size):
        legal = nearest_size(picture, model_size)
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
