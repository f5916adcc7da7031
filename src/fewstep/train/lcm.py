"""Guided latent consistency distillation (Luo et al. 2023, arXiv:2310.04378, algorithm 1).

The student learns to answer, from any level of the teacher's guided path, with the end
of that path; guidance w becomes an input of its UNet. The target network is the running
average of the student.
"""

from __future__ import annotations

import copy
import math

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from fewstep.conditioning import Conditioning
from fewstep.denoiser import Cfg, Denoiser, Unet, guidance_embedding
from fewstep.runtimes.eager import eager_unet
from fewstep.samplers import Denoise
from fewstep.schedulers import sigma_of
from fewstep.text import TextEncoder
from fewstep.train import augment
from fewstep.train.base import PREDICTION, build_unet
from fewstep.train.data import SIZE
from fewstep.train.latents import Latents
from fewstep.train.loop import Draw, Hyper

HYPER = Hyper(steps=900, batch=96, rate=4e-4, ema=0.95, weight_decay=0.0)
LEVELS = range(19, 1000, 20)  # the 50 levels of the solver
SKIP = 20  # training steps between a level and its target (the paper's k)
GUIDANCE = (1.0, 6.0)  # range of 1 + w
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


def consistency(denoise: Denoise, x: Tensor, timesteps: list[int]) -> Tensor:
    """f(x, t): the predicted end of the path that x lies on (arXiv:2310.04378, eq. 9)."""
    sigmas = [sigma_of(t) for t in timesteps]
    skip, out = (torch.tensor(c).view(-1, 1, 1, 1) for c in zip(*map(boundary, timesteps), strict=True))
    shrink = torch.tensor([1 / math.hypot(1, s) for s in sigmas]).view(-1, 1, 1, 1)
    return skip * shrink * x + out * denoise(x, sigmas)


def student_of(teacher: UNet2DConditionModel) -> UNet2DConditionModel:
    """The teacher with an embedding for guidance that starts at zero."""
    student = build_unet(GUIDANCE_WIDTH)
    missing, surplus = student.load_state_dict(teacher.state_dict(), strict=False)
    assert missing == ["time_embedding.cond_proj.weight"]
    assert not surplus
    nn.init.zeros_(student.get_parameter(missing[0]))
    return student


class LcmTask:
    """Distil `teacher` on the latents it was trained on."""

    def __init__(self, latents: Latents, teacher: UNet2DConditionModel, text: TextEncoder, batch: int):
        self.latents: Latents = latents
        self.text: TextEncoder = text
        self.batch: int = batch
        self._teacher = eager_unet(teacher.requires_grad_(False))
        student = student_of(teacher)
        self.modules: dict[str, nn.Module] = {"unet": student}
        self.averages: dict[str, nn.Module] = copy.deepcopy(self.modules)
        self._student, self._target = eager_unet(student), eager_unet(self.averages["unet"])

    def loss(self, draw: Draw) -> Tensor:
        real, rows = self.latents.batch(self.batch, draw.torch)
        prompts = [augment.prompt(caption, backdrop, draw.python, 0) for caption, backdrop in rows]
        with torch.no_grad():
            condition = self.text.batch(prompts, (SIZE, SIZE))
        start = [draw.python.choice(LEVELS) for _ in prompts]
        target = [max(0, t - SKIP) for t in start]
        guidance = [draw.python.uniform(*GUIDANCE) for _ in prompts]
        high, low = (torch.tensor([sigma_of(t) for t in ts]).view(-1, 1, 1, 1) for ts in (start, target))

        noisy = real + high * torch.randn(real.shape, generator=draw.torch)
        embedding = guidance_embedding(torch.tensor(guidance) - 1, GUIDANCE_WIDTH)
        made = consistency(self._denoise(self._student, condition, embedding), noisy, start)
        with torch.no_grad():
            x0 = self._guided(condition, guidance)(noisy, [sigma_of(t) for t in start])
            nearer = ddim_step(noisy, x0, high, low)
            aim = consistency(self._denoise(self._target, condition, embedding), nearer, target)
        return pseudo_huber(made, aim)

    def _denoise(self, unet: Unet, condition: Conditioning, embedding: Tensor) -> Denoiser:
        return Denoiser(unet, condition, prediction=PREDICTION, embedding=embedding)

    def _guided(self, condition: Conditioning, guidance: list[float]) -> Denoiser:
        """The teacher with its own classifier-free guidance, one scale per picture."""
        nothing = self.text.encode([""] * len(guidance), (SIZE, SIZE))
        scale = torch.tensor(guidance).view(-1, 1, 1, 1)
        return Denoiser(
            self._teacher, condition, prediction=PREDICTION, cfg=Cfg(negative=nothing, scale=scale)
        )
