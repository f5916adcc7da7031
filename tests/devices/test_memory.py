"""The constants of the memory estimate are what SDXL's networks show, and its arithmetic is simple."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import AutoencoderTiny

from fewstep.architectures.sdxl import ARCHITECTURE
from fewstep.devices import memory
from fewstep.devices.memory import footprint
from tests.devices.activations import decode, encode, networks, step, text_encoders
from tests.devices.machines import SDXL, TINY


@pytest.fixture(scope="module")
def sdxl() -> tuple[Any, Any]:
    return networks()


def count(*modules: Any) -> int:
    return sum(weight.numel() for module in modules for weight in module.parameters())


def test_known_sizes_are_those_of_the_architecture(sdxl: tuple[Any, Any]) -> None:
    unet, vae = sdxl
    assert ARCHITECTURE.sizes["sdxl"] == (count(unet), count(*text_encoders()), count(vae))
    assert max(p.numel() for e in text_encoders() for p in e.parameters()) <= memory.LARGEST_LAYER
    assert max(count(m) for m in unet.modules() if not list(m.children())) <= memory.LARGEST_LAYER


@pytest.mark.parametrize("side", [512, 1024])
def test_activations_are_those_of_the_networks(side: int, sdxl: tuple[Any, Any]) -> None:
    unet, vae = sdxl
    for rows in (1, 2):
        assert step(unet, side, rows) == pytest.approx(memory.UNET_NUMBERS, rel=0.01)
    assert decode(vae, side) == pytest.approx(memory.VAE_NUMBERS, rel=0.01)
    assert encode(vae, side) < memory.VAE_NUMBERS
    with torch.device("meta"):
        small = AutoencoderTiny().eval()
    assert decode(small, side) < encode(small, side) == pytest.approx(memory.TINY_VAE_NUMBERS, rel=0.01)


def test_bytes() -> None:
    size = footprint(SDXL, torch.bfloat16, torch.float32, rows=2)
    assert size.weights == 2 * (SDXL.unet + SDXL.text) + 4 * SDXL.vae
    assert size.decode == 4 * size.tile == int(1.5 * 768 * 1024**2 * 4)
    assert size.step == 2 * int(1.5 * 79 * 1024**2 * 2)


def test_the_reserve_is_at_most_the_need() -> None:
    tiny = footprint(TINY, torch.float32, torch.float32, rows=1)
    assert tiny.on_device("none", False) == 2 * (tiny.weights + tiny.decode)
    sdxl = footprint(SDXL, torch.bfloat16, torch.bfloat16, rows=1)
    assert sdxl.on_device("none", False) == sdxl.weights + sdxl.decode + memory.RESERVE


def test_each_way_takes_less_than_the_one_before() -> None:
    size = footprint(SDXL, torch.bfloat16, torch.bfloat16, rows=2)
    for tiling in (False, True):
        none, model, sequential = (size.on_device(how, tiling) for how in ("none", "model", "sequential"))
        assert none > model > sequential
    assert size.on_device("sequential", True) < size.on_device("sequential", False)
