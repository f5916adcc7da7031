"""Diffusers' names → those of Stability's original single files: the way back of what fewstep reads.

Written from generative-models' modules (openaimodel.py, diffusionmodules/model.py) and open_clip's
transformer.py, not from diffusers' converters, which the tests put to use.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from tests.files.headers import RESNET_NAMES, TOP_NAMES

Weights = Mapping[str, Tensor]

_ENDS = {f"{ours}.": f"{theirs}." for ours, theirs in TOP_NAMES.items()}
_CLIP_LAYER = {
    "layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}  # fmt: skip


def checkpoint(unet: Weights, vae: Weights, first: Weights, second: Weights) -> dict[str, Tensor]:
    """All of SDXL in one file's names; the text encoders in transformers' names with their prefix."""
    return {
        **{f"model.diffusion_model.{name}": tensor for name, tensor in unet_names(unet).items()},
        **{f"first_stage_model.{name}": tensor for name, tensor in _vae(vae).items()},
        **{f"conditioner.embedders.0.transformer.{name}": tensor for name, tensor in first.items()},
        **{f"conditioner.embedders.1.model.{name}": tensor for name, tensor in _open_clip(second).items()},
    }


def unet_names(weights: Weights) -> dict[str, Tensor]:
    """A UNet alone, without prefix."""
    layers = 1 + max(
        int(m[1]) for m in (re.match(r"down_blocks\.0\.resnets\.(\d+)", n) for n in weights) if m
    )
    attending = {
        match[1] for match in (re.match(r"(up_blocks\.\d+)\.attentions", n) for n in weights) if match
    }
    return {_unet_name(name, layers + 1, attending): tensor for name, tensor in weights.items()}


def _unet_name(name: str, stride: int, attending: set[str]) -> str:
    for start, original in _ENDS.items():
        if name.startswith(start):
            return original + name.removeprefix(start)
    match = re.fullmatch(
        r"(down|mid|up)_blocks?\.(?:(\d+)\.)?(resnets|attentions|\w+samplers)\.(\d+)\.(.*)", name
    )
    if match is None:
        return name  # time_embedding.cond_proj is named alike everywhere
    where, level, what, place, rest = match[1], int(match[2] or 0), match[3], int(match[4]), match[5]
    if what == "resnets":
        inner, _, leaf = rest.rpartition(".")
        rest = f"{RESNET_NAMES[inner]}.{leaf}"
    if where == "mid":
        return f"middle_block.{2 * place if what == 'resnets' else 1}.{rest}"
    if what == "downsamplers":
        return f"input_blocks.{(level + 1) * stride}.0.op.{rest.removeprefix('conv.')}"
    if what == "upsamplers":
        after = 2 if f"up_blocks.{level}" in attending else 1
        return f"output_blocks.{level * stride + stride - 1}.{after}.{rest}"
    column = 0 if what == "resnets" else 1
    if where == "down":
        return f"input_blocks.{1 + level * stride + place}.{column}.{rest}"
    return f"output_blocks.{level * stride + place}.{column}.{rest}"


def _vae(weights: Weights) -> dict[str, Tensor]:
    levels = 1 + max(int(m[1]) for m in (re.match(r"decoder\.up_blocks\.(\d+)", n) for n in weights) if m)
    found = {}
    for name, tensor in weights.items():
        attention = "mid_block.attentions" in name
        convolved = tensor[:, :, None, None] if attention and tensor.ndim == 2 else tensor
        found[_vae_name(name, levels)] = convolved
    return found


def _vae_name(name: str, levels: int) -> str:
    name = re.sub(r"up_blocks\.(\d+)", lambda m: f"up.{levels - 1 - int(m[1])}", name)
    name = re.sub(r"mid_block\.resnets\.(\d+)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    for new, old in (
        ("down_blocks.", "down."), (".resnets.", ".block."), ("conv_shortcut", "nin_shortcut"),
        ("downsamplers.0.", "downsample."), ("upsamplers.0.", "upsample."), ("conv_norm_out", "norm_out"),
        ("mid_block.attentions.0", "mid.attn_1"), ("group_norm", "norm"), ("to_out.0", "proj_out"),
        ("to_q", "q"), ("to_k", "k"), ("to_v", "v"),
    ):  # fmt: skip
        name = name.replace(new, old)
    return name


def _open_clip(weights: Weights) -> dict[str, Tensor]:
    found = {}
    for name, tensor in weights.items():
        match = re.fullmatch(r"text_model\.encoder\.layers\.(\d+)\.(.*)\.(weight|bias)", name)
        if match and match[2] in _CLIP_LAYER:
            found[f"transformer.resblocks.{match[1]}.{_CLIP_LAYER[match[2]]}.{match[3]}"] = tensor
        elif match and match[2] == "self_attn.q_proj":
            parts = [weights[name.replace("q_proj", f"{each}_proj")] for each in "qkv"]
            found[f"transformer.resblocks.{match[1]}.attn.in_proj_{match[3]}"] = torch.cat(parts)
        elif not match:
            found[_open_clip_end(name)] = (
                tensor.T.contiguous() if name == "text_projection.weight" else tensor
            )
    return found


def _open_clip_end(name: str) -> str:
    return {
        "text_projection.weight": "text_projection",
        "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
        "text_model.embeddings.position_embedding.weight": "positional_embedding",
        "text_model.final_layer_norm.weight": "ln_final.weight",
        "text_model.final_layer_norm.bias": "ln_final.bias",
    }[name]
