"""Encoding once: normal latents, in the order that their captions expect."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from fewstep.train.bundled import latents
from fewstep.train.bundled.data import Caption
from fewstep.train.bundled.sprite_pictures import COLOURS
from fewstep.train.loop import Draw


class Posterior:
    """Averages of 8x8 pixels, a fourth channel of noise, and a shift that normalising must undo."""

    def __init__(self, pictures: Tensor):
        self.pooled = torch.nn.functional.avg_pool2d(pictures, 8)

    def sample(self, generator: torch.Generator) -> Tensor:
        noise = torch.randn(self.pooled[:, :1].shape, generator=generator)
        return torch.cat([self.pooled, noise], dim=1) * 3 + 7


def pooling_vae() -> Any:
    def encode(pictures: Tensor) -> Any:
        return SimpleNamespace(latent_dist=Posterior(pictures))

    return SimpleNamespace(device=torch.device("cpu"), encode=encode)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory, captions: list[Caption]) -> Path:
    """Transparent sprites: every picture is its background alone."""
    path = tmp_path_factory.mktemp("latents") / "latents.safetensors"
    sprites = torch.zeros(len(captions), 4, 16, 16, dtype=torch.uint8)
    counts = [progress.step for progress in latents.encode_sprites(pooling_vae(), sprites, path)]
    assert counts == [len(captions) * i for i in range(1, latents.VARIANTS + 1)]
    return path


def test_latents_are_normal_per_channel(path: Path, captions: list[Caption]) -> None:
    stored = latents.read_latents(path, captions)
    values = stored.values.float()
    assert stored.values.dtype == torch.float16
    assert values.shape == (latents.VARIANTS * len(captions), 4, 2, 2)
    torch.testing.assert_close(values.mean(dim=(0, 2, 3)), torch.zeros(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(values.std(dim=(0, 2, 3)), torch.ones(4), atol=1e-3, rtol=0)


def test_mean_and_std_undo_it_and_backdrops_are_true(path: Path, captions: list[Caption]) -> None:
    stored = latents.read_latents(path, captions)
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
    list(latents.encode_sprites(pooling_vae(), sprites, tmp_path / "again.safetensors"))
    assert (tmp_path / "again.safetensors").read_bytes() == path.read_bytes()


def test_another_set_is_normalised_like_the_first(
    path: Path, captions: list[Caption], tmp_path: Path
) -> None:
    sprites = torch.full((len(captions), 4, 16, 16), 255, dtype=torch.uint8)  # white all over
    first = latents.read_latents(path, captions)
    list(latents.encode_sprites(pooling_vae(), sprites, tmp_path / "white.safetensors", scaling=first))
    white = latents.read_latents(tmp_path / "white.safetensors", captions)
    assert torch.equal(white.mean, first.mean)
    assert torch.equal(white.std, first.std)
    expected = (1 * 3 + 7 - first.mean[:3]) / first.std[:3]
    torch.testing.assert_close(white.values[:, :3].float().amax(dim=(0, 2, 3)), expected, atol=1e-2, rtol=0)


def test_a_batch_has_the_prompts_of_its_latents(captions: list[Caption]) -> None:
    count = 3 * len(captions)
    values = torch.arange(count).view(-1, 1, 1, 1).expand(-1, 4, 2, 2).half()
    stored = latents.Latents(values, torch.arange(count) % 13, captions, torch.zeros(4), torch.ones(4))
    batch, prompts = stored.batch(64, Draw.of(0, 0), 0)
    assert stored.size == (16, 16)
    assert batch.dtype == torch.float32
    for latent, prompt in zip(batch, prompts, strict=True):
        index = int(latent[0, 0, 0])
        caption, backdrop = captions[index % len(captions)], (None, *COLOURS)[index % 13]
        assert set(caption.label.split()) & set(prompt.replace(",", "").split())  # by label, or by tags
        assert f"{backdrop} background" in prompt or "background" not in prompt
        assert f", {caption.style} style" in prompt or "style" not in prompt
    assert stored.batch(9, Draw.of(0, 0), 1.0)[1] == [""] * 9


def pairs(count: int) -> list[Caption]:
    return [
        Caption(label=f"thing {i}", style=style, tags=(), hexcode=f"{i:x}")
        for i in range(count)
        for style in ("noto", "flat")
    ]


def test_a_twentieth_is_held_out_of_names_that_are_known() -> None:
    known = pairs(2000)
    alone = [Caption(label=f"lonely {i}", style="3d", tags=(), hexcode="0") for i in range(200)]
    held = latents.held_out_pairs(known + alone)
    assert sum(held) / len(known) == pytest.approx(0.05, abs=0.01)
    assert not any(held[len(known) :])
    assert held[: len(known)] == latents.held_out_pairs(known)  # whoever else is there


def test_what_is_held_out_is_never_shown() -> None:
    captions = pairs(40)
    held = {i for i, out in enumerate(latents.held_out_pairs(captions)) if out}
    values = torch.arange(2 * len(captions)).view(-1, 1, 1, 1).expand(-1, 4, 1, 1).half()
    stored = latents.Latents(values, torch.zeros(len(values)).long(), captions, torch.zeros(4), torch.ones(4))
    batch, _ = stored.batch(4000, Draw.of(0, 0), 0)
    seen = {int(latent[0, 0, 0]) for latent in batch}
    assert held
    assert seen == {i for i in range(len(values)) if i % len(captions) not in held}
