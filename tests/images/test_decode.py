"""Files that are not trusted: orientation, frames, bombs, and what is broken."""

from __future__ import annotations

import contextlib
import io
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin, features
from PIL.PngImagePlugin import PngInfo

from fewstep.errors import RequestError
from fewstep.images import decode, open_image, open_mask
from tests.images import forms

KINDS = ["PNG", "JPEG", "WEBP", "TIFF", *(["AVIF"] if features.check("avif") else [])]


def corners() -> Image.Image:
    """32x16, a colour in each quarter."""
    image = Image.new("RGB", (32, 16), "white")
    for box, colour in (((0, 0, 16, 8), "red"), ((16, 0, 32, 8), "green"), ((0, 8, 16, 16), "blue")):
        image.paste(colour, box)
    return image


def saved(image: Image.Image, kind: str, **how: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **how)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", KINDS)
def test_it_stands_upright_in_every_orientation(kind: str) -> None:
    for orientation, turn in forms.TURNS.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = saved(corners(), kind, exif=exif, **({"quality": 95} if kind in ("JPEG", "AVIF") else {}))
        for source in (data, Image.open(io.BytesIO(data))):
            seen = np.asarray(open_image(source, "image").image).astype(int)
            assert np.abs(seen - turn(np.asarray(corners()).astype(int))).mean() < 12, orientation


def test_broken_exif_is_said() -> None:
    """An orientation of a type that is none."""
    data = saved(corners(), "PNG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x63\0\0\xff\xffab")
    opened = open_image(data, "image")
    assert opened.image.size == (32, 16)
    image = corners()
    image.getexif = lambda: 1 / 0  # type: ignore[method-assign, assignment, return-value]
    assert "EXIF data that cannot be read" in open_image(image, "image").notes[0]


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_is_taken_and_said(kind: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue", "green")]
    opened = open_image(saved(frames[0], kind, save_all=True, append_images=frames[1:]), "image")
    assert opened.image.getpixel((8, 8))[0] > 240  # type: ignore[index]
    assert opened.notes == ("has several frames, of which the first is taken",)


@pytest.mark.parametrize(
    ("bits", "kind", "rows", "key"),
    [
        (1, 0, b"\xf0", b"\0\1"),
        (2, 0, b"\xff\0", b"\0\3"),
        (4, 0, b"\xff\xff\0\0", b"\0\x0f"),
        (8, 0, b"\xff" * 4 + b"\0" * 4, b"\0\xff"),
        (16, 0, b"\xff" * 8 + b"\0" * 8, b"\xff\xff"),
        (8, 2, b"\xff" * 12 + b"\0" * 12, b"\0\xff" * 3),
        (16, 2, b"\xff" * 24 + b"\0" * 24, b"\xff" * 6),
    ],
)
def test_the_transparent_colour_of_every_depth_of_png(bits: int, kind: int, rows: bytes, key: bytes) -> None:
    """White on the left, and transparent: of a mask nothing is left."""
    data = forms.png_file((8, 2), bits, kind, (b"\0" + rows) * 2, key)
    for source in (bytes, lambda file: Image.open(io.BytesIO(file))):
        assert "laid on white" in open_image(source(data), "image").notes[0]
        assert open_mask(source(data)).image.getextrema() == (0, 0)


HUGE = (50_000).to_bytes(2, "little") * 2
BOMBS = {
    **{
        f"PNG {side}": forms.png_file((side, side), 1, 0, bytes(1000))
        for side in (8200, 9500, 40_000, 2**31 - 1)
    },
    "a long row": forms.png_file((2**31 - 1, 1), 1, 0, bytes(1000)),
    "BMP": saved(Image.new("1", (8, 8)), "BMP")[:18] + (60_000).to_bytes(4, "little") * 2 + bytes(100),
    "GIF": b"GIF89a" + HUGE + b"\0\0\0," + bytes(4) + HUGE + b"\0\2\2L\1\0;",
}  # fmt: skip


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_not_decoded(name: str) -> None:
    started = time.process_time()
    with pytest.raises(RequestError, match=r"^image"):
        open_image(BOMBS[name], "image")
    assert time.process_time() - started < 1


def test_a_tiff_whose_pages_go_round() -> None:
    data = bytearray(saved(corners(), "TIFF"))
    tiff = TiffImagePlugin.TiffImageFile(io.BytesIO(data))
    place = int.from_bytes(data[4:8], "little")
    count = int.from_bytes(data[place : place + 2], "little")
    end = place + 2 + 12 * count
    data[end : end + 4] = data[4:8]
    assert tiff.size == open_image(bytes(data), "image").image.size


@pytest.mark.parametrize("kind", [*KINDS, "BMP", "GIF"])
def test_a_file_cut_anywhere_is_whole_or_refused(kind: str) -> None:
    """At 24 places: never half a picture."""
    data = saved(corners().resize((128, 64)), kind)
    wanted = open_image(data, "image").image.tobytes()
    for place in np.linspace(0, len(data) - 1, 24).astype(int):
        with contextlib.suppress(RequestError):
            assert open_image(data[:place], "image").image.tobytes() == wanted


def test_files_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "MAX_BYTES", 50)
    path = tmp_path / "a.png"
    path.write_bytes(saved(corners(), "PNG"))
    for source in (path, path.read_bytes()):
        with pytest.raises(RequestError, match="at most 50"):
            open_image(source, "image")


@pytest.mark.parametrize("kilobytes", [1500, 9000])
def test_a_workflow_of_any_length_hides_no_picture(kilobytes: int) -> None:
    """Pillow decompresses 1 MiB of text at most, and refuses the file; ComfyUI writes such."""
    texts, file = PngInfo(), io.BytesIO()
    texts.add_itxt("workflow", "x" * (kilobytes << 10), zip=True)
    texts.add_text("prompt", "y" * 1000)
    image = Image.linear_gradient("L").convert("RGB")
    image.save(file, "PNG", pnginfo=texts)
    assert open_image(file.getvalue(), "image").image.tobytes() == image.tobytes()
