"""Sizes of given pictures: scaled to a call's, or laid on what a model can draw and taken out again."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image
from PIL.Image import Resampling

from fewstep.errors import RequestError

Size = tuple[int, int]  # width, height; pixels
Box = tuple[int, int, int, int]  # left, top, right, bottom; pixels


@dataclass(frozen=True, kw_only=True)
class Canvas:
    """Where a picture of any size lies on one that a model draws: from the top left, its edges continued."""

    size: Size  # what is drawn
    inner: Size  # the picture's on it
    outer: Size  # the picture's own
    box: Box | None = None  # what of the picture is drawn, where not all of it; `outer` is then its size
    tile: Size | None = None  # the largest that is drawn at once, where `size` is larger

    @property
    def note(self) -> str:
        """Return what has to be said of the picture; "" where no pixel is scaled."""
        if self.inner == self.outer or self.box is not None:
            return ""
        (width, height), (drawn_width, drawn_height) = self.outer, self.inner
        resized = "enlarged" if drawn_width * drawn_height < width * height else "made smaller"
        return (
            f"is {width}x{height}, which this model does not draw: what the mask shows is drawn at "
            f"{drawn_width}x{drawn_height} and {resized}"
        )

    def place(self, image: Image.Image) -> Image.Image:
        """Return a picture, or a mask, on the canvas."""
        image = image if self.box is None else image.crop(self.box)
        if self.size == self.outer:
            return image
        scaled = image if self.inner == self.outer else image.resize(self.inner, Resampling.LANCZOS)
        pixels, (width, height) = np.asarray(scaled), self.size
        padding = [(0, height - self.inner[1]), (0, width - self.inner[0]), (0, 0)][: pixels.ndim]
        return Image.fromarray(np.pad(pixels, padding, mode="edge"))

    def take_out(self, image: Image.Image) -> Image.Image:
        """Return the picture's part of what was drawn, at the picture's own size; of `box` alone."""
        if self.size == self.outer:
            return image
        cropped = image.crop((0, 0, *self.inner))
        return cropped if self.inner == self.outer else cropped.resize(self.outer, Resampling.LANCZOS)


def same_shape(picture: Size, size: Size) -> bool:
    """Return whether a picture can be scaled to this size: its sides would be some 8 pixels off at most."""
    return abs(picture[0] * size[1] - picture[1] * size[0]) <= 8 * max(picture)


def fit_image(image: Image.Image, size: Size, name: str, size_name: str, advice: str = "") -> Image.Image:
    """Return the picture at this size; one of another shape is refused, not distorted.

    size_name: what errors call the size. advice: what else to type.
    """
    if not same_shape(image.size, size):
        raise RequestError(
            f"{name} is {image.width}x{image.height}, which has another shape than {size_name}: "
            f"crop it first{advice}"
        )
    return image if image.size == size else image.resize(size, Resampling.LANCZOS)
