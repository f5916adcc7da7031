"""Sample grids: drawn by the product's own samplers, so that they equal what `generate` gives."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import fewstep
from fewstep.codec import Codec
from fewstep.loop import Networks
from fewstep.runtimes.batching import Turns
from fewstep.runtimes.eager import eager_network
from fewstep.train import grids
from fewstep.train.grids import GridSettings

PROMPTS = ("a red heart, flat style", "an owl, noto style")


@pytest.mark.parametrize(("stage", "mode"), [("base", "base"), ("lcm", "lcm")])
def test_a_grid_is_what_generate_draws(stage: str, mode: str) -> None:
    with fewstep.load("tiny", mode, device="cpu", precision="fp32") as engine:
        parts, recipe = engine.parts, grids.stage_recipe(stage, "tiny")
        networks = Networks(
            text=parts.text, network=eager_network(parts.unet), codec=Codec(parts.vae, engine.placement),
            runtime="eager",
            process=parts.process, guidance_width=parts.guidance_width, placement=engine.placement,
            turns=Turns(parts.lock), lock=parts.lock,
        )  # fmt: skip
        sitting = GridSettings(
            networks=networks,
            recipe=recipe,
            guidance=recipe.guidance.default,
            prompts=PROMPTS,
            size=(128, 128),
        )
        found = grids.draw_grid(sitting)
        wanted = engine.generate(list(PROMPTS), seed=0)
    assert found.size == (256, 128)
    for place, picture in enumerate(wanted.images):
        tile = found.crop((128 * place, 0, 128 * (place + 1), 128))
        difference = np.asarray(tile, dtype=float) - np.asarray(picture, dtype=float)
        assert np.abs(difference).mean() < 0.5  # one batched text encoding and one by one round otherwise


def test_tiles_fill_rows() -> None:
    pictures = [Image.new("RGB", (8, 4), colour) for colour in ("red", "green", "blue")]
    sheet = grids.tile_images(pictures)
    assert sheet.size == (16, 8)
    assert sheet.getpixel((1, 5)) == (0, 0, 255)
    assert sheet.getpixel((9, 5)) == (255, 255, 255)


def test_reconstructions_stand_below() -> None:
    sheet = grids.comparison_grid(torch.full((2, 3, 8, 8), 2.0), torch.full((2, 3, 8, 8), -1.0))
    assert sheet.size == (16, 16)
    assert (sheet.getpixel((3, 3)), sheet.getpixel((3, 12))) == ((0, 0, 0), (255, 255, 255))
