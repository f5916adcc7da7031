"""Requests: defaults filled once, types and bounds checked, every refusal with a way out. No weights."""

from __future__ import annotations

import math
from typing import Any

import pytest
from PIL import Image

import fewstep

PICTURE = Image.new("RGB", (128, 128), "white")


def test_defaults_come_from_the_recipe() -> None:
    request = fewstep.plan("a fox", mode="turbo", model="sdxl").request
    assert (request.steps, request.guidance, request.width, request.height) == (1, 1.0, 512, 512)
    assert (request.scheduler, request.sampler, request.eta) == ("trailing", "euler_ancestral", 1.0)
    assert fewstep.plan("a fox", mode="lcm", model="sdxl").request.guidance == 8.0
    assert fewstep.plan("a fox", mode="base", model="ssd-1b").request.width == 1024


def test_no_none_below_the_door() -> None:
    assert None not in fewstep.plan("a fox", seed=None, width=None).request.model_dump().values()


def test_prompts_and_seeds_are_one_per_picture() -> None:
    request = fewstep.plan(["a", "b"], count=2, seed=10).request
    assert request.prompts == ("a", "a", "b", "b")
    assert request.seeds == (10, 11, 12, 13)
    assert fewstep.plan(["a", "b"], seed=[5, 3]).request.seeds == (5, 3)


def test_a_missing_seed_is_drawn_and_recorded() -> None:
    assert fewstep.plan("a").request.seeds != fewstep.plan("a").request.seeds


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1, 2**32, 2**63, 2**64 - 1])
def test_seeds_up_to_64_bits(seed: int) -> None:
    assert fewstep.plan("a", seed=seed).request.seeds == (seed,)


def test_strength_picks_the_start_and_keeps_the_steps() -> None:
    plan = fewstep.plan("a", 4, image=PICTURE, strength=0.5)
    assert plan.schedule.timesteps == (499, 379, 259, 139)
    assert fewstep.plan("a", 4, image=PICTURE).request.strength == 0.6


def test_explicit_timesteps_choose_the_start_themselves() -> None:
    plan = fewstep.plan("a", image=PICTURE, timesteps=[599, 299])
    assert plan.schedule.timesteps == (599, 299)
    assert plan.request.steps == 2


def test_the_size_of_a_given_picture_is_kept() -> None:
    request = fewstep.plan("a", image=Image.new("RGB", (96, 160))).request
    assert (request.width, request.height) == (96, 160)


def test_leading_with_few_steps_is_warned_of() -> None:
    plan = fewstep.plan("a", 1, "base", scheduler="leading")
    assert plan.schedule.timesteps == (1,)
    assert "scheduler='trailing'" in plan.warnings[0]


