"""How large a model is, from the headers of its files; no weight is read."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fewstep.devices import Need
from fewstep.errors import CorruptModelError
from fewstep.models import vae
from fewstep.models.catalog import Model, local, read_json

HEADER = 16 * 2**20  # bytes; SDXL's UNet has 0.2 MB

# Parameters of UNet, text encoders and VAE: sdxl as its architecture counts, ssd-1b's UNet as its
# model card rounds. Other hub ids are taken to be SDXL's finetunes.
KNOWN: MappingProxyType[str, tuple[int, int, int]] = MappingProxyType(
    {
        "sdxl": (2_567_463_684, 817_720_320, 83_653_863),
        "ssd-1b": (1_300_000_000, 817_720_320, 83_653_863),
    }
)


def need_of(model: Model) -> Need:
    """What `fewstep.devices.place` must know of a model.

    A mode's own weights are as large as those they replace. Parts that are missing count nothing:
    loading says which.
    """
    folder = local(model.source)
    if folder is None:
        unet, text, autoencoder = KNOWN[model.family]
        config: Mapping[str, Any] = vae.SDXL
    else:
        unet, autoencoder = _parameters(folder / "unet"), _parameters(folder / "vae")
        text = _parameters(folder / "text_encoder") + _parameters(folder / "text_encoder_2")
        config = read_json(folder / "vae" / "config.json")
    safe = vae.fp16_safe(config) or vae.corrected(config) is not None
    return Need(unet=unet, text=text, vae=autoencoder, side=model.size, vae_fp16_safe=safe)


def _parameters(part: Path) -> int:
    """Of all files that loading would read: one, or the shards of one, and no other variant."""
    return sum(count for path in _files(part) for count in _sizes(path))


def _files(part: Path) -> list[Path]:
    for stem in ("diffusion_pytorch_model", "model"):
        whole = part / f"{stem}.safetensors"
        found = [whole] if whole.is_file() else sorted(part.glob(f"{stem}-*-of-*.safetensors"))
        if found:
            return found
    return []


def _sizes(path: Path) -> Iterator[int]:
    """Elements of each tensor, from a safetensors header: 8 bytes of length, then JSON."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > HEADER:
            raise CorruptModelError(f"{path} says its header has {length} bytes; the most is {HEADER}")
        header = file.read(length)
    try:
        tensors: dict[str, Any] = json.loads(header)
        tensors.pop("__metadata__", None)
        yield from (math.prod(map(int, tensor["shape"])) for tensor in tensors.values())
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise CorruptModelError(f"{path} is not a safetensors file: its header cannot be read") from None
