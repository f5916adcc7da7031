"""What a run draws so far: a grid at fixed prompts and seeds, by the very samplers that `generate` uses."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from fewstep import loop, modes
from fewstep.architectures.text import Size
from fewstep.cancel import CancelToken
from fewstep.codec import to_pixels
from fewstep.errors import Failure, FewstepError
from fewstep.images.canvas import Canvas
from fewstep.loop import Call, Networks
from fewstep.prompts import Embedding
from fewstep.recipe import Recipe
from fewstep.request import Job, complete_request, make_plan

MODES = {"base": "base", "lcm": "lcm", "lcm-lora": "lcm-lora", "add": "turbo"}  # by stage
_log = logging.getLogger("fewstep")


@dataclass(frozen=True, kw_only=True)
class GridSettings:
    """What is drawn, and how; picture i has the seed i."""

    networks: Networks  # of which the UNet is learning
    recipe: Recipe  # of the mode; its defaults are taken
    guidance: float
    prompts: tuple[str, ...]
    size: Size


def stage_recipe(stage: str, family: str) -> Recipe:
    """How a stage's result is sampled."""
    return modes.find_recipe(MODES[stage]).on(family)


@torch.no_grad()
def draw_grid(settings: GridSettings) -> Image.Image:
    """One picture for each prompt, one at a time, which bounds memory.

    Raises:
        FewstepError: a picture has numbers that are not finite.
    """
    return tile_images(
        [_draw_grid_picture(settings, prompt, seed) for seed, prompt in enumerate(settings.prompts)]
    )


@torch.no_grad()
def comparison_grid(reconstructed: Tensor, real: Tensor) -> Image.Image:
    """(B, 3, H, W) in [-1, 1] each: the real ones above, what was made of them below."""
    pixels = to_pixels(torch.cat([real.cpu(), reconstructed.float().cpu()]))
    return tile_images([Image.fromarray(picture.numpy()) for picture in pixels], columns=len(real))


def tile_images(pictures: Sequence[Image.Image], columns: int = 0) -> Image.Image:
    """Pictures of one size, row by row; about as many columns as rows where their number is 0."""
    columns = columns or math.ceil(math.sqrt(len(pictures)))
    rows = math.ceil(len(pictures) / columns)
    width, height = pictures[0].size
    sheet = Image.new("RGB", (columns * width, rows * height), "white")
    for place, picture in enumerate(pictures):
        row, column = divmod(place, columns)
        sheet.paste(picture, (column * width, row * height))
    return sheet


def _draw_grid_picture(settings: GridSettings, prompt: str, seed: int) -> Image.Image:
    """A call of the product's loop on networks that are in training."""
    call = Call(
        job=_grid_job(settings, prompt, seed), recipe=settings.recipe, token=CancelToken(),
        loras=(), apply_loras=_do_nothing, restore=_do_nothing, notify=_log.warning,
    )  # fmt: skip
    *_, last = loop.run_steps(settings.networks, call)
    (picture,) = loop.decode_pictures(settings.networks, call, last.latents)
    if isinstance(picture, Failure):
        raise FewstepError(f"the sample of {prompt!r}: {picture.reason}")
    return picture


def _grid_job(settings: GridSettings, prompt: str, seed: int) -> Job:
    """The mode's defaults for one prompt, read as training reads captions: plainly, in one window."""
    embedding, negative = (_read_plainly(settings, text) for text in (prompt, ""))
    height, width = settings.size
    options = {"model": "", "prompts": (embedding.name,), "seed": seed, "width": width, "height": height}
    request = complete_request(settings.recipe, None, {**options, "guidance": settings.guidance})
    plan = make_plan(request, settings.recipe)
    canvas = Canvas(size=(width, height), inner=(width, height), outer=(width, height))
    return Job(plan=plan, prompts=(embedding,), negative=negative, canvas=canvas)


def _read_plainly(settings: GridSettings, text: str) -> Embedding:
    condition = settings.networks.text.batch([text], settings.size)
    return Embedding(tokens=condition.tokens[0], pooled=condition.added["text_embeds"][0], text=text)


def _do_nothing() -> None:
    """What learns has on what it needs."""
