"""Training pictures encoded once: several random placements of every sprite, as latents."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor

from fewstep.train import augment
from fewstep.train.data import Caption
from fewstep.train.loop import Progress

VARIANTS = 10  # placements of each sprite
_NAMES = (None, *augment.COLOURS)


@dataclass(frozen=True)
class Latents:
    """fp16 latents (N, 4, 16, 16), normalised per channel, with what is known of each."""

    values: Tensor
    backdrops: Tensor  # (N,) index into the background names; 0 is "not one colour"
    captions: list[Caption]  # of the sprites, which repeat every len(captions) rows
    mean: Tensor  # (4,)
    std: Tensor  # (4,)

    def batch(self, size: int, generator: torch.Generator) -> tuple[Tensor, list[tuple[Caption, str | None]]]:
        """`size` random latents, fp32, with caption and background name."""
        index = torch.randint(len(self.values), (size,), generator=generator)
        rows = [
            (self.captions[i % len(self.captions)], _NAMES[int(self.backdrops[i])]) for i in index.tolist()
        ]
        return self.values[index].float(), rows


def encode(vae: AutoencoderKL, sprites: Tensor, path: Path, *, seed: int = 1) -> Iterator[Progress]:
    """Encode all placements to `path`; yield after each batch how many are done."""
    rng = random.Random(seed)
    noise = torch.Generator().manual_seed(seed)
    values: list[Tensor] = []
    backdrops: list[int] = []
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for _ in range(VARIANTS):
            for part in sprites.split(128):
                pictures, names = augment.pictures(part, rng)
                values.append(vae.encode(pictures).latent_dist.sample(noise).float())
                backdrops += [_NAMES.index(name) for name in names]
                yield Progress(len(backdrops), 0.0, 0.0)
    latents = torch.cat(values)
    mean, std = latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3))
    normal = (latents - mean.view(1, 4, 1, 1)) / std.view(1, 4, 1, 1)
    tensors = {"values": normal.half(), "backdrops": torch.tensor(backdrops), "mean": mean, "std": std}
    save_file(tensors, path)


def load(path: Path, captions: list[Caption]) -> Latents:
    """Read what `encode` wrote."""
    tensors = load_file(path)
    return Latents(tensors["values"], tensors["backdrops"], captions, tensors["mean"], tensors["std"])
