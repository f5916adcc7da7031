"""What adapters add to a weight: LoRA and the other algorithms that LyCORIS and PEFT write, a formula each.

Factors are named as LyCORIS names them in files (github.com/KohakuBlueleaf/LyCORIS; arXiv:2309.14859).
W is a weight, (out, in[, kernel, kernel]), and r a rank. A share of an adapter is that share of what it
changes at 1, whatever the algorithm, and always of the W that was loaded: shares add up in any order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Size, Tensor

Factors = Mapping[str, Tensor]  # by role
Formula = Callable[[Factors, Tensor], Tensor]  # factors and W in fp32 → what is added, as long as W


class WeightDelta(Protocol):
    """What one adapter adds to one weight or bias."""

    def added_to(self, total: Tensor, original: Tensor, share: float, /) -> Tensor:
        """Return `total`, (out, all inputs) in fp32, changed in place; `original` is the loaded weight."""
        ...


@dataclass(frozen=True, eq=False)
class LoraDelta:
    """LoRA (arXiv:2106.09685, sec. 4.1): (alpha / r) · up @ down."""

    up: Tensor  # (out, r) or (out, r, 1, 1)
    down: Tensor  # (r, in) or (r, in, kernel, kernel)
    scale: float  # alpha / r

    def added_to(self, total: Tensor, _original: Tensor, share: float, /) -> Tensor:
        """A convolution's up is 1x1: a product, too."""
        up, down = (factor.to(total).flatten(1) for factor in (self.up, self.down))
        return total.addmm_(up, down, alpha=share * self.scale)


@dataclass(frozen=True, eq=False)
class FormulaDelta:
    """Any other algorithm; factors are widened to fp32 one weight at a time."""

    formula: Formula
    factors: Factors
    scale: float = 1.0  # of what the formula gives
    magnitude: Tensor | None = None  # of DoRA: (out, 1…) or (1, in, 1…)

    def added_to(self, total: Tensor, original: Tensor, share: float, /) -> Tensor:
        weight = original.to(total)
        change = self.formula({role: factor.to(total) for role, factor in self.factors.items()}, weight)
        change = change.reshape(total.shape).mul_(self.scale)
        if self.magnitude is not None:
            change = _decompose(weight, change.view(weight.shape), self.magnitude.to(total))
        return total.add_(change.reshape(total.shape), alpha=share)


def _decompose(weight: Tensor, change: Tensor, magnitude: Tensor) -> Tensor:
    """DoRA (arXiv:2402.09353, eq. 5): m (W + ΔW) / |W + ΔW| - W, the norm by output or by input."""
    kept_axis = 0 if len(magnitude) > 1 else 1
    norm_axes = [axis for axis in range(weight.ndim) if axis != kept_axis]
    moved = weight + change
    norm = torch.linalg.vector_norm(moved, dim=norm_axes, keepdim=True)
    norm += torch.finfo(norm.dtype).eps  # as LyCORIS and ComfyUI
    return moved.mul_(magnitude / norm).sub_(weight)


# --- formulas


def _product(factors: Factors, _weight: Tensor) -> Tensor:
    """LoRA, and LoCon: where it has a Tucker core, `mid` is (r, r, kernel, kernel)."""
    up, down = factors["up"].flatten(1), factors["down"].flatten(1)
    if "mid" not in factors:
        return up @ down
    return _tucker(factors["mid"], up.T, down)


def _tucker(core: Tensor, outputs: Tensor, inputs: Tensor) -> Tensor:
    """Core (r, r, kernel, kernel), (r, out), (r, in) → (out, in, kernel, kernel)."""
    return torch.einsum("ij...,io,jn->on...", core, outputs, inputs)


def _hadamard(factors: Factors, _weight: Tensor) -> Tensor:
    """LoHa (arXiv:2108.06098): the product, entry by entry, of two of low rank."""
    first, second = (
        _low_rank(factors[f"hada_w{i}_a"], factors[f"hada_w{i}_b"], factors.get(f"hada_t{i}")) for i in (1, 2)
    )
    return first.mul_(second)


def _kronecker(factors: Factors, _weight: Tensor) -> Tensor:
    """LoKr: w1 ⊗ w2, each whole or of low rank."""
    first, second = (
        factors[f"lokr_w{i}"]
        if f"lokr_w{i}" in factors
        else _low_rank(factors[f"lokr_w{i}_a"], factors[f"lokr_w{i}_b"], factors.get(f"lokr_t{i}"))
        for i in (1, 2)
    )
    return torch.kron(first.flatten(1), second.flatten(1))


