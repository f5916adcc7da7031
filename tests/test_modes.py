"""Modes and models that do not fit each other: each refusal says what to type instead."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fewstep
from fewstep import Engine, RequestError

Load = Callable[..., Engine]


def load(model: Path | str, mode: str | None = None, accelerator: Path | str = "") -> Engine:
    return fewstep.load(model, mode, accelerator=accelerator, device="cpu", precision="fp32")


def test_lcm_on_a_plain_folder(sdxl_folder: Path) -> None:
    with pytest.raises(RequestError, match="use mode='lcm-lora', or give the UNet's folder as accelerator="):
        load(sdxl_folder, "lcm")


def test_lcm_with_a_plain_unet(sdxl_folder: Path) -> None:
    with pytest.raises(RequestError, match="has no guidance embedding: use mode='base'"):
        load(sdxl_folder, "lcm", sdxl_folder / "unet")


@pytest.mark.parametrize("mode", ["base", "turbo", "lcm-lora"])
def test_an_lcm_folder_is_for_lcm(mode: str, lcm_folder: Path, lora_file: Path) -> None:
    accelerator = lora_file if mode == "lcm-lora" else ""
    with pytest.raises(RequestError, match="has a guidance embedding: use mode='lcm'"):
        load(lcm_folder, mode, accelerator)


def test_base_has_no_accelerator(sdxl_folder: Path, lora_file: Path) -> None:
    """What was typed is used or refused, never passed over."""
    with pytest.raises(RequestError, match="accelerator="):
        load(sdxl_folder, "base", lora_file)


def test_an_unknown_mode(sdxl_folder: Path) -> None:
    with pytest.raises(RequestError, match="did you mean mode='turbo'"):
        load(sdxl_folder, "trubo")


@pytest.mark.parametrize(
    ("mode", "options", "message"),
    [
        ("turbo", {"guidance": 5}, "distilled without; leave guidance out"),
        ("turbo", {"negative_prompt": "sun"}, "use mode='base', or mode='lcm-lora' with guidance=1.5"),
        ("turbo", {"steps": 5}, "1 to 4; type steps=1"),
        ("turbo", {"steps": 0}, "steps"),
        ("turbo", {"scheduler": "lcm"}, "choose one of trailing, turbo"),
        ("turbo", {"width": 1024}, "48 to 192 in eights"),
        ("turbo", {"width": 100}, "48 to 192 in eights"),
        ("lcm", {"guidance": 1}, "3 to 13 .* cannot be off.*; type guidance=8"),
        ("lcm", {"negative_prompt": "sun"}, "cannot act in mode 'lcm'"),
        ("lcm", {"sampler": "euler"}, "choose one of lcm"),
        ("lcm", {"eta": 0.5}, "leave eta out"),
        ("lcm-lora", {"negative_prompt": "sun"}, "raise guidance"),
        ("lcm-lora", {"steps": 1}, "2 to 8; type steps=4"),
        ("lcm-lora", {"guidance": 7}, r"1 to 2 \(1 is off\); type guidance=1"),
        ("base", {"guidance": 0}, r"1 to 20 \(1 is off\); type guidance=5"),
        ("base", {"strength": 0.5}, "give image="),
        ("base", {"seed": -1}, "from 0 to"),
        ("base", {"wdith": 64}, "did you mean width"),
    ],
)
def test_what_a_mode_was_not_made_for(mode: str, options: dict[str, Any], message: str, engine: Load) -> None:
    with pytest.raises(RequestError, match=message):
        engine(mode).generate("a fox", **options)
