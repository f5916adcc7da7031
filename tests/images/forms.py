"""Every form in which a picture can be handed over, made from one that is known.

A form takes colours (H, W, 3) and alpha (H, W), both uint8, and returns what is given, what it shows
(colours, alpha) and how far a right reading may be off, in 255ths.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageCms, features

Bytes = NDArray[np.uint8]
KEY = (250, 0, 250)  # a colour that no other pixel has

# EXIF orientation → what turns the stored pixels upright.
TURNS: dict[int, Any] = {
    1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud,
    5: lambda a: np.swapaxes(a, 0, 1), 6: lambda a: np.rot90(a, -1),
    7: lambda a: np.swapaxes(np.rot90(a, 2), 0, 1), 8: np.rot90,
}  # fmt: skip


class Form(NamedTuple):
    """A picture as it is given."""

    given: Any
    colours: Bytes  # (H, W, 3), as a viewer shows them
    alpha: Bytes  # (H, W)
    tolerance: float = 1.5


Maker = Callable[[Bytes, Bytes], Form]


def grey(colours: Bytes) -> Bytes:
    """(H, W)."""
    return np.asarray(Image.fromarray(colours).convert("L"))


def three(values: Bytes) -> Bytes:
    return np.repeat(values[..., None], 3, axis=-1)


def opaque(alpha: Bytes) -> Bytes:
    return np.full_like(alpha, 255)


def rgba(colours: Bytes, alpha: Bytes) -> Image.Image:
    return Image.fromarray(np.dstack([colours, alpha]))


def plain(mode: str, colours: Bytes, alpha: Bytes) -> Form:
    """A mode of colours without alpha, by Pillow's own conversion from RGB."""
    near = {"P": 60, "HSV": 8, "YCbCr": 4}  # web palette; few hues
    return Form(Image.fromarray(colours).convert(mode), colours, opaque(alpha), near.get(mode, 1.5))


def one_bit(colours: Bytes, alpha: Bytes) -> Form:
    white = grey(colours) > 128
    return Form(Image.fromarray(white), three(white.astype(np.uint8) * 255), opaque(alpha))


def eight(colours: Bytes, alpha: Bytes) -> Form:
    values = grey(colours)
    return Form(Image.fromarray(values), three(values), opaque(alpha))


def grey_alpha(mode: str, colours: Bytes, alpha: Bytes) -> Form:
    values = grey(colours)
    image = Image.merge("LA", (Image.fromarray(values), Image.fromarray(alpha))).convert(mode)
    return Form(image, three(values), alpha, 4 if mode == "La" else 1.5)


def colour_alpha(mode: str, colours: Bytes, alpha: Bytes) -> Form:
    return Form(rgba(colours, alpha).convert(mode), colours, alpha, 4 if mode == "RGBa" else 1.5)


def palette_alpha(mode: str, colours: Bytes, alpha: Bytes) -> Form:
    """P with an alpha for each of its colours, or PA."""
    levels = grey(colours) // 16  # 16 colours, and the alpha of each
    table = np.arange(16) * 17
    image = Image.fromarray(levels)
    if mode == "PA":
        image = Image.merge("LA", (image, Image.fromarray(alpha)))
        image = Image.frombytes("PA", image.size, image.tobytes())
        image.putpalette(np.repeat(table, 3).astype(np.uint8).tobytes())
        return Form(image, three((levels * 17).astype(np.uint8)), alpha)
    image = Image.frombytes("P", image.size, image.tobytes())
    image.putpalette(np.repeat(table, 3).astype(np.uint8).tobytes())
    alphas = np.linspace(0, 255, 16).astype(np.uint8) if alpha.min() < 255 else np.full(16, 255, np.uint8)
    image.info["transparency"] = alphas.tobytes()
    return Form(image, three((levels * 17).astype(np.uint8)), alphas[levels])


def palette_key(colours: Bytes, alpha: Bytes) -> Form:
    """P with one colour that is transparent."""
    made = palette_alpha("P", colours, opaque(alpha))
    made.given.info["transparency"] = 7
    seen = np.where(np.asarray(made.given) == 7, 0, 255).astype(np.uint8)
    return made._replace(alpha=seen)


