"""Base training: its loss is the v-prediction error, and its networks have SDXL's shape."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CLIPTokenizer

from fewstep.denoiser import Conditioning, Denoiser
from fewstep.noise_process import SDXL_SIGMAS
from fewstep.train import base, loop
from fewstep.train.bundled.latents import Latents
from fewstep.train.loop import Draw, Hyper


def alphas_cumprod() -> Tensor:
    """abar of SDXL's betas, in double (diffusers' "scaled_linear")."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, dim=0)


def textbook(network: Any, real: Tensor, noise: Tensor, timesteps: list[int]) -> float:
    """|v - v_hat|^2 with v = alpha * eps - sigma * x0 (arXiv:2202.00512, app. D), variance preserved."""
    abar = alphas_cumprod()[timesteps].view(-1, 1, 1, 1)
    alpha, sigma = abar.sqrt(), (1 - abar).sqrt()
    x = alpha * real + sigma * noise
    v = alpha * noise - sigma * real
    return float((network(x.float(), torch.tensor(timesteps)).double() - v).square().mean())


def curve(x: Tensor, timestep: Tensor) -> Tensor:
    return torch.tanh(x.flip(1) + timestep.view(-1, 1, 1, 1) / 500)


@pytest.mark.parametrize("timesteps", [[0, 1, 2, 3], [999, 998, 997, 996], [17, 250, 500, 981]])
def test_v_loss_is_the_textbooks(timesteps: list[int]) -> None:
    real, noise = torch.randn(2, 4, 4, 8, 8, generator=torch.Generator().manual_seed(1)).unbind()
    nothing = Conditioning(
        torch.zeros(4, 77, 8), {"text_embeds": torch.zeros(4, 8), "time_ids": torch.zeros(4, 6)}
    )
    denoise = Denoiser(lambda x, t, _, __: curve(x, t), nothing, process=base.PROCESS)
    sigmas = [SDXL_SIGMAS[t] for t in timesteps]
    noisy = real + torch.tensor(sigmas).view(-1, 1, 1, 1) * noise
    found = float(base.prediction_loss(denoise(noisy, sigmas), real, sigmas, base.PROCESS))
    assert found == pytest.approx(textbook(curve, real, noise, timesteps), rel=1e-5)


@pytest.fixture
def task(latents: Latents, tokenizer: CLIPTokenizer) -> base.BaseTask:
    torch.manual_seed(0)
    return base.BaseTask(latents, base.build_unet(), base.build_text(tokenizer), 4)


@torch.no_grad()
def test_the_tasks_loss_is_the_textbooks(task: base.BaseTask) -> None:
    found = float(task.loss(Draw.of(0, 5)))

    draw = Draw.of(0, 5)  # the same draws, in the same order
    real, prompts = task.source.batch(4, draw, base.EMPTY)
    timesteps = [draw.python.randrange(1000) for _ in range(4)]
    noise = torch.randn(real.shape, generator=draw.torch)
    ids = task.text.tokenizers[0](prompts, padding="max_length", return_tensors="pt").input_ids
    first, second = (encoder(ids, output_hidden_states=True) for encoder in task.text.encoders)
    extra = {
        "text_embeds": second.text_embeds,
        "time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64]]).repeat(4, 1),
    }

    def network(x: Tensor, t: Tensor) -> Tensor:
        tokens = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
        answer: Tensor = task.modules["unet"](x, t, tokens, added_cond_kwargs=extra).sample
        return answer

    assert found == pytest.approx(textbook(network, real, noise, timesteps), rel=1e-5)


def test_the_loss_falls_and_every_network_learns(task: base.BaseTask, tmp_path: Path) -> None:
    def measured() -> float:
        with torch.no_grad():
            return sum(float(task.loss(Draw.of(9, step))) for step in range(8)) / 8

    def weights() -> list[Tensor]:
        return [next(m.parameters()).detach().clone() for m in task.modules.values()]

    before, start = measured(), weights()
    list(loop.train_task(task, Hyper(steps=15, batch=4, rate=1e-3, warmup=2, bf16=False), tmp_path))
    assert measured() < 0.8 * before
    assert all(not torch.equal(a, b) for a, b in zip(start, weights(), strict=True))


def test_sizes(task: base.BaseTask) -> None:
    def millions(*names: str) -> float:
        return sum(p.numel() for name in names for p in task.modules[name].parameters()) / 1e6

    assert millions("unet") == pytest.approx(5.8, abs=0.1)
    assert millions("text_encoder", "text_encoder_2") < 1.0
    assert task.averages.keys() == task.modules.keys() == {"unet", "text_encoder", "text_encoder_2"}


def test_an_empty_prompt_is_encoded_not_zeroed(task: base.BaseTask) -> None:
    assert bool(task.text.encode([""], (128, 128)).tokens.abs().sum() > 0)


def test_the_draw_decides_the_loss(task: base.BaseTask) -> None:
    with torch.no_grad():
        one, again, other = (float(task.loss(Draw.of(0, step))) for step in (1, 1, 2))
    assert one == again != other


def test_what_is_frozen_is_no_part_of_it(latents: Latents, tokenizer: CLIPTokenizer) -> None:
    text = base.build_text(tokenizer)
    for encoder in text.encoders:
        encoder.requires_grad_(False)
    task = base.BaseTask(latents, base.build_unet(), text, 2)
    assert task.modules.keys() == task.averages.keys() == {"unet"}
