"""Plain torch, one kernel at a time: the reference that every other runtime must equal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from fewstep.denoiser import Conditioning, Unet


def eager_unet(module: Callable[..., Any]) -> Unet:
    """A diffusers `UNet2DConditionModel` (or a compiled one) behind the seam."""

    def call(x: Tensor, timestep: Tensor, conditioning: Conditioning, embedding: Tensor | None) -> Tensor:
        extra = {"text_embeds": conditioning.pooled, "time_ids": conditioning.size_ids}
        *down, middle = conditioning.residuals or (None,)
        answer: Tensor = module(
            x, timestep, _attention_input(conditioning), timestep_cond=embedding, added_cond_kwargs=extra,
            down_block_additional_residuals=down or None, mid_block_additional_residual=middle,
            return_dict=False,
        )[0]  # fmt: skip
        return answer

    return call


def _attention_input(conditioning: Conditioning) -> Any:
    """What cross-attention reads: text alone, or beside it what IP-Adapters' processors take apart.

    That is the pair that diffusers' UNet makes of text and pictures (`process_encoder_hidden_states`)
    where its own `encoder_hid_proj` projects them; here they are projected once a call.
    """
    tokens, references = conditioning.tokens, list(conditioning.references)
    return (tokens, references) if references else tokens
