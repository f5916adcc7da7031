"""Which VAE is loaded: SDXL's own overflows in fp16, and there is a corrected one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from fewstep.models.catalog import FP16_VAE, FP16_VAE_REVISION, read_json

# How SDXL's VAE is told from others: whoever trained another one for other latents scales them otherwise.
SDXL: MappingProxyType[str, Any] = MappingProxyType(
    {"block_out_channels": [128, 256, 512, 512], "scaling_factor": 0.13025}
)


def folder(root: Path, dtype: torch.dtype) -> Path:
    """The model's own VAE, or in fp16 the corrected one, where that is needed and on this machine."""
    own = root / "vae"
    config = read_json(own / "config.json")
    if dtype != torch.float16 or fp16_safe(config):
        return own
    return corrected(config) or own


def fp16_safe(config: Mapping[str, Any]) -> bool:
    """Does a VAE's configuration say that it stays within fp16's range?

    AutoencoderTiny ends in a clamp; for others `force_upcast` is the field diffusers reads, true by default.
    """
    return config.get("_class_name") == "AutoencoderTiny" or not config.get("force_upcast", True)


def corrected(config: Mapping[str, Any]) -> Path | None:
    """The corrected VAE from the hub's cache; None where it was never downloaded, or is for other latents."""
    from huggingface_hub import try_to_load_from_cache

    if any(config.get(key) != value for key, value in SDXL.items()):
        return None
    files = ("config.json", "diffusion_pytorch_model.safetensors")
    found = [try_to_load_from_cache(FP16_VAE, name, revision=FP16_VAE_REVISION) for name in files]
    return Path(str(found[0])).parent if all(isinstance(path, str) for path in found) else None
