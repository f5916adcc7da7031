"""ControlNets and IP-Adapters for the tests' SDXL, random, in the layouts that they are published in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from diffusers import ControlNetModel, ControlNetUnionModel, UNet2DConditionModel
from PIL import Image, ImageFilter
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from tests.conftest import WIDTHS

CONTEXT = sum(WIDTHS)
ENCODERS = {  # folder → hidden size and projection: the first stands for ViT-bigG, the other for ViT-H
    "sdxl_models/image_encoder": (48, 40),
    "models/image_encoder": (32, 24),
}
SUMMARY, PLUS = "ip-adapter_sdxl.safetensors", "ip-adapter-plus_sdxl_vit-h.safetensors"


@pytest.fixture(scope="session")
def nets(sdxl_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two ControlNets, as diffusers/controlnet-canny-sdxl-1.0 is published."""
    unet = UNet2DConditionModel.from_pretrained(sdxl_folder / "unet")
    folders = tuple(tmp_path_factory.mktemp("net") for _ in range(2))
    for seed, folder in enumerate(folders):
        torch.manual_seed(seed)
        net = ControlNetModel.from_unet(unet)
        _awaken(net)
        net.save_pretrained(folder)
    return folders[0], folders[1]


@pytest.fixture(scope="session")
def union(sdxl_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A union of ControlNets, as xinsir/controlnet-union-sdxl-1.0."""
    folder = tmp_path_factory.mktemp("union")
    torch.manual_seed(5)
    unet = UNet2DConditionModel.from_pretrained(sdxl_folder / "unet")
    config = ControlNetModel.from_unet(unet).config
    known = {name: value for name, value in config.items() if name not in ("mid_block_type",)}
    union = ControlNetUnionModel.from_config(
        {**known, "num_trans_channel": 32, "num_proj_channel": 32, "num_trans_head": 4}
    )
    _awaken(union)
    nn.init.normal_(union.spatial_ch_projs.weight, std=0.3)
    union.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def adapters(sdxl_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As h94/IP-Adapter is laid out: two adapters, each beside the encoder it reads, or not."""
    root = tmp_path_factory.mktemp("ip-adapter")
    for seed, (name, (hidden, summary)) in enumerate(ENCODERS.items()):
        torch.manual_seed(seed)
        config = CLIPVisionConfig(
            hidden_size=hidden, intermediate_size=64, projection_dim=summary, num_hidden_layers=2,
            num_attention_heads=4, image_size=32, patch_size=8, hidden_act="gelu", initializer_factor=3.0,
        )  # fmt: skip
        CLIPVisionModelWithProjection(config).save_pretrained(root / name)
    unet = UNet2DConditionModel.from_pretrained(sdxl_folder / "unet")
    draw = torch.Generator().manual_seed(9)
    first, second = ENCODERS.values()
    for name, projection in ((SUMMARY, summary_layout(first[1], draw)), (PLUS, plus_layout(second[0], draw))):
        save_file({**projection, **attention_layout(unet, draw)}, root / "sdxl_models" / name)
    return root


@pytest.fixture(scope="session")
def edges(drawing: Image.Image) -> Image.Image:
    """What a ControlNet might follow."""
    return drawing.filter(ImageFilter.FIND_EDGES)


@pytest.fixture(scope="session")
def cats() -> tuple[Image.Image, Image.Image]:
    """Pictures of any size, smooth and rough."""
    rough = torch.randint(0, 256, (50, 71, 3), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
    return Image.linear_gradient("L").resize((64, 40)).convert("RGB"), Image.fromarray(rough.numpy())


def summary_layout(width: int, draw: torch.Generator) -> dict[str, Tensor]:
    """IP-Adapter's own names for the projection of a summary to four tokens."""
    shapes = {"proj.weight": (4 * CONTEXT, width), "proj.bias": (4 * CONTEXT,), **_norm("norm")}
    return _drawn(shapes, draw)


def plus_layout(width: int, draw: torch.Generator, hidden: int = 24, tokens: int = 6) -> dict[str, Tensor]:
    """IP-Adapter Plus' own names for its resampler; 64 channels a head are fixed."""
    shapes: dict[str, tuple[int, ...]] = {
        "latents": (1, tokens, hidden),
        "proj_in.weight": (hidden, width), "proj_in.bias": (hidden,),
        "proj_out.weight": (CONTEXT, hidden), "proj_out.bias": (CONTEXT,), **_norm("norm_out"),
    }  # fmt: skip
    for n in range(4):
        attention, forward = f"layers.{n}.0", f"layers.{n}.1"
        shapes |= _norm(f"{attention}.norm1", hidden) | _norm(f"{attention}.norm2", hidden)
        shapes |= _norm(f"{forward}.0", hidden)
        shapes |= {
            f"{attention}.to_q.weight": (128, hidden), f"{attention}.to_kv.weight": (256, hidden),
            f"{attention}.to_out.weight": (hidden, 128),
            f"{forward}.1.weight": (4 * hidden, hidden), f"{forward}.3.weight": (hidden, 4 * hidden),
        }  # fmt: skip
    return _drawn(shapes, draw)


def attention_layout(unet: UNet2DConditionModel, draw: torch.Generator) -> dict[str, Tensor]:
    """Keys and values, numbered as `unet.attn_processors` are, self-attentions left out."""
    found = {}
    for number, name in enumerate(unet.attn_processors):
        if name.endswith("attn2.processor"):
            width = unet.get_submodule(name.removesuffix(".processor")).inner_dim
            for what, gain in (("k", 1.0), ("v", 3.0)):
                weight = gain * torch.randn((width, CONTEXT), generator=draw) / CONTEXT**0.5
                found[f"ip_adapter.{number}.to_{what}_ip.weight"] = weight
    return found


def _norm(name: str, width: int = CONTEXT) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _drawn(shapes: Mapping[str, tuple[int, ...]], draw: torch.Generator) -> dict[str, Tensor]:
    return {
        f"image_proj.{name}": torch.randn(shape, generator=draw) / (shape[-1] ** 0.5 if len(shape) > 1 else 3)
        for name, shape in shapes.items()
    }


def _awaken(net: ControlNetModel | ControlNetUnionModel) -> None:
    """A new ControlNet's last convolutions are zero: it would do nothing."""
    for block in (*net.controlnet_down_blocks, net.controlnet_mid_block):
        nn.init.normal_(block.weight, std=0.1)
    nn.init.normal_(net.controlnet_cond_embedding.conv_out.weight, std=0.3)