def _low_rank(a: Tensor, b: Tensor, core: Tensor | None) -> Tensor:
    """(out, r) @ (r, in…); with a core both have r first."""
    a, b = a.flatten(1), b.flatten(1)
    return a @ b if core is None else _tucker(core, a, b).flatten(1)


def difference(factors: Factors, _weight: Tensor) -> Tensor:
    """Return the change itself: of whole weights, norms, biases."""
    (change,) = factors.values()
    return change.clone()


def _rescale(factors: Factors, weight: Tensor) -> Tensor:
    """(IA)³ (arXiv:2205.05638): outputs or inputs made larger or smaller; 0 changes nothing in LyCORIS'."""
    (scale,) = factors.values()
    return weight * scale


def _rescale_peft(factors: Factors, weight: Tensor) -> Tensor:
    """PEFT's (IA)³: (out, 1) or (1, in), where 1 changes nothing."""
    scale = factors["ia3_l"].flatten(1)
    return weight * (scale.reshape(*scale.shape, *[1] * (weight.ndim - 2)) - 1)


def _generalise(factors: Factors, weight: Tensor) -> Tensor:
    """GLoRA (arXiv:2306.07967): W a1 a2 + b1 b2; LyCORIS' first files have 1 and 2 the other way round."""
    i, j = ("1", "2") if len(factors["b1.weight"]) == len(weight) else ("2", "1")
    a = factors[f"a{i}.weight"].flatten(1) @ factors[f"a{j}.weight"].flatten(1)
    product = torch.einsum("on...,nm->om...", weight, a)
    outputs, inputs = factors[f"b{i}.weight"].flatten(1), factors[f"b{j}.weight"].flatten(1)
    if "bm.weight" in factors:
        return product + _tucker(factors["bm.weight"], outputs.T, inputs)
    return product.add_((outputs @ inputs).view(weight.shape))


def _rotate(factors: Factors, weight: Tensor) -> Tensor:
    """OFT (arXiv:2306.07280), blocks (n, b, b), and BOFT (arXiv:2311.06243), (stages, n, b, b)."""
    blocks = factors["oft_blocks"]
    skew = blocks - blocks.mT
    limit = factors["alpha"] * len(weight) if "alpha" in factors else skew.new_zeros(())  # 0 is none
    norm = skew.norm() + 1e-8
    skew = skew * torch.where((limit > 0) & (norm > limit), limit / norm, torch.ones_like(norm))
    identity = torch.eye(skew.shape[-1], dtype=skew.dtype, device=skew.device)
    rotations = (identity + skew) @ torch.linalg.inv(identity - skew)
    rotated = _turn_blocks(rotations.mT, weight) if blocks.ndim == 3 else _turn_stages(rotations, weight)
    if "rescale" in factors:
        rotated = rotated * factors["rescale"].reshape(-1, *[1] * (weight.ndim - 1))
    return rotated - weight


def _turn_blocks(rotations: Tensor, weight: Tensor) -> Tensor:
    """Each block of b outputs by its own rotation, (n, b, b)."""
    grouped = weight.reshape(*rotations.shape[:2], -1)
    return (rotations @ grouped).reshape(weight.shape)


