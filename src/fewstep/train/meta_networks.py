"""A model's networks on torch's meta device, from configurations alone: sizes, and no memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from fewstep.catalog import assets, hub
from fewstep.catalog.hub import existing_path
from fewstep.catalog.models import describe_model
from fewstep.catalog.vaes import SDXL_VAE
from fewstep.errors import RequestError
from fewstep.loading import folder, footprint, single_file
from fewstep.loading.build import Blueprint, network_config
from fewstep.train.config import TrainConfig

# unet/config.json of stabilityai/stable-diffusion-xl-base-1.0, where it has not diffusers' defaults.
UNET: MappingProxyType[str, Any] = MappingProxyType(
    {
        "sample_size": 128,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (320, 640, 1280), "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20), "cross_attention_dim": 2048, "use_linear_projection": True,
        "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    }
)  # fmt: skip
VAE: MappingProxyType[str, Any] = MappingProxyType(
    {
        "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "sample_size": 1024,
        "scaling_factor": SDXL_VAE["scaling_factor"],
    }
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class MetaNetworks:
    """Networks without memory, and numbers of parameters."""

    networks: Mapping[str, nn.Module]  # unet and vae
    unet: int
    vae: int
    decoder: int  # of these the VAE's decoder
    text: int  # of both encoders
    context: int  # width of what cross-attention reads
    pooled: int  # width of a prompt's summary


def build_meta_networks(config: TrainConfig) -> MetaNetworks:
    """Return the networks of a run's model. SDXL itself needs no files: its configuration is known."""
    described = describe_model(config.model)
    path = existing_path(described.source) or hub.cached_folder(
        described.source, assets.model_files(described.architecture), described.revision
    )
    if path is None and described.family != "sdxl":
        raise RequestError(
            f"model={config.model!r} is not on this machine: type fewstep models pull {config.model}"
        )
    blueprints = _sdxl_blueprints() if path is None else _read_blueprints(path)
    networks = {name: _meta_network(blueprint) for name, blueprint in blueprints.items()}
    autoencoder: Any = networks["vae"]
    unet, vae = _count_parameters(networks["unet"]), _count_parameters(autoencoder)
    unet_config: Any = networks["unet"].config
    size_ids = 6 * unet_config.addition_time_embed_dim
    return MetaNetworks(
        networks=networks,
        unet=unet,
        vae=vae,
        decoder=_count_parameters(autoencoder.decoder),
        text=footprint.measure_model(described).text,
        context=unet_config.cross_attention_dim,
        pooled=unet_config.projection_class_embeddings_input_dim - size_ids,
    )


def _count_parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def _sdxl_blueprints() -> dict[str, Blueprint]:
    return {
        "unet": Blueprint(kind="UNet2DConditionModel", config=UNET, weights={}, source="sdxl"),
        "vae": Blueprint(kind="AutoencoderKL", config=VAE, weights={}, source="sdxl"),
    }


def _read_blueprints(root: Path) -> dict[str, Blueprint]:
    """Return the blueprints in a folder's configurations, or of the shapes in a file's header."""
    parts = (folder.read_folder(root) if root.is_dir() else single_file.read_single_file(root)).parts
    defaults = _sdxl_blueprints()
    return {name: parts.get(name, defaults[name]) for name in defaults}


def _meta_network(blueprint: Blueprint) -> nn.Module:
    import diffusers

    with torch.device("meta"):
        network: nn.Module = getattr(diffusers, blueprint.kind)(**network_config(blueprint))
    return network.requires_grad_(False)
