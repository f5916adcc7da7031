"""What a run learns from, and what it starts from: latents with prompts, and a model that reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from fewstep.architectures.text import Size, TextEncoder
from fewstep.denoiser import Cfg, Conditioning, Denoiser, Network
from fewstep.noise_process import NoiseProcess
from fewstep.train.loop import Draw


class Source(Protocol):
    """Pictures as the UNet sees them, with something said of each."""

    @property
    def size(self) -> Size:
        """Height and width in pixels."""

    def batch(self, size: int, draw: Draw, empty: float) -> tuple[Tensor, list[str]]:
        """`size` latents (B, 4, h, w), fp32, and their prompts, each "" with the probability `empty`."""


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A model that is learnt from and does not change."""

    unet: UNet2DConditionModel
    text: TextEncoder
    process: NoiseProcess

    @property
    def device(self) -> torch.device:
        device: torch.device = self.unet.device
        return device

    @torch.no_grad()
    def read(self, prompts: Sequence[str], size: Size) -> Conditioning:
        """Prompts as the UNet reads them."""
        return self.text.batch(prompts, size)

    def denoiser(self, condition: Conditioning, unet: Network, embedding: Tensor | None = None) -> Denoiser:
        """`denoise` of this model's UNet, or of a student of it."""
        return Denoiser(unet, condition, process=self.process, embedding=embedding)

    def guided(
        self, condition: Conditioning, size: Size, guidance: Sequence[float], unet: Network
    ) -> Denoiser:
        """Return `denoiser` with classifier-free guidance, one scale per picture; 1 is off."""
        negative = self.read([""] * len(guidance), size)
        scale = torch.tensor(guidance, dtype=torch.float32, device=self.device).view(-1, 1, 1, 1)
        return Denoiser(unet, condition, process=self.process, cfg=Cfg(negative=negative, scale=scale))


def add_noise(latents: Tensor, sigmas: Sequence[float], draw: Draw) -> Tensor:
    """x = x0 + sigma * noise."""
    noise = torch.randn(latents.shape, generator=draw.torch, dtype=torch.float32, device="cpu").to(latents)
    return latents + level_column(sigmas, latents) * noise


def level_column(values: Sequence[float], latents: Tensor) -> Tensor:
    """Return one number per picture, as (B, 1, 1, 1) beside `latents`."""
    return torch.tensor(values, dtype=latents.dtype, device=latents.device).view(-1, 1, 1, 1)
