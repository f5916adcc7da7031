"""Prompts → `Conditioning`, by one or two CLIP text encoders.

An encoder reads 77 tokens. A longer prompt is read in windows of 77, joined in order; its summary
is that of the first, and what has fewer windows than its partner is filled up with windows of the
empty prompt, both as in A1111's web UI (`sd_hijack_clip.py`: `zs[0].pooled`, `empty_chunk`).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
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


@dataclass(frozen=True, kw_only=True)
class TextLayout:
    """What of its text encoders an architecture reads."""

    penultimate: bool  # the last layer but one, or the last through the final norm
    summary: bool  # the last encoder's pooled and projected summary too
    size_ids: bool  # and the picture's sizes (`size_ids`)


SDXL_TEXT = TextLayout(penultimate=True, summary=True, size_ids=True)


class TextEncoder:
    """Tokenizers and encoders as one thing, with a bounded cache of prompts."""

    def __init__(
        self,
        tokenizers: tuple[Any, ...],
        encoders: tuple[nn.Module, ...],
        *,
        layout: TextLayout = SDXL_TEXT,
        zero_empty: bool = True,
        cache: int = 256,
        lock: AbstractContextManager[Any] | None = None,
    ):
        """`zero_empty`: an empty prompt is all zeros, as SDXL base was trained, not encoded.

        `lock`, which must be re-entrant, is held while the cache, the encoders or the
        tokenizers, which keep how they last cut, are in use.
        """
        self.tokenizers: tuple[Any, ...] = tokenizers
        self.encoders: tuple[nn.Module, ...] = encoders
        self.layout: TextLayout = layout
        self.zero_empty: bool = zero_empty
        self._limit = cache
        self._cache: OrderedDict[tuple[Prompt, str], _Row] = OrderedDict()
        self.lock: AbstractContextManager[Any] = threading.RLock() if lock is None else lock

    def forget(self) -> None:
        """Encode everything anew: the encoders' weights are others."""
        with self.lock:
            self._cache.clear()
            self.__dict__.pop("_encode_empty_prompt", None)

    def encode(self, prompts: Sequence[PromptLike], size: Size, long_prompt: str = "chunk") -> Conditioning:
        """Encode without gradients, each distinct prompt once; `size` is the target's."""
        with self.lock:
            return self._batch_rows([self._encode_cached(prompt, long_prompt) for prompt in prompts], size)

    def encode_pairs(
        self,
        negatives: Sequence[PromptLike],
        positives: Sequence[PromptLike],
        size: Size,
        long_prompt: str = "chunk",
    ) -> tuple[Conditioning, Conditioning]:
        """Return both sides of classifier-free guidance, each picture's two with as many windows."""
        with self.lock:
            pairs = [
                self._pad_to_longest(
                    self._encode_cached(negative, long_prompt), self._encode_cached(positive, long_prompt)
                )
                for negative, positive in zip(negatives, positives, strict=True)
            ]
        negative_rows, positive_rows = zip(*pairs, strict=True)
        return self._batch_rows(negative_rows, size), self._batch_rows(positive_rows, size)

    def embed(self, prompt: str) -> Embedding:
        """Return what `encode` makes of a prompt, all of it, to keep or to change; in RAM."""
        check_prompt(prompt)
        with self.lock:
            tokens, pooled = self._encode_cached(prompt, "chunk")
        return Embedding(tokens=tokens.to("cpu", copy=True), pooled=pooled.to("cpu", copy=True), text=prompt)

    def check(self, prompts: Iterable[PromptLike], long_prompt: str) -> tuple[str, ...]:
        """Return what will not be read, a sentence each; raises `RequestError` where that is refused."""
        sentences: dict[str, None] = {}
        for prompt in dict.fromkeys(prompts):
            if isinstance(prompt, Embedding):
                self._check_shape(prompt)
            elif long_prompt != "chunk":
                sentences |= dict.fromkeys(self._unread_ends(prompt, long_prompt))
        return tuple(sentences)

    def batch(self, prompts: Sequence[str], size: Size) -> Conditioning:
        """Return one window of each prompt, as plain text, in one call, for training on SDXL's layout.

        Nothing is cached, and gradients flow where they are on.
        """
        ids = self.tokenize(prompts)
        first, second = (e(i, output_hidden_states=True) for e, i in zip(self.encoders, ids, strict=True))
        tokens = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
        pooled = second.text_embeds
        if self.zero_empty:
            nonempty = torch.tensor([prompt != "" for prompt in prompts], device=tokens.device)
            tokens, pooled = tokens * nonempty[:, None, None], pooled * nonempty[:, None]
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

    def _unread_ends(self, prompt: str | Prompt, long_prompt: str) -> Iterator[str]:
        """Yield a sentence for each end of a prompt that is beyond one window, or refuse it."""
        for tokenizer, text in zip(self.tokenizers, _as_prompt(prompt), strict=True):
            with self.lock:
                reading = tokenize_prompt(tokenizer, text)
            if long_prompt == "refuse":
                reading.refuse()
            if reading.rest:
                rest = repr(reading.rest)
                yield f"the prompt is longer than {WINDOW} tokens; this end of it was not read: {rest}"

    def _encode_cached(self, prompt: PromptLike, long_prompt: str) -> _Row:
        """Tokens and summary, from the cache, which is kept to its limit."""
        if isinstance(prompt, Embedding):
            self._check_shape(prompt)
            empty_tokens = self._encode_empty_prompt[0]
            return prompt.tokens.to(empty_tokens), prompt.pooled.to(empty_tokens)
        key = (prompt if isinstance(prompt, Prompt) else _as_prompt(prompt), long_prompt)
        row = self._cache.pop(key, None)
        self._cache[key] = row = self._encode_row(*key) if row is None else row
        while len(self._cache) > self._limit:
            self._cache.popitem(last=False)
        return row

    @torch.no_grad()
    def _encode_row(self, prompt: Prompt, long_prompt: str) -> _Row:
        """Return the encoders' answers side by side, as long as the longest of them."""
        if self.zero_empty and prompt == ("", ""):
            tokens, pooled = self._encode_empty_prompt
            return torch.zeros_like(tokens), torch.zeros_like(pooled)
        with raise_as_memory_error("while prompts were encoded"):
            sides = [
                self._encode_by_windows(index, text, long_prompt)
                for index, (text, _) in enumerate(zip(prompt, self.encoders, strict=False))
            ]
        end, first = max(len(tokens) for tokens, _ in sides), 0
        filled = []
        for tokens, _ in sides:
            columns = slice(first, first + tokens.shape[1])
            filled.append(self._pad_row(tokens, end, columns))
            first = columns.stop
        return torch.cat(filled, dim=-1), sides[-1][1]

    def _encode_by_windows(self, index: int, text: str, long_prompt: str) -> _Row:
        """One encoder's answer, window by window: the bits of one must not depend on its neighbours."""
        reading = tokenize_prompt(self.tokenizers[index], text)
        if long_prompt == "refuse":
            reading.refuse()
        cut = long_prompt == "cut"
        first, *later_windows = (slice(0, WINDOW_TOKENS),) if cut else split_windows(reading.ends)
        tokens, pooled = self._encode_window(index, reading.ids[first])
        if reading.weighs:
            from fewstep.architectures.weighting import encode_weighted

            tools = self.tokenizers[index], self.encoders[index]
            weighted = encode_weighted(
                *tools, reading.fragments, penultimate=self.layout.penultimate, cut=cut, device=tokens.device
            )
            return weighted, pooled
        return torch.cat(
            [tokens, *(self._encode_window(index, reading.ids[window])[0] for window in later_windows)]
        ), pooled

    def _encode_window(self, index: int, ids: list[int]) -> _Row:
        """One encoder's answer to at most 75 tokens."""
        tokenizer, encoder = self.tokenizers[index], self.encoders[index]
        padding = [tokenizer.pad_token_id] * (WINDOW_TOKENS - len(ids))
        row = [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id, *padding]
        device = next(encoder.parameters()).device
        answer = encoder(torch.tensor([row], device=device), output_hidden_states=True)
        tokens = answer.hidden_states[-2] if self.layout.penultimate else answer.last_hidden_state
        last = index == len(self.encoders) - 1
        pooled = answer.text_embeds[0] if self.layout.summary and last else tokens.new_empty(0)
        return tokens[0], pooled

    @cached_property
    def _encode_empty_prompt(self) -> _Row:
        """The empty prompt, encoded whatever `zero_empty` says."""
        with torch.no_grad():
            answers = [self._encode_window(index, []) for index in range(len(self.encoders))]
        return torch.cat([tokens for tokens, _ in answers], dim=-1), answers[-1][1]

    def _pad_to_longest(self, *rows: _Row) -> list[_Row]:
        """Rows made as long as the longest of them."""
        end = max(len(tokens) for tokens, _ in rows)
        return [(self._pad_row(tokens, end), pooled) for tokens, pooled in rows]

    def _pad_row(self, tokens: Tensor, end: int, columns: slice = slice(None)) -> Tensor:
        """A row made `end` tokens long, by these columns of the empty prompt; zeros go on as zeros."""
        missing = (end - len(tokens)) // WINDOW
        if missing == 0:
            return tokens
        blank = self._encode_empty_prompt[0][:, columns] * bool(tokens.any())
        return torch.cat([tokens, *[blank] * missing])

    def _batch_rows(self, rows: Sequence[_Row], size: Size) -> Conditioning:
        tokens, pooled = zip(*rows, strict=True)
        added = {"text_embeds": torch.stack(pooled)} if self.layout.summary else {}
        if self.layout.size_ids:
            added["time_ids"] = size_ids(size, len(rows), tokens[0].device)
        windows = tuple(len(row) // WINDOW for row in tokens)
        return Conditioning(pad_sequence(list(tokens), batch_first=True), added, windows)

    def _check_shape(self, embedding: Embedding) -> None:
        """Check that it has the shape that these encoders make, and finite numbers; raises `RequestError`."""
        configs: list[Any] = [encoder.config for encoder in self.encoders]
        width = sum(config.hidden_size for config in configs)
        summary = configs[-1].projection_dim if self.layout.summary else 0
        tokens, pooled = (tuple(part.shape) for part in (embedding.tokens, embedding.pooled))
        fits = len(tokens) == 2 and tokens[0] > 0 and tokens[0] % WINDOW == 0 and tokens[1] == width
        if not fits or pooled != (summary,):
            raise RequestError(
                f"{embedding!r} has tokens of shape {tokens} and pooled of {pooled}: this model needs "
                f"({WINDOW} k, {width}), k from 1, and ({summary},); Engine.embed(prompt) makes one"
            )
        if not all(part.isfinite().all() for part in (embedding.tokens, embedding.pooled)):
            raise RequestError(
                f"{embedding!r} has numbers that are not finite: make it anew by Engine.embed(prompt)"
            )


def _as_prompt(prompt: str | Prompt) -> Prompt:
    return checked_prompt(prompt, prompt) if isinstance(prompt, str) else prompt


def size_ids(size: Size, batch: int, device: torch.device) -> Tensor:
    """SDXL's micro-conditioning for an uncropped picture: (B, 6), fp32."""
    height, width = size
    row = torch.tensor([height, width, 0, 0, height, width], dtype=torch.float32, device=device)
    return row.expand(batch, 6)
