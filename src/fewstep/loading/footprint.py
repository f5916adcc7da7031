"""How large a model is, from the headers of its files; no weight is read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fewstep.architectures import Architecture, architecture_for
from fewstep.catalog import vaes
from fewstep.catalog.hub import existing_path
from fewstep.catalog.models import Model
from fewstep.devices import ModelSize
from fewstep.devices.memory import TINY_VAE_NUMBERS, VAE_NUMBERS
from fewstep.files.safetensors import read_header, weight_files
from fewstep.files.tensor_names import split_prefix
from fewstep.files.untrusted import read_config


def measure_model(model: Model, vae_path: Path | None = None) -> ModelSize:
    """Return what `fewstep.devices.place` must know of a model.

    A mode's own weights are as large as those they replace. Parts that are missing count nothing:
    loading says which. `vae_path`: the folder or file of a VAE in the place of the model's own.
    """
    root = existing_path(model.source)
    architecture = architecture_for(model.family)
    config: Mapping[str, Any] = vaes.usual_vae(model)
    if root is None:
        unet, text, autoencoder = architecture.sizes[model.family]
    elif root.is_dir():
        unet, autoencoder = _count_parameters(root / "unet"), _count_parameters(root / "vae")
        text = sum(_count_parameters(root / name) for name in model.architecture.encoders)
        config = read_config(root / "vae" / "config.json")
    else:
        unet, text, autoencoder = _measure_single_file(root, architecture)
    if vae_path is not None:
        autoencoder, config = _measure_vae(vae_path, model)
    # A given one is taken as it is.
    safe = vaes.fp16_safe(config) or (vae_path is None and vaes.corrected_vae(config) is not None)
    room = TINY_VAE_NUMBERS if config.get("_class_name") == "AutoencoderTiny" else VAE_NUMBERS
    return ModelSize(
        unet=unet, text=text, vae=autoencoder, side=model.size, vae_fp16_safe=safe, vae_room=room
    )  # fmt: skip


def _measure_single_file(path: Path, architecture: Architecture) -> tuple[int, int, int]:
    """Return parameters of UNet, text encoders and VAE; a VAE that is missing will be the usual one."""
    counts: Counter[str] = Counter()
    for name, entry in read_header(path).tensors.items():
        counts[split_prefix(name).network] += entry.size
    default = next(iter(architecture.sizes.values()))[2]
    return counts["unet"], sum(counts[name] for name in architecture.info.encoders), counts["vae"] or default


def _measure_vae(path: Path, model: Model) -> tuple[int, Mapping[str, Any]]:
    """Return parameters and configuration."""
    count = _count_parameters(path) if path.is_dir() else read_header(path).parameters
    return count, vaes.read_vae_config(path, model)


def _count_parameters(folder: Path) -> int:
    """Return those of all files that loading would read: one, or its shards, and no other variant."""
    return sum(read_header(path).parameters for path in weight_files(folder))
