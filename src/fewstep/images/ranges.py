"""Which numbers an array of pixels holds → bytes. What cannot be meant is refused with what to give."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fewstep.errors import RequestError

Bytes = NDArray[np.uint8]

SLACK = 1e-3  # beyond a range of floats: what rounding leaves
LEAST_BRIGHT = 8.0  # floats up to 255 reach beyond this, or they may as well be broken ones up to 1
FAINT = -0.25  # floats that stay above may be of 0 to 1, overshot in resizing, or of -1 to 1
DARK = 4096  # of 65535: 16 bit pictures that stay below are of cameras and sensors with fewer bits
_BAND = 2**20  # numbers converted at a time


class _Scale(NamedTuple):
    """byte = value * gain + offset."""

    gain: float
    offset: float = 0.0
    note: str = ""


def scale_to_bytes(values: NDArray[Any], name: str, *, mask: bool) -> tuple[Bytes, tuple[str, ...]]:
    """Return an array of pixels as 0 to 255, a copy, and what has to be said of it.

    Booleans are black and white; whole numbers go up to 255 or, for 16 bits, up to 65535; floats go up to 1
    or 255 or, unless for a mask, from -1 to 1. Raises `RequestError`.
    """
    kind = values.dtype.kind
    if values.dtype == np.uint8:
        return values.copy(), ()
    if kind == "b":
        return values.astype(np.uint8) * np.uint8(255), ()
    if kind not in "iuf":
        raise RequestError(
            f"{name} has values of type {values.dtype}: give whole numbers up to 255, or floats from 0 to 1"
        )
    low, high = float(values.min()), float(values.max())
    if not math.isfinite(low) or not math.isfinite(high):
        raise RequestError(
            f"{name} has numbers that are not finite (NaN or infinity): "
            f"give others in their place, as numpy.nan_to_num does"
        )
    if kind == "f":
        scale = _float_scale(low, high, name, mask=mask)
    else:
        scale = _integer_scale(low, high, name, short=values.dtype.itemsize == 2)
    return _apply(values, scale), (scale.note,) if scale.note else ()


def _integer_scale(low: float, high: float, name: str, *, short: bool) -> _Scale:
    """Return how whole numbers become bytes; `short` ones have 16 bits."""
    if low < 0 or high > 65535:
        raise RequestError(
            f"{name} has whole numbers from {low:.0f} to {high:.0f}: give 0 to 255, or 0 to 65535 for 16 bits"
        )
    if high <= 255:
        note = f"has 16 bits but is taken as 0 to 255: nothing in it is above {high:.0f}"
        return _Scale(1, note=note if short and high > 1 else "")
    note = f"is taken as 16 bits and is dark: nothing in it is above {high:.0f} of 65535"
    return _Scale(1 / 257, note=note if high < DARK else "")


def _float_scale(low: float, high: float, name: str, *, mask: bool) -> _Scale:
    """Return how floats become bytes."""
    legal = "0 to 1 or 0 to 255" if mask else "0 to 1, -1 to 1 or 0 to 255"
    refusal = f"{name} has floats from {low:.4g} to {high:.4g}: give {legal}"
    if low < -SLACK:
        if low < -1 - SLACK or high > 1 + SLACK:
            raise RequestError(f"{refusal}; type numpy.clip({name}, 0, 1) where 0 to 1 are meant")
        if mask or low > FAINT:
            clipped = f"numpy.clip({name}, 0, 1) where 0 to 1 are meant"
            raise RequestError(f"{refusal}; type {clipped}, ({name} + 1) / 2 where -1 to 1 are")
        return _Scale(
            127.5, 127.5, f"has floats from {low:.4g} to {high:.4g}: -1 is taken as black, 1 as white"
        )
    if high <= 1 + SLACK:
        return _Scale(255)
    if LEAST_BRIGHT < high <= 255.5:
        return _Scale(1)
    clipped = f"numpy.clip({name}, 0, 1)" if high <= LEAST_BRIGHT else f"numpy.clip({name}, 0, 255)"
    raise RequestError(f"{refusal}; type {clipped}, or {name} / {name}.max() to keep all of it")


def _apply(values: NDArray[Any], scale: _Scale) -> Bytes:
    """Return the bytes, made band by band so that memory stays small."""
    converted = np.empty(values.shape, np.uint8)
    rows = max(1, _BAND * len(values) // values.size)
    for start in range(0, len(values), rows):
        band = values[start : start + rows].astype(np.float32) * scale.gain + scale.offset
        converted[start : start + rows] = np.rint(band.clip(0, 255))
    return converted
