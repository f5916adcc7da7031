"""A result keeps what draws it again: its job, its options, and something to draw with."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import fewstep
from fewstep import Engine, RequestError
from fewstep.testing import FakeEngine, fake

Load = Callable[..., Engine]


def bits(images: Any) -> list[bytes]:
    return [image.tobytes() for image in images]


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("turbo", {"prompt": ["a fox", "an owl"], "steps": 2, "seed": 5}),
        (
            "base",
            {"prompt": "a fox", "negative_prompt": "sun", "guidance_rescale": 0.4, "sampler": "dpmpp_2m"},
        ),
        ("base", {"prompt": "a fox", "timesteps": [900, 400], "sampler": "ddim", "eta": 0.5}),
        (
            "lcm",
            {"prompt": "a fox", "prompt_2": "red", "count": 2, "image": True, "strength": 0.4, "steps": 2},
        ),
        ("turbo", {"prompt": "a fox", "image": True, "mask": True, "steps": 1}),
    ],
)
def test_the_keywords_of_a_call_draw_it_again(
    mode: str, options: dict[str, Any], engine: Load, drawing: Image.Image
) -> None:
    pictures = {"image": drawing, "mask": drawing.convert("L")}
    options = {"steps": 3, "reproducible": True, **options} | {
        n: p for n, p in pictures.items() if n in options
    }
    if "timesteps" in options:
        del options["steps"]
    result = engine(mode).generate(**options)
    again = result.redraw(**result.call())
    assert bits(again) == bits(result)
    assert again.facts() == result.facts()
    assert bits(result.redraw(**result.call(-1))) == bits(result[-1:])


def test_usual_values_are_left_out_of_the_keywords() -> None:
    with fake():
        result = fewstep.generate(["a fox", "an owl"], 2, "turbo", seed=3, model="sdxl", precision="fp16")
    call = result.call()
    assert call["prompt"] == ["a fox", "an owl"]
    assert (call["steps"], call["mode"], call["model"], call["precision"]) == (2, "turbo", "sdxl", "fp16")
    assert call["seed"] == [3, 4]
    assert result.call(1)["seed"] == 4
    absent = {
        "image",
        "mask",
        "strength",
        "loras",
        "control",
        "negative_prompt",
        "vae",
        "device",
        "timesteps",
    }
    assert not absent & call.keys()


def test_a_result_draws_on_its_engine_and_else_at_the_door() -> None:
    with fake() as asked:
        result = fewstep.generate("a fox", 2, "turbo", model="sdxl", seed=1)
        assert result.redraw(**result.call()).images == result.images
        other = result.redraw("a fox", 4, "lcm-lora", model="sdxl", seed=1)
    assert other.plan.request.mode == "lcm-lora"
    assert [request.mode for request in asked.requests] == ["turbo", "turbo", "lcm-lora"]


def test_a_closed_engine_is_loaded_again() -> None:
    with fake():
        with fewstep.load("sdxl", "turbo") as engine:
            result = engine.generate("a fox", seed=1)
        assert result.redraw(**result.call()).images == result.images


def test_an_engine_that_no_name_loads_draws_what_it_can() -> None:
    alone = FakeEngine("turbo", "sdxl")
    result = alone.generate("a fox", seed=1)
    assert result.redraw(**result.call()).images == result.images
    with pytest.raises(RequestError, match="not loaded by name"):
        result.redraw("a fox", mode="lcm-lora")


def test_a_result_keeps_no_weights(engine: Load, sdxl_folder: Path) -> None:
    from weakref import ref

    with fewstep.load(sdxl_folder, "turbo", device="cpu") as loaded:
        result = loaded.generate("a fox", 1, seed=1)
        unet = ref(loaded.parts.unet)
    del loaded
    gc.collect()
    assert unet() is None
    assert result.seeds == (1,)


def test_commercial_use_stays_asked_for() -> None:
    with fake():
        result = fewstep.generate("a fox", 2, "lcm-lora", model="sdxl", commercial=True)
        assert result.call()["commercial"] is True
        with pytest.raises(RequestError, match="commercial"):
            result.redraw(**result.call() | {"mode": "turbo", "sampler": None, "scheduler": None})


def test_some_of_its_pictures_are_a_result(engine: Load) -> None:
    result = engine("turbo").generate(["a fox", "an owl", "a sun"], 1, seed=7)
    part = result.only([2, 0])
    assert part.images == (result.images[2], result.images[0])
    assert (part.prompts, part.seeds) == (("a sun", "a fox"), (9, 7))
    assert part.facts(0) == result.facts(2)
    assert part.plans == (result.plans[2], result.plans[0])
    assert part.job_of(-1) == part.job_of(1)


def test_pictures_given_are_told_with_the_job(engine: Load, drawing: Image.Image) -> None:
    mask = drawing.convert("L")
    result = engine("turbo").generate("a fox", 1, image=drawing, mask=mask, seed=1, count=2)
    pictures = result.job.given_pictures(1)
    assert bits(pictures["image"]) == bits([drawing])
    assert bits(pictures["mask"]) == bits([mask])
    assert result.facts(1)["sources"].keys() == {"image", "mask"}  # type: ignore[attr-defined]
    assert result.parents == ()
    assert result.facts(1)["parents"] == []


def test_a_given_picture_tells_how_it_was_made(engine: Load, tmp_path: Path) -> None:
    """From a saved file: its own facts, and those before it."""
    loaded = engine("turbo")
    draft = loaded.generate("a fox", 1, seed=1).save(tmp_path / "draft.png")
    second = loaded.generate("an owl", 2, image=draft[0], strength=0.5, seed=2).save(tmp_path / "second.png")
    facts = loaded.generate("a sun", 1, image=second[0], seed=3).facts()["parents"]
    assert isinstance(facts, list)
    assert [(f["prompts"], f["steps"], f["seeds"], f["strength"]) for f in facts] == [
        (["an owl"], 2, [2], 0.5),
        (["a fox"], 1, [1], 1.0),
    ]
    assert all(len(parent["sha256"]) == 64 for parent in facts)
