"""How model files name their tensors: which network, in whose layout, which module, in what role."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

# Whole weights, longest first: what stands before a network's own names.
NETWORK_PREFIXES = (
    ("model.diffusion_model.", "unet"),  # CompVis, Stability
    ("diffusion_model.", "unet"),
    ("control_model.", "unet"),  # lllyasviel's ControlNet
    ("first_stage_model.", "vae"),
    ("conditioner.embedders.0.", "text_encoder"),  # Stability's SDXL
    ("conditioner.embedders.1.", "text_encoder_2"),
    ("cond_stage_model.", "text_encoder"),  # SD 1.x, 2.x
    ("text_encoder_2.", "text_encoder_2"),  # diffusers' parts, in one file
    ("text_encoder.", "text_encoder"),
    ("unet.", "unet"),
    ("vae.", "vae"),
)
# By which tensor a network is known, after its prefix.
NETWORK_SIGNS = (
    (re.compile(r"(conv_in|input_blocks\.0\.0)\.weight"), "unet"),
    (re.compile(r"decoder\.(conv_in|layers\.0)\.weight"), "vae"),  # of AutoencoderKL, of AutoencoderTiny
    (re.compile(r".*\btoken_embedding\.weight"), "text_encoder"),
)
# Adapters: what stands before a module's name, and whose layout that is. "": the rest must tell the network.
_LORA_PREFIXES = (
    ("lora_unet_", "unet", "kohya"),
    ("lora_te1_", "text_encoder", "kohya"),
    ("lora_te2_", "text_encoder_2", "kohya"),
    ("lora_te_", "text_encoder", "kohya"),
    ("lora_unet.", "unet", "kohya"),  # OneTrainer's backups: kohya's, with dots
    ("lora_te1.", "text_encoder", "kohya"),
    ("lora_te2.", "text_encoder_2", "kohya"),
    ("lora_te.", "text_encoder", "kohya"),
    ("lycoris_", "", "kohya"),  # LyCORIS around any module
    ("base_model.model.", "", "peft"),
    ("text_encoder_2.", "text_encoder_2", "diffusers"),
    ("text_encoder.", "text_encoder", "diffusers"),
    ("unet.", "unet", "diffusers"),  # and OneTrainer's, before original names
    ("transformer.", "unet", "diffusers"),
    ("diffusion_model.", "unet", "original"),  # ComfyUI
    ("model.diffusion_model.", "unet", "original"),
    ("text_encoders.clip_l.transformer.", "text_encoder", "original"),
    ("text_encoders.clip_h.transformer.", "text_encoder", "original"),
    ("text_encoders.clip_g.transformer.", "text_encoder_2", "original"),
    ("clip_l.", "text_encoder", "original"),  # OneTrainer
    ("clip_g.", "text_encoder_2", "original"),
)
BUNDLED_WORD = "bundle_emb."  # before the name of a learned word that lies in a LoRA's file
# The end of an adapter's name: a plain one's factor (`lora`); LyCORIS' others (`other`), of which some
# are too short to mean anything without a prefix (`short`); and PEFT's others (`peft`).
_ROLE = re.compile(
    r"(?P<module>.+)[._](?:"
    r"lora(?:_linear_layer)?[._](?P<lora>down|up|mid|A|B)(?:\.\w{1,40}+){1,2}+"
    r"|lora_(?P<magnitude>magnitude_vector)(?:\.\w{1,40}+){0,2}+"
    r"|(?P<peft>oft_[Rr]|boft_[RsP]|ia3_l|vera_lambda_[bd]|hra_u)(?:\.\w{1,40}+){0,2}+"
    r"|(?P<other>alpha|dora_scale|hada_(?:w[12]_[ab]|t[12])|lokr_(?:w[12](?:_[ab])?|t[12])|oft_\w{1,40}+)"
    r"|(?P<short>[ab][12]\.weight|bm\.weight|on_input|diff|diff_b|[wb]_norm|rescale|scalar)"
    r")"
)
_LONGEST_ROLE = (
    1 + len(".lora_linear_layer.down") + 2 * 41
)  # the longest such end, after a letter of the module
# What a role says of the adapter's variety: LyCORIS' names for its algorithms, PEFT's others, then DoRA.
_VARIETIES = (
    ("hada_", "loha"), ("lokr_", "lokr"), ("oft_blocks", "oft"), ("oft_", "oft-v2"), ("boft_", "peft-boft"),
    ("vera_", "vera"), ("hra_", "hra"), ("on_input", "ia3"), ("ia3_", "ia3"),
    ("a1.", "glora"), ("a2.", "glora"), ("b1.", "glora"), ("b2.", "glora"),
    ("dora_scale", "dora"), ("magnitude_vector", "dora"), ("up", "lora"), ("down", "lora"),
    ("diff", "full"), ("w_norm", "full"), ("b_norm", "full"),
)  # fmt: skip
PEFT_FACTORS = {"A": "down", "B": "up"}  # PEFT's names for them


class PrefixedName(NamedTuple):
    """The name of a tensor of whole weights."""

    prefix: str
    network: str  # "" where no prefix says it
    rest: str


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraName:
    """The name of a tensor of an adapter."""

    network: str
    named: bool  # whether the name says which network; else it is a guess
    layout: str
    module: str  # underscored, as kohya writes it: down_blocks_1_attentions_0_…_attn2_to_k
    role: str


def split_prefix(name: str) -> PrefixedName:
    """A tensor of whole weights."""
    for prefix, network in NETWORK_PREFIXES:
        if name.startswith(prefix):
            return PrefixedName(prefix, network, name.removeprefix(prefix))
    return PrefixedName("", "", name)


def parse_lora_name(name: str) -> LoraName | None:
    """A tensor of an adapter; None where the name is not one's."""
    match = _ROLE.fullmatch(name, max(0, len(name) - _LONGEST_ROLE))
    if match is None:
        return _parse_ia3_name(name)
    if not name.isprintable():
        return None
    role = match["lora"] or match["magnitude"] or match["peft"] or match["other"] or match["short"]
    module = name[: match.end("module")]
    prefix, network, layout = _lora_prefix(module, role)
    if match["short"] and not prefix:
        return None
    role = PEFT_FACTORS.get(role, role)
    return LoraName(
        network=network or _guess_network(module),
        named=bool(network),
        layout=layout,
        module=module.removeprefix(prefix).replace(".processor", "").replace(".", "_"),
        role=f"{role}_bias" if match["lora"] and name.endswith(".bias") else role,
    )


def lora_variety(roles: set[str]) -> str:
    """LyCORIS' name for an adapter's algorithm; "lora" where nothing else is said."""
    names = (name for sign, name in _VARIETIES if any(role.startswith(sign) for role in roles))
    return next(names, "lora")


def _parse_ia3_name(name: str) -> LoraName | None:
    """LyCORIS' (IA)³ has a module's `weight`, which only kohya's prefixes set apart from whole weights."""
    module = name.removesuffix(".weight")
    prefix, network, layout = _lora_prefix(module, "")
    if module == name or layout != "kohya" or not name.isprintable():
        return None
    module = module.removeprefix(prefix).replace(".", "_")
    network, named = network or _guess_network(module), bool(network)
    return LoraName(network=network, named=named, layout=layout, module=module, role="weight")


def _lora_prefix(module: str, role: str) -> tuple[str, str, str]:
    """What stands before a module's name, its network ("": not said), and whose layout that is."""
    bare = ("", "", "peft" if role in PEFT_FACTORS else "diffusers")
    return next((owner for owner in _LORA_PREFIXES if module.startswith(owner[0])), bare)


def _guess_network(module: str) -> str:
    return "text_encoder" if "text_model" in module else "unet"
