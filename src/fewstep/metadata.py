"""What is written into a picture, and read back."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngImageFile, PngInfo

from fewstep.errors import OutputError, RequestError
from fewstep.images import FACTS_KEY
from fewstep.images.decode import open_format, raise_as_unreadable

KEY = FACTS_KEY
# IPTC digital source types: pictures made by a model must say so in machine-readable form.
_MADE, _EDITED = "trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia"
_XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
    'Iptc4xmpExt:DigitalSourceType="http://cv.iptc.org/newscodes/digitalsourcetype/{kind}"/>'
    "</rdf:RDF></x:xmpmeta>"
)


def output_paths(path: str | os.PathLike[str], places: Sequence[int], *, overwrite: bool) -> list[Path]:
    """Return where pictures go: to `path`, or with their places, -0, -1, ..., before its ending.

    `OutputError` where they cannot: pictures need not be made to know.
    """
    if not isinstance(path, str | os.PathLike) or "\0" in str(path):
        raise OutputError(f"{path!r} is no path: type 'picture.png'")
    target = Path(path)
    if target.suffix.lower() != ".png":
        suggestion = target.with_suffix(".png") if target.name else target / "picture.png"
        raise OutputError(f"{str(path)!r}: pictures are saved as PNG; type {str(suggestion)!r}")
    if not os.path.isdir(target.parent):
        reason = f"there is no folder {str(target.parent)!r}; make it, or choose another"
        raise OutputError(f"{str(path)!r} cannot be written: {reason}")
    paths = [target.with_stem(f"{target.stem}-{place}") for place in places] or [target]
    existing = [p for p in paths if os.path.lexists(p)] if not overwrite else []
    if existing:
        raise OutputError(
            f"{str(existing[0])!r} exists: choose another name, or overwrite=True (--overwrite)"
        )
    return paths


def encode(image: Image.Image, facts: dict[str, object], *, edited: bool) -> bytes:
    """Return a PNG file with the picture and its facts; `edited`: it was made from a given picture."""
    info = PngInfo()
    info.add_itxt(KEY, json.dumps(facts, ensure_ascii=False))
    info.add_itxt("XML:com.adobe.xmp", _XMP.format(kind=_EDITED if edited else _MADE))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=info, compress_level=1)  # six times faster than 6, hardly larger
    return buffer.getvalue()


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return how a picture was made, as `Result.save` wrote it; {} for pictures that do not say.

    `RequestError` where there is no picture to read.
    """
    if not isinstance(path, str | os.PathLike) or "\0" in str(path):
        raise RequestError(f"{path!r:.80} is no path: type 'picture.png'")
    with raise_as_unreadable(repr(str(path))), Path(path).open("rb") as file, open_format(file) as image:
        text = image.text.get(KEY) if isinstance(image, PngImageFile) else None
    try:
        facts = json.loads(text) if text else {}
    except (ValueError, RecursionError):  # another program's
        facts = {}
    return facts if isinstance(facts, dict) else {}
