"""The picture autoencoder (Rombach et al. 2022, arXiv:2112.10752), without adversary: trained anew, and its
decoder fine-tuned on a user's pictures.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from fewstep.train import loop
from fewstep.train.bundled import sprite_pictures
from fewstep.train.loop import Draw, Hyper
from fewstep.train.pictures import TrainingPicture

# 27.0 dB PSNR after 1,280 steps in a trial; see the model card for this run's figure.
HYPER = Hyper(steps=6000, batch=32, rate=1.2e-3, ema=0.998)
CROP = 96  # pixels
KL_WEIGHT = 1e-4


def build_vae() -> AutoencoderKL:
    """3.3 M parameters, 8x smaller each way, four channels; no attention: it reads 16² latents."""
    return AutoencoderKL(
        block_out_channels=(32, 64, 96, 128),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=128,
        force_upcast=False,
    )


def reconstruction_loss(decoded: Tensor, real: Tensor) -> Tensor:
    """L1 + L2 + half an L1 on the differences between neighbours; (B, 3, H, W) each."""
    error = decoded - real
    edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    return error.abs().mean() + error.square().mean() + 0.5 * edges


def kl_loss(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL divergence from a unit normal (ibid., eq. 25), summed over channels."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(dim=1).mean()


class VaeTask:
    """Reconstruct random crops of placed sprites."""

    def __init__(self, sprites: Tensor, batch: int):
        self.sprites: Tensor = sprites
        self.batch: int = batch
        self.vae: AutoencoderKL = build_vae().to(loop.process_state().device)
        self.modules: dict[str, nn.Module] = {"vae": self.vae}
        self.averages: dict[str, nn.Module] = copy.deepcopy(self.modules)

    def loss(self, draw: Draw) -> Tensor:
        real = crops(self.sprites, self.batch, draw).to(self.vae.device)
        posterior = self.vae.encode(real).latent_dist
        mean, logvar = posterior.mean.float(), posterior.logvar.float()
        noise = torch.randn(mean.shape, generator=draw.torch, dtype=torch.float32, device="cpu").to(mean)
        decoded = self.vae.decode(mean + (0.5 * logvar).exp() * noise).sample.float()
        return reconstruction_loss(decoded, real) + KL_WEIGHT * kl_loss(mean, logvar)


def crops(sprites: Tensor, batch: int, draw: Draw) -> Tensor:
    """Pieces of placed sprites, (B, 3, `CROP`, `CROP`) in [-1, 1]."""
    index = torch.randint(len(sprites), (batch,), generator=draw.torch)
    pictures, _ = sprite_pictures.make_pictures(sprites[index], draw.python)
    top, left = (draw.python.randrange(pictures.shape[-1] - CROP + 1) for _ in range(2))
    return pictures[:, :, top : top + CROP, left : left + CROP].contiguous()


def psnr(decoded: Tensor, real: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of pictures in [-1, 1], over all pixels."""
    return float(10 * torch.log10(4 / F.mse_loss(decoded.clamp(-1, 1), real)))


def round_trip(vae: AutoencoderKL) -> Callable[[Tensor], Tensor]:
    """Pictures (B, 3, H, W) in [-1, 1] → what the autoencoder makes of them, encoded by the mean."""

    def both_ways(pictures: Tensor) -> Tensor:
        decoded: Tensor = vae.decode(vae.encode(pictures.to(vae.device)).latent_dist.mode()).sample
        return decoded.cpu()

    return both_ways


@torch.no_grad()
def measure_psnr(
    way: Callable[[Tensor], Tensor], sprites: Tensor, *, pictures: int = 256, seed: int = 7
) -> float:
    """PSNR in dB of `pictures` sprites from all over the set, placed at random, that went that way."""
    stride = max(1, len(sprites) // pictures)
    real, _ = sprite_pictures.make_pictures(sprites[::stride][:pictures], random.Random(seed))
    return psnr(torch.cat([way(part) for part in real.split(32)]), real)


class VaeDecoderTask:
    """Decode samples of the posterior of random crops."""

    def __init__(self, pictures: Sequence[TrainingPicture], vae: Any, batch: int, *, crop: int, side: int):
        """Crops of `crop` pixels are taken from squares of `side`, files being read anew each time."""
        self.pictures, self.batch, self.vae = pictures, batch, vae
        self._crop, self._side = crop, side
        self._noted: set[str] = set()  # what has been said of pictures
        vae.requires_grad_(False)
        vae.decoder.requires_grad_(True)
        self.modules: dict[str, nn.Module] = {"vae": vae}
        self.averages: dict[str, nn.Module] = copy.deepcopy(self.modules)

    def loss(self, draw: Draw) -> Tensor:
        real = torch.cat([self.crop(draw) for _ in range(self.batch)]).to(self.vae.device)
        with torch.no_grad():
            posterior = self.vae.encode(real).latent_dist
            mean, std = posterior.mean.float(), posterior.std.float()
        noise = torch.randn(mean.shape, generator=draw.torch, dtype=torch.float32, device="cpu").to(mean)
        return reconstruction_loss(self.vae.decode(mean + std * noise).sample.float(), real)

    def crop(self, draw: Draw) -> Tensor:
        """A random square of a random picture, (1, 3, crop, crop) in [-1, 1]."""
        picture = self.pictures[draw.python.randrange(len(self.pictures))].tensor(self._side, self._noted)
        top, left = (draw.python.randrange(self._side - self._crop + 1) for _ in range(2))
        return picture[:, :, top : top + self._crop, left : left + self._crop]
