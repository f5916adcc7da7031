"""Plain torch, one kernel at a time: the reference that every other runtime must equal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fewstep.conditioning import Conditioning
from fewstep.denoiser import Unet


def eager_unet(module: Callable[..., Any]) -> Unet:
    """A diffusers `UNet2DConditionModel` (or a compiled one) behind the seam."""

    def call(x: Tensor, timestep: Tensor, conditioning: Conditioning, embedding: Tensor | None) -> Tensor:
        extra = {"text_embeds": conditioning.pooled, "time_ids": conditioning.size_ids}
        *down, middle = conditioning.residuals or (None,)
        answer: Tensor = module(
            x, timestep, _read(conditioning), timestep_cond=embedding, added_cond_kwargs=extra,
            down_block_additional_residuals=down or None, mid_block_additional_residual=middle,
            return_dict=False,
        )[0]  # fmt: skip
        return answer

    return call


def _read(conditioning: Conditioning) -> Any:
    """What cross-attention reads: text alone, or beside it what IP-Adapters' processors take apart.

    That is the pair that diffusers' UNet makes of text and pictures (`process_encoder_hidden_states`)
    where its own `encoder_hid_proj` projects them; here they are projected once a call.
    """
    tokens, references = conditioning.tokens, list(conditioning.references)
    return (tokens, references) if references else tokens


def in_batches(unet: Unet, limit: int) -> Unet:
    """The same UNet, called with rows of one length, none filled up, at most `limit` at a time (0: any)."""

    def call(x: Tensor, timestep: Tensor, conditioning: Conditioning, embedding: Tensor | None) -> Tensor:
        batches = alike(conditioning.windows, limit)
        if len(batches) == 1:
            return unet(x, timestep, conditioning, embedding)
        answers: dict[int, Tensor] = {}
        for rows in batches:
            own = None if embedding is None else embedding[rows]
            answer = unet(x[rows], timestep[rows], conditioning.of(rows), own)
            answers.update(zip(rows, answer.split(1), strict=True))
        return torch.cat([answers[row] for row in range(len(x))])

    return call


def alike(windows: Sequence[int], limit: int) -> list[list[int]]:
    """Rows by their number of windows → batches of equal ones, at most `limit` in each (0: any)."""
    rows: dict[int, list[int]] = {}
    for row, count in enumerate(windows):
        rows.setdefault(count, []).append(row)
    size = limit or len(windows)
    return [same[start : start + size] for same in rows.values() for start in range(0, len(same), size)]
