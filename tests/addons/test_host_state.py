"""Add-ons that are loaded under a host's settings draw what they draw without them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from PIL import Image

import fewstep
from tests.addons.conftest import PLUS, SUMMARY


@pytest.fixture(scope="module")
def draw(
    sdxl_folder: Path,
    nets: tuple[Path, Path],
    adapters: Path,
    lora_file: Path,
    edges: Image.Image,
    cats: Sequence[Image.Image],
) -> Callable[[], bytes]:
    """A picture with all of them at once, by an engine that is loaded for it."""

    def load_and_draw() -> bytes:
        with fewstep.load(sdxl_folder, "turbo", device="cpu", precision="fp32") as engine:
            result = engine.generate(
                "a (red:1.3) fox", 1, seed=2, width=64, height=64, loras=[(lora_file, 0.5)],
                control=[(nets[0], edges, 0.7)],
                reference=[(adapters / "sdxl_models" / name, cats[0], 0.6) for name in (SUMMARY, PLUS)],
            )  # fmt: skip
        return result[0].tobytes()

    return load_and_draw


def test_addons_are_the_same(draw: Callable[[], bytes]) -> None:
    """bfloat16, which rounds the most: a weight that once had it does not come back."""
    plain = draw()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with ExitStack() as stack:
            stack.enter_context(torch.device("meta"))
            stack.enter_context(torch.autocast("cpu", dtype=torch.bfloat16))
            stack.enter_context(torch.inference_mode())
            assert draw() == plain
    finally:
        torch.set_default_dtype(torch.float32)
    assert draw() == plain
