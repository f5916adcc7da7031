"""What a model file is, from the names and shapes in its header: no weight is read."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from fewstep.models import families, naming
from fewstep.models.families import UNKNOWN, Shape
from fewstep.models.header import Header, parse, scalars

ALPHAS = 16  # distinct ones that are told
_WORDS = re.compile(r"(string_to_param\..*|emb_params|clip_[lg]|text_encoders_[01])")
_CONVOLUTION = re.compile(r".*_(conv\w{0,20}|in_layers_2|out_layers_3|skip_connection|op)")
_KRONECKER = ("lokr_w1", "lokr_w1_b", "lokr_w2", "lokr_w2_b")  # each whole, or in two factors
_RANKED = ("down", "hada_w1_b", "lokr_w1_b", "lokr_w2_b")
# What only Stability's own naming has: before a network's names, and in them.
_STABILITY = {
    "first_stage_model.", "conditioner.embedders.0.", "conditioner.embedders.1.", "cond_stage_model."
}  # fmt: skip
_ORIGINAL = ("input_blocks.", "encoder.down.", "decoder.up.")
_ORDER = ("unet", "text_encoder", "text_encoder_2", "vae")

_Factors = dict[tuple[str, str], dict[str, Shape]]  # (network, module) → role → shape


@dataclass(frozen=True, kw_only=True)
class Kind:
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
    convolutions: bool = False  # does an adapter change convolutions too?


def kind(header: Header) -> Kind:
    """What the file is; `what` is "unknown" where nothing fits."""
    for look in (_ip_adapter, _words, _adapter, _controlnet, _networks):
        found = look(header)
        if found is not None:
            return found
    return Kind(what="unknown", family=families.foreign(header.tensors) or families.said(header.metadata))


def _ip_adapter(header: Header) -> Kind | None:
    if not any(name.startswith(("image_proj.", "ip_adapter.")) for name in header.tensors):
        return None
    keys = [e.shape for name, e in header.tensors.items() if name.endswith("to_k_ip.weight") and e.shape]
    family = families.CONTEXTS.get(max((shape[-1] for shape in keys), default=0), UNKNOWN)
    return Kind(what="ip-adapter", family=family, targets=("unet",))


def _words(header: Header) -> Kind | None:
    """Textual inversion: a few rows of a token embedding."""
    shapes = [entry.shape for entry in header.tensors.values()]
    named = bool(shapes) and all(_WORDS.fullmatch(name) for name in header.tensors)
    alone = len(shapes) == 1 and len(shapes[0]) <= 2 and shapes[0][-1:] in {(768,), (1024,), (1280,)}
    if not named and not alone:
        return None
    family = families.WORDS.get(frozenset(shape[-1] for shape in shapes if shape), UNKNOWN)
    return Kind(what="textual inversion", family=family, targets=_ORDER[1:3][: len(shapes)])


def _adapter(header: Header) -> Kind | None:
    pieces = {name: piece for name in header.tensors if (piece := naming.piece(name)) is not None}
    roles = {piece.role for piece in pieces.values()} - {"alpha"}
    if not roles:
        return None
    factors: _Factors = {}
    for name, piece in pieces.items():
        factors.setdefault((piece.network, piece.module), {})[piece.role] = header.tensors[name].shape
    convolutions = any(_convolves(module, shapes) for (_, module), shapes in factors.items())
    variety = naming.variety(roles)
    ranks = sorted({shapes[role][0] for shapes in factors.values() for role in _RANKED if shapes.get(role)})
    alphas = scalars(header, [name for name, piece in pieces.items() if piece.role == "alpha"])
    return Kind(
        what="lora",
        layout=next(piece.layout for piece in pieces.values()),
        family=_adapted(header, factors),
        targets=_in_order({network for network, _ in factors}),
        variety="locon" if variety == "lora" and convolutions else variety,
        rank=ranks[0] if len(ranks) == 1 else tuple(ranks) or 0,
        alpha=tuple(sorted({a for a in alphas or _said_alphas(header) if math.isfinite(a)})[:ALPHAS]),
        convolutions=convolutions,
    )


def _controlnet(header: Header) -> Kind | None:
    marks = ("controlnet_", "input_hint_block.", "control_model.")
    if not any(mark in name for name in header.tensors for mark in marks):
        return None
    own = {naming.whole(name).rest: entry.shape for name, entry in header.tensors.items()}
    family = families.foreign(own) or families.of_controlnet(families.anatomy(_modules(own)))
    layout = "original" if any("input_hint_block." in name for name in own) else "diffusers"
    return Kind(what="controlnet", layout=layout, family=family, targets=("unet",))


def _networks(header: Header) -> Kind | None:
    """Whole weights: one network, or a checkpoint of several."""
    groups: dict[str, dict[str, Shape]] = {}  # prefix → its tensors
    found: dict[str, dict[str, Shape]] = {}  # network → its tensors
    for name, entry in header.tensors.items():
        prefix, network, rest = naming.whole(name)
        groups.setdefault(prefix, {})[rest] = entry.shape
        for pattern, sign in naming.SIGNS:
            if pattern.fullmatch(rest):
                found[network or sign] = groups[prefix]
    if not found:
        return None
    networks = _in_order(found)
    unet = _modules(found.get("unet", {}))
    several = "unet" in found and len(networks) > 1
    of_unet = families.foreign(unet) or families.of_unet(families.anatomy(unet))
    return Kind(
        what="checkpoint" if several else networks[0].removesuffix("_2"),
        layout=_layout(groups),
        family=of_unet if unet else families.of_part(found[networks[0]]),
        guidance_width=_guidance_width(header) if unet else 0,
        targets=networks,
    )


def _layout(groups: Mapping[str, Iterable[str]]) -> str:
    """Of whole weights: tensors' names by their prefix."""
    ours = any(name.startswith(_ORIGINAL) for names in groups.values() for name in names)
    return "original" if ours or not _STABILITY.isdisjoint(groups) else "diffusers"


