"""What a run draws so far: a grid at fixed prompts and seeds, by the very samplers that `generate` uses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from fewstep import backends
from fewstep.codec import Codec, pixels_of
from fewstep.denoiser import Cfg, Denoiser, Unet, guidance_embedding
from fewstep.loop import draw
from fewstep.recipe import Recipe
from fewstep.text import Size, TextEncoder

MODES = {"base": "base", "lcm": "lcm", "lcm-lora": "lcm-lora", "add": "turbo"}  # by stage


@dataclass(frozen=True, kw_only=True)
class Sitting:
    """What is drawn, and how; picture i has the seed i."""

    text: TextEncoder
    codec: Codec
    prediction: str  # epsilon, v_prediction or sample
    recipe: Recipe  # of the mode; its defaults are taken
    guidance: float
    width: int = 0  # of the UNet's embedding of guidance; 0 is none
    prompts: tuple[str, ...]
    size: Size


def recipe_of(stage: str, family: str) -> Recipe:
    """How a stage's result is sampled."""
    return backends.recipe(MODES[stage]).on(family)


@torch.no_grad()
def grid(unet: Unet, sitting: Sitting) -> Image.Image:
    """One picture for each prompt, one at a time, which bounds memory."""
    made = [_drawn(unet, sitting, prompt, seed) for seed, prompt in enumerate(sitting.prompts)]
    return tiled(made)


@torch.no_grad()
def compared(made: Tensor, real: Tensor) -> Image.Image:
    """(B, 3, H, W) in [-1, 1] each: the real ones above, what was made of them below."""
    both = pixels_of(torch.cat([real.cpu(), made.float().cpu()]))
    return tiled([Image.fromarray(one.numpy()) for one in both], columns=len(real))


def tiled(pictures: Sequence[Image.Image], columns: int = 0) -> Image.Image:
    """Pictures of one size, row by row; about as many columns as rows where their number is 0."""
    columns = columns or math.ceil(math.sqrt(len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    width, height = pictures[0].size
    sheet = Image.new("RGB", (columns * width, rows * height), "white")
    for place, picture in enumerate(pictures):
        row, column = divmod(place, columns)
        sheet.paste(picture, (column * width, row * height))
    return sheet


def _drawn(unet: Unet, sitting: Sitting, prompt: str, seed: int) -> Image.Image:
    """`fewstep.loop.steps` for one prompt, on networks that are in training."""
    recipe, (height, width) = sitting.recipe, sitting.size
    schedule = recipe.schedule(recipe.schedulers[0], recipe.steps.default, 1.0)
    sampler = recipe.sampler(recipe.samplers[0])
    condition = sitting.text.batch([prompt], sitting.size)
    device = condition.tokens.device
    cfg, embedding = None, None
    if recipe.guidance.kind == "cfg" and sitting.guidance > 1:
        cfg = Cfg(negative=sitting.text.batch([""], sitting.size), scale=sitting.guidance)
    if sitting.width:
        embedding = guidance_embedding(torch.tensor([sitting.guidance - 1], device=device), sitting.width)
    denoise = Denoiser(unet, condition, prediction=sitting.prediction, cfg=cfg, embedding=embedding)
    shape = (1, 4, height // 8, width // 8)
    _, first, *noise = draw([seed], shape, 2 + schedule.steps * sampler.draws, True)
    start = math.hypot(1, schedule.sigmas[0]) if sampler.preserving else schedule.sigmas[0]
    stepping = sampler.steps(
        denoise, first.to(device) * start, schedule, [n.to(device) for n in noise], sampler.eta
    )
    *_, (latents, _) = stepping
    return Image.fromarray(sitting.codec.decode(latents).numpy())
