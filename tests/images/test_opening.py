"""Every form of a picture as a picture and as a mask: right, said, or refused with what to type."""

from __future__ import annotations

import io
import itertools
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fewstep.errors import RequestError
from fewstep.images import OpenedImage, open_image, open_mask
from tests.images import forms
from tests.images.forms import Bytes, Form, Maker

SIZE = (24, 16)


def scene(alpha: str) -> tuple[Bytes, Bytes]:
    """Ramps with an edge, and an alpha: "opaque", or "holed": none in the corner, half beside it."""
    across, down = np.meshgrid(np.linspace(20, 235, SIZE[0]), np.linspace(10, 245, SIZE[1]))
    blue = np.where(across > 128, 200, 40)
    shown = np.full(SIZE[::-1], 255)
    if alpha == "holed":
        shown[:6, :8], shown[:6, 8:12] = 0, 128
    return np.dstack([across, down, blue]).astype(np.uint8), shown.astype(np.uint8)


def over_white(form: Form) -> Any:
    share = form.alpha[..., None] / 255
    return form.colours * share + 255 * (1 - share)


def as_mask(form: Form) -> Any:
    return forms.grey(form.colours) * (form.alpha / 255)


def distance(opened: OpenedImage, wanted: Any) -> float:
    """The mean over pixels, in 255ths: palettes and lossy files are off in places."""
    seen = np.asarray(opened.image).astype(float)
    assert seen.shape == wanted.shape
    return float(np.abs(seen - wanted).mean())


def said(opened: OpenedImage, words: str) -> bool:
    return any(words in note for note in opened.notes)


def families() -> dict[str, dict[str, Maker]]:
    """Forms of one sort: arrays of a type in every layout; modes and files each for themselves."""
    sorts: dict[str, dict[str, Maker]] = {}
    for name, maker in (forms.FORMS | forms.SIGNED_FORMS).items():
        sort = name.rpartition(" ")[0] if ".." in name else name
        sorts.setdefault(sort, {})[name] = maker
    return sorts


@pytest.mark.parametrize("sort", families())
def test_every_form_shows_what_was_given(sort: str) -> None:
    """As a picture it lies on white, which is said; as a mask its brightness is multiplied by its alpha."""
    for (name, maker), alpha in itertools.product(families()[sort].items(), ("opaque", "holed")):
        form = maker(*scene(alpha))
        opened = open_image(form.given, "image")
        assert opened.image.mode == "RGB"
        assert distance(opened, over_white(form)) <= form.tolerance, (name, alpha)
        assert said(opened, "laid on white") == bool(form.alpha.min() < 255), (name, alpha)
        if name not in forms.SIGNED_FORMS:
            mask = open_mask(form.given)
            assert mask.image.mode == "L"
            assert distance(mask, as_mask(form)) <= form.tolerance, (name, alpha)


@pytest.mark.parametrize("name", forms.SIGNED_FORMS)
def test_a_mask_has_nothing_below_zero(name: str) -> None:
    with pytest.raises(RequestError, match=r"mask has floats from -.*type .*\(mask \+ 1\) / 2"):
        open_mask(forms.SIGNED_FORMS[name](*scene("opaque")).given)


def zeros_and_ones() -> dict[str, Any]:
    half = np.zeros((8, 8), np.uint8)
    half[4:] = 1
    palette = Image.frombytes("P", (8, 8), half.tobytes())
    palette.putpalette([0, 0, 0, 255, 255, 255] + [0] * 762)
    kinds = ["bool", "uint8", "int8", "uint16", "int32", "int64", "float16", "float32", "float64"]
    arrays = {kind: half.astype(kind) for kind in kinds}
    modes = {f"PIL {kind}": Image.fromarray(arrays[kind]) for kind in
             ("bool", "uint8", "uint16", "int32", "float32")}  # fmt: skip
    tensors = {
        f"tensor {kind}": torch.from_numpy(arrays[kind]) for kind in ("bool", "uint8", "int64", "float32")
    }
    colours = {"RGB": np.repeat(half[..., None], 3, -1), "RGBA": np.repeat(half[..., None], 4, -1)}
    return {**arrays, **modes, **tensors, **colours, "palette": palette, "255": half * np.uint8(255)}


