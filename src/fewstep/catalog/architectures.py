"""What each architecture is made of, in words: parts and their classes, latents, and what may go beside it.

An architecture says what is stepped; its families (SD 1.x and 2.x, SDXL and SSD-1B) share it and have
weights of their own. The code that runs one is in `fewstep.architectures`; `plan` asks here, without torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from fewstep.files.identify import FAMILY_TITLES

Classes = tuple[str, tuple[str, ...]]  # a library, and classes of it

UNET: Classes = ("diffusers", ("UNet2DConditionModel",))
VAE: Classes = ("diffusers", ("AutoencoderKL", "AutoencoderTiny"))
CLIP: Classes = ("transformers", ("CLIPTextModel",))
PROJECTED_CLIP: Classes = ("transformers", ("CLIPTextModelWithProjection",))
TOKENIZER: Classes = ("transformers", ("CLIPTokenizer", "CLIPTokenizerFast"))
# Named by many folders, used by none of our tasks: allowed, and left alone.
UNUSED_PARTS: Mapping[str, Classes] = MappingProxyType(
    {
        "image_encoder": ("transformers", ("CLIPVisionModelWithProjection",)),
        "feature_extractor": ("transformers", ("CLIPImageProcessor", "CLIPFeatureExtractor")),
        "safety_checker": ("stable_diffusion", ("StableDiffusionSafetyChecker",)),
    }
)


@dataclass(frozen=True, kw_only=True)
class ArchitectureInfo:
    """An architecture in words."""

    name: str
    title: str
    families: tuple[str, ...]  # as files are told apart; the first is taken where nothing tells
    parts: Mapping[str, Classes]  # networks and tokenizers of a diffusers folder
    encoders: tuple[str, ...]  # which parts are text encoders, in their order
    addition: str | None  # the UNet's addition_embed_type
    vae_scale: float  # of latents, where a file does not say
    side: int  # pixels, where a file does not say
    features: frozenset[str] = frozenset()  # of `runtimes.FEATURES`, and "prompt_2": what calls may bring

    @property
    def networks(self) -> tuple[str, ...]:
        """The parts with weights."""
        return ("unet", "vae", *self.encoders)

    @property
    def tokenizers(self) -> tuple[str, ...]:
        """Which parts are tokenizers, one for each text encoder."""
        return tuple(name.replace("text_encoder", "tokenizer") for name in self.encoders)


SDXL = ArchitectureInfo(
    name="sdxl",
    title="SDXL",
    families=("sdxl", "ssd-1b", "tiny"),
    parts=MappingProxyType(
        {
            "unet": UNET, "vae": VAE, "text_encoder": CLIP, "text_encoder_2": PROJECTED_CLIP,
            "tokenizer": TOKENIZER, "tokenizer_2": TOKENIZER,
        }
    ),
    encoders=("text_encoder", "text_encoder_2"),
    addition="text_time",
    vae_scale=0.13025,  # generative-models' sd_xl_base.yaml, scale_factor
    side=1024,  # arXiv:2307.01952, sec. 2.5
    features=frozenset({"loras", "control", "reference", "prompt_2"}),
)  # fmt: skip
SD = ArchitectureInfo(
    name="sd",
    title="Stable Diffusion 1.x and 2.x",
    families=("sd-1.x", "sd-2.x"),
    parts=MappingProxyType({"unet": UNET, "vae": VAE, "text_encoder": CLIP, "tokenizer": TOKENIZER}),
    encoders=("text_encoder",),
    addition=None,
    vae_scale=0.18215,  # CompVis' v1-inference.yaml and Stability's v2-inference.yaml, scale_factor
    side=512,
    features=frozenset({"loras"}),
)
ARCHITECTURES: Mapping[str, ArchitectureInfo] = MappingProxyType({info.name: info for info in (SDXL, SD)})
DRAWABLE = frozenset(family for info in ARCHITECTURES.values() for family in info.families)


def architecture_of(family: str) -> ArchitectureInfo:
    """Return the architecture of a family that fewstep draws with."""
    return next(info for info in ARCHITECTURES.values() if family in info.families)


def architecture_of_folder(index: Mapping[str, Any]) -> ArchitectureInfo:
    """Return the architecture that a diffusers folder's model_index.json speaks of."""
    return SDXL if "text_encoder_2" in index else SD


def family_of_config(architecture: ArchitectureInfo, unet: Mapping[str, Any]) -> str:
    """Return the family of a UNet by its configuration; "" where it is not of this architecture."""
    if unet.get("addition_embed_type") != architecture.addition:
        return ""
    width = unet.get("cross_attention_dim")
    if architecture is SD:
        return "sd-2.x" if width == 1024 else "sd-1.x"
    if width == 192:  # the bundled model's 64 + 128
        return "tiny"
    depths, middle = unet.get("transformer_layers_per_block"), unet.get("mid_block_type")
    small = isinstance(depths, list) and depths[-1:] == [4]  # SSD-1B has 4 where SDXL has 10
    return "ssd-1b" if small and middle == "UNetMidBlock2D" else "sdxl"


def family_of_networks(targets: Sequence[str]) -> str:
    """Return the family where only the networks of a single file tell: SDXL's has two text encoders."""
    return SDXL.families[0] if "text_encoder_2" in targets else SD.families[0]


def title_of(family: str) -> str:
    """Return a family's name for people."""
    return FAMILY_TITLES.get(family, FAMILY_TITLES["unknown"])
