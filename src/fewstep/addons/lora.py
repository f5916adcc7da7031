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

from fewstep.addons.lora_targets import LORA_NETWORKS, LoraTarget, LoraTargets, underscored
from fewstep.catalog.addons import require_lora
from fewstep.errors import CorruptModelError
from fewstep.files import identify, safetensors, tensor_names, untrusted
from fewstep.files.safetensors import Header
from fewstep.files.untrusted import printable_path, raise_as_corrupt

METADATA_CONFIG = "lora_adapter_metadata"  # where diffusers' `save_lora_weights` keeps PEFT's configuration
CONFIG_FILE = "adapter_config.json"  # where PEFT's `save_pretrained` keeps it
_LITERAL = re.compile(r"[\w.]+")  # a pattern for names that is one name
_Factors = Mapping[str, Tensor]  # by role: up, down, alpha


@dataclass(frozen=True, eq=False)
class LoraDelta:
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
    deltas: Mapping[tuple[str, str], LoraDelta]


def read_lora(path: Path, layers: LoraTargets) -> Lora:
    """A LoRA for these layers; `CorruptModelError` says what else it is, or what of it does not fit."""
    found = safetensors.read_header(path)
    require_lora(found)
    modules = _tensors_by_module(found)
    tensors, configs = _read_tensors(path, found), _peft_configs(found, modules)
    deltas: dict[tuple[str, str], LoraDelta] = {}
    strange: list[str] = []
    for (network, module), names in modules.items():
        factors = {role: tensors[name] for role, name in names.items()}
        place = _find_layer(network, module, factors, layers)
        if place is None:
            strange.append(names[min(names)])
            continue
        layer = layers[place]
        if (place[0], layer.weight) in deltas:
            raise CorruptModelError(f"{printable_path(path)} changes {layer.weight} twice, by two names")
        _require_fit(found, factors, layer)
        config = configs.get(place[0], configs.get("", {}))
        deltas[place[0], layer.weight] = _make_delta(found, factors, layer, config)
    _require_known(found, strange, len(modules))
    return Lora(path, deltas)


def _tensors_by_module(found: Header) -> dict[tuple[str, str], dict[str, str]]:
    """(network, module) → role → the tensor's name; the network is "" where only the model can tell."""
    modules: dict[tuple[str, str], dict[str, str]] = {}
    for name in found.tensors:
        piece = tensor_names.parse_lora_name(name)
        if piece is None or (piece.role != "alpha" and not name.endswith(".weight")):
            raise CorruptModelError(
                f"{printable_path(found.path)} holds {name!r:.80}, which is no part of a LoRA"
            )
        own = modules.setdefault(("" if piece.layout == "peft" else piece.network, piece.module), {})
        if piece.role in own:
            raise CorruptModelError(
                f"{printable_path(found.path)} has {own[piece.role]!r:.80} twice: as {name!r:.80}"
            )
        own[piece.role] = name
    return modules


def _read_tensors(path: Path, found: Header) -> dict[str, Tensor]:
    """All of them; they stay mapped to the file."""
    from safetensors import safe_open

    with raise_as_corrupt(path), safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in found.tensors}
    quantised = [
        name for name, tensor in tensors.items() if tensor.ndim > 1 and not tensor.is_floating_point()
    ]
    if quantised:
        raise CorruptModelError(
            f"{printable_path(path)} has whole numbers in {quantised[0]!r:.80}: it is quantised"
        )
    return tensors


def _find_layer(network: str, module: str, factors: _Factors, layers: LoraTargets) -> tuple[str, str] | None:
    """Which layer is meant. PEFT does not write of which network: the first that has such a one."""
    name = underscored(module)
    places = [(each, name) for each in ((network,) if network else LORA_NETWORKS)]
    known = [place for place in places if place in layers]
    return next(
        (place for place in known if _factors_fit(factors, layers[place])), known[0] if known else None
    )


def _factors_fit(factors: _Factors, layer: LoraTarget) -> bool:
    """up (out, r), down (r, in): with convolutions, every input of the kernel is in `down`."""
    if not {"up", "down"} <= factors.keys() or any(factors[role].ndim < 2 for role in ("up", "down")):
        return False
    up, down = factors["up"].shape, factors["down"].shape
    inputs = math.prod(layer.shape[1:])
    return up[0] == layer.shape[0] and math.prod(up[1:]) == down[0] > 0 and math.prod(down[1:]) == inputs


