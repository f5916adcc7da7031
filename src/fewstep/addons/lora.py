"""LoRA files of any algorithm → what they add to weights, in the layouts of all their writers."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fewstep.addons import lora_deltas
from fewstep.addons.lora_deltas import BIAS_ROLES, Algorithm, Factors, FormulaDelta, LoraDelta, WeightDelta
from fewstep.addons.lora_targets import LORA_NETWORKS, UNET, LoraTarget, LoraTargets, underscored
from fewstep.catalog.addons import require_lora, same_kin
from fewstep.errors import CorruptModelError
from fewstep.files import identify, safetensors, tensor_names, untrusted
from fewstep.files.safetensors import Header
from fewstep.files.untrusted import printable_path, raise_as_corrupt

METADATA_CONFIG = "lora_adapter_metadata"  # where diffusers' `save_lora_weights` keeps PEFT's configuration
CONFIG_FILE = "adapter_config.json"  # where PEFT's `save_pretrained` keeps it
_LITERAL = re.compile(r"[\w.]+")  # a pattern for names that is one name


@dataclass(frozen=True, eq=False)
class Lora:
    """A file's deltas, by network and weight or bias. Equal to itself alone."""

    path: Path
    deltas: Mapping[tuple[str, str], WeightDelta]


def read_lora(path: Path, layers: LoraTargets) -> Lora:
    """Return a file's LoRA for these layers; `CorruptModelError` says what it is else, or does not fit."""
    header = safetensors.read_header(path)
    require_lora(header)
    modules = _tensors_by_module(header)
    tensors, configs = _read_tensors(path, header), _peft_configs(header, modules)
    deltas: dict[tuple[str, str], WeightDelta] = {}
    foreign: list[str] = []
    for (network, module), names in modules.items():
        factors = {role: tensors[name] for role, name in names.items()}
        place = _find_layer(network, module, factors, layers)
        if place is None:
            foreign.append(names[min(names)])
            continue
        config = configs.get(place[0], configs.get("", {}))
        for weight, delta in _ModuleReader(header, layers, layers[place], config).deltas(factors):
            if (place[0], weight) in deltas:
                raise CorruptModelError(f"{printable_path(path)} changes {weight} twice, by two names")
            deltas[place[0], weight] = delta
    _require_known(header, layers, foreign, len(modules))
    return Lora(path, deltas)


def _tensors_by_module(header: Header) -> dict[tuple[str, str], dict[str, str]]:
    """Return (network, module) → role → the tensor's name; network "" where only the model can tell."""
    modules: dict[tuple[str, str], dict[str, str]] = {}
    for name in header.tensors:
        if name.startswith(tensor_names.BUNDLED_WORD):
            continue  # a learned word: `embeddings=` reads it, and a warning says so
        parsed = tensor_names.parse_lora_name(name)
        if parsed is None:
            raise CorruptModelError(
                f"{printable_path(header.path)} holds {name!r:.80}, which is no part of a LoRA"
            )
        names = modules.setdefault((parsed.network if parsed.named else "", parsed.module), {})
        if parsed.role in names:
            raise CorruptModelError(
                f"{printable_path(header.path)} has {names[parsed.role]!r:.80} twice: as {name!r:.80}"
            )
        names[parsed.role] = name
    return modules


def _read_tensors(path: Path, header: Header) -> dict[str, Tensor]:
    """Return all of a file's tensors; they stay mapped to it."""
    from safetensors import safe_open

    with raise_as_corrupt(path), safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in header.tensors}
    quantised = [
        name for name, tensor in tensors.items() if tensor.ndim > 1 and not tensor.is_floating_point()
    ]
    if quantised:
        raise CorruptModelError(
            f"{printable_path(path)} has whole numbers in {quantised[0]!r:.80}: it is quantised"
        )
    return tensors


def _find_layer(network: str, module: str, factors: Factors, layers: LoraTargets) -> tuple[str, str] | None:
    """Return the layer that is meant; where the writer names no network, the first that has such a one."""
    owners, name = LORA_NETWORKS, underscored(module)
    if not network:  # PEFT's, of a module that holds networks
        network = next((owner for owner in reversed(LORA_NETWORKS) if name.startswith(f"{owner}_")), "")
        name = underscored(name.removeprefix(f"{network}_")) if network else name
    candidates = [(owner, name) for owner in ((network,) if network else owners) if (owner, name) in layers]
    return next(
        (place for place in candidates if _fits_anyhow(factors, layers[place])),
        candidates[0] if candidates else None,
    )


