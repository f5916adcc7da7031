"""An adapter in training: one UNet is student, average and teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CLIPTokenizer

from fewstep.denoiser import Conditioning
from fewstep.runtimes.eager import eager_network
from fewstep.train import base, lcm, loop, lora
from fewstep.train.bundled.latents import Latents
from fewstep.train.loop import Draw, Hyper
from fewstep.train.source import Teacher


@pytest.fixture
def told() -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(0)
    condition = Conditioning(
        torch.randn(2, 77, 192, generator=generator),
        {"text_embeds": torch.randn(2, 128, generator=generator), "time_ids": torch.ones(2, 6)},
    )
    return torch.randn(2, 4, 8, 8, generator=generator), torch.tensor([19.0, 999.0]), condition, None


@torch.no_grad()
def test_off_is_the_base_exactly(told: tuple[Any, ...]) -> None:
    torch.manual_seed(0)
    unet = base.build_unet()
    expected = eager_network(unet)(*told)
    factors = lora.add_factors(unet, 4, lora.ALL_TARGETS)
    assert torch.equal(eager_network(unet)(*told), expected)  # nothing is changed yet
    for _, p in factors.named_parameters():
        p.add_(0.1)
    assert not torch.allclose(eager_network(unet)(*told), expected, atol=1e-3)
    assert torch.equal(lora.with_factors(unet, factors.off())(*told), expected)


def test_it_alone_learns() -> None:
    unet = base.build_unet()
    factors = dict(lora.add_factors(unet, 4, lora.ATTENTION_TARGETS).named_parameters())
    assert factors
    assert {key for key, p in unet.named_parameters() if p.requires_grad} == set(factors)


def test_the_average_is_another_than_the_student(
    latents: Latents, tokenizer: CLIPTokenizer, tmp_path: Path, told: tuple[Any, ...]
) -> None:
    torch.manual_seed(0)
    teacher = Teacher(unet=base.build_unet(), text=base.build_text(tokenizer), process=base.PROCESS)
    before = eager_network(teacher.unet)(*told)
    task = lcm.lcm_lora_task(latents, teacher, 4, rank=4)

    def measured() -> float:
        with torch.no_grad():
            return sum(float(task.loss(Draw.of(9, step))) for step in range(4)) / 4

    start = measured()
    list(loop.train_task(task, Hyper(steps=16, batch=4, rate=1e-2, warmup=1, ema=0.8, bf16=False), tmp_path))
    assert measured() < 0.9 * start
    with torch.no_grad():
        student, average, own = (call(*told) for call in (task.student, task.target, task.teacher_network))
    assert torch.equal(own, before)
    assert not torch.allclose(student, average, atol=1e-5)
    assert not torch.allclose(average, own, atol=1e-5)
