"""Prompts → `Conditioning`, by SDXL's two CLIP text encoders (arXiv:2307.01952, sec. 2.1).

An encoder reads 77 tokens. A longer prompt is read in windows of 77, joined in order; its summary
is that of the first, and what has fewer windows than its partner is filled up with windows of the
empty prompt, both as in A1111's web UI (`sd_hijack_clip.py`: `zs[0].pooled`, `empty_chunk`).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from fewstep.denoiser import Conditioning
from fewstep.errors import RequestError, raise_as_memory_error
from fewstep.prompts import (
    WINDOW,
    WINDOW_TOKENS,
    Embedding,
    Prompt,
    checked_prompt,
    split_windows,
    tokenize_prompt,
)
from fewstep.request.limits import check_prompt

Size = tuple[int, int]  # height, width in pixels
PromptLike = str | Prompt | Embedding  # a string is for both encoders
_Row = tuple[Tensor, Tensor]  # one prompt's tokens (77 k, C) and summary (P,)


class TextEncoder:
    """Both tokenizers and both encoders as one thing, with a bounded cache of prompts."""

    def __init__(
        self,
        tokenizers: tuple[Any, Any],
        encoders: tuple[nn.Module, nn.Module],
        *,
        zero_empty: bool = True,
        cache: int = 256,
        lock: AbstractContextManager[Any] | None = None,
    ):
        """`zero_empty`: an empty prompt is all zeros, as SDXL base was trained, not encoded.

        `lock`, which must be re-entrant, is held while the cache, the encoders or the
        tokenizers, which keep how they last cut, are in use.
        """
        self.tokenizers: tuple[Any, Any] = tokenizers
        self.encoders: tuple[nn.Module, nn.Module] = encoders
        self.zero_empty: bool = zero_empty
        self._limit = cache
        self._cache: OrderedDict[tuple[Prompt, str], _Row] = OrderedDict()
        self.lock: AbstractContextManager[Any] = threading.RLock() if lock is None else lock

    def forget(self) -> None:
        """Encode everything anew: the encoders' weights are others."""
        with self.lock:
            self._cache.clear()
            self.__dict__.pop("_blank", None)

    def encode(self, said: Sequence[PromptLike], size: Size, long_prompt: str = "chunk") -> Conditioning:
        """Encode without gradients, each distinct prompt once; `size` is the target's."""
        with self.lock:
            return _batch_rows([self._row(one, long_prompt) for one in said], size)

    def encode_pairs(
        self,
        negatives: Sequence[PromptLike],
        positives: Sequence[PromptLike],
        size: Size,
        long_prompt: str = "chunk",
    ) -> tuple[Conditioning, Conditioning]:
        """Both sides of classifier-free guidance, each picture's two with as many windows."""
        with self.lock:
            pairs = [
                self._even(self._row(negative, long_prompt), self._row(positive, long_prompt))
                for negative, positive in zip(negatives, positives, strict=True)
            ]
        one, other = zip(*pairs, strict=True)
        return _batch_rows(one, size), _batch_rows(other, size)

    def embed(self, prompt: str) -> Embedding:
        """What `encode` makes of a prompt, all of it, to keep or to change; in RAM."""
        check_prompt(prompt)
        with self.lock:
            tokens, pooled = self._row(prompt, "chunk")
        return Embedding(tokens=tokens.to("cpu", copy=True), pooled=pooled.to("cpu", copy=True), text=prompt)

    def check(self, said: Iterable[PromptLike], long_prompt: str) -> tuple[str, ...]:
        """What will not be read, a sentence each; `RequestError` where that, or an embedding, is refused."""
        sentences: dict[str, None] = {}
        for prompt in dict.fromkeys(said):
            if isinstance(prompt, Embedding):
                self._check_shape(prompt)
            elif long_prompt != "chunk":
                sentences |= dict.fromkeys(self._unread(prompt, long_prompt))
        return tuple(sentences)

    def batch(self, prompts: Sequence[str], size: Size) -> Conditioning:
        """One window of each prompt, as plain text, in one call; uncached, and gradients flow where on."""
        ids = self.tokenize(prompts)
        first, second = (e(i, output_hidden_states=True) for e, i in zip(self.encoders, ids, strict=True))
        tokens = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
        pooled = second.text_embeds
        if self.zero_empty:
            said = torch.tensor([prompt != "" for prompt in prompts], device=tokens.device)
            tokens, pooled = tokens * said[:, None, None], pooled * said[:, None]
        return Conditioning(
            tokens, {"text_embeds": pooled, "time_ids": size_ids(size, len(prompts), tokens.device)}
        )

    def tokenize(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Both tokenizers' ids, cut or padded to 77."""
        device = next(self.encoders[0].parameters()).device
        with self.lock:
            first, second = (
                tokenizer(
                    list(prompts), padding="max_length", truncation=True,
                    max_length=WINDOW, return_tensors="pt",
                ).input_ids.to(device)
                for tokenizer in self.tokenizers
            )  # fmt: skip
        return first, second

    def _unread(self, prompt: str | Prompt, long_prompt: str) -> Iterator[str]:
        """Yield a sentence for each end of a prompt that is beyond one window, or refuse it."""
        for tokenizer, text in zip(self.tokenizers, _as_prompt(prompt), strict=True):
            with self.lock:
                reading = tokenize_prompt(tokenizer, text)
            if long_prompt == "refuse":
                reading.refuse()
            if reading.rest:
                rest = repr(reading.rest)
                yield f"the prompt is longer than {WINDOW} tokens; this end of it was not read: {rest}"

    def _row(self, one: PromptLike, long_prompt: str) -> _Row:
        """Tokens and summary, from the cache, which is kept to its limit."""
        if isinstance(one, Embedding):
            self._check_shape(one)
            like = self._blank[0]
            return one.tokens.to(like), one.pooled.to(like)
        key = (one if isinstance(one, Prompt) else _as_prompt(one), long_prompt)
        row = self._cache.pop(key, None)
        self._cache[key] = row = self._encoded(*key) if row is None else row
        while len(self._cache) > self._limit:
            self._cache.popitem(last=False)
        return row

    @torch.no_grad()
    def _encoded(self, prompt: Prompt, long_prompt: str) -> _Row:
        """Both encoders' answers side by side, as long as the longer of them."""
        if self.zero_empty and prompt == ("", ""):
            tokens, pooled = self._blank
            return torch.zeros_like(tokens), torch.zeros_like(pooled)
        with raise_as_memory_error("while prompts were encoded"):
            first, _ = self._side(0, prompt.first, long_prompt)
            second, pooled = self._side(1, prompt.second, long_prompt)
        width, end = first.shape[1], max(len(first), len(second))
        sides = self._filled(first, end, slice(width)), self._filled(second, end, slice(width, None))
        return torch.cat(sides, dim=-1), pooled

    def _side(self, which: int, text: str, long_prompt: str) -> _Row:
        """One encoder's answer, window by window: the bits of one must not depend on its neighbours."""
        reading = tokenize_prompt(self.tokenizers[which], text)
        if long_prompt == "refuse":
            reading.refuse()
        cut = long_prompt == "cut"
        first, *others = (slice(0, WINDOW_TOKENS),) if cut else split_windows(reading.ends)
        tokens, pooled = self._window(which, reading.ids[first])
        if reading.weighs:
            from fewstep.architectures.weighting import encode_weighted

            tools = self.tokenizers[which], self.encoders[which]
            return encode_weighted(*tools, reading.fragments, cut=cut, device=tokens.device), pooled
        return torch.cat([tokens, *(self._window(which, reading.ids[other])[0] for other in others)]), pooled

    def _window(self, which: int, ids: list[int]) -> _Row:
        """One encoder's answer to at most 75 tokens."""
        tokenizer, encoder = self.tokenizers[which], self.encoders[which]
        padding = [tokenizer.pad_token_id] * (WINDOW_TOKENS - len(ids))
        row = [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id, *padding]
        device = next(encoder.parameters()).device
        answer = encoder(torch.tensor([row], device=device), output_hidden_states=True)
        pooled = answer.text_embeds if which == 1 else answer.pooler_output  # the first's is used by nobody
        return answer.hidden_states[-2][0], pooled[0]

    @cached_property
    def _blank(self) -> _Row:
        """The empty prompt, encoded whatever `zero_empty` says."""
        with torch.no_grad():
            (first, _), (second, pooled) = self._window(0, []), self._window(1, [])
        return torch.cat([first, second], dim=-1), pooled

    def _even(self, *rows: _Row) -> list[_Row]:
        """Rows made as long as the longest of them."""
        end = max(len(tokens) for tokens, _ in rows)
        return [(self._filled(tokens, end), pooled) for tokens, pooled in rows]

    def _filled(self, tokens: Tensor, end: int, columns: slice = slice(None)) -> Tensor:
        """A row made `end` tokens long, by these columns of the empty prompt; zeros go on as zeros."""
        missing = (end - len(tokens)) // WINDOW
        if missing == 0:
            return tokens
        blank = self._blank[0][:, columns] * bool(tokens.any())
        return torch.cat([tokens, *[blank] * missing])

    def _check_shape(self, given: Embedding) -> None:
        """Is it of the shape that these encoders make, and of numbers?"""
        configs: list[Any] = [encoder.config for encoder in self.encoders]
        width, summary = sum(config.hidden_size for config in configs), configs[1].projection_dim
        tokens, pooled = (tuple(part.shape) for part in (given.tokens, given.pooled))
        fits = len(tokens) == 2 and tokens[0] > 0 and tokens[0] % WINDOW == 0 and tokens[1] == width
        if not fits or pooled != (summary,):
            raise RequestError(
                f"{given!r} has tokens of shape {tokens} and pooled of {pooled}: this model needs "
                f"({WINDOW} k, {width}), k from 1, and ({summary},); Engine.embed(prompt) makes one"
            )
        if not all(part.isfinite().all() for part in (given.tokens, given.pooled)):
            raise RequestError(
                f"{given!r} has numbers that are not finite: make it anew by Engine.embed(prompt)"
            )


def _as_prompt(one: str | Prompt) -> Prompt:
    return checked_prompt(one, one) if isinstance(one, str) else one


def _batch_rows(rows: Sequence[_Row], size: Size) -> Conditioning:
    tokens, pooled = zip(*rows, strict=True)
    return Conditioning(
        pad_sequence(list(tokens), batch_first=True),
        {"text_embeds": torch.stack(pooled), "time_ids": size_ids(size, len(rows), pooled[0].device)},
        tuple(len(row) // WINDOW for row in tokens),
    )


def size_ids(size: Size, batch: int, device: torch.device) -> Tensor:
    """SDXL's micro-conditioning for an uncropped picture: (B, 6), fp32."""
    height, width = size
    row = torch.tensor([height, width, 0, 0, height, width], dtype=torch.float32, device=device)
    return row.expand(batch, 6)
