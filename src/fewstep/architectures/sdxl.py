"""SDXL (Podell et al. 2023, arXiv:2307.01952): two text encoders, size ids. SSD-1B and tiny are of it."""

from __future__ import annotations

from fewstep.architectures import Architecture, EncoderLayout, SingleFileLayout
from fewstep.architectures.text import TextLayout
from fewstep.catalog.architectures import SDXL

VAE = 83_653_863
TEXT = 817_720_320  # CLIP ViT-L and OpenCLIP ViT-bigG

ARCHITECTURE = Architecture(
    info=SDXL,
    # Sec. 2.1: the penultimate layers side by side, the second encoder's summary; sec. 2.2: the sizes.
    text=TextLayout(penultimate=True, summary=True, size_ids=True),
    single_files=(
        SingleFileLayout(
            encoders=(
                EncoderLayout(
                    part="text_encoder",
                    prefix="conditioner.embedders.0.transformer.",
                    open_clip=False,
                    activation="quick_gelu",
                ),
                EncoderLayout(
                    part="text_encoder_2",
                    prefix="conditioner.embedders.1.model.",
                    open_clip=True,
                    activation="gelu",
                    kind="CLIPTextModelWithProjection",
                    projected=True,
                    pads_with_end=False,
                ),
            ),
            zero_empty=True,  # as SDXL base was trained (model_index.json, force_zeros_for_empty_prompt)
        ),
    ),
    sizes={"sdxl": (2_567_463_684, TEXT, VAE), "ssd-1b": (1_331_334_404, TEXT, VAE)},
)
