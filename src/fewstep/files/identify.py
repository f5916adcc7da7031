"""What a model file is, and which base it is of or for: told by names, widths and depths in its header."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from fewstep.files import tensor_names
from fewstep.files.safetensors import Header, read_scalars
from fewstep.files.untrusted import parse_json

Shape = tuple[int, ...]
UNKNOWN = "unknown"

FAMILY_TITLES: MappingProxyType[str, str] = MappingProxyType(
    {
        "sdxl": "SDXL", "ssd-1b": "SSD-1B", "tiny": "the bundled model", "vega": "Segmind Vega",
        "sdxl-pruned": "a pruned SDXL", "sdxl-refiner": "SDXL's refiner", "sdxl-inpaint": "SDXL inpainting",
        "sd-1.x": "SD 1.x", "sd-2.x": "SD 2.x", "sd-inpaint": "SD inpainting", "kolors": "Kolors",
        "flux": "Flux", "sd3": "SD 3", "unknown": "an unknown base",
    }
)  # fmt: skip
# Width of the text that cross-attention reads → family.
CONTEXT_FAMILIES: MappingProxyType[int, str] = MappingProxyType(
    {
        768: "sd-1.x",  # CLIP ViT-L
        1024: "sd-2.x",  # OpenCLIP ViT-H
        1280: "sdxl-refiner",  # OpenCLIP ViT-bigG alone
        2048: "sdxl",  # ViT-L and ViT-bigG; DEPTHS looks further
        192: "tiny",  # the bundled model's 64 + 128
    }
)
# Width of what is added to the timestep: pooled text and six sizes of 256 each (the refiner: five).
POOLED_FAMILIES: MappingProxyType[int, str] = MappingProxyType(
    {2816: "sdxl", 2560: "sdxl-refiner", 5632: "kolors", 320: "tiny"}
)
# Transformer blocks at the lowest resolution, of those that SSD-1B prunes. segmind/SSD-1B's
# unet/config.json has 4 there and none in the middle, segmind/Segmind-Vega's 2, SDXL's 10 in both.
DEPTH_FAMILIES: MappingProxyType[int, str] = MappingProxyType({10: "sdxl", 4: "ssd-1b", 2: "vega"})
_DEPTH = re.compile(
    r"(?:down_blocks_2_attentions_\d|input_blocks_[78]_1|up_blocks_0_attentions_[01]|output_blocks_[01]_1)"
    r"_transformer_blocks_(\d{1,3})_.*"
)
_MIDDLE = ("mid_block_attentions_", "middle_block_1_transformer")
# Transformers, not UNets: parts of names, underscored.
TRANSFORMER_SIGNS = (
    ("single_transformer_blocks_", "flux"), ("double_blocks_", "flux"),
    ("joint_blocks_", "sd3"), ("_attn_add_q_proj", "sd3"),
)  # fmt: skip
# What files say of themselves, asked where shapes say nothing: how the value begins.
METADATA_KEYS = ("modelspec.architecture", "ss_base_model_version")
METADATA_FAMILIES = (
    ("stable-diffusion-xl-v1-refiner", "sdxl-refiner"), ("stable-diffusion-xl-v1", "sdxl"),
    ("stable-diffusion-v1", "sd-1.x"), ("stable-diffusion-v2", "sd-2.x"), ("stable-diffusion-3", "sd3"),
    ("flux", "flux"), ("sdxl", "sdxl"), ("sd_v1", "sd-1.x"), ("sd_v2", "sd-2.x"), ("sd3", "sd3"),
)  # fmt: skip
# Learned words: widths of the text encoders that they are for.
INVERSION_FAMILIES: MappingProxyType[frozenset[int], str] = MappingProxyType(
    {frozenset({768}): "sd-1.x", frozenset({1024}): "sd-2.x", frozenset({768, 1280}): "sdxl"}
)
# Width of a text encoder's words. SDXL's first is SD 1.x's too.
TEXT_FAMILIES: MappingProxyType[int, str] = MappingProxyType(
    {1280: "sdxl", 1024: "sd-2.x", 64: "tiny", 128: "tiny"}
)


@dataclass(frozen=True, kw_only=True)
class UnetAnatomy:
    """A UNet, or as much of one as an adapter touches; 0 is not seen."""

    context: int = 0  # width of the text that cross-attention reads
    pooled: int = 0
    channels: int = 0  # of its input
    depth: int = 0  # transformer blocks where SSD-1B has fewer
    middle: bool = False  # does its middle attend?


def unet_anatomy(modules: Mapping[str, Shape]) -> UnetAnatomy:
    """Return what modules show of a UNet: name, underscored → shape of its weight (outputs, inputs, …)."""
    widths = {name: shape[1] for name, shape in modules.items() if len(shape) > 1}
    context = [width for name, width in widths.items() if name.endswith(("attn2_to_k", "attn2_to_v"))]
    depths = [int(match[1]) + 1 for name in modules if (match := _DEPTH.fullmatch(name))]
    return UnetAnatomy(
        context=max(context, default=0),
        pooled=widths.get("add_embedding_linear_1", widths.get("label_emb_0_0", 0)),
        channels=widths.get("conv_in", widths.get("input_blocks_0_0", 0)),
        depth=max(depths, default=0),
        middle=any(name.startswith(_MIDDLE) for name in modules),
    )


def family_of_unet(unet: UnetAnatomy) -> str:
    """Return the family of a whole UNet."""
    family = (
        POOLED_FAMILIES.get(unet.pooled, UNKNOWN)
        if unet.context == 2048
        else CONTEXT_FAMILIES.get(unet.context, UNKNOWN)
    )
    if family == "sdxl":
        family = DEPTH_FAMILIES.get(unet.depth, "sdxl-pruned")  # KOALA, say: fewer blocks than any known
        if unet.middle != (family == "sdxl"):
            return "sdxl-pruned"
    if family in ("sdxl", "sd-1.x", "sd-2.x") and unet.channels not in (0, 4):
        inpaint = "sdxl-inpaint" if family == "sdxl" else "sd-inpaint"
        return inpaint if unet.channels == 9 else UNKNOWN  # latents, mask, masked latents
    return family


def family_of_lora(unet: UnetAnatomy) -> str:
    """Return the family of an adapter; "" where it touches too little of its base to tell."""
    if unet.context == 2048 or (not unet.context and unet.depth > 4):
        return "sdxl" if unet.middle else DEPTH_FAMILIES.get(unet.depth, "sdxl")
    return CONTEXT_FAMILIES.get(unet.context, UNKNOWN) if unet.context else ""


def family_of_controlnet(unet: UnetAnatomy) -> str:
    """Return the family of a ControlNet; the small ones do not attend at all."""
    return CONTEXT_FAMILIES.get(unet.context) or POOLED_FAMILIES.get(unet.pooled, UNKNOWN)


def family_of_part(shapes: Mapping[str, Shape]) -> str:
    """Return the family of a lone text encoder or VAE; SDXL shares CLIP ViT-L and VAE shapes with SD 1.x."""
    for name, shape in shapes.items():
        if name.endswith("token_embedding.weight") and len(shape) == 2:
            return TEXT_FAMILIES.get(shape[1], UNKNOWN)
    # The bundled AutoencoderKL's, and its AutoencoderTiny's: 64 wide are those of SD 1.x and of SDXL.
    full, small = (shapes.get(f"decoder.{name}.weight", ())[:2] for name in ("conv_in", "layers.0"))
    return "tiny" if full == (128, 4) or small == (32, 4) else UNKNOWN


def transformer_family(names: Iterable[str]) -> str:
    """The family of a transformer that is no UNet; "" is none."""
    flat = [name.replace(".", "_") for name in names]
    return next((family for part, family in TRANSFORMER_SIGNS if any(part in name for name in flat)), "")


def family_in_metadata(metadata: Mapping[str, str]) -> str:
    """Return the family that a file's metadata name."""
    words = [metadata.get(key, "").lower() for key in METADATA_KEYS]
    return next((f for word in words for start, f in METADATA_FAMILIES if word.startswith(start)), UNKNOWN)


