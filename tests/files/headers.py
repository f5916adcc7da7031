"""Model files of real size without data: the true names and shapes, in a sparse file.

Names and shapes come from diffusers' own classes on the meta device; the original and kohya's
namings are made from those as their authors' code makes them.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel

from fewstep.files.safetensors import DTYPE_BITS

Shapes = dict[str, tuple[int, ...]]
ATTENDING = ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D")
RISING = ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")

# unet/config.json of stabilityai/stable-diffusion-xl-base-1.0.
SDXL: dict[str, Any] = {
    "down_block_types": ATTENDING, "up_block_types": RISING, "block_out_channels": (320, 640, 1280),
    "layers_per_block": 2, "transformer_layers_per_block": (1, 2, 10), "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048, "use_linear_projection": True, "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip
SD1: dict[str, Any] = {
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}  # the class' defaults are SD 1.x's
# What each differs in; segmind/SSD-1B and segmind/Segmind-Vega prune SDXL.
UNETS: dict[str, dict[str, Any]] = {
    "sdxl": SDXL,
    "lcm": {**SDXL, "time_cond_proj_dim": 256},
    "sdxl-inpaint": {**SDXL, "in_channels": 9},
    "ssd-1b": {
        **SDXL, "transformer_layers_per_block": (1, 2, 4), "mid_block_type": "UNetMidBlock2D",
        "reverse_transformer_layers_per_block": [[4, 4, 10], [2, 1, 1], 1],
    },
    "vega": {
        **SDXL, "transformer_layers_per_block": (1, 1, 2), "mid_block_type": "UNetMidBlock2D",
        "reverse_transformer_layers_per_block": [[2, 2, 2], [1, 1, 1], 1],
    },
    "kolors": {**SDXL, "projection_class_embeddings_input_dim": 5632},
    "sdxl-refiner": {
        **SDXL, "down_block_types": (*ATTENDING, "DownBlock2D"), "up_block_types": ("UpBlock2D", *RISING),
        "block_out_channels": (384, 768, 1536, 1536), "transformer_layers_per_block": 4,
        "attention_head_dim": (6, 12, 24, 24), "cross_attention_dim": 1280,
        "projection_class_embeddings_input_dim": 2560,
    },
    "sd-1.x": SD1,
    "sd-2.x": {
        "cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True,
    },
}  # fmt: skip


def _shapes(build: Callable[[], Any]) -> Shapes:
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in build().state_dict().items()}


@cache
def unet(name: str) -> Shapes:
    """A UNet in diffusers' layout."""
    return _shapes(lambda: UNet2DConditionModel(**UNETS[name]))


@cache
def vae() -> Shapes:
    widths = (128, 256, 512, 512)
    return _shapes(
        lambda: AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=widths, layers_per_block=2,
        )
    )  # fmt: skip


@cache
def controlnet(attending: bool = True) -> Shapes:
    config = {name: value for name, value in SDXL.items() if name != "up_block_types"}
    if not attending:  # as diffusers/controlnet-canny-sdxl-1.0-small
        config |= {"down_block_types": ("DownBlock2D",) * 3, "mid_block_type": "UNetMidBlock2D"}
    return _shapes(lambda: ControlNetModel(**config))


