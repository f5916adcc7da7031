"""A picture's file → PIL. It is not trusted: few formats, and bounds before anything is decoded."""

from __future__ import annotations

import io
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO, NamedTuple

from PIL import Image, UnidentifiedImageError
from PIL.Image import Transpose

from fewstep.errors import FewstepError, RequestError, describe_error

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "AVIF")
SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif")
MAX_PIXELS = 64 * 1024 * 1024  # the most that is decoded
MAX_BYTES = 256 * 1024 * 1024  # the most of a file

_ORIENTATION = 0x0112  # EXIF 2.32, 4.6.4: how the picture is turned
_TURNS: Mapping[int, Transpose] = MappingProxyType(
    {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }
)
# Pillow widens these rows of a PNG to bytes, or narrows them, and leaves the transparent colour as it was.
_PNG_GAINS: Mapping[str, float] = MappingProxyType(
    {"1": 255, "L;1": 255, "L;2": 85, "L;4": 17, "RGB;16B": 1 / 256}
)


class OpenedImage(NamedTuple):
    """A picture, and what has to be said of it: sentences without their subject, which is its name."""

    image: Image.Image
    notes: tuple[str, ...] = ()


def decode_image(source: Path | bytes, label: str) -> OpenedImage:
    """Return the picture of a file, upright, its first frame; `label` is what errors call it.

    Raises `RequestError`, whatever the file is.
    """
    with (
        raise_as_unreadable(label),
        _open_file(source, label) as file,
        open_format(file) as image,
    ):
        opened, animated = load_image(image, label), False
        if image.format != "MPO":  # a JPEG with a preview, as telephones write
            with suppress(Exception):  # what comes after the first frame may be broken
                animated = bool(getattr(image, "is_animated", False))
    frames_note = ("has several frames, of which the first is taken",) if animated else ()
    return OpenedImage(opened.image, (*opened.notes, *frames_note))


def open_format(file: BinaryIO) -> Image.Image:
    """Open a picture; of a PNG whose texts Pillow finds too long, as a workflow's may be, without them."""
    try:
        return Image.open(file, formats=FORMATS)
    except ValueError as error:
        if "MAX_TEXT" not in str(error):
            raise
    file.seek(0)
    return Image.open(io.BytesIO(_without_texts(file.read())), formats=FORMATS)


def _without_texts(png: bytes) -> bytes:
    """Return a PNG file without its text chunks (PNG 1.2, 3.2: length, type, data, CRC)."""
    kept, place = [png[:8]], 8
    while place + 8 <= len(png):
        end = place + 12 + int.from_bytes(png[place : place + 4], "big")
        if png[place + 4 : place + 8] not in (b"tEXt", b"zTXt", b"iTXt"):
            kept.append(png[place:end])
        place = end
    return b"".join(kept)


def load_image(image: Image.Image, label: str) -> OpenedImage:
    """Return a copy of an image that may not be decoded yet, upright; raises `RequestError`."""
    with raise_as_unreadable(label):
        check_pixels(image.size, label)
        transparency = _widened_transparency(image)
        image.load()
        turn: Transpose | None = None
        notes: tuple[str, ...] = ()
        try:
            turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
        except Exception:  # Pillow raises a dozen kinds
            notes = ("has EXIF data that cannot be read: it is taken as it lies",)
        upright = image.copy() if turn is None else image.transpose(turn)
        if transparency is not None:
            upright.info["transparency"] = transparency
        return OpenedImage(upright, notes)


def check_pixels(size: tuple[int, ...], label: str) -> None:
    """Check that a (width, height) has pixels, and not too many to be decoded; raises `RequestError`."""
    width, height = size
    if not width or not height:
        raise RequestError(f"{label} is {width}x{height}, which is empty: give a picture")
    if width * height > MAX_PIXELS:
        raise RequestError(
            f"{label} is {width}x{height}: at most {MAX_PIXELS} pixels are read; make it smaller first"
        )


@contextmanager
def raise_as_unreadable(label: str) -> Iterator[None]:
    """Turn whatever Pillow raises in here into a `RequestError`."""
    try:
        yield
    except FewstepError:
        raise
    except FileNotFoundError:
        raise RequestError(f"{label}: there is no such file") from None
    except UnidentifiedImageError:
        reason = "it is none of these, or broken from its start; save it as PNG first"
        raise RequestError(f"{label} cannot be read as {', '.join(FORMATS)}: {reason}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        reason = f"more than {MAX_PIXELS} pixels; make it smaller first"
        raise RequestError(f"{label} cannot be read: it has {reason}") from None
    except Exception as error:
        strerror = error.strerror if isinstance(error, OSError) else None  # without the path again
        reason = strerror or describe_error(error)
        raise RequestError(f"{label} cannot be read as {', '.join(FORMATS)}: {reason:.200}") from error


@contextmanager
def _open_file(source: Path | bytes, label: str) -> Iterator[BinaryIO]:
    """Give the bytes as a file; a pipe, a device or too large a file is refused."""
    if isinstance(source, bytes):
        _check_length(len(source), label)
        yield io.BytesIO(source)
        return
    status = source.stat()
    if not stat.S_ISREG(status.st_mode):
        raise RequestError(
            f"{label} is no plain file: give a picture's file, as {', '.join(FORMATS)}, or its bytes"
        )
    _check_length(status.st_size, label)
    with source.open("rb") as file:
        yield file


def _check_length(length: int, label: str) -> None:
    if length > MAX_BYTES:
        raise RequestError(f"{label} has {length} bytes: at most {MAX_BYTES} are read; make it smaller first")


def _widened_transparency(image: Image.Image) -> int | tuple[int, ...] | None:
    """Return a PNG's transparent colour as its decoded pixels will have it, where Pillow does not."""
    colour, tiles = image.info.get("transparency"), getattr(image, "tile", ())
    rows = tiles[0][3] if tiles else ""
    gain = _PNG_GAINS.get(rows) if isinstance(rows, str) and image.format == "PNG" else None
    if gain is None or not isinstance(colour, int | tuple):
        return None
    return int(colour * gain) if isinstance(colour, int) else tuple(int(channel * gain) for channel in colour)
