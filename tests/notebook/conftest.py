"""A studio without a browser: the tests say what the browser would, and read what it would be shown."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pytest
from PIL import Image

from fewstep import testing
from fewstep.notebook import Studio
from fewstep.testing import FakeEngine


@pytest.fixture
def fake() -> Iterator[FakeEngine]:
    """Engines that draw blocks of colour at once."""
    with testing.fake() as engine:
        yield engine


def say(studio: Studio, do: str, *, mask: bytes = b"", wait: bool = True, **message: Any) -> None:
    """Do what a click in the browser does, and wait for what comes of it."""
    settings = message.pop("settings", {})
    content = {"do": do, "settings": settings, **message}
    studio._handle_msg(
        {
            "content": {"data": {"method": "custom", "content": content}},
            "buffers": [memoryview(mask)] if mask else [],
        }
    )
    if wait:
        assert studio.wait(60)


def half_mask(side: int) -> bytes:
    """A PNG as the browser makes it: the right half white, and the edge between soft."""
    mask = Image.new("RGBA", (side, side), "black")
    mask.paste((255, 255, 255), (side // 2, 0, side, side))
    mask.paste((127, 127, 127), (side // 2 - 1, 0, side // 2, side))
    file = io.BytesIO()
    mask.save(file, "PNG")
    return file.getvalue()


def same_pictures(studio: Studio, *, everything: bool = False) -> bool:
    """Whether the studio's code, run from nothing, draws the pictures that it shows."""
    names: dict[str, Any] = {}
    code = studio.code(everything=everything)
    exec(compile(code, "studio", "exec"), names)
    again = names[code.splitlines()[-1]]
    assert studio.result is not None
    return [image.tobytes() for image in again] == [image.tobytes() for image in studio.result]
