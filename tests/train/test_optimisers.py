"""The optimiser: Muon on inner matrices only, and a state that is saved and taken back exactly."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fewstep.train.optimisers import Muon, Optimiser

NAMES = (
    "unet.conv_in.weight", "unet.mid.weight", "unet.mid.bias", "unet.kernel", "text.token_embedding.weight",
)  # fmt: skip
SHAPES = ((8, 4), (8, 8), (8,), (8, 4, 3, 3), (16, 8))


def parameters() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        name: nn.Parameter(torch.randn(shape, generator=generator))
        for name, shape in zip(NAMES, SHAPES, strict=True)
    }


def step(live: dict[str, Tensor], optimiser: Optimiser, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in live.values():
        p.grad = torch.randn(p.shape, generator=generator)
    optimiser.step(0.01)


def test_muon_is_for_inner_matrices() -> None:
    live = parameters()
    optimiser = Optimiser(live, muon=True, weight_decay=0.0)
    step(live, optimiser, 1)
    kinds = {name.split(".")[0] for name, _ in optimiser.tensors()}
    assert kinds == {"adam", "muon"}
    assert sum(name.startswith("muon.") for name, _ in optimiser.tensors()) == 2  # mid.weight and the kernel
    start = parameters()
    moved = {name: (live[name] - start[name]).detach() for name in NAMES}
    for name in ("unet.conv_in.weight", "unet.mid.bias", "text.token_embedding.weight"):
        assert moved[name].abs().max() == pytest.approx(0.01, rel=1e-3)  # Adam's first step
    for name in ("unet.mid.weight", "unet.kernel"):
        values = torch.linalg.svdvals(moved[name].flatten(1))
        assert values.max() / values.min() < 2  # orthogonal, nearly: five Newton-Schulz steps
    assert all(p.grad is None for p in live.values())


@pytest.mark.parametrize("shape", [(8, 8), (8, 36), (36, 8)])
@pytest.mark.parametrize(("bf16", "tolerance"), [(True, 0.0), (False, 0.05)])
def test_muon_is_torchs(
    shape: tuple[int, int], bf16: bool, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same bits where both compute in bf16; else near, in units of the step's size."""
    monkeypatch.setattr("fewstep.train.optimisers.has_bf16", lambda _: bf16)
    generator = torch.Generator().manual_seed(0)
    start, *gradients = (torch.randn(shape, generator=generator) for _ in range(4))
    one, other = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    ours = Muon([one], weight_decay=0.01)
    theirs = torch.optim.Muon([other], weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    for gradient in gradients:
        for p, optimiser in ((one, ours), (other, theirs)):
            p.grad = gradient.clone()
            optimiser.param_groups[0]["lr"] = 0.01
            optimiser.step()
    with torch.no_grad():
        assert (one - other).norm() <= tolerance * (other - start).norm()


@pytest.mark.parametrize("muon", [False, True])
def test_a_state_is_taken_back_exactly(muon: bool) -> None:
    one = parameters()
    first = Optimiser(one, muon=muon, weight_decay=0.01)
    for seed in range(3):
        step(one, first, seed)
    other: dict[str, Tensor] = {name: nn.Parameter(p.detach().clone()) for name, p in one.items()}
    second = Optimiser(other, muon=muon, weight_decay=0.01)
    second.load(dict(first.tensors()))
    for seed in range(3, 5):
        step(one, first, seed)
        step(other, second, seed)
    assert all(torch.equal(one[name], other[name]) for name in NAMES)
