"""A model's weights in several files, and the index that says which tensor is in which."""

from __future__ import annotations

import os
from collections.abc import Mapping
from itertools import product
from pathlib import Path

from fewstep.errors import CorruptModelError
from fewstep.models.header import Header, read, read_json, shown

STEMS = ("diffusion_pytorch_model", "model")  # diffusers' and transformers' names for weights
SHARDS = 256  # files; the largest published models have under 200


def read_index(path: str | Path) -> list[Path]:
    """The shards that a `*.safetensors.index.json` names, all of them checked against it."""
    path = Path(os.path.expanduser(path))
    places = _places(path)
    names = sorted(set(places.values()))
    if not names or len(names) > SHARDS:
        raise CorruptModelError(f"{shown(path)} names {len(names)} shards; it may name 1 to {SHARDS}")
    for name in names:
        _require_plain(path, name)
        _require_agreement(path, read(_shard(path, name)), {k for k, v in places.items() if v == name})
    return [path.parent / name for name in names]


def files(folder: Path) -> list[Path]:
    """The files that loading would read from the folder of one network: one, or shards; fp16 if need be."""
    for stem, half in product(STEMS, ("", ".fp16")):
        whole = folder / f"{stem}{half}.safetensors"
        index = folder / f"{stem}.safetensors.index{half}.json"  # diffusers' name for a variant's
        if os.path.lexists(whole):
            return [whole]
        if os.path.lexists(index):
            return read_index(index)
        found = sorted(folder.glob(f"{stem}{half}-*-of-*.safetensors"))
        if found:
            return found
    return []


def _places(path: Path) -> Mapping[str, str]:
    """Tensor → file."""
    places = read_json(path).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
        raise CorruptModelError(f"{shown(path)} is no index of shards: its weight_map should name files")
    return places


def _require_plain(path: Path, name: str) -> None:
    """A file beside the index: on POSIX and on Windows, and with nothing hidden in its name."""
    if set(name) & set('/\\:*?"<>|') or not name.isprintable() or not name.endswith(".safetensors"):
        raise CorruptModelError(
            f"{shown(path)} names {name!r:.80} as a shard: only .safetensors files beside it are read"
        )


def _shard(path: Path, name: str) -> Path:
    if not os.path.lexists(path.parent / name):
        raise CorruptModelError(f"{shown(path)} names {name!r:.80}, which is missing: fetch the model again")
    return path.parent / name


def _require_agreement(path: Path, shard: Header, promised: set[str]) -> None:
    """A shard holds what the index says, no less and no more."""
    odd = promised ^ shard.tensors.keys()
    if odd:
        name = min(odd)
        where = "is not in" if name in promised else "is in, against the index,"
        raise CorruptModelError(f"{shown(path)}: {name!r:.80} {where} {shard.path.name!r:.80}")
