"""Fine-tune a VAE's decoder on a user's pictures.

The encoder stays, so that every UNet made for these latents still fits them; the decoder learns to show
what it shows badly, as in Stability's ft-MSE decoders.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.train.loop import Draw
from fewstep.train.pictures import Picture
from fewstep.train.vae import reconstruction_loss


class DecoderTask:
    """Decode samples of the posterior of random crops."""

    def __init__(self, pictures: Sequence[Picture], vae: Any, batch: int, *, crop: int, side: int):
        """Crops of `crop` pixels are taken from squares of `side`, files being read anew each time."""
        self.pictures, self.batch, self.vae = pictures, batch, vae
        self._crop, self._side = crop, side
        vae.requires_grad_(False)
        vae.decoder.requires_grad_(True)
        self.modules: dict[str, nn.Module] = {"vae": vae}
        self.averages: dict[str, nn.Module] = copy.deepcopy(self.modules)

    def loss(self, draw: Draw) -> Tensor:
        real = torch.cat([self.crop(draw) for _ in range(self.batch)]).to(self.vae.device)
        with torch.no_grad():
            posterior = self.vae.encode(real).latent_dist
            mean, std = posterior.mean.float(), posterior.std.float()
        noise = torch.randn(mean.shape, generator=draw.torch).to(mean)
        return reconstruction_loss(self.vae.decode(mean + std * noise).sample.float(), real)

    def crop(self, draw: Draw) -> Tensor:
        """A random square of a random picture, (1, 3, crop, crop) in [-1, 1]."""
        whole = self.pictures[draw.python.randrange(len(self.pictures))].tensor(self._side)
        top, left = (draw.python.randrange(self._side - self._crop + 1) for _ in range(2))
        return whole[:, :, top : top + self._crop, left : left + self._crop]
