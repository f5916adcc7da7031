"""What may be asked, as it is typed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypedDict

from fewstep.prompts import Embedding

if TYPE_CHECKING:
    from PIL.Image import Image


Prompts: TypeAlias = str | Embedding | Sequence[str | Embedding]
File: TypeAlias = str | Path


class PictureOptions(TypedDict, total=False):
    """What may be asked of a loaded engine beside prompt and steps; `fewstep.generate` says what each is."""

    prompt_2: str | Sequence[str] | None
    negative_prompt: str | Embedding
    long_prompt: str
    guidance: float | None
    guidance_rescale: float
    seed: int | Sequence[int] | None
    count: int
    width: int | None
    height: int | None
    image: File | Image | None
    mask: File | Image | None
    strength: float | None
    scheduler: str | None
    sampler: str | None
    eta: float | None
    timesteps: Sequence[int] | None
    loras: Sequence[File | tuple[File, float]]
    control: Sequence[tuple[File, File | Image, float]]
    reference: Sequence[tuple[File, File | Image, float]]


class EngineOptions(TypedDict, total=False):
    """Which engine serves a call; `fewstep.generate` says what each is."""

    model: File
    accelerator: File
    vae: File
    embeddings: Sequence[File]
    revision: str
    commercial: bool
    device: str
    precision: str
    offload: str


ENGINE_DEFAULTS: EngineOptions = {
    "model": "tiny", "accelerator": "", "vae": "", "embeddings": (), "revision": "", "commercial": False,
    "device": "auto", "precision": "auto", "offload": "auto",
}  # fmt: skip


class GenerateOptions(PictureOptions, EngineOptions, total=False):
    """All keywords of `fewstep.generate` that choose pictures or the engine."""