def clip(width: int, layers: int) -> Shapes:
    """A CLIP text encoder in transformers' layout, as SDXL's first."""
    embeddings, block = "text_model.embeddings", "text_model.encoder.layers"
    made: Shapes = {
        f"{embeddings}.position_ids": (1, 77), f"{embeddings}.position_embedding.weight": (77, width),
        f"{embeddings}.token_embedding.weight": (49408, width),
    }  # fmt: skip
    linear = {f"self_attn.{side}_proj": (width, width) for side in ("q", "k", "v", "out")}
    linear |= {"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
    for layer in range(layers):
        for name, shape in linear.items():
            made |= {f"{block}.{layer}.{name}.weight": shape, f"{block}.{layer}.{name}.bias": shape[:1]}
        made |= _norms(f"{block}.{layer}.layer_norm1", f"{block}.{layer}.layer_norm2", width=width)
    return made | _norms("text_model.final_layer_norm", width=width)


def openclip(width: int, layers: int) -> Shapes:
    """A CLIP text encoder in OpenCLIP's layout, as SDXL's second."""
    made: Shapes = {
        "positional_embedding": (77, width), "text_projection": (width, width),
        "token_embedding.weight": (49408, width), "logit_scale": (),
    }  # fmt: skip
    linear = {
        "attn.out_proj": (width, width),
        "mlp.c_fc": (4 * width, width),
        "mlp.c_proj": (width, 4 * width),
    }
    for layer in range(layers):
        block = f"transformer.resblocks.{layer}"
        made |= {
            f"{block}.attn.in_proj_weight": (3 * width, width),
            f"{block}.attn.in_proj_bias": (3 * width,),
        }
        for name, shape in linear.items():
            made |= {f"{block}.{name}.weight": shape, f"{block}.{name}.bias": shape[:1]}
        made |= _norms(f"{block}.ln_1", f"{block}.ln_2", width=width)
    return made | _norms("ln_final", width=width)


def _norms(*names: str, width: int) -> Shapes:
    return {f"{name}.{end}": (width,) for name in names for end in ("weight", "bias")}


def under(prefix: str, shapes: Mapping[str, tuple[int, ...]]) -> Shapes:
    return {prefix + name: shape for name, shape in shapes.items()}


# --- the original layout

TOP_NAMES = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
}  # fmt: skip
RESNET_NAMES = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0", "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection",
}  # fmt: skip
_BLOCK = re.compile(
    r"(down|up|mid)_blocks?\.(?:(\d)\.)?(resnets|attentions|downsamplers|upsamplers)\.(\d)\.(.*)"
)


def original_name(name: str, attending: Iterable[int] = (0, 1)) -> str:
    """A module or tensor of a UNet, as Stability's code names it; `attending`: up blocks with attention."""
    found = _BLOCK.fullmatch(name)
    if found is None:
        head = next((head for head in TOP_NAMES if name.startswith(head + ".")), None)
        return name if head is None else TOP_NAMES[head] + name.removeprefix(head)
    side, block, part, index, rest = found.groups()
    i, j = int(block or 0), int(index)
    if part == "resnets":
        head = next(head for head in RESNET_NAMES if rest.startswith(head))
        rest = RESNET_NAMES[head] + rest.removeprefix(head)
    if side == "mid":
        return f"middle_block.{2 * j if part == 'resnets' else 1}.{rest}"
    inner = {"resnets": 0, "attentions": 1, "downsamplers": 0, "upsamplers": 2 if i in attending else 1}[part]
    if part == "downsamplers":
        return f"input_blocks.{3 * i + 3}.0.{rest.replace('conv', 'op')}"
    place = 3 * i + (2 if part == "upsamplers" else j)
    return (
        f"input_blocks.{place + 1}.{inner}.{rest}"
        if side == "down"
        else f"output_blocks.{place}.{inner}.{rest}"
    )


def original_unet(name: str) -> Shapes:
    """A UNet of three or four levels in the original layout."""
    attending = (0, 1) if len(UNETS[name].get("block_out_channels", (0,) * 4)) == 3 else (1, 2, 3)
    return {original_name(tensor, attending): shape for tensor, shape in unet(name).items()}


