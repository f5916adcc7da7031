"""What generated pictures are compared with: every real picture, as features."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from fewstep.errors import RequestError
from fewstep.evaluation.features import FeatureNetwork, describe
from fewstep.train import augment, data, tensors
from fewstep.train.data import Caption, sha256

BACKDROPS = ("white", "blue", "yellow")  # captions leave the background open; white is the most frequent
_BATCH = 128  # sprites


@dataclass(frozen=True, kw_only=True)
class References:
    """Real pictures, each plain, on every one of `BACKDROPS`."""

    features: Tensor  # (P, 3, D), each of length 1
    captions: tuple[Caption, ...]  # of the P pictures
    key: str  # tells which network saw which sprites

    @property
    def labels(self) -> list[str]:
        """Each picture's name."""
        return [caption.label for caption in self.captions]

    @property
    def styles(self) -> list[str]:
        """Each picture's style."""
        return [caption.style for caption in self.captions]


def of(network: FeatureNetwork, sprites: Tensor) -> Tensor:
    """Features (P, 3, D) of uint8 sprites (P, 4, H, W) on each of `BACKDROPS`."""
    colours = torch.tensor([augment.COLOURS[name] for name in BACKDROPS]).view(-1, 1, 3, 1, 1) / 255
    views = []
    for part in sprites.split(_BATCH):
        layers = part.float() / 255
        pictures = (layers[:, :3] + (1 - layers[:, 3:]) * colours) * 2 - 1  # (3, B, 3, H, W)
        views.append(torch.stack([describe(network, view) for view in pictures], dim=1))
    return torch.cat(views)


def check(folders: Sequence[Path]) -> None:
    """Are there real pictures in each?"""
    for folder in folders:
        if not all(path.is_file() for path in data.files(folder)):
            raise RequestError(
                f"{folder} holds no real pictures to compare with: "
                f"type fewstep train data --work {folder.parent}"
            )


def load(network: FeatureNetwork, folder: Path, cache: Path, apart: str = "") -> References:
    """Of all sprites in a data folder, as `train.data.build` wrote it, or of a style that is apart there.

    `cache` keeps them for next time.
    """
    seen = f"{tensors.digest(network)} {sha256(data.files(folder, apart)[0])}"
    key = hashlib.sha256(seen.encode()).hexdigest()
    path = cache / f"references-{key[:12]}.safetensors"
    if not path.exists():
        tensors.write({"features": of(network, data.load(folder, apart)[0])}, path)
    captions = tuple(data.captions(folder, apart))
    return References(features=load_file(path)["features"], captions=captions, key=key)


def joined(parts: Sequence[References]) -> References:
    """Several folders' as one."""
    key = hashlib.sha256(" ".join(part.key for part in parts).encode()).hexdigest()
    return References(
        features=torch.cat([part.features for part in parts]),
        captions=tuple(caption for part in parts for caption in part.captions),
        key=key,
    )
