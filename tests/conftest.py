"""Models of SDXL's shape, tiny and random, in the folders that diffusers writes.

Networks as PyTorch starts them hardly look at their inputs. Some weights are enlarged here
until prompt, timestep and guidance each change the answer; tests/test_parity.py checks it.
"""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from peft import LoraConfig, get_peft_model_state_dict
from PIL import Image
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

import fewstep
from fewstep import Engine, api
from fewstep.budget import CostStore
from fewstep.train.bundled import vocabulary
from fewstep.train.bundled.data import Caption

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # each worker has a core of its own


def pytest_collection_finish() -> None:
    """What is imported stays: without it in the way, each of many garbage collections takes a tenth."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def costs_in_memory() -> None:
    """Nothing that is measured in a test is kept among the user's files."""
    api._engines._costs = CostStore()


SIDE = 96  # pixels: the size "trained at"
WIDTHS = (32, 48)  # of the two text encoders
CAPTIONS = [
    Caption(label="red fox face", style="3d", tags=("fox", "red", "animal"), hexcode="1"),
    Caption(label="blue owl in the snow", style="flat", tags=("owl", "snow", "bird"), hexcode="2"),
    Caption(label="yellow sun with rays", style="noto", tags=("sun", "bright"), hexcode="3"),
]
# SDXL base's scheduler_config.json.
SCHEDULER = {
    "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000,
    "timestep_spacing": "leading", "steps_offset": 1, "prediction_type": "epsilon",
    "interpolation_type": "linear", "use_karras_sigmas": False,
}  # fmt: skip
GAINS = {  # by the end of a weight's name
    "attn2.to_out.0.weight": 3.0,
    "time_embedding.linear_2.weight": 4.0,
    "time_embedding.cond_proj.weight": 4.0,
    "add_embedding.linear_2.weight": 8.0,
    "conv_out.weight": 2.0,
}


@pytest.fixture(scope="session")
def sdxl_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole model without guidance embedding: serves base, turbo and lcm-lora."""
    folder = tmp_path_factory.mktemp("sdxl")
    torch.manual_seed(0)
    words = tmp_path_factory.mktemp("vocabulary")
    vocabulary.build_tokenizer(CAPTIONS, words)
    first, second = (CLIPTokenizer.from_pretrained(words, pad_token=sign) for sign in ("<|endoftext|>", "!"))
    StableDiffusionXLPipeline(
        vae=_vae(),
        text_encoder=CLIPTextModel(_clip(first, WIDTHS[0])),
        text_encoder_2=CLIPTextModelWithProjection(_clip(second, WIDTHS[1])),
        tokenizer=first,
        tokenizer_2=second,
        unet=_unet(None),
        scheduler=EulerDiscreteScheduler(**SCHEDULER),
        add_watermarker=False,
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def lcm_unet_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A UNet on its own, with guidance embedding, as latent-consistency/lcm-sdxl is published."""
    folder = tmp_path_factory.mktemp("lcm-unet")
    torch.manual_seed(1)
    _unet(32).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def lora_file(sdxl_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter for `sdxl_folder`'s UNet, in the diffusers layout."""
    folder = tmp_path_factory.mktemp("lora")
    torch.manual_seed(2)
    unet = UNet2DConditionModel.from_pretrained(sdxl_folder / "unet")
    targets = ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "conv1", "conv2", "time_emb_proj"]
    unet.add_adapter(LoraConfig(r=4, lora_alpha=4, target_modules=targets, init_lora_weights=False))
    StableDiffusionXLPipeline.save_lora_weights(folder, unet_lora_layers=get_peft_model_state_dict(unet))
    return folder / "pytorch_lora_weights.safetensors"


@pytest.fixture(scope="session")
def engine(sdxl_folder: Path, lcm_unet_folder: Path, lora_file: Path) -> Callable[..., Engine]:
    """`engine(mode, precision)`: a loaded one, shared by all tests, which must leave it as it was."""
    accelerators = {"lcm": lcm_unet_folder, "lcm-lora": lora_file}

    @cache
    def loaded(mode: str, precision: str = "fp32") -> Engine:
        accelerator = accelerators.get(mode, "")
        return fewstep.load(sdxl_folder, mode, accelerator=accelerator, device="cpu", precision=precision)

    return loaded


@pytest.fixture(scope="session")
def drawing() -> Image.Image:
    """A picture to start from, 96x96: ramps, with an edge in them."""
    red = Image.linear_gradient("L").resize((SIDE, SIDE))
    green = red.rotate(90)
    return Image.merge("RGB", (red, green, red.point(lambda value: 200 if value > 128 else 40)))


@pytest.fixture
def copy(sdxl_folder: Path, tmp_path: Path) -> Path:
    """A model that a test may break."""
    return Path(shutil.copytree(sdxl_folder, tmp_path / "copy"))


@pytest.fixture
def lcm_folder(copy: Path, lcm_unet_folder: Path) -> Path:
    """A whole model whose own UNet is an LCM's."""
    shutil.copytree(lcm_unet_folder, copy / "unet", dirs_exist_ok=True)
    return copy


def _unet(guidance_width: int | None) -> Any:
    """SDXL's blocks, with channels by tens instead of hundreds."""
    unet = UNet2DConditionModel(
        sample_size=SIDE // 8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(32, 64, 64),
        layers_per_block=1,
        transformer_layers_per_block=(1, 1, 1),
        attention_head_dim=(2, 4, 4),
        norm_num_groups=16,
        cross_attention_dim=sum(WIDTHS),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=WIDTHS[1] + 6 * 8,
        time_cond_proj_dim=guidance_width,
    )
    _enlarge(unet, GAINS)
    return unet


def _vae() -> Any:
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(8, 8, 16, 16),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=SIDE,
        scaling_factor=0.13025,
    )
    _enlarge(vae, {"decoder.conv_out.weight": 1.5})
    return vae


def _clip(tokenizer: Any, width: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        projection_dim=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_factor=3.0,
    )


def _enlarge(module: nn.Module, gains: Mapping[str, float]) -> None:
    with torch.no_grad():
        for name, weight in module.named_parameters():
            weight.mul_(next((gain for end, gain in gains.items() if name.endswith(end)), 1.0))
