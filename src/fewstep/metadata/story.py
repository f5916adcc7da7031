"""A picture's facts as the JSON in its file, and back; and the given pictures beside it.

Each fact has a short hash of its own, so that a reader can say which of them somebody changed.
"""

from __future__ import annotations

import hashlib
import io
import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from PIL.Image import Image

from fewstep import __version__
from fewstep.metadata.containers import Payload, write_container
from fewstep.metadata.formats import Encoding
from fewstep.metadata.webui import write_parameters

PNG = Encoding()
CHECK = "check"  # facts → the first 8 hex digits of their hashes
PROMPTS = ("prompts", "prompts_2", "negative_prompt", "warnings")  # what prompts=False leaves out
MAX_EMBEDDED = 4 * 2**20  # bytes of given pictures that are put into a file without being asked to
MAX_GIVEN = 64  # given pictures that are read from a file


def encode(
    image: Image,
    facts: Mapping[str, Any],
    *,
    edited: bool,
    encoding: Encoding = PNG,
    embedded: bytes = b"",
) -> bytes:
    """Return a picture's file with its facts, the web UIs' text and the mark that a model made it.

    edited: whether it was made from a given picture. embedded: given pictures to put in, as
        `pack_pictures` has them.
    """
    if not encoding.metadata:
        return write_container(image, Payload(edited=edited), encoding)
    payload = Payload(
        facts=dump_story(facts, prompts=encoding.prompts),
        parameters=_parameters(facts, encoding),
        edited=edited,
        embedded=embedded,
    )
    return write_container(image, payload, encoding)


def _parameters(facts: Mapping[str, Any], encoding: Encoding) -> str:
    """Return the web UIs' text; "" for a sheet of several pictures, of which they know none."""
    if "model" not in facts:
        return ""
    return write_parameters(
        facts if encoding.prompts else {**facts, "prompts": [], "negative_prompt": ""}, __version__
    )


def dump_story(facts: Mapping[str, Any], *, prompts: bool = True) -> str:
    """Return the JSON for a file; without prompts there are none in it, nor in what is said of parents."""
    kept = {name: value for name, value in facts.items() if prompts or name not in PROMPTS}
    if not prompts and "parents" in kept:
        kept["parents"] = [
            {n: v for n, v in parent.items() if "prompt" not in n} for parent in kept["parents"]
        ]
    return json.dumps(
        {**kept, CHECK: {name: _digest(value) for name, value in kept.items()}}, ensure_ascii=False
    )


def load_story(text: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the facts in a file's JSON, and the names of those that were changed since they were written.

    No facts for what is none of ours.
    """
    try:
        facts = json.loads(text) if text else {}
    except (ValueError, RecursionError):  # another program's
        facts = {}
    if not isinstance(facts, dict):
        return {}, ()
    check = facts.pop(CHECK, {})
    if not isinstance(check, dict):
        return facts, ()
    names = check.keys() | facts.keys() if check else ()
    changed = (name for name in names if name not in facts or check.get(name) != _digest(facts[name]))
    return facts, tuple(sorted(changed))


def _digest(value: Any) -> str:
    line = json.dumps(value, sort_keys=True)
    return hashlib.sha256(line.encode()).hexdigest()[:8]


def pack_pictures(pictures: Mapping[str, Sequence[Image]], most: int | None = None) -> bytes:
    """Return given pictures by their options as one block: each its option, a zero, its length and a PNG.

    Nothing where that takes more than `most` bytes.
    """
    block = b""
    for option, images in pictures.items():
        for image in images:
            buffer = io.BytesIO()
            image.save(buffer, "PNG", compress_level=4)
            block += option.encode() + b"\0" + struct.pack(">I", buffer.tell()) + buffer.getvalue()
            if most is not None and len(block) > most:
                return b""
    return block


def unpack_pictures(block: bytes) -> dict[str, list[bytes]]:
    """Return the PNG files in a block by their options, as far as it is whole."""
    pictures, place = dict[str, list[bytes]](), 0
    for _ in range(MAX_GIVEN):
        end = block.find(b"\0", place, place + 32)
        if end < 0 or end + 5 > len(block):
            break
        length = struct.unpack_from(">I", block, end + 1)[0]
        option = block[place:end].decode("ascii", "replace")
        pictures.setdefault(option, []).append(block[end + 5 : end + 5 + length])
        place = end + 5 + length
    return pictures
