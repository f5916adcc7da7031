"""The feature space that pictures are compared in: a small network that has seen real pictures only.

It takes the place of Inception-v3 in the usual measures (Heusel et al. 2017, arXiv:1706.08500), which
knows photographs, and of CLIP: it has 0.5 M parameters, ships with the bundled model, and answers what
is asked here: which of the training pictures is this?
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fewstep.catalog.models import TINY
from fewstep.errors import ModelNotFoundError
from fewstep.files.untrusted import raise_as_corrupt
from fewstep.train.bundled import sprite_pictures
from fewstep.train.bundled.data import sha256

SHIPPED = TINY / "features" / "features.safetensors"
SIDE = 64  # pixels, what the network looks at
WIDTH = 128  # of a feature
BATCH = 128  # pictures looked at together


class FeatureNetwork(nn.Module):
    """Pictures (B, 3, 64, 64) in [-1, 1] → features (B, 128) of length 1; 0.49 M parameters.

    Its last layer sees where things are, by 4 x 4 places: emoji differ by where the tear is.
    """

    def __init__(self) -> None:
        super().__init__()
        self.body: nn.Module = nn.Sequential(
            *_make_layer(3, 32, stride=2), *_make_layer(32, 32),
            *_make_layer(32, 64, stride=2), *_make_layer(64, 64),
            *_make_layer(64, 128, stride=2), *_make_layer(128, 128),
            *_make_layer(128, 64, stride=2),
        )  # fmt: skip
        self.out: nn.Module = nn.Linear(64 * 4 * 4, WIDTH)

    def forward(self, pictures: Tensor) -> Tensor:
        answer: Tensor = self.out(self.body(pictures).flatten(1))
        return F.normalize(answer.float(), dim=1)


def _make_layer(width: int, out: int, stride: int = 1) -> tuple[nn.Module, ...]:
    return nn.Conv2d(width, out, 3, stride, padding=1, bias=False), nn.GroupNorm(8, out), nn.SiLU()


@torch.no_grad()
def describe_pictures(network: FeatureNetwork, pictures: Tensor) -> Tensor:
    """Features (N, 128) of pictures (N, 3, H, W), uint8, or in [-1, 1]; each of length 1."""
    return torch.cat([network(prepare_pictures(part)) for part in pictures.split(BATCH)])


def prepare_pictures(pictures: Tensor) -> Tensor:
    """Pictures (B, 3, H, W), uint8 or in [-1, 1], as the network sees them: (B, 3, 64, 64) in [-1, 1]."""
    if pictures.dtype == torch.uint8:
        pictures = pictures.float() / 127.5 - 1
    return F.interpolate(pictures, (SIDE, SIDE), mode="area")


def write_features(network: FeatureNetwork, path: Path) -> str:
    """Write the network in fp16; return the file's sha256."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: tensor.half().contiguous() for key, tensor in network.state_dict().items()}, path)
    return sha256(path)


def read_features(path: Path = SHIPPED) -> FeatureNetwork:
    """The network that `write` wrote, in fp32; `ModelNotFoundError` where it is not there."""
    if not path.is_file():
        raise ModelNotFoundError(
            f"the feature network {path} is not there: type fewstep train features --work DIR, "
            "then --features DIR/features/features.safetensors"
        )
    network: Any = FeatureNetwork()
    with raise_as_corrupt(path):
        network.load_state_dict({key: tensor.float() for key, tensor in load_file(path).items()})
    network.eval().requires_grad_(False)
    loaded: FeatureNetwork = network
    return loaded


def retrieval_hits(
    features: Tensor, references: Tensor, labels: Sequence[str], query_labels: Sequence[str], nearest: int
) -> Tensor:
    """Retrieval@k: whether a feature's label is among those of its k nearest references; (N,), bool.

    features (N, D); references (P, V, D): P pictures, each in V views, of which the one that fits best
    counts, so that k nearest are k distinct pictures; labels (P), query_labels (N). Near is a large cosine.
    """
    likeness = (
        (features @ references.flatten(0, 1).T).unflatten(1, references.shape[:2]).amax(dim=2)
    )  # (N, P)
    indices = likeness.topk(min(nearest, len(references)), dim=1).indices.tolist()
    return torch.tensor(
        [label in {labels[i] for i in row} for label, row in zip(query_labels, indices, strict=True)],
        dtype=torch.bool,
    )


BACKDROPS = ("white", "blue", "yellow")  # captions leave the background open; white is the most frequent


_SPRITE_BATCH = 128  # sprites


def describe_sprites(network: FeatureNetwork, sprites: Tensor) -> Tensor:
    """Features (P, 3, D) of uint8 sprites (P, 4, H, W) on each of `BACKDROPS`."""
    colours = torch.tensor([sprite_pictures.COLOURS[name] for name in BACKDROPS]).view(-1, 1, 3, 1, 1) / 255
    views = []
    for part in sprites.split(_SPRITE_BATCH):
        layers = part.float() / 255
        pictures = (layers[:, :3] + (1 - layers[:, 3:]) * colours) * 2 - 1  # (3, B, 3, H, W)
        views.append(torch.stack([describe_pictures(network, view) for view in pictures], dim=1))
    return torch.cat(views)
