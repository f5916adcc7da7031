"""The one door for pictures: whatever may be given as one → RGB, or as a mask → L."""

from __future__ import annotations

import os
import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from fewstep.errors import RequestError, describe_error
from fewstep.images.arrays import Array, image_from_array
from fewstep.images.decode import MAX_BYTES, OpenedImage, decode_image, load_image
from fewstep.images.pixel_modes import to_mask, to_rgb

PATH_KEY = "path"  # of `.info` of an opened picture: where it came from, as it was given; none is from memory
WELCOME = "give a path or a PIL image, a file's bytes or a file open in 'rb', a numpy array or a tensor"


def open_image(source: object, name: str) -> OpenedImage:
    """Return a picture as RGB, upright, transparent parts laid on white, and what has to be said of it.

    source: a path, a file's bytes, a file open for reading, a PIL image of any mode, an array or a tensor.
    name: what errors call it: "image", "control".

    Raises `RequestError` for what cannot be read, or cannot be meant.
    """
    image, notes = _open(source, name, mask=False)
    rgb, mode_notes = to_rgb(image, name)
    return OpenedImage(_with_path(rgb, source), notes + mode_notes)


def open_mask(source: object, name: str = "mask") -> OpenedImage:
    """Return a mask as L, white where the picture is to be made anew; otherwise as `open_image`."""
    image, notes = _open(source, name, mask=True)
    grey, mode_notes = to_mask(image, name)
    return OpenedImage(_with_path(grey, source), notes + mode_notes)


def _with_path(image: Image.Image, source: object) -> Image.Image:
    """Return the image, which is nobody else's, with where it came from."""
    if isinstance(source, str | os.PathLike):
        image.info[PATH_KEY] = str(source)
    return image


def _open(source: Any, name: str, *, mask: bool) -> OpenedImage:
    """Return what was given as a PIL image."""
    if isinstance(source, Image.Image):
        return load_image(source, name)
    if isinstance(source, str | os.PathLike):
        return _open_path(source, name)
    if isinstance(source, bytes | bytearray | memoryview):
        return decode_image(_bounded_bytes(source, name), name)
    if hasattr(source, "read"):
        return decode_image(_read_file(source, name), name)
    if isinstance(source, Array):
        return image_from_array(source, name, mask=mask)
    if isinstance(source, Sequence) and len(source):
        raise RequestError(f"{name} is a {type(source).__name__} of {len(source)}: give one, {name}[0]")
    raise RequestError(f"{name}={reprlib.repr(source)}: {WELCOME}")


def _open_path(source: Any, name: str) -> OpenedImage:
    """Return the picture of a file."""
    path = os.fspath(source)
    label = f"{name}={path!r:.300}"
    if not isinstance(path, str) or not path:
        raise RequestError(f"{label}: {WELCOME}")
    if path.startswith(("http://", "https://", "data:", "ftp://")) and not os.path.exists(path):
        raise RequestError(
            f"{name}={path!r:.80}: addresses are not fetched; fetch it, and give its bytes or path"
        )
    return decode_image(Path(path), label)


def _bounded_bytes(source: bytes | bytearray | memoryview, name: str) -> bytes:
    length = source.nbytes if isinstance(source, memoryview) else len(source)
    if length > MAX_BYTES:
        raise RequestError(f"{name} has {length} bytes: at most {MAX_BYTES} are read; make it smaller first")
    return bytes(source)


def _read_file(file: Any, name: str) -> bytes:
    """Return all bytes of an open file, from its start where it can go there."""
    try:
        if hasattr(file, "seek") and getattr(file, "seekable", lambda: True)():
            file.seek(0)
        data = file.read(MAX_BYTES + 1)
    except Exception as error:
        raise RequestError(f"{name} cannot be read: {describe_error(error)}") from error
    if not isinstance(data, bytes):
        raise RequestError(f"{name} gives {type(data).__name__} when it is read: open the file in 'rb'")
    return data
