"""Plain torch, one kernel at a time: the reference that every other runtime must equal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from fewstep.denoiser import Conditioning, Network
from fewstep.runtimes import Decoder, Runtime


class Eager:
    """Runs modules as they are."""

    def network(self, module: Any, /) -> Network:
        """Return a diffusers `UNet2DConditionModel` (or a compiled one) behind the seam."""
        return eager_network(module)

    def decoder(self, vae: Any, /) -> Decoder:
        """Return the decoder of an `AutoencoderKL` or `AutoencoderTiny`."""

        def decode(latents: Tensor, /) -> Tensor:
            pictures: Tensor = vae.decode(latents, return_dict=False)[0]
            return pictures.float()

        return decode


RUNTIME: Runtime = Eager()


def eager_network(module: Callable[..., Any]) -> Network:
    """Return a module with the forward of diffusers' `UNet2DConditionModel` as a `Network`."""

    def call(x: Tensor, timestep: Tensor, conditioning: Conditioning, embedding: Tensor | None) -> Tensor:
        *down, middle = conditioning.residuals or (None,)
        # Beside IP-Adapters' tokens, text is one of the pair that diffusers' UNet makes of text and pictures
        # (`process_encoder_hidden_states`) where its own `encoder_hid_proj` projects them.
        tokens, references = conditioning.tokens, list(conditioning.references)
        prediction: Tensor = module(
            x, timestep, (tokens, references) if references else tokens, timestep_cond=embedding,
            added_cond_kwargs=dict(conditioning.added) or None, down_block_additional_residuals=down or None,
            mid_block_additional_residual=middle, return_dict=False,
        )[0]  # fmt: skip
        return prediction

    return call
