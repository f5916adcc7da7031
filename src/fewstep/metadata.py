"""What is written into a picture, and read back."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from fewstep.errors import OutputError

KEY = "fewstep"
# IPTC digital source types: pictures made by a model must say so in machine-readable form.
_MADE, _EDITED = "trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia"
_XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
    'Iptc4xmpExt:DigitalSourceType="http://cv.iptc.org/newscodes/digitalsourcetype/{kind}"/>'
    "</rdf:RDF></x:xmpmeta>"
)


def targets(path: str | Path, places: Sequence[int], *, overwrite: bool) -> list[Path]:
    """Where pictures go: to `path`, or with their places, -0, -1, ..., before its ending.

    `OutputError` where they cannot: pictures need not be made to know.
    """
    if not isinstance(path, str | Path) or "\0" in str(path):
        raise OutputError(f"{path!r} is no path: type 'picture.png'")
    target = Path(path)
    if target.suffix.lower() != ".png":
        fitting = target.with_suffix(".png") if target.name else target / "picture.png"
        raise OutputError(f"{str(path)!r}: pictures are saved as PNG; type {str(fitting)!r}")
    if not os.path.isdir(target.parent):
        there = f"there is no folder {str(target.parent)!r}; make it, or choose another"
        raise OutputError(f"{str(path)!r} cannot be written: {there}")
    paths = [target.with_stem(f"{target.stem}-{place}") for place in places] or [target]
    taken = [p for p in paths if os.path.lexists(p)] if not overwrite else []
    if taken:
        raise OutputError(f"{str(taken[0])!r} exists: choose another name, or overwrite=True (--overwrite)")
    return paths


def write(image: Image.Image, path: Path, facts: dict[str, object], *, edited: bool, overwrite: bool) -> None:
    """Write a PNG with its facts, whole or not at all; an existing file stays unless `overwrite`."""
    info = PngInfo()
    info.add_itxt(KEY, json.dumps(facts, ensure_ascii=False))
    info.add_itxt("XML:com.adobe.xmp", _XMP.format(kind=_EDITED if edited else _MADE))
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with scratch.open("xb") as file:
            # Level 1 is six times faster than Pillow's default, and hardly larger.
            image.save(file, "PNG", pnginfo=info, compress_level=1)
        if overwrite:
            scratch.replace(path)
        else:
            _give_final_name(scratch, path)
    except FileExistsError:
        raise OutputError(f"{str(path)!r} exists: choose another name, or overwrite=True") from None
    except OSError as error:
        raise OutputError(f"{str(path)!r} cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):  # it may never have been
            scratch.unlink()


def _give_final_name(scratch: Path, path: Path) -> None:
    """Give the finished file its name; unlike a rename, `FileExistsError` where that is taken."""
    try:
        os.link(scratch, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links: take the name first
        path.open("xb").close()
        scratch.replace(path)


def read(path: str | Path) -> dict[str, Any]:
    """How a picture was made, as `Result.save` wrote it; {} where nothing is written."""
    with Image.open(path, formats=["PNG"]) as image:
        text = image.text.get(KEY) if hasattr(image, "text") else None
    try:
        facts = json.loads(text) if text else {}
    except (ValueError, RecursionError):  # another program's
        facts = {}
    return facts if isinstance(facts, dict) else {}
