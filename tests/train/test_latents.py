"""Encoding once: normal latents, in the order that their captions expect."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from fewstep.train import latents
from fewstep.train.augment import COLOURS
from fewstep.train.data import Caption


class Posterior:
    """Averages of 8x8 pixels, a fourth channel of noise, and a shift that normalising must undo."""

    def __init__(self, pictures: Tensor):
        self.pooled = torch.nn.functional.avg_pool2d(pictures, 8)

    def sample(self, generator: torch.Generator) -> Tensor:
        noise = torch.randn(self.pooled[:, :1].shape, generator=generator)
        return torch.cat([self.pooled, noise], dim=1) * 3 + 7


def pooling_vae() -> Any:
    return SimpleNamespace(encode=lambda pictures: SimpleNamespace(latent_dist=Posterior(pictures)))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory, captions: list[Caption]) -> Path:
    """Transparent sprites: every picture is its background alone."""
    path = tmp_path_factory.mktemp("latents") / "latents.safetensors"
    sprites = torch.zeros(len(captions), 4, 16, 16, dtype=torch.uint8)
    counts = [progress.step for progress in latents.encode(pooling_vae(), sprites, path)]
    assert counts == [len(captions) * i for i in range(1, latents.VARIANTS + 1)]
    return path


def test_latents_are_normal_per_channel(path: Path, captions: list[Caption]) -> None:
    stored = latents.load(path, captions)
    values = stored.values.float()
    assert stored.values.dtype == torch.float16
    assert values.shape == (latents.VARIANTS * len(captions), 4, 2, 2)
    torch.testing.assert_close(values.mean(dim=(0, 2, 3)), torch.zeros(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(values.std(dim=(0, 2, 3)), torch.ones(4), atol=1e-3, rtol=0)


def test_mean_and_std_undo_it_and_backdrops_are_true(path: Path, captions: list[Caption]) -> None:
    stored = latents.load(path, captions)
    raw = stored.values.float() * stored.std.view(1, 4, 1, 1) + stored.mean.view(1, 4, 1, 1)
    colours = ((raw - 7) / 3 + 1) * 127.5
    names = [(None, *COLOURS)[i] for i in stored.backdrops.tolist()]
    assert len(set(names)) > 3
    for colour, name in zip(colours, names, strict=True):
        if name is not None:
            wanted = torch.tensor(COLOURS[name]).float()
            assert float((colour[:3].mean(dim=(1, 2)) - wanted).abs().max()) < 36


def test_encoding_is_deterministic(path: Path, captions: list[Caption], tmp_path: Path) -> None:
    sprites = torch.zeros(len(captions), 4, 16, 16, dtype=torch.uint8)
    list(latents.encode(pooling_vae(), sprites, tmp_path / "again.safetensors"))
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


def test_a_batch_has_the_captions_of_its_latents(captions: list[Caption]) -> None:
    count = 3 * len(captions)
    values = torch.arange(count).view(-1, 1, 1, 1).expand(-1, 4, 2, 2).half()
    stored = latents.Latents(values, torch.arange(count) % 13, captions, torch.zeros(4), torch.ones(4))
    batch, rows = stored.batch(32, torch.Generator().manual_seed(0))
    assert batch.dtype == torch.float32
    for latent, (caption, backdrop) in zip(batch, rows, strict=True):
        index = int(latent[0, 0, 0])
        assert caption is captions[index % len(captions)]
        assert backdrop == (None, *COLOURS)[index % 13]
