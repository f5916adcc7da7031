"""Stable Diffusion 1.x and 2.x (Rombach et al. 2022, arXiv:2112.10752): one text encoder, no size ids.

1.x reads CLIP ViT-L's last layer; 2.x OpenCLIP ViT-H's last but one, which diffusers' folders have as
the last of 23. Both go through the encoder's final norm (CompVis' and Stability's `FrozenCLIPEmbedder`,
`FrozenOpenCLIPEmbedder` with layer="penultimate").
"""

from __future__ import annotations

from fewstep.architectures import Architecture, EncoderLayout, SingleFileLayout
from fewstep.architectures.text import TextLayout
from fewstep.catalog.architectures import SD

VAE = 83_653_863

ARCHITECTURE = Architecture(
    info=SD,
    text=TextLayout(penultimate=False, summary=False, size_ids=False),
    single_files=(
        SingleFileLayout(
            encoders=(
                EncoderLayout(
                    part="text_encoder",
                    prefix="cond_stage_model.transformer.",
                    open_clip=False,
                    activation="quick_gelu",
                ),
            ),
            heads=8,  # v1-inference.yaml, num_heads
            latent_side=64,
        ),
        SingleFileLayout(
            encoders=(
                EncoderLayout(
                    part="text_encoder",
                    prefix="cond_stage_model.model.",
                    open_clip=True,
                    activation="gelu",
                    drops_last=True,
                    pads_with_end=False,
                ),
            ),
            latent_side=64,  # 96 in the 768-pixel models, which no tensor tells
        ),
    ),
    sizes={"sd-1.x": (859_520_964, 123_060_480, VAE), "sd-2.x": (865_910_724, 340_387_840, VAE)},
)
