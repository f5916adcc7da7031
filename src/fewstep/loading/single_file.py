"""One safetensors file → blueprints: the original layout of a whole model, or a UNet or VAE alone.

diffusers' converters rename; its single-file loader would fetch configurations and tokenizers, and
drops `time_embedding.cond_proj`, an LCM's guidance.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fewstep.architectures import Architecture, EncoderLayout, SingleFileLayout, load_architecture
from fewstep.catalog.architectures import ARCHITECTURES, ArchitectureInfo
from fewstep.errors import CorruptModelError
from fewstep.files.noise import PLAYGROUND_MARKS, noise_of_file
from fewstep.files.safetensors import read_header
from fewstep.files.untrusted import raise_as_corrupt
from fewstep.loading import single_file_config, tokenizers
from fewstep.loading.build import UNUSED_WEIGHTS, Blueprint, ModelBlueprint, name_some, with_text_prefix
from fewstep.loading.lazy_tensors import LazyTensor, list_tensors, read_into

NamedTensors = dict[str, LazyTensor]
UNET, VAE = "model.diffusion_model.", "first_stage_model."
UNET_PREFIXES = (UNET, "unet.", "diffusion_model.")  # seen before the names of a UNet on its own
VAE_PREFIXES = (VAE, "vae.")  # the same of a VAE
PROJECTION = "text_projection"  # of the second text encoder, which diffusers' converter needs
# diffusers' converter counts blocks by these words, wherever they stand, and looks for each in all names.
_COUNTED = ("input_blocks", "middle_block", "output_blocks")
_BLOCK = re.compile(rf"(?:{'|'.join(_COUNTED)})\.(\d{{1,3}})\.", re.ASCII)
MAX_UNET_BLOCKS = 32  # the most; SDXL's UNet has 9 of each, and its VAE 4 levels


def read_single_file(path: Path) -> ModelBlueprint:
    """Return a whole model, without "vae" where the file has none; raises `CorruptModelError`."""
    weights, noise = list_tensors([path]), noise_of_file(read_header(path))
    architecture, layout = _find_layout(path, weights)
    with raise_as_corrupt(path):  # a shape that is looked for may not be there
        parts = _read_parts(path, weights, architecture, layout)
    return ModelBlueprint(
        architecture=architecture.info,
        parts={
            part: Blueprint(kind=kind, config=config, weights=tensors, source=f"{path} ({part})")
            for part, (kind, config, tensors) in parts.items()
        },
        tokenizers=lambda: tuple(
            tokenizers.clip_tokenizer(pads_with_end=encoder.pads_with_end) for encoder in layout.encoders
        ),
        noise=noise,
        zero_empty=layout.zero_empty,
    )


def _find_layout(path: Path, weights: Mapping[str, LazyTensor]) -> tuple[Architecture, SingleFileLayout]:
    """Return the architecture and layout whose parts are all there."""
    lacking = ""
    for info in ARCHITECTURES.values():
        architecture = load_architecture(info)
        for layout in architecture.single_files:
            prefixes = (UNET, *(encoder.prefix for encoder in layout.encoders))
            missing = [p for p in prefixes if not any(name.startswith(p) for name in weights)]
            if not missing:
                return architecture, layout
            lacking = lacking or f"{info.title} has {', '.join(missing)}…"
    raise CorruptModelError(
        f"{path} is no whole model in an original layout ({lacking}): "
        "`fewstep inspect` says what it is; a UNet "
        "alone goes into accelerator="
    )


def read_unet_file(path: Path, base: Mapping[str, Any]) -> Blueprint:
    """Return a UNet on its own, in either layout, to replace the one with the configuration `base`."""
    weights = list_tensors([path])
    prefix = next((p for p in UNET_PREFIXES if any(name.startswith(p) for name in weights)), "")
    with raise_as_corrupt(path):
        tensors = _convert_unet(path, _with_prefix(weights, prefix), base.get("addition_embed_type"))
        if "conv_in.weight" not in tensors:
            raise CorruptModelError(f"{path} holds no UNet: `fewstep inspect` says what it is")
        embedded = tensors.get(single_file_config.GUIDANCE_EMBEDDING)
        config = {**base, "time_cond_proj_dim": None if embedded is None else embedded.shape[1]}
    return Blueprint(kind="UNet2DConditionModel", config=config, weights=tensors, source=str(path))


def read_vae_file(path: Path, architecture: ArchitectureInfo) -> Blueprint:
    """Return a VAE on its own, in either layout, or an AutoencoderTiny in diffusers'."""
    weights = list_tensors([path])
    prefix = next((p for p in VAE_PREFIXES if any(name.startswith(p) for name in weights)), "")
    tensors = _with_prefix(weights, prefix)
    with raise_as_corrupt(path):
        if single_file_config.TINY_VAE_WEIGHT in tensors:
            kind, config = "AutoencoderTiny", single_file_config.tiny_vae_config(tensors)
        else:
            original = any(name.startswith(("encoder.down.", "decoder.up.")) for name in tensors)
            tensors = (
                _convert_vae(path, {VAE + name: stored for name, stored in tensors.items()})
                if original
                else tensors
            )
            kind, config = (
                "AutoencoderKL",
                single_file_config.vae_config(tensors, architecture.vae_scale, architecture.side),
            )
    return Blueprint(kind=kind, config=config, weights=tensors, source=str(path))


