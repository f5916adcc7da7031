"""A picture's file → what it says of its making. Nothing in it is trusted."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fewstep.errors import RequestError
from fewstep.images.decode import MAX_BYTES, open_format, raise_as_unreadable
from fewstep.metadata import xmp
from fewstep.metadata.containers import read_container
from fewstep.metadata.foreign import read_foreign
from fewstep.metadata.story import load_story, unpack_pictures
from fewstep.metadata.webui import read_parameters


@dataclass(frozen=True, kw_only=True)
class Record:
    """What a picture's file says."""

    facts: Mapping[str, Any]  # {}: nothing
    changed: tuple[str, ...] = ()  # facts that somebody changed since they were written
    embedded: Mapping[str, list[bytes]] = field(default_factory=dict)  # PNG files of given pictures by option
    format: str = ""  # of the file: PNG, JPEG, WEBP, …
    lossless: bool = True
    source_type: str = ""  # IPTC's digital source type

    @property
    def ours(self) -> bool:
        """Return whether this library wrote it."""
        return bool(self.facts) and "tool" not in self.facts


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return how a picture was made: `Result.facts` as they were saved, or what another tool wrote.

    The latter in the same words as far as they reach, with `tool`, and `parameters` as they stand there.
    {} for pictures that do not say; `RequestError` where there is no picture to read.
    """
    return dict(read_record(path).facts)


def read_record(path: str | os.PathLike[str]) -> Record:
    """Return all that a picture's file says; raises `RequestError` where there is no picture to read."""
    if not isinstance(path, str | os.PathLike) or "\0" in str(path):
        raise RequestError(f"{path!r:.80} is no path: type 'picture.png'")
    label = repr(str(path))
    with raise_as_unreadable(label), Path(path).open("rb") as file:
        data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise RequestError(f"{label} has more than {MAX_BYTES} bytes, which is the most that is read")
        file.seek(0)
        with open_format(file) as image:
            payload = read_container(data)
            facts, changed = load_story(payload.facts)
            facts = facts or read_parameters(payload.parameters) or read_foreign(image, payload)
            image_format = image.format or ""
    return Record(
        facts=facts,
        changed=changed,
        embedded=unpack_pictures(payload.embedded),
        format=image_format,
        lossless=image_format == "PNG" or (image_format == "WEBP" and b"VP8L" in data[:64]),
        source_type=xmp.source_type(payload.packet),
    )
