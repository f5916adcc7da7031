"""The seam for architectures: what is read of a prompt, where a single file has its parts, how large all is.

One file for each architecture holds its `Architecture`; what `plan` must know of it is in
`fewstep.catalog.architectures`, in words. Latents of all are (B, 4, H/8, W/8).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING

from fewstep.catalog.architectures import ArchitectureInfo, architecture_of

if TYPE_CHECKING:
    from fewstep.architectures.text import TextLayout


@dataclass(frozen=True, kw_only=True)
class EncoderLayout:
    """One text encoder in a single file of the original layout."""

    part: str  # its name in a diffusers folder
    prefix: str  # before its tensors' names
    open_clip: bool  # OpenCLIP's names, or transformers'
    activation: str  # quick_gelu in OpenAI's CLIP, gelu in OpenCLIP
    kind: str = "CLIPTextModel"
    projected: bool = False  # whether its summary of a prompt is used, and must be there
    drops_last: bool = False  # whether the last layer is left out: its output is used by nobody
    pads_with_end: bool = True  # what fills a short prompt up: the end sign, or "!" (number 0)


@dataclass(frozen=True, kw_only=True)
class SingleFileLayout:
    """A whole model in one file, as its authors wrote it."""

    encoders: tuple[EncoderLayout, ...]
    heads: int = 0  # of the UNet's attention, the same at every level; 0: as many as there are 64 channels
    latent_side: int = 128  # the UNet was trained at
    zero_empty: bool = False  # whether an empty prompt is all zeros


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What code must know of an architecture."""

    info: ArchitectureInfo
    text: TextLayout
    single_files: tuple[SingleFileLayout, ...]
    # Parameters of UNet, text encoders and VAE, as their configurations count, by family.
    sizes: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)


def load_architecture(info: ArchitectureInfo) -> Architecture:
    """Return the architecture that these words describe."""
    architecture: Architecture = import_module(f"fewstep.architectures.{info.name}").ARCHITECTURE
    return architecture


def architecture_for(family: str) -> Architecture:
    """Return the architecture of a family that fewstep draws with."""
    return load_architecture(architecture_of(family))