def _fits_anyhow(factors: Factors, layer: LoraTarget) -> bool:
    """Return whether an algorithm's factors fit a layer, as far as shapes tell."""
    weight_factors = {role: factor for role, factor in factors.items() if role not in BIAS_ROLES}
    algorithm = lora_deltas.find_algorithm(frozenset(weight_factors))
    if algorithm is None:
        return not weight_factors
    try:
        formula_factors = lora_deltas.formula_factors(weight_factors, algorithm, layer.shape)
    except RuntimeError:
        return False
    return lora_deltas.fits(algorithm.formula, formula_factors, layer.shape)


@dataclass(frozen=True)
class _ModuleReader:
    """What a file has for one layer → what that adds to its weight and to its bias."""

    header: Header
    layers: LoraTargets
    layer: LoraTarget
    config: Mapping[str, Any]  # PEFT's

    def deltas(self, factors: Factors) -> Iterator[tuple[str, WeightDelta]]:
        """Yield the changed weight or bias, and what is added; raises `CorruptModelError`."""
        for role, factor in factors.items():
            if factor.is_floating_point() and not factor.float().isfinite().all() and role != "alpha":
                raise self._error(f"has numbers for {self.layer.weight} that are not finite")
        weight_factors = {role: factor for role, factor in factors.items() if role not in BIAS_ROLES}
        biases = [role for role in BIAS_ROLES if role in factors]
        weight_roles = frozenset(weight_factors) - {"alpha"}
        if weight_roles and not _is_empty(weight_factors):
            yield self.layer.weight, self._weight_delta(weight_factors)
        if len(biases) > 1 or not (biases or weight_roles):
            raise self._error(f"has {', '.join(sorted(factors))} for {self.layer.weight}, which say nothing")
        for role in biases:
            yield self.layer.bias, self._bias_delta(role, factors)

    def _weight_delta(self, factors: Factors) -> WeightDelta:
        algorithm = self._algorithm(frozenset(factors))
        formula_factors, layer = lora_deltas.formula_factors(factors, algorithm, self.layer.shape), self.layer
        if not _fits_anyhow(factors, layer):
            shapes = ", ".join(
                f"{role} {tuple(factor.shape)}" for role, factor in sorted(formula_factors.items())
            )
            raise self._error(
                f"does not fit this model{_whose(self.header, self.layers)}; {layer.weight} is "
                f"{tuple(layer.shape)}, and its factors are {shapes}"
            )
        try:
            magnitude = lora_deltas.find_magnitude(factors, layer.shape)
        except ValueError as error:
            raise self._error(f"does not fit {layer.weight}, {tuple(layer.shape)}: {error}") from None
        scale = self._scale(factors, algorithm)
        if formula_factors.keys() == {"up", "down"} and magnitude is None:
            return LoraDelta(formula_factors["up"], formula_factors["down"], scale)
        return FormulaDelta(algorithm.formula, formula_factors, scale, magnitude)

    def _algorithm(self, roles: frozenset[str]) -> Algorithm:
        algorithm = lora_deltas.find_algorithm(roles)
        if algorithm is None:
            lacking = lora_deltas.lacking_factor(roles)
            if lacking:
                raise self._error(f"has no {lacking} factor for {self.layer.weight}")
            together = ", ".join(sorted(roles))
            raise self._error(
                f"has {together} for {self.layer.weight}: no algorithm that fewstep knows has these together"
            )
        return algorithm

    def _bias_delta(self, role: str, factors: Factors) -> WeightDelta:
        bias, width = factors[role], self.layer.shape[0]
        if not self.layer.bias or bias.numel() != width:
            actual = f"{width} wide" if self.layer.bias else "not there"
            raise self._error(
                f"does not fit this model: it changes the bias of {self.layer.weight} by "
                f"{tuple(bias.shape)}, and that bias is {actual}"
            )
        scale = 1.0
        if role == "up_bias":  # PEFT's `lora_bias`: scaled like the product
            scale = self._scale(factors, self._algorithm(frozenset(factors) - {role}))
        return FormulaDelta(lora_deltas.difference, {role: bias.flatten()}, scale)

    def _scale(self, factors: Factors, algorithm: Algorithm) -> float:
        """Return alpha / rank, of rsLoRA alpha / sqrt(rank); alpha is a tensor's or the configuration's."""
        if not algorithm.allows or "scalar" not in algorithm.allows:
            return 1.0
        rank = next((len(factors[role]) for role in algorithm.ranked if role in factors), 0)
        root = False
        if "alpha" in factors:
            alpha = _only_number(factors["alpha"]) if rank else 1.0  # LoKr of two whole factors has no rank
        else:
            rank = rank or _as_rank(self.config.get("r"))
            alpha = _peft_alpha(self.header, self.config, self.layer, rank)
            root = self.config.get("use_rslora") is True  # rsLoRA, arXiv:2312.03732, eq. 4: alpha / sqrt(r)
        scalar = _only_number(factors["scalar"]) if "scalar" in factors else 1.0
        if not math.isfinite(alpha * scalar):
            raise self._error(f"has an alpha for {self.layer.weight} that is no finite number")
        return scalar * alpha / (math.sqrt(rank) if root else rank or 1)

    def _error(self, message: str) -> CorruptModelError:
        return CorruptModelError(f"{printable_path(self.header.path)} {message}")