def original_vae() -> Shapes:
    made: Shapes = {}
    for name, shape in vae().items():
        name = re.sub(r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2", name)
        name = re.sub(r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"up.{3 - int(m[1])}.block.{m[2]}", name)
        name = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", name)
        name = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{3 - int(m[1])}.upsample", name)
        name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
        name = name.replace("mid_block.attentions.0", "mid.attn_1").replace("conv_shortcut", "nin_shortcut")
        for ours, theirs in (("group_norm", "norm"), ("to_q", "q"), ("to_k", "k"), ("to_v", "v")):
            name = name.replace(f"attn_1.{ours}.", f"attn_1.{theirs}.")
        name = name.replace("to_out.0", "proj_out").replace("conv_norm_out", "norm_out")
        made[name] = (*shape, 1, 1) if "attn_1" in name and len(shape) == 2 else shape
    return made


@cache
def checkpoint(name: str = "sdxl") -> Shapes:
    """SDXL, or SD 1.x, in one file as published."""
    made = under("model.diffusion_model.", original_unet(name)) | under("first_stage_model.", original_vae())
    if name == "sd-1.x":
        return made | under("cond_stage_model.transformer.", clip(768, 12))
    first = under("conditioner.embedders.0.transformer.", clip(768, 12))
    return made | first | under("conditioner.embedders.1.model.", openclip(1280, 32))


def parts_in_one_file(name: str) -> Shapes:
    """diffusers' parts in one file, as some trainers write them."""
    texts = under("text_encoder.", clip(768, 2)) | under("text_encoder_2.", clip(1280, 2))
    return under("unet.", unet(name)) | under("vae.", vae()) | texts


# --- adapters

_LINEAR = re.compile(r".*\.(to_[qkv]|to_out\.0|ff\.net\.0\.proj|ff\.net\.2|proj_in|proj_out)\.weight")
_CONV = re.compile(r".*\.(conv1|conv2|conv_shortcut|downsamplers\.0\.conv|upsamplers\.0\.conv)\.weight")


def modules(name: str, convolutions: bool = False) -> Shapes:
    """What a LoRA changes in a UNet → the shape of its weight; in diffusers' names, without ".weight"."""
    fits = [_LINEAR, *([_CONV] if convolutions else [])]
    return {
        tensor.removesuffix(".weight"): shape
        for tensor, shape in unet(name).items()
        if any(pattern.fullmatch(tensor) for pattern in fits)
    }


def factors(shape: tuple[int, ...], rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Down and up of one module."""
    return (rank, *shape[1:]), (shape[0], rank, *(1,) * len(shape[2:]))


def adapter(changed: Shapes, form: str, rank: int = 8, ends: tuple[str, str] = ("", "")) -> Shapes:
    """A LoRA: `form` places the module's name; `ends` are the names of down and up."""
    made: Shapes = {}
    for module, shape in changed.items():
        name = form.format(module.replace(".", "_") if form.startswith("lora_") else module)
        made |= dict(zip((name + end for end in ends), factors(shape, rank), strict=True))
    return made


KOHYA = (".lora_down.weight", ".lora_up.weight")
DIFFUSERS = (".lora.down.weight", ".lora.up.weight")
PEFT = (".lora_A.weight", ".lora_B.weight")


def kohya(changed: Shapes, rank: int = 8, prefix: str = "lora_unet_") -> Shapes:
    """A LoRA as kohya's scripts write it, with an alpha for each module."""
    alphas: Shapes = {f"{prefix}{module.replace('.', '_')}.alpha": () for module in changed}
    return adapter(changed, prefix + "{}", rank, KOHYA) | alphas


# --- files


def header(shapes: Mapping[str, tuple[int, ...]], dtype: str = "F16", metadata: object = None) -> bytes:
    """The eight bytes and the JSON."""
    content: dict[str, object] = {} if metadata is None else {"__metadata__": metadata}
    reached = 0
    for name, shape in shapes.items():
        end = reached + DTYPE_BITS[dtype] * math.prod(shape) // 8
        content[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [reached, end]}
        reached = end
    return packed(json.dumps(content))


def packed(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    raw += b" " * (-len(raw) % 8)  # as safetensors aligns it
    return struct.pack("<Q", len(raw)) + raw


def write(
    path: Path, shapes: Mapping[str, tuple[int, ...]], metadata: object = None, alpha: float = 0.0
) -> Path:
    """A file of fp16 with all its data zero, and none of that on the disk; each alpha as given."""
    start = header(shapes, metadata=metadata)
    reached = len(start)
    with path.open("wb") as file:
        file.write(start)
        for name, shape in shapes.items():
            if alpha and name.endswith(".alpha"):
                file.seek(reached)
                file.write(struct.pack("<e", alpha))
            reached += 2 * math.prod(shape)
        file.truncate(reached)
    return path