def keyed(mode: str, colours: Bytes, alpha: Bytes) -> Form:
    """RGB, L or I;16 with a colour that is transparent, as PNG has it."""
    hidden = alpha < 128
    if mode == "RGB":
        shown = np.where(hidden[..., None], KEY, colours).astype(np.uint8)
        image = Image.fromarray(shown)
        image.info["transparency"] = KEY
    else:
        values = np.where(hidden, 3, np.maximum(grey(colours), 4)).astype(np.uint8)
        shown = three(values)
        deep = values.astype(np.uint16) * 257
        image = Image.fromarray(values if mode == "L" else deep)
        image.info["transparency"] = 3 if mode == "L" else 3 * 257
    return Form(image, shown, np.where(hidden, 0, 255).astype(np.uint8))


def lab(colours: Bytes, alpha: Bytes) -> Form:
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    image = ImageCms.profileToProfile(Image.fromarray(colours), *profiles, outputMode="LAB")
    return Form(image, colours, opaque(alpha), 8)


def deep(mode: str, gain: float, colours: Bytes, alpha: Bytes) -> Form:
    """I, F or I;16 in one of its byte orders; `gain` from 0..255 to its range."""
    values = grey(colours)
    kinds = {"I": "<i4", "F": "<f4", "I;16": "<u2", "I;16L": "<u2", "I;16B": ">u2"}
    data = (values * np.float64(gain)).astype(kinds[mode]).tobytes()
    return Form(Image.frombytes(mode, values.shape[::-1], data), three(values), opaque(alpha))


def array(dtype: str, low: float, high: float, layout: str, colours: Bytes, alpha: Bytes) -> Form:
    """A numpy array, or a tensor where the type begins with "torch."; of values from low to high."""
    channels = {"1": grey(colours)[..., None], "2": np.dstack([grey(colours), alpha]),
                "3": colours, "4": np.dstack([colours, alpha]), "": grey(colours)}  # fmt: skip
    values: NDArray[Any] = channels["".join(filter(str.isdigit, layout))]
    seen_alpha = alpha if layout[-1] in "24" or layout[0] in "24" else opaque(alpha)
    seen = colours if "3" in layout or "4" in layout else three(grey(colours))
    if dtype == "bool":
        values, seen = values > 128, np.where(seen > 128, 255, 0).astype(np.uint8)
        seen_alpha = np.where(seen_alpha > 128, 255, 0).astype(np.uint8)
    else:
        scaled = low + values.astype(np.float64) * (high - low) / 255
        kind = dtype.removeprefix("torch.")
        values = scaled.astype(np.float32 if kind == "bfloat16" else kind)
    if layout.endswith(("CHW1", "CHW2", "CHW3", "CHW4")):
        values = values.transpose(2, 0, 1)
    if layout.startswith("N"):
        values = values[None]
    given: Any = values
    if dtype.startswith("torch."):
        given = torch.from_numpy(np.ascontiguousarray(values))
        given = given.bfloat16() if dtype.endswith("bfloat16") else given
    return Form(given, seen, seen_alpha, 3 if "float16" in dtype else 1.5)


def file(kind: str, inner: Maker, colours: Bytes, alpha: Bytes, **how: Any) -> Form:
    """The bytes of a file that Pillow writes; an opaque alpha is written too."""
    made, buffer = inner(colours, alpha), io.BytesIO()
    transparency = made.given.info.get("transparency")
    if transparency is not None:
        how["transparency"] = transparency
    made.given.save(buffer, kind, **how)
    lossy = {"JPEG": 24, "AVIF": 24}.get(kind, 0)
    return made._replace(given=buffer.getvalue(), tolerance=made.tolerance + lossy)


def png48(colours: Bytes, alpha: Bytes) -> Form:
    """A PNG of 16 bits a channel with alpha, which Pillow cannot write."""
    height, width = alpha.shape
    pixels = (np.dstack([colours, alpha]).astype(np.uint16) * 257).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    return Form(png_file((width, height), 16, 6, rows), colours, alpha)


