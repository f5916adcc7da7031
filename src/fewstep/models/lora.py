"""LoRA files → what they add to weights, in kohya's, diffusers' and PEFT's layouts.

LoRA (arXiv:2106.09685, sec. 4.1) adds (alpha / r) · up @ down, of rank r, to a weight.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fewstep.errors import CorruptModelError
from fewstep.models import header, kinds, naming
from fewstep.models.adapting import require_lora
from fewstep.models.catalog import reading
from fewstep.models.header import Header, shown
from fewstep.models.layers import NETWORKS, Layer, Layers, flat

SAID = "lora_adapter_metadata"  # where diffusers' `save_lora_weights` keeps PEFT's configuration
CONFIG = "adapter_config.json"  # where PEFT's `save_pretrained` keeps it
_LITERAL = re.compile(r"[\w.]+")  # a pattern for names that is one name
_Factors = Mapping[str, Tensor]  # by role: up, down, alpha


@dataclass(frozen=True, eq=False)
class Delta:
    """What is added to one weight."""

    up: Tensor  # (out, r) or (out, r, 1, 1)
    down: Tensor  # (r, in) or (r, in, kernel, kernel)
    scale: float  # alpha / r

    def added_to(self, total: Tensor, weight: float) -> Tensor:
        """`total`, (out, all inputs) in fp32, changed in place; a convolution's up is 1x1: a product, too."""
        up, down = (factor.to(total).flatten(1) for factor in (self.up, self.down))
        return total.addmm_(up, down, alpha=weight * self.scale)


@dataclass(frozen=True, eq=False)
class Lora:
    """A file's deltas, by network and weight. Equal to itself alone."""

    path: Path
    deltas: Mapping[tuple[str, str], Delta]


def read(path: Path, layers: Layers) -> Lora:
    """A LoRA for these layers; `CorruptModelError` says what else it is, or what of it does not fit."""
    found = header.read(path)
    require_lora(found)
    modules = _modules(found)
    tensors, configs = _tensors(path, found), _configs(found, modules)
    deltas: dict[tuple[str, str], Delta] = {}
    strange: list[str] = []
    for (network, module), names in modules.items():
        factors = {role: tensors[name] for role, name in names.items()}
        place = _place(network, module, factors, layers)
        if place is None:
            strange.append(names[min(names)])
            continue
        layer = layers[place]
        if (place[0], layer.weight) in deltas:
            raise CorruptModelError(f"{shown(path)} changes {layer.weight} twice, by two names")
        _require_fit(found, factors, layer)
        config = configs.get(place[0], configs.get("", {}))
        deltas[place[0], layer.weight] = _delta(found, factors, layer, config)
    _require_known(found, strange, len(modules))
    return Lora(path, deltas)


def _modules(found: Header) -> dict[tuple[str, str], dict[str, str]]:
    """(network, module) → role → the tensor's name; the network is "" where only the model can tell."""
    modules: dict[tuple[str, str], dict[str, str]] = {}
    for name in found.tensors:
        piece = naming.piece(name)
        if piece is None or (piece.role != "alpha" and not name.endswith(".weight")):
            raise CorruptModelError(f"{shown(found.path)} holds {name!r:.80}, which is no part of a LoRA")
        own = modules.setdefault(("" if piece.layout == "peft" else piece.network, piece.module), {})
        if piece.role in own:
            raise CorruptModelError(f"{shown(found.path)} has {own[piece.role]!r:.80} twice: as {name!r:.80}")
        own[piece.role] = name
    return modules


def _tensors(path: Path, found: Header) -> dict[str, Tensor]:
    """All of them; they stay mapped to the file."""
    from safetensors import safe_open

    with reading(path), safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in found.tensors}
    quantised = [
        name for name, tensor in tensors.items() if tensor.ndim > 1 and not tensor.is_floating_point()
    ]
    if quantised:
        raise CorruptModelError(f"{shown(path)} has whole numbers in {quantised[0]!r:.80}: it is quantised")
    return tensors


def _place(network: str, module: str, factors: _Factors, layers: Layers) -> tuple[str, str] | None:
    """Which layer is meant. PEFT does not write of which network: the first that has such a one."""
    name = flat(module)
    places = [(each, name) for each in ((network,) if network else NETWORKS)]
    known = [place for place in places if place in layers]
    return next((place for place in known if _fits(factors, layers[place])), known[0] if known else None)


