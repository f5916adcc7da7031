"""A tiny autoencoder distilled from the large one: for previews, and where decoding is what takes long.

The architecture is TAESD's (`AutoencoderTiny`; Boer Bohan, github.com/madebyollin/taesd): convolutions
and ReLU, nothing normalised. It reads and writes the latents that the UNet sees.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import Tensor, nn

from fewstep.train.loop import Draw, Hyper
from fewstep.train.vae import crops, reconstruction_loss

HYPER = Hyper(steps=700, batch=16, rate=2e-3, ema=0.99, weight_decay=0.0)
CHANNELS = 32


def build_tiny_vae() -> AutoencoderTiny:
    """0.4 M parameters, half of them the decoder's."""
    return AutoencoderTiny(
        encoder_block_out_channels=(CHANNELS,) * 4,
        decoder_block_out_channels=(CHANNELS,) * 4,
        num_encoder_blocks=(1, 1, 1, 3),
        num_decoder_blocks=(3, 2, 1, 1),
    )


class TinyVaeTask:
    """Answer as the large autoencoder does: its latents of a picture, and the picture of its latents."""

    def __init__(self, sprites: Tensor, teacher: AutoencoderKL, batch: int):
        """`teacher` says in its configuration how its latents are normalised."""
        self.sprites: Tensor = sprites
        self._teacher, self._batch = teacher.requires_grad_(False), batch
        scaling = (teacher.config.latents_mean, teacher.config.latents_std)
        self._mean, self._std = (
            torch.tensor(values, device=teacher.device).view(1, -1, 1, 1) for values in scaling
        )
        self._tiny: AutoencoderTiny = build_tiny_vae().to(teacher.device)
        self.modules: dict[str, nn.Module] = {"vae": self._tiny}
        self.averages: dict[str, nn.Module] = copy.deepcopy(self.modules)

    def loss(self, draw: Draw) -> Tensor:
        real = crops(self.sprites, self._batch, draw).to(self._teacher.device)
        latents = self._teacher_latents(real)
        decoded = self._tiny.decode(latents).sample.float()
        encoded = self._tiny.encode(real).latents.float()
        return reconstruction_loss(decoded, real) + F.mse_loss(encoded, latents)

    def decoded(self, pictures: Tensor) -> Tensor:
        """Pictures, encoded by the large autoencoder and decoded by the tiny one's average."""
        average: Any = self.averages["vae"]
        decoded: Tensor = average.decode(self._teacher_latents(pictures)).sample
        return decoded.cpu()

    @torch.no_grad()
    def _teacher_latents(self, pictures: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) → latents as the UNet sees them."""
        raw: Tensor = self._teacher.encode(pictures.to(self._teacher.device)).latent_dist.mode().float()
        return (raw - self._mean) / self._std
