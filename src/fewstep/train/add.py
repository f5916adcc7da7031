"""Adversarial diffusion distillation (Sauer et al. 2023, arXiv:2311.17042): one to four steps.

Deviations from the paper, whose DINOv2 and pixel losses would need another download:

- the discriminator looks at features of the frozen teacher, at latents with noise in them, as the
  latent variant does (arXiv:2403.12015); what it looks at can be replaced;
- its heads are told the prompt (c_text), not a picture (c_img);
- no gradient penalty: the noise in what the heads see keeps them from being certain;
- the distillation target is the teacher with classifier-free guidance;
- both players move at once, by the gradients of one sum, in which neither sees the other's weights;
- the student may start from an LCM, whose single step is better than the teacher's
  (`lcm.with_fixed_guidance`), and be held near to what that answers to the same noise, which keeps the
  pictures of several seeds apart
  (the regression loss of DMD, Yin et al. 2023, arXiv:2311.18828, sec. 3.3, against latents).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from torch import Tensor
from torch.func import functional_call

from fewstep.denoiser import Conditioning, Network
from fewstep.noise_process import SDXL_SIGMAS, TRAIN_STEPS
from fewstep.runtimes.eager import eager_network
from fewstep.train.discriminator import (
    Features,
    Heads,
    UnetFeatures,
    discriminator_loss,
    generator_loss,
)
from fewstep.train.loop import Draw, Hyper, Learning
from fewstep.train.source import Source, Teacher, add_noise, level_column

HYPER = Hyper(
    steps=400, batch=64, rate=2e-4, warmup=50, ema=0.98, weight_decay=0.0, paces={"heads": 5.0}
)  # fmt: skip
STARTS = (249, 499, 749, 999)  # the student's timesteps: four trailing ones (ibid., sec. 3.1)
GUIDANCE = 3.0  # of the teacher
DISTILLATION = 2.5  # lambda (ibid., sec. 4)
# Of the bundled student to its start: pictures of one prompt differ by 0.20, as the base's do; without, an
# earlier one's by 0.08 where its base's differed by 0.36.
HOLD = 2.0
ADVERSARY = 0.5  # the losses here are of latents, whose errors are smaller than those of pixels


def distillation_loss(answer: Tensor, aim: Tensor, sigmas: list[float]) -> Tensor:
    """c(t) |answer - aim|^2 with c(t) = alpha_t (ibid., eq. 5, exponential weighting)."""
    alpha = level_column([1 / math.hypot(1, s) for s in sigmas], answer)
    return (alpha * (answer - aim).square()).mean()


@dataclass(frozen=True, kw_only=True)
class AddTask:
    """A student that one teacher corrects, and heads judge."""

    source: Source
    teacher: Teacher
    batch: int
    modules: Mapping[str, Learning]
    averages: Mapping[str, Learning]
    student: Network
    teacher_network: Network  # the teacher
    first: Network  # the student as it began
    heads: Heads
    features: Features
    guidance: float = GUIDANCE
    hold: float = 0.0  # weight of what keeps the student near to how it began

    def loss(self, draw: Draw) -> Tensor:
        """Return the student's loss (ibid., eq. 1) and the heads', each blind to the other's weights."""
        real, prompts = self.source.batch(self.batch, draw, 0)
        real = real.to(self.teacher.device)
        condition = self.teacher.read(prompts, self.source.size)
        start = [SDXL_SIGMAS[draw.python.choice(STARTS)] for _ in prompts]
        noisy = add_noise(real, start, draw)
        answer = self.teacher.denoiser(condition, self.student)(noisy, start)

        levels = [SDXL_SIGMAS[_random_level(draw)] for _ in prompts]
        answer_features = self.features(add_noise(answer, levels, draw), levels, condition)
        with torch.no_grad():
            real_features = self.features(add_noise(real, levels, draw), levels, condition)
        fixed_heads = {key: p.detach() for key, p in self.heads.named_parameters()}
        answer_scores: Tensor = functional_call(
            self.heads, fixed_heads, (answer_features, condition.added["text_embeds"])
        )
        heads_loss = discriminator_loss(
            self.heads(real_features, condition.added["text_embeds"]),
            self.heads([m.detach() for m in answer_features], condition.added["text_embeds"]),
        )
        aim, sigmas = self._teacher_answer(answer.detach(), condition, draw)
        teacher_loss = distillation_loss(answer, aim, sigmas)
        loss = ADVERSARY * generator_loss(answer_scores) + DISTILLATION * teacher_loss + heads_loss
        if self.hold:
            with torch.no_grad():
                first_answer = self.teacher.denoiser(condition, self.first)(noisy, start)
            loss = loss + self.hold * F.mse_loss(answer, first_answer)
        return loss

    @torch.no_grad()
    def _teacher_answer(
        self, answer: Tensor, condition: Conditioning, draw: Draw
    ) -> tuple[Tensor, list[float]]:
        """What the teacher would make of the student's answer with noise in it, at any level."""
        sigmas = [SDXL_SIGMAS[draw.python.randrange(TRAIN_STEPS)] for _ in answer]
        guided = self.teacher.guided(
            condition, self.source.size, [self.guidance] * len(answer), self.teacher_network
        )
        return guided(add_noise(answer, sigmas, draw), sigmas), sigmas


def _random_level(draw: Draw) -> int:
    """A timestep, seldom near either end (arXiv:2403.12015, sec. 3.2: logit-normal)."""
    return int(TRAIN_STEPS / (1 + math.exp(-draw.python.gauss(0, 1))))


def add_task(
    source: Source,
    teacher: Teacher,
    start: UNet2DConditionModel,
    batch: int,
    *,
    features: Features | None = None,
    compiled: bool = False,
) -> AddTask:
    """A student that begins as `start`, which has the teacher's shape."""
    for network in (teacher.unet, start):
        network.requires_grad_(False)
    student = copy.deepcopy(start).requires_grad_(True)
    extractor = UnetFeatures(teacher.unet) if features is None else features
    reader: Any = teacher.text.encoders[1]
    heads = Heads(extractor.channels, reader.config.projection_dim).to(teacher.device)
    modules: dict[str, Learning] = {"unet": student, "heads": heads}
    unets = (student, teacher.unet, start)
    networks = [eager_network(torch.compile(unet) if compiled else unet) for unet in unets]
    return AddTask(
        source=source, teacher=teacher, batch=batch, modules=modules, averages=copy.deepcopy(modules),
        student=networks[0], teacher_network=networks[1], first=networks[2], heads=heads, features=extractor,
    )  # fmt: skip
