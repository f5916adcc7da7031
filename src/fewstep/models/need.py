"""How large a model is, from the headers of its files; no weight is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fewstep.devices import Need
from fewstep.devices.memory import TINY_VAE, VAE_DECODE
from fewstep.models import vae
from fewstep.models.catalog import Model, local, read_json
from fewstep.models.header import read
from fewstep.models.naming import whole
from fewstep.models.shards import files

# Parameters of UNet, text encoders and VAE, as their configurations count. Other hub ids are taken to be
# SDXL's finetunes.
KNOWN: MappingProxyType[str, tuple[int, int, int]] = MappingProxyType(
    {
        "sdxl": (2_567_463_684, 817_720_320, 83_653_863),
        "ssd-1b": (1_331_334_404, 817_720_320, 83_653_863),
    }
)


def need_of(model: Model, given: Path | None = None) -> Need:
    """What `fewstep.devices.place` must know of a model.

    A mode's own weights are as large as those they replace. Parts that are missing count nothing:
    loading says which. `given`: the folder or file of a VAE in the place of the model's own.
    """
    here = local(model.source)
    config: Mapping[str, Any] = vae.SDXL
    if here is None:
        unet, text, autoencoder = KNOWN[model.family]
    elif here.is_dir():
        unet, autoencoder = _parameters(here / "unet"), _parameters(here / "vae")
        text = _parameters(here / "text_encoder") + _parameters(here / "text_encoder_2")
        config = read_json(here / "vae" / "config.json")
    else:
        unet, text, autoencoder = _in_one_file(here)
    if given is not None:
        autoencoder, config = _of_vae(given)
    # A given one is taken as it is.
    safe = vae.fp16_safe(config) or (given is None and vae.corrected(config) is not None)
    room = TINY_VAE if config.get("_class_name") == "AutoencoderTiny" else VAE_DECODE
    return Need(
        unet=unet, text=text, vae=autoencoder, side=model.size, vae_fp16_safe=safe, vae_room=room
    )  # fmt: skip


def _in_one_file(path: Path) -> tuple[int, int, int]:
    """Parameters of UNet, text encoders and VAE; a VAE that is missing will be SDXL's."""
    found: Counter[str] = Counter()
    for name, entry in read(path).tensors.items():
        found[whole(name).network] += entry.size
    text = found["text_encoder"] + found["text_encoder_2"]
    return found["unet"], text, found["vae"] or KNOWN["sdxl"][2]


def _of_vae(given: Path) -> tuple[int, Mapping[str, Any]]:
    """Parameters and configuration."""
    return _parameters(given) if given.is_dir() else read(given).parameters, vae.config(given)


def _parameters(part: Path) -> int:
    """Of all files that loading would read: one, or the shards of one, and no other variant."""
    return sum(read(path).parameters for path in files(part))
