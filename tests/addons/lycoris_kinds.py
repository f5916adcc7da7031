"""Adapters of every algorithm as `lycoris-lora` makes them, in the names of those who write such files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from lycoris.modules.boft import ButterflyOFTModule
from lycoris.modules.diag_oft import DiagOFTModule
from lycoris.modules.full import FullModule
from lycoris.modules.glora import GLoRAModule
from lycoris.modules.ia3 import IA3Module
from lycoris.modules.locon import LoConModule
from lycoris.modules.loha import LohaModule
from lycoris.modules.lokr import LokrModule
from lycoris.modules.norms import NormModule
from torch import Tensor, nn

from tests.loading.original import unet_names

RANK, ALPHA = 4, 3.0
Weights = dict[str, Tensor]
# Square and not, matrices and convolutions of both sizes, with a bias and without.
_FIRST = "down_blocks.1.attentions.0"
LAYERS = (
    "conv_in", "time_embedding.linear_1", "down_blocks.0.resnets.0.conv1",
    "down_blocks.0.downsamplers.0.conv", f"{_FIRST}.proj_in", f"{_FIRST}.transformer_blocks.0.attn1.to_q",
    f"{_FIRST}.transformer_blocks.0.attn2.to_k", f"{_FIRST}.transformer_blocks.0.ff.net.0.proj",
    "up_blocks.0.resnets.0.conv_shortcut", "up_blocks.0.upsamplers.0.conv",
    "mid_block.attentions.0.proj_out", "mid_block.resnets.1.time_emb_proj",
)  # fmt: skip
NORMS = (
    "conv_norm_out", "down_blocks.0.resnets.0.norm1", "up_blocks.0.resnets.0.norm2",
    "down_blocks.1.attentions.0.norm", "down_blocks.1.attentions.0.transformer_blocks.0.norm2",
)  # fmt: skip
WHOLE: dict[str, Any] = {"multiplier": 1.0, "lora_dim": RANK, "alpha": ALPHA}
# kind → LyCORIS' class and what it is made with.
KINDS: Mapping[str, tuple[Any, dict[str, Any]]] = {
    "LoRA, LoCon": (LoConModule, WHOLE),
    "LoCon, Tucker": (LoConModule, {**WHOLE, "use_tucker": True}),
    "LoCon, rsLoRA, scalar": (LoConModule, {**WHOLE, "rs_lora": True, "use_scalar": True}),
    "LoHa": (LohaModule, WHOLE),
    "LoHa, Tucker": (LohaModule, {**WHOLE, "use_tucker": True}),
    "LoKr": (LokrModule, {**WHOLE, "lora_dim": 2, "factor": 4}),
    "LoKr, both factored": (LokrModule, {**WHOLE, "lora_dim": 1, "decompose_both": True}),
    "LoKr, whole": (LokrModule, {**WHOLE, "full_matrix": True}),
    "LoKr, Tucker": (LokrModule, {**WHOLE, "lora_dim": 2, "factor": 4, "use_tucker": True}),
    "DoRA, by output": (LoConModule, {**WHOLE, "weight_decompose": True}),
    "DoRA, by input": (LoConModule, {**WHOLE, "weight_decompose": True, "wd_on_out": False}),
    "LoHa, DoRA": (LohaModule, {**WHOLE, "weight_decompose": True}),
    "LoKr, DoRA by input": (
        LokrModule, {**WHOLE, "lora_dim": 2, "factor": 4, "weight_decompose": True, "wd_on_out": False},
    ),
    "full": (FullModule, WHOLE),
    "norms": (NormModule, {"multiplier": 1.0}),
    "(IA)³, outputs": (IA3Module, WHOLE),
    "(IA)³, inputs": (IA3Module, {**WHOLE, "train_on_input": True}),
    "GLoRA": (GLoRAModule, WHOLE),
    "OFT": (DiagOFTModule, {**WHOLE, "constraint": 0.0}),
    "OFT, constrained, rescaled": (DiagOFTModule, {**WHOLE, "constraint": 0.004, "rescaled": True}),
    "BOFT": (ButterflyOFTModule, {**WHOLE, "constraint": 0.0, "rescaled": True}),
}  # fmt: skip


def unets() -> dict[str, UNet2DConditionModel]:
    """Random ones of both architectures."""
    torch.manual_seed(0)
    down, cross = "DownBlock2D", "CrossAttnDownBlock2D"
    both: dict[str, Any] = {
        "block_out_channels": (32, 64), "layers_per_block": 1, "sample_size": 8, "norm_num_groups": 8,
        "down_block_types": (down, cross), "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": 8, "cross_attention_dim": 48,
    }  # fmt: skip
    sdxl = {
        "use_linear_projection": True, "addition_embed_type": "text_time", "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 72, "transformer_layers_per_block": (1, 2),
    }  # fmt: skip
    return {"SDXL": UNet2DConditionModel(**both, **sdxl), "SD": UNet2DConditionModel(**both)}


def adapters(unet: nn.Module, kind: str) -> Iterator[tuple[str, Any]]:
    """Layer → LyCORIS' module around it, its numbers drawn."""
    made, options = KINDS[kind]
    torch.manual_seed(1)
    for layer in NORMS if made is NormModule else LAYERS:
        try:
            adapter = made(layer, unet.get_submodule(layer), **options)
        except ValueError:  # BOFT has none for a layer of such width
            continue
        with torch.no_grad():
            for name, value in adapter.named_parameters():
                drawn = 0.3 * torch.randn_like(value)
                value.copy_(value.abs() * (1 + drawn) if name in ("dora_scale", "rescale") else drawn)
        yield layer, adapter


