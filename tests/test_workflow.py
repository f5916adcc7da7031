"""Draft, pick, refine: each step draws what it says, and knows where it came from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

import fewstep
from fewstep import Engine, RequestError, Result
from fewstep.testing import fake

Load = Callable[..., Engine]


def bits(images: Any) -> list[bytes]:
    return [image.tobytes() for image in images]


@pytest.fixture(scope="module")
def drafts(engine: Load) -> Result:
    result: Result = engine("turbo").generate("a fox", 1, seed=7, count=4)
    return result


@pytest.fixture(scope="module")
def disc() -> Image.Image:
    mask = Image.new("L", (96, 96))
    ImageDraw.Draw(mask).ellipse((30, 34, 62, 66), fill=255)
    return mask


# --- picking


@pytest.mark.parametrize(
    ("numbers", "seeds"),
    [
        ((1,), [8]),
        ((3, 0), [10, 7]),
        ((slice(1, 3),), [8, 9]),
        (([0, 2], -1), [7, 9, 10]),
        ((range(2),), [7, 8]),
    ],
)
def test_pick_by_number(numbers: Any, seeds: list[int], drafts: Result) -> None:
    picked = drafts.pick(*numbers)
    assert [*picked.seeds] == seeds
    assert bits(picked) == [drafts.images[seed - 7].tobytes() for seed in seeds]


def test_pick_by_seed(drafts: Result) -> None:
    assert drafts.pick(seed=9).seeds == (9,)
    assert drafts.pick(0, seed=[9, 8]).seeds == (7, 9, 8)


@pytest.mark.parametrize(
    ("numbers", "seed", "message"),
    [
        ((4,), None, "numbered 0 to 3"),
        ((), 99, "no picture here has it"),
        ((), None, "pick what"),
        ((1.5,), None, "no picture 1.5"),
    ],
)
def test_what_is_not_there_cannot_be_picked(numbers: Any, seed: Any, message: str, drafts: Result) -> None:
    with pytest.raises(RequestError, match=message):
        drafts.pick(*numbers, seed=seed)


def test_the_sheet_has_all_pictures_with_labels_that_can_be_read(drafts: Result) -> None:
    sheet = drafts.sheet()
    pixels = np.asarray(sheet.convert("L"), dtype=float)
    assert sheet.size == (2 * 168 + 8, sheet.height)
    label_rows = pixels[8:26, 8:168]
    assert label_rows.min() < 60  # dark letters
    assert label_rows.max() > 240  # on a light page
    assert drafts.sheet(columns=4).width == 4 * 168 + 8


# --- drawing over


def test_refine_is_image_to_image_with_the_same_words(drafts: Result, engine: Load) -> None:
    refined = drafts.pick(1, 3).refine(steps=2, strength=0.4, reproducible=True)
    expected = [
        engine("turbo").generate(
            "a fox", 2, image=drafts.images[i], strength=0.4, seed=7 + i, reproducible=True
        )[0]
        for i in (1, 3)
    ]
    assert bits(refined) == bits(expected)
    assert [parent.seeds for parent in refined.parents] == [(8,), (10,)]
    facts: Any = refined.facts(1)["parents"]
    assert [(f["steps"], f["seeds"]) for f in facts] == [(1, [10])]


def test_another_mode_brings_its_own_choices() -> None:
    with fake() as asked:
        drafts = fewstep.generate("a fox", 1, "turbo", model="sdxl", seed=3, precision="fp16")
        drafts.refine(mode="lcm-lora", strength=0.5).refine(mode="base", steps=20, prompt="an owl")
        drafts.refine(model="ssd-1b")
        drafts.vary(mode="base", count=1, seed=3)
    modes = [(r.model, r.mode, r.steps, r.sampler, r.prompts) for r in asked.requests]
    assert modes[1:] == [
        ("sdxl", "lcm-lora", 4, "lcm", ("a fox",)),
        ("sdxl", "base", 20, "euler", ("an owl",)),
        ("ssd-1b", "base", modes[3][2], "euler", ("a fox",)),
        ("sdxl", "base", modes[3][2], "euler", ("a fox",)),
    ]
    assert {r.seeds for r in asked.requests} == {(3,)}


def test_lineage_goes_back_to_the_draft(drafts: Result) -> None:
    second = drafts.pick(0).refine(strength=0.5)
    third = second.vary(strength=0.3, count=2, seed=40)
    assert third.seeds == (40, 41)
    assert third.parents[1].parents[0].seeds == (7,)
    facts: Any = third.facts(1)["parents"]
    assert [(f["seeds"], f["strength"]) for f in facts] == [([7], 0.5), ([7], 1.0)]


def test_a_picture_taken_out_carries_its_facts(engine: Load) -> None:
    result = engine("turbo").generate("a fox", 1, seed=1, count=2)
    assert "fewstep" not in result.images[1].info
    picture = result[1]
    assert json.loads(picture.info["fewstep"]) == result.facts(1, weights=False)
    assert result.facts(1).keys() - result.facts(1, weights=False).keys() == {"weights"}
    facts: Any = engine("turbo").generate("a fox", 1, image=picture, seed=1).facts()["parents"]
    assert [f["seeds"] for f in facts] == [[2]]


# --- masks


@pytest.mark.parametrize("only_masked", [False, True])
@pytest.mark.parametrize("feather", [None, 0, 5])
def test_outside_the_mask_nothing_changes(
    only_masked: bool, feather: int | None, drafts: Result, disc: Image.Image
) -> None:
    fixed = drafts.pick(0, 1).inpaint(
        disc, "a hat", steps=1, only_masked=only_masked, padding=4, feather=feather
    )
    outside = np.asarray(disc) == 0
    for before, after in zip(drafts.images, fixed.images[:2], strict=False):
        difference = np.abs(np.asarray(before, int) - np.asarray(after, int)).max(axis=2)
        assert difference[outside].max() == 0
        assert difference[~outside].mean() > 2
    assert fixed.prompts == ("a hat", "a hat")


def test_the_masked_area_is_drawn_at_full_size(drafts: Result, disc: Image.Image) -> None:
    canvas = drafts.pick(0).inpaint(disc, only_masked=True, padding=4, feather=0).job.canvas
    assert canvas.box == (26, 30, 67, 71)
    assert canvas.size == (96, 96)
    again = drafts.pick(0).inpaint(disc, only_masked=True, padding=4, feather=0)
    assert bits(again.redraw(**again.call())) == bits(again)


def test_outpainting_goes_on_from_the_picture(drafts: Result) -> None:
    wide = drafts.pick(0).outpaint(left=16, bottom=32, steps=1)
    assert wide[0].size == (112, 128)
    old = np.asarray(wide[0])[0:88, 24:112]  # but for the band of 8 pixels along the new
    assert (old == np.asarray(drafts.images[0])[0:88, 8:96]).all()
    assert wide.parents[0].seeds == (7,)
    with pytest.raises(RequestError, match="by how much"):
        drafts.outpaint()
    with pytest.raises(RequestError, match="feather='x': give pixels"):
        drafts.outpaint(left=8, feather="x")


# --- enlarging


def test_enlarged_beyond_the_model_in_tiles(drafts: Result) -> None:
    big = drafts.pick(0).refine(scale=2.5, steps=1)
    assert big[0].size == (240, 240)
    assert (big.job.canvas.tile, big.plan.request.strength) == ((96, 96), 0.2)
    assert bits(big.redraw(**big.call())) == bits(big)
    small = drafts.pick(0).refine(scale=1.25, steps=1)
    assert (small[0].size, small.job.canvas.tile) == ((120, 120), None)
    with pytest.raises(RequestError, match="from 1 to 8"):
        drafts.refine(scale=0.5)


# --- lists: one value for each picture


def test_a_list_has_one_value_for_each_picture(engine: Load, drawing: Image.Image) -> None:
    loaded = engine("turbo")
    other = drawing.rotate(90)
    lists: dict[str, Any] = {"strength": [0.3, 0.5, 0.3], "image": [drawing, other, other]}
    result = loaded.generate("a fox", [1, 2, 1], seed=4, reproducible=True, **lists)
    singles = [
        loaded.generate("a fox", s, strength=w, image=i, seed=4 + n)[0]
        for n, (s, w, i) in enumerate([(1, 0.3, drawing), (2, 0.5, other), (1, 0.3, other)])
    ]
    assert bits(result) == bits(singles)
    assert [plan.request.steps for plan in result.plans] == [1, 2, 1]
    assert [plan.request.strength for plan in result.plans] == [0.3, 0.5, 0.3]
    assert [result.facts(i)["steps"] for i in range(3)] == [1, 2, 1]
    assert bits(result.redraw(**result.call())) == bits(singles)


def test_what_is_given_once_is_for_all(engine: Load, drawing: Image.Image) -> None:
    result = engine("turbo").generate(
        "a fox", 1, image=[drawing], strength=[0.3, 0.6], seed=[5, 5, 6, 6], count=2
    )
    assert result.seeds == (5, 5, 6, 6)
    assert [plan.request.strength for plan in result.plans] == [0.3, 0.3, 0.6, 0.6]


def test_pictures_of_any_sizes(engine: Load, drawing: Image.Image) -> None:
    wide = drawing.resize((128, 64))
    result = engine("turbo").generate("a fox", 1, image=[drawing, wide, drawing], seed=1)
    assert [image.size for image in result] == [(96, 96), (128, 64), (96, 96)]


def test_a_result_is_a_list_of_its_pictures(drafts: Result, engine: Load) -> None:
    refined = engine("turbo").generate("an owl", 1, image=drafts.pick(2, 0), seed=1)
    assert len(refined) == 2
    assert [parent.seeds for parent in refined.parents] == [(9,), (7,)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": [1, 2, 3], "prompt": ["a", "b"]}, "prompt lists 2 and steps lists 3"),
        ({"steps": []}, "steps is an empty list"),
        ({"steps": [1, 99]}, "steps=99"),
        ({"strength": [0.2, "x"], "image": Image.new("RGB", (96, 96), "red")}, "strength='x'"),
        ({"only_masked": True}, "needs a mask"),
        ({"tiles": True}, "tiles=True draws over a picture"),
        ({"tiles": 1, "image": Image.new("RGB", (96, 96), "red")}, "tiles=1: give True or False"),
    ],
)
def test_lists_that_do_not_fit_are_refused(options: dict[str, Any], message: str, engine: Load) -> None:
    with pytest.raises(RequestError, match=message):
        engine("turbo").generate(**{"prompt": "a fox", **options})


def test_streams_and_plans_are_of_one_kind(engine: Load) -> None:
    for ask in (engine("turbo").plan, engine("turbo").stream):
        with pytest.raises(RequestError, match="several plans"):
            ask("a fox", [1, 2])  # type: ignore[arg-type]


def test_survivors_of_lists_keep_their_places(engine: Load, drawing: Image.Image, tmp_path: Path) -> None:
    broken = fewstep.load(engine("turbo").choice.model.source, "turbo", device="cpu", precision="fp32")
    calls: list[int] = []

    def spoil(_module: Any, _inputs: Any, output: Any) -> Any:
        calls.append(1)
        return (output[0] * float("nan"),) if len(calls) == 3 else output

    broken.parts.unet.register_forward_hook(spoil)
    with pytest.raises(fewstep.GenerationError) as caught:
        broken.generate("a fox", [1, 2, 1], seed=1)
    assert [failure.picture for failure in caught.value.failures] == [1]
    assert caught.value.survivors.seeds == (1, 3)
