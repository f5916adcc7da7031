"""Features of real pictures: what is seen, and what is kept for next time."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fewstep.errors import RequestError
from fewstep.evaluation import references
from fewstep.train.bundled import features
from fewstep.train.bundled.data import Caption
from tests.evaluation.conftest import network_file


def test_each_sprite_is_seen_on_each_backdrop(work: Path, sprites: Tensor) -> None:
    network = features.read_features(network_file(work))
    found = features.describe_sprites(network, sprites)
    assert found.shape == (8, 3, features.WIDTH)
    on_white = sprites[:, :3].float() + 255 - sprites[:, 3:].float()
    torch.testing.assert_close(found[:, 0], features.describe_pictures(network, on_white / 127.5 - 1))


def test_the_cache_is_used_and_is_of_this_network(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, captions: list[Caption]
) -> None:
    network = features.read_features(network_file(work))
    made = references.load_references(network, work / "data", tmp_path)
    assert made.captions == tuple(captions)
    assert len(list(tmp_path.iterdir())) == 1
    with monkeypatch.context() as patch:
        patch.delattr(references, "describe_sprites")
        again = references.load_references(network, work / "data", tmp_path)
    assert torch.equal(again.features, made.features)
    assert again.key == made.key
    torch.manual_seed(1)
    other = references.load_references(features.FeatureNetwork().eval(), work / "data", tmp_path)
    assert other.key != made.key
    assert not torch.equal(other.features, made.features)
    assert len(os.listdir(tmp_path)) == 2


def test_several_folders_are_one(work: Path, tmp_path: Path) -> None:
    one = references.load_references(features.read_features(network_file(work)), work / "data", tmp_path)
    both = references.join_references([one, one])
    assert both.features.shape[0] == len(both.captions) == len(both.labels) == len(both.styles) == 16
    assert both.key != one.key


def test_a_folder_without_pictures_says_what_to_type(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=f"fewstep train data --work {tmp_path}$"):
        references.check_folders([tmp_path / "data"])
