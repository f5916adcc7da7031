"""LoRAs for `sdxl_folder` as trainers write them: diffusers' scripts, PEFT, and kohya's in both namings."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, inject_adapter_in_model
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection

RANK, ALPHA = 4, 3.0
UNET = [
    "to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2",
    "conv1", "conv2", "conv_shortcut", "time_emb_proj", "downsamplers.0.conv", "upsamplers.0.conv",
    "conv_in", "conv_out", "time_embedding.linear_1", "add_embedding.linear_2",
]  # fmt: skip
TEXT = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
NETWORKS: Mapping[str, Any] = {
    "unet": UNet2DConditionModel,
    "text_encoder": CLIPTextModel,
    "text_encoder_2": CLIPTextModelWithProjection,
}
State = dict[str, Tensor]


def config(network: str, alpha: float = ALPHA, **more: Any) -> LoraConfig:
    targets = UNET if network == "unet" else TEXT
    return LoraConfig(r=RANK, lora_alpha=alpha, target_modules=targets, init_lora_weights=False, **more)


def network(folder: Path, name: str, seed: int, **more: Any) -> Any:
    """One network with a random adapter on."""
    torch.manual_seed(seed)
    module = NETWORKS[name].from_pretrained(folder / name)
    # Not by `module.add_adapter`: a release of transformers may ask for a peft that is not out yet.
    return inject_adapter_in_model(config(name, **more), module)


def states(folder: Path, seed: int, *names: str) -> dict[str, State]:
    """network → PEFT's names, without prefix."""
    return {name: get_peft_model_state_dict(network(folder, name, seed)) for name in names or NETWORKS}


def by_diffusers(folder: Path, where: Path, seed: int, *, said: bool, **more: Any) -> Path:
    """`save_lora_weights`; without `said` the file knows of no alpha."""
    modules = {name: network(folder, name, seed, **more) for name in NETWORKS}
    layers = {f"{name}_lora_layers": get_peft_model_state_dict(module) for name, module in modules.items()}
    metadata = {
        f"{name}_lora_adapter_metadata": module.peft_config["default"].to_dict()
        for name, module in modules.items()
    }
    StableDiffusionXLPipeline.save_lora_weights(where, **layers, **(metadata if said else {}))
    return where / "pytorch_lora_weights.safetensors"


def by_peft(folder: Path, where: Path, seed: int, name: str = "unet", **more: Any) -> tuple[Path, Any]:
    """PEFT's own `save_pretrained` of one network, and its model."""
    torch.manual_seed(seed)
    model = get_peft_model(NETWORKS[name].from_pretrained(folder / name), config(name, **more))
    model.save_pretrained(where)
    return where / "adapter_model.safetensors", model


def by_kohya(given: Mapping[str, State], path: Path, *, original: bool, alpha: float = ALPHA) -> Path:
    """sd-scripts' layout; `original`: in the block names of the UNet that it trains."""
    prefixes = {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}
    written: State = {}
    for network, state in given.items():
        for key, tensor in state.items():
            layer, _, factor = key.removesuffix(".weight").rpartition(".")
            if network == "unet":
                layer = in_original(layer) if original else layer
            elif not layer.startswith("text_model."):
                layer = f"text_model.{layer}"
            name = prefixes[network] + layer.replace(".", "_")
            written[f"{name}.{'lora_down' if factor == 'lora_A' else 'lora_up'}.weight"] = tensor.contiguous()
            written[f"{name}.alpha"] = torch.tensor(alpha)
    save_file(written, path)
    return path


def in_original(layer: str, each: int = 2) -> str:
    """diffusers' name of a UNet's layer → Stability's; `each`: layers_per_block + 1."""
    for ours, theirs in (
        ("conv_in", "input_blocks.0.0"), ("conv_out", "out.2"), ("time_embedding.linear_1", "time_embed.0"),
        ("time_embedding.linear_2", "time_embed.2"), ("add_embedding.linear_1", "label_emb.0.0"),
        ("add_embedding.linear_2", "label_emb.0.2"), ("mid_block.resnets.0", "middle_block.0"),
        ("mid_block.attentions.0", "middle_block.1"), ("mid_block.resnets.1", "middle_block.2"),
    ):  # fmt: skip
        layer = re.sub(rf"^{re.escape(ours)}(?=\.|$)", theirs, layer)
    found = re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.", layer)
    if found:
        side, block, kind, index = found[1], int(found[2]), found[3], int(found[4])
        rest = layer[found.end() :]
        match kind:
            case "downsamplers":
                layer = f"input_blocks.{(block + 1) * each}.0.op"
            case "upsamplers":  # the last up block of this UNet has no attention, and no upsampler either
                layer = f"output_blocks.{(block + 1) * each - 1}.2.conv"
            case _:
                place = block * each + index + (side == "down")
                branch = 1 if kind == "attentions" else 0
                layer = f"{'input' if side == 'down' else 'output'}_blocks.{place}.{branch}.{rest}"
    for ours, theirs in (
        ("conv1", "in_layers.2"), ("conv2", "out_layers.3"), ("time_emb_proj", "emb_layers.1"),
        ("conv_shortcut", "skip_connection"),
    ):  # fmt: skip
        layer = re.sub(rf"(?<=\.){ours}$", theirs, layer)
    return layer
