"""`Conditioning`: all that a UNet is told beside its latents and their timestep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fewstep.prompts import WINDOW


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