MAX_ALPHAS = 16  # distinct ones that are told
_INVERSION_NAMES = re.compile(r"(string_to_param\..*|emb_params|clip_[lg]|text_encoders_[01])")
_CONVOLUTION = re.compile(r".*_(conv\w{0,20}|in_layers_2|out_layers_3|skip_connection|op)")
_KRONECKER = ("lokr_w1", "lokr_w1_b", "lokr_w2", "lokr_w2_b")  # each whole, or in two factors
_RANKED = ("down", "hada_w1_b", "lokr_w1_b", "lokr_w2_b")
# What only Stability's own naming has: before a network's names, and in them.
_STABILITY = {
    "first_stage_model.", "conditioner.embedders.0.", "conditioner.embedders.1.", "cond_stage_model."
}  # fmt: skip
_ORIGINAL = ("input_blocks.", "encoder.down.", "decoder.up.")
_NETWORK_ORDER = ("unet", "text_encoder", "text_encoder_2", "vae")

_Factors = dict[tuple[str, str], dict[str, Shape]]  # (network, module) → role → shape


@dataclass(frozen=True, kw_only=True)
class FileKind:
    """What a file is."""

    # checkpoint, unet, vae, text_encoder, lora, textual inversion, controlnet, ip-adapter, unknown
    what: str
    layout: str = ""  # diffusers, original, kohya, peft
    family: str = UNKNOWN  # sdxl, ssd-1b, sdxl-refiner, sdxl-inpaint, sd-1.x, sd-2.x, tiny, flux, sd3 …
    guidance_width: int = 0  # of LCM's guidance embedding; 0 is none
    targets: tuple[str, ...] = ()  # the networks that it holds, or that an adapter changes
    variety: str = ""  # of an adapter: lora, locon, loha, lokr, dora, oft, glora, ia3, full
    rank: int | tuple[int, ...] = 0  # of an adapter; several where they differ
    alpha: tuple[float, ...] = ()  # of an adapter: every one seen
    convolutions: bool = False  # whether an adapter changes convolutions too
    quantised: bool = False  # whether weights are whole numbers, or fp8 with scales beside them


