"""Whole pictures against diffusers' SDXL pipelines: same weights, same generators, fp32."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from torch import Tensor

from fewstep import Engine
from fewstep.denoiser import guidance_embedding

TOLERANCE = 1e-4  # on pixels in [0, 1]; measured: at most 6e-6
PROMPTS = ["a red fox", "an owl in the snow"]
SEEDS = (7, 11)
SIZES = [(96, 64), (72, 96)]  # width, height; 72 px is 9 latents, which UNet blocks cannot halve evenly
Load = Callable[..., Engine]
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning:diffusers")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One order in our words and in diffusers'."""

    mode: str
    steps: int
    ours: Mapping[str, Any] = field(default_factory=dict)
    scheduler: type[Any]
    config: Mapping[str, Any] = field(default_factory=dict)
    theirs: Mapping[str, Any] = field(default_factory=dict)


SUN = {"negative_prompt": "bright sun"}
SUNS = {"negative_prompt": ["bright sun"] * 2}
LEADING = {"scheduler": "leading", "sampler": "euler"}
TRAILING = {"timestep_spacing": "trailing"}
BASE = {
    "leading": Case(
        mode="base", steps=6, ours={**LEADING, **SUN, "guidance": 5},
        scheduler=EulerDiscreteScheduler, theirs={**SUNS, "guidance_scale": 5.0},
    ),
    "no-negative": Case(  # zeros, by force_zeros_for_empty_prompt
        mode="base", steps=6, ours={**LEADING, "guidance": 5},
        scheduler=EulerDiscreteScheduler, theirs={"guidance_scale": 5.0},
    ),
    "guidance-off": Case(
        mode="base", steps=6, ours={**LEADING, "guidance": 1},
        scheduler=EulerDiscreteScheduler, theirs={"guidance_scale": 1.0},
    ),
    "rescale": Case(
        mode="base", steps=6, ours={**SUN, "guidance": 5, "guidance_rescale": 0.7, "scheduler": "trailing"},
        scheduler=EulerDiscreteScheduler, config=TRAILING,
        theirs={**SUNS, "guidance_scale": 5.0, "guidance_rescale": 0.7},
    ),
    "dpmpp_2m": Case(
        mode="base", steps=6, ours={**SUN, "guidance": 5, "sampler": "dpmpp_2m", "scheduler": "trailing"},
        scheduler=DPMSolverMultistepScheduler, config=TRAILING, theirs={**SUNS, "guidance_scale": 5.0},
    ),
}  # fmt: skip
FEW = {
    **{
        f"lcm-{steps}": Case(
            mode="lcm", steps=steps, ours={"guidance": 8},
            scheduler=LCMScheduler, theirs={"guidance_scale": 8.0},
        )
        for steps in (1, 4)
    },
    **{
        f"turbo-{steps}": Case(
            mode="turbo", steps=steps, ours={"guidance": 0}, scheduler=EulerAncestralDiscreteScheduler,
            config=TRAILING, theirs={"guidance_scale": 0.0},
        )
        for steps in (1, 4)
    },
    "lora": Case(mode="lcm-lora", steps=4, scheduler=LCMScheduler, theirs={"guidance_scale": 1.0}),
    "lora-guided": Case(
        mode="lcm-lora", steps=4, ours={**SUN, "guidance": 1.5},
        scheduler=LCMScheduler, theirs={**SUNS, "guidance_scale": 1.5},
    ),
}  # fmt: skip
IMAGE = {  # diffusers runs int(steps * strength) steps, these weights' levels then agree with ours
    "lcm": Case(
        mode="lcm", steps=4, ours={"strength": 0.5}, scheduler=LCMScheduler,
        theirs={"strength": 0.5, "num_inference_steps": 8, "guidance_scale": 8.0},
    ),
    "turbo": Case(
        mode="turbo", steps=2, ours={"strength": 0.5}, scheduler=EulerAncestralDiscreteScheduler,
        config=TRAILING, theirs={"strength": 0.5, "num_inference_steps": 4, "guidance_scale": 0.0},
    ),
    "base": Case(
        mode="base", steps=6, ours={**SUN, "strength": 0.6, "scheduler": "trailing"},
        scheduler=EulerDiscreteScheduler, config=TRAILING,
        theirs={**SUNS, "strength": 0.6, "num_inference_steps": 10, "guidance_scale": 5.0},
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def pipelines(sdxl_folder: Path, lcm_unet_folder: Path, lora_file: Path) -> Mapping[str, Any]:
    """diffusers' pipeline for each mode."""
    plain = StableDiffusionXLPipeline.from_pretrained(sdxl_folder, add_watermarker=False)
    unet = UNet2DConditionModel.from_pretrained(lcm_unet_folder)
    lcm = StableDiffusionXLPipeline.from_pretrained(sdxl_folder, unet=unet, add_watermarker=False)
    lora = StableDiffusionXLPipeline.from_pretrained(sdxl_folder, add_watermarker=False)
    lora.load_lora_weights(lora_file.parent, weight_name=lora_file.name)
    found = {"base": plain, "turbo": plain, "lcm": lcm, "lcm-lora": lora}
    for pipeline in found.values():
        pipeline.set_progress_bar_config(disable=True)
    return found


def theirs(pipeline: Any, case: Case, **options: Any) -> tuple[Tensor, list[float]]:
    """diffusers' pictures, (B, 3, H, W) in [0, 1], and the timesteps it ran."""
    scheduler = case.scheduler.from_config({**pipeline.scheduler.config, **case.config})
    seen: list[float] = []
    built = type(pipeline)(**{**pipeline.components, "scheduler": scheduler}, add_watermarker=False)
    built.set_progress_bar_config(disable=True)

    def note(_pipeline: Any, _index: int, timestep: Any, kept: dict[str, Any]) -> dict[str, Any]:
        seen.append(float(timestep))
        return kept

    given = {"num_inference_steps": case.steps, **case.theirs, **options}
    pictures = built(
        prompt=PROMPTS, generator=[torch.Generator().manual_seed(seed) for seed in SEEDS],
        output_type="pt", callback_on_step_end=note, **given,
    ).images  # fmt: skip
    return pictures, seen


def ours(engine: Engine, case: Case, **options: Any) -> tuple[Tensor, list[float]]:
    """Our pictures before rounding, (B, 3, H, W) in [0, 1], and the timesteps run."""
    steps = list(engine.stream(PROMPTS, case.steps, seed=SEEDS, **case.ours, **options))
    vae = engine.parts.vae
    with torch.no_grad():
        pictures = vae.decode(steps[-1].latents / vae.config.scaling_factor).sample
    return (pictures * 0.5 + 0.5).clamp(0, 1), [step.timestep for step in steps]


def rounded(engine: Engine, case: Case, **options: Any) -> Tensor:
    """What `generate` hands out, uint8 (B, 3, H, W)."""
    images = engine.generate(PROMPTS, case.steps, seed=SEEDS, **case.ours, **options)
    return torch.stack([bytes_of(image) for image in images])


def bytes_of(image: Image.Image) -> Tensor:
    flat = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return flat.view(image.height, image.width, 3).permute(2, 0, 1)


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("name", [*BASE, *FEW])
def test_text_to_image(
    name: str, width: int, height: int, engine: Load, pipelines: Mapping[str, Any]
) -> None:
    case = {**BASE, **FEW}[name]
    reference, their_steps = theirs(pipelines[case.mode], case, width=width, height=height)
    pictures, our_steps = ours(engine(case.mode), case, width=width, height=height)
    assert our_steps == their_steps
    assert reference.shape == (2, 3, height, width)
    assert float((pictures - reference).abs().max()) < TOLERANCE
    handed = rounded(engine(case.mode), case, width=width, height=height)
    assert float((handed - 255 * reference).abs().max()) < 0.5 + 255 * TOLERANCE


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", IMAGE)
def test_image_to_image(
    name: str, size: tuple[int, int], engine: Load, pipelines: Mapping[str, Any], drawing: Image.Image
) -> None:
    case, image = IMAGE[name], drawing.resize(size)
    pipeline = StableDiffusionXLImg2ImgPipeline(**pipelines[case.mode].components, add_watermarker=False)
    reference, their_steps = theirs(pipeline, case, image=[image, image])
    pictures, our_steps = ours(engine(case.mode), case, image=image)
    assert our_steps == their_steps
    assert len(our_steps) == case.steps
    assert float((pictures - reference).abs().max()) < TOLERANCE


def test_strength_is_how_far_the_picture_may_go(engine: Load, drawing: Image.Image) -> None:
    results = [
        engine("turbo").generate("a fox", 2, image=drawing, strength=s, seed=1) for s in (0.05, 0.3, 0.9)
    ]
    start = engine("turbo").parts.vae
    with torch.no_grad():
        encoded = start.encode(bytes_of(drawing)[None] / 127.5 - 1).latent_dist.mean
        plain = ((start.decode(encoded).sample * 0.5 + 0.5).clamp(0, 1) * 255)[0]
    far = [float((bytes_of(r[0]).float() - plain).abs().mean()) for r in results]
    assert far[0] < far[1] < far[2]


@pytest.mark.parametrize("what", ["timestep", "prompt", "guidance", "size"])
def test_the_random_networks_see_their_inputs(what: str, engine: Load) -> None:
    """Parity says something only if no input is lost in the noise: each moves the answer by a tenth."""
    parts = engine("lcm").parts
    x = torch.randn((1, 4, 12, 12), generator=torch.Generator().manual_seed(0))

    def answer(
        timestep: float = 999.0, prompt: str = "red fox", guidance: float = 8.0, side: int = 96
    ) -> Tensor:
        told = parts.text.encode([prompt], (side, 96))
        w = guidance_embedding(torch.tensor([guidance - 1]), parts.guidance_width)
        extra = dict(told.added)
        with torch.no_grad():
            predicted: Tensor = parts.unet(
                x, torch.tensor(timestep), told.tokens, timestep_cond=w, added_cond_kwargs=extra
            ).sample
        return predicted

    other: dict[str, Any] = {"timestep": 499.0, "prompt": "blue owl", "guidance": 3.0}
    moved = answer(**({what: other[what]} if what in other else {"side": 64}))
    assert float((moved - answer()).std()) > 0.1 * float(answer().std())
