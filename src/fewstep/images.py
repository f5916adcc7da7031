"""Pictures given by the user: opened safely, upright, as tensors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from PIL import Image, ImageOps

from fewstep.errors import RequestError

if TYPE_CHECKING:
    from torch import Tensor

FORMATS = ("PNG", "JPEG", "WEBP")
MAX_PIXELS = 64 * 1024 * 1024  # the most that is decoded


def open_image(given: str | Path | Image.Image, name: str) -> Image.Image:
    """A PIL image from a path or a PIL image, its EXIF orientation applied."""
    if isinstance(given, Image.Image):
        return ImageOps.exif_transpose(given)
    if not isinstance(given, str | Path):
        raise RequestError(f"{name}={given!r:.80}: give a path or a PIL image")
    return decode_image(given, f"{name}={str(given)!r}")


def decode_image(file: str | Path | BinaryIO, said: str) -> Image.Image:
    """A picture from a file that is not trusted; `said` is what errors call it."""
    try:
        with Image.open(file, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise RequestError(f"{said} is {image.width}x{image.height}: at most {MAX_PIXELS} pixels")
            return ImageOps.exif_transpose(image)
    except FileNotFoundError:
        raise RequestError(f"{said}: there is no such file") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise RequestError(f"{said} cannot be read as {', '.join(FORMATS)}: {error}") from None


def fit_image(image: Image.Image, size: tuple[int, int], name: str) -> Image.Image:
    """The picture at this (width, height); one of another shape is refused, not distorted."""
    width, height = size
    if abs(image.width * height - image.height * width) > 8 * max(image.width, image.height):
        raise RequestError(
            f"{name} is {image.width}x{image.height}, which has another shape than width={width}, "
            f"height={height}: crop it first, or give a width and height of its shape"
        )
    return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)


def image_to_tensor(image: Image.Image) -> Tensor:
    """RGB in [-1, 1], (1, 3, H, W)."""
    return _byte_tensor(image.convert("RGB")).permute(2, 0, 1)[None].float() / 127.5 - 1


def mask_to_tensor(image: Image.Image) -> Tensor:
    """Grey in [0, 1], 1 (white) where the picture is to be made anew, (1, 1, H, W)."""
    return _byte_tensor(image.convert("L")).permute(2, 0, 1)[None].float() / 255


def _byte_tensor(image: Image.Image) -> Tensor:
    """uint8, (H, W, channels)."""
    import torch

    flat = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return flat.view(image.height, image.width, -1)
