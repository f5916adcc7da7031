"""Headers of safetensors files, and of shards with their index: what is held, not its data; nothing trusted.

Eight bytes of length, that much JSON, then the tensors' bytes without a gap. Everything else is
refused: pickles by name and by their first bytes, and whatever safetensors' own reader would refuse.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

from fewstep.errors import CorruptModelError, ModelNotFoundError
from fewstep.files.untrusted import (
    MAX_HEADER,
    MAX_TENSORS,
    FileFaultError,
    file_error,
    open_regular_file,
    parse_json,
    printable_path,
    read_json,
)

LENGTH_BYTES = 8  # bytes before the JSON
MAX_NAME = 500  # characters; SDXL's longest has 97
MAX_DIMENSIONS, MAX_SIDE = 8, 2**40  # dimensions of a tensor, and the most of each; a convolution has 4

PICKLE_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin", ".pkl", ".pickle", ".pt2")
SAFETENSORS_ONLY = (
    "fewstep reads safetensors alone, which cannot run code: fetch or convert it to a .safetensors file"
)
# How files begin that are taken for models. Protocols 0 and 1 of pickle begin with any of many letters.
MAGICS: tuple[tuple[bytes, str], ...] = (
    (b"PK", f"is a zip archive, as torch packs pickles: {SAFETENSORS_ONLY}"),
    *((bytes([0x80, protocol]), f"is a pickle: {SAFETENSORS_ONLY}") for protocol in range(2, 6)),
    (b"version https://git-lfs", "is a pointer of Git LFS, not the model: type git lfs pull"),
    (b"<", "is a web page, not a model: the download failed; fetch it again"),
    (b"GGUF", f"is a GGUF file: {SAFETENSORS_ONLY}"),
)  # fmt: skip
# Every dtype of safetensors 0.8 (its `Dtype`), in bits.
DTYPE_BITS: MappingProxyType[str, int] = MappingProxyType(
    {
        "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "BOOL": 8, "U8": 8, "I8": 8,
        "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
        "U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32,
        "U64": 64, "I64": 64, "F64": 64, "C64": 64,
    }
)  # fmt: skip
_NUMBERS = {"F16": "<e", "F32": "<f", "F64": "<d", "I32": "<i", "I64": "<q"}  # BF16 is F32's upper half


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorEntry:
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
    tensors: Mapping[str, TensorEntry]
    metadata: Mapping[str, str]
    bytes: int  # of the whole file

    @property
    def parameters(self) -> int:
        """Elements of all tensors."""
        return sum(entry.size for entry in self.tensors.values())


def read_header(path: str | Path) -> Header:
    """The header of a safetensors file; `CorruptModelError` says what is wrong with any other."""
    path = Path(os.path.expanduser(path))
    if path.suffix.lower() in PICKLE_SUFFIXES:
        raise CorruptModelError(f"{printable_path(path)} is a pickle by its name: {SAFETENSORS_ONLY}")
    with open_regular_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        try:
            raw = _header_json(file, size)
            tensors, metadata = _parse_header(parse_json(raw), size - LENGTH_BYTES - len(raw))
        except (ValueError, RecursionError, MemoryError, OSError) as error:
            raise file_error(path, error, "is no safetensors file: its header cannot be read") from None
    return Header(
        path=path, tensors=MappingProxyType(tensors), metadata=MappingProxyType(metadata), bytes=size
    )


def read_scalars(header: Header, names: Iterable[str]) -> list[float]:
    """The values of tensors of one element, such as LoRA's alphas: the only data ever read here."""
    entries = [header.tensors[name] for name in names]
    readable = [e for e in entries if e.size == 1 and (e.dtype in _NUMBERS or e.dtype == "BF16")]
    if not readable:
        return []
    start = header.bytes - max(entry.end for entry in header.tensors.values())
    with open_regular_file(header.path) as file:
        return [_read_scalar(file, start + entry.begin, entry.dtype) for entry in readable]


