"""A safetensors file's header: what it holds, without its data. The file is not trusted.

Eight bytes of length, that much JSON, then the tensors' bytes without a gap. Everything else is
refused: pickles by name and by their first bytes, and whatever safetensors' own reader would refuse.
"""

from __future__ import annotations

import json
import math
import os
import stat
import struct
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

from fewstep.errors import CorruptModelError, ModelNotFoundError

LENGTH = 8  # bytes before the JSON
HEADER = 16 * 2**20  # bytes; SDXL's whole checkpoint has 0.4 MB
TENSORS = 20_000  # SDXL's whole checkpoint has 2,515; its widest LoKr about 6,000
NAME = 500  # characters; SDXL's longest has 97
RANK, SIDE = 8, 2**40  # dimensions of a tensor, and the most of each; a convolution has 4
TOKENS = 32 * TENSORS  # commas, quotes or brackets in the JSON; a tensor takes up to 24
DEPTH = 3  # {tensor: {"shape": [...]}}

PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl", ".pickle", ".pt2")
INSTEAD = "fewstep reads safetensors alone, which cannot run code: fetch or convert it to a .safetensors file"
# How files begin that are taken for models. Protocols 0 and 1 of pickle begin with any of many letters.
MAGICS: tuple[tuple[bytes, str], ...] = (
    (b"PK", f"is a zip archive, as torch packs pickles: {INSTEAD}"),
    *((bytes([0x80, protocol]), f"is a pickle: {INSTEAD}") for protocol in range(2, 6)),
    (b"version https://git-lfs", "is a pointer of Git LFS, not the model: type git lfs pull"),
    (b"<", "is a web page, not a model: the download failed; fetch it again"),
    (b"GGUF", f"is a GGUF file: {INSTEAD}"),
)  # fmt: skip
# Every dtype of safetensors 0.8 (its `Dtype`), in bits.
BITS: MappingProxyType[str, int] = MappingProxyType(
    {
        "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "BOOL": 8, "U8": 8, "I8": 8,
        "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
        "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32,
        "U64": 64, "I64": 64, "F64": 64, "C64": 64,
    }
)  # fmt: skip
_NUMBERS = {"F16": "<e", "F32": "<f", "F64": "<d", "I32": "<i", "I64": "<q"}  # BF16 is F32's upper half


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One tensor; `begin` and `end` count from where the data starts."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def size(self) -> int:
        """Elements."""
        return math.prod(self.shape)


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a file holds; its tensors in the order of its data."""

    path: Path
    tensors: Mapping[str, Entry]
    metadata: Mapping[str, str]
    bytes: int  # of the whole file

    @property
    def parameters(self) -> int:
        """Elements of all tensors."""
        return sum(entry.size for entry in self.tensors.values())


class _HeaderError(ValueError):
    """What is wrong with a file; the path is put before it."""


def read(path: str | Path) -> Header:
    """The header of a safetensors file; `CorruptModelError` says what is wrong with any other."""
    path = Path(os.path.expanduser(path))
    if path.suffix.lower() in PICKLES:
        raise CorruptModelError(f"{shown(path)} is a pickle by its name: {INSTEAD}")
    with _open(path) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            raw = _json(file, size)
            tensors, metadata = _content(parse(raw), size - LENGTH - len(raw))
        except (ValueError, RecursionError, MemoryError, OSError) as error:
            raise _broken(path, error, "is no safetensors file: its header cannot be read") from None
    return Header(
        path=path, tensors=MappingProxyType(tensors), metadata=MappingProxyType(metadata), bytes=size
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of a model that may be as hostile as its weights."""
    with _open(path) as file:
        try:
            if os.fstat(file.fileno()).st_size > HEADER:
                raise _HeaderError(f"is larger than {HEADER} bytes")
            return parse(file.read(HEADER + 1))
        except (ValueError, RecursionError, MemoryError, OSError) as error:
            raise _broken(path, error, "cannot be read: it should hold a JSON object") from None


def scalars(header: Header, names: Iterable[str]) -> list[float]:
    """The values of tensors of one element, such as LoRA's alphas: the only data ever read here."""
    entries = [header.tensors[name] for name in names]
    fitting = [e for e in entries if e.size == 1 and (e.dtype in _NUMBERS or e.dtype == "BF16")]
    if not fitting:
        return []
    start = header.bytes - max(entry.end for entry in header.tensors.values())
    with _open(header.path) as file:
        return [_number(file, start + entry.begin, entry.dtype) for entry in fitting]


def _broken(path: Path, error: Exception, otherwise: str) -> CorruptModelError:
    """An error of one line that names the file, whatever a reader stumbled over."""
    return CorruptModelError(f"{shown(path)} {error if isinstance(error, _HeaderError) else otherwise}")


def shown(path: Path) -> str:
    """A path as it may stand in a message of one line."""
    return str(path) if str(path).isprintable() else repr(str(path))


