"""The pictures that are measured, and how long one takes: the product's own loop, in larger batches."""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from fewstep.engine import Engine
from fewstep.images import image_to_tensor
from fewstep.request import PictureOptions
from fewstep.train import outputs
from fewstep.train.bundled.data import PICTURE_SIZE, sha256

BATCH = 32  # pictures in a call; with guidance twice as many rows, which is where a CPU is fastest
WARM_UP = 3  # calls that are not timed


@dataclass(frozen=True, kw_only=True)
class CellConfig:
    """The pictures of one row: entry i of the tuples is picture i."""

    mode: str
    steps: int
    guidance: float
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    loras: tuple[tuple[str, float], ...] = ()

    def options(self, seed: int | Sequence[int]) -> PictureOptions:
        """What is said to the engine beside prompts and steps."""
        return {"guidance": self.guidance, "loras": self.loras, "seed": seed}


@dataclass(frozen=True, kw_only=True)
class DrawingProgress:
    """How far the pictures of one row are."""

    mode: str
    steps: int
    pictures: int
    of: int


def batched_engine(engine: Engine) -> Engine:
    """The same networks behind the same loop, but the UNet is called with all pictures of a call at once.

    On a CPU the product calls it picture by picture, so that no bit depends on the batch. The VAE
    stays with one picture: more at a time gain nothing there.
    """
    parts = replace(engine.parts, accelerator=None)  # the mode's own LoRA is in the weights already
    return Engine(engine.choice, replace(engine.placement, batch=0), parts)


def draw_cell(engine: Engine, cell: CellConfig) -> Generator[DrawingProgress, None, Tensor]:
    """Make the pictures; return them as uint8 (N, 3, h, w), at most 128 pixels high, in RAM."""
    twin, pictures = batched_engine(engine), list[Tensor]()
    for start in range(0, len(cell.prompts), BATCH):
        part = slice(start, start + BATCH)
        options = cell.options(cell.seeds[part])
        result = twin.generate(cell.prompts[part], cell.steps, progress=False, **options)
        pictures += [reduce_picture(image_to_tensor(image)) for image in result]
        yield DrawingProgress(mode=cell.mode, steps=cell.steps, pictures=len(pictures), of=len(cell.prompts))
    return torch.cat(pictures)


def reduce_picture(picture: Tensor) -> Tensor:
    """(1, 3, H, W) in [-1, 1] → uint8, those over 128 pixels made smaller by areas."""
    height, width = picture.shape[2:]
    if height > PICTURE_SIZE:
        picture = F.interpolate(picture, (PICTURE_SIZE, PICTURE_SIZE * width // height), mode="area")
    return ((picture + 1) * 127.5).round().to(torch.uint8)


def draw_or_load(
    engine: Engine, cell: CellConfig, key: str, cache: Path
) -> Generator[DrawingProgress, None, Tensor]:
    """As `draw_cell`, once: `cache` keeps the pictures under their key."""
    path = cache / f"pictures-{key[:12]}.safetensors"
    if not path.exists():
        pictures = yield from draw_cell(engine, cell)
        outputs.write_tensors({"pictures": pictures}, path)
    return load_file(path)["pictures"]


def engine_digest(engine: Engine) -> str:
    """The sha256 of all weights; of an engine that has not drawn: LoRAs of a call stay on until the next."""
    parts = engine.parts
    digests = [outputs.network_digest(network) for network in (parts.unet, parts.vae, *parts.text.encoders)]
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()


def cell_key(weights: str, engine: Engine, cell: CellConfig) -> str:
    """The sha256 of all that the pictures depend on; `weights` as `engine_digest` says."""
    loras = [(sha256(Path(file)) if os.path.isfile(file) else file, scale) for file, scale in cell.loras]
    place = [str(engine.placement.device), str(engine.placement.dtype)]
    facts = [weights, asdict(cell) | {"loras": loras}, *place]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def time_calls(engine: Engine, cell: CellConfig, repeats: int) -> tuple[float, float, float]:
    """Milliseconds from prompt to PIL image, warm: median, lower and upper quartile of single calls.

    Each call has another prompt, as far as there are so many, so that encoding it is part of it.
    """
    distinct = list(dict.fromkeys(cell.prompts))
    engine.parts.text.forget()
    milliseconds = []
    for i, text in enumerate(_cycle_prompts(distinct, WARM_UP + repeats)):
        started = time.perf_counter()
        engine.generate(text, cell.steps, progress=False, **cell.options(cell.seeds[0] + i))
        milliseconds.append(1000 * (time.perf_counter() - started))
    return _quartiles(milliseconds[WARM_UP:])


def _cycle_prompts(words: Sequence[str], count: int) -> Iterator[str]:
    return (words[i % len(words)] for i in range(count))


def _quartiles(numbers: list[float]) -> tuple[float, float, float]:
    """Median, lower and upper quartile."""
    if len(numbers) < 2:
        return numbers[0], numbers[0], numbers[0]
    low, middle, high = statistics.quantiles(numbers, n=4, method="inclusive")
    return middle, low, high