def _header_json(file: BinaryIO, size: int) -> bytes:
    """The header's JSON, unparsed."""
    first = file.read(LENGTH_BYTES)
    length = int.from_bytes(first, "little")
    start = first + file.read(24)
    if length > MAX_HEADER:  # so it is for all of these; a header of 640 bytes alone begins like a pickle
        for magic, fault in MAGICS:
            if start.startswith(magic):
                raise FileFaultError(fault)
        raise FileFaultError(
            f"is no safetensors file (its header would have {length} bytes; the most is {MAX_HEADER}): "
            f"{SAFETENSORS_ONLY}"
        )
    if length < 2 or size < LENGTH_BYTES + length:
        raise FileFaultError(
            f"is cut off: it has {size} bytes, its header alone takes {LENGTH_BYTES + length}"
        )
    file.seek(LENGTH_BYTES)
    return file.read(length)


def _parse_header(header: dict[str, Any], size: int) -> tuple[dict[str, TensorEntry], dict[str, str]]:
    """Tensors and metadata; `size` bytes of data follow the header."""
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise FileFaultError("has metadata that is not text")
    "".join(metadata.values()).encode()
    if len(header) > MAX_TENSORS:
        raise FileFaultError(f"has {len(header)} tensors; the most is {MAX_TENSORS}")
    if max(map(len, header), default=0) > MAX_NAME:
        raise FileFaultError(f"has a name of {max(map(len, header))} characters; the most is {MAX_NAME}")
    entries = {name: _parse_entry(name, raw_entry) for name, raw_entry in header.items()}
    tensors = dict(sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)))
    _require_seamless(tensors, size)
    return tensors, metadata


def _parse_entry(name: str, raw_entry: Any) -> TensorEntry:
    """One tensor's line of the header."""
    if not isinstance(raw_entry, dict) or raw_entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise FileFaultError(f"has no dtype, shape and data_offsets for {name!r:.80}")
    dtype, shape, offsets = raw_entry["dtype"], raw_entry["shape"], raw_entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise FileFaultError(f"has an unknown dtype {dtype!r:.40} for {name!r:.80}")
    if not _are_counts(shape) or len(shape) > MAX_DIMENSIONS or max(shape, default=0) > MAX_SIDE:
        raise FileFaultError(f"has an impossible shape {shape!r:.80} for {name!r:.80}")
    if not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise FileFaultError(f"has impossible offsets {offsets!r:.80} for {name!r:.80}")
    entry = TensorEntry(dtype=dtype, shape=tuple(shape), begin=offsets[0], end=offsets[1])
    if entry.size * DTYPE_BITS[dtype] != 8 * (entry.end - entry.begin):
        raise FileFaultError(
            f"gives {name!r:.80} {entry.end - entry.begin} bytes, which its shape does not fill"
        )
    return entry


def _are_counts(values: Any) -> bool:
    """Return whether it is a list of whole numbers from 0; True is none."""
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _require_seamless(tensors: Mapping[str, TensorEntry], size: int) -> None:
    """Check that each tensor begins where the one before ends, and the last ends with the file."""
    position = 0
    for name, entry in tensors.items():
        if entry.begin != position:
            fault = "a hole before" if entry.begin > position else "an overlap at"
            raise FileFaultError(f"has {fault} {name!r:.80} in its data")
        position = entry.end
    if position > size:
        raise FileFaultError(f"is cut off: {position - size} bytes of its data are missing; fetch it again")
    if position < size:
        raise FileFaultError(f"has {size - position} bytes after its data that belong to no tensor")


