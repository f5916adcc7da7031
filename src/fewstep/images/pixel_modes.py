"""PIL images of every mode → RGB for pictures, L for masks. What they lose, or seem to mean, is said."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageChops

from fewstep.errors import RequestError
from fewstep.images.decode import OpenedImage, raise_as_unreadable
from fewstep.images.ranges import scale_to_bytes

FACTS_KEY = "fewstep"  # of `.info`, and of a PNG's text: how a picture was made, as JSON
_DEEP = ("I", "F")  # and "I;16" in its byte orders: more than 8 bits
_COLOURFUL = 16  # of 255, between channels: more than JPEG leaves in a grey picture
_DIM = 128  # of 255: a mask whose brightest is below


def to_rgb(image: Image.Image, name: str) -> OpenedImage:
    """Return a picture as RGB, its transparent parts laid on white; raises `RequestError`.

    Of what its file says beside the pixels only our own facts stay, in `.info`.
    """
    with raise_as_unreadable(name):
        flat, notes = _to_bytes(image, name, mask=False)
        if flat.mode != "RGBA":
            rgb = flat if flat.mode == "RGB" else flat.convert("RGB")
        else:
            rgb, alpha_notes = _lay_on_white(flat)
            notes += alpha_notes
        if _brightest(rgb) == 1:
            notes += ("is nearly black, nothing in it above 1 of 255: give 255 where 1 is meant as white",)
        facts = image.info.get(FACTS_KEY)
        rgb.info = {FACTS_KEY: facts} if isinstance(facts, str) else {}
        return OpenedImage(rgb, notes)


def to_mask(image: Image.Image, name: str) -> OpenedImage:
    """Return a mask as L, multiplied by its alpha; raises `RequestError`.

    Whole numbers of which none is above 1 are black and white.
    """
    with raise_as_unreadable(name):
        flat, notes = _to_bytes(image, name, mask=True)
        alpha = flat.getchannel("A") if flat.mode == "RGBA" else None
        colours = flat if flat.mode in ("1", "L", "RGB") else flat.convert("RGB")
        colours, scaled = _stretch(colours)
        grey = colours if colours.mode == "L" else colours.convert("L")
        if scaled:
            notes += ("has values of 0 and 1, which are taken as black and white",)
        if colours.mode == "RGB" and _is_colourful(colours):
            notes += (
                "has colours, of which the brightness counts: make it white where all is to be redrawn",
            )
        if alpha is not None:
            grey = ImageChops.multiply(grey, _stretch(alpha)[0])
        grey.info = {}
        return OpenedImage(grey, notes + _mask_notes(grey, alpha))


def _to_bytes(image: Image.Image, name: str, *, mask: bool) -> tuple[Image.Image, tuple[str, ...]]:
    """Return an image of 8 bits a channel: RGBA where something may be transparent, or without alpha."""
    if image.mode in _DEEP or image.mode.startswith("I;16"):
        values = np.asarray(image)
        pixels, notes = scale_to_bytes(values, name, mask=mask)
        grey, key = Image.fromarray(pixels), image.info.get("transparency")
        if not isinstance(key, int):
            return grey, notes
        alpha = Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8))
        return Image.merge("RGBA", (grey, grey, grey, alpha)), notes
    if image.mode == "LAB":
        return _lab_to_rgb(image, name), ()
    if image.mode == "La":
        image = image.convert("LA")  # Pillow has no way from La to RGBA
    if image.mode == "1":
        image = image.convert("L")
        key = image.info.get("transparency")
        if isinstance(key, int):
            image.info["transparency"] = 255 if key else 0  # a PNG's is a bit, and Pillow leaves it so
    return (image.convert("RGBA") if image.has_transparency_data else image), ()


def _lab_to_rgb(image: Image.Image, name: str) -> Image.Image:
    """Return CIE L*a*b* as sRGB, by littleCMS."""
    try:
        from PIL import ImageCms

        profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, *profiles, outputMode="RGB")
    except Exception:  # a Pillow without littleCMS
        converted = None
    if converted is None:
        raise RequestError(f"{name} is in L*a*b*, which this Pillow cannot convert: give it as RGB")
    return converted


def _lay_on_white(rgba: Image.Image) -> tuple[Image.Image, tuple[str, ...]]:
    """Return what a viewer shows of a picture with alpha on a white page."""
    least, most = _extrema(rgba.getchannel("A"))
    if least == 255:
        return rgba.convert("RGB"), ()
    page = Image.new("RGBA", rgba.size, "white")
    page.alpha_composite(rgba)
    if most == 0:
        return page.convert("RGB"), ("is transparent all over, and so it is white",)
    advice = "lay it on another colour first where that is not meant"
    return page.convert("RGB"), (f"has transparent parts, which are laid on white: {advice}",)


def _mask_notes(grey: Image.Image, alpha: Image.Image | None) -> tuple[str, ...]:
    """Return what has to be said of a mask that does little, or nothing to choose."""
    least, most = _extrema(grey)
    if most == 0:
        hint = " (what is transparent counts as black)" if alpha is not None else ""
        return (f"is black all over{hint}: nothing is redrawn; make it white where something is to be",)
    if least == 255:
        return ("is white all over: all of the picture is redrawn, as without a mask",)
    if most < _DIM or least == most:
        share = f"{most} of 255" if least == most else f"at most {most} of 255"
        return (f"is {share}: the new picture counts {100 * most // 255} % there; make it 255 for all",)
    return ()


def _stretch(image: Image.Image) -> tuple[Image.Image, bool]:
    """Return an image of zeros and ones as black and white, and whether it was one."""
    if _brightest(image) != 1:
        return image, False
    return image.point([0] + [255] * 255 if len(image.getbands()) == 1 else ([0] + [255] * 255) * 3), True


def _is_colourful(rgb: Image.Image) -> bool:
    red, green, blue = rgb.split()
    differences = (ImageChops.difference(red, green), ImageChops.difference(green, blue))
    return max(map(_brightest, differences)) > _COLOURFUL


def _brightest(image: Image.Image) -> int:
    """Return the greatest value of any channel."""
    extrema = image.getextrema()
    return int(extrema[1] if isinstance(extrema[0], int | float) else max(high for _, high in extrema))


def _extrema(image: Image.Image) -> tuple[int, int]:
    """Return the least and greatest value of one channel."""
    histogram = image.histogram()  # 256 counts
    present = [value for value, count in enumerate(histogram) if count]
    return present[0], present[-1]
