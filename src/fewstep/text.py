"""Prompts → `Conditioning`, by SDXL's two CLIP text encoders (arXiv:2307.01952, sec. 2.1)."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Size = tuple[int, int]  # height, width in pixels


@dataclass(frozen=True)
class Conditioning:
    """An encoded batch of prompts."""

    tokens: Tensor  # (B, 77, C): the penultimate layers of both encoders, joined
    pooled: Tensor  # (B, P): the second encoder's summary
    size_ids: Tensor  # (B, 6): original height and width, crop top and left, target height and width

    def joined(self, other: Conditioning) -> Conditioning:
        """This batch, then `other`."""
        pairs = zip(self.parts(), other.parts(), strict=True)
        return Conditioning(*(torch.cat(pair) for pair in pairs))

    def split(self, size: int) -> list[Conditioning]:
        """This batch in parts of at most `size` rows."""
        return [Conditioning(*rows) for rows in zip(*(p.split(size) for p in self.parts()), strict=True)]

    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.tokens, self.pooled, self.size_ids


class TextEncoder:
    """Both tokenizers and both encoders as one thing, with a bounded cache of prompts."""

    def __init__(
        self,
        tokenizers: tuple[Any, Any],
        encoders: tuple[nn.Module, nn.Module],
        *,
        zero_empty: bool = True,
        cache: int = 256,
    ):
        """`zero_empty`: an empty prompt is all zeros, as SDXL base was trained, not encoded."""
        self.tokenizers, self.encoders = tokenizers, encoders
        self._zero_empty, self._limit = zero_empty, cache
        self._cache: OrderedDict[str, tuple[Tensor, Tensor]] = OrderedDict()
        self._lock = threading.RLock()  # of the cache and the tokenizers, which keep how they last cut

    def encode(self, prompts: Sequence[str], size: Size) -> Conditioning:
        """Encode without gradients, each distinct prompt once; `size` is the target's."""
        with self._lock:
            rows = self._rows(prompts, size)
        tokens, pooled = (torch.stack(part) for part in zip(*rows, strict=True))
        return Conditioning(tokens, pooled, size_ids(size, len(prompts), pooled.device))

    @torch.no_grad()
    def _rows(self, prompts: Sequence[str], size: Size) -> list[tuple[Tensor, Tensor]]:
        """Tokens and pooled of each prompt, from the cache, which is then cut to its limit."""
        missing = [p for p in dict.fromkeys(prompts) if p not in self._cache]
        for prompt in missing:  # one by one: a prompt's bits must not depend on its neighbours
            one = self.batch([prompt], size)
            blank = self._zero_empty and prompt == ""
            self._cache[prompt] = one.tokens[0] * (not blank), one.pooled[0] * (not blank)
        rows = [self._cache[p] for p in prompts]
        for prompt in prompts:
            self._cache.move_to_end(prompt)
        while len(self._cache) > self._limit:
            self._cache.popitem(last=False)
        return rows

    def batch(self, prompts: Sequence[str], size: Size) -> Conditioning:
        """Encode all prompts in one call, uncached; gradients flow where they are on."""
        ids = self.tokenize(prompts)
        first, second = (e(i, output_hidden_states=True) for e, i in zip(self.encoders, ids, strict=True))
        tokens = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
        return Conditioning(tokens, second.text_embeds, size_ids(size, len(prompts), tokens.device))

    def tokenize(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Both tokenizers' ids, cut or padded to 77."""
        device = next(self.encoders[0].parameters()).device
        with self._lock:
            first, second = (
                tokenizer(
                    list(prompts), padding="max_length", truncation=True,
                    max_length=tokenizer.model_max_length, return_tensors="pt",
                ).input_ids.to(device)
                for tokenizer in self.tokenizers
            )  # fmt: skip
        return first, second

    def cut(self, prompt: str) -> str:
        """The end of `prompt` that does not fit in 77 tokens; "" where all of it fits."""
        tokenizer = self.tokenizers[0]
        with self._lock:
            ids = tokenizer(prompt, truncation=False, verbose=False).input_ids[1:-1]
        room = tokenizer.model_max_length - 2
        return str(tokenizer.decode(ids[room:])) if len(ids) > room else ""


def size_ids(size: Size, batch: int, device: torch.device) -> Tensor:
    """SDXL's micro-conditioning for an uncropped picture: (B, 6), fp32."""
    height, width = size
    row = torch.tensor([height, width, 0, 0, height, width], dtype=torch.float32, device=device)
    return row.expand(batch, 6)
