"""A network as `denoise(x, sigma) -> x0`: the one contract that samplers and training share.

Latents are (B, 4, H/8, W/8), fp32 whatever the network's dtype. Guidance lives here and nowhere else;
input scaling and what is predicted are the noise process's (`fewstep.noise_process`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fewstep.noise_process import SDXL_NOISE, NoiseProcess
from fewstep.prompts import WINDOW


@dataclass(frozen=True)
class Conditioning:
    """All that a network is told beside latents and their level: prompts, sizes and pictures, a row each."""

    tokens: Tensor  # (B, 77 k, C): what cross-attention reads; zeros fill short rows
    added: Mapping[str, Tensor] = field(
        default_factory=dict
    )  # (B, ...) each, by diffusers' names; SDXL's are
    # "text_embeds" (B, P), the second encoder's summary, and "time_ids" (B, 6), the size ids
    windows: tuple[int, ...] = ()  # how many of 77 tokens each row has; where not given, all have k
    references: tuple[Tensor, ...] = ()  # (B, n, tokens, C): n pictures, as each IP-Adapter projects them
    residuals: tuple[Tensor, ...] = ()  # of ControlNets, added up: the down blocks', then the middle's

    def __post_init__(self) -> None:
        if not self.windows:
            filled = -(-self.tokens.shape[1] // WINDOW)
            object.__setattr__(self, "windows", (filled,) * len(self.tokens))

    def join(self, other: Conditioning) -> Conditioning:
        """Return this batch, then `other`."""
        return Conditioning(
            pad_sequence([*self.tokens, *other.tokens], batch_first=True),
            {name: torch.cat([rows, other.added[name]]) for name, rows in self.added.items()},
            self.windows + other.windows,
            tuple(map(torch.cat, zip(self.references, other.references, strict=True))),
            tuple(map(torch.cat, zip(self.residuals, other.residuals, strict=True))),
        )

    def select(self, rows: Sequence[int]) -> Conditioning:
        """Return these rows, as long as the longest of them."""
        chosen, windows = list(rows), tuple(self.windows[row] for row in rows)
        return Conditioning(
            self.tokens[chosen, : WINDOW * max(windows)],
            {name: rows[chosen] for name, rows in self.added.items()},
            windows,
            tuple(tensor[chosen] for tensor in self.references),
            tuple(tensor[chosen] for tensor in self.residuals),
        )

    def with_references(self, references: Sequence[Tensor]) -> Conditioning:
        """Return the same prompts, each with these pictures (n, tokens, C)."""
        expanded = (tensor.expand(len(self.tokens), *tensor.shape) for tensor in references)
        return replace(self, references=tuple(expanded))


class Network(Protocol):
    """The seam for runtimes: tensors in, tensors out.

    x (B, 4, h, w), timestep (B,), the conditioning and the embedded guidance (B, E) or None, in the
    network's dtype except `timestep` and the size ids; returns the prediction (B, 4, h, w). A network
    takes rows of one length only: `fewstep.runtimes.batching` sees to that.
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
        network: Network,
        conditioning: Conditioning,
        *,
        process: NoiseProcess = SDXL_NOISE,
        cfg: Cfg | None = None,
        embedding: Tensor | None = None,
    ):
        """`embedding` (B, E) is LCM's guidance."""
        self._network, self._process, self._cfg, self._embedding = network, process, cfg, embedding
        self._conditioning = conditioning if cfg is None else cfg.negative.join(conditioning)

    def __call__(self, x: Tensor, sigma: float | Sequence[float]) -> Tensor:
        """Return x0, (B, C, h, w) in fp32; `sigma` is one level for the batch, or one per row."""
        process, levels = self._process, [sigma] if isinstance(sigma, float | int) else list(sigma)
        skip, out = (_per_row(c, x) for c in zip(*map(process.x0_weights, levels), strict=True))
        scaled = (x * _per_row([*map(process.input_scale, levels)], x)).to(self._conditioning.tokens.dtype)
        times = torch.tensor([*map(process.network_time, levels)], dtype=torch.float32, device=x.device)
        times = times.expand(len(x))
        if self._cfg is None:
            return skip * x + out * self._network(scaled, times, self._conditioning, self._embedding).float()
        predictions = self._network(
            torch.cat([scaled, scaled]), times.repeat(2), self._conditioning, self._embedding
        )
        negative, positive = predictions.float().chunk(2)
        guided = negative + self._cfg.scale * (positive - negative)
        return skip * x + out * rescale_guidance(guided, positive, self._cfg.rescale)


def rescale_guidance(guided: Tensor, positive: Tensor, amount: float) -> Tensor:
    """Bring each picture's standard deviation `amount` of the way back to `positive`'s."""
    if amount == 0:
        return guided
    target = positive.std(dim=(1, 2, 3), keepdim=True)
    return guided * (1 + amount * (target / guided.std(dim=(1, 2, 3), keepdim=True) - 1))


def guidance_embedding(w: Tensor, width: int) -> Tensor:
    """Sines, then cosines, of 1000 w: (B,) → (B, width). w = guidance - 1 (LCM, arXiv:2310.04378)."""
    half = width // 2
    places = torch.arange(half, dtype=torch.float32, device=w.device)
    rates = torch.exp(places * (-math.log(10000.0) / (half - 1)))
    angles = 1000 * w[:, None] * rates[None]
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def _per_row(values: Sequence[float], x: Tensor) -> float | Tensor:
    """One number as it is; several as (B, 1, 1, 1) beside x."""
    if len(values) == 1:
        return values[0]
    return torch.tensor(values, dtype=x.dtype, device=x.device).view(-1, 1, 1, 1)
