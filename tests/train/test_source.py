"""What a run learns from: prompts as the UNet reads them, with and without guidance."""

from __future__ import annotations

from collections.abc import Callable

import torch

from fewstep import Engine
from fewstep.runtimes.eager import eager_network
from fewstep.train.source import Teacher


@torch.no_grad()
def test_an_empty_prompt_is_zeros_where_the_model_was_trained_so(engine: Callable[..., Engine]) -> None:
    text = engine("base").parts.text
    assert text.zero_empty
    found, wanted = text.batch(["", "a red fox"], (96, 96)), text.encode(["", "a red fox"], (96, 96))
    assert not found.tokens[0].any()
    assert not found.added["text_embeds"][0].any()
    torch.testing.assert_close(found.tokens, wanted.tokens)
    torch.testing.assert_close(found.added["text_embeds"], wanted.added["text_embeds"])


@torch.no_grad()
def test_a_guided_teacher_steers_away_from_nothing(engine: Callable[..., Engine]) -> None:
    parts = engine("base").parts
    teacher = Teacher(unet=parts.unet, text=parts.text, process=parts.process)
    x = torch.randn(2, 4, 12, 12, generator=torch.Generator().manual_seed(0))
    condition = teacher.read(["a red fox", "a blue owl"], (96, 96))
    own = eager_network(parts.unet)
    found = teacher.guided(condition, (96, 96), [1.0, 4.0], own)(x, [3.0, 1.0])
    positive = teacher.denoiser(condition, own)(x, [3.0, 1.0])
    negative = teacher.denoiser(teacher.read(["", ""], (96, 96)), own)(x, [3.0, 1.0])
    scale = torch.tensor([1.0, 4.0]).view(-1, 1, 1, 1)
    torch.testing.assert_close(found, negative + scale * (positive - negative), rtol=1e-3, atol=1e-4)
