"""One safetensors file → blueprints: Stability's original layout of a whole SDXL, or a UNet alone.

diffusers' converters rename; its single-file loader would fetch configurations and tokenizers, and
drops `time_embedding.cond_proj`, an LCM's guidance.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fewstep.errors import CorruptModelError
from fewstep.models import shapes, vocabulary
from fewstep.models.catalog import reading
from fewstep.models.networks import NEEDLESS, Blueprint, Whole, some
from fewstep.models.stored import Stored, listed

UNET, VAE = "model.diffusion_model.", "first_stage_model."
CLIP, OPEN_CLIP = "conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."
UNET_PREFIXES = (UNET, "unet.", "diffusion_model.")  # seen before the names of a UNet on its own
V_PREDICTION = "v_pred"  # a tensor of this name, whatever it holds, marks a v-prediction checkpoint
EMBEDDING = "time_embedding.cond_proj.weight"  # LCM's guidance, named as diffusers does in any layout


def read(path: Path) -> Whole:
    """A whole model; without "vae" where the file has none."""
    weights = listed([path])
    for prefix, what in ((UNET, "UNet"), (CLIP, "first text encoder"), (OPEN_CLIP, "second text encoder")):
        if not any(name.startswith(prefix) for name in weights):
            raise CorruptModelError(
                f"{path} has no {what} in SDXL's original layout ({prefix}…): `fewstep inspect` says what it "
                "is; a UNet alone goes into accelerator="
            )
    first, second = _under(weights, CLIP), _open_clip(weights)
    unet, vae = _unet(_under(weights, UNET)), _vae(weights)
    _require_read(path, weights, (first, second, unet, vae))
    with reading(path):  # a shape that is looked for may not be there
        two = shapes.clip(second, "gelu")
        parts = {
            "text_encoder": ("CLIPTextModel", shapes.clip(first, "quick_gelu"), first),
            "text_encoder_2": ("CLIPTextModelWithProjection", two, second),
            "unet": ("UNet2DConditionModel", shapes.unet(unet, two["projection_dim"]), unet),
        }
        if vae:
            parts["vae"] = ("AutoencoderKL", shapes.vae(vae), vae)
    _require_vocabulary(path, two["vocab_size"])
    return Whole(
        parts={
            part: Blueprint(kind=kind, config=config, weights=own, source=f"{path} ({part})")
            for part, (kind, config, own) in parts.items()
        },
        tokenizers=vocabulary.tokenizers,
        prediction="v_prediction" if V_PREDICTION in weights else "epsilon",
        zero_empty=True,  # as SDXL base was trained (model_index.json, force_zeros_for_empty_prompt)
    )


def unet(path: Path, base: Mapping[str, Any]) -> Blueprint:
    """A UNet on its own, in either layout, in the place of the one with the configuration `base`."""
    weights = listed([path])
    prefix = next((p for p in UNET_PREFIXES if any(name.startswith(p) for name in weights)), "")
    named = _unet(_under(weights, prefix))
    if "conv_in.weight" not in named:
        raise CorruptModelError(f"{path} holds no UNet: `fewstep inspect` says what it is")
    embedded = named.get("time_embedding.cond_proj.weight")
    own = {**base, "time_cond_proj_dim": None if embedded is None else embedded.shape[1]}
    return Blueprint(kind="UNet2DConditionModel", config=own, weights=named, source=str(path))


def _require_vocabulary(path: Path, size: int) -> None:
    if size != vocabulary.SIZE:
        raise CorruptModelError(
            f"{path} has text encoders for {size} words, and CLIP's vocabulary has {vocabulary.SIZE}: "
            "give a diffusers folder, which brings its own tokenizers"
        )


def _under(weights: Mapping[str, Stored], prefix: str) -> dict[str, Stored]:
    return {name.removeprefix(prefix): stored for name, stored in weights.items() if name.startswith(prefix)}


def _unet(weights: dict[str, Stored]) -> dict[str, Stored]:
    """A UNet's original names → diffusers'; those that are diffusers' already stay."""
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    if "input_blocks.0.0.weight" not in weights:
        return weights
    # Levels are parted by downsamplers: the first comes after the first convolution and a level's layers.
    parted = min((int(name.split(".")[1]) for name in weights if name.endswith(".0.op.weight")), default=0)
    config = {"layers_per_block": parted - 1, "addition_embed_type": "text_time"}
    named: dict[str, Stored] = convert_ldm_unet_checkpoint(
        {UNET + name: stored for name, stored in weights.items()}, config
    )
    if EMBEDDING in weights:
        named[EMBEDDING] = weights[EMBEDDING]
    return named


def _open_clip(weights: dict[str, Stored]) -> dict[str, Stored]:
    from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint

    named: dict[str, Stored] = convert_open_clip_checkpoint(None, weights, prefix=OPEN_CLIP)
    return named


def _vae(weights: dict[str, Stored]) -> dict[str, Stored]:
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    own = {name: stored for name, stored in weights.items() if name.startswith(VAE)}
    levels = {name.split(".")[3] for name in own if name.startswith(f"{VAE}encoder.down.")}
    config = {"down_block_types": [""] * len(levels), "up_block_types": [""] * len(levels)}
    named: dict[str, Stored] = convert_ldm_vae_checkpoint(own, config) if own else {}
    return named


def _require_read(path: Path, weights: Mapping[str, Stored], parts: Iterable[Mapping[str, Stored]]) -> None:
    """A network's weights that no converter knew would be lost in silence."""
    used = {stored.name for part in parts for stored in part.values()}
    lost = [
        name
        for name in weights
        if name.startswith((UNET, VAE, CLIP, OPEN_CLIP)) and name not in used and not name.endswith(NEEDLESS)
    ]
    if lost:
        raise CorruptModelError(f"{path}: {some(lost)} have no place in SDXL's architecture")
