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
from fewstep.train import outputs
from fewstep.train.bundled import data
from fewstep.train.bundled.data import Caption, sha256
from fewstep.train.bundled.features import (
    FeatureNetwork,
    describe_sprites,
)


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


def check_folders(folders: Sequence[Path]) -> None:
    """Check that there are real pictures in each."""
    for folder in folders:
        if not all(path.is_file() for path in data.sprite_files(folder)):
            raise RequestError(
                f"{folder} holds no real pictures to compare with: "
                f"type fewstep train data --work {folder.parent}"
            )


def load_references(network: FeatureNetwork, folder: Path, cache: Path, apart: str = "") -> References:
    """Return the references of a data folder's sprites, or of a style that is apart there.

    `cache` keeps them for next time.
    """
    digests = f"{outputs.network_digest(network)} {sha256(data.sprite_files(folder, apart)[0])}"
    key = hashlib.sha256(digests.encode()).hexdigest()
    path = cache / f"references-{key[:12]}.safetensors"
    if not path.exists():
        outputs.write_tensors(
            {"features": describe_sprites(network, data.load_sprites(folder, apart)[0])}, path
        )
    captions = tuple(data.load_captions(folder, apart))
    return References(features=load_file(path)["features"], captions=captions, key=key)


def join_references(parts: Sequence[References]) -> References:
    """Return several folders' references as one."""
    key = hashlib.sha256(" ".join(part.key for part in parts).encode()).hexdigest()
    return References(
        features=torch.cat([part.features for part in parts]),
        captions=tuple(caption for part in parts for caption in part.captions),
        key=key,
    )
