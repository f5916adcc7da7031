"""How large a model is, from the headers of its files; no weight is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from fewstep.catalog import vaes
from fewstep.catalog.models import Model, local_path
from fewstep.devices import ModelSize
from fewstep.devices.memory import TINY_VAE_NUMBERS, VAE_NUMBERS
from fewstep.files.safetensors import read_header, weight_files
from fewstep.files.tensor_names import split_prefix
from fewstep.files.untrusted import read_config

# Parameters of UNet, text encoders and VAE, as their configurations count. Other hub ids are taken to be
# SDXL's finetunes.
KNOWN_SIZES: MappingProxyType[str, tuple[int, int, int]] = MappingProxyType(
    {
        "sdxl": (2_567_463_684, 817_720_320, 83_653_863),
        "ssd-1b": (1_331_334_404, 817_720_320, 83_653_863),
    }
)


def measure_model(model: Model, given: Path | None = None) -> ModelSize:
    """What `fewstep.devices.place` must know of a model.

    A mode's own weights are as large as those they replace. Parts that are missing count nothing:
    loading says which. `given`: the folder or file of a VAE in the place of the model's own.
    """
    here = local_path(model.source)
    config: Mapping[str, Any] = vaes.SDXL_VAE
    if here is None:
        unet, text, autoencoder = KNOWN_SIZES[model.family]
    elif here.is_dir():
        unet, autoencoder = _count_parameters(here / "unet"), _count_parameters(here / "vae")
        text = _count_parameters(here / "text_encoder") + _count_parameters(here / "text_encoder_2")
        config = read_config(here / "vae" / "config.json")
    else:
        unet, text, autoencoder = _measure_single_file(here)
    if given is not None:
        autoencoder, config = _measure_vae(given)
    # A given one is taken as it is.
    safe = vaes.fp16_safe(config) or (given is None and vaes.corrected_vae(config) is not None)
    room = TINY_VAE_NUMBERS if config.get("_class_name") == "AutoencoderTiny" else VAE_NUMBERS
    return ModelSize(
        unet=unet, text=text, vae=autoencoder, side=model.size, vae_fp16_safe=safe, vae_room=room
    )  # fmt: skip


def _measure_single_file(path: Path) -> tuple[int, int, int]:
    """Parameters of UNet, text encoders and VAE; a VAE that is missing will be SDXL's."""
    found: Counter[str] = Counter()
    for name, entry in read_header(path).tensors.items():
        found[split_prefix(name).network] += entry.size
    text = found["text_encoder"] + found["text_encoder_2"]
    return found["unet"], text, found["vae"] or KNOWN_SIZES["sdxl"][2]


def _measure_vae(given: Path) -> tuple[int, Mapping[str, Any]]:
    """Parameters and configuration."""
    return _count_parameters(given) if given.is_dir() else read_header(
        given
    ).parameters, vaes.read_vae_config(given)


def _count_parameters(part: Path) -> int:
    """Of all files that loading would read: one, or the shards of one, and no other variant."""
    return sum(read_header(path).parameters for path in weight_files(part))
