"""Where pictures go and in which format: by the ending of the name, or by `format`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from fewstep import values
from fewstep.errors import OutputError

Format = Literal["png", "jpeg", "webp"]
ENDINGS: MappingProxyType[str, Format] = MappingProxyType(
    {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".webp": "webp"}
)
MEDIA_TYPES: MappingProxyType[Format, str] = MappingProxyType(
    {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}
)
QUALITIES: MappingProxyType[Format, int] = MappingProxyType({"jpeg": 95, "webp": 90})  # where none is given
LOSSLESS = 100  # the quality at which WebP keeps every bit
_NAMED = "pictures are saved as PNG, JPEG or WebP"


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """How a picture is written, and how much of its story with it."""

    format: Format = "png"
    quality: int = 0  # 1 to 100; 0 is the format's usual one
    metadata: bool = True  # without it only the mark that a model made the picture
    prompts: bool = True

    @property
    def lossless(self) -> bool:
        """Return whether every pixel comes back as it was."""
        return self.format == "png" or (self.format == "webp" and self.quality == LOSSLESS)


def make_encoding(
    format: str | None,
    quality: int | None,
    metadata: bool = True,
    prompts: bool = True,
    path: str | os.PathLike[str] | None = None,
) -> Encoding:
    """Return the encoding that a call asks for, PNG where it names none; raises `OutputError`."""
    ending = ENDINGS.get(Path(path).suffix.lower()) if path is not None else None
    name = ending or "png" if format is None else check_format(format)
    if ending is not None and name != ending:
        raise OutputError(f"{str(path)!r} ends as {ending}, and format={format!r}: leave one of them out")
    level = values.whole(quality)
    if level is not None and name == "png":
        raise OutputError(f"quality={values.shown(quality)}: PNG keeps every bit; leave quality out")
    if level is not None and (type(level) is not int or not 1 <= level <= LOSSLESS):
        raise OutputError(f"quality={values.shown(quality)}: give a whole number from 1 to {LOSSLESS}")
    return Encoding(format=name, quality=level or 0, metadata=bool(metadata), prompts=bool(prompts))


def check_format(name: object) -> Format:
    """Return a format by its name, in any case; "jpg" is JPEG too. Raises `OutputError`."""
    format_name = ENDINGS.get(f".{values.text(name)}".lower()) if isinstance(name, str) else None
    if format_name is None:
        raise OutputError(f"format={values.shown(name)}: choose one of png, jpeg, webp")
    return format_name


def output_paths(
    path: str | os.PathLike[str],
    places: Sequence[int],
    *,
    overwrite: bool,
    format: str | None = None,
) -> list[Path]:
    """Return where pictures go: to `path`, or with their places, -0, -1, ..., before its ending.

    Places have as many digits as the last one, so that names sort. `OutputError` where pictures cannot go
    there: they need not be made to know. With `format` any ending will do.
    """
    if not isinstance(path, str | os.PathLike) or "\0" in str(path):
        raise OutputError(f"{path!r} is no path: type 'picture.png'")
    target = Path(path)
    if target.suffix.lower() not in ENDINGS and (format is None or not target.name):
        suggestion = target.with_suffix(".png") if target.name else target / "picture.png"
        raise OutputError(f"{str(path)!r}: {_NAMED}; type {str(suggestion)!r}")
    make_encoding(format, None, path=target)
    if not os.path.isdir(target.parent):
        reason = f"there is no folder {str(target.parent)!r}; make it, or choose another"
        raise OutputError(f"{str(path)!r} cannot be written: {reason}")
    digits = len(str(max(places, default=0)))
    paths = [target.with_stem(f"{target.stem}-{place:0{digits}}") for place in places] or [target]
    existing = [p for p in paths if os.path.lexists(p)] if not overwrite else []
    if existing:
        raise OutputError(
            f"{str(existing[0])!r} exists: choose another name, or overwrite=True (--overwrite)"
        )
    return paths