def written(adapter: Any) -> Weights:
    """What LyCORIS saves of it, by role; of whole weights it takes a difference to the trained ones."""
    if isinstance(adapter, FullModule):
        named = {"diff": adapter.weight, "diff_b": adapter.bias}
        return {role: tensor.detach() for role, tensor in named.items() if tensor is not None}
    return {role: tensor.detach().contiguous() for role, tensor in adapter.state_dict().items()}


def merged(adapter: Any, share: float) -> tuple[Tensor, Tensor | None]:
    """LyCORIS' weight and bias; `get_weight`, as its forward has it: its own merging scales those twice."""
    if isinstance(adapter, LohaModule | LokrModule | LoConModule):
        layer = adapter.org_module[0].weight
        if isinstance(adapter, LoConModule):
            change = adapter.get_diff_weight(1.0, shape=layer.shape)[0]
        else:
            change = adapter.get_weight(layer.shape) * adapter.scalar
        one = adapter.apply_weight_decompose(layer + change, 1.0) if adapter.wd else layer + change
        return layer + share * (one - layer), None
    weight, bias = adapter.get_merged_weight(share)
    return weight, bias


# --- names


def in_kohya(layer: str) -> str:
    """kohya's SDXL names, and LyCORIS' under its scripts."""
    return "lora_unet_" + in_original(layer).replace(".", "_")


def in_diffusers(layer: str) -> str:
    return f"unet.{layer}"


def in_onetrainer(layer: str) -> str:
    return f"unet.{in_original(layer)}"


def in_comfyui(layer: str) -> str:
    return f"diffusion_model.{in_original(layer)}"


def in_lycoris(layer: str) -> str:
    return "lycoris_" + layer.replace(".", "_")


# (IA)³'s tensors are called `weight`: only after such a prefix are they told from a network's own.
LAYOUTS: Mapping[str, Callable[[str], str]] = {
    "kohya": in_kohya, "diffusers": in_diffusers, "OneTrainer": in_onetrainer, "ComfyUI": in_comfyui,
    "LyCORIS": in_lycoris, "OneTrainer, older": lambda layer: "lora_unet_" + layer.replace(".", "_"),
}  # fmt: skip
_PEFT = {"lora_up.weight": "lora_B.weight", "lora_down.weight": "lora_A.weight"}


def file_of(unet: nn.Module, kind: str, layout: str) -> tuple[Weights, dict[str, Any]]:
    """A file's tensors, and LyCORIS' modules by layer."""
    tensors, modules = dict[str, Tensor](), dict(adapters(unet, kind))
    for layer, adapter in modules.items():
        for role, tensor in written(adapter).items():
            name = _PEFT.get(role, role) if layout == "diffusers" else role
            if layout.startswith("OneTrainer") and role.startswith("hada_w") and tensor.ndim == 2:
                tensor = as_onetrainer(adapter, role, tensor)
            tensors[f"{LAYOUTS[layout](layer)}.{name}"] = tensor
    return tensors, modules


def as_onetrainer(adapter: Any, role: str, tensor: Tensor) -> Tensor:
    """OneTrainer's LoHa has a convolution's factors with four sides."""
    if adapter.module_type != "conv2d" or adapter.tucker:
        return tensor
    kernel = adapter.shape[2:] if role.endswith("_b") else (1, 1)
    return tensor.reshape(len(tensor), -1, *kernel)


_names: dict[str, str] = {}


def in_original(layer: str) -> str:
    if not _names:
        for unet in unets().values():
            ends = {name: value for name, value in unet.state_dict().items() if name.endswith(".weight")}
            pairs = zip(ends, unet_names(ends), strict=True)
            _names.update({a.removesuffix(".weight"): b.removesuffix(".weight") for a, b in pairs})
    return _names[layer]