@pytest.mark.parametrize("name", zeros_and_ones())
def test_zeros_and_ones_are_black_and_white(name: str) -> None:
    """A mask as segmentation tools return them."""
    opened = open_mask(zeros_and_ones()[name])
    assert opened.image.getcolors() == [(32, 0), (32, 255)]
    assert not said(opened, "nothing is redrawn")


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (Image.new("L", (8, 8), 0), "is black all over: nothing is redrawn"),
        (np.zeros((8, 8), bool), "is black all over"),
        (torch.zeros(1, 8, 8), "is black all over"),
        (Image.new("RGBA", (8, 8), (255, 255, 255, 0)), "what is transparent counts as black"),
        (Image.new("L", (8, 8), 255), "is white all over"),
        (np.ones((8, 8)), "is white all over"),
        (np.ones((8, 8), np.int64), "is white all over"),
        (Image.new("L", (8, 8), 128), "is 128 of 255: the new picture counts 50 %"),
        (np.eye(8) * 20 / 255, "is at most 20 of 255"),
        (Image.linear_gradient("L").point(lambda v: v // 3), "is at most 85 of 255"),
        (np.eye(8, dtype=np.uint8) * 5, "is at most 5 of 255"),
        (np.dstack([np.eye(8, dtype=np.uint8) * 255, *[np.zeros((8, 8), np.uint8)] * 2]), "has colours"),
        (np.eye(8, dtype=np.uint16) * 255, "has 16 bits but is taken as 0 to 255"),
        (np.eye(8, dtype=np.uint16) * 1023, "is taken as 16 bits and is dark"),
    ],
)  # fmt: skip
def test_a_mask_that_does_little_says_so(mask: Any, words: str) -> None:
    assert said(open_mask(mask), words)


@pytest.mark.parametrize("mask", [Image.linear_gradient("L"), np.eye(8), np.eye(8, dtype=bool), torch.eye(8)])
def test_an_ordinary_mask_says_nothing(mask: Any) -> None:
    assert open_mask(mask).notes == ()


def test_hidden_colours_do_not_matter() -> None:
    """Two cut-outs that every viewer shows alike, and the same on white."""
    cut = [Image.new("RGBA", (32, 32), (*hidden, 0)) for hidden in ((0, 0, 0), (30, 200, 60))]
    for image in cut:
        image.paste((220, 60, 40, 255), (8, 8, 24, 24))
    white = Image.new("RGBA", (32, 32), "white")
    white.alpha_composite(cut[0])
    seen = [open_image(image, "image").image.tobytes() for image in (*cut, white)]
    assert len({*seen}) == 1
    assert said(open_image(Image.new("RGBA", (8, 8)), "image"), "transparent all over")


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "RGBA"])
def test_what_was_right_before_has_the_same_bits(mode: str) -> None:
    """Opaque pictures are converted by Pillow, as they always were, and nothing is said."""
    image = Image.fromarray(scene("opaque")[0]).convert(mode)
    opened = open_image(image, "image")
    assert opened.notes == ()
    assert opened.image.tobytes() == image.convert("RGB").tobytes()
    assert open_mask(image.convert("L")).image.tobytes() == image.convert("L").tobytes()


def test_what_is_given_stays_as_it_was() -> None:
    """Nothing is drawn on it, and later changes to it do not reach what was opened."""
    image = Image.new("RGB", (8, 8), "red")
    image.info["note"] = "mine"
    values = np.full((8, 8), 9, np.uint8)
    opened, mask = open_image(image, "image").image, open_mask(values).image
    image.putpixel((0, 0), (0, 0, 0))
    values[:] = 0
    assert opened.getpixel((0, 0)) == (255, 0, 0)
    assert mask.getpixel((0, 0)) == 9
    assert (image.info, opened.info) == ({"note": "mine"}, {})


