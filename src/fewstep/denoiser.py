"""A UNet as `denoise(x, sigma) -> x0`: the one contract that samplers and training share.

Latents x = x0 + sigma * noise are (B, 4, H/8, W/8), fp32 whatever the UNet's dtype.
Input scaling, prediction type and guidance live here and nowhere else.
"""
# MERGED: """`Conditioning`: all that a UNet is told beside its latents and their timestep."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fewstep.prompts import WINDOW
from fewstep.schedulers import timestep_of


class Unet(Protocol):
    """The seam for runtimes: tensors in, tensors out.

    x (B, 4, h, w), timestep (B,), tokens (B, 77 k, C), pooled (B, P), size_ids (B, 6) and the
    embedded guidance (B, E) or None, in the UNet's dtype except `timestep` and `size_ids`;
    returns the prediction (B, 4, h, w). A network takes rows of one length only:
    `runtimes.eager.in_batches` sees to that.
    """

    def __call__(
        self, x: Tensor, timestep: Tensor, conditioning: Conditioning, embedding: Tensor | None
    ) -> Tensor: ...


@dataclass(frozen=True, kw_only=True)
class Cfg:
    """Classifier-free guidance (Ho & Salimans 2022, arXiv:2207.12598).

    The answer is `negative + scale * (positive - negative)`, in one batched call. Both sides
    of a picture have as many windows, as `TextEncoder.encode_pairs` makes them. `scale` is a
    number, or (B, 1, 1, 1) in training. `rescale` in [0, 1] pulls the standard deviation back
    to the positive one's (Lin et al. 2023, arXiv:2305.08891, eq. 14-16).
    """

    negative: Conditioning
    scale: float | Tensor
    rescale: float = 0.0


class Denoiser:
    """`denoise(x, sigma) -> x0` for one batch of prompts."""

    def __init__(
        self,
        unet: Unet,
        conditioning: Conditioning,
        *,
        prediction: str = "epsilon",
        cfg: Cfg | None = None,
        embedding: Tensor | None = None,
    ):
        """`prediction` is epsilon, v_prediction or sample; `embedding` (B, E) is LCM's guidance."""
        self._unet, self._prediction, self._cfg, self._embedding = unet, prediction, cfg, embedding
        self._conditioning = conditioning if cfg is None else cfg.negative.joined(conditioning)

    def __call__(self, x: Tensor, sigma: float | Sequence[float]) -> Tensor:
        levels = [sigma] if isinstance(sigma, float | int) else list(sigma)
        skip, out = (
            _column(c, x) for c in zip(*(x0_weights(s, self._prediction) for s in levels), strict=True)
        )
        scaled = x * _column([1 / math.hypot(1, s) for s in levels], x)
        return skip * x + out * self._predict(scaled, [timestep_of(s) for s in levels])

    def _predict(self, x: Tensor, timesteps: list[float]) -> Tensor:
        """The UNet's own prediction, guidance applied, fp32."""
        batch, dtype = len(x), self._conditioning.tokens.dtype
        timestep = torch.tensor(timesteps, dtype=torch.float32, device=x.device).expand(batch)
        if self._cfg is None:
            return self._unet(x.to(dtype), timestep, self._conditioning, self._embedding).float()
        twice = torch.cat([x, x]).to(dtype)
        both = self._unet(twice, timestep.repeat(2), self._conditioning, self._embedding).float()
        negative, positive = both.chunk(2)
        guided = negative + self._cfg.scale * (positive - negative)
        return rescale_guidance(guided, positive, self._cfg.rescale)


def x0_weights(sigma: float, prediction: str) -> tuple[float, float]:
    """(a, b) with x0 = a * x + b * prediction (Karras et al. 2022, arXiv:2206.00364, table 1)."""
    match prediction:
        case "epsilon":
            return 1.0, -sigma
        case "v_prediction":  # Salimans & Ho 2022, arXiv:2202.00512, app. D
            return 1 / (1 + sigma**2), -sigma / math.hypot(1, sigma)
        case "sample":
            return 0.0, 1.0
    raise ValueError(f"prediction={prediction!r} is none of epsilon, v_prediction, sample")


def rescale_guidance(guided: Tensor, positive: Tensor, amount: float) -> Tensor:
    """Bring each picture's standard deviation `amount` of the way back to `positive`'s."""
    if amount == 0:
        return guided
    target = positive.std(dim=(1, 2, 3), keepdim=True)
    return guided * (1 + amount * (target / guided.std(dim=(1, 2, 3), keepdim=True) - 1))


def guidance_embedding(w: Tensor, width: int) -> Tensor:
    """Sines, then cosines, of 1000 w: (B,) → (B, width). w = guidance - 1 (LCM, arXiv:2310.04378)."""
    half = width // 2
    rates = torch.exp(torch.arange(half, device=w.device) * (-math.log(10000.0) / (half - 1)))
    angles = 1000 * w[:, None] * rates[None]
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def _column(values: Sequence[float], x: Tensor) -> float | Tensor:
    """One number as it is; several as (B, 1, 1, 1) beside x."""
    if len(values) == 1:
        return values[0]
    return torch.tensor(values, dtype=x.dtype, device=x.device).view(-1, 1, 1, 1)


@dataclass(frozen=True)
class Conditioning:
    """An encoded batch of prompts, and the pictures beside them."""

    tokens: Tensor  # (B, 77 k, C): the penultimate layers of both encoders, joined; zeros fill short rows
    pooled: Tensor  # (B, P): the second encoder's summary
    size_ids: Tensor  # (B, 6): original height and width, crop top and left, target height and width
    windows: tuple[int, ...] = ()  # how many of 77 tokens each row has; where not given, all have k
    references: tuple[Tensor, ...] = ()  # (B, n, tokens, C): n pictures, as each IP-Adapter projects them
    residuals: tuple[Tensor, ...] = ()  # of ControlNets, added up: the down blocks', then the middle's

    def __post_init__(self) -> None:
        if not self.windows:
            filled = -(-self.tokens.shape[1] // WINDOW)
            object.__setattr__(self, "windows", (filled,) * len(self.tokens))

    def joined(self, other: Conditioning) -> Conditioning:
        """This batch, then `other`."""
        return Conditioning(
            pad_sequence([*self.tokens, *other.tokens], batch_first=True),
            torch.cat([self.pooled, other.pooled]),
            torch.cat([self.size_ids, other.size_ids]),
            self.windows + other.windows,
            tuple(map(torch.cat, zip(self.references, other.references, strict=True))),
            tuple(map(torch.cat, zip(self.residuals, other.residuals, strict=True))),
        )

    def of(self, rows: Sequence[int]) -> Conditioning:
        """These rows, as long as the longest of them."""
        chosen, kept = list(rows), tuple(self.windows[row] for row in rows)
        return Conditioning(
            self.tokens[chosen, : WINDOW * max(kept)],
            self.pooled[chosen],
            self.size_ids[chosen],
            kept,
            tuple(each[chosen] for each in self.references),
            tuple(each[chosen] for each in self.residuals),
        )

    def beside(self, references: Sequence[Tensor]) -> Conditioning:
        """The same prompts, each with these pictures (n, tokens, C)."""
        every = (each.expand(len(self.tokens), *each.shape) for each in references)
        return replace(self, references=tuple(every))