SDXL: dict[str, Any] = {"model": "sdxl"}
BASE: dict[str, Any] = {"mode": "base"}
TURBO: dict[str, Any] = {"mode": "turbo", **SDXL}
BAD: list[tuple[dict[str, Any], str]] = [
    ({"steps": 0}, "steps=0"),
    ({"steps": -4}, "steps=-4"),
    ({"steps": 2.0}, "steps=2.0"),
    ({"steps": True}, "steps=True"),
    ({"steps": "4"}, "steps='4'"),
    ({"steps": 9}, "1 to 8; type steps=4"),
    ({"steps": 5, **TURBO}, "1 to 4; type steps=1"),
    ({"steps": 1, "mode": "lcm-lora", **SDXL}, "2 to 8"),
    ({"prompt": 5}, "give a string"),
    ({"prompt": []}, "non-empty list"),
    ({"prompt": ["a", 5]}, "strings"),
    ({"prompt": "\ud800"}, "whole Unicode"),
    ({"mode": "turbp"}, "did you mean mode='turbo'"),
    ({"mode": ""}, "choose one of"),
    ({"model": "no such folder"}, "tiny, sdxl"),
    ({"guidance": math.nan}, "guidance=nan"),
    ({"guidance": math.inf}, "guidance=inf"),
    ({"guidance": "high"}, "guidance='high'"),
    ({"guidance": True}, "guidance=True"),
    ({"guidance": 0}, "cannot be off"),
    ({"guidance": 2, "mode": "lcm", **SDXL}, "3 to 13"),
    ({"guidance": 0, **BASE}, "1 is off"),
    ({"guidance": 5, **TURBO}, "leave guidance out"),
    ({"guidance_rescale": 2, **BASE}, "guidance_rescale=2.0"),
    ({"guidance_rescale": 0.5}, "mode='base'"),
    ({"negative_prompt": "x"}, "mode='base'"),
    ({"negative_prompt": "x", "guidance": 1, **BASE}, "raise guidance"),
    ({"seed": -1}, "seed=-1"),
    ({"seed": 2**64}, "2**64 - 1"),
    ({"seed": 2**64 - 1, "count": 2}, "2**64 - 1"),
    ({"seed": 1.5}, "seed=1.5"),
    ({"seed": True}, "seed=True"),
    ({"seed": "7"}, "seed='7'"),
    ({"seed": [1, 2]}, "2 seeds for 1 pictures"),
    ({"count": 0}, "count=0"),
    ({"count": 10**6}, "1 to 1024"),
    ({"count": 1.5}, "count=1.5"),
    ({"width": 100}, "multiples of 8"),
    ({"width": 48}, "from 64"),
    ({"width": 256, "height": 256}, "192x192"),
    ({"width": 10**9}, "width=1000000000"),
    ({"width": 1024, "height": 1024, **TURBO}, "512x512"),
    ({"strength": 0.5}, "give image="),
    ({"strength": 0, "image": PICTURE}, "strength=0.0"),
    ({"strength": 1.5, "image": PICTURE}, "strength=1.5"),
    ({"strength": 0.05, "steps": 4, "image": PICTURE}, "at most 2 steps"),
    ({"mask": PICTURE}, "give the picture to inpaint"),
    ({"image": "nowhere.png"}, "no such file"),
    ({"image": 5}, "a path or a PIL image"),
    ({"image": __file__}, "PNG, JPEG, WEBP"),
    ({"scheduler": "karras"}, "lcm, trailing"),
    ({"scheduler": "lcm", **TURBO}, "trailing, turbo"),
    ({"sampler": "heun"}, "choose one of lcm"),
    ({"sampler": 3}, "sampler=3"),
    ({"eta": 0.5}, "leave eta out"),
    ({"eta": -1, "sampler": "ddim", **BASE}, "eta=-1.0"),
    ({"timesteps": [1, 2]}, "999 down to 0"),
    ({"timesteps": [1000]}, "999 down to 0"),
    ({"timesteps": 5}, "give a list"),
    ({"timesteps": [999, 499], "steps": 3}, "leave steps out"),
    ({"stepz": 4}, "stepz= is not an option"),
]


@pytest.mark.parametrize(("call", "says"), BAD, ids=[str(call)[:40] for call, _ in BAD])
def test_mistakes_are_refused_with_a_way_out(call: dict[str, Any], says: str) -> None:
    with pytest.raises(fewstep.FewstepError) as caught:
        fewstep.plan(**{"prompt": "a fox", **call})
    message = str(caught.value)
    assert says in message
    assert "\n" not in message


def test_turbos_own_grid_starts_as_its_demo_does() -> None:
    """Noise times sqrt(1 + sigma^2): generative-models' scripts/demo/turbo.py, prepare_sampling_loop."""
    plan = fewstep.plan("a fox", 2, "turbo", scheduler="turbo")
    assert plan.start == pytest.approx((1 + plan.schedule.sigmas[0] ** 2) ** 0.5, abs=0)
    assert fewstep.plan("a fox", 2, "turbo").start == plan.schedule.sigmas[0]
