"""Guided latent consistency distillation (Luo et al. 2023, arXiv:2310.04378, algorithm 1).

The student learns to answer, from any level of the teacher's guided path, with the end of that path.
A whole student is told the guidance w by an embedding; a LoRA (arXiv:2311.05556) is not, and learns
one range of it. The target network is the running average of the student.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from fewstep.denoiser import Network, guidance_embedding
from fewstep.noise_process import sigma_of
from fewstep.runtimes.eager import eager_network
from fewstep.samplers import Denoise
from fewstep.train import lora
from fewstep.train.loop import Draw, Hyper, Learning
from fewstep.train.source import Source, Teacher, add_noise, level_column

HYPER = Hyper(steps=700, batch=96, rate=5e-4, warmup=50, ema=0.95, weight_decay=0.0, muon=True)
LORA_HYPER = Hyper(steps=350, batch=96, rate=1.5e-3, warmup=50, ema=0.95, weight_decay=0.0)
RANK = 6
LEVELS = range(19, 1000, 20)  # the 50 levels of the solver
SKIP = 20  # training steps between a level and its target (the paper's k)
GUIDANCE = (1.0, 6.0)  # range of 1 + w
LORA_GUIDANCE = (3.0, 3.0)
GUIDANCE_WIDTH = 64
SIGMA_DATA = 0.5


def boundary(timestep: int) -> tuple[float, float]:
    """(c_skip, c_out), the identity at t = 0 (ibid., app. C; timestep scaling 10)."""
    scaled = 10 * timestep
    below = scaled**2 + SIGMA_DATA**2
    return SIGMA_DATA**2 / below, scaled / math.sqrt(below)


def ddim_step(x: Tensor, x0: Tensor, sigma: Tensor, target: Tensor) -> Tensor:
    """One deterministic step towards `target` (Song et al. 2021, arXiv:2010.02502, eq. 12, eta 0)."""
    return x0 + target / sigma * (x - x0)


def pseudo_huber(a: Tensor, b: Tensor, c: float = 1e-3) -> Tensor:
    """sqrt((a - b)^2 + c^2) - c, averaged (Song & Dhariwal 2023, arXiv:2310.14189, sec. 3.3)."""
    return ((a - b).square() + c**2).sqrt().mean() - c


def consistency_function(denoise: Denoise, x: Tensor, timesteps: list[int]) -> Tensor:
    """f(x, t): the predicted end of the path that x lies on (arXiv:2310.04378, eq. 9)."""
    sigmas = [sigma_of(t) for t in timesteps]
    skip, out = (level_column(c, x) for c in zip(*map(boundary, timesteps), strict=True))
    shrink = level_column([1 / math.hypot(1, s) for s in sigmas], x)
    return skip * shrink * x + out * denoise(x, sigmas)


def student_of(teacher: UNet2DConditionModel, width: int) -> UNet2DConditionModel:
    """The teacher with an embedding for guidance that starts at zero."""
    student: UNet2DConditionModel = UNet2DConditionModel.from_config(
        {**teacher.config, "time_cond_proj_dim": width}
    )
    student.set_attn_processor(copy.copy(next(iter(teacher.attn_processors.values()))))
    missing, surplus = student.load_state_dict(teacher.state_dict(), strict=False)
    assert missing == ["time_embedding.cond_proj.weight"]
    assert not surplus
    nn.init.zeros_(student.get_parameter(missing[0]))
    return student.to(teacher.device)


@torch.no_grad()
def with_fixed_guidance(student: UNet2DConditionModel, guidance: float) -> UNet2DConditionModel:
    """A whole student at one guidance for good: a UNet of the teacher's shape, without the embedding.

    The embedding is added before a linear layer, so that a constant one goes into its bias.
    """
    width = student.config.time_cond_proj_dim
    plain: UNet2DConditionModel = UNet2DConditionModel.from_config(
        {**student.config, "time_cond_proj_dim": None}
    )
    plain.set_attn_processor(copy.copy(next(iter(student.attn_processors.values()))))
    weights = student.state_dict()
    projection = weights.pop("time_embedding.cond_proj.weight")
    w = torch.tensor([guidance - 1], dtype=torch.float32, device="cpu")
    constant = projection @ guidance_embedding(w, width)[0].to(projection)
    weights["time_embedding.linear_1.bias"] = (
        weights["time_embedding.linear_1.bias"] + weights["time_embedding.linear_1.weight"] @ constant
    )
    plain.load_state_dict(weights)
    return plain.to(student.device)


@dataclass(frozen=True, kw_only=True)
class LcmTask:
    """Distil a teacher on the latents it was trained on."""

    source: Source
    teacher: Teacher
    batch: int
    guidance: tuple[float, float]  # range of 1 + w
    width: int  # of the embedding of w; 0 is none
    modules: Mapping[str, Learning]
    averages: Mapping[str, Learning]
    student: Network
    target: Network  # the average
    teacher_network: Network  # the teacher

    def loss(self, draw: Draw) -> Tensor:
        """Algorithm 1, lines 5 to 10."""
        real, prompts = self.source.batch(self.batch, draw, 0)
        real = real.to(self.teacher.device)
        condition = self.teacher.read(prompts, self.source.size)
        start = [draw.python.choice(LEVELS) for _ in prompts]
        target = [max(0, t - SKIP) for t in start]
        guidance = [draw.python.uniform(*self.guidance) for _ in prompts]
        high, low = ([sigma_of(t) for t in ts] for ts in (start, target))

        noisy = add_noise(real, high, draw)
        embedding = self._embedded(guidance, real)
        answer = consistency_function(self.teacher.denoiser(condition, self.student, embedding), noisy, start)
        with torch.no_grad():
            guided = self.teacher.guided(condition, self.source.size, guidance, self.teacher_network)
            less_noisy = ddim_step(
                noisy, guided(noisy, high), level_column(high, real), level_column(low, real)
            )
            aim = consistency_function(
                self.teacher.denoiser(condition, self.target, embedding), less_noisy, target
            )
        return pseudo_huber(answer, aim)

    def _embedded(self, guidance: list[float], latents: Tensor) -> Tensor | None:
        if not self.width:
            return None
        w = torch.tensor(guidance, dtype=torch.float32, device=latents.device) - 1
        return guidance_embedding(w, self.width)


def lcm_task(
    source: Source,
    teacher: Teacher,
    batch: int,
    *,
    width: int = GUIDANCE_WIDTH,
    guidance: tuple[float, float] = GUIDANCE,
    compiled: bool = False,
) -> LcmTask:
    """A student of its own, guidance embedded."""
    student = student_of(teacher.unet.requires_grad_(False), width)
    average = copy.deepcopy(student)
    unets = (student, average, teacher.unet)
    calls = [eager_network(torch.compile(unet) if compiled else unet) for unet in unets]
    return LcmTask(
        source=source, teacher=teacher, batch=batch, guidance=guidance, width=width,
        modules={"unet": student}, averages={"unet": average},
        student=calls[0], target=calls[1], teacher_network=calls[2],
    )  # fmt: skip


def lcm_lora_task(
    source: Source,
    teacher: Teacher,
    batch: int,
    *,
    rank: int = RANK,
    guidance: tuple[float, float] = LORA_GUIDANCE,
) -> LcmTask:
    """An adapter on the teacher itself, which is all that learns."""
    factors = lora.add_factors(teacher.unet, rank, lora.ALL_TARGETS)
    average = factors.copy()
    smoothed = lora.with_factors(teacher.unet, dict(average.named_parameters()))
    return LcmTask(
        source=source, teacher=teacher, batch=batch, guidance=guidance, width=0,
        modules={"lora": factors}, averages={"lora": average},
        student=eager_network(teacher.unet), target=smoothed,
        teacher_network=lora.with_factors(teacher.unet, factors.off()),
    )  # fmt: skip