def _turn_stages(rotations: Tensor, weight: Tensor) -> Tensor:
    """Butterflies: stage s turns blocks of outputs that lie 2**s · b/2 apart."""
    rotated = weight.flatten(1)
    for stage, blocks in enumerate(rotations):
        distance = 2**stage * (blocks.shape[-1] // 2)
        pairs = rotated.unflatten(0, (-1, 2, distance)).transpose(1, 2).flatten(0, 2)
        pairs = _turn_blocks(blocks, pairs)
        rotated = pairs.unflatten(0, (-1, distance, 2)).transpose(1, 2).flatten(0, 2)
    return rotated.reshape(weight.shape)


# --- which formula


class Algorithm(NamedTuple):
    """An algorithm by the factors that it is known by."""

    formula: Formula
    needs: tuple[tuple[str, ...], ...]  # of each, any one
    allows: tuple[str, ...] = ()
    ranked: tuple[str, ...] = ()  # factors whose first side is r; none: alpha is not divided by a rank


_SCALED = ("alpha", "scalar")  # what multiplies a result
_MAGNITUDE = ("dora_scale", "magnitude_vector")  # LyCORIS' and OneTrainer's, PEFT's

ALGORITHMS = (
    Algorithm(_product, (("up",), ("down",)), ("mid", *_SCALED, *_MAGNITUDE), ("down",)),
    Algorithm(
        _hadamard,
        (("hada_w1_a",), ("hada_w1_b",), ("hada_w2_a",), ("hada_w2_b",)),
        ("hada_t1", "hada_t2", *_SCALED, *_MAGNITUDE),
        ("hada_w1_b",),
    ),
    Algorithm(
        _kronecker,
        (
            ("lokr_w1", "lokr_w1_a"), ("lokr_w1", "lokr_w1_b"),
            ("lokr_w2", "lokr_w2_a"), ("lokr_w2", "lokr_w2_b"),
        ),
        ("lokr_t2", *_SCALED, *_MAGNITUDE),
        ("lokr_w2_b", "lokr_w1_b"),
    ),
    Algorithm(
        _generalise,
        (("a1.weight",), ("a2.weight",), ("b1.weight",), ("b2.weight",)),
        ("bm.weight", *_SCALED),
        ("a2.weight",),
    ),
    Algorithm(_rotate, (("oft_blocks",),), ("rescale", "alpha")),
    Algorithm(_rescale, (("weight",), ("on_input",))),
    Algorithm(_rescale_peft, (("ia3_l",),)),
    Algorithm(difference, (("diff", "w_norm"),)),
)  # fmt: skip
BIAS_ROLES = ("diff_b", "b_norm", "up_bias")  # what changes a layer's bias, beside any of these


def find_algorithm(roles: frozenset[str]) -> Algorithm | None:
    """Return the algorithm that has these factors, whole and with nothing else; None where there is none."""
    for algorithm in ALGORITHMS:
        allowed = {role for choice in algorithm.needs for role in choice} | {*algorithm.allows}
        if roles <= allowed and all(not roles.isdisjoint(choice) for choice in algorithm.needs):
            return algorithm
    return None


def lacking_factor(roles: frozenset[str]) -> str:
    """Return a factor that is missing beside these, of the algorithm that they are of; "" where none is."""
    for algorithm in ALGORITHMS:
        if any(not roles.isdisjoint(choice) for choice in algorithm.needs):
            return next((choice[0] for choice in algorithm.needs if roles.isdisjoint(choice)), "")
    return ""


def formula_factors(factors: Factors, algorithm: Algorithm, shape: Size) -> Factors:
    """Return what the formula reads: without what multiplies its result, and without switches."""
    if algorithm.formula is _rescale:
        by_input = len(shape) > 1 and bool(factors["on_input"])
        sides = (1, -1) if by_input else (-1, 1)
        return {"weight": factors["weight"].reshape(*sides[: len(shape)], *[1] * (len(shape) - 2))}
    excluded = {*_MAGNITUDE, *(() if algorithm.formula is _rotate else _SCALED)}
    return {role: factor for role, factor in factors.items() if role not in excluded}


def find_magnitude(factors: Factors, shape: Size) -> Tensor | None:
    """Return DoRA's magnitude as (out, 1…) or (1, in, 1…), None where there is none; raises `ValueError`.

    PEFT's is by output: (out,), or (1, out, 1, 1) of a convolution. LyCORIS' and OneTrainer's is by the
    side that is not 1 (`wd_on_out`, `decompose_output_axis`); diffusers writes PEFT's by that name too.
    """
    row = next((factors[role] for role in _MAGNITUDE if role in factors), None)
    if row is None:
        return None
    by_input = "dora_scale" in factors and row.ndim > 1 and len(row) == 1 and row.shape[1] == shape[1]
    sides = (1, shape[1]) if by_input else (shape[0], 1)
    if row.numel() != sides[0] * sides[1]:
        raise ValueError(f"its magnitude is {tuple(row.shape)}")
    return row.reshape(*sides, *[1] * (len(shape) - 2))


def fits(formula: Formula, factors: Factors, shape: Size) -> bool:
    """Return whether a change of this shape comes out; on the meta device, where nothing is computed."""
    weight = torch.empty(shape, device="meta", dtype=torch.float32)
    shapes = {role: torch.empty_like(f, device="meta", dtype=torch.float32) for role, f in factors.items()}
    try:
        change = formula(shapes, weight)
    except (RuntimeError, IndexError, ValueError):  # sides that do not go together
        return False
    return change.ndim > 0 and (len(change), change[:1].numel()) == (shape[0], shape[1:].numel())