def _read_scalar(file: BinaryIO, position: int, dtype: str) -> float:
    file.seek(position)
    raw = file.read(DTYPE_BITS[dtype] // 8)
    raw, form = (b"\0\0" + raw, "<f") if dtype == "BF16" else (raw, _NUMBERS[dtype])
    if len(raw) != struct.calcsize(form):
        raise CorruptModelError(f"{file.name} is cut off")
    return float(struct.unpack(form, raw)[0])


WEIGHT_STEMS = ("diffusion_pytorch_model", "model")  # diffusers' and transformers' names for weights
FOLDER_PARTS = ("unet", "text_encoder", "text_encoder_2", "vae")  # of a diffusers folder, those with weights
LORA_NAME = "pytorch_lora_weights.safetensors"  # diffusers' name for a LoRA's file
MAX_SHARDS = 256  # files; the largest published models have under 200


def read_shard_index(path: str | Path) -> list[Path]:
    """The shards that a `*.safetensors.index.json` names, all of them checked against it."""
    path = Path(os.path.expanduser(path))
    places = _weight_map(path)
    names = sorted(set(places.values()))
    if not names or len(names) > MAX_SHARDS:
        raise CorruptModelError(
            f"{printable_path(path)} names {len(names)} shards; it may name 1 to {MAX_SHARDS}"
        )
    for name in names:
        _require_plain_name(path, name)
        _require_agreement(
            path, read_header(_shard_path(path, name)), {k for k, v in places.items() if v == name}
        )
    return [path.parent / name for name in names]


def weight_files(folder: Path) -> list[Path]:
    """The files that loading would read from the folder of one network: one, or shards; fp16 if need be."""
    for stem, half in product(WEIGHT_STEMS, ("", ".fp16")):
        single = folder / f"{stem}{half}.safetensors"
        index = folder / f"{stem}.safetensors.index{half}.json"  # diffusers' name for a variant's
        if os.path.lexists(single):
            return [single]
        if os.path.lexists(index):
            return read_shard_index(index)
        shards = sorted(folder.glob(f"{stem}{half}-*-of-*.safetensors"))
        if shards:
            return shards
    return []


def _weight_map(path: Path) -> Mapping[str, str]:
    """Return which file each tensor is in."""
    places = read_json(path).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise CorruptModelError(
            f"{printable_path(path)} is no index of shards: its weight_map should name files"
        )
    return places


def _require_plain_name(path: Path, name: str) -> None:
    """Check that a name is a file beside the index, on POSIX and on Windows, with nothing hidden in it."""
    if set(name) & set('/\\:*?"<>|') or not name.isprintable() or not name.endswith(".safetensors"):
        raise CorruptModelError(
            f"{printable_path(path)} names {name!r:.80} as a shard: "
            "only .safetensors files beside it are read"
        )


def _shard_path(path: Path, name: str) -> Path:
    if not os.path.lexists(path.parent / name):
        raise CorruptModelError(
            f"{printable_path(path)} names {name!r:.80}, which is missing: fetch the model again"
        )
    return path.parent / name


def _require_agreement(path: Path, shard: Header, promised: set[str]) -> None:
    """Check that a shard holds what the index says, no less and no more."""
    odd = promised ^ shard.tensors.keys()
    if odd:
        name = min(odd)
        where = "is not in" if name in promised else "is in, against the index,"
        raise CorruptModelError(f"{printable_path(path)}: {name!r:.80} {where} {shard.path.name!r:.80}")


def read_any_header(path: Path) -> Header:
    """Return that of a file; or of all the files of a folder or index, as if they were one."""
    if path.is_dir():
        return _folder_header(path)
    if path.name.endswith(".safetensors.index.json"):
        return _join_headers(path, {"": read_shard_index(path)})
    return read_header(path)


def _folder_header(folder: Path) -> Header:
    by_part = {f"{part}.": weight_files(folder / part) for part in FOLDER_PARTS if (folder / part).is_dir()}
    files = by_part if any(by_part.values()) else {"": weight_files(folder)}
    if not any(files.values()) and os.path.lexists(folder / LORA_NAME):
        files = {"": [folder / LORA_NAME]}
    if not any(files.values()):
        raise ModelNotFoundError(
            f"{printable_path(folder)} holds no model: "
            "give a diffusers folder with safetensors weights, or one file"
        )
    return _join_headers(folder, files)


def _join_headers(path: Path, found: Mapping[str, list[Path]]) -> Header:
    """`found`: what to put before the names → files."""
    headers = [(prefix, read_header(file)) for prefix, paths in found.items() for file in paths]
    if len(headers) == 1 and headers[0][0] == "":
        return headers[0][1]
    return Header(
        path=path,
        tensors={prefix + name: entry for prefix, one in headers for name, entry in one.tensors.items()},
        metadata={},
        bytes=sum(one.bytes for _, one in headers),
    )