def _read_parts(
    path: Path, weights: Mapping[str, LazyTensor], architecture: Architecture, layout: SingleFileLayout
) -> dict[str, tuple[str, dict[str, Any], NamedTensors]]:
    """Return each network's class, configuration and weights."""
    parts: dict[str, tuple[str, dict[str, Any], NamedTensors]] = {}
    skipped: list[str] = []
    for encoder in layout.encoders:
        tensors, unused = _convert_encoder(path, weights, encoder)
        skipped += unused
        config = single_file_config.clip_config(tensors, encoder.activation)
        _require_vocabulary(path, config["vocab_size"])
        parts[encoder.part] = (encoder.kind, config, tensors)
    unet = _convert_unet(path, _with_prefix(weights, UNET), architecture.info.addition)
    pooled = config["projection_dim"] if architecture.text.summary else 0
    parts["unet"] = ("UNet2DConditionModel", single_file_config.unet_config(unet, pooled, layout), unet)
    vae = _convert_vae(path, weights)
    if vae:
        info = architecture.info
        config = single_file_config.vae_config(vae, info.vae_scale, info.side)
        parts["vae"] = ("AutoencoderKL", config | _playground_latents(path, weights), vae)
    _require_read(path, weights, [tensors for _, _, tensors in parts.values()], layout, skipped)
    return parts


def _playground_latents(path: Path, weights: Mapping[str, LazyTensor]) -> dict[str, Any]:
    """Return how Playground v2.5's latents are scaled (its vae/config.json); nothing of other files."""
    if not all(mark in weights for mark in PLAYGROUND_MARKS):
        return {}
    marks = {mark: weights[mark] for mark in PLAYGROUND_MARKS}
    slots = {
        mark: torch.empty(tensor.shape, dtype=torch.float32, device="cpu") for mark, tensor in marks.items()
    }
    read_into(slots, marks)
    mean, std = (slot.flatten().tolist() for slot in slots.values())
    return {"latents_mean": mean, "latents_std": std, "scaling_factor": 0.5}


def _convert_encoder(
    path: Path, weights: Mapping[str, LazyTensor], encoder: EncoderLayout
) -> tuple[NamedTensors, list[str]]:
    """Return a text encoder's tensors by transformers' names, and the names of those that are left out."""
    if not encoder.open_clip:
        return with_text_prefix(_with_prefix(weights, encoder.prefix)), []
    blocks = {
        name: int(match[1]) for name in weights
        if (match := re.match(re.escape(encoder.prefix) + r"transformer\.resblocks\.(\d{1,3})\.", name))
    }  # fmt: skip
    first_skipped = max(blocks.values(), default=-1) if encoder.drops_last else len(weights)
    skipped = [name for name, number in blocks.items() if number >= first_skipped]
    if not encoder.projected:
        skipped += [name for name in (encoder.prefix + PROJECTION,) if name in weights]
    kept = {
        name: tensor for name, tensor in weights.items() if name not in skipped or name.endswith(PROJECTION)
    }
    converted = _convert_open_clip(path, kept, encoder.prefix)
    if not encoder.projected:
        converted.pop("text_projection.weight", None)
    return converted, skipped


