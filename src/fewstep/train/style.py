"""A style LoRA: plain denoising of pictures in a new style, by an adapter on a model that stays as it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from fewstep.denoiser import Unet
from fewstep.runtimes.eager import eager_unet
from fewstep.schedulers import TRAIN_SIGMAS
from fewstep.train import adapter
from fewstep.train.base import EMPTY, denoising_loss
from fewstep.train.loop import Draw, Hyper, Learning
from fewstep.train.source import Source, Teacher

HYPER = Hyper(steps=500, batch=64, rate=2e-3, warmup=50, ema=0.99, weight_decay=0.0)
RANK = 4


@dataclass(frozen=True, kw_only=True)
class StyleTask:
    """`base.BaseTask` with an adapter for what learns."""

    source: Source
    teacher: Teacher
    batch: int
    modules: Mapping[str, Learning]
    averages: Mapping[str, Learning]
    unet: Unet

    def loss(self, draw: Draw) -> Tensor:
        real, prompts = self.source.batch(self.batch, draw, EMPTY)
        real = real.to(self.teacher.device)
        sigmas = [TRAIN_SIGMAS[draw.python.randrange(len(TRAIN_SIGMAS))] for _ in prompts]
        condition = self.teacher.read(prompts, self.source.size)
        denoise = self.teacher.denoiser(condition, self.unet)
        return denoising_loss(denoise, real, sigmas, draw, self.teacher.prediction)


def task(source: Source, teacher: Teacher, batch: int, *, rank: int = RANK) -> StyleTask:
    """An adapter on the model's attention."""
    factors = adapter.put_on(teacher.unet, rank, adapter.ATTENTION)
    return StyleTask(
        source=source, teacher=teacher, batch=batch, modules={"lora": factors},
        averages={"lora": factors.copy()}, unet=eager_unet(teacher.unet),
    )  # fmt: skip
