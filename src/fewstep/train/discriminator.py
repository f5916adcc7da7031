"""Real or made? Small heads on the features of a network that does not learn.

Features of the teacher's own UNet, at a noise level drawn anew each time, as in the latent variant of
adversarial distillation (Sauer et al. 2024, arXiv:2403.12015, sec. 3.2); the first paper's DINOv2
(arXiv:2311.17042, sec. 3.2) reads pixels, and any network can be put here as `Features`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from fewstep.denoiser import Conditioning
from fewstep.noise_process import timestep_of
from fewstep.train.source import level_column


class Features(Protocol):
    """What a discriminator looks at: latents (B, 4, h, w) → maps (B, C_i, h_i, w_i)."""

    channels: tuple[int, ...]

    def __call__(self, latents: Tensor, sigmas: Sequence[float], condition: Conditioning) -> list[Tensor]:
        """Maps of latents with noise of these levels in them."""


class UnetFeatures:
    """The outputs of a UNet's down blocks and of its middle; its up blocks are not run."""

    def __init__(self, unet: UNet2DConditionModel):
        self._unet = unet
        widths = list(unet.config.block_out_channels)
        self.channels: tuple[int, ...] = (*widths, widths[-1])

    def __call__(self, latents: Tensor, sigmas: Sequence[float], condition: Conditioning) -> list[Tensor]:
        unet = self._unet
        x = latents * level_column([1 / math.hypot(1, s) for s in sigmas], latents)
        timestep = torch.tensor([*map(timestep_of, sigmas)], dtype=torch.float32, device=x.device)
        emb = unet.time_embedding(unet.get_time_embed(sample=x, timestep=timestep))
        emb = emb + unet.get_aug_embed(
            emb=emb, encoder_hidden_states=condition.tokens, added_cond_kwargs=dict(condition.added)
        )
        x = unet.conv_in(x)
        maps = []
        for block in unet.down_blocks:
            attends = getattr(block, "has_cross_attention", False)
            text_inputs = {"encoder_hidden_states": condition.tokens} if attends else {}
            x, _ = block(hidden_states=x, temb=emb, **text_inputs)
            maps.append(x)
        maps.append(unet.mid_block(x, emb, encoder_hidden_states=condition.tokens))
        return maps


class Head(nn.Module):
    """One map → a judgement at each of its places, by itself and by how it suits the prompt.

    The second is a projection (Miyato & Koyama 2018, arXiv:1802.05637, eq. 3), as in ADD's heads.
    """

    def __init__(self, channels: int, pooled: int, width: int = 64):
        super().__init__()
        self.read = nn.Sequential(
            nn.Conv2d(channels, width, 1), nn.GroupNorm(8, width), nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(8, width), nn.SiLU(),
        )  # fmt: skip
        self.judge = nn.Conv2d(width, 1, 1)
        self.suit = nn.Linear(pooled, width, bias=False)

    def forward(self, features: Tensor, pooled: Tensor) -> Tensor:
        """(B, C, h, w), (B, P) → (B, h w)."""
        hidden = self.read(features)
        prompt_direction = self.suit(pooled)[:, :, None, None]
        scores: Tensor = self.judge(hidden) + (hidden * prompt_direction).mean(dim=1, keepdim=True)
        return scores.flatten(1)


class Heads(nn.Module):
    """A head for each map."""

    def __init__(self, channels: Sequence[int], pooled: int):
        super().__init__()
        self.heads = nn.ModuleList(Head(width, pooled) for width in channels)

    def forward(self, maps: Sequence[Tensor], pooled: Tensor) -> Tensor:
        """(B, judgements of all maps)."""
        return torch.cat([head(m, pooled) for head, m in zip(self.heads, maps, strict=True)], dim=1)


def generator_loss(generated: Tensor) -> Tensor:
    """The student wants to be judged real (arXiv:2311.17042, eq. 2)."""
    return -generated.mean()


def discriminator_loss(real: Tensor, generated: Tensor) -> Tensor:
    """Hinge (ibid., eq. 3, without the gradient penalty)."""
    return (1 - real).relu().mean() + (1 + generated).relu().mean()