def identify(header: Header) -> FileKind:
    """What the file is; `what` is "unknown" where nothing fits."""
    for identify_as in (
        _identify_ip_adapter,
        _identify_inversion,
        _identify_lora,
        _identify_controlnet,
        _identify_networks,
    ):
        kind = identify_as(header)
        if kind is not None:
            return kind
    return FileKind(
        what="unknown", family=transformer_family(header.tensors) or family_in_metadata(header.metadata)
    )


def _identify_ip_adapter(header: Header) -> FileKind | None:
    if not any(name.startswith(("image_proj.", "ip_adapter.")) for name in header.tensors):
        return None
    keys = [e.shape for name, e in header.tensors.items() if name.endswith("to_k_ip.weight") and e.shape]
    family = CONTEXT_FAMILIES.get(max((shape[-1] for shape in keys), default=0), UNKNOWN)
    return FileKind(what="ip-adapter", family=family, targets=("unet",))


def _identify_inversion(header: Header) -> FileKind | None:
    """Return the kind of a textual inversion: a few rows of a token embedding."""
    shapes = [entry.shape for entry in header.tensors.values()]
    has_usual_names = bool(shapes) and all(_INVERSION_NAMES.fullmatch(name) for name in header.tensors)
    is_lone_embedding = (
        len(shapes) == 1 and len(shapes[0]) <= 2 and shapes[0][-1:] in {(768,), (1024,), (1280,)}
    )
    if not has_usual_names and not is_lone_embedding:
        return None
    family = INVERSION_FAMILIES.get(frozenset(shape[-1] for shape in shapes if shape), UNKNOWN)
    return FileKind(what="textual inversion", family=family, targets=_NETWORK_ORDER[1:3][: len(shapes)])


def _identify_lora(header: Header) -> FileKind | None:
    pieces = {
        name: piece for name in header.tensors if (piece := tensor_names.parse_lora_name(name)) is not None
    }
    roles = {piece.role for piece in pieces.values()} - {"alpha"}
    if not roles:
        return None
    factors: _Factors = {}
    for name, piece in pieces.items():
        factors.setdefault((piece.network, piece.module), {})[piece.role] = header.tensors[name].shape
    convolutions = any(_changes_convolution(module, shapes) for (_, module), shapes in factors.items())
    variety = tensor_names.lora_variety(roles)
    ranks = sorted({shapes[role][0] for shapes in factors.values() for role in _RANKED if shapes.get(role)})
    alphas = read_scalars(header, [name for name, piece in pieces.items() if piece.role == "alpha"])
    return FileKind(
        what="lora",
        layout=next(piece.layout for piece in pieces.values()),
        family=_lora_family(header, factors),
        targets=_in_order({network for network, _ in factors}),
        variety="locon" if variety == "lora" and convolutions else variety,
        rank=ranks[0] if len(ranks) == 1 else tuple(ranks) or 0,
        alpha=tuple(
            sorted({a for a in alphas or _alphas_in_metadata(header) if math.isfinite(a)})[:MAX_ALPHAS]
        ),
        convolutions=convolutions,
    )


def _identify_controlnet(header: Header) -> FileKind | None:
    marks = ("controlnet_", "input_hint_block.", "control_model.")
    if not any(mark in name for name in header.tensors for mark in marks):
        return None
    shapes = {tensor_names.split_prefix(name).rest: entry.shape for name, entry in header.tensors.items()}
    family = transformer_family(shapes) or family_of_controlnet(unet_anatomy(_weights_by_module(shapes)))
    layout = "original" if any("input_hint_block." in name for name in shapes) else "diffusers"
    return FileKind(what="controlnet", layout=layout, family=family, targets=("unet",))


