"""A network from its class, its configuration and its stored weights: built on no memory, filled once."""

from __future__ import annotations

import inspect
import math
import mmap
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from torch import Size, Tensor, nn

from fewstep.catalog.architectures import ArchitectureInfo
from fewstep.devices import Placement
from fewstep.errors import CorruptModelError, ModelError, describe_error
from fewstep.files.config import check_latent_scaling
from fewstep.files.noise import Noise
from fewstep.loading.lazy_tensors import LazyTensor, read_into
from fewstep.loading.light_imports import light_imports
from fewstep.torch_state import OnMeta

# Every class that is ever built from a model's files; of transformers' the class of its configuration.
NETWORK_CLASSES: MappingProxyType[str, str] = MappingProxyType(
    {
        "UNet2DConditionModel": "",
        "AutoencoderKL": "",
        "AutoencoderTiny": "",
        "ControlNetModel": "",
        "ControlNetUnionModel": "",
        "CLIPTextModel": "CLIPTextConfig",
        "CLIPTextModelWithProjection": "CLIPTextConfig",
        "CLIPVisionModelWithProjection": "CLIPVisionConfig",
    }
)
# Of a CLIP's configuration no more is passed on: "attn_implementation" may name a hub repository of code.
CLIP_FIELDS = (
    "vocab_size", "hidden_size", "intermediate_size", "projection_dim", "num_hidden_layers",
    "num_attention_heads", "max_position_embeddings", "hidden_act", "layer_norm_eps", "bos_token_id",
    "eos_token_id", "pad_token_id", "image_size", "patch_size",
)  # fmt: skip
# The most in any configuration: SDXL's have numbers to 49,408, lists of 4, and 32 layers in bigG; the
# vision encoder ViT-bigG has 48.
MAX_NUMBER, MAX_ENTRIES, MAX_DEPTH = 2**17, 16, 64
MAX_BLOCKS = 256  # levels x layers x transformer layers: SDXL's UNet has 3 x 2 x 10
# Of a vision encoder's picture, pixels and patches a side; published ones have 224 to 448, and 7 to 32.
MAX_IMAGE_SIDE, MAX_PATCHES = 1024, 64
DEPTH_FIELDS = (
    "layers_per_block", "transformer_layers_per_block", "reverse_transformer_layers_per_block",
    "num_hidden_layers", "num_trans_layer", "num_encoder_blocks", "num_decoder_blocks",
)  # fmt: skip
# Each in a level, and in each of those before; of several names the largest counts.
NESTED_FIELDS = (
    ("layers_per_block", "num_encoder_blocks", "num_decoder_blocks"),
    ("transformer_layers_per_block", "reverse_transformer_layers_per_block", "num_trans_layer"),
)
# Kept in older files, computed by newer code: places of tokens, and CLIP's temperature.
UNUSED_WEIGHTS = ("position_ids", "logit_scale")
TEXT_PREFIX = "text_model."  # before a CLIP text encoder's names, but for its projection's
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Blueprint:
    """A network that is not built yet."""

    kind: str  # one of CLASSES
    config: Mapping[str, Any]
    weights: Mapping[str, LazyTensor]  # by diffusers' and transformers' names
    source: str  # for errors


@dataclass(frozen=True, kw_only=True)
class ModelBlueprint:
    """A model that is not built yet."""

    architecture: ArchitectureInfo
    parts: Mapping[str, Blueprint]  # by diffusers' names: unet, vae (not in every file), text_encoder, …_2
    tokenizers: Callable[[], tuple[Any, ...]]
    noise: Noise  # the process that its files say
    zero_empty: bool  # an empty prompt is all zeros

    def with_part(self, name: str, part: Blueprint) -> ModelBlueprint:
        """Return the same with another network in a place."""
        return replace(self, parts={**self.parts, name: part})


def build_network(
    blueprint: Blueprint, placement: Placement, dtype: torch.dtype, *, home: bool = True
) -> Any:
    """Return the network, in evaluation mode; `CorruptModelError` names what is missing or too much.

    It is put where weights are between uses or, without `home`, on the device.
    """
    module, slots, weights = require_buildable(blueprint)
    place = placement.home if home else placement.device
    shapes = {name: slot.shape for name, slot in slots.items()}
    filled = allocate(shapes, dtype, place, placement.memory_format)
    read_into(filled, weights)
    for name, tensor in filled.items():
        owner, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(owner), leaf, nn.Parameter(tensor, requires_grad=False))
    _without_peft(module)
    return module.requires_grad_(False).eval().to(place)


def _without_peft(module: nn.Module) -> None:
    """Have the forward that diffusers wraps to scale peft's LoRAs without the wrapper, which imports peft."""
    forward: Any = type(module).forward
    if forward.__globals__["__name__"] == "diffusers.utils.peft_utils":
        module.__class__ = _unwrapped_class(type(module))  # type: ignore[arg-type]


