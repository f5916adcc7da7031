"""What goes beside a model: LoRAs, and pictures that steer through a ControlNet or an IP-Adapter."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fewstep import values
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


def parse_loras(loras: object, weight: float) -> tuple[ScaledSource, ...]:
    """Return each file with its weight, which is `weight` where none was given; raises `RequestError`."""
    pairs = [
        (entry, weight) if isinstance(entry, str | Path) else entry for entry in _as_list(loras, "loras")
    ]
    for pair in pairs:
        _check_entry(pair, 2, "loras", -MAX_LORA_WEIGHT, MAX_LORA_WEIGHT)
    return tuple((str(values.text(source)), values.real(scale)) for source, scale in pairs)


def parse_files(files: object, name: str) -> tuple[str, ...]:
    """Return files, folders or hub ids; raises `RequestError`."""
    listed = values.members(files)
    if listed is None or any(not isinstance(file, str | Path) or str(file) in ("", ".") for file in listed):
        raise RequestError(f"{name}={values.shown(files)}: give a list of files: {name}=['cozy.safetensors']")
    return tuple(str(values.text(file)) for file in listed)


def parse_guides(guides: object, name: str) -> tuple[tuple[ScaledSource, ...], tuple[OpenedImage, ...]]:
    """Return each model with its scale, and the pictures, opened; raises `RequestError`."""
    triples = _as_list(guides, name)
    for triple in triples:
        _check_entry(triple, 3, name, 0.0, MAX_GUIDE_SCALE)
    scaled = tuple((str(values.text(source)), values.real(scale)) for source, _, scale in triples)
    return scaled, tuple(open_image(image, name) for _, image, _ in triples)


def _as_list(value: object, name: str) -> list[Any]:
    listed = values.members(value)
    if listed is None:
        raise RequestError(f"{name}={values.shown(value)}: give a list of {_SHAPES[name]}")
    return listed


def _check_entry(entry: Any, length: int, name: str, low: float, high: float) -> None:
    """Check that a source is first, a number within [low, high] last; raises `RequestError`."""
    if not isinstance(entry, Sequence) or isinstance(entry, str) or len(entry) != length:
        raise RequestError(f"{name} has {values.shown(entry)}: give a list of {_SHAPES[name]}")
    source, scale = entry[0], entry[-1]
    if not isinstance(source, str | Path) or str(source) in ("", "."):
        raise RequestError(
            f"{name} has {source!r:.120}: give a file, a folder, or a hub id such as 'owner/name'"
        )
    number = values.real(scale)
    if not isinstance(number, float) or not low <= number <= high:  # nor is NaN
        raise RequestError(
            f"{name} has {values.shown(scale, 40)} beside {str(source)!r}: "
            f"give a number from {low:g} to {high:g}"
        )
