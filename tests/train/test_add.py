"""Adversarial distillation: the loss against a second computation, and who learns from which part."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CLIPTokenizer

from fewstep.noise_process import SDXL_SIGMAS
from fewstep.train import add, base, loop
from fewstep.train.bundled.latents import Latents
from fewstep.train.loop import Draw, Hyper
from fewstep.train.source import Teacher, add_noise

BATCH = 3


@pytest.fixture
def task(latents: Latents, tokenizer: CLIPTokenizer) -> add.AddTask:
    torch.manual_seed(0)
    unet, text = base.build_unet(), base.build_text(tokenizer)
    made = add.add_task(latents, Teacher(unet=unet, text=text, process=base.PROCESS), unet, BATCH)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _, p in made.modules["unet"].named_parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=generator))
    return made


class Paper:
    """Equations 1 to 5 of arXiv:2311.17042 with z = alpha x0 + sigma eps, on diffusers' own UNet."""

    def __init__(self, task: add.AddTask, draw: Draw):
        self.task, self.draw = task, draw
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
        self.abar = torch.cumprod(1 - betas, dim=0)

    def noised(self, x0: Tensor, t: list[int]) -> Tensor:
        abar = self.abar[t].view(-1, 1, 1, 1)
        return abar.sqrt() * x0 + (1 - abar).sqrt() * torch.randn(x0.shape, generator=self.draw.torch)

    def call(self, unet: Any, z: Tensor, t: list[int], condition: Any) -> Tensor:
        extra = dict(condition.added)
        answer: Tensor = unet(z.float(), torch.tensor(t), condition.tokens, added_cond_kwargs=extra).sample
        return answer.double()

    def x0(self, z: Tensor, v: Tensor, t: list[int]) -> Tensor:
        abar = self.abar[t].view(-1, 1, 1, 1)
        return abar.sqrt() * z - (1 - abar).sqrt() * v

    def maps(self, z: Tensor, t: list[int], condition: Any) -> list[Tensor]:
        """Outputs of the down blocks and of the middle, caught while the whole UNet runs."""
        seen: list[Tensor] = []
        unet: Any = self.task.teacher.unet
        blocks = [*unet.down_blocks, unet.mid_block]
        hooks = [
            block.register_forward_hook(
                lambda _, __, out: seen.append(out[0] if isinstance(out, tuple) else out)
            )
            for block in blocks
        ]
        self.call(unet, z, t, condition)
        for hook in hooks:
            hook.remove()
        return seen

    def loss(self) -> float:
        task, python = self.task, self.draw.python
        real, prompts = task.source.batch(BATCH, self.draw, 0)
        condition, nothing = (task.teacher.read(p, (64, 64)) for p in (prompts, [""] * BATCH))
        t = [python.choice((249, 499, 749, 999)) for _ in prompts]
        z = self.noised(real, t)
        made = self.x0(z, self.call(task.modules["unet"], z, t, condition), t)
        look = [int(1000 / (1 + math.exp(-python.gauss(0, 1)))) for _ in prompts]
        fake = task.heads(self.maps(self.noised(made, look), look, condition), condition.added["text_embeds"])
        true = task.heads(self.maps(self.noised(real, look), look, condition), condition.added["text_embeds"])
        levels = [python.randrange(1000) for _ in prompts]
        again = self.noised(made, levels)
        positive, negative = (
            self.call(task.teacher.unet, again, levels, told) for told in (condition, nothing)
        )
        aim = self.x0(again, negative + add.GUIDANCE * (positive - negative), levels)
        alpha = self.abar[levels].sqrt().view(-1, 1, 1, 1)
        hinge = (1 - true).clamp(min=0).mean() + (1 + fake).clamp(min=0).mean()
        taught = (alpha * (made - aim) ** 2).mean()
        return float(add.ADVERSARY * -fake.mean() + add.DISTILLATION * taught + hinge)


