"""Models of the real size with random weights, as diffusers folders: speed and memory ask for no other.

Weights are drawn as torch starts layers, so that numbers stay finite through all of them, in bf16,
which every arm casts as it loads.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.loading.build import TEXT_PREFIX
from fewstep.loading.tokenizers import clip_tokenizer

# stabilityai/stable-diffusion-xl-base-1.0: unet, vae, text_encoder and text_encoder_2, config.json.
SDXL_UNET: dict[str, Any] = {
    "sample_size": 128, "in_channels": 4, "out_channels": 4, "layers_per_block": 2,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [320, 640, 1280], "transformer_layers_per_block": [1, 2, 10],
    "attention_head_dim": [5, 10, 20], "cross_attention_dim": 2048, "use_linear_projection": True,
    "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip
VAE: dict[str, Any] = {
    "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "latent_channels": 4,
    "sample_size": 1024, "scaling_factor": 0.13025,
}  # fmt: skip
TINY_VAE: dict[str, Any] = {"scaling_factor": 1.0}  # madebyollin/taesdxl: diffusers' defaults are its
CLIP_L: dict[str, Any] = {
    "vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "projection_dim": 768, "hidden_act": "quick_gelu",
}  # fmt: skip
BIG_G: dict[str, Any] = {
    "vocab_size": 49408, "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32,
    "num_attention_heads": 20, "projection_dim": 1280, "hidden_act": "gelu",
}  # fmt: skip
# SimianLuo/LCM_Dreamshaper_v7: SD 1.5 whose UNet has LCM's guidance embedding.
SD15_UNET: dict[str, Any] = {
    "sample_size": 64, "in_channels": 4, "out_channels": 4, "layers_per_block": 2,
    "down_block_types": [*["CrossAttnDownBlock2D"] * 3, "DownBlock2D"],
    "up_block_types": ["UpBlock2D", *["CrossAttnUpBlock2D"] * 3],
    "block_out_channels": [320, 640, 1280, 1280], "attention_head_dim": 8, "cross_attention_dim": 768,
    "time_cond_proj_dim": 256,
}  # fmt: skip
_IDS = {"bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 1}
_SCHEDULER = {  # of both
    "_class_name": "EulerDiscreteScheduler", "beta_start": 0.00085, "beta_end": 0.012,
    "beta_schedule": "scaled_linear", "num_train_timesteps": 1000, "timestep_spacing": "leading",
    "steps_offset": 1, "prediction_type": "epsilon", "interpolation_type": "linear",
    "use_karras_sigmas": False,
}  # fmt: skip
_TINY_FOLDER = "vae_tiny"
SHARD = 1400  # tensors in a file: SDXL's UNet is in two, with an index

# name → (the pipeline's class, the networks by folder: class and configuration)
MODELS: Mapping[str, tuple[str, Mapping[str, tuple[str, Mapping[str, Any]]]]] = {
    "random-sdxl": ("StableDiffusionXLPipeline", {
        "vae": ("AutoencoderKL", VAE), _TINY_FOLDER: ("AutoencoderTiny", TINY_VAE),
        "text_encoder": ("CLIPTextModel", CLIP_L | _IDS),
        "text_encoder_2": ("CLIPTextModelWithProjection", BIG_G | _IDS),
        "unet": ("UNet2DConditionModel", SDXL_UNET),
    }),
    "random-sd15": ("StableDiffusionPipeline", {
        "vae": ("AutoencoderKL", VAE | {"sample_size": 512, "scaling_factor": 0.18215}),
        _TINY_FOLDER: ("AutoencoderTiny", TINY_VAE),
        "text_encoder": ("CLIPTextModel", CLIP_L | _IDS),
        "unet": ("UNet2DConditionModel", SD15_UNET),
    }),
}  # fmt: skip


def write_model(name: str, folder: Path, seed: int = 0) -> Path:
    """Return the folder of one of `MODELS`, written where it is not there: 7 GB of SDXL, 2 GB of SD 1.5."""
    if (folder / "model_index.json").is_file():  # written last
        return folder
    pipeline, networks = MODELS[name]
    torch.manual_seed(seed)
    for part, (kind, config) in networks.items():
        _write_network(folder / part, kind, config)
    encoders = [part for part in networks if part.startswith("text_encoder")]
    for index, part in enumerate(encoders):
        # SDXL's second tokenizer fills up with "!", all others with the end sign.
        clip_tokenizer(pads_with_end=index == 0).save_pretrained(
            folder / part.replace("text_encoder", "tokenizer")
        )
    (folder / "scheduler").mkdir(exist_ok=True)
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(_SCHEDULER))
    (folder / "model_index.json").write_text(json.dumps(_model_index(pipeline, networks)))
    return folder


def _model_index(pipeline: str, networks: Mapping[str, tuple[str, Any]]) -> dict[str, Any]:
    """Return what diffusers reads first of a folder."""
    index: dict[str, Any] = {"_class_name": pipeline, "scheduler": ["diffusers", "EulerDiscreteScheduler"]}
    for part, (kind, _) in networks.items():
        if part == _TINY_FOLDER:
            continue
        index[part] = ["transformers" if kind.startswith("CLIP") else "diffusers", kind]
        if part.startswith("text_encoder"):
            index[part.replace("text_encoder", "tokenizer")] = ["transformers", "CLIPTokenizer"]
    if pipeline == "StableDiffusionXLPipeline":
        return {**index, "force_zeros_for_empty_prompt": True}
    return {**index, "safety_checker": [None, None], "feature_extractor": [None, None]}


def _write_network(folder: Path, kind: str, config: Mapping[str, Any]) -> None:
    """Write one network's configuration and weights."""
    folder.mkdir(parents=True, exist_ok=True)
    text = kind.startswith("CLIP")
    described = {"architectures": [kind], "model_type": "clip_text_model"} if text else {"_class_name": kind}
    (folder / "config.json").write_text(json.dumps({**described, **config}))
    with torch.device("meta"):
        shapes = {name: weight.shape for name, weight in _builder(kind, config)().named_parameters()}
    if kind == "CLIPTextModel":  # by the long names, which files have; transformers 5 has left the prefix out
        shapes = {TEXT_PREFIX + name.removeprefix(TEXT_PREFIX): shape for name, shape in shapes.items()}
    _write_shards(folder, "model" if text else "diffusion_pytorch_model", shapes)


