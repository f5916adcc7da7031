"""Configurations, read off the shapes of weights: a single file comes without any.

What no shape tells is the same in the whole family and has its source at its line.
Names are diffusers' and transformers'.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any

from fewstep.architectures import SingleFileLayout
from fewstep.loading.lazy_tensors import LazyTensor

Weights = Mapping[str, LazyTensor]

HEAD_CHANNELS = 64  # channels of an attention head: generative-models' sd_xl_base.yaml, num_head_channels
SIZE_IDS = 6  # original height and width, crop top and left, target height and width
GUIDANCE_EMBEDDING = (
    "time_embedding.cond_proj.weight"  # LCM's guidance, named as diffusers does in any layout
)
TINY_VAE_WEIGHT = "decoder.layers.0.weight"  # of an AutoencoderTiny, which no other VAE has


def unet_config(weights: Weights, pooled: int, layout: SingleFileLayout) -> dict[str, Any]:
    """Return a UNet's; `pooled`: how many numbers summarise its prompt, 0 where it is told none."""
    levels = range(_count_from_zero(weights, "down_blocks.{}.resnets.0.conv1.weight"))
    down = [_transformer_depths(weights, f"down_blocks.{level}") for level in levels]
    up = [_transformer_depths(weights, f"up_blocks.{level}") for level in levels]
    channels = [weights[f"down_blocks.{level}.resnets.0.conv1.weight"].shape[0] for level in levels]
    cross_attention = next(name for name in weights if name.endswith("attn2.to_k.weight"))
    embedded = weights.get(GUIDANCE_EMBEDDING)
    proj_in = next(name for name in weights if name.endswith("proj_in.weight"))
    mid = "mid_block.attentions.0.norm.weight" in weights
    return {
        "sample_size": layout.latent_side,
        "in_channels": weights["conv_in.weight"].shape[1],
        "out_channels": weights["conv_out.weight"].shape[0],
        "down_block_types": ["CrossAttnDownBlock2D" if depths else "DownBlock2D" for depths in down],
        "mid_block_type": "UNetMidBlock2DCrossAttn" if mid else "UNetMidBlock2D",
        "up_block_types": ["CrossAttnUpBlock2D" if depths else "UpBlock2D" for depths in up],
        "block_out_channels": channels,
        "layers_per_block": _count_from_zero(weights, "down_blocks.0.resnets.{}.conv1.weight"),
        "transformer_layers_per_block": [_one_if_alike(depths) for depths in down],
        "reverse_transformer_layers_per_block": [_one_if_alike(depths) for depths in up],
        # diffusers' name for how many heads there are
        "attention_head_dim": layout.heads or [max(1, width // HEAD_CHANNELS) for width in channels],
        "cross_attention_dim": weights[cross_attention].shape[1],
        "use_linear_projection": weights[proj_in].ndim == 2,
        "time_cond_proj_dim": None if embedded is None else embedded.shape[1],
        **(_size_ids_config(weights, pooled) if pooled else {"addition_embed_type": None}),
    }


def _size_ids_config(weights: Weights, pooled: int) -> dict[str, Any]:
    """Return how a UNet is told a summary of `pooled` numbers, and sizes."""
    width = weights["add_embedding.linear_1.weight"].shape[1]
    return {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": (width - pooled) // SIZE_IDS,
        "projection_class_embeddings_input_dim": width,
    }


def vae_config(weights: Weights, scale: float, side: int) -> dict[str, Any]:
    """Return an autoencoder's, trained at `side` pixels, whose latents are multiplied by `scale`."""
    levels = range(_count_from_zero(weights, "encoder.down_blocks.{}.resnets.0.conv1.weight"))
    return {
        "down_block_types": ["DownEncoderBlock2D"] * len(levels),
        "up_block_types": ["UpDecoderBlock2D"] * len(levels),
        "block_out_channels": [
            weights[f"encoder.down_blocks.{level}.resnets.0.conv1.weight"].shape[0] for level in levels
        ],
        "layers_per_block": _count_from_zero(weights, "encoder.down_blocks.0.resnets.{}.conv1.weight"),
        "latent_channels": weights["encoder.conv_out.weight"].shape[0] // 2,  # mean and variance
        "sample_size": side,
        "scaling_factor": scale,
        "force_upcast": True,  # SDXL's own overflows in fp16; who corrected it in a single file is not told
    }


def tiny_vae_config(weights: Weights) -> dict[str, Any]:
    """Return an AutoencoderTiny's: one width throughout, the rest by its class's default."""
    widths = [weights[TINY_VAE_WEIGHT].shape[0]] * 4
    return {
        "_class_name": "AutoencoderTiny", "latent_channels": weights[TINY_VAE_WEIGHT].shape[1],
        "encoder_block_out_channels": widths, "decoder_block_out_channels": widths,
    }  # fmt: skip


def clip_config(weights: Weights, act: str) -> dict[str, Any]:
    """Return a CLIP text encoder's; activation `act` is quick_gelu in CLIP-L, gelu in OpenCLIP's bigG."""
    token_embedding = weights["text_model.embeddings.token_embedding.weight"]
    position_embedding = weights["text_model.embeddings.position_embedding.weight"]
    projection = weights.get("text_projection.weight")
    vocabulary, hidden = token_embedding.shape
    return {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": weights["text_model.encoder.layers.0.mlp.fc1.weight"].shape[0],
        "projection_dim": hidden if projection is None else projection.shape[0],
        "num_hidden_layers": _count_from_zero(weights, "text_model.encoder.layers.{}.mlp.fc1.weight"),
        "num_attention_heads": max(1, hidden // HEAD_CHANNELS),
        "max_position_embeddings": position_embedding.shape[0],
        "hidden_act": act,
        "bos_token_id": vocabulary - 2,  # the last two of CLIP's vocabulary are its start and end signs
        "eos_token_id": vocabulary - 1,
    }


def _transformer_depths(weights: Weights, block: str) -> list[int]:
    """Return how many transformer blocks each of a block's attentions has; [] where it has none."""
    return [
        _count_from_zero(weights, f"{block}.attentions.{place}.transformer_blocks.{{}}.norm1.weight")
        for place in range(_count_from_zero(weights, f"{block}.attentions.{{}}.norm.weight"))
    ]


def _one_if_alike(depths: list[int]) -> int | list[int]:
    """Return one number where all attentions of a block are alike; SSD-1B's are not."""
    return depths if len(set(depths)) > 1 else max(depths, default=1)


def _count_from_zero(weights: Weights, pattern: str) -> int:
    """Return how many of 0, 1, 2, … are there."""
    return next(_missing_numbers(weights, pattern))


def _missing_numbers(weights: Weights, pattern: str) -> Iterator[int]:
    return (number for number in count() if pattern.format(number) not in weights)
