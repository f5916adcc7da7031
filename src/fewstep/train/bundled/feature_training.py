"""How the feature network learns: to tell names apart, and styles, on real pictures alone.

A picture that a model drew is softer than a sprite, and that must not move it: so real ones are
blurred, made noisy and blotchy at random. No generated picture is ever shown.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewstep.train import loop
from fewstep.train.bundled import data, features, sprite_pictures
from fewstep.train.bundled.data import Caption
from fewstep.train.bundled.features import SIDE, WIDTH, FeatureNetwork
from fewstep.train.loop import Draw, Hyper, Progress
from fewstep.train.outputs import write_record

# 89 % of real pictures found after 400 steps in a trial, 81 % with AdamW alone; `run.json` has the run's own.
HYPER = Hyper(steps=1000, batch=128, rate=3e-3, warmup=50, decay=0.7, ema=0.995, weight_decay=0.05, muon=True)
# Of cosines in the softmax: so large that the loss can vanish with 1,900 names (NormFace, Wang et al. 2017,
# arXiv:1704.06369, prop. 2).
SCALE = 20.0
MARGIN = 0.1  # that the right name must be nearer by, as a cosine
STYLE_WEIGHT = 0.3  # of the style's loss beside the name's
NOISE, BLOTCHES = 0.05, 0.08  # standard deviations, at most, of pictures in [-1, 1]


def cosine_loss(feature: Tensor, centres: Tensor, labels: Tensor) -> Tensor:
    """Softmax over scaled cosines less a margin (CosFace, Wang et al. 2018, arXiv:1801.09414, eq. 4).

    feature (B, D) of length 1, centres (C, D) of any length, right (B,) the index of the true one.
    """
    cosines = feature @ F.normalize(centres.float(), dim=1).T
    return F.cross_entropy(SCALE * (cosines - MARGIN * F.one_hot(labels, len(centres))), labels)


def soften(pictures: Tensor, draw: Draw) -> Tensor:
    """Pictures (B, 3, H, W), each blurred, noisy and blotchy to a degree of its own."""
    amounts = torch.rand(4, len(pictures), 1, 1, 1, generator=draw.torch)
    twice = blur(once := blur(pictures))
    soft = pictures.lerp(once, amounts[0]).lerp(twice, amounts[1] * amounts[0])
    small = (*pictures.shape[:2], pictures.shape[2] // 8, pictures.shape[3] // 8)
    blotches = F.interpolate(torch.randn(small, generator=draw.torch), pictures.shape[2:], mode="bilinear")
    noise = torch.randn(pictures.shape, generator=draw.torch)
    return soft + NOISE * amounts[2] ** 2 * noise + BLOTCHES * amounts[3] ** 2 * blotches


def blur(pictures: Tensor) -> Tensor:
    """Blur by (1, 2, 1)/4 each way; what is beyond the edge is the edge."""
    padded = F.pad(pictures, (1, 1, 1, 1), mode="replicate")
    rows = (padded[:, :, :-2] + 2 * padded[:, :, 1:-1] + padded[:, :, 2:]) / 4
    return (rows[..., :-2] + 2 * rows[..., 1:-1] + rows[..., 2:]) / 4


class FeaturesTask:
    """Which name, and which style, is this sprite, however it is placed?"""

    def __init__(self, sprites: Tensor, captions: list[Caption], batch: int):
        """sprites: uint8, (N, 4, H, W), premultiplied; made smaller here once, so that steps are cheap."""
        self.sprites: Tensor = shrink_sprites(sprites)
        self.batch: int = batch
        self.names: Tensor = _class_numbers([caption.label for caption in captions])
        self.styles: Tensor = _class_numbers([caption.style for caption in captions])
        self.network: FeatureNetwork = FeatureNetwork()
        name_head = nn.Linear(WIDTH, int(self.names.max()) + 1, bias=False)
        style_head = nn.Linear(WIDTH, int(self.styles.max()) + 1)
        self.modules: dict[str, nn.Module] = {
            "network": self.network, "names": name_head, "styles": style_head
        }  # fmt: skip
        self.averages: dict[str, nn.Module] = copy.deepcopy(self.modules)

    def loss(self, draw: Draw) -> Tensor:
        index = torch.randint(len(self.sprites), (self.batch,), generator=draw.torch)
        pictures, _ = sprite_pictures.make_pictures(self.sprites[index], draw.python)
        feature = self.network(soften(pictures, draw))
        styles = self.modules["styles"](SCALE * feature).float()
        centres = self.modules["names"].get_parameter("weight")
        style_loss = F.cross_entropy(styles, self.styles[index])
        return cosine_loss(feature, centres, self.names[index]) + STYLE_WEIGHT * style_loss


def shrink_sprites(sprites: Tensor) -> Tensor:
    """uint8 sprites (N, 4, H, W) → (N, 4, 64, 64), by areas; premultiplied colours may be averaged."""
    small = [F.interpolate(part.float(), (SIDE, SIDE), mode="area") for part in sprites.split(256)]
    return torch.cat([part.round().to(torch.uint8) for part in small])


def _class_numbers(words: list[str]) -> Tensor:
    """Each word's place among the distinct ones, (N,)."""
    places = {word: place for place, word in enumerate(sorted(set(words)))}
    return torch.tensor([places[word] for word in words])


@torch.no_grad()
def measure_features(
    network: FeatureNetwork, sprites: Tensor, captions: list[Caption], *, seed: int = 7
) -> float:
    """Return the share of sprites, placed and softened anew, whose nearest plain picture has their name."""
    from fewstep.train.bundled import features
    from fewstep.train.bundled.features import retrieval_hits

    plain_features = features.describe_sprites(network, sprites)
    draw = Draw(torch.Generator().manual_seed(seed), random.Random(seed))
    placed_features = [
        network(soften(sprite_pictures.make_pictures(part, draw.python)[0], draw))
        for part in shrink_sprites(sprites).split(128)
    ]
    names = [caption.label for caption in captions]
    return float(
        retrieval_hits(torch.cat(placed_features), plain_features, names, names, nearest=1).float().mean()
    )


def train_features(work: Path) -> Iterator[Progress]:
    """The stage: train, and write `work/features/features.safetensors` and its record."""
    folder, (sprites, captions) = work / "features", data.load_sprites(work / "data")
    torch.manual_seed(HYPER.seed)
    learner = FeaturesTask(sprites, captions, HYPER.batch)
    yield from loop.train_task(learner, HYPER, folder)
    loop.restore(learner.averages, folder)
    network: Any = learner.averages["network"]
    digest = features.write_features(network, folder / "features.safetensors")
    accuracy = measure_features(network, sprites, captions)
    facts = {"retrieval_1_of_real_pictures": accuracy, "sha256": digest, "hyper": asdict(HYPER)}
    write_record(folder, facts)