def _identify_networks(header: Header) -> FileKind | None:
    """Return the kind of whole weights: one network, or a checkpoint of several."""
    groups: dict[str, dict[str, Shape]] = {}  # prefix → its tensors
    shapes_by_network: dict[str, dict[str, Shape]] = {}  # network → its tensors
    for name, entry in header.tensors.items():
        prefix, network, rest = tensor_names.split_prefix(name)
        groups.setdefault(prefix, {})[rest] = entry.shape
        for pattern, sign in tensor_names.NETWORK_SIGNS:
            if pattern.fullmatch(rest):
                shapes_by_network[network or sign] = groups[prefix]
    if not shapes_by_network:
        return None
    networks = _in_order(shapes_by_network)
    unet = _weights_by_module(shapes_by_network.get("unet", {}))
    is_checkpoint = "unet" in shapes_by_network and len(networks) > 1
    unet_family = transformer_family(unet) or family_of_unet(unet_anatomy(unet))
    return FileKind(
        what="checkpoint" if is_checkpoint else networks[0].removesuffix("_2"),
        layout=_layout_of_names(groups),
        family=unet_family if unet else family_of_part(shapes_by_network[networks[0]]),
        guidance_width=_guidance_width(header) if unet else 0,
        targets=networks,
        quantised=_is_quantised(header),
    )


def _is_quantised(header: Header) -> bool:
    """Return whether scales stand beside weights, or weights are whole numbers."""
    scales = ("scaled_fp8", ".scale_weight", ".weight_scale", ".comfy_quant")
    has_integers = any(
        entry.dtype in ("I8", "U8") and len(entry.shape) > 1 for entry in header.tensors.values()
    )
    return has_integers or any(name.endswith(scales) for name in header.tensors)


def _layout_of_names(groups: Mapping[str, Iterable[str]]) -> str:
    """Return the layout of whole weights, whose tensors' names are grouped by prefix."""
    ours = any(name.startswith(_ORIGINAL) for names in groups.values() for name in names)
    return "original" if ours or not _STABILITY.isdisjoint(groups) else "diffusers"


def _guidance_width(header: Header) -> int:
    """Return the width of LCM's time_embedding.cond_proj, whatever stands before it."""
    ends = ("time_embedding.cond_proj.weight", "time_embed.cond_proj.weight")
    shapes = [entry.shape for name, entry in header.tensors.items() if name.endswith(ends)]
    return shapes[0][1] if shapes and len(shapes[0]) == 2 else 0


def _in_order(networks: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(networks, key=_NETWORK_ORDER.index))


def _weights_by_module(shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """Weights by module, underscored."""
    end = ".weight"
    return {n.removesuffix(end).replace(".", "_"): s for n, s in shapes.items() if n.endswith(end)}


# --- adapters


def _lora_family(header: Header, factors: _Factors) -> str:
    """The family that an adapter is for."""
    unet = {
        module: (0, _input_width(shapes))
        for (network, module), shapes in factors.items()
        if network == "unet"
    }
    family = transformer_family(unet) or family_of_lora(unet_anatomy(unet))
    if family:
        return family
    if any(name.startswith(("lora_te1_", "lora_te2_", "text_encoder_2.")) for name in header.tensors):
        return "sdxl"  # of the families with two text encoders, only SDXL's is trained without its UNet
    if any(name.startswith("lora_te_") for name in header.tensors):  # kohya's, for a model with one
        widths = [
            _input_width(shapes) for (_, module), shapes in factors.items() if module.endswith("q_proj")
        ]
        return CONTEXT_FAMILIES.get(max(widths, default=0), UNKNOWN)
    return family_in_metadata(header.metadata)


def _input_width(factors: Mapping[str, Shape]) -> int:
    """The inputs of the module that an adapter changes; 0 where its factors do not say."""
    for roles in (("down",), ("hada_w1_b",), ("diff",), _KRONECKER):
        inputs = [factors[role][1] for role in roles if len(factors.get(role, ())) > 1]
        if inputs:
            return math.prod(inputs)
    return 0


def _changes_convolution(module: str, factors: Mapping[str, Shape]) -> bool:
    kernels = {shape[2:] for shape in factors.values()}
    return bool(_CONVOLUTION.fullmatch(module)) or not kernels <= {(), (1, 1)}


def _alphas_in_metadata(header: Header) -> list[float]:
    """Return kohya's ss_network_alpha; or diffusers' lora_adapter_metadata's, {"unet.lora_alpha": 8}."""
    try:
        if "ss_network_alpha" in header.metadata:
            return [float(header.metadata["ss_network_alpha"])]
        metadata = parse_json(header.metadata.get("lora_adapter_metadata", "{}").encode())
        return [float(value) for key, value in metadata.items() if key.endswith("lora_alpha")]
    except (ValueError, TypeError, OverflowError):
        return []