def _fits(factors: _Factors, layer: Layer) -> bool:
    """up (out, r), down (r, in): with convolutions, every input of the kernel is in `down`."""
    if not {"up", "down"} <= factors.keys() or any(factors[role].ndim < 2 for role in ("up", "down")):
        return False
    up, down = factors["up"].shape, factors["down"].shape
    inputs = math.prod(layer.shape[1:])
    return up[0] == layer.shape[0] and math.prod(up[1:]) == down[0] > 0 and math.prod(down[1:]) == inputs


def _require_fit(found: Header, factors: _Factors, layer: Layer) -> None:
    lacking = [role for role in ("up", "down") if role not in factors]
    if lacking:
        raise CorruptModelError(f"{shown(found.path)} has no {lacking[0]} factor for {layer.weight}")
    if not _fits(factors, layer):
        up, down = (tuple(factors[role].shape) for role in ("up", "down"))
        raise CorruptModelError(
            f"{_misfit(found)}; {layer.weight} is {tuple(layer.shape)}, and its factors are {up} and {down}"
        )


def _require_known(found: Header, strange: list[str], modules: int) -> None:
    """No part of it may be left out silently."""
    if strange:
        named = ", ".join(f"{name:.80}" for name in strange[:3]) + (", …" if len(strange) > 3 else "")
        raise CorruptModelError(
            f"{_misfit(found)}; {len(strange)} of its {modules} layers are not in this one: {named}"
        )


def _misfit(found: Header) -> str:
    family = kinds.kind(found).family
    base = "another base" if family in ("unknown", "sdxl") else f"another base, {family}"
    return f"{shown(found.path)} does not fit this model: it was made for {base}"


def _delta(found: Header, factors: _Factors, layer: Layer, config: Mapping[str, Any]) -> Delta:
    """alpha is in a tensor beside the factors, or in PEFT's configuration; none at all is a scale of 1."""
    up, down = factors["up"], factors["down"]
    rank, root = len(down), False
    if "alpha" in factors:
        alpha = _number(factors["alpha"])
    else:
        alpha = _alpha(found, config, layer, rank)
        root = config.get("use_rslora") is True  # rsLoRA, arXiv:2312.03732, eq. 4: alpha / sqrt(r)
    if not math.isfinite(alpha):
        raise CorruptModelError(
            f"{shown(found.path)} has an alpha for {layer.weight} that is no finite number"
        )
    if not all(factor.float().isfinite().all() for factor in (up, down)):
        raise CorruptModelError(f"{shown(found.path)} has numbers for {layer.weight} that are not finite")
    return Delta(up, down, alpha / (math.sqrt(rank) if root else rank))


def _number(tensor: Tensor) -> float:
    """The one number in a tensor, of whatever real dtype: float8 cannot add."""
    if tensor.numel() != 1 or tensor.is_complex():
        return math.nan
    try:
        return float(tensor.float())
    except (NotImplementedError, RuntimeError):  # a dtype that torch only stores
        return math.nan


def _alpha(found: Header, config: Mapping[str, Any], layer: Layer, rank: int) -> float:
    """Of a layer, by its name in PEFT's `alpha_pattern`, or else for all."""
    patterns = config.get("alpha_pattern") or {}
    alpha: object = config.get("lora_alpha", rank)
    for pattern, own in patterns.items() if isinstance(patterns, dict) else ():
        if not _LITERAL.fullmatch(pattern):  # a regular expression from a file could run for ever
            raise CorruptModelError(
                f"{shown(found.path)} has an alpha_pattern that is no name: {pattern!r:.80}"
            )
        if f"_{flat(layer.weight)}".endswith(f"_{flat(pattern)}_weight"):
            alpha = own
            break
    return float(alpha) if isinstance(alpha, int | float) and not isinstance(alpha, bool) else math.nan


def _configs(found: Header, modules: Mapping[tuple[str, str], object]) -> dict[str, dict[str, Any]]:
    """PEFT's configuration of each network, "" for all: beside the file, or in its metadata."""
    beside = found.path.parent / CONFIG
    bare = any(network == "" for network, _ in modules)
    said: dict[str, Any] = {}
    if bare and beside.is_file():
        said = header.read_json(beside)
    elif SAID in found.metadata:
        with reading(found.path):
            said = header.parse(found.metadata[SAID].encode())
    configs: dict[str, dict[str, Any]] = {}
    for key, value in said.items():
        network, _, rest = key.rpartition(".")
        configs.setdefault(network, {})[rest] = value
    if any(config.get("use_dora") for config in configs.values()):
        raise CorruptModelError(f"{shown(found.path)} is a DoRA: only LoRA can be merged")
    return configs
