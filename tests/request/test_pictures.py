"""The pictures of a call: their sizes, what has to be said of them, and where they end up."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fewstep
from fewstep import RequestError
from fewstep.images.canvas import Canvas
from fewstep.request.limits import size_fits
from fewstep.request.pictures import find_canvas, nearest_size
from fewstep.testing import FakeEngine

MASK = Image.linear_gradient("L")


def photo(width: int, height: int) -> Image.Image:
    """Ramps."""
    red, green = Image.linear_gradient("L"), Image.radial_gradient("L")
    return Image.merge("RGB", (red, green, red.rotate(90))).resize((width, height))


def refusal(**options: Any) -> str:
    with pytest.raises(RequestError) as error:
        FakeEngine("lcm").plan("a fox", 2, **options)
    return str(error.value)


SIZES = [(127, 127), (427, 640), (64, 100), (100, 64), (20, 30), (8, 8), (3000, 2000), (8, 512), (255, 257)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("trained", [96, 100, 128, 1024])
def test_a_canvas_is_drawable_and_gives_the_picture_back(size: tuple[int, int], trained: int) -> None:
    canvas = find_canvas(size, trained)
    assert size_fits(*canvas.size, trained)
    assert all(inner <= side for inner, side in zip(canvas.inner, canvas.size, strict=True))
    if max(size) < 600:
        placed = canvas.place(photo(*size))
        assert placed.size == canvas.size
        assert canvas.place(MASK.resize(size)).size == canvas.size
        assert canvas.take_out(placed).size == size
        if canvas.inner == size:
            assert canvas.take_out(placed).tobytes() == photo(*size).tobytes()


def test_a_legal_size_is_its_own_canvas() -> None:
    assert find_canvas((96, 64), 96) == Canvas(size=(96, 64), inner=(96, 64), outer=(96, 64))


@pytest.mark.parametrize("size", [(127, 127), (427, 640), (640, 427), (20, 30), (8, 16), (129, 130)])
def test_inpainting_gives_the_given_size_back(size: tuple[int, int]) -> None:
    image, mask = photo(*size), Image.new("L", size, 0)
    mask.paste(255, (0, 0, size[0] // 2, size[1]))
    result = FakeEngine("lcm").generate("a fox", 2, image=image, mask=mask, seed=1)
    assert result[0].size == size
    assert (result.plan.request.width, result.plan.request.height) == size
    outside = np.asarray(mask) == 0
    assert np.array_equal(np.asarray(result[0])[outside], np.asarray(image)[outside])
    typed = FakeEngine("lcm").generate(
        "a fox", 2, image=image, mask=mask, seed=1, width=size[0], height=size[1]
    )
    assert typed[0].tobytes() == result[0].tobytes()
    scaled = find_canvas(size, 128).inner != size
    assert any("which this model does not draw" in w for w in result.warnings) == scaled


@pytest.mark.parametrize("size", [(427, 640), (127, 127), (1000, 750), (130, 300), (20, 20), (250, 250)])
def test_image_to_image_names_the_picture_and_what_to_type(size: tuple[int, int]) -> None:
    message = refusal(image=photo(*size))
    assert message.startswith(f"image is {size[0]}x{size[1]}: this model draws sides that are multiples of 8")
    width, height = map(int, re.findall(r"type width=(\d+), height=(\d+)", message)[0])
    request = FakeEngine("lcm").plan("a fox", 2, image=photo(*size), width=width, height=height).request
    assert (request.width, request.height) == (width, height)


def test_a_shape_that_no_model_draws_is_cropped() -> None:
    assert "crop it to a shape from 1:4 to 4:1 first" in refusal(image=photo(1000, 100))
    assert nearest_size((1000, 100), 128) is None


def test_what_was_not_typed_is_not_named() -> None:
    for image, mask in ((photo(427, 640), None), (photo(128, 128), photo(64, 128)), (photo(9000, 64), MASK),
                        (photo(4, 4), MASK)):  # fmt: skip
        options = {"image": image, "mask": mask}
        assert re.match(r"(image|mask) is \d+x\d+", refusal(**options))
    assert "which has another shape than image, which is 128x128" in refusal(
        image=photo(128, 128), mask=photo(64, 128)
    )
    assert "another shape than width=128, height=64" in refusal(image=photo(64, 64), width=128, height=64)


def test_one_side_follows_the_other() -> None:
    engine = FakeEngine("lcm")
    request = engine.plan("a fox", 2, image=photo(200, 100), width=128).request
    assert (request.width, request.height) == (128, 64)
    assert "width='wide'" in refusal(image=photo(128, 128), width="wide")


def test_what_is_lost_or_guessed_is_in_the_warnings() -> None:
    cut = Image.new("RGBA", (128, 128))
    result = FakeEngine("lcm").generate("a fox", 2, image=cut, mask=np.zeros((128, 128)), seed=1)
    assert [w.split(",")[0].split(":")[0] for w in result.warnings] == [
        "image is transparent all over", "mask is black all over",
    ]  # fmt: skip
    assert fewstep.plan("a fox", 2, image=photo(128, 128), mask=MASK.resize((128, 128))).warnings == ()


def test_pictures_of_controlnets_go_through_the_same_door() -> None:
    edges = np.zeros((3, 1024, 1024), np.float32)
    edges[:, 100:200] = 1
    guides: dict[str, Any] = {
        "control": [("canny", edges, 0.5)],
        "reference": [("ip-adapter", edges[0] > 0, 0.5)],
    }
    plan = fewstep.plan("a fox", 4, "lcm-lora", model="sdxl", **guides)
    assert plan.warnings == ()
    clear = Image.new("RGBA", (512, 512))
    plan = fewstep.plan("a fox", 1, "turbo", model="sdxl", control=[("canny", clear, 0.5)] * 2)
    assert plan.warnings == ("control is transparent all over, and so it is white",)
    with pytest.raises(
        RequestError, match=r"control is 300x200, which has another shape than the picture .* type"
    ):
        fewstep.plan("a fox", 1, "turbo", model="sdxl", control=[("canny", photo(300, 200), 0.5)])
    with pytest.raises(RequestError, match="control has floats from"):
        fewstep.plan("a fox", 1, "turbo", model="sdxl", control=[("canny", edges * 3, 0.5)])


def test_lists_that_are_arrays_are_refused() -> None:
    for name in ("control", "reference", "loras"):
        assert "give a list of" in refusal(**{name: np.zeros((8, 8))})