def _guidance_width(header: Header) -> int:
    """LCM's time_embedding.cond_proj, whatever stands before it."""
    ends = ("time_embedding.cond_proj.weight", "time_embed.cond_proj.weight")
    shapes = [entry.shape for name, entry in header.tensors.items() if name.endswith(ends)]
    return shapes[0][1] if shapes and len(shapes[0]) == 2 else 0


def _in_order(networks: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(networks, key=_ORDER.index))


def _modules(shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """Weights by module, underscored."""
    end = ".weight"
    return {n.removesuffix(end).replace(".", "_"): s for n, s in shapes.items() if n.endswith(end)}


# --- adapters


def _adapted(header: Header, factors: _Factors) -> str:
    """The family that an adapter is for."""
    unet = {module: (0, _width(shapes)) for (network, module), shapes in factors.items() if network == "unet"}
    family = families.foreign(unet) or families.of_adapter(families.anatomy(unet))
    if family:
        return family
    if any(name.startswith(("lora_te1_", "lora_te2_", "text_encoder_2.")) for name in header.tensors):
        return "sdxl"  # of the families with two text encoders, only SDXL's is trained without its UNet
    if any(name.startswith("lora_te_") for name in header.tensors):  # kohya's, for a model with one
        widths = [_width(shapes) for (_, module), shapes in factors.items() if module.endswith("q_proj")]
        return families.CONTEXTS.get(max(widths, default=0), UNKNOWN)
    return families.said(header.metadata)


def _width(factors: Mapping[str, Shape]) -> int:
    """The inputs of the module that an adapter changes; 0 where its factors do not say."""
    for roles in (("down",), ("hada_w1_b",), ("diff",), _KRONECKER):
        inputs = [factors[role][1] for role in roles if len(factors.get(role, ())) > 1]
        if inputs:
            return math.prod(inputs)
    return 0


def _convolves(module: str, factors: Mapping[str, Shape]) -> bool:
    kernels = {shape[2:] for shape in factors.values()}
    return bool(_CONVOLUTION.fullmatch(module)) or not kernels <= {(), (1, 1)}


def _said_alphas(header: Header) -> list[float]:
    """kohya's ss_network_alpha; or diffusers' lora_adapter_metadata, {"unet.lora_alpha": 8}."""
    try:
        if "ss_network_alpha" in header.metadata:
            return [float(header.metadata["ss_network_alpha"])]
        told = parse(header.metadata.get("lora_adapter_metadata", "{}").encode())
        return [float(value) for key, value in told.items() if key.endswith("lora_alpha")]
    except (ValueError, TypeError, OverflowError):
        return []
