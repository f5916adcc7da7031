"""Which base a network is of, or an adapter is for: told by widths and depths."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

Shape = tuple[int, ...]
UNKNOWN = "unknown"

# Width of the text that cross-attention reads → family.
CONTEXTS: MappingProxyType[int, str] = MappingProxyType(
    {
        768: "sd-1.x",  # CLIP ViT-L
        1024: "sd-2.x",  # OpenCLIP ViT-H
        1280: "sdxl-refiner",  # OpenCLIP ViT-bigG alone
        2048: "sdxl",  # ViT-L and ViT-bigG; DEPTHS looks further
        192: "tiny",  # the bundled model's 64 + 128
    }
)
# Width of what is added to the timestep: pooled text and six sizes of 256 each (the refiner: five).
POOLED: MappingProxyType[int, str] = MappingProxyType(
    {2816: "sdxl", 2560: "sdxl-refiner", 5632: "kolors", 320: "tiny"}
)
# Transformer blocks at the lowest resolution, of those that SSD-1B prunes. segmind/SSD-1B's
# unet/config.json has 4 there and none in the middle, segmind/Segmind-Vega's 2, SDXL's 10 in both.
DEPTHS: MappingProxyType[int, str] = MappingProxyType({10: "sdxl", 4: "ssd-1b", 2: "vega"})
_DEPTH = re.compile(
    r"(?:down_blocks_2_attentions_\d|input_blocks_[78]_1|up_blocks_0_attentions_[01]|output_blocks_[01]_1)"
    r"_transformer_blocks_(\d{1,3})_.*"
)
_MIDDLE = ("mid_block_attentions_", "middle_block_1_transformer")
# Transformers, not UNets: parts of names, underscored.
FOREIGN = (
    ("single_transformer_blocks_", "flux"), ("double_blocks_", "flux"),
    ("joint_blocks_", "sd3"), ("_attn_add_q_proj", "sd3"),
)  # fmt: skip
# What files say of themselves, asked where shapes say nothing: how the value begins.
SAYING = ("modelspec.architecture", "ss_base_model_version")
SAID = (
    ("stable-diffusion-xl-v1-refiner", "sdxl-refiner"), ("stable-diffusion-xl-v1", "sdxl"),
    ("stable-diffusion-v1", "sd-1.x"), ("stable-diffusion-v2", "sd-2.x"), ("stable-diffusion-3", "sd3"),
    ("flux", "flux"), ("sdxl", "sdxl"), ("sd_v1", "sd-1.x"), ("sd_v2", "sd-2.x"), ("sd3", "sd3"),
)  # fmt: skip
# Learned words: widths of the text encoders that they are for.
WORDS: MappingProxyType[frozenset[int], str] = MappingProxyType(
    {frozenset({768}): "sd-1.x", frozenset({1024}): "sd-2.x", frozenset({768, 1280}): "sdxl"}
)
# Width of a text encoder's words. SDXL's first is SD 1.x's too.
TEXTS: MappingProxyType[int, str] = MappingProxyType({1280: "sdxl", 1024: "sd-2.x", 64: "tiny", 128: "tiny"})


@dataclass(frozen=True, kw_only=True)
class Anatomy:
    """A UNet, or as much of one as an adapter touches; 0 is not seen."""

    context: int = 0  # width of the text that cross-attention reads
    pooled: int = 0
    channels: int = 0  # of its input
    depth: int = 0  # transformer blocks where SSD-1B has fewer
    middle: bool = False  # does its middle attend?


def anatomy(modules: Mapping[str, Shape]) -> Anatomy:
    """`modules`: name, underscored → shape of its weight, (outputs, inputs, …)."""
    widths = {name: shape[1] for name, shape in modules.items() if len(shape) > 1}
    context = [width for name, width in widths.items() if name.endswith(("attn2_to_k", "attn2_to_v"))]
    depths = [int(found[1]) + 1 for name in modules if (found := _DEPTH.fullmatch(name))]
    return Anatomy(
        context=max(context, default=0),
        pooled=widths.get("add_embedding_linear_1", widths.get("label_emb_0_0", 0)),
        channels=widths.get("conv_in", widths.get("input_blocks_0_0", 0)),
        depth=max(depths, default=0),
        middle=any(name.startswith(_MIDDLE) for name in modules),
    )


def of_unet(unet: Anatomy) -> str:
    """Of a whole UNet."""
    family = POOLED.get(unet.pooled, UNKNOWN) if unet.context == 2048 else CONTEXTS.get(unet.context, UNKNOWN)
    if family == "sdxl":
        family = DEPTHS.get(unet.depth, UNKNOWN)
        if unet.middle != (family == "sdxl"):
            return UNKNOWN
    if family == "sdxl" and unet.channels != 4:
        return "sdxl-inpaint" if unet.channels == 9 else UNKNOWN  # latents, mask, masked latents
    return family


def of_adapter(unet: Anatomy) -> str:
    """Of an adapter, which may touch little of its base; "" where that is too little to tell."""
    if unet.context == 2048 or (not unet.context and unet.depth > 4):
        return "sdxl" if unet.middle else DEPTHS.get(unet.depth, "sdxl")
    return CONTEXTS.get(unet.context, UNKNOWN) if unet.context else ""


def of_controlnet(unet: Anatomy) -> str:
    """Of a ControlNet; the small ones do not attend at all."""
    return CONTEXTS.get(unet.context) or POOLED.get(unet.pooled, UNKNOWN)


def of_part(shapes: Mapping[str, Shape]) -> str:
    """Of a text encoder or VAE on its own; SDXL shares CLIP ViT-L and its VAE's shapes with SD 1.x."""
    for name, shape in shapes.items():
        if name.endswith("token_embedding.weight") and len(shape) == 2:
            return TEXTS.get(shape[1], UNKNOWN)
    # The bundled AutoencoderKL's, and its AutoencoderTiny's: 64 wide are those of SD 1.x and of SDXL.
    full, small = (shapes.get(f"decoder.{name}.weight", ())[:2] for name in ("conv_in", "layers.0"))
    return "tiny" if full == (128, 4) or small == (32, 4) else UNKNOWN


def foreign(names: Iterable[str]) -> str:
    """The family of a transformer that is no UNet; "" is none."""
    flat = [name.replace(".", "_") for name in names]
    return next((family for part, family in FOREIGN if any(part in name for name in flat)), "")


def said(metadata: Mapping[str, str]) -> str:
    """What a file says of itself."""
    words = [metadata.get(key, "").lower() for key in SAYING]
    return next((f for word in words for start, f in SAID if word.startswith(start)), UNKNOWN)
