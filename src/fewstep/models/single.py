"""One safetensors file → blueprints: Stability's original layout of a whole SDXL, or a UNet alone.

diffusers' converters rename; its single-file loader would fetch configurations and tokenizers, and
drops `time_embedding.cond_proj`, an LCM's guidance.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fewstep.errors import CorruptModelError
from fewstep.models import shapes, vocabulary
from fewstep.models.catalog import reading
from fewstep.models.networks import NEEDLESS, Blueprint, Whole, some
from fewstep.models.stored import Stored, listed

Named = dict[str, Stored]
UNET, VAE = "model.diffusion_model.", "first_stage_model."
CLIP, OPEN_CLIP = "conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."
UNET_PREFIXES = (UNET, "unet.", "diffusion_model.")  # seen before the names of a UNet on its own
VAE_PREFIXES = (VAE, "vae.")  # the same of a VAE
V_PREDICTION = "v_pred"  # a tensor of this name, whatever it holds, marks a v-prediction checkpoint
PROJECTION = "text_projection"  # of the second text encoder, which diffusers' converter needs
# diffusers' converter counts blocks by these words, wherever they stand, and looks for each in all names.
_COUNTED = ("input_blocks", "middle_block", "output_blocks")
_BLOCK = re.compile(rf"(?:{'|'.join(_COUNTED)})\.(\d{{1,3}})\.", re.ASCII)
BLOCKS = 32  # the most; SDXL's UNet has 9 of each, and its VAE 4 levels


def read(path: Path) -> Whole:
    """A whole model; without "vae" where the file has none."""
    weights = listed([path])
    for prefix, what in ((UNET, "UNet"), (CLIP, "first text encoder"), (OPEN_CLIP, "second text encoder")):
        if not any(name.startswith(prefix) for name in weights):
            raise CorruptModelError(
                f"{path} has no {what} in SDXL's original layout ({prefix}…): `fewstep inspect` says what it "
                "is; a UNet alone goes into accelerator="
            )
    with reading(path):  # a shape that is looked for may not be there
        parts = _parts(path, weights)
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
    with reading(path):
        named = _unet(path, _under(weights, prefix))
        if "conv_in.weight" not in named:
            raise CorruptModelError(f"{path} holds no UNet: `fewstep inspect` says what it is")
        embedded = named.get(shapes.EMBEDDING)
        own = {**base, "time_cond_proj_dim": None if embedded is None else embedded.shape[1]}
    return Blueprint(kind="UNet2DConditionModel", config=own, weights=named, source=str(path))


def vae(path: Path) -> Blueprint:
    """A VAE on its own: SDXL's, in either layout, or an AutoencoderTiny in diffusers'."""
    weights = listed([path])
    prefix = next((p for p in VAE_PREFIXES if any(name.startswith(p) for name in weights)), "")
    own = _under(weights, prefix)
    with reading(path):
        if shapes.TINY_VAE in own:
            kind, config = "AutoencoderTiny", shapes.tiny_vae(own)
        else:
            original = any(name.startswith(("encoder.down.", "decoder.up.")) for name in own)
            own = _vae(path, {VAE + name: stored for name, stored in own.items()}) if original else own
            kind, config = "AutoencoderKL", shapes.vae(own)
    return Blueprint(kind=kind, config=config, weights=own, source=str(path))


def _parts(path: Path, weights: Mapping[str, Stored]) -> dict[str, tuple[str, dict[str, Any], Named]]:
    """Each network's class, configuration and weights."""
    first, second = _under(weights, CLIP), _open_clip(path, weights)
    unet, vae = _unet(path, _under(weights, UNET)), _vae(path, weights)
    _require_read(path, weights, (first, second, unet, vae))
    two = shapes.clip(second, "gelu")
    _require_vocabulary(path, two["vocab_size"])
    parts = {
        "text_encoder": ("CLIPTextModel", shapes.clip(first, "quick_gelu"), first),
        "text_encoder_2": ("CLIPTextModelWithProjection", two, second),
        "unet": ("UNet2DConditionModel", shapes.unet(unet, two["projection_dim"]), unet),
    }
    if vae:
        parts["vae"] = ("AutoencoderKL", shapes.vae(vae), vae)
    return parts


def _require_vocabulary(path: Path, size: int) -> None:
    if size != vocabulary.SIZE:
        raise CorruptModelError(
            f"{path} has text encoders for {size} words, and CLIP's vocabulary has {vocabulary.SIZE}: "
            "give a diffusers folder, which brings its own tokenizers"
        )


def _under(weights: Mapping[str, Stored], prefix: str) -> Named:
    return {name.removeprefix(prefix): stored for name, stored in weights.items() if name.startswith(prefix)}


def _unet(path: Path, weights: Named) -> Named:
    """A UNet's original names → diffusers'; those that are diffusers' already stay."""
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    if "input_blocks.0.0.weight" not in weights:
        return weights
    numbers = {name: _block(path, name) for name in weights if any(word in name for word in _COUNTED)}
    # Levels are parted by downsamplers: the first comes after the first convolution and a level's layers.
    parted = min((n for name, n in numbers.items() if name.endswith(".0.op.weight")), default=0)
    if parted < 2:
        raise CorruptModelError(f"{path} lacks a downsampler: SDXL's first is input_blocks.3.0.op.weight")
    config = {"layers_per_block": parted - 1, "addition_embed_type": "text_time"}
    named = convert_ldm_unet_checkpoint({UNET + name: stored for name, stored in weights.items()}, config)
    if shapes.EMBEDDING in weights:
        named[shapes.EMBEDDING] = weights[shapes.EMBEDDING]
    return _all(path, named)


def _block(path: Path, name: str) -> int:
    """Which block of a UNet a weight is of."""
    found = _BLOCK.match(name)
    if found is None or int(found[1]) > BLOCKS:
        raise CorruptModelError(
            f"{path}: {name!r:.80} has no place in SDXL's architecture, whose UNet has blocks 0 to 8; the "
            f"most is {BLOCKS}"
        )
    return int(found[1])


def _all(path: Path, named: Mapping[str, Stored | None]) -> Named:
    """All that a converter named, where it found all of it."""
    missing = sorted(name for name, stored in named.items() if stored is None)
    if missing:
        raise CorruptModelError(f"{path} lacks {some(missing)}")
    return {name: stored for name, stored in named.items() if stored is not None}


def _open_clip(path: Path, weights: Mapping[str, Stored]) -> Named:
    from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint

    if OPEN_CLIP + PROJECTION not in weights:
        raise CorruptModelError(f"{path} lacks {OPEN_CLIP}{PROJECTION}")
    return _all(path, convert_open_clip_checkpoint(None, weights, prefix=OPEN_CLIP))


def _vae(path: Path, weights: Mapping[str, Stored]) -> Named:
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    own = {name: stored for name, stored in weights.items() if name.startswith(VAE)}
    levels = {name.split(".")[3] for name in own if name.startswith(f"{VAE}encoder.down.")}
    if len(levels) > BLOCKS:
        raise CorruptModelError(f"{path} has a VAE of {len(levels)} levels, and SDXL's has 4")
    config = {"down_block_types": [""] * len(levels), "up_block_types": [""] * len(levels)}
    return _all(path, convert_ldm_vae_checkpoint(own, config) if own else {})


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
