"""The layers of loaded networks, by every name that adapter files have for them.

A name is written as kohya's trainer writes it (sd-scripts, networks/lora.py): the module's path,
its dots as underscores. SDXL's UNet has two such names for each layer: by diffusers' blocks, and by
the original ones (`input_blocks_4_1_…`), in which kohya trains.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from torch import Size, nn

LORA_NETWORKS = ("unet", "text_encoder", "text_encoder_2")
UNET = LORA_NETWORKS[0]


class LoraTarget(NamedTuple):
    """A weight that an adapter can change."""

    weight: str  # its name in the network
    shape: Size  # (out, in), (out, in, kernel, kernel), or (width,) of a norm
    bias: str = ""  # the name of the layer's bias, where it has one


LoraTargets = Mapping[tuple[str, str], LoraTarget]  # by network and name

# Outside the blocks: diffusers → original.
_OUTSIDE_BLOCKS = {
    "conv_in": "input_blocks_0_0",
    "conv_norm_out": "out_0",
    "conv_out": "out_2",
    "time_embedding_linear_1": "time_embed_0",
    "time_embedding_linear_2": "time_embed_2",
    "time_embedding_cond_proj": "time_embed_cond_proj",
    "add_embedding_linear_1": "label_emb_0_0",
    "add_embedding_linear_2": "label_emb_0_2",
}
# Inside a residual block.
_INSIDE_RESNETS = {
    "norm1": "in_layers_0",
    "norm2": "out_layers_0",
    "conv1": "in_layers_2",
    "conv2": "out_layers_3",
    "time_emb_proj": "emb_layers_1",
    "conv_shortcut": "skip_connection",
}
_BLOCK = re.compile(r"(down|up)_blocks_(\d+)_(resnets|attentions|downsamplers|upsamplers)_(\d+)_(.+)")
_MIDDLE = re.compile(r"mid_block_(resnets|attentions)_(\d+)_(.+)")
# What attention's layers were called in diffusers' and transformers' first LoRA files.
_FORMER_ENDINGS = {
    "to_out_0": "to_out",
    "q_proj": "to_q",
    "k_proj": "to_k",
    "v_proj": "to_v",
    "out_proj": "to_out",
}


def find_lora_targets(networks: Mapping[str, nn.Module], config: Any) -> LoraTargets:
    """Return every layer of these networks by its names; the configuration is the UNet's."""
    per_block = config.layers_per_block  # residual ones, on the way down; no SDXL has several numbers of them
    stride = 1 + (per_block if isinstance(per_block, int) else per_block[0])
    targets: dict[tuple[str, str], LoraTarget] = {}
    for network, module in networks.items():
        layers = dict(_own_layers(module))
        attending = {name.partition("_attentions_")[0] for name in layers if "_attentions_" in name}
        for name, layer in layers.items():
            names = [name, *_former_names(name)]
            if network == UNET:
                names += _original_names(name, stride, attending)
            targets.update({(network, alias): layer for alias in names})
    return targets


def underscored(name: str) -> str:
    """Return a module's path as a name here, without a prefix that files have and transformers dropped."""
    return name.replace(".base_layer", "").replace(".", "_").removeprefix("text_model_")


def _own_layers(network: nn.Module) -> Iterator[tuple[str, LoraTarget]]:
    """Yield a network's matrices, convolutions and norms."""
    weights = dict(network.named_parameters())
    for name, weight in weights.items():
        module = name.removesuffix(".weight")
        if module != name and weight.ndim in (1, 2, 4):
            bias = f"{module}.bias"
            yield underscored(module), LoraTarget(name, weight.shape, bias if bias in weights else "")


def _former_names(name: str) -> list[str]:
    return [
        name.removesuffix(ending) + former
        for ending, former in _FORMER_ENDINGS.items()
        if name.endswith(f"_{ending}")
    ]


def _original_names(name: str, stride: int, attending: set[str]) -> list[str]:
    """Return its name in Stability's layout; `stride`: how many original blocks make one of diffusers'."""
    if name in _OUTSIDE_BLOCKS:
        return [_OUTSIDE_BLOCKS[name]]
    middle = _MIDDLE.fullmatch(name)
    if middle is not None:
        kind, index, layer = middle.groups()
        return [f"middle_block_{2 * int(index) + (kind == 'attentions')}_{_INSIDE_RESNETS.get(layer, layer)}"]
    match = _BLOCK.fullmatch(name)
    if match is None:
        return []
    side, block, kind, index, layer = match.groups()
    first_block = int(block) * stride
    match kind:
        case "downsamplers":
            return [f"input_blocks_{first_block + stride}_0_op"]
        case "upsamplers":  # after the last residual block, and its attention where there is one
            return [
                f"output_blocks_{first_block + stride - 1}_{1 + (f'up_blocks_{block}' in attending)}_conv"
            ]
    place = first_block + int(index)
    outer = f"input_blocks_{1 + place}" if side == "down" else f"output_blocks_{place}"
    return [f"{outer}_{int(kind == 'attentions')}_{_INSIDE_RESNETS.get(layer, layer)}"]