def _open(path: Path) -> BinaryIO:
    """A regular file, and nothing that blocks: a FIFO or a device is not even opened."""
    try:
        _require_regular(path, path.stat().st_mode)
        file = open(path, "rb", opener=_without_waiting)  # noqa: SIM115  # the caller closes it
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a NUL in the name
        raise ModelNotFoundError(f"{shown(path)} is missing: there is no such file") from None
    except OSError as error:
        raise CorruptModelError(f"{shown(path)} cannot be read: {error.strerror}") from None
    try:
        _require_regular(path, os.fstat(file.fileno()).st_mode)  # it may have been swapped since
    except CorruptModelError:
        file.close()
        raise
    return file


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _require_regular(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        what = "a folder" if stat.S_ISDIR(mode) else "no regular file"
        raise CorruptModelError(f"{shown(path)} is {what}: give a .safetensors file")


def _json(file: BinaryIO, size: int) -> bytes:
    """The header's JSON, unparsed."""
    first = file.read(LENGTH)
    length = int.from_bytes(first, "little")
    start = first + file.read(24)
    if length > HEADER:  # so it is for all of these; a header of 640 bytes alone begins like a pickle
        for magic, what in MAGICS:
            if start.startswith(magic):
                raise _HeaderError(what)
        raise _HeaderError(
            f"is no safetensors file (its header would have {length} bytes; the most is {HEADER}): {INSTEAD}"
        )
    if length < 2 or size < LENGTH + length:
        raise _HeaderError(f"is cut off: it has {size} bytes, its header alone takes {LENGTH + length}")
    file.seek(LENGTH)
    return file.read(length)


def parse(raw: bytes) -> dict[str, Any]:
    """JSON of an object, of bounded size and depth, in UTF-8, without duplicate keys."""
    _bound(raw)
    text = raw.decode("utf-8")
    if text[:1] != "{":
        raise _HeaderError("should hold a JSON object")
    content: dict[str, Any] = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_number)
    return content


def _bound(raw: bytes) -> None:
    """Count brackets and commas before a parser meets them; those inside strings do not count."""
    plain = raw.replace(rb"\\", b"").replace(rb"\"", b"")
    if plain.count(b'"') > TOKENS:
        raise _HeaderError(f"has more than {TOKENS} quotes in its JSON")
    skeleton = b"".join(plain.split(b'"')[::2])
    brackets = skeleton.translate(None, bytes({*range(256)} - {*b"[]{}"}))
    if max(len(brackets), skeleton.count(b",")) > TOKENS:
        raise _HeaderError(f"has more than {TOKENS} values in its JSON")
    deepest = max(accumulate(1 if bracket in b"[{" else -1 for bracket in brackets), default=0)
    if deepest > DEPTH:
        raise _HeaderError(f"has JSON nested {deepest} deep; the most is {DEPTH}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise _HeaderError(f"names {twice!r:.80} twice")
    "".join(found).encode()  # half a surrogate pair is no text
    return found


def _no_number(name: str) -> None:
    raise _HeaderError(f"has {name} in its JSON")


def _content(header: dict[str, Any], size: int) -> tuple[dict[str, Entry], dict[str, str]]:
    """Tensors and metadata; `size` bytes of data follow the header."""
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise _HeaderError("has metadata that is not text")
    "".join(metadata.values()).encode()
    if len(header) > TENSORS:
        raise _HeaderError(f"has {len(header)} tensors; the most is {TENSORS}")
    if max(map(len, header), default=0) > NAME:
        raise _HeaderError(f"has a name of {max(map(len, header))} characters; the most is {NAME}")
    entries = {name: _entry(name, given) for name, given in header.items()}
    tensors = dict(sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)))
    _require_seamless(tensors, size)
    return tensors, metadata


def _entry(name: str, given: Any) -> Entry:
    """One tensor's line of the header."""
    if not isinstance(given, dict) or given.keys() != {"dtype", "shape", "data_offsets"}:
        raise _HeaderError(f"has no dtype, shape and data_offsets for {name!r:.80}")
    dtype, shape, offsets = given["dtype"], given["shape"], given["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise _HeaderError(f"has an unknown dtype {dtype!r:.40} for {name!r:.80}")
    if not _counts(shape) or len(shape) > RANK or max(shape, default=0) > SIDE:
        raise _HeaderError(f"has an impossible shape {shape!r:.80} for {name!r:.80}")
    if not _counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _HeaderError(f"has impossible offsets {offsets!r:.80} for {name!r:.80}")
    entry = Entry(dtype=dtype, shape=tuple(shape), begin=offsets[0], end=offsets[1])
    if entry.size * BITS[dtype] != 8 * (entry.end - entry.begin):
        raise _HeaderError(
            f"gives {name!r:.80} {entry.end - entry.begin} bytes, which its shape does not fill"
        )
    return entry


def _counts(values: Any) -> bool:
    """A list of whole numbers from 0; True is none."""
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _require_seamless(tensors: Mapping[str, Entry], size: int) -> None:
    """Each tensor begins where the one before ends, and the last ends with the file."""
    reached = 0
    for name, entry in tensors.items():
        if entry.begin != reached:
            fault = "a hole before" if entry.begin > reached else "an overlap at"
            raise _HeaderError(f"has {fault} {name!r:.80} in its data")
        reached = entry.end
    if reached > size:
        raise _HeaderError(f"is cut off: {reached - size} bytes of its data are missing; fetch it again")
    if reached < size:
        raise _HeaderError(f"has {size - reached} bytes after its data that belong to no tensor")


def _number(file: BinaryIO, position: int, dtype: str) -> float:
    file.seek(position)
    raw = file.read(BITS[dtype] // 8)
    raw, form = (b"\0\0" + raw, "<f") if dtype == "BF16" else (raw, _NUMBERS[dtype])
    if len(raw) != struct.calcsize(form):
        raise CorruptModelError(f"{file.name} is cut off")
    return float(struct.unpack(form, raw)[0])