def _require_vocabulary(path: Path, size: int) -> None:
    if size != tokenizers.CLIP_VOCABULARY:
        raise CorruptModelError(
            f"{path} has text encoders for {size} words, "
            f"and CLIP's vocabulary has {tokenizers.CLIP_VOCABULARY}: "
            "give a diffusers folder, which brings its own tokenizers"
        )


def _with_prefix(weights: Mapping[str, LazyTensor], prefix: str) -> NamedTensors:
    return {name.removeprefix(prefix): stored for name, stored in weights.items() if name.startswith(prefix)}


def _convert_unet(path: Path, weights: NamedTensors, addition: str | None) -> NamedTensors:
    """Return a UNet's tensors by diffusers' names, which may be those that they have."""
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    if "input_blocks.0.0.weight" not in weights:
        return weights
    numbers = {
        name: _block_number(path, name) for name in weights if any(marker in name for marker in _COUNTED)
    }
    # Levels are parted by downsamplers: the first comes after the first convolution and a level's layers.
    first_downsampler = min((n for name, n in numbers.items() if name.endswith(".0.op.weight")), default=0)
    if first_downsampler < 2:
        raise CorruptModelError(f"{path} lacks a downsampler: the first is input_blocks.3.0.op.weight")
    config = {"layers_per_block": first_downsampler - 1, "addition_embed_type": addition}
    converted = convert_ldm_unet_checkpoint({UNET + name: stored for name, stored in weights.items()}, config)
    if single_file_config.GUIDANCE_EMBEDDING in weights:
        converted[single_file_config.GUIDANCE_EMBEDDING] = weights[single_file_config.GUIDANCE_EMBEDDING]
    return _require_complete(path, converted)


def _block_number(path: Path, name: str) -> int:
    """Return which block of a UNet a weight is of; raises `CorruptModelError`."""
    match = _BLOCK.match(name)
    if match is None or int(match[1]) > MAX_UNET_BLOCKS:
        raise CorruptModelError(
            f"{path}: {name!r:.80} has no place in a UNet of diffusers, which counts its blocks; the "
            f"most is {MAX_UNET_BLOCKS}"
        )
    return int(match[1])


def _require_complete(path: Path, converted: Mapping[str, LazyTensor | None]) -> NamedTensors:
    """Return all that a converter named; raises `CorruptModelError` where it did not find all of it."""
    missing = sorted(name for name, stored in converted.items() if stored is None)
    if missing:
        raise CorruptModelError(f"{path} lacks {name_some(missing)}")
    return {name: stored for name, stored in converted.items() if stored is not None}


def _convert_open_clip(path: Path, weights: Mapping[str, LazyTensor], prefix: str) -> NamedTensors:
    from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint

    if prefix + PROJECTION not in weights:
        raise CorruptModelError(f"{path} lacks {prefix}{PROJECTION}")
    return _require_complete(path, convert_open_clip_checkpoint(None, weights, prefix=prefix))


def _convert_vae(path: Path, weights: Mapping[str, LazyTensor]) -> NamedTensors:
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    tensors = {name: stored for name, stored in weights.items() if name.startswith(VAE)}
    levels = {name.split(".")[3] for name in tensors if name.startswith(f"{VAE}encoder.down.")}
    if len(levels) > MAX_UNET_BLOCKS:
        raise CorruptModelError(f"{path} has a VAE of {len(levels)} levels; the usual ones have 4")
    config = {"down_block_types": [""] * len(levels), "up_block_types": [""] * len(levels)}
    return _require_complete(path, convert_ldm_vae_checkpoint(tensors, config) if tensors else {})


def _require_read(
    path: Path,
    weights: Mapping[str, LazyTensor],
    parts: Iterable[Mapping[str, LazyTensor]],
    layout: SingleFileLayout,
    skipped: Sequence[str],
) -> None:
    """Check that every weight has been read: what no converter knew would be lost in silence."""
    read_names = {tensor.name for part in parts for tensor in part.values()} | {*skipped}
    prefixes = (UNET, VAE, *(encoder.prefix for encoder in layout.encoders))
    unread = [
        name
        for name in weights
        if name.startswith(prefixes) and name not in read_names and not name.endswith(UNUSED_WEIGHTS)
    ]
    if unread:
        raise CorruptModelError(f"{path}: {name_some(unread)} have no place in its architecture")
