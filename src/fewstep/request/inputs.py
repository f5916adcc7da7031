"""What goes beside a model: LoRAs, and pictures that steer through a ControlNet or an IP-Adapter."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fewstep.errors import RequestError
from fewstep.images import OpenedImage, open_image

ScaledSource = tuple[str, float]  # a file, folder or hub id, and its share

MAX_LORA_WEIGHT = 10.0  # either way; sliders go to some 5
MAX_GUIDE_SCALE = 2.0  # of a ControlNet or an IP-Adapter; 1 is as trained
_SHAPES = {
    "loras": "files, or (file, weight) pairs: loras=[('style.safetensors', 0.8)]",
    "control": "(model, image, scale) triples: control=[('canny', 'edges.png', 0.6)]",
    "reference": "(adapter, image, scale) triples: reference=[('ip-adapter', 'cat.png', 0.6)]",
}


def parse_loras(given: object, weight: float) -> tuple[ScaledSource, ...]:
    """Each file with its weight, which is `weight` where none was given."""
    pairs = [(each, weight) if isinstance(each, str | Path) else each for each in _as_list(given, "loras")]
    for pair in pairs:
        _check_entry(pair, 2, "loras", -MAX_LORA_WEIGHT, MAX_LORA_WEIGHT)
    return tuple((str(source), float(scale)) for source, scale in pairs)


def parse_files(given: object, name: str) -> tuple[str, ...]:
    """Files, folders or hub ids."""
    listed = isinstance(given, Sequence) and not isinstance(given, str)
    for each in given if listed else (given,):  # type: ignore[attr-defined]  # mypy does not follow `listed`
        if not listed or not isinstance(each, str | Path) or str(each) in ("", "."):
            raise RequestError(f"{name}={given!r:.120}: give a list of files: {name}=['cozy.safetensors']")
    return tuple(map(str, given))  # type: ignore[call-overload]


def parse_guides(given: object, name: str) -> tuple[tuple[ScaledSource, ...], tuple[OpenedImage, ...]]:
    """Each model with its scale, and the pictures, opened."""
    triples = _as_list(given, name)
    for triple in triples:
        _check_entry(triple, 3, name, 0.0, MAX_GUIDE_SCALE)
    scaled = tuple((str(source), float(scale)) for source, _, scale in triples)
    return scaled, tuple(open_image(image, name) for _, image, _ in triples)


def _as_list(given: object, name: str) -> list[Any]:
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise RequestError(f"{name}={given!r:.120}: give a list of {_SHAPES[name]}")
    return list(given)


def _check_entry(entry: Any, length: int, name: str, low: float, high: float) -> None:
    """A source first, a number within [low, high] last."""
    if not isinstance(entry, Sequence) or isinstance(entry, str) or len(entry) != length:
        raise RequestError(f"{name} has {entry!r:.120}: give a list of {_SHAPES[name]}")
    source, scale = entry[0], entry[-1]
    if not isinstance(source, str | Path) or str(source) in ("", "."):
        raise RequestError(
            f"{name} has {source!r:.120}: give a file, a folder, or a hub id such as 'owner/name'"
        )
    number = isinstance(scale, int | float) and not isinstance(scale, bool) and math.isfinite(scale)
    if not number or not low <= scale <= high:
        raise RequestError(
            f"{name} has {scale!r:.40} beside {str(source)!r}: give a number from {low:g} to {high:g}"
        )