@cache
def _unwrapped_class(wrapped: type[nn.Module]) -> type[nn.Module]:
    """Return a class that is the same but for the wrapper of its forward."""
    forward: Any = wrapped.forward
    return type(
        wrapped.__name__, (wrapped,), {"forward": forward.__wrapped__, "__module__": wrapped.__module__}
    )


def require_buildable(blueprint: Blueprint) -> tuple[Any, dict[str, nn.Parameter], dict[str, LazyTensor]]:
    """Return the network on no memory, its slots and the weights by their names.

    Nothing is read; raises `CorruptModelError` where a weight is missing, too much, or of another shape.
    """
    module = _build_on_meta(blueprint)
    slots = dict(module.named_parameters())
    weights = _rename_weights(slots, blueprint)
    _require_fit(slots, weights, blueprint)
    return module, slots, weights


def network_config(blueprint: Blueprint) -> dict[str, Any]:
    """Return every argument of a network's class, from its file or by default."""
    import diffusers

    if NETWORK_CLASSES[blueprint.kind]:
        model_type = str(blueprint.config.get("model_type", "clip"))
        if not model_type.startswith("clip"):
            raise CorruptModelError(f"{blueprint.source} is a {model_type!r:.80}, and a CLIP is needed")
        config = {name: blueprint.config[name] for name in CLIP_FIELDS if name in blueprint.config}
    else:
        parameters = inspect.signature(getattr(diffusers, blueprint.kind).__init__).parameters
        config = {
            n: blueprint.config.get(n, parameter.default)
            for n, parameter in parameters.items()
            if n != "self"
        }
    for name, value in config.items():
        flat, most = list(_flatten_lists(value)), MAX_DEPTH if name in DEPTH_FIELDS else MAX_NUMBER
        large = any(isinstance(entry, int | float) and not abs(entry) <= most for entry in flat)
        if large or len(flat) > MAX_ENTRIES:
            raise CorruptModelError(f"{blueprint.source}: its configuration has {name}={value!r:.80}")
    _require_modest(config, blueprint.source)
    if "scaling_factor" in config:
        check_latent_scaling(config, blueprint.source)
    return config


def _require_modest(config: Mapping[str, Any], source: str) -> None:
    """Check that blocks and pixels, whose numbers multiply, are few enough; raises `CorruptModelError`."""
    levels = len(_flatten_lists(config.get("block_out_channels", 0)))
    counts = (levels, *(max(_most_layers(config.get(name)) for name in names) for names in NESTED_FIELDS))
    if math.prod(counts) > MAX_BLOCKS:
        raise CorruptModelError(
            f"{source}: its configuration has {' x '.join(map(str, counts))} levels, layers and transformer "
            f"layers: the most is {MAX_BLOCKS} in all"
        )
    side, patch = config.get("image_size", 224), config.get("patch_size", 32)  # transformers' own defaults
    are_whole = type(side) is int and type(patch) is int
    if not are_whole or not 1 <= patch <= side <= MAX_IMAGE_SIDE or side // patch > MAX_PATCHES:
        raise CorruptModelError(
            f"{source}: its configuration has image_size={side!r:.40} and patch_size={patch!r:.40}: it "
            f"should have at most {MAX_IMAGE_SIDE} pixels and {MAX_PATCHES} patches a side"
        )


def _most_layers(value: Any) -> int:
    """Return the largest number of layers in a value of a configuration, at least 1."""
    return (
        max(
            (math.ceil(entry) for entry in _flatten_lists(value) if isinstance(entry, int | float)), default=1
        )
        or 1
    )


def _flatten_lists(value: Any) -> list[Any]:
    """Return the entries of a value of a configuration, whatever lists they are in."""
    if not isinstance(value, list | tuple):
        return [value]
    return [entry for item in value[: MAX_ENTRIES + 1] for entry in _flatten_lists(item)]


def _build_on_meta(blueprint: Blueprint) -> Any:
    """Return the network without weights; raises `CorruptModelError`."""
    config = network_config(blueprint)
    try:
        with OnMeta():
            module = _of_class(blueprint.kind, config)
    except Exception as error:
        _require_buildable(blueprint.kind)
        raise CorruptModelError(
            f"{blueprint.source}: its configuration is not one of {blueprint.kind} ({describe_error(error)})"
        ) from error
    for owner in module.modules():  # the only buffer in any of CLASSES: the places of tokens or patches
        if "position_ids" in owner._buffers:
            places = torch.arange(owner.position_ids.shape[-1], device="cpu")
            owner.register_buffer("position_ids", places.expand((1, -1)), persistent=False)
    return module


def _of_class(kind: str, config: Mapping[str, Any]) -> Any:
    import diffusers
    import transformers

    if NETWORK_CLASSES[kind]:
        return getattr(transformers, kind)(getattr(transformers, NETWORK_CLASSES[kind])(**config))
    return getattr(diffusers, kind)(**config)


