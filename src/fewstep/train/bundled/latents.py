"""Training pictures encoded once: several random placements of every sprite, as latents."""

from __future__ import annotations

import random
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file
from torch import Tensor

from fewstep.train import outputs
from fewstep.train.bundled import sprite_pictures
from fewstep.train.bundled.data import Caption
from fewstep.train.loop import Draw, Progress, bf16_autocast

VARIANTS = 6  # placements of each sprite
HELD_OUT = 20  # one in so many (name, style) pairs is never trained on
_NAMES = (None, *sprite_pictures.COLOURS)


@dataclass(frozen=True)
class Latents:
    """fp16 latents (N, 4, 16, 16), normalised per channel, with what is known of each."""

    values: Tensor
    backdrops: Tensor  # (N,) index into the background names; 0 is "not one colour"
    captions: list[Caption]  # of the sprites, which repeat every len(captions) rows
    mean: Tensor  # (4,)
    std: Tensor  # (4,)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return 8 * self.values.shape[2], 8 * self.values.shape[3]

    @cached_property
    def shown(self) -> Tensor:
        """The rows to train on: those of captions that are not held out."""
        held_out = torch.tensor(held_out_pairs(self.captions))
        return (~held_out).repeat(len(self.values) // len(held_out)).nonzero()[:, 0]

    def batch(self, size: int, draw: Draw, empty: float) -> tuple[Tensor, list[str]]:
        """`size` random latents, fp32, each with a way of saying what it shows; "" at the rate `empty`."""
        index = self.shown[torch.randint(len(self.shown), (size,), generator=draw.torch)]
        prompts = [
            sprite_pictures.make_prompt(
                self.captions[i % len(self.captions)], _NAMES[int(self.backdrops[i])], draw.python, empty
            )
            for i in index.tolist()
        ]
        return self.values[index].float(), prompts


def held_out_pairs(captions: list[Caption]) -> list[bool]:
    """Return which are kept from training: a twentieth of those whose name is there in another style too."""
    names = Counter(caption.label for caption in captions)
    return [
        names[c.label] > 1 and zlib.crc32(f"{c.label}, {c.style} style".encode()) % HELD_OUT == 0
        for c in captions
    ]


def encode_sprites(
    vae: AutoencoderKL, sprites: Tensor, path: Path, *, scaling: Latents | None = None, seed: int = 1
) -> Iterator[Progress]:
    """Encode all placements to `path`, normalised as `scaling` is; yield the number done after each batch."""
    rng = random.Random(seed)
    noise = torch.Generator().manual_seed(seed)
    values: list[Tensor] = []
    backdrops: list[int] = []
    with torch.no_grad(), bf16_autocast(vae.device):
        for _ in range(VARIANTS):
            for part in sprites.split(128):
                pictures, names = sprite_pictures.make_pictures(part, rng)
                values.append(vae.encode(pictures.to(vae.device)).latent_dist.sample(noise).float().cpu())
                backdrops += [_NAMES.index(name) for name in names]
                yield Progress(len(backdrops), 0.0, 0.0)
    latents = torch.cat(values)
    mean, std = (
        (latents.mean(dim=(0, 2, 3)), latents.std(dim=(0, 2, 3)))
        if scaling is None
        else (scaling.mean, scaling.std)
    )
    normal = (latents - mean.view(1, 4, 1, 1)) / std.view(1, 4, 1, 1)
    content = {"values": normal.half(), "backdrops": torch.tensor(backdrops), "mean": mean, "std": std}
    outputs.write_tensors(content, path)


def read_latents(path: Path, captions: list[Caption]) -> Latents:
    """Read what `encode` wrote."""
    tensors = load_file(path)
    return Latents(tensors["values"], tensors["backdrops"], captions, tensors["mean"], tensors["std"])