def _is_empty(factors: Factors) -> bool:
    """Return whether it is of rank 0, as extracting leaves what hardly changed."""
    return {"up", "down"} <= factors.keys() and factors["up"].numel() == factors["down"].numel() == 0


def _require_known(header: Header, layers: LoraTargets, foreign: list[str], modules: int) -> None:
    """Check that every part has a layer, so that none is left out; raises `CorruptModelError`."""
    if foreign:
        examples = ", ".join(f"{name:.80}" for name in foreign[:3]) + (", …" if len(foreign) > 3 else "")
        raise CorruptModelError(
            f"{printable_path(header.path)} does not fit this model{_whose(header, layers)}; "
            f"{len(foreign)} of its {modules} layers are not in this one: {examples}"
        )


def _whose(header: Header, layers: LoraTargets) -> str:
    """Return for which other base it was made, to be put in a sentence; "" where nothing proves that."""
    shapes = {name: tuple(layer.shape) for (network, name), layer in layers.items() if network == UNET}
    model = identify.family_of_unet(identify.unet_anatomy(shapes))
    family = identify.identify(header).family
    return "" if same_kin(family, model) else f": it was made for {family}, and the model is {model}"


def _only_number(tensor: Tensor) -> float:
    """Return the one number in a tensor, of whatever real dtype: float8 cannot add."""
    if tensor.numel() != 1 or tensor.is_complex():
        return math.nan
    try:
        return float(tensor.float())
    except (NotImplementedError, RuntimeError):  # a dtype that torch only stores
        return math.nan


def _as_rank(value: object) -> int:
    return value if isinstance(value, int) and value > 0 else 1


def _peft_alpha(header: Header, config: Mapping[str, Any], layer: LoraTarget, rank: int) -> float:
    """Return a layer's alpha, by its name in PEFT's `alpha_pattern`, or that of all (LoHa, LoKr: `alpha`)."""
    patterns = config.get("alpha_pattern") or {}
    alpha: object = config.get("lora_alpha", config.get("alpha", rank))
    for pattern, pattern_alpha in patterns.items() if isinstance(patterns, dict) else ():
        if not _LITERAL.fullmatch(pattern):  # a regular expression from a file could run for ever
            raise CorruptModelError(
                f"{printable_path(header.path)} has an alpha_pattern that is no name: {pattern!r:.80}"
            )
        if f"_{underscored(layer.weight)}".endswith(f"_{underscored(pattern)}_weight"):
            alpha = pattern_alpha
            break
    return float(alpha) if isinstance(alpha, int | float) and not isinstance(alpha, bool) else math.nan


def _peft_configs(header: Header, modules: Mapping[tuple[str, str], object]) -> dict[str, dict[str, Any]]:
    """Return PEFT's configuration of each network, "" for all: beside the file, or in its metadata."""
    config_path = header.path.parent / CONFIG_FILE
    unnamed = any(network == "" for network, _ in modules)
    config: dict[str, Any] = {}
    if unnamed and config_path.is_file():
        config = untrusted.read_json(config_path)
    elif METADATA_CONFIG in header.metadata:
        with raise_as_corrupt(header.path):
            config = untrusted.parse_json(header.metadata[METADATA_CONFIG].encode())
    configs: dict[str, dict[str, Any]] = {}
    for key, value in config.items():
        network, _, field = key.rpartition(".")
        configs.setdefault(network, {})[field] = value
    return configs
