"""The undistilled model: two text encoders and a UNet, trained together from nothing.

Plain diffusion training through the very `Denoiser` that samples, v-prediction
(Salimans & Ho 2022, arXiv:2202.00512): with epsilon at t = 999 errors are multiplied by 15.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from fewstep.architectures.text import TextEncoder
from fewstep.denoiser import Denoiser
from fewstep.noise_process import SDXL_SIGMAS, NoiseProcess, VariancePreserving
from fewstep.runtimes.eager import eager_network
from fewstep.samplers import Denoise
from fewstep.train.bundled.data import PICTURE_SIZE
from fewstep.train.loop import Draw, Hyper
from fewstep.train.source import Source, add_noise, level_column

HYPER = Hyper(steps=9200, batch=128, rate=1.5e-3, ema=0.999, muon=True)
EMPTY = 0.1  # of prompts, so that classifier-free guidance has something to compare with
PROCESS = VariancePreserving("v_prediction")  # of the bundled model
NETWORKS = ("unet", "text_encoder", "text_encoder_2")
WIDTHS = (64, 128)  # of the two text encoders


def build_unet(guidance_width: int | None = None) -> UNet2DConditionModel:
    """5.8 M parameters in SDXL's architecture; `guidance_width` adds LCM's embedding."""
    unet = UNet2DConditionModel(
        sample_size=PICTURE_SIZE // 8,
        block_out_channels=(64, 96, 128),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        transformer_layers_per_block=(1, 1, 1),
        attention_head_dim=(2, 3, 4),  # heads: diffusers' name for their number
        cross_attention_dim=sum(WIDTHS),
        norm_num_groups=16,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=WIDTHS[1] + 6 * 32,
        time_cond_proj_dim=guidance_width,
    )
    # Explicit softmax: the backward pass of the fused kernel is a third of a step on a CPU.
    unet.set_attn_processor(AttnProcessor())
    return unet


def build_text(tokenizer: Any) -> TextEncoder:
    """Two small CLIP text encoders over one vocabulary; 0.9 M parameters."""
    first = CLIPTextModel(_text_config(WIDTHS[0], tokenizer))
    second = CLIPTextModelWithProjection(_text_config(WIDTHS[1], tokenizer))
    return TextEncoder((tokenizer, tokenizer), (first, second), zero_empty=False)


def _text_config(width: int, tokenizer: Any) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=WIDTHS[1],
        num_hidden_layers=2,
        num_attention_heads=width // 32,
        max_position_embeddings=77,
        hidden_act="gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        attn_implementation="eager",  # type: ignore[call-arg]
    )


def prediction_loss(x0: Tensor, real: Tensor, sigmas: list[float], process: NoiseProcess) -> Tensor:
    """Mean squared error of the prediction that x0 stands for: of v, ibid., eq. 9 and app. D."""
    scale = level_column([process.x0_weights(s)[1] ** 2 for s in sigmas], x0)
    return ((x0 - real).square() / scale).mean()


class BaseTask:
    """Denoise the latents of captioned pictures at random levels."""

    def __init__(
        self,
        source: Source,
        unet: UNet2DConditionModel,
        text: TextEncoder,
        batch: int,
        *,
        process: NoiseProcess = PROCESS,
        compiled: bool = False,
    ):
        """Prepare to train what asks for gradients, of the UNet and of the text encoders."""
        self.source, self.batch, self.text, self._process = source, batch, text, process
        networks: dict[str, Any] = dict(zip(NETWORKS, (unet, *text.encoders), strict=True))
        self.modules: dict[str, nn.Module] = {name: net for name, net in networks.items() if _learns(net)}
        self.averages: dict[str, nn.Module] = copy.deepcopy(self.modules)
        self._call = eager_network(torch.compile(unet) if compiled else unet)

    def loss(self, draw: Draw) -> Tensor:
        real, prompts = self.source.batch(self.batch, draw, EMPTY)
        condition = self.text.batch(prompts, self.source.size)
        real = real.to(condition.tokens.device)
        sigmas = [SDXL_SIGMAS[draw.python.randrange(len(SDXL_SIGMAS))] for _ in range(self.batch)]
        denoise = Denoiser(self._call, condition, process=self._process)
        return denoising_loss(denoise, real, sigmas, draw, self._process)


def _learns(network: nn.Module) -> bool:
    return any(p.requires_grad for p in network.parameters())


def denoising_loss(
    denoise: Denoise, real: Tensor, sigmas: list[float], draw: Draw, process: NoiseProcess
) -> Tensor:
    """The error at these levels of what `denoise` makes of `real` and noise."""
    return prediction_loss(denoise(add_noise(real, sigmas, draw), sigmas), real, sigmas, process)