def refused() -> dict[str, tuple[Any, str]]:
    ramp = np.linspace(0, 1, 64).reshape(8, 8)
    return {
        "none": (None, "give a path or a PIL image"),
        "number": (5, "image=5: give a path or a PIL image"),
        "rows": ([[0, 1]], "is a list of 1: give one, image[0]"),
        "list": ([Image.new("L", (8, 8))] * 3, "is a list of 3: give one, image[0]"),
        "empty list": ([], "give a path or a PIL image"),
        "NaN": (np.where(ramp > 0.5, np.nan, ramp), "not finite"),
        "infinity": (torch.full((8, 8), torch.inf), "not finite"),
        "NaN in F": (Image.fromarray(np.full((8, 8), np.nan, np.float32)), "not finite"),
        "overshot": (ramp * 1.3, "give 0 to 1, -1 to 1 or 0 to 255; type numpy.clip(image, 0, 1)"),
        "undershot": (ramp - 0.1, "type numpy.clip(image, 0, 1) where 0 to 1 are meant"),
        "far below": (ramp - 3, "floats from -3 to -2"),
        "far above": (ramp * 70_000, "image / image.max()"),
        "negative": (np.arange(-4, 60).reshape(8, 8), "whole numbers from -4 to 59: give 0 to 255"),
        "beyond 16 bits": (np.arange(64).reshape(8, 8) * 2000, "0 to 65535 for 16 bits"),
        "complex": (ramp * 1j, "type complex128"),
        "text": (np.array([["a"]]), "give whole numbers up to 255"),
        "object": (np.array([[None]]), "type object"),
        "flat": (np.zeros(8), "has the shape (8,): give (H, W)"),
        "five channels": (np.zeros((8, 8, 5)), "of 1 to 4 channels"),
        "batch": (np.zeros((2, 8, 8, 3)), "is a batch of 2, of shape (2, 8, 8, 3): give one, image[0]"),
        "video": (np.zeros((1, 1, 8, 8, 3)), "has the shape"),
        "empty": (np.zeros((0, 8)), "is 8x0, which is empty"),
        "empty PIL": (Image.new("RGB", (0, 8)), "is 0x8, which is empty"),
        "masked": (np.ma.masked_array(ramp, ramp > 0.5), "type image.filled(0)"),
        "huge": (np.broadcast_to(np.uint8(1), (20_000, 20_000)), "is 20000x20000: at most 67108864 pixels"),
        "huge tensor": (torch.zeros(1).expand(20_000, 20_000), "at most 67108864 pixels"),
        "meta": (torch.zeros(8, 8, device="meta"), "cannot be read as an array"),
        "sparse": (torch.eye(8).to_sparse(), "to_dense()"),
        "address": ("https://example.org/a.png", "addresses are not fetched"),
        "data address": ("data:image/png;base64,AAAA", "addresses are not fetched"),
        "no name": ("", "give a path or a PIL image"),
        "nowhere": ("nowhere.png", "image='nowhere.png': there is no such file"),
        "NUL": ("a\0.png", "cannot be read"),
        "long name": ("x" * 5000, "cannot be read"),
        "folder": (Path(), "is no plain file"),
        "bytes": (b"no picture", "cannot be read as PNG, JPEG, WEBP, BMP, TIFF, GIF, AVIF"),
        "no bytes": (b"", "none of these, or broken from its start; save it as PNG first"),
        "text file": (io.StringIO("text"), "open the file in 'rb'"),
        "closed file": (closed_file(), "closed file"),
        "closed image": (closed_image(), "cannot be read"),
    }  # fmt: skip


def closed_file() -> io.BytesIO:
    file = io.BytesIO()
    file.close()
    return file


def closed_image() -> Image.Image:
    image = Image.open(io.BytesIO(forms.FILE_FORMS["PNG RGB"](*scene("opaque")).given))
    image.close()
    return image


@pytest.mark.parametrize("name", refused())
def test_what_cannot_be_meant_is_refused(name: str) -> None:
    source, words = refused()[name]
    with pytest.raises(RequestError) as error:
        open_image(source, "image")
    assert words in str(error.value)
    assert str(error.value).startswith("image")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600
    with pytest.raises(RequestError):
        open_mask(source)


@pytest.mark.parametrize("maker", [forms.FILE_FORMS["PNG RGBA"], forms.FILE_FORMS["TIFF I;16"]])
def test_every_way_to_give_a_file(maker: Maker, tmp_path: Path) -> None:
    data = maker(*scene("holed")).given
    path = tmp_path / "a.dat"
    path.write_bytes(data)
    file = io.BytesIO(data)
    file.seek(7)  # as after writing it: it is read from the start
    with path.open("rb") as opened, Image.open(path) as lazy:
        ways: list[Any] = [str(path), path, data, bytearray(data), memoryview(data), file, opened, lazy]
        seen = {open_image(way, "image").image.tobytes() for way in ways}
    assert len(seen) == 1


def test_pipes_and_devices_are_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        with pytest.raises(RequestError, match="is no plain file"):
            open_image(path, "image")


def test_the_host_sees_no_warning_and_no_change() -> None:
    cap = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        for maker in (forms.PIL_FORMS | forms.FILE_FORMS).values():
            open_image(maker(*scene("holed")).given, "image")
    assert not heard
    assert cap == Image.MAX_IMAGE_PIXELS
