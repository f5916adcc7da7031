"""A LoRA that learns (Hu et al. 2021, arXiv:2106.09685): PEFT's layers on a UNet that stays as it is.

One UNet serves as student, running average and teacher: the three differ in the small matrices alone,
which are put in for a call. A distillation of SDXL so holds 5 GB of UNet, not 15.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.func import functional_call

from fewstep.denoiser import Network
from fewstep.noise_process import SDXL_SIGMAS
from fewstep.runtimes.eager import eager_network
from fewstep.train.base import EMPTY, denoising_loss
from fewstep.train.loop import Draw, Hyper, Learning
from fewstep.train.source import Source, Teacher

# Attention alone is enough for a style; what is to answer in few steps changes everywhere
# (Luo et al. 2023, arXiv:2311.05556; these are the layers of lcm-lora-sdxl).
ATTENTION_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
ALL_TARGETS = (
    *ATTENTION_TARGETS, "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "conv1", "conv2", "conv_shortcut",
    "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj",
)  # fmt: skip


class LoraFactors:
    """The matrices of an adapter, apart from the UNet that they are for."""

    def __init__(self, parameters: dict[str, nn.Parameter]):
        self._parameters: dict[str, nn.Parameter] = parameters

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        yield from self._parameters.items()

    def copy(self) -> LoraFactors:
        """Return the same numbers, to go another way from here."""
        twins = {key: nn.Parameter(p.detach().clone()) for key, p in self.named_parameters()}
        return LoraFactors(twins)

    def off(self) -> dict[str, Tensor]:
        """Return what to put in their place for the UNet to be as it was: every second factor zero."""
        return {key: torch.zeros_like(p) for key, p in self.named_parameters() if "lora_B" in key}


def add_factors(unet: UNet2DConditionModel, rank: int, targets: tuple[str, ...]) -> LoraFactors:
    """Add an adapter of this rank, which changes nothing yet; it alone learns. Alpha is the rank."""
    unet.requires_grad_(False)
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=list(targets)))
    learning = {key: p for key, p in unet.named_parameters() if "lora_" in key}
    for p in learning.values():
        p.data = p.data.float()  # bf16 would lose most of a small step
    return LoraFactors(learning)


def with_factors(unet: UNet2DConditionModel, tensors: dict[str, Tensor]) -> Network:
    """Return the UNet with these in the place of its own."""
    return eager_network(lambda *args, **kwargs: functional_call(unet, tensors, args, kwargs))


def save_lora(unet: UNet2DConditionModel, factors: LoraFactors, folder: Path) -> None:
    """Write `pytorch_lora_weights.safetensors`, fp16, in the layout that diffusers reads."""
    folder.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        for key, p in factors.named_parameters():
            unet.get_parameter(key).copy_(p)
    weights = get_peft_model_state_dict(unet)
    halves = {f"unet.{key}": p.half().cpu().contiguous() for key, p in weights.items()}
    save_file(halves, folder / "pytorch_lora_weights.safetensors", metadata={"format": "pt"})


STYLE_HYPER = Hyper(steps=500, batch=64, rate=2e-3, warmup=50, ema=0.99, weight_decay=0.0)
STYLE_RANK = 4


@dataclass(frozen=True, kw_only=True)
class StyleTask:
    """`base.BaseTask` with an adapter for what learns."""

    source: Source
    teacher: Teacher
    batch: int
    modules: Mapping[str, Learning]
    averages: Mapping[str, Learning]
    unet: Network

    def loss(self, draw: Draw) -> Tensor:
        real, prompts = self.source.batch(self.batch, draw, EMPTY)
        real = real.to(self.teacher.device)
        sigmas = [SDXL_SIGMAS[draw.python.randrange(len(SDXL_SIGMAS))] for _ in prompts]
        condition = self.teacher.read(prompts, self.source.size)
        denoise = self.teacher.denoiser(condition, self.unet)
        return denoising_loss(denoise, real, sigmas, draw, self.teacher.process)


def style_task(source: Source, teacher: Teacher, batch: int, *, rank: int = STYLE_RANK) -> StyleTask:
    """An adapter on the model's attention."""
    factors = add_factors(teacher.unet, rank, ATTENTION_TARGETS)
    return StyleTask(
        source=source, teacher=teacher, batch=batch, modules={"lora": factors},
        averages={"lora": factors.copy()}, unet=eager_network(teacher.unet),
    )  # fmt: skip
