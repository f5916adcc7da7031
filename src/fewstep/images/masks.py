"""Masks and borders: feathered inwards, so that what is black stays black, and pictures made wider."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageFilter

from fewstep import values
from fewstep.errors import RequestError
from fewstep.images.canvas import fit_image
from fewstep.images.opening import open_mask

Borders = tuple[int, int, int, int]  # left, top, right, bottom; pixels

MOST_FEATHER = 1024  # pixels
_FEATHER_SHARE = 32  # of a picture's longer side, as its usual feather


def usual_feather(size: tuple[int, int]) -> int:
    """Return how many pixels a mask's edge is softened by where nobody says: a 32nd of the longer side."""
    return max(1, round(max(size) / _FEATHER_SHARE))


def checked_feather(feather: object) -> int:
    """Return how many pixels an edge is softened by; raises `RequestError`."""
    width = values.whole(feather)
    if type(width) is not int or not 0 <= width <= MOST_FEATHER:
        raise RequestError(
            f"feather={values.shown(feather)}: give pixels, a whole number from 0 to {MOST_FEATHER}"
        )
    return width


def open_feathered(mask: object, size: tuple[int, int], feather: int | None) -> Image.Image:
    """Return a mask at a picture's size, its edge softened by `feather` pixels; raises `RequestError`."""
    width = usual_feather(size) if feather is None else checked_feather(feather)
    opened = open_mask(mask, "mask").image
    return feather_inwards(fit_image(opened, size, "mask", "the picture"), width)


def feather_inwards(mask: Image.Image, width: int) -> Image.Image:
    """Return a mask (L) that rises from its edge to its full value within `width` pixels.

    Black stays black, so that what lies outside is not touched. Where a part is too narrow to rise
    so far, its middle has the full value all the same.
    """
    if width < 1:
        return mask
    eroded, ramp, depth = mask, np.zeros((mask.height, mask.width), np.float32), 0
    for _ in range(width):
        if eroded.getextrema()[1] == 0:
            break
        ramp += np.asarray(eroded, np.float32)
        eroded, depth = eroded.filter(ImageFilter.MinFilter(3)), depth + 1
    # A pixel at the edge has one of `depth` layers above it, one further in has two.
    return Image.fromarray(np.minimum(np.asarray(mask), np.ceil(ramp / max(1, depth))).astype(np.uint8))


def widen_picture(image: Image.Image, borders: Borders) -> Image.Image:
    """Return a picture with borders, its edges continued: what a model draws over."""
    left, top, right, bottom = borders
    return Image.fromarray(np.pad(np.asarray(image), ((top, bottom), (left, right), (0, 0)), mode="edge"))


def border_mask(size: tuple[int, int], borders: Borders, overlap: int) -> Image.Image:
    """Return a mask that is white on the borders around a picture of `size`, and `overlap` pixels into it.

    Over those it falls to black, so that the new joins the old without a line.
    """
    left, top, right, bottom = borders
    width, height = size
    mask = Image.new("L", (left + width + right, top + height + bottom), 255)
    inner = [
        left + (overlap if left else 0), top + (overlap if top else 0),
        left + width - (overlap if right else 0), top + height - (overlap if bottom else 0),
    ]  # fmt: skip
    if inner[0] < inner[2] and inner[1] < inner[3]:
        mask.paste(0, (inner[0], inner[1], inner[2], inner[3]))
    return feather_inwards(mask, overlap)