def _builder(kind: str, config: Mapping[str, Any]) -> Callable[[], nn.Module]:
    import diffusers
    import transformers

    if kind.startswith("CLIP"):
        return lambda: getattr(transformers, kind)(transformers.CLIPTextConfig(**config))
    return lambda: getattr(diffusers, kind).from_config(dict(config))


def _write_shards(folder: Path, stem: str, shapes: Mapping[str, torch.Size]) -> None:
    """Write a network in files of at most `SHARD` tensors, with an index where there are several."""
    from safetensors.torch import save_file

    names = list(shapes)
    parts = [names[start : start + SHARD] for start in range(0, len(names), SHARD)]
    files = [f"{stem}-{i + 1:05}-of-{len(parts):05}.safetensors" for i in range(len(parts))]
    files = files if len(parts) > 1 else [f"{stem}.safetensors"]
    for file, part in zip(files, parts, strict=True):
        save_file({name: _draw_weight(name, shapes[name]) for name in part}, folder / file, {"format": "pt"})
    if len(parts) > 1:
        places = {name: file for file, part in zip(files, parts, strict=True) for name in part}
        index = {"metadata": {}, "weight_map": places}
        (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index))


def _draw_weight(name: str, shape: torch.Size) -> Tensor:
    """Return a weight as torch starts layers."""
    if len(shape) == 1:
        weight = torch.zeros(shape) if name.endswith("bias") else torch.ones(shape)
        return weight.bfloat16()
    reach = 1 / math.sqrt(math.prod(shape[1:]))
    return torch.empty(shape, dtype=torch.bfloat16).uniform_(-reach, reach)
