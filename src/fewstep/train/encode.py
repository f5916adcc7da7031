"""A user's pictures as latents: encoded once, by the model's own VAE, and kept in the out folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from fewstep.architectures.text import Size
from fewstep.codec import Codec
from fewstep.errors import FewstepError
from fewstep.train import outputs
from fewstep.train.loop import Draw
from fewstep.train.pictures import TrainingPicture


@dataclass(frozen=True)
class EncodingProgress:
    """So many pictures are encoded."""

    done: int
    of: int


@dataclass(frozen=True, kw_only=True)
class EncodedPictures:
    """Latents (N, 4, h, w) as the UNet sees them, fp16, on the CPU, and what each shows."""

    values: Tensor
    captions: Sequence[str]

    @property
    def size(self) -> Size:
        """Height and width in pixels."""
        return 8 * self.values.shape[2], 8 * self.values.shape[3]

    def batch(self, size: int, draw: Draw, empty: float) -> tuple[Tensor, list[str]]:
        """`size` random latents, fp32, and their captions, each "" with the probability `empty`."""
        index = torch.randint(len(self.values), (size,), generator=draw.torch)
        prompts = ["" if draw.python.random() < empty else self.captions[i] for i in index.tolist()]
        return self.values[index].float(), prompts


def cache_name(data: str, vae: Any, side: int) -> str:
    """Return the name of the file for these pictures (their fingerprint), this VAE and this size."""
    config = json.dumps(dict(vae.config), default=str)
    digest = hashlib.sha256(f"{data} {side} {config} {outputs.network_digest(vae)}".encode())
    return f"latents-{digest.hexdigest()[:16]}.safetensors"


def encode_pictures(
    pictures: Sequence[TrainingPicture], codec: Codec, side: int, path: Path
) -> Iterator[EncodingProgress]:
    """Encode all to `path`, one at a time; picture i draws its sample of the posterior from seed i."""
    cells = side // 8
    values = torch.empty(len(pictures), 4, cells, cells, dtype=torch.float16, device="cpu")
    noted: set[str] = set()
    for index, picture in enumerate(pictures):
        generator = torch.Generator("cpu").manual_seed(index)
        noise = torch.randn(1, 4, cells, cells, generator=generator, dtype=torch.float32, device="cpu")
        latents = codec.encode(picture.tensor(side, noted), noise)
        if not latents.isfinite().all():
            raise FewstepError(f"{picture.name}: the VAE gave numbers that are not finite; leave it out")
        values[index] = latents[0].cpu()
        yield EncodingProgress(index + 1, len(pictures))
    outputs.write_tensors({"values": values}, path)


def load_encoded(path: Path, pictures: Sequence[TrainingPicture]) -> EncodedPictures:
    """Read what `encode` wrote."""
    return EncodedPictures(values=load_file(path)["values"], captions=[p.caption for p in pictures])
