"""The feature network: what it is, how it learns, what is kept of it."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from fewstep.errors import CorruptModelError, ModelNotFoundError
from fewstep.train import loop, outputs
from fewstep.train.bundled import feature_training, features
from fewstep.train.bundled.data import Caption, sha256
from fewstep.train.loop import Draw
from tests.evaluation.conftest import network_file

HYPER = replace(feature_training.HYPER, steps=12, batch=16, warmup=2, ema=0.9)


def task(sprites: Tensor, captions: list[Caption]) -> feature_training.FeaturesTask:
    torch.manual_seed(0)
    return feature_training.FeaturesTask(sprites, captions, HYPER.batch)


def test_it_is_small_enough_to_ship(work: Path) -> None:
    assert 400_000 < sum(p.numel() for p in features.FeatureNetwork().parameters()) < 600_000
    assert network_file(work).stat().st_size < 1_200_000


def test_features_have_length_one(work: Path) -> None:
    pictures = torch.rand(5, 3, 128, 128, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = features.describe_pictures(features.read_features(network_file(work)), pictures)
    assert found.shape == (5, features.WIDTH)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(5))


def test_bytes_and_numbers_are_seen_alike(work: Path) -> None:
    pixels = torch.randint(0, 256, (2, 3, 128, 128), generator=torch.Generator().manual_seed(0))
    seen = features.prepare_pictures(pixels.to(torch.uint8))
    assert seen.shape == (2, 3, 64, 64)
    torch.testing.assert_close(seen, features.prepare_pictures(pixels / 127.5 - 1))
    torch.testing.assert_close(seen[0, :, 0, 0], (pixels[0, :, :2, :2] / 127.5 - 1).mean(dim=(1, 2)))


def test_written_and_read_back(work: Path, tmp_path: Path) -> None:
    network = features.read_features(network_file(work))
    again = tmp_path / "new" / "network.safetensors"
    assert features.write_features(network, again) == sha256(again) == sha256(network_file(work))
    assert {tensor.dtype for tensor in load_file(again).values()} == {torch.float16}
    assert outputs.network_digest(features.read_features(again)) == outputs.network_digest(network)


def test_one_that_is_missing_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="fewstep train features --work DIR"):
        features.read_features(tmp_path / "none.safetensors")


def test_one_that_is_damaged_says_so(tmp_path: Path) -> None:
    path = tmp_path / "features.safetensors"
    path.write_bytes(b"not weights")
    with pytest.raises(CorruptModelError, match=r"features\.safetensors"):
        features.read_features(path)


def test_the_loss_falls_and_resumes_exactly(sprites: Tensor, captions: list[Caption], tmp_path: Path) -> None:
    whole = [p.loss for p in loop.train_task(task(sprites, captions), HYPER, tmp_path / "whole", every=6)]
    part = loop.train_task(task(sprites, captions), HYPER, tmp_path / "parts", every=6)
    first = [p.loss for p in itertools.islice(part, 8)]
    second = [p.loss for p in loop.train_task(task(sprites, captions), HYPER, tmp_path / "parts", every=6)]
    assert first == whole[:8]
    assert second == whole[6:]
    assert sum(whole[-3:]) < 0.5 * sum(whole[:3])
    states = [load_file(tmp_path / name / "state.safetensors") for name in ("whole", "parts")]
    assert all(torch.equal(tensor, states[1][key]) for key, tensor in states[0].items())


def test_the_stage_leaves_a_network_and_a_record(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_training, "HYPER", replace(HYPER, steps=2))
    other = work.parent / f"{work.name}-stage"
    other.mkdir()
    (other / "data").symlink_to(work / "data")
    assert [p.step for p in feature_training.train_features(other)] == [1, 2]
    assert list(feature_training.train_features(other)) == []
    features.read_features(other / "features" / "features.safetensors")
    assert '"retrieval_1_of_real_pictures"' in (other / "features" / "run.json").read_text()


def test_cosine_loss_by_hand() -> None:
    """-log of e^{s (cos - m)} over itself and the others' e^{s cos}."""
    feature = torch.tensor([[0.6, 0.8]])
    centres = torch.tensor([[2.0, 0.0], [0.0, 5.0]])  # their length does not count
    right = (feature_training.SCALE * torch.tensor([0.6, 0.8 - feature_training.MARGIN])).softmax(0)[1]
    found = feature_training.cosine_loss(feature, centres, torch.tensor([1]))
    torch.testing.assert_close(found, -right.log())


def test_softening_is_mild_and_differs_by_picture() -> None:
    edge = torch.ones(64, 3, 64, 64)
    edge[..., 32:] = -1
    soft = feature_training.soften(edge, Draw.of(0, 0))
    moved = (soft - edge).square().mean(dim=(1, 2, 3)).sqrt()
    assert moved.max() < 0.35
    assert moved.std() > 0.01
    torch.testing.assert_close(feature_training.soften(edge, Draw.of(0, 0)), soft)


def test_a_blur_keeps_flat_colours_and_the_mean() -> None:
    flat = torch.full((1, 3, 8, 8), 0.3)
    torch.testing.assert_close(feature_training.blur(flat), flat)
    dot = torch.zeros(1, 1, 9, 9)
    dot[..., 4, 4] = 16
    assert feature_training.blur(dot)[0, 0, 3:6, 3:6].tolist() == [[1, 2, 1], [2, 4, 2], [1, 2, 1]]


def test_shrunk_sprites_are_averages(sprites: Tensor) -> None:
    small = feature_training.shrink_sprites(sprites)
    assert (small.shape, small.dtype) == ((8, 4, 64, 64), torch.uint8)
    torch.testing.assert_close(small[1, :, 0, 0], sprites[1, :, 0, 0])
