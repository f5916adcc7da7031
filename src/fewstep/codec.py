"""Pixels ↔ latents, by a full (`AutoencoderKL`) or a tiny (`AutoencoderTiny`) autoencoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fewstep.devices import Placement
from fewstep.errors import GenerationError


class Codec:
    """A VAE with its scaling: latents here are what the UNet sees, fp32, (B, 4, H/8, W/8)."""

    def __init__(self, vae: Any, placement: Placement):
        self._vae, self._placement = vae, placement
        config = vae.config
        self._scale = float(config.scaling_factor)
        mean, std = config.get("latents_mean"), config.get("latents_std")
        device = placement.device
        self._mean = torch.tensor(mean or [0.0] * 4, device=device).view(1, 4, 1, 1)
        self._std = torch.tensor(std or [1.0] * 4, device=device).view(1, 4, 1, 1)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents → uint8 pictures (B, H, W, 3) on the CPU; one at a time, which bounds memory.

        `GenerationError` names the first picture that came out as not finite.
        """
        pictures = []
        for index, one in enumerate(latents.split(1)):
            decoded = self._decode(one)
            if not bool(decoded.isfinite().all()):
                raise GenerationError(
                    f"picture {index}: the VAE gave numbers that are not finite; try precision='fp32'"
                )
            pictures.append(pixels_of(decoded).cpu())
        return torch.cat(pictures)

    @torch.no_grad()
    def encode(self, pictures: Tensor, noise: Sequence[Tensor]) -> Tensor:
        """Pictures (B, 3, H, W) in [-1, 1] → latents; `noise[i]` (1, 4, h, w) picks the sample."""
        return torch.cat([self._encode(p, n) for p, n in zip(pictures.split(1), noise, strict=True)])

    def _decode(self, latents: Tensor) -> Tensor:
        raw = self._cast(latents * self._std / self._scale + self._mean)
        pixels: Tensor = self._vae.decode(raw, return_dict=False)[0].float()
        return pixels

    def _encode(self, picture: Tensor, noise: Tensor) -> Tensor:
        encoded = self._vae.encode(self._cast(picture))
        if hasattr(encoded, "latents"):  # AutoencoderTiny has no posterior
            raw: Tensor = encoded.latents.float()
        else:
            posterior = encoded.latent_dist
            raw = posterior.mean.float() + posterior.std.float() * noise.to(self._placement.device)
        return (raw - self._mean) * self._scale / self._std

    def _cast(self, x: Tensor) -> Tensor:
        place = self._placement
        return x.to(place.device, place.dtype).contiguous(memory_format=place.memory_format)


def pixels_of(pictures: Tensor) -> Tensor:
    """(B, 3, H, W) in [-1, 1] → uint8 (B, H, W, 3), on the same device."""
    scaled = (pictures * 0.5 + 0.5).clamp(0, 1) * 255
    return scaled.round().to(torch.uint8).permute(0, 2, 3, 1)
