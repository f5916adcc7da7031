"""LCM distillation: the loss against a second computation, written from the paper in VP space."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from torch import Tensor, nn
from transformers import CLIPTokenizer

from fewstep.denoiser import Conditioning, guidance_embedding
from fewstep.train import base, lcm, loop
from fewstep.train.bundled.latents import Latents
from fewstep.train.loop import Draw, Hyper
from fewstep.train.source import Teacher

BATCH = 4


@pytest.fixture
def task(latents: Latents, tokenizer: CLIPTokenizer) -> Any:
    return lcm.lcm_task(latents, teacher_of(tokenizer), BATCH)


def teacher_of(tokenizer: CLIPTokenizer) -> Teacher:
    torch.manual_seed(0)
    unet, text = base.build_unet(), base.build_text(tokenizer)
    return Teacher(unet=unet, text=text, process=base.PROCESS)


def disturb(module: nn.Module, amount: float, seed: int) -> None:
    """Move every weight, so that teacher, student and target differ and guidance matters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(amount * torch.randn(parameter.shape, generator=generator))


class Paper:
    """Algorithm 1 of arXiv:2310.04378 with z = alpha * x0 + sigma * eps, nothing from fewstep."""

    def __init__(self, condition: Conditioning, nothing: Conditioning, guidance: list[float]):
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        self.abar = torch.cumprod(1 - betas, dim=0)
        self.condition, self.nothing = condition, nothing
        self.w = torch.tensor(guidance, dtype=torch.float64).view(-1, 1, 1, 1) - 1

    def alpha_sigma(self, t: Tensor) -> tuple[Tensor, Tensor]:
        abar = self.abar[t].view(-1, 1, 1, 1)
        return abar.sqrt(), (1 - abar).sqrt()

    def v(self, unet: Any, z: Tensor, t: Tensor, condition: Conditioning, *, guided: bool) -> Tensor:
        """The UNet's answer; with `guided` it is told w by diffusers' own embedding."""
        embed: Any = StableDiffusionXLPipeline.get_guidance_scale_embedding
        told = embed(None, self.w.flatten().float(), embedding_dim=64) if guided else None
        extra = dict(condition.added)
        answer: Tensor = unet(
            z.float(), t, condition.tokens, timestep_cond=told, added_cond_kwargs=extra
        ).sample.double()
        return answer

    def consistency(self, unet: Any, z: Tensor, t: Tensor) -> Tensor:
        """f(z, c, w, t) = c_skip(t) z + c_out(t) x0 (eq. 9, app. C)."""
        alpha, sigma = self.alpha_sigma(t)
        x0 = alpha * z - sigma * self.v(unet, z, t, self.condition, guided=True)
        scaled = t.double().view(-1, 1, 1, 1) / 0.1
        return 0.25 / (scaled**2 + 0.25) * z + scaled / (scaled**2 + 0.25).sqrt() * x0

    def solve(self, teacher: Any, z: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """z + (1 + w) Psi(z, t, s, c) - w Psi(z, t, s, nothing), Psi one step of DDIM (alg. 1)."""

        def ddim(condition: Conditioning) -> Tensor:
            alpha, sigma = self.alpha_sigma(t)
            v = self.v(teacher, z, t, condition, guided=False)
            x0, eps = alpha * z - sigma * v, alpha * v + sigma * z
            to_alpha, to_sigma = self.alpha_sigma(s)
            return to_alpha * x0 + to_sigma * eps - z

        return z + (1 + self.w) * ddim(self.condition) - self.w * ddim(self.nothing)


def paper_loss(task: Any, draw: Draw) -> float:
    """The whole loss with the task's draws, in the task's order."""
    real, prompts = task.source.batch(BATCH, draw, 0)
    t = torch.tensor([draw.python.choice(range(19, 1000, 20)) for _ in prompts])
    guidance = [draw.python.uniform(1, 6) for _ in prompts]
    noise = torch.randn(real.shape, generator=draw.torch)
    text = task.teacher.text
    paper = Paper(text.batch(prompts, (64, 64)), text.batch([""] * BATCH, (64, 64)), guidance)

    alpha, sigma = paper.alpha_sigma(t)
    z = alpha * real + sigma * noise
    nearer = (t - 20).clamp(min=0)
    made = paper.consistency(task.modules["unet"], z, t)
    aim = paper.consistency(task.averages["unet"], paper.solve(task.teacher.unet, z, t, nearer), nearer)
    return float(((made - aim) ** 2 + 0.001**2).sqrt().mean() - 0.001)


@torch.no_grad()
@pytest.mark.parametrize("step", [0, 1, 2])
def test_the_loss_is_the_papers(task: Any, step: int) -> None:
    disturb(task.modules["unet"], 0.02, seed=1)
    disturb(task.averages["unet"], 0.02, seed=2)
    expected = paper_loss(task, Draw.of(0, step))
    assert expected > 0.05
    assert float(task.loss(Draw.of(0, step))) == pytest.approx(expected, rel=1e-5)


@torch.no_grad()
def test_the_first_level_ends_at_zero(task: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """From t = 19 the target is t = 0, whose consistency function is the identity."""
    monkeypatch.setattr(lcm, "LEVELS", range(19, 20))
    before = float(task.loss(Draw.of(0, 0)))
    disturb(task.averages["unet"], 0.5, seed=2)
    assert float(task.loss(Draw.of(0, 0))) == before


def test_the_levels_are_those_that_sampling_visits() -> None:
    from fewstep.schedulers import lcm as visited

    assert {t for steps in range(1, 51) for t in visited(steps).timesteps} <= set(lcm.LEVELS)
    assert len(lcm.LEVELS) == 50


def test_boundary_at_zero_is_the_identity() -> None:
    assert lcm.boundary(0) == (1.0, 0.0)
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))

    def refuse(x: Tensor, _: object) -> Tensor:
        return torch.full_like(x, 7.0)

    z = x / math.hypot(1, 0.029167)  # the same point, variance preserved
    torch.testing.assert_close(lcm.consistency_function(refuse, x, [0, 0]), z, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("timestep", [19, 259, 999])
def test_boundary(timestep: int) -> None:
    skip, out = lcm.boundary(timestep)
    scaled = timestep / 0.1
    assert skip == pytest.approx(0.25 / (scaled**2 + 0.25))
    assert out == pytest.approx(scaled / (scaled**2 + 0.25) ** 0.5)
    assert skip + out**2 == pytest.approx(1)


def test_pseudo_huber() -> None:
    a = torch.tensor([0.0, 3e-3, 1.0])
    expected = (0 + (1e-5**0.5 - 1e-3) + ((1 + 1e-6) ** 0.5 - 1e-3)) / 3
    assert float(lcm.pseudo_huber(a, torch.zeros(3))) == pytest.approx(expected, rel=1e-4)


@torch.no_grad()
def test_the_student_starts_as_the_teacher_for_any_guidance() -> None:
    torch.manual_seed(0)
    teacher = base.build_unet()
    student = lcm.student_of(teacher, lcm.GUIDANCE_WIDTH)
    generator = torch.Generator().manual_seed(0)
    x, tokens = torch.randn(3, 4, 8, 8, generator=generator), torch.randn(3, 77, 192, generator=generator)
    extra = {"text_embeds": torch.randn(3, 128, generator=generator), "time_ids": torch.ones(3, 6)}
    t = torch.tensor([19, 499, 999])
    told = guidance_embedding(torch.tensor([0.0, 2.5, 5.0]), lcm.GUIDANCE_WIDTH)
    expected = teacher(x, t, tokens, added_cond_kwargs=extra).sample
    assert torch.equal(student(x, t, tokens, timestep_cond=told, added_cond_kwargs=extra).sample, expected)
    nn.init.normal_(student.get_parameter("time_embedding.cond_proj.weight"))
    assert not torch.equal(
        student(x, t, tokens, timestep_cond=told, added_cond_kwargs=extra).sample, expected
    )


def test_the_target_is_the_average_and_only_the_student_learns(task: Any) -> None:
    loss = task.loss(Draw.of(0, 3))
    torch.autograd.backward(loss)
    missing = {name for name, p in task.modules["unet"].named_parameters() if p.grad is None}
    assert not missing
    others = (task.averages["unet"], task.teacher.unet, *task.teacher.text.encoders)
    assert all(p.grad is None for module in others for p in module.parameters())
    disturb(task.averages["unet"], 0.02, seed=2)
    assert float(task.loss(Draw.of(0, 3)).detach()) != float(loss.detach())


def test_the_loss_falls(task: Any, tmp_path: Path) -> None:
    def measured() -> float:
        with torch.no_grad():
            return sum(float(task.loss(Draw.of(9, step))) for step in range(4)) / 4

    before = measured()
    list(
        loop.train_task(
            task, Hyper(steps=10, batch=BATCH, rate=4e-4, warmup=2, ema=0.95, bf16=False), tmp_path
        )
    )
    assert measured() < 0.9 * before


def test_teacher_and_text_stay(latents: Latents, tokenizer: CLIPTokenizer, tmp_path: Path) -> None:
    teacher = teacher_of(tokenizer)
    networks = (teacher.unet, *teacher.text.encoders)
    task = lcm.lcm_task(latents, teacher, 2)
    kept = [p.clone() for module in networks for p in module.parameters()]
    list(loop.train_task(task, Hyper(steps=1, batch=2, rate=1e-2, warmup=1, ema=0.95), tmp_path))
    after = [p for module in networks for p in module.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(kept, after, strict=True))


@torch.no_grad()
@pytest.mark.parametrize("guidance", [1.0, 3.5])
def test_a_settled_student_is_the_student_at_that_guidance(guidance: float) -> None:
    torch.manual_seed(0)
    student = lcm.student_of(base.build_unet(), lcm.GUIDANCE_WIDTH)
    nn.init.normal_(student.get_parameter("time_embedding.cond_proj.weight"), std=0.3)
    plain = lcm.with_fixed_guidance(student, guidance)
    assert plain.config.time_cond_proj_dim is None
    generator = torch.Generator().manual_seed(0)
    x, tokens = torch.randn(3, 4, 8, 8, generator=generator), torch.randn(3, 77, 192, generator=generator)
    extra = {"text_embeds": torch.randn(3, 128, generator=generator), "time_ids": torch.ones(3, 6)}
    t = torch.tensor([19, 499, 999])
    told = guidance_embedding(torch.full((3,), guidance - 1), lcm.GUIDANCE_WIDTH)
    expected = student(x, t, tokens, timestep_cond=told, added_cond_kwargs=extra).sample
    other = student(x, t, tokens, timestep_cond=-told, added_cond_kwargs=extra).sample
    assert not torch.allclose(expected, other, atol=1e-3)
    torch.testing.assert_close(
        plain(x, t, tokens, added_cond_kwargs=extra).sample, expected, rtol=1e-4, atol=1e-5
    )