@torch.no_grad()
@pytest.mark.parametrize("step", [0, 1])
def test_the_loss_is_the_papers(task: add.AddTask, step: int) -> None:
    expected = Paper(task, Draw.of(0, step)).loss()
    assert float(task.loss(Draw.of(0, step))) == pytest.approx(expected, rel=1e-4)


@torch.no_grad()
def test_a_student_that_is_held_pays_for_leaving_its_start(task: add.AddTask) -> None:
    held = replace(task, hold=3.0)
    loose, tight = (float(one.loss(Draw.of(0, 0))) for one in (task, held))
    draw = Draw.of(0, 0)
    real, prompts = task.source.batch(BATCH, draw, 0)
    condition = task.teacher.read(prompts, (64, 64))
    sigmas = [SDXL_SIGMAS[draw.python.choice(add.STARTS)] for _ in prompts]
    noisy = add_noise(real, sigmas, draw)
    # The fixture's student began as the teacher, and was moved from there.
    made, began = (
        task.teacher.denoiser(condition, unet)(noisy, sigmas) for unet in (task.student, task.teacher_network)
    )
    assert tight - loose == pytest.approx(3.0 * float((made - began).square().mean()), rel=1e-3)
    assert tight - loose > 1e-3


def gradients(task: add.AddTask, loss: Tensor) -> dict[str, float]:
    """The sum of all gradients' sizes, of each player."""
    torch.autograd.backward(loss)
    found = {}
    for name, network in task.modules.items():
        parameters = [p for _, p in network.named_parameters()]
        found[name] = sum(0.0 if p.grad is None else float(p.grad.abs().sum()) for p in parameters)
        for p in parameters:
            p.grad = None
    return found


def test_each_player_learns_from_its_own_loss(task: add.AddTask, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(*parts: Tensor) -> Tensor:
        return sum((part.sum() for part in parts), torch.zeros(())) * 0.0

    both = gradients(task, task.loss(Draw.of(0, 0)))
    with monkeypatch.context() as patch:  # the heads' own loss alone
        patch.setattr(add, "generator_loss", nothing)
        patch.setattr(add, "distillation_loss", lambda made, *_: nothing(made))
        heads = gradients(task, task.loss(Draw.of(0, 0)))
    with monkeypatch.context() as patch:  # the student's alone
        patch.setattr(add, "discriminator_loss", nothing)
        student = gradients(task, task.loss(Draw.of(0, 0)))
    assert heads["unet"] == 0 < heads["heads"]
    assert student["heads"] == 0 < student["unet"]
    assert both["heads"] == pytest.approx(heads["heads"], rel=1e-3)
    assert both["unet"] == pytest.approx(student["unet"], rel=1e-3)
    assert all(p.grad is None for p in task.teacher.unet.parameters())


def test_the_student_gets_closer_to_its_teacher(
    task: add.AddTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the distillation alone: what an adversary says changes as it learns."""
    monkeypatch.setattr(add, "ADVERSARY", 0.0)
    monkeypatch.setattr(add, "discriminator_loss", lambda *_: torch.zeros(()))
    kept = copy.deepcopy(task.teacher.unet.state_dict())
    before = _measured(task)
    list(
        loop.train_task(
            task, Hyper(steps=12, batch=BATCH, rate=1e-3, warmup=1, ema=0.9, bf16=False), tmp_path
        )
    )
    assert _measured(task) < 0.97 * before
    assert all(torch.equal(kept[name], p) for name, p in task.teacher.unet.state_dict().items())


def test_the_heads_learn_to_tell_real_from_made(
    task: add.AddTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(add, "ADVERSARY", 0.0)
    monkeypatch.setattr(add, "DISTILLATION", 0.0)
    before = _measured(task)
    settings = Hyper(steps=12, batch=BATCH, rate=1e-3, warmup=1, bf16=False, paces={"heads": 5.0})
    list(loop.train_task(task, settings, tmp_path))
    assert _measured(task) < 0.9 * before


@torch.no_grad()
def _measured(task: add.AddTask) -> float:
    return sum(float(task.loss(Draw.of(9, step))) for step in range(3)) / 3