def png_file(size: tuple[int, int], bits: int, kind: int, rows: bytes, transparent: bytes = b"") -> bytes:
    """A PNG from its own parts."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", *size, bits, kind, 0, 0, 0)
    parts = [(b"IHDR", head), *([(b"tRNS", transparent)] if transparent else []),
             (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]  # fmt: skip
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(name, data) for name, data in parts)


PIL_FORMS: dict[str, Maker] = {
    "1": one_bit,
    "L": eight,
    **{mode: partial(grey_alpha, mode) for mode in ("LA", "La")},
    **{mode: partial(plain, mode) for mode in ("P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV")},
    **{mode: partial(colour_alpha, mode) for mode in ("RGBA", "RGBa")},
    "P alphas": partial(palette_alpha, "P"),
    "P key": palette_key,
    "PA": partial(palette_alpha, "PA"),
    **{f"{mode} key": partial(keyed, mode) for mode in ("RGB", "L", "I;16")},
    "LAB": lab,
    "I": partial(deep, "I", 1),
    "I of 16 bits": partial(deep, "I", 257),
    "F": partial(deep, "F", 1 / 255),
    "F of 255": partial(deep, "F", 1),
    **{mode: partial(deep, mode, 257) for mode in ("I;16", "I;16L", "I;16B")},
}
_RANGES = (
    ("uint8", 0, 255), ("uint16", 0, 65535), ("int16", 0, 255), ("int32", 0, 255), ("int64", 0, 65535),
    ("uint32", 0, 255), ("float16", 0, 1), ("float32", 0, 1),
    ("float64", 0, 1), ("float32", 0, 255),
    ("bool", 0, 1),
    ("torch.uint8", 0, 255), ("torch.float32", 0, 1), ("torch.float16", 0, 1), ("torch.bfloat16", 0, 1),
    ("torch.int64", 0, 255), ("torch.float64", 0, 255),
)  # fmt: skip
LAYOUTS = ("HW", "HWC1", "HWC2", "HWC3", "HWC4", "CHW1", "CHW2", "CHW3", "CHW4", "NHWC3", "NCHW3", "NCHW1")
ARRAY_FORMS: dict[str, Maker] = {
    f"{dtype} {low}..{high} {layout}": partial(array, dtype, low, high, layout)
    for dtype, low, high in _RANGES
    for layout in LAYOUTS
}
SIGNED_FORMS: dict[str, Maker] = {  # pictures only
    f"{dtype} -1..1 {layout}": partial(array, dtype, -1, 1, layout)
    for dtype in ("float32", "torch.float32", "float16")
    for layout in ("HW", "HWC3", "CHW3", "NCHW3")
}
_rgb, _rgba = partial(plain, "RGB"), partial(colour_alpha, "RGBA")
FILE_FORMS: dict[str, Maker] = {
    **{f"PNG {name}": partial(file, "PNG", PIL_FORMS[name]) for name in (
        "1", "L", "LA", "P", "P alphas", "P key", "RGB", "RGB key", "L key", "RGBA", "I;16", "I;16 key")},
    "PNG 16-bit RGBA": png48,
    "JPEG L": partial(file, "JPEG", eight, quality=95),
    "JPEG RGB": partial(file, "JPEG", _rgb, quality=95, subsampling=0),
    "JPEG CMYK": partial(file, "JPEG", partial(plain, "CMYK"), quality=95, subsampling=0),
    "WEBP RGB": partial(file, "WEBP", _rgb, lossless=True, exact=True),
    "WEBP RGBA": partial(file, "WEBP", _rgba, lossless=True, exact=True),
    **{f"BMP {name}": partial(file, "BMP", PIL_FORMS[name]) for name in ("1", "L", "P", "RGB")},
    **{f"TIFF {name}": partial(file, "TIFF", PIL_FORMS[name], compression="tiff_lzw") for name in (
        "1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16")},
    **{f"TIFF {name}": partial(file, "TIFF", PIL_FORMS[name]) for name in ("I", "F", "LAB", "I;16B")},
    **{f"GIF {name}": partial(file, "GIF", PIL_FORMS[name]) for name in ("L", "P", "P key")},
    **({"AVIF RGB": partial(file, "AVIF", _rgb, quality=95, subsampling="4:4:4"),
        "AVIF RGBA": partial(file, "AVIF", _rgba, quality=95, subsampling="4:4:4")}
       if features.check("avif") else {}),
}  # fmt: skip
FORMS: dict[str, Maker] = PIL_FORMS | ARRAY_FORMS | FILE_FORMS
