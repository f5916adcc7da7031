"""What a model's configurations say, checked where it is used. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any

from fewstep.errors import CorruptModelError

DEFAULT_LATENT_SIDE = 128  # a UNet's sample_size where its configuration is silent: SDXL's
MAX_LATENT_SIDE = 1024  # latents a side, 8192 pixels: 8 times SDXL's
LATENT_CHANNELS = 4  # of SDXL's latents


def trained_size(unet: Mapping[str, Any], source: str = "this model") -> int:
    """Return the side in pixels that a UNet's configuration was written for; the larger of two."""
    stored = unet.get("sample_size")
    sizes = (
        stored if isinstance(stored, list | tuple) else [DEFAULT_LATENT_SIDE if stored is None else stored]
    )
    if len(sizes) not in (1, 2) or not all(
        type(size) is int and 1 <= size <= MAX_LATENT_SIDE for size in sizes
    ):
        raise CorruptModelError(
            f"{source} has a UNet with sample_size={stored!r:.80}: it should be a whole number, or two, from "
            f"1 to {MAX_LATENT_SIDE}"
        )
    return 8 * max(sizes)


def check_latent_scaling(vae: Mapping[str, Any], source: str) -> None:
    """Check that scale, means and deviations of a VAE's latents are numbers that can be."""
    scale = vae.get("scaling_factor", 1.0)
    if not _is_number(scale) or scale <= 0:
        raise CorruptModelError(
            f"{source} has a VAE with scaling_factor={scale!r:.80}: it should be a number above 0"
        )
    for name, least in (("latents_mean", -float("inf")), ("latents_std", 0.0)):
        values = vae.get(name) or [1.0] * LATENT_CHANNELS
        fits = isinstance(values, list | tuple) and len(values) == LATENT_CHANNELS
        if not fits or not all(_is_number(value) and value > least for value in values):
            raise CorruptModelError(
                f"{source} has a VAE with {name}={values!r:.80}: it should be {LATENT_CHANNELS} numbers"
                + (" above 0" if least == 0 else "")
            )


def check_channels(unet: Mapping[str, Any], vae: Mapping[str, Any], source: str) -> None:
    """Check that UNet and VAE are for latents of four channels, as SDXL's."""
    channels_by_part = {
        "a UNet with in_channels": unet.get("in_channels", LATENT_CHANNELS),
        "a UNet with out_channels": unet.get("out_channels", LATENT_CHANNELS),
        "a VAE with latent_channels": vae.get("latent_channels", LATENT_CHANNELS),
    }
    for part, channels in channels_by_part.items():
        if channels != LATENT_CHANNELS:
            hint = "; fewstep inpaints with any model that has 4" if channels == 9 else ""
            raise CorruptModelError(
                f"{source} has {part}={channels!r:.80}, and SDXL's are {LATENT_CHANNELS}{hint}"
            )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
