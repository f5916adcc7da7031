"""The labelled sheet: every cell at its place, every label readable, whatever is written in it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFont

import fewstep
from fewstep.comparison.axes import describe, label
from fewstep.comparison.cells import Cell
from fewstep.comparison.sheet import draw_sheet, wrap
from fewstep.errors import RequestError
from fewstep.testing import FakeEngine, fake

COLOURS = ("#c80000", "#00c800", "#0000c8", "#c8c800", "#00c8c8", "#c800c8", "#640000", "#006400")


def coloured(count: int, size: tuple[int, int] = (128, 128)) -> list[Cell]:
    result = FakeEngine().generate("a fox", 1, seed=1)
    pictures = [Image.new("RGB", size, colour) for colour in COLOURS[:count]]
    return [
        Cell(settings={}, result=fewstep.Result(**{**vars(result), "images": (picture,)}), milliseconds=12.3)
        for picture in pictures
    ]


def corners(sheet: Image.Image, colours: Any) -> list[tuple[int, int]]:
    """The upper left corner of each colour's square, and that all of it is there."""
    pixels, places = np.asarray(sheet), []
    for colour in colours:
        rgb = Image.new("RGB", (1, 1), colour).getpixel((0, 0))
        rows, columns = np.where((pixels == rgb).all(axis=-1))
        assert len(rows) == 128 * 128
        places.append((int(columns.min()), int(rows.min())))
    return places


def test_rows_columns_and_blocks() -> None:
    axes: dict[str, Any] = {"mode": ["lcm", "turbo"], "steps": [1, 4], "seed": [5, 6]}
    places = corners(draw_sheet(axes, coloured(8), "a fox"), COLOURS)
    xs, ys = ([place[axis] for place in places] for axis in (0, 1))
    assert xs == [xs[0], xs[1]] * 4
    assert ys == sorted(ys)
    assert ys[0::2] == ys[1::2]
    assert len({*ys}) == 4


def test_one_axis_lies_across() -> None:
    places = corners(draw_sheet({"steps": [1, 2, 3]}, coloured(3), ""), COLOURS[:3])
    assert len({y for _, y in places}) == 1
    assert len({x for x, _ in places}) == 3


def test_large_pictures_are_made_smaller_and_small_cells_have_room_for_their_words() -> None:
    assert draw_sheet({"steps": [1, 2]}, coloured(2, (2048, 1024)), "").width < 2 * 512 + 30
    assert draw_sheet({"steps": [1, 2]}, coloured(2, (64, 64)), "").width > 2 * 96


def test_words_are_written_for_every_cell() -> None:
    blank = draw_sheet({"steps": [1, 2]}, coloured(2), "")
    titled = draw_sheet({"steps": [1, 2]}, coloured(2), "a fox")
    assert titled.height > blank.height
    refused = Cell(settings={}, error=RequestError("no " * 500))
    for cell in (None, refused):
        sheet = np.asarray(draw_sheet({"steps": [1, 2]}, [coloured(1)[0], cell], ""))
        corner = np.argwhere((sheet == 0xEE).all(axis=-1))
        assert len(corner) > 3000  # its ground
        assert (sheet[corner[:, 0].min() :, corner[:, 1].min() :] < 100).any()  # ink on it


@pytest.mark.parametrize("text", ["a", "word " * 60, "x" * 400, "猫 " * 50, "\n\n  two\nlines "])
def test_text_is_wrapped_within_its_width(text: str) -> None:
    font: Any = ImageFont.load_default(13)
    lines = wrap(text, font, 128, 3)
    assert 1 <= len(lines) <= 3
    assert all(font.getlength(line) <= 128 for line in lines)
    joined = "".join("".join(lines).split())
    assert joined == "".join(text.split()) or joined.endswith("…")
    assert wrap("", font, 128, 3) == []


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("steps", 4, "steps 4"),
        ("guidance", 7.50, "guidance 7.5"),
        ("guidance", None, "guidance default"),
        ("vae", "", "vae own"),
        ("vae", "/models/sdxl_vae.safetensors", "vae sdxl_vae"),
        ("model", "owner/name", "model owner/name"),
        ("loras", [], "loras none"),
        ("loras", ["/l/pen.safetensors", ("fx", 0.5)], "loras pen + fx 0.5"),
        ("negative_prompt", "", "negative_prompt none"),
        ("timesteps", [999, 499], "timesteps 999 + 499"),
    ],
)
def test_labels(name: str, value: Any, text: str) -> None:
    assert label(name, value) == text


def test_pictures_as_an_axis_have_names() -> None:
    pictures = [Image.new("RGB", (128, 128), colour) for colour in ("red", "blue")]
    with fake():
        comparison = fewstep.compare("a fox", image=pictures, strength=[0.3, 0.6], seed=1)
        assert len({describe("image", picture) for picture in pictures}) == 2
        assert [row["error"] for row in comparison.table()] == [""] * 4