def _require_fit(found: Header, factors: _Factors, layer: LoraTarget) -> None:
    lacking = [role for role in ("up", "down") if role not in factors]
    if lacking:
        raise CorruptModelError(f"{printable_path(found.path)} has no {lacking[0]} factor for {layer.weight}")
    if not _factors_fit(factors, layer):
        up, down = (tuple(factors[role].shape) for role in ("up", "down"))
        raise CorruptModelError(
            f"{_misfit_message(found)}; {layer.weight} is {tuple(layer.shape)}, "
            f"and its factors are {up} and {down}"
        )


def _require_known(found: Header, strange: list[str], modules: int) -> None:
    """No part of it may be left out silently."""
    if strange:
        named = ", ".join(f"{name:.80}" for name in strange[:3]) + (", …" if len(strange) > 3 else "")
        raise CorruptModelError(
            f"{_misfit_message(found)}; {len(strange)} of its {modules} layers are not in this one: {named}"
        )


def _misfit_message(found: Header) -> str:
    family = identify.identify(found).family
    base = "another base" if family in ("unknown", "sdxl") else f"another base, {family}"
    return f"{printable_path(found.path)} does not fit this model: it was made for {base}"


def _make_delta(found: Header, factors: _Factors, layer: LoraTarget, config: Mapping[str, Any]) -> LoraDelta:
    """alpha is in a tensor beside the factors, or in PEFT's configuration; none at all is a scale of 1."""
    up, down = factors["up"], factors["down"]
    rank, root = len(down), False
    if "alpha" in factors:
        alpha = _only_number(factors["alpha"])
    else:
        alpha = _peft_alpha(found, config, layer, rank)
        root = config.get("use_rslora") is True  # rsLoRA, arXiv:2312.03732, eq. 4: alpha / sqrt(r)
    if not math.isfinite(alpha):
        raise CorruptModelError(
            f"{printable_path(found.path)} has an alpha for {layer.weight} that is no finite number"
        )
    if not all(factor.float().isfinite().all() for factor in (up, down)):
        raise CorruptModelError(
            f"{printable_path(found.path)} has numbers for {layer.weight} that are not finite"
        )
    return LoraDelta(up, down, alpha / (math.sqrt(rank) if root else rank))


def _only_number(tensor: Tensor) -> float:
    """The one number in a tensor, of whatever real dtype: float8 cannot add."""
    if tensor.numel() != 1 or tensor.is_complex():
        return math.nan
    try:
        return float(tensor.float())
    except (NotImplementedError, RuntimeError):  # a dtype that torch only stores
        return math.nan


def _peft_alpha(found: Header, config: Mapping[str, Any], layer: LoraTarget, rank: int) -> float:
    """Of a layer, by its name in PEFT's `alpha_pattern`, or else for all."""
    patterns = config.get("alpha_pattern") or {}
    alpha: object = config.get("lora_alpha", rank)
    for pattern, own in patterns.items() if isinstance(patterns, dict) else ():
        if not _LITERAL.fullmatch(pattern):  # a regular expression from a file could run for ever
            raise CorruptModelError(
                f"{printable_path(found.path)} has an alpha_pattern that is no name: {pattern!r:.80}"
            )
        if f"_{underscored(layer.weight)}".endswith(f"_{underscored(pattern)}_weight"):
            alpha = own
            break
    return float(alpha) if isinstance(alpha, int | float) and not isinstance(alpha, bool) else math.nan


def _peft_configs(found: Header, modules: Mapping[tuple[str, str], object]) -> dict[str, dict[str, Any]]:
    """PEFT's configuration of each network, "" for all: beside the file, or in its metadata."""
    beside = found.path.parent / CONFIG_FILE
    bare = any(network == "" for network, _ in modules)
    said: dict[str, Any] = {}
    if bare and beside.is_file():
        said = untrusted.read_json(beside)
    elif METADATA_CONFIG in found.metadata:
        with raise_as_corrupt(found.path):
            said = untrusted.parse_json(found.metadata[METADATA_CONFIG].encode())
    configs: dict[str, dict[str, Any]] = {}
    for key, value in said.items():
        network, _, rest = key.rpartition(".")
        configs.setdefault(network, {})[rest] = value
    if any(config.get("use_dora") for config in configs.values()):
        raise CorruptModelError(f"{printable_path(found.path)} is a DoRA: only LoRA can be merged")
    return configs
