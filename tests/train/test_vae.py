"""The autoencoder's losses against their definitions, and one step of its training."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from fewstep.train import loop, vae
from fewstep.train.bundled import sprite_pictures
from fewstep.train.loop import Draw, Hyper


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_reconstruction_loss_is_zero_where_nothing_differs() -> None:
    picture = noise(2, 3, 8, 8)
    assert float(vae.reconstruction_loss(picture, picture)) == 0


def test_reconstruction_loss_term_by_term() -> None:
    made, real = noise(2, 3, 6, 5), noise(2, 3, 6, 5, seed=1)
    error = (made - real).double()
    vertical = (error[:, :, 1:] - error[:, :, :-1]).abs().mean()
    horizontal = (error[:, :, :, 1:] - error[:, :, :, :-1]).abs().mean()
    expected = error.abs().mean() + (error**2).mean() + 0.5 * (vertical + horizontal)
    assert float(vae.reconstruction_loss(made, real)) == pytest.approx(float(expected), rel=1e-6)


def test_a_shift_has_no_edges() -> None:
    picture = noise(1, 3, 4, 4)
    assert float(vae.reconstruction_loss(picture + 0.5, picture)) == pytest.approx(0.75, rel=1e-6)


def test_kl_loss_equals_torchs() -> None:
    mean, logvar = noise(2, 4, 3, 3), noise(2, 4, 3, 3, seed=1)
    expected = kl_divergence(Normal(mean, (0.5 * logvar).exp()), Normal(0, 1)).sum(dim=1).mean()
    assert float(vae.kl_loss(mean, logvar)) == pytest.approx(float(expected), rel=1e-5)


def test_kl_loss_of_a_unit_normal_is_zero() -> None:
    assert float(vae.kl_loss(torch.zeros(1, 4, 2, 2), torch.zeros(1, 4, 2, 2))) == 0


def test_psnr() -> None:
    real = torch.zeros(1, 3, 4, 4)
    assert vae.psnr(real + 0.2, real) == pytest.approx(10 * math.log10(4 / 0.04), abs=1e-4)


def test_the_networks_shape() -> None:
    network = vae.build_vae()
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(3.27e6, rel=0.01)
    with torch.no_grad():
        assert network.encode(torch.zeros(1, 3, 128, 128)).latent_dist.mean.shape == (1, 4, 16, 16)


def test_the_loss_falls(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sprites = torch.full((4, 4, 128, 128), 255, dtype=torch.uint8)
    task = vae.VaeTask(sprites, batch=2)
    with torch.no_grad():
        before = float(task.loss(Draw.of(9, 9)))
    list(loop.train_task(task, Hyper(steps=6, batch=2, rate=2e-3, warmup=1), tmp_path))
    with torch.no_grad():
        assert float(task.loss(Draw.of(9, 9))) < 0.8 * before


@pytest.mark.parametrize("count", [3, 8])
def test_measure_takes_sprites_from_all_over(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Tensor] = []

    def remember(sprites: Tensor, _: object) -> tuple[Tensor, list[str | None]]:
        seen.append(sprites[:, 0, 0, 0])
        return torch.zeros(len(sprites), 3, 16, 16), [None] * len(sprites)

    monkeypatch.setattr(sprite_pictures, "make_pictures", remember)
    sprites = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 4, 16, 16)
    assert math.isfinite(vae.measure_psnr(vae.round_trip(vae.build_vae()), sprites, pictures=4))
    assert seen[0].tolist() == ([0, 1, 2] if count == 3 else [0, 2, 4, 6])