def _require_buildable(kind: str) -> None:
    """Check that a class can be built here at all, by a right configuration; raises `ModelError`."""
    sizes = {"addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816}  # SDXL's
    try:
        with OnMeta():
            _of_class(kind, sizes if kind == "ControlNetUnionModel" else {})  # the rest have right defaults
    except Exception as error:
        raise ModelError(
            f"no {kind} can be built in this process, whatever the model's files are: {describe_error(error)}"
        ) from error


def import_libraries() -> None:
    """Import what every model is built by; raises `ModelError` where that fails, before a file is read."""
    try:
        with light_imports():
            from diffusers import AutoencoderKL, UNet2DConditionModel  # noqa: F401
            from transformers import CLIPTextModel, CLIPTokenizer  # noqa: F401
    except Exception as error:  # diffusers raises RuntimeError
        remedy = "install them again"
        if sys.flags.optimize > 1:
            remedy = "python -OO takes docstrings away, which they read: type python -O"
        raise ModelError(
            f"diffusers or transformers cannot be imported ({describe_error(error)}): {remedy}"
        ) from error


def _rename_weights(slots: Iterable[str], blueprint: Blueprint) -> dict[str, LazyTensor]:
    """Return the weights by the names of these slots: transformers 5 leaves out a prefix that others have."""
    slots = set(slots)
    weights = {
        name: stored for name, stored in blueprint.weights.items() if not name.endswith(UNUSED_WEIGHTS)
    }
    if not blueprint.kind.startswith("CLIPTextModel"):
        return weights
    if any(slot.startswith(TEXT_PREFIX) for slot in slots):
        return with_text_prefix(weights)
    return {name.removeprefix(TEXT_PREFIX): stored for name, stored in weights.items()}


def with_text_prefix(weights: Mapping[str, T]) -> dict[str, T]:
    """Return a CLIP text encoder's tensors by the long names, which every reader of such files knows."""
    return {
        name if name.startswith((TEXT_PREFIX, "text_projection.")) else TEXT_PREFIX + name: tensor
        for name, tensor in weights.items()
    }


def _require_fit(
    slots: Mapping[str, nn.Parameter], weights: Mapping[str, LazyTensor], blueprint: Blueprint
) -> None:
    """Check that every slot has a weight of its shape, and none is over; raises `CorruptModelError`."""
    missing, surplus = sorted(slots.keys() - weights.keys()), sorted(weights.keys() - slots.keys())
    if missing:
        raise CorruptModelError(f"{blueprint.source} lacks {name_some(missing)}")
    if surplus:
        raise CorruptModelError(
            f"{blueprint.source} has {name_some(surplus)}, for which {blueprint.kind} has no place"
        )
    for name, slot in slots.items():
        if weights[name].shape != slot.shape:
            shape, needed = tuple(weights[name].shape), tuple(slot.shape)
            raise CorruptModelError(
                f"{blueprint.source}: {name} is {shape}, and {blueprint.kind} needs {needed}"
            )


def name_some(names: Sequence[str]) -> str:
    """Return the first few names, and how many more there are."""
    remainder = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + remainder


HUGE_PAGES_FROM = 2**28  # bytes from which a piece of its own pays
ALIGNMENT = 64  # bytes: where torch's own tensors begin; kernels round otherwise elsewhere
# Where Linux gives pages of 2 MiB, 7 GB are there in a second instead of six: a fault each for fewer pages.
HUGE_PAGES = getattr(mmap, "MADV_HUGEPAGE", None)


def allocate(
    shapes: Mapping[str, Size], dtype: torch.dtype, device: torch.device, layout: torch.memory_format
) -> dict[str, Tensor]:
    """Return a tensor of each shape, its content undefined; those of four dimensions have this layout."""
    sizes = {name: math.prod(shape) * dtype.itemsize for name, shape in shapes.items()}
    rounded = {name: -(-size // ALIGNMENT) * ALIGNMENT for name, size in sizes.items()}
    block = _memory_block(sum(rounded.values()), device)
    tensors, begin = {}, 0
    for name, shape in shapes.items():
        flat = block[begin : begin + sizes[name]].view(dtype)
        tensors[name] = _with_layout(flat, shape, layout)
        begin += rounded[name]
    return tensors


def _memory_block(size: int, device: torch.device) -> Tensor:
    """Return so many bytes, aligned."""
    if size < HUGE_PAGES_FROM or device.type != "cpu" or HUGE_PAGES is None:
        return torch.empty(size, dtype=torch.uint8, device=device)
    memory = mmap.mmap(-1, size)
    memory.madvise(HUGE_PAGES)
    return torch.frombuffer(memory, dtype=torch.uint8)


def _with_layout(flat: Tensor, shape: Size, layout: torch.memory_format) -> Tensor:
    if len(shape) != 4 or layout != torch.channels_last:
        return flat.view(shape)
    out, channels, height, width = shape
    return flat.view(out, height, width, channels).permute(0, 3, 1, 2)
