"""What SDXL's networks hold beside their weights: the measurement behind `fewstep.devices.memory`.

    python -m tests.devices.activations        prints numbers per pixel at three sizes

On torch's meta device tensors have sizes and no memory, so that this takes seconds on any machine.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from fewstep.train.estimate import Live
from fewstep.train.meta_networks import UNET, VAE

# By width: layers, heads.
TEXT = {768: (12, 12), 1280: (32, 20)}


def networks() -> tuple[Any, Any]:
    """SDXL's UNet and VAE, in fp32, without memory."""
    with torch.device("meta"):
        return UNet2DConditionModel(**UNET).eval(), AutoencoderKL(**VAE).eval()


def text_encoders() -> tuple[nn.Module, nn.Module]:
    """SDXL's text encoders, without memory."""
    with torch.device("meta"):
        return CLIPTextModel(_clip(768)), CLIPTextModelWithProjection(_clip(1280))


def _clip(width: int) -> CLIPTextConfig:
    layers, heads = TEXT[width]
    return CLIPTextConfig(
        vocab_size=49408, hidden_size=width, intermediate_size=4 * width, projection_dim=width,
        num_hidden_layers=layers, num_attention_heads=heads,
    )  # fmt: skip


def step(unet: Any, side: int, rows: int = 1) -> float:
    """Numbers alive at once in a UNet step, per pixel and row."""
    with _counted() as live:
        extra = {"text_embeds": torch.empty(rows, 1280), "time_ids": torch.empty(rows, 6)}
        x, tokens = torch.empty(rows, 4, side // 8, side // 8), torch.empty(rows, 77, 2048)
        unet(x, torch.empty(rows), tokens, added_cond_kwargs=extra, return_dict=False)
    return float(live.peak / 4 / side**2 / rows)


def decode(vae: Any, side: int) -> float:
    """Numbers alive at once while the VAE decodes, per pixel."""
    with _counted() as live:
        vae.decode(torch.empty(1, 4, side // 8, side // 8), return_dict=False)
    return float(live.peak / 4 / side**2)


def encode(vae: Any, side: int) -> float:
    """Numbers alive at once while the VAE encodes, per pixel."""
    with _counted() as live:
        vae.encode(torch.empty(1, 3, side, side), return_dict=False)
    return float(live.peak / 4 / side**2)


@contextmanager
def _counted() -> Iterator[Live]:
    """Attention holds its result and no score, as every fused kernel does."""

    def fused(query: Tensor, _key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
        return torch.empty(*query.shape[:-1], value.shape[-1])

    live = Live()
    attention = mock.patch.object(F, "scaled_dot_product_attention", fused)
    with attention, torch.no_grad(), live, torch.device("meta"):
        yield live


def main() -> None:
    unet, vae = networks()
    for side in (512, 768, 1024):
        sys.stdout.write(
            f"{side}: UNet {step(unet, side):.1f}, two rows {step(unet, side, 2):.1f} each, "
            f"decode {decode(vae, side):.1f}, encode {encode(vae, side):.1f}\n"
        )


if __name__ == "__main__":
    main()
