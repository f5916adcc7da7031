"""Plain torch, one kernel at a time: the reference that every other runtime must equal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fewstep.denoiser import Unet
from fewstep.text import Conditioning


def eager_unet(module: Callable[..., Any]) -> Unet:
    """A diffusers `UNet2DConditionModel` (or a compiled one) behind the seam."""

    def call(x: Tensor, timestep: Tensor, conditioning: Conditioning, embedding: Tensor | None) -> Tensor:
        extra = {"text_embeds": conditioning.pooled, "time_ids": conditioning.size_ids}
        answer: Tensor = module(
            x, timestep, conditioning.tokens, timestep_cond=embedding,
            added_cond_kwargs=extra, return_dict=False,
        )[0]  # fmt: skip
        return answer

    return call


def in_batches(unet: Unet, limit: int) -> Unet:
    """The same UNet, called with at most `limit` rows at a time; 0 is no limit."""
    if limit == 0:
        return unet

    def call(x: Tensor, timestep: Tensor, conditioning: Conditioning, embedding: Tensor | None) -> Tensor:
        embeddings = [None] * len(x) if embedding is None else embedding.split(limit)
        rows = zip(x.split(limit), timestep.split(limit), conditioning.split(limit), embeddings, strict=False)
        return torch.cat([unet(*row) for row in rows])

    return call
