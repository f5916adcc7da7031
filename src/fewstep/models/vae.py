"""Which VAE is loaded: SDXL's own overflows in fp16, and there is a corrected one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from fewstep.errors import ModelNotFoundError
from fewstep.models import hub
from fewstep.models.catalog import FP16_VAE, FP16_VAE_REVISION

# How SDXL's VAE is told from others: whoever trained another one for other latents scales them otherwise.
SDXL: MappingProxyType[str, Any] = MappingProxyType(
    {"block_out_channels": [128, 256, 512, 512], "scaling_factor": 0.13025}
)


def fp16_safe(config: Mapping[str, Any]) -> bool:
    """Does a VAE's configuration say that it stays within fp16's range?

    AutoencoderTiny ends in a clamp; for others `force_upcast` is the field diffusers reads, true by default.
    """
    return config.get("_class_name") == "AutoencoderTiny" or not config.get("force_upcast", True)


def corrected(config: Mapping[str, Any]) -> Path | None:
    """The corrected VAE from the hub's cache; None where it was never downloaded, or is for other latents."""
    if any(config.get(key) != value for key, value in SDXL.items()):
        return None
    files = ("config.json", "diffusion_pytorch_model.safetensors")
    found = [hub.cached(FP16_VAE, name, FP16_VAE_REVISION) for name in files]
    return found[0].parent if found[0] is not None and found[1] is not None else None


def instead(config: Mapping[str, Any] | None, dtype: torch.dtype, model: str) -> Path | None:
    """The VAE to take instead of a model's own, whose configuration is None where it has none.

    None: its own will do, or there is no other.
    """
    if config is not None:
        return corrected(config) if dtype == torch.float16 and not fp16_safe(config) else None
    found = corrected(SDXL)
    if found is None:
        raise ModelNotFoundError(
            f"{model} has no VAE, and SDXL's is not on this machine: type fewstep models pull vae-fp16 "
            "(335 MB)"
        )
    return found
